//! Our own endpoints: where peers may reach us directly (`stun-netcheck.md` §7), and the node that we announce.

use crate::{
    base::{DiscoKey, Instant, NodeKey, RegionId, is_overlay},
    wire::coord::tailnet,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// How long a public address that STUN no longer shows is still announced. Equal to the Go client's.
const PUBLIC_KEPT: Duration = Duration::from_secs(310);
/// Endpoints announced at most; each costs peers a ping.
const MAX_ENDPOINTS: usize = 64;

/// Public addresses by STUN and local ones by the driver.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    /// When each public address was seen last.
    public: BTreeMap<SocketAddr, Instant>,
    local: Vec<SocketAddr>,
}

impl Endpoints {
    pub(super) fn handle_public(&mut self, now: Instant, address: SocketAddr) {
        if is_usable(&address) {
            self.public.insert(address, now);
        }
        self.public.retain(|_, seen| now - *seen < PUBLIC_KEPT);
    }

    pub(super) fn set_local(&mut self, mut local: Vec<SocketAddr>) {
        local.retain(is_usable);
        local.sort_unstable();
        local.dedup();
        self.local = local;
    }

    /// All of them: public ones first, the latest seen in front, then local ones by address.
    pub(super) fn list(&self, now: Instant) -> Vec<SocketAddr> {
        let mut public: Vec<_> = self.public.iter().filter(|(_, seen)| now - **seen < PUBLIC_KEPT).collect();
        public.sort_by_key(|(address, seen)| (std::cmp::Reverse(**seen), address.is_ipv6()));
        let mut list: Vec<SocketAddr> = public.into_iter().map(|(address, _)| *address).collect();
        list.extend(self.local.iter().filter(|a| !self.public.contains_key(a)));
        list.truncate(MAX_ENDPOINTS);
        list
    }
}

/// Whether a peer could send to this address at all.
fn is_usable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let overlay = match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => is_overlay(&ip) || ip.is_unicast_link_local(),
    };
    !(overlay || ip.is_unspecified() || ip.is_multicast() || address.port() == 0)
}

/// What we announce, but for the time and the values of latencies.
#[derive(Debug, Clone)]
pub(super) struct Announcement {
    pub(super) home: RegionId,
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) addresses: Vec<Ipv6Addr>,
    /// The relays' names whose latency is known.
    pub(super) measured: BTreeSet<String>,
}

impl Announcement {
    /// Whether those who know `before` have to be told. Another order of the endpoints is no news: it changes with every
    /// look at the STUN servers, and each announcement has all peers reconfigure themselves.
    pub(super) fn tells_more_than(&self, before: &Self) -> bool {
        let set = |endpoints: &[SocketAddr]| endpoints.iter().copied().collect::<BTreeSet<_>>();
        let same =
            self.home == before.home && set(&self.endpoints) == set(&before.endpoints) && self.addresses == before.addresses;
        !same || !self.measured.is_subset(&before.measured)
    }

    /// The message for the coordinator (`coordination.md` §9).
    pub(super) fn to_node(&self, id: i64, key: NodeKey, disco: DiscoKey, latency: &BTreeMap<String, f64>) -> tailnet::Node {
        let prefixes: Vec<String> = self.addresses.iter().map(|a| format!("{a}/128")).collect();
        tailnet::Node {
            id,
            as_of: None,
            key: key.to_binary(),
            disco: disco.to_text(),
            preferred_derp: self.home.get().into(),
            derp_latency: latency.clone(),
            derp_forced_websocket: BTreeMap::new(),
            addresses: prefixes.clone(),
            allowed_ips: prefixes,
            endpoints: self.endpoints.iter().map(ToString::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    const fn secs(n: u64) -> Instant {
        Instant::from_nanos(n * 1_000_000_000)
    }

    #[test]
    fn the_latest_public_address_comes_first_and_local_ones_last() {
        let mut endpoints = Endpoints::default();
        endpoints.set_local(vec![addr("10.0.0.2:7"), addr("[fe80::1]:7"), addr("[fd60:627a:a42b::1]:7"), addr("10.0.0.1:7")]);
        endpoints.handle_public(secs(1), addr("1.1.1.1:1"));
        endpoints.handle_public(secs(2), addr("2.2.2.2:2"));
        let expected = ["2.2.2.2:2", "1.1.1.1:1", "10.0.0.1:7", "10.0.0.2:7"].map(addr);
        assert_eq!(endpoints.list(secs(3)), expected);
    }

    #[test]
    fn another_order_of_the_endpoints_is_no_news_and_another_endpoint_is() {
        let announcement = |endpoints: &[&str]| Announcement {
            home: RegionId::new(1).unwrap(),
            endpoints: endpoints.iter().map(|text| addr(text)).collect(),
            addresses: Vec::new(),
            measured: BTreeSet::new(),
        };
        let before = announcement(&["1.1.1.1:1", "2.2.2.2:2"]);
        assert!(!announcement(&["2.2.2.2:2", "1.1.1.1:1"]).tells_more_than(&before));
        assert!(announcement(&["1.1.1.1:1"]).tells_more_than(&before));
        assert!(announcement(&["1.1.1.1:1", "2.2.2.2:3"]).tells_more_than(&before));
    }

    #[test]
    fn a_vanished_public_address_is_announced_for_five_minutes_and_ten_seconds() {
        let mut endpoints = Endpoints::default();
        endpoints.handle_public(secs(0), addr("1.1.1.1:1"));
        assert_eq!(endpoints.list(secs(309)).len(), 1);
        assert!(endpoints.list(secs(310)).is_empty());
    }
}
