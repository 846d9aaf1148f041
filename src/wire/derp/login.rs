//! What client and server tell each other in sealed boxes at login (`derp.md` §4).
//!
//! The boxes are made with the node key of the client and the server's own key, so opening one proves the other side.
//! Go's JSON reader does not mind the case of names, so ours does not.

use super::{Frame, frames::NONCE_LEN};
use crate::base::{NodeKey, NodeSecret};
use crypto_box::{PublicKey, SalsaBox, SecretKey, aead::AeadInPlace as _};
use serde_json::{Map, Value};

/// The version that both sides state; nobody negotiates.
const PROTOCOL_VERSION: i64 = 2;
const TAG: usize = 16;

/// The key pair of a relay. The same kind of pair as a node's.
pub type RelaySecret = NodeSecret;

/// Why a login box is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The box does not open with the key that stands in front of it.
    #[error("the login box does not open")]
    Sealed,
    /// The opened text is not one JSON object with fields of the right kinds.
    #[error("the login box holds no valid description")]
    Json,
}

/// What a client says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientInfo {
    /// The client's protocol version, 0 when it does not say.
    pub version: i64,
    /// Whether the client answers pings.
    pub can_ack_pings: bool,
}

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerInfo {
    /// The server's protocol version, 0 when it does not say.
    pub version: i64,
    /// How many bytes a second a client may send; 0 for any.
    pub bytes_per_second: u64,
    /// How many bytes it may send at once.
    pub bytes_burst: u64,
}

/// Case-insensitive access to a JSON object.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The field `name`, `None` when absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).filter(|v| !v.is_null())
    }

    /// The field `name` read by `as_kind`, its default when absent, `None` when of another kind.
    pub(super) fn read<T: Default>(&self, name: &str, as_kind: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        self.get(name).map_or_else(|| Some(T::default()), as_kind)
    }
}

fn open(own: &NodeSecret, other: &NodeKey, nonce: &[u8; NONCE_LEN], sealed: &[u8]) -> Result<Map<String, Value>, LoginError> {
    let (tag, text) = sealed.split_first_chunk::<TAG>().ok_or(LoginError::Sealed)?;
    let mut text = text.to_vec();
    SalsaBox::new(&PublicKey::from(*other.as_bytes()), &SecretKey::from(*own.expose()))
        .decrypt_in_place_detached(nonce.into(), b"", &mut text, tag.into())
        .map_err(|_| LoginError::Sealed)?;
    match serde_json::from_slice(&text) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(LoginError::Json),
    }
}

fn seal(own: &NodeSecret, other: &NodeKey, nonce: &[u8; NONCE_LEN], text: &str) -> Vec<u8> {
    let mut text = text.as_bytes().to_vec();
    let sealed = SalsaBox::new(&PublicKey::from(*other.as_bytes()), &SecretKey::from(*own.expose()));
    // Only a text of 256 GiB is too long for this cipher.
    let tag = sealed.encrypt_in_place_detached(nonce.into(), b"", &mut text).unwrap_or_default();
    [tag.as_slice(), &text].concat()
}

impl ClientInfo {
    /// The login of a node: this version, pings are answered.
    #[must_use]
    pub const fn of_node() -> Self {
        Self { version: PROTOCOL_VERSION, can_ack_pings: true }
    }

    /// Opens the box of a [`Frame::ClientInfo`].
    ///
    /// # Errors
    /// See [`LoginError`].
    pub fn open(own: &RelaySecret, client: &NodeKey, nonce: &[u8; NONCE_LEN], sealed: &[u8]) -> Result<Self, LoginError> {
        let object = open(own, client, nonce, sealed)?;
        let fields = Fields(&object);
        let info = || {
            Some(Self {
                version: fields.read("version", Value::as_i64)?,
                can_ack_pings: fields.read("CanAckPings", Value::as_bool)?,
            })
        };
        info().ok_or(LoginError::Json)
    }

    /// Appends the login frame, sealed from the node to the server.
    pub fn write(&self, own: &NodeSecret, server: &NodeKey, nonce: [u8; NONCE_LEN], out: &mut Vec<u8>) {
        // The capitals are Go's, and CanAckPings always stands there.
        let version = if self.version == 0 { String::new() } else { format!("\"version\":{},", self.version) };
        let text = format!("{{{version}\"CanAckPings\":{}}}", self.can_ack_pings);
        let sealed = seal(own, server, &nonce, &text);
        Frame::ClientInfo { key: own.public(), nonce, sealed: &sealed }.write(out);
    }
}

