//! Session and agent tokens: made once, shown once, stored as hashes.
//!
//! A session token is `<10 characters>-<22 characters>` of `[A-Za-z0-9]`; the first part is the public key id. An agent
//! token is a UUID. Neither ever reaches `Debug`, a log or an error text.

use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

const ID_CHARS: usize = 10;
const SECRET_CHARS: usize = 22;
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// The operating system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no randomness")]
pub struct NoRandomness;

fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut out = [0; N];
    SystemRandom::new().fill(&mut out).map_err(|_| NoRandomness)?;
    Ok(out)
}

/// A seed for a generator of the engines.
pub(crate) fn seed() -> Result<[u8; 32], NoRandomness> {
    random()
}

/// A fresh salt for a password.
pub(crate) fn salt() -> Result<[u8; 16], NoRandomness> {
    random()
}

fn random_text(length: usize) -> Result<String, NoRandomness> {
    let mut text = String::with_capacity(length);
    while text.len() < length {
        // Bytes from 248 on are drawn again: 248 is the last multiple of 62, so every letter is equally likely.
        let bytes = random::<32>()?;
        let letters = bytes.iter().filter(|b| **b < 248).filter_map(|b| ALPHABET.get(usize::from(b % 62)));
        text.extend(letters.take(length - text.len()).map(|b| char::from(*b)));
    }
    Ok(text)
}

/// SHA-256 of a secret: all that the store keeps of it.
#[derive(Clone, Copy)]
pub(crate) struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash of a token's secret part.
    pub(crate) fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// The stored form.
    pub(crate) const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether `stored` is the same hash, in constant time.
    pub(crate) fn matches(&self, stored: &[u8]) -> bool {
        self.0.ct_eq(stored).into()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// A user's token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SessionToken {
    id: String,
    secret: String,
}

/// A text that has not exactly two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("incorrect amount of API key parts, expected 2 got {0}")]
pub(crate) struct TokenParts(usize);

impl SessionToken {
    /// A fresh token.
    pub(crate) fn generate() -> Result<Self, NoRandomness> {
        Ok(Self { id: random_text(ID_CHARS)?, secret: random_text(SECRET_CHARS)? })
    }

    /// The public key id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// What the store keeps of the secret.
    pub(crate) fn hash(&self) -> SecretHash {
        SecretHash::of(&self.secret)
    }

    /// The whole token, to be shown once to its owner.
    #[must_use]
    pub(crate) fn expose(&self) -> String {
        format!("{}-{}", self.id, self.secret)
    }
}

impl FromStr for SessionToken {
    type Err = TokenParts;

    fn from_str(text: &str) -> Result<Self, TokenParts> {
        let parts = text.split('-').count();
        match text.split_once('-') {
            Some((id, secret)) if parts == 2 => Ok(Self { id: id.to_owned(), secret: secret.to_owned() }),
            _ => Err(TokenParts(parts)),
        }
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(..)")
    }
}

/// An agent's token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct AgentToken(Uuid);

impl AgentToken {
    /// A fresh token.
    pub(crate) fn generate() -> Result<Self, NoRandomness> {
        Ok(Self(uuid::Builder::from_random_bytes(random()?).into_uuid()))
    }

    /// What the store keeps of it.
    pub(crate) fn hash(&self) -> SecretHash {
        SecretHash::of(&self.expose())
    }

    /// The token's text, to be shown once to the workspace's owner.
    #[must_use]
    pub(crate) fn expose(&self) -> String {
        self.0.hyphenated().to_string()
    }
}

impl From<Uuid> for AgentToken {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Debug for AgentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_token_has_the_documented_form_and_reads_back() {
        let token = SessionToken::generate().unwrap();
        let text = token.expose();
        let (id, secret) = text.split_once('-').unwrap();
        assert_eq!((id.len(), secret.len()), (10, 22));
        assert!(text.bytes().all(|b| b == b'-' || b.is_ascii_alphanumeric()));
        assert!(text.parse() == Ok(token));
        assert!(SessionToken::generate().unwrap().expose() != text);
    }

    #[test]
    fn a_text_without_exactly_two_parts_is_no_token() {
        assert_eq!("abc".parse::<SessionToken>(), Err(TokenParts(1)));
        assert_eq!("a-b-c-d-e".parse::<SessionToken>(), Err(TokenParts(5)));
    }

    #[test]
    fn only_the_right_secret_matches_its_hash() {
        let hash = SecretHash::of("right");
        assert!(hash.matches(SecretHash::of("right").as_bytes()));
        assert!(!hash.matches(SecretHash::of("wrong").as_bytes()));
        assert!(!hash.matches(&[]));
    }

    #[test]
    fn no_token_shows_in_debug_output() {
        let (user, agent) = (SessionToken::generate().unwrap(), AgentToken::generate().unwrap());
        assert_eq!(format!("{user:?} {agent:?} {:?}", user.hash()), "SessionToken(..) AgentToken(..) SecretHash(..)");
    }
}
