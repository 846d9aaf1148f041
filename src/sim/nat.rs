//! A network address translator by the two axes of RFC 4787 (§4 mapping, §5 filtering), with hairpinning.

use crate::base::{Instant, Rng};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// On what an outside port, or the right to come in, depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// On the inside address alone.
    EndpointIndependent,
    /// On the outside host too.
    Address,
    /// On the outside host and its port.
    AddressAndPort,
}

/// Behaviour of one NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatKind {
    /// Which packets share an outside port.
    pub mapping: Dependence,
    /// Who may use an outside port.
    pub filtering: Dependence,
    /// Whether inside hosts reach each other by the outside address.
    pub hairpin: bool,
}

impl NatKind {
    /// The usual home router: one outside port for each inside port, open to whom we wrote to.
    pub const EASY: Self =
        Self { mapping: Dependence::EndpointIndependent, filtering: Dependence::AddressAndPort, hairpin: false };
    /// A symmetric NAT: an outside port for each destination.
    pub const HARD: Self = Self { mapping: Dependence::AddressAndPort, filtering: Dependence::AddressAndPort, hairpin: false };
}

/// Home routers forget idle UDP mappings after about this long, though RFC 4787 REQ-5 asks for two minutes.
const IDLE: Duration = Duration::from_secs(30);

type Key = (SocketAddr, Option<IpAddr>, Option<u16>);

#[derive(Debug)]
struct Entry {
    inside: SocketAddr,
    used: Instant,
    contacted: BTreeSet<SocketAddr>,
}

#[derive(Debug)]
pub(crate) struct Nat {
    kind: NatKind,
    outside: IpAddr,
    ports: BTreeMap<Key, u16>,
    entries: BTreeMap<u16, Entry>,
}

impl Nat {
    pub(crate) const fn new(kind: NatKind, outside: IpAddr) -> Self {
        Self { kind, outside, ports: BTreeMap::new(), entries: BTreeMap::new() }
    }

    pub(crate) const fn kind(&self) -> NatKind {
        self.kind
    }

    /// The outside address of a packet from `inside` to `to`; opens or refreshes its mapping.
    pub(crate) fn translate_out(&mut self, now: Instant, inside: SocketAddr, to: SocketAddr, rng: &mut Rng) -> SocketAddr {
        let key = match self.kind.mapping {
            Dependence::EndpointIndependent => (inside, None, None),
            Dependence::Address => (inside, Some(to.ip()), None),
            Dependence::AddressAndPort => (inside, Some(to.ip()), Some(to.port())),
        };
        let live = self.ports.get(&key).copied().filter(|port| self.is_live(now, *port));
        let port = live.unwrap_or_else(|| {
            let port = self.free_port(now, inside.port(), rng);
            self.ports.retain(|_, p| *p != port);
            self.ports.insert(key, port);
            self.entries.insert(port, Entry { inside, used: now, contacted: BTreeSet::new() });
            port
        });
        if let Some(entry) = self.entries.get_mut(&port) {
            entry.used = now;
            entry.contacted.insert(to);
        }
        SocketAddr::new(self.outside, port)
    }

    /// The inside address that a packet from `from` to outside port `port` reaches, if it may come in.
    pub(crate) fn translate_in(&mut self, now: Instant, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        if !self.is_live(now, port) {
            return None;
        }
        let entry = self.entries.get_mut(&port)?;
        let allowed = match self.kind.filtering {
            Dependence::EndpointIndependent => true,
            Dependence::Address => entry.contacted.iter().any(|a| a.ip() == from.ip()),
            Dependence::AddressAndPort => entry.contacted.contains(&from),
        };
        if !allowed {
            return None;
        }
        entry.used = now;
        Some(entry.inside)
    }

    /// Forgets every mapping, as a router does that was switched off and on.
    pub(crate) fn reset(&mut self) {
        self.ports.clear();
        self.entries.clear();
    }

    fn is_live(&self, now: Instant, port: u16) -> bool {
        self.entries.get(&port).is_some_and(|e| now - e.used <= IDLE)
    }

    /// The inside port itself where mappings do not depend on the destination and it is free, else a random one.
    fn free_port(&self, now: Instant, wanted: u16, rng: &mut Rng) -> u16 {
        let independent = self.kind.mapping == Dependence::EndpointIndependent;
        if independent && !self.is_live(now, wanted) {
            return wanted;
        }
        loop {
            let port = u16::try_from(1_024 + rng.below(64_000)).unwrap_or(u16::MAX);
            if !self.is_live(now, port) {
                return port;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn nat(kind: NatKind) -> (Nat, Rng) {
        (Nat::new(kind, "5.5.5.5".parse().unwrap()), Rng::from_u64(1))
    }

    #[test]
    fn an_easy_nat_keeps_its_port_and_lets_in_whom_it_wrote_to() {
        let (mut nat, mut rng) = nat(NatKind::EASY);
        let (inside, a, b) = (addr("10.0.0.1:7"), addr("1.1.1.1:1"), addr("2.2.2.2:2"));
        let out = nat.translate_out(Instant::ZERO, inside, a, &mut rng);
        assert_eq!(out, addr("5.5.5.5:7"));
        assert_eq!(nat.translate_in(Instant::ZERO, a, 7), Some(inside));
        assert_eq!(nat.translate_in(Instant::ZERO, b, 7), None);
        assert_eq!(nat.translate_out(Instant::ZERO, inside, b, &mut rng), out);
        assert_eq!(nat.translate_in(Instant::ZERO, b, 7), Some(inside));
    }

    #[test]
    fn a_hard_nat_has_one_port_for_each_destination() {
        let (mut nat, mut rng) = nat(NatKind::HARD);
        let (inside, a, b) = (addr("10.0.0.1:7"), addr("1.1.1.1:1"), addr("1.1.1.1:2"));
        let first = nat.translate_out(Instant::ZERO, inside, a, &mut rng);
        let second = nat.translate_out(Instant::ZERO, inside, b, &mut rng);
        assert_ne!(first, second);
        assert_eq!(nat.translate_in(Instant::ZERO, b, first.port()), None);
    }

    #[test]
    fn an_idle_mapping_is_forgotten() {
        let (mut nat, mut rng) = nat(NatKind::EASY);
        let (inside, a) = (addr("10.0.0.1:7"), addr("1.1.1.1:1"));
        nat.translate_out(Instant::ZERO, inside, a, &mut rng);
        let later = Instant::ZERO + Duration::from_secs(31);
        assert_eq!(nat.translate_in(later, a, 7), None);
    }
}
