//! The addresses at which a peer might be reached (`path-selection.md` §2, §4, §6).

use crate::base::{Instant, is_overlay};
use crate::wire::disco::{TxId, relay_region};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Between two discovery pings to one address.
pub(super) const PING_GAP: Duration = Duration::from_secs(5);
/// A learned address is kept this long after its last ping.
const LEARNED_LIFE: Duration = Duration::from_secs(45);
/// Beyond this number everything that may go goes.
const PRUNE: usize = 100;
/// More are never kept: a peer's lists and pings come from the network.
pub(super) const MAX_CANDIDATES: usize = 200;

#[derive(Debug, Default, Clone, Copy)]
struct Candidate {
    in_map: bool,
    called: bool,
    /// When the peer last showed that it uses the address.
    heard: Option<Instant>,
    /// Of the last ping from there: a copy gets no pong.
    last_tx: Option<TxId>,
    last_ping: Option<Instant>,
}

impl Candidate {
    fn is_deletable(&self, now: Instant) -> bool {
        !self.called && !self.in_map && self.heard.is_none_or(|at| now - at > LEARNED_LIFE)
    }
}

#[derive(Debug, Default)]
pub(super) struct Candidates(BTreeMap<SocketAddr, Candidate>);

/// Whether an address that a peer names can be one: never an overlay or link-local address or a relay's stand-in.
fn is_plausible(addr: &SocketAddr) -> bool {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local() && !is_overlay(&ip),
    };
    ip && addr.port() != 0 && relay_region(addr).is_none()
}

