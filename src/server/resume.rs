//! Resume tokens: by one of them a client keeps its peer id over a reconnect (`coordination.md` §16).
//!
//! JSON web tokens signed with HS512, as the Go server makes them. The key lives as long as the process: after a restart
//! a client is refused once, which names the field, and comes back without a token.

use super::{
    time::Stamp,
    token::{self, NoRandomness},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use ring::hmac;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

/// How long a token counts.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// When a client shall ask for the next one.
pub(crate) const REFRESH: Duration = Duration::from_secs(12 * 3600);
/// How far clocks may differ.
const LEEWAY: Duration = Duration::from_secs(60);
/// The longest token that is looked at; ours have 250 bytes.
const MAX_TOKEN: usize = 2048;

/// A token that does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Invalid resume token")]
pub(crate) struct Invalid;

/// Makes and checks resume tokens.
#[derive(Debug)]
pub(crate) struct ResumeTokens {
    key: hmac::Key,
    key_id: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: Uuid,
    exp: i64,
}

impl ResumeTokens {
    /// With a fresh key.
    pub(crate) fn new() -> Result<Self, NoRandomness> {
        let key = [token::seed()?, token::seed()?].concat();
        Ok(Self::with_key(&key, Uuid::new_v4().to_string()))
    }

    fn with_key(key: &[u8], key_id: String) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA512, key), key_id }
    }

    /// A token for `peer`, and when it ends.
    pub(crate) fn make(&self, now: Stamp, peer: Uuid) -> (String, Stamp) {
        let end = now + LIFE;
        let header = format!("{{\"alg\":\"HS512\",\"kid\":{}}}", json!(self.key_id));
        let claims = format!("{{\"sub\":\"{peer}\",\"exp\":{}}}", end.seconds());
        let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let signature = BASE64.encode(hmac::sign(&self.key, signed.as_bytes()));
        (format!("{signed}.{signature}"), end)
    }

    /// The peer that a token is for.
    pub(crate) fn check(&self, now: Stamp, token: &str) -> Result<Uuid, Invalid> {
        let (signed, signature) = token.rsplit_once('.').filter(|_| token.len() <= MAX_TOKEN).ok_or(Invalid)?;
        let (header, claims) = signed.split_once('.').ok_or(Invalid)?;
        let decode = |part: &str| BASE64.decode(part).map_err(|_| Invalid);
        hmac::verify(&self.key, signed.as_bytes(), &decode(signature)?).map_err(|_| Invalid)?;
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Invalid)?;
        let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| Invalid)?;
        let expired = Stamp::from_proto(claims.exp, 0).is_none_or(|end| end + LEEWAY <= now);
        if header.alg != "HS512" || header.kid != self.key_id || expired {
            return Err(Invalid);
        }
        Ok(claims.sub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn vectors() -> Value {
        let all: Value = serde_json::from_str(include_str!("../../tests/vectors/wire/control-socket.json")).unwrap();
        all["resume_token"].clone()
    }

    fn at(seconds: &Value) -> Stamp {
        Stamp::from_micros(seconds.as_i64().unwrap() * 1_000_000)
    }

    #[test]
    fn a_token_equals_that_of_the_go_server_byte_for_byte() {
        let v = vectors();
        let tokens = ResumeTokens::with_key(&hex::decode(v["hs512_key"].as_str().unwrap()).unwrap(), "key-1".into());
        let (token, end) = tokens.make(at(&v["issued_at_unix"]), v["peer_id"].as_str().unwrap().parse().unwrap());
        assert_eq!(token, v["token"].as_str().unwrap());
        assert_eq!(Some(end.seconds()), v["expires_at_unix"].as_i64());
        assert_eq!(Some(REFRESH.as_secs()), v["refresh_in_seconds"].as_u64());
    }

    #[test]
    fn tokens_count_where_the_go_server_lets_them() {
        let v = vectors();
        let key = hex::decode(v["hs512_key"].as_str().unwrap()).unwrap();
        for row in v["verify"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            let tokens = match name {
                "other key id" => ResumeTokens::with_key(&key, "key-2".into()),
                "other key" => ResumeTokens::with_key(&[7; 64], "key-1".into()),
                _ => ResumeTokens::with_key(&key, "key-1".into()),
            };
            let checked = tokens.check(at(&row["at_unix"]), row["token"].as_str().unwrap());
            assert_eq!(Some(checked.is_ok()), row["ok"].as_bool(), "{name}");
        }
    }
}
