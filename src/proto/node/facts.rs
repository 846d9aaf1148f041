//! What an announcement tells of a peer, checked.

use crate::{
    base::{DiscoKey, NodeKey, RegionId},
    wire::coord::tailnet,
};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Addresses, and endpoints, taken from one announcement.
const MAX_LISTED: usize = 256;

/// What a NODE says of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) key: NodeKey,
    pub(super) disco: DiscoKey,
    pub(super) home: RegionId,
    pub(super) addresses: Vec<Ipv6Addr>,
    pub(super) endpoints: Vec<SocketAddr>,
}

/// Why a NODE is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// A key, a prefix or the region cannot be read.
    Malformed,
    /// It has no home relay yet: normal, another one follows.
    NoHome,
}

impl Facts {
    pub(super) fn parse(node: &tailnet::Node) -> Result<Self, Unusable> {
        if node.preferred_derp == 0 {
            return Err(Unusable::NoHome);
        }
        let home = RegionId::try_from(i64::from(node.preferred_derp)).map_err(|_| Unusable::Malformed)?;
        let key = NodeKey::from_binary(&node.key).map_err(|_| Unusable::Malformed)?;
        let disco = node.disco.parse::<DiscoKey>().map_err(|_| Unusable::Malformed)?;
        let mut addresses: Vec<Ipv6Addr> = Vec::new();
        for text in node.allowed_ips.iter().take(MAX_LISTED) {
            let (address, bits) = text.split_once('/').ok_or(Unusable::Malformed)?;
            let address = address.parse::<IpAddr>().map_err(|_| Unusable::Malformed)?;
            // Coder's nodes are single IPv6 addresses; a wider prefix would let one peer speak for others.
            if let (IpAddr::V6(address), "128") = (address, bits)
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        let endpoints = node.endpoints.iter().take(MAX_LISTED).filter_map(|text| text.parse().ok()).collect();
        Ok(Self { key, disco, home, addresses, endpoints })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::{DiscoSecret, NodeSecret, Rng, agent_addresses};
    use uuid::Uuid;

    /// Those of a peer with keys of its own.
    pub(in crate::proto::node) fn facts(seed: u64) -> Facts {
        let mut rng = Rng::from_u64(seed);
        Facts {
            key: NodeSecret::generate(&mut rng).public(),
            disco: DiscoSecret::generate(&mut rng).public(),
            home: RegionId::new(999).unwrap(),
            addresses: agent_addresses(Uuid::from_u128(1)).to_vec(),
            endpoints: Vec::new(),
        }
    }

    #[test]
    fn an_announcement_without_home_or_with_a_bad_key_is_not_used() {
        let good = tailnet::Node {
            key: facts(1).key.to_binary(),
            disco: facts(1).disco.to_text(),
            preferred_derp: 999,
            allowed_ips: vec!["fd7a:115c:a1e0::1/128".into(), "fd7a::/16".into()],
            endpoints: vec!["1.2.3.4:5".into(), "nonsense".into()],
            ..tailnet::Node::default()
        };
        let parsed = Facts::parse(&good).unwrap();
        assert_eq!(parsed.addresses, ["fd7a:115c:a1e0::1".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(parsed.endpoints.len(), 1);
        assert_eq!(Facts::parse(&tailnet::Node { preferred_derp: 0, ..good.clone() }), Err(Unusable::NoHome));
        assert_eq!(Facts::parse(&tailnet::Node { key: vec![1; 34], ..good.clone() }), Err(Unusable::Malformed));
        assert_eq!(Facts::parse(&tailnet::Node { disco: String::new(), ..good }), Err(Unusable::Malformed));
    }
}