impl Candidates {
    pub(super) fn contains(&self, addr: &SocketAddr) -> bool {
        self.0.contains_key(addr)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn entry(&mut self, now: Instant, addr: SocketAddr, keep: Option<SocketAddr>) -> Option<(&mut Candidate, bool)> {
        if !is_plausible(&addr) {
            return None;
        }
        let is_new = !self.0.contains_key(&addr);
        if is_new && self.0.len() >= PRUNE {
            self.prune(now, keep);
        }
        if is_new && self.0.len() >= MAX_CANDIDATES {
            return None;
        }
        Some((self.0.entry(addr).or_default(), is_new))
    }

    /// Deletes what may go, but not `keep`, the address in use.
    pub(super) fn prune(&mut self, now: Instant, keep: Option<SocketAddr>) {
        self.0.retain(|addr, c| Some(*addr) == keep || !c.is_deletable(now));
    }

    /// Takes the peer's addresses from the network map. Returns whether one is new.
    pub(super) fn set_map(&mut self, now: Instant, endpoints: &[SocketAddr], keep: Option<SocketAddr>) -> bool {
        for candidate in self.0.values_mut() {
            candidate.in_map = false;
        }
        let mut news = false;
        for addr in endpoints {
            if let Some((candidate, is_new)) = self.entry(now, *addr, keep) {
                candidate.in_map = true;
                news |= is_new;
            }
        }
        self.prune(now, keep);
        news
    }

    /// Takes the list of a call-me-maybe: it replaces that of the previous one.
    pub(super) fn set_called(&mut self, now: Instant, endpoints: &[SocketAddr], keep: Option<SocketAddr>) {
        for candidate in self.0.values_mut() {
            candidate.called = false;
        }
        for addr in endpoints {
            if let Some((candidate, _)) = self.entry(now, *addr, keep) {
                candidate.called = true;
            }
        }
        self.prune(now, keep);
    }

    /// A ping came from `addr`. `None` when it is a copy, else whether it is news that the peer gets through from there.
    ///
    /// It is for an address that was known already and pinged in vain: a NAT in front of it lets us through only now that
    /// the peer has sent something, and the next ping of ours might be 5 s away.
    pub(super) fn heard_ping(&mut self, now: Instant, addr: SocketAddr, tx: TxId, keep: Option<SocketAddr>) -> Option<bool> {
        let Some((candidate, _)) = self.entry(now, addr, keep) else { return Some(false) };
        let is_news = candidate.heard.replace(now).is_none_or(|at| now - at >= PING_GAP);
        (candidate.last_tx.replace(tx) != Some(tx)).then_some(is_news)
    }

    /// Authenticated data came from `addr`. Returns whether the address is new.
    pub(super) fn heard_data(&mut self, now: Instant, addr: SocketAddr, keep: Option<SocketAddr>) -> bool {
        let Some((candidate, is_new)) = self.entry(now, addr, keep) else { return false };
        candidate.heard = Some(now);
        is_new
    }

    /// Allows every address to be pinged at once.
    pub(super) fn forget_pings(&mut self) {
        for candidate in self.0.values_mut() {
            candidate.last_ping = None;
        }
    }

    pub(super) fn note_ping(&mut self, now: Instant, addr: &SocketAddr) {
        if let Some(candidate) = self.0.get_mut(addr) {
            candidate.last_ping = Some(now);
        }
    }

    /// Every address, for a ping that a person asked for.
    pub(super) fn all(&self) -> Vec<SocketAddr> {
        self.0.keys().copied().collect()
    }

    /// The addresses that may be pinged now.
    pub(super) fn due(&self, now: Instant) -> Vec<SocketAddr> {
        let is_due = |c: &Candidate| c.last_ping.is_none_or(|at| now - at >= PING_GAP);
        self.0.iter().filter(|(_, c)| is_due(c)).map(|(addr, _)| *addr).collect()
    }

    /// When the first address may be pinged again.
    pub(super) fn next_due(&self, now: Instant) -> Instant {
        self.0.values().map(|c| c.last_ping.map_or(now, |at| at + PING_GAP)).min().unwrap_or(now + PING_GAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn each_list_replaces_its_predecessor_but_not_what_others_vouch_for() {
        let all = addrs(&["1.1.1.1:1", "2.2.2.2:2", "3.3.3.3:3"]);
        let mut c = Candidates::default();
        assert!(c.set_map(at(0), &all[..2], None));
        c.set_called(at(0), &all[1..], None);
        assert!(!c.set_map(at(0), &all[..1], None));
        assert_eq!(c.all(), all);
        c.set_called(at(0), &[], None);
        assert_eq!(c.all(), all[..1]);
        c.set_map(at(0), &[], all.first().copied());
        assert_eq!(c.all(), all[..1], "the address in use stays");
        c.prune(at(0), None);
        assert!(c.is_empty());
    }

    #[test]
    fn a_learned_address_goes_45_seconds_after_its_last_ping() {
        let addr = addrs(&["9.9.9.9:9"])[0];
        let mut c = Candidates::default();
        assert_eq!(c.heard_ping(at(0), addr, TxId([1; 12]), None), Some(true));
        assert_eq!(c.heard_ping(at(1), addr, TxId([1; 12]), None), None, "a copy");
        assert_eq!(c.heard_ping(at(2), addr, TxId([2; 12]), None), Some(false));
        c.prune(at(47), None);
        assert!(c.contains(&addr));
        c.prune(at(48), None);
        assert!(c.is_empty());
    }

    #[test]
    fn addresses_that_cannot_be_endpoints_are_ignored() {
        let odd = addrs(&[
            "127.3.3.40:999",
            "0.0.0.0:1",
            "1.2.3.4:0",
            "[fe80::1]:5",
            "[fd60:627a:a42b::1]:5",
            "[fd7a:115c:a1e0::1]:5",
            "224.0.0.1:5",
            "[ff02::1]:5",
        ]);
        let mut c = Candidates::default();
        c.set_called(at(0), &odd, None);
        assert!(c.is_empty());
        c.set_called(at(0), &addrs(&["127.0.0.1:5", "[::1]:5", "10.0.0.1:5", "[2001:db8::1]:5"]), None);
        assert_eq!(c.all().len(), 4);
    }

    #[test]
    fn a_flood_of_addresses_is_bounded() {
        let many: Vec<SocketAddr> = (1..=1_000).map(|p| SocketAddr::from(([1, 2, 3, 4], p))).collect();
        let mut c = Candidates::default();
        c.set_called(at(0), &many, None);
        assert_eq!(c.all().len(), MAX_CANDIDATES);
        for addr in &many {
            c.heard_ping(at(0), *addr, TxId([0; 12]), None);
        }
        assert_eq!(c.all().len(), MAX_CANDIDATES);
    }
}
