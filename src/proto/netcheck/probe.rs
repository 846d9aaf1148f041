//! Whom a netcheck asks, when, and at which address.

use crate::{
    base::{Deadline, Instant, RegionId, SocketIx},
    wire::derp::{HostIp, Region, RelayNode},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// How long after each of the three requests the next one leaves; after the last, how long an answer is awaited.
const GAPS: [Duration; 3] = [Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(1_000)];
/// How long a looked-up address is used again, and how long a failed look-up is not repeated.
const FRESH: Duration = Duration::from_secs(5 * 60);
const FAILED: Duration = Duration::from_secs(3);

/// One region and family: up to three requests, until one is answered.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) region: RegionId,
    pub(super) family: SocketIx,
    /// When the next request is due, or, after the last one, when to give up.
    at: Instant,
    /// Requests that left or could not.
    tried: usize,
    /// Whether any has left.
    sent: bool,
    /// The address is not known yet.
    waiting: bool,
    /// Answered or given up.
    done: bool,
}

impl Probe {
    pub(super) const fn new(now: Instant, region: RegionId, family: SocketIx) -> Self {
        Self { region, family, at: now, tried: 0, sent: false, waiting: false, done: false }
    }

    /// The number of the request that is due.
    pub(super) fn due(&self, now: Instant) -> Option<usize> {
        (!self.done && self.tried < GAPS.len() && self.at <= now).then_some(self.tried)
    }

    /// Gives up when the last request has waited for long enough.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.done |= self.tried == GAPS.len() && self.at <= now;
    }

    pub(super) fn handle_sent(&mut self, now: Instant) {
        self.sent = true;
        self.step(now);
    }

    /// The server has no address of this family: the next one's turn, at once if none has been asked yet.
    pub(super) fn handle_unsendable(&mut self, now: Instant) {
        self.step(now);
        if !self.sent {
            self.at = now;
        }
    }

    /// The address has to be looked up first.
    pub(super) const fn handle_waiting(&mut self) {
        self.waiting = true;
    }

    pub(super) const fn handle_answer(&mut self) {
        self.done = true;
    }

    fn step(&mut self, now: Instant) {
        self.waiting = false;
        self.at = now + GAPS.get(self.tried).copied().unwrap_or_default();
        self.tried += 1;
    }

    pub(super) const fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        (!self.done && !self.waiting).then_some(Deadline { at: self.at, why: "STUN" })
    }
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Address(SocketAddr),
    /// The host is not looked up yet; `ask` for it if nobody has.
    Unknown {
        ask: Option<String>,
    },
    /// Nowhere: no server, or none of this family.
    None,
}

#[derive(Debug)]
enum Lookup {
    Asked,
    Found { at: Instant, addresses: Vec<IpAddr> },
}

/// The addresses of STUN hosts.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<String, Lookup>);

impl Hosts {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn handle_resolved(&mut self, now: Instant, host: &str, addresses: &[IpAddr]) {
        // Only what was asked for is kept.
        if let Some(lookup) = self.0.get_mut(host) {
            *lookup = Lookup::Found { at: now, addresses: addresses.to_vec() };
        }
    }

    /// The address for request `number` of a region: its STUN servers take turns.
    pub(super) fn target(&mut self, now: Instant, region: &Region, family: SocketIx, number: usize) -> Target {
        let servers: Vec<_> = region.nodes.iter().filter_map(|node| Some((node, node.stun_port?))).collect();
        let Some((node, port)) = number.checked_rem(servers.len()).and_then(|at| servers.get(at)) else { return Target::None };
        let v4 = family == SocketIx::V4;
        let address = |ip: Option<IpAddr>| match ip.filter(|ip| ip.is_ipv4() == v4) {
            Some(ip) => Target::Address(SocketAddr::new(ip, *port)),
            None => Target::None,
        };
        if let Some(given) = given(node, v4) {
            return address(given);
        }
        match self.0.get(&node.host) {
            Some(Lookup::Asked) => return Target::Unknown { ask: None },
            Some(Lookup::Found { at, addresses }) if now - *at < if addresses.is_empty() { FAILED } else { FRESH } => {
                // In the next round of the servers, the next address of this one.
                let ips: Vec<_> = addresses.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
                let at = number.checked_div(servers.len()).and_then(|round| round.checked_rem(ips.len()));
                return address(at.and_then(|at| ips.get(at).copied()));
            }
            Some(Lookup::Found { .. }) | None => {}
        }
        self.0.insert(node.host.clone(), Lookup::Asked);
        Target::Unknown { ask: Some(node.host.clone()) }
    }
}

/// The address of a server that needs no look-up, or that it has none of this family; `None` when its host must be
/// looked up.
fn given(node: &RelayNode, v4: bool) -> Option<Option<IpAddr>> {
    if node.stun_ip.is_some() {
        return Some(node.stun_ip);
    }
    match if v4 { of_map(node.ipv4) } else { of_map(node.ipv6) } {
        HostIp::Fixed(ip) => Some(Some(ip)),
        HostIp::Off => Some(None),
        HostIp::Resolve => node.host.parse().ok().map(Some),
    }
}

fn of_map<T: Into<IpAddr>>(ip: HostIp<T>) -> HostIp<IpAddr> {
    match ip {
        HostIp::Resolve => HostIp::Resolve,
        HostIp::Fixed(ip) => HostIp::Fixed(ip.into()),
        HostIp::Off => HostIp::Off,
    }
}
