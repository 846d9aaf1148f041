//! Node and disco keys: Curve25519 pairs and their text and binary forms (`disco.md` §1).

use super::Rng;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{fmt, str::FromStr};
use subtle::ConstantTimeEq as _;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Why a text or some bytes are no key. Never holds the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// The text does not begin with the prefix of its kind.
    #[error("key does not begin with {0:?}")]
    Prefix(&'static str),
    /// Not exactly 64 hexadecimal digits, or not exactly 34 bytes.
    #[error("key has the wrong length")]
    Length,
    /// A character that is no hexadecimal digit.
    #[error("key holds a character that is no hexadecimal digit")]
    Digit,
}

fn parse_hex(text: &str) -> Result<[u8; 32], ParseKeyError> {
    if text.len() != 64 {
        return Err(ParseKeyError::Length);
    }
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key).map_err(|_| ParseKeyError::Digit)?;
    Ok(key)
}

fn parse_prefixed(text: &str, prefix: &'static str) -> Result<[u8; 32], ParseKeyError> {
    parse_hex(text.strip_prefix(prefix).ok_or(ParseKeyError::Prefix(prefix))?)
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident, $public:ident) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// A key from 32 random bytes, clamped at creation as RFC 7748 §5 asks.
            #[must_use]
            pub const fn from_random(mut bytes: [u8; 32]) -> Self {
                bytes[0] &= 0xf8;
                bytes[31] = (bytes[31] & 0x7f) | 0x40;
                Self(bytes)
            }

            /// A fresh key.
            #[must_use]
            pub fn generate(rng: &mut Rng) -> Self {
                Self::from_random(rng.bytes())
            }

            /// The public half.
            #[must_use]
            pub fn public(&self) -> $public {
                $public(PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
            }

            /// The raw bytes, for the cryptographic libraries only.
            #[must_use]
            pub const fn expose(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(&other.0).into()
            }
        }

        impl Eq for $name {}
    };
}

