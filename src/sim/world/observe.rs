//! What a scenario can see of the world.

use super::{EMBEDDED, World};
use crate::{
    base::{Instant, Lane, RegionId},
    proto::{
        netstack::FlowStats,
        node::{Counters, Gone, PathInfo, PingId},
        path::PathState,
    },
    sim::{
        internet::{HostIx, Losses},
        stream::{Condition, StreamIx},
    },
};
use std::time::Duration;

impl World {
    /// The connections that a host has accepted, oldest first.
    #[must_use]
    pub fn accepted(&self, host: HostIx) -> Vec<StreamIx> {
        self.host(host).streams.iter().filter(|(_, s)| s.dial.is_none()).map(|(ix, _)| *ix).collect()
    }

    /// What one end has read, if every byte was right.
    #[must_use]
    pub fn received(&self, host: HostIx, stream: StreamIx) -> Option<u64> {
        let stream = self.host(host).streams.get(&stream)?;
        stream.intact.then_some(stream.received)
    }

    /// How much one end wants written in all.
    #[must_use]
    pub fn written(&self, host: HostIx, stream: StreamIx) -> u64 {
        self.host(host).streams.get(&stream).map_or(0, |s| s.wanted)
    }

    /// When a host was first told of another one.
    #[must_use]
    pub fn told_at(&self, host: HostIx) -> Option<Instant> {
        self.host(host).told
    }

    /// The round trip between two hosts through the embedded relay, on idle links.
    #[must_use]
    pub fn relayed_round_trip(&self, a: HostIx, b: HostIx) -> Duration {
        let relay = RegionId::new(EMBEDDED).and_then(|region| self.relays.get(&region)).map(|(host, _)| *host);
        relay.map_or(Duration::ZERO, |relay| self.net.round_trip(a, relay) + self.net.round_trip(relay, b))
    }

    /// When one end had read `n` bytes.
    #[must_use]
    pub fn read_at(&self, host: HostIx, stream: StreamIx, n: u64) -> Option<Instant> {
        self.host(host).streams.get(&stream)?.read_at(n)
    }

    /// What became of one end.
    #[must_use]
    pub fn condition(&self, host: HostIx, stream: StreamIx) -> Option<Condition> {
        self.host(host).streams.get(&stream).map(|s| s.condition)
    }

    /// When one end ended for a reason not its own.
    #[must_use]
    pub fn closed_at(&self, host: HostIx, stream: StreamIx) -> Option<Instant> {
        self.host(host).streams.get(&stream)?.closed_at
    }

    /// When one end's connection stood.
    #[must_use]
    pub fn opened_at(&self, host: HostIx, stream: StreamIx) -> Option<Instant> {
        self.host(host).streams.get(&stream)?.opened
    }

    /// Counters of one end's flow.
    #[must_use]
    pub fn flow_stats(&self, host: HostIx, stream: StreamIx) -> Option<FlowStats> {
        let host = self.host(host);
        host.node.flow_stats(host.streams.get(&stream)?.flow?)
    }

    /// How a host reaches another one now.
    #[must_use]
    pub fn path(&self, from: HostIx, to: HostIx) -> PathInfo {
        let address = self.host(to).node.addresses().first().copied();
        let unknown = PathInfo { state: PathState::None, lane: None };
        address.and_then(|address| self.host(from).node.path_info(&address)).unwrap_or(unknown)
    }

    /// Whether two hosts send to each other directly, both ways.
    #[must_use]
    pub fn is_direct(&self, a: HostIx, b: HostIx) -> bool {
        [(a, b), (b, a)].into_iter().all(|(x, y)| self.path(x, y).state == PathState::Direct)
    }

    /// Whether a host's control connection stands, as far as the host knows.
    #[must_use]
    pub fn is_controlled(&self, host: HostIx) -> bool {
        self.host(host).is_controlled()
    }

    /// Every change of a path that a host saw.
    #[must_use]
    pub fn path_changes(&self, host: HostIx) -> &[(Instant, PathInfo)] {
        &self.host(host).paths
    }

    /// Peers that left a host, with time and reason.
    #[must_use]
    pub fn gone(&self, host: HostIx) -> &[(Instant, Gone)] {
        &self.host(host).gone
    }

    /// How often a host announced itself.
    #[must_use]
    pub fn announcements(&self, host: HostIx) -> usize {
        self.host(host).announcements
    }

    /// A host's counters.
    #[must_use]
    pub fn counters(&self, host: HostIx) -> Counters {
        self.host(host).node.counters()
    }

    /// Answers to pings that a host has got.
    #[must_use]
    pub fn pongs(&self, host: HostIx) -> &[(PingId, Duration, Option<Lane>)] {
        &self.host(host).pongs
    }

    /// What the network lost so far.
    #[must_use]
    pub const fn losses(&self) -> Losses {
        self.net.losses()
    }

    /// A host's home region.
    #[must_use]
    pub fn home(&self, host: HostIx) -> Option<u16> {
        self.host(host).node.home().map(RegionId::get)
    }

    /// The virtual time.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// What a failed claim must print: enough to run it again.
    #[must_use]
    pub fn place(&self) -> String {
        format!("seed {} at {:?} (step {}, last woken by {})", self.seed, self.now, self.steps, self.why)
    }
}