impl ServerInfo {
    /// What our server says: this version and no limit.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { version: PROTOCOL_VERSION, bytes_per_second: 0, bytes_burst: 0 }
    }

    /// Opens the box of a [`Frame::ServerInfo`].
    ///
    /// # Errors
    /// See [`LoginError`].
    pub fn open(own: &NodeSecret, server: &NodeKey, nonce: &[u8; NONCE_LEN], sealed: &[u8]) -> Result<Self, LoginError> {
        let object = open(own, server, nonce, sealed)?;
        let fields = Fields(&object);
        // Go's fields are signed; a negative limit is none.
        let amount = |name| fields.read(name, Value::as_i64).map(|n| u64::try_from(n).unwrap_or(0));
        let info = || {
            Some(Self {
                version: fields.read("version", Value::as_i64)?,
                bytes_per_second: amount("TokenBucketBytesPerSecond")?,
                bytes_burst: amount("TokenBucketBytesBurst")?,
            })
        };
        info().ok_or(LoginError::Json)
    }

    /// Appends the answer to a login, sealed from the server to the client.
    pub fn write(&self, own: &RelaySecret, client: &NodeKey, nonce: [u8; NONCE_LEN], out: &mut Vec<u8>) {
        let mut text = format!("{{\"version\":{}", self.version);
        if self.bytes_per_second > 0 {
            text.push_str(&format!(
                ",\"TokenBucketBytesPerSecond\":{},\"TokenBucketBytesBurst\":{}",
                self.bytes_per_second, self.bytes_burst
            ));
        }
        text.push('}');
        let sealed = seal(own, client, &nonce, &text);
        Frame::ServerInfo { nonce, sealed: &sealed }.write(out);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::parse, *};
    use proptest::prelude::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/wire/derp.json")).unwrap()
    }

    fn array<const N: usize>(v: &Value) -> [u8; N] {
        hex::decode(v.as_str().unwrap()).unwrap().try_into().unwrap()
    }

    fn secret(v: &Value, name: &str) -> NodeSecret {
        NodeSecret::from_random(array(&v["keys"][name]["private"]))
    }

    #[test]
    fn logins_of_go_open_and_the_plain_one_is_written_byte_for_byte() {
        let v = vectors();
        let server = secret(&v, "S");
        let mut seen = 0;
        for step in v["session"].as_array().unwrap() {
            let bytes = hex::decode(step["frame"].as_str().unwrap()).unwrap();
            let json = step["meaning"]["json"].as_str().unwrap_or_default();
            let client = secret(&v, step["client"].as_str().unwrap());
            let mut out = Vec::new();
            match parse(&bytes).unwrap().unwrap().0 {
                Frame::ClientInfo { key, nonce, sealed } => {
                    assert_eq!(key, client.public());
                    let info = ClientInfo::open(&server, &key, &nonce, sealed).unwrap();
                    assert_eq!(info, ClientInfo { version: 2, can_ack_pings: json.contains("\"CanAckPings\":true") });
                    // The third one carries a mesh key, which we never send.
                    if !json.contains("meshKey") {
                        info.write(&client, &server.public(), nonce, &mut out);
                        assert_eq!(out, bytes, "{json}");
                    }
                }
                Frame::ServerInfo { nonce, sealed } => {
                    let info = ServerInfo::open(&client, &server.public(), &nonce, sealed).unwrap();
                    assert_eq!(info, ServerInfo::unlimited());
                    info.write(&server, &client.public(), nonce, &mut out);
                    assert_eq!(out, bytes);
                }
                _ => continue,
            }
            seen += 1;
        }
        assert_eq!(seen, 6);
    }

    #[test]
    fn odd_logins_are_accepted_and_refused_as_by_go() {
        let v = vectors();
        let server = secret(&v, "S");
        for row in v["server_login"].as_array().unwrap() {
            let Ok(bytes) = hex::decode(row["frame"].as_str().unwrap()) else { continue };
            let accepted = match parse(&bytes) {
                Ok(Some((Frame::ClientInfo { key, nonce, sealed }, _))) => {
                    ClientInfo::open(&server, &key, &nonce, sealed).is_ok()
                }
                _ => false,
            };
            assert_eq!(Some(accepted), row["accepted"].as_bool(), "{}", row["name"]);
        }
    }

    #[test]
    fn a_servers_limit_is_read_and_a_damaged_box_refused() {
        let v = vectors();
        let (client, server) = (secret(&v, "A"), secret(&v, "S").public());
        let mut seen = 0;
        for row in v["client_parses"].as_array().unwrap() {
            let bytes = hex::decode(row["frames"].as_str().unwrap()).unwrap();
            let Ok(Some((Frame::ServerInfo { nonce, sealed }, _))) = parse(&bytes) else { continue };
            let opened = ServerInfo::open(&client, &server, &nonce, sealed);
            match row["messages"].as_array().unwrap().as_slice() {
                [m] => {
                    let info = opened.unwrap();
                    assert_eq!(Some(info.bytes_per_second), m["token_bucket_bytes_per_second"].as_u64());
                    assert_eq!(Some(info.bytes_burst), m["token_bucket_bytes_burst"].as_u64());
                }
                _ => assert_eq!(opened, Err(LoginError::Sealed), "{}", row["name"]),
            }
            seen += 1;
        }
        assert_eq!(seen, 2);
    }

    proptest! {
        #[test]
        fn written_descriptions_open_again(
            a in any::<[u8; 32]>(), b in any::<[u8; 32]>(), nonce in any::<[u8; 24]>(),
            version in any::<i64>(), can_ack_pings in any::<bool>(), bytes_per_second in 1..i64::MAX, bytes_burst in 0..i64::MAX,
        ) {
            let (client, server) = (NodeSecret::from_random(a), NodeSecret::from_random(b));
            let mut out = Vec::new();
            let said = ClientInfo { version, can_ack_pings };
            said.write(&client, &server.public(), nonce, &mut out);
            let Some((Frame::ClientInfo { key, nonce, sealed }, _)) = parse(&out).unwrap() else { panic!("no login") };
            prop_assert_eq!(ClientInfo::open(&server, &key, &nonce, sealed), Ok(said));

            let mut out = Vec::new();
            let said = ServerInfo {
                version, bytes_per_second: bytes_per_second.unsigned_abs(), bytes_burst: bytes_burst.unsigned_abs(),
            };
            said.write(&server, &client.public(), nonce, &mut out);
            let Some((Frame::ServerInfo { nonce, sealed }, _)) = parse(&out).unwrap() else { panic!("no answer") };
            prop_assert_eq!(ServerInfo::open(&client, &server.public(), &nonce, sealed), Ok(said));
        }
    }
}