macro_rules! public {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Whether all bytes are zero, the form of an absent key.
            #[must_use]
            pub fn is_zero(&self) -> bool {
                self.0 == [0; 32]
            }

            #[doc = concat!("`", $prefix, "` and 64 lower-case hexadecimal digits.")]
            #[must_use]
            pub fn to_text(&self) -> String {
                format!(concat!($prefix, "{}"), hex::encode(self.0))
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        impl FromStr for $name {
            type Err = ParseKeyError;

            /// Reads the prefixed text form; upper-case digits are taken too.
            fn from_str(text: &str) -> Result<Self, ParseKeyError> {
                parse_prefixed(text, $prefix).map(Self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

secret! {
    /// A node's private key (X25519): WireGuard's static key and the relay identity. Never printed, wiped on drop.
    NodeSecret, NodeKey
}

secret! {
    /// A disco private key, fresh for each run. Never printed, wiped on drop.
    DiscoSecret, DiscoKey
}

public! {
    /// A node's public key. `Display` gives the short log form `[j0DFr]`.
    NodeKey, "nodekey:"
}

public! {
    /// A disco public key. `Display` gives the short log form `d:8f40c5adb68f2562`.
    DiscoKey, "discokey:"
}

impl NodeSecret {
    /// `privkey:` and 64 digits. The only way to turn the secret into text.
    #[must_use]
    pub fn expose_text(&self) -> String {
        format!("privkey:{}", hex::encode(self.0))
    }
}

impl FromStr for NodeSecret {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        parse_prefixed(text, "privkey:").map(Self)
    }
}

impl NodeKey {
    /// 64 digits without prefix: `Derp-Public-Key` and the relay certificate.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads 64 digits without prefix.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn from_hex(text: &str) -> Result<Self, ParseKeyError> {
        parse_hex(text).map(Self)
    }

    /// `np` and the raw bytes: the form in coordination messages.
    #[must_use]
    pub fn to_binary(&self) -> Vec<u8> {
        [b"np".as_slice(), &self.0].concat()
    }

    /// Reads the 34-byte form.
    ///
    /// # Errors
    /// When length or prefix differ.
    pub fn from_binary(bytes: &[u8]) -> Result<Self, ParseKeyError> {
        let bytes: &[u8; 34] = bytes.try_into().map_err(|_| ParseKeyError::Length)?;
        match bytes {
            [b'n', b'p', key @ ..] => Ok(Self(*key)),
            _ => Err(ParseKeyError::Prefix("np")),
        }
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return Ok(());
        }
        let [a, b, c, d, ..] = self.0;
        let text = STANDARD.encode([a, b, c, d]);
        write!(f, "[{}]", text.get(..5).unwrap_or(&text))
    }
}

impl fmt::Display for DiscoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return Ok(());
        }
        let [a, b, c, d, e, g, h, i, ..] = self.0;
        write!(f, "d:{}", hex::encode([a, b, c, d, e, g, h, i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../../tests/vectors/wire/keys.json")).unwrap()
    }

    fn bytes32(v: &serde_json::Value) -> [u8; 32] {
        hex::decode(v.as_str().unwrap()).unwrap().try_into().unwrap()
    }

    #[test]
    fn secrets_are_clamped_when_they_are_made() {
        for row in vectors()["clamping"].as_array().unwrap() {
            let key = NodeSecret::from_random(bytes32(&row["random"]));
            assert_eq!(key.expose(), &bytes32(&row["private"]));
            assert_eq!(key.public().as_bytes(), &bytes32(&row["public"]));
        }
    }

    #[test]
    fn every_text_and_binary_form_equals_the_go_one() {
        let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_owned();
        for row in vectors()["keys"].as_array().unwrap() {
            let secret = NodeSecret::from_random(bytes32(&row["private"]));
            let (node, disco) = (secret.public(), DiscoKey::from(bytes32(&row["public"])));
            assert_eq!(secret.expose_text(), text(row, "node_private_text"));
            assert_eq!(secret.expose_text().parse::<NodeSecret>().as_ref(), Ok(&secret));
            assert_eq!(node.to_text(), text(row, "node_public_text"));
            assert_eq!(node.to_hex(), text(row, "node_public_untyped"));
            assert_eq!(hex::encode(node.to_binary()), text(row, "node_public_binary"));
            assert_eq!(node.to_string(), text(row, "node_public_short"));
            assert_eq!(disco.to_text(), text(row, "disco_public_text"));
            assert_eq!(disco.to_string(), text(row, "disco_public_short"));
        }
        let zero = NodeKey::from([0; 32]);
        assert!(zero.is_zero());
        assert_eq!(zero.to_string(), "");
    }

    #[test]
    fn texts_and_bytes_that_go_refuses_are_refused() {
        let vectors = vectors();
        for row in vectors["parse_text"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let ok = match row["type"].as_str().unwrap() {
                "node_public" => text.parse::<NodeKey>().is_ok(),
                "disco_public" => text.parse::<DiscoKey>().is_ok(),
                "node_private" => text.parse::<NodeSecret>().is_ok(),
                _ => continue,
            };
            assert_eq!(Some(ok), row["ok"].as_bool(), "{row}");
        }
        for row in vectors["parse_node_public_binary"].as_array().unwrap() {
            let bytes = hex::decode(row["binary"].as_str().unwrap()).unwrap();
            assert_eq!(Some(NodeKey::from_binary(&bytes).is_ok()), row["ok"].as_bool(), "{row}");
        }
        for row in vectors["parse_node_public_untyped"].as_array().unwrap() {
            assert_eq!(Some(NodeKey::from_hex(row["text"].as_str().unwrap()).is_ok()), row["ok"].as_bool(), "{row}");
        }
    }

    #[test]
    fn a_secret_never_shows_in_debug_output() {
        let secret = NodeSecret::from_random([0x42; 32]);
        assert_eq!(format!("{secret:?}"), "NodeSecret(..)");
        assert_eq!(format!("{:?}", DiscoSecret::from_random([0x42; 32])), "DiscoSecret(..)");
    }
}
