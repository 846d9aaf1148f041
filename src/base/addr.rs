//! Overlay addresses and region numbers (`coordination.md` §8).

use std::{fmt, net::Ipv6Addr, num::NonZeroU16, str::FromStr};
use uuid::Uuid;

/// `fd7a:115c:a1e0::/48`: the prefix that clients use and dial.
pub const TAILSCALE_PREFIX: [u8; 6] = [0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0];
/// `fd60:627a:a42b::/48`: Coder's own prefix, the second address of every agent.
pub const CODER_PREFIX: [u8; 6] = [0xfd, 0x60, 0x62, 0x7a, 0xa4, 0x2b];

fn with_prefix(prefix: [u8; 6], id: Uuid) -> Ipv6Addr {
    let mut octets = id.into_bytes();
    for (to, from) in octets.iter_mut().zip(prefix) {
        *to = from;
    }
    Ipv6Addr::from(octets)
}

/// Both overlay addresses of an agent: its UUID with the first six bytes replaced by each prefix.
#[must_use]
pub fn agent_addresses(id: Uuid) -> [Ipv6Addr; 2] {
    [with_prefix(TAILSCALE_PREFIX, id), with_prefix(CODER_PREFIX, id)]
}

/// The one overlay address of a client, from a UUID of its choice.
#[must_use]
pub fn client_address(id: Uuid) -> Ipv6Addr {
    with_prefix(TAILSCALE_PREFIX, id)
}

/// Whether `ip` lies in one of the two overlay prefixes. Such an address is never an endpoint.
#[must_use]
pub fn is_overlay(ip: &Ipv6Addr) -> bool {
    let octets = ip.octets();
    octets.starts_with(&TAILSCALE_PREFIX) || octets.starts_with(&CODER_PREFIX)
}

/// The numeric id of an agent's node: the absolute value of the UUID's last eight bytes.
///
/// Wraps as the Go implementation does: `80 00 … 00` stays negative.
#[must_use]
pub fn node_id(id: Uuid) -> i64 {
    let (_, low) = id.as_u64_pair();
    low.cast_signed().wrapping_abs()
}

/// The number of a relay region (`derp.md` §8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(NonZeroU16);

impl RegionId {
    /// A region number, `None` for 0.
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        match NonZeroU16::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The bare number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

/// A region number that is zero, negative or beyond 65,535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a relay region's number must lie between 1 and 65535")]
pub struct ParseRegionError;

impl TryFrom<i64> for RegionId {
    type Error = ParseRegionError;

    fn try_from(id: i64) -> Result<Self, ParseRegionError> {
        u16::try_from(id).ok().and_then(Self::new).ok_or(ParseRegionError)
    }
}

impl FromStr for RegionId {
    type Err = ParseRegionError;

    fn from_str(text: &str) -> Result<Self, ParseRegionError> {
        text.parse::<i64>().map_err(|_| ParseRegionError)?.try_into()
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "derp-{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_numbers_outside_the_range_are_refused() {
        assert_eq!(RegionId::try_from(0), Err(ParseRegionError));
        assert_eq!(RegionId::try_from(-1), Err(ParseRegionError));
        assert_eq!(RegionId::try_from(65_536), Err(ParseRegionError));
        assert_eq!("999".parse::<RegionId>().map(RegionId::get), Ok(999));
    }

    #[test]
    fn addresses_and_ids_follow_from_the_uuid_as_in_go() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors/wire/keys.json")).unwrap();
        let rows = vectors["addresses"].as_array().expect("the vector file has a list of addresses");
        assert!(!rows.is_empty());
        for row in rows {
            let id: Uuid = row["uuid"].as_str().unwrap().parse().unwrap();
            let [tailscale, coder] = agent_addresses(id);
            assert_eq!(tailscale.to_string(), row["tailscale_addr"].as_str().unwrap());
            assert_eq!(coder.to_string(), row["coder_addr"].as_str().unwrap());
            assert_eq!(client_address(id), tailscale);
            assert!(is_overlay(&tailscale) && is_overlay(&coder));
            assert_eq!(Some(node_id(id)), row["node_id"].as_i64());
        }
    }
}
