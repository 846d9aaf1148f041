//! Dials and pings that wait: for their peer to appear, for their answer, for their deadline.

use super::event::{DialId, PingId, PingKind};
use crate::base::{Deadline, FlowId, Instant, PeerIx};
use rustc_hash::FxHashMap;
use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddrV6},
};

/// Dials, and pings, that one node holds at once.
const MAX_WAITING: usize = 4_096;

#[derive(Debug)]
pub(super) struct Dial {
    pub(super) to: SocketAddrV6,
    pub(super) deadline: Instant,
    /// Since the peer is known.
    pub(super) started: Option<(PeerIx, FlowId)>,
}

#[derive(Debug, Default)]
pub(super) struct Dials {
    next: u64,
    waiting: BTreeMap<DialId, Dial>,
    by_flow: FxHashMap<FlowId, DialId>,
}

impl Dials {
    /// A new dial; `None` beside its id when too many wait already.
    pub(super) fn add(&mut self, to: SocketAddrV6, deadline: Instant) -> (DialId, bool) {
        let id = DialId(self.next);
        self.next += 1;
        let room = self.waiting.len() < MAX_WAITING;
        if room {
            self.waiting.insert(id, Dial { to, deadline, started: None });
        }
        (id, room)
    }

    pub(super) fn start(&mut self, id: DialId, peer: PeerIx, flow: FlowId) {
        if let Some(dial) = self.waiting.get_mut(&id) {
            dial.started = Some((peer, flow));
            self.by_flow.insert(flow, id);
        }
    }

    /// Dials that wait for the owner of one of these addresses.
    pub(super) fn waiting_for(&self, addresses: &[Ipv6Addr]) -> Vec<(DialId, SocketAddrV6)> {
        let waits = |d: &Dial| d.started.is_none() && addresses.contains(d.to.ip());
        self.waiting.iter().filter(|(_, d)| waits(d)).map(|(id, d)| (*id, d.to)).collect()
    }

    pub(super) fn by_flow(&self, flow: FlowId) -> Option<DialId> {
        self.by_flow.get(&flow).copied()
    }

    pub(super) fn remove(&mut self, id: DialId) -> Option<Dial> {
        let dial = self.waiting.remove(&id)?;
        if let Some((_, flow)) = dial.started {
            self.by_flow.remove(&flow);
        }
        Some(dial)
    }

    pub(super) fn due(&self, now: Instant) -> Vec<DialId> {
        self.waiting.iter().filter(|(_, d)| d.deadline <= now).map(|(id, _)| *id).collect()
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        self.waiting.values().map(|d| d.deadline).min().map(|at| Deadline { at, why: "dial" })
    }
}

#[derive(Debug)]
pub(super) struct Ping {
    pub(super) to: Ipv6Addr,
    pub(super) kind: PingKind,
    pub(super) deadline: Instant,
    /// The netstack's name for it; disco pings keep their own.
    pub(super) token: Option<u64>,
    pub(super) sent: bool,
}

#[derive(Debug, Default)]
pub(super) struct Pings {
    next: u64,
    waiting: BTreeMap<PingId, Ping>,
}

impl Pings {
    pub(super) fn add(&mut self, to: Ipv6Addr, kind: PingKind, deadline: Instant) -> PingId {
        let id = PingId(self.next);
        self.next += 1;
        // Beyond the bound the oldest one is given up; its expiry is still told.
        if self.waiting.len() >= MAX_WAITING
            && let Some(mut oldest) = self.waiting.first_entry()
        {
            oldest.get_mut().deadline = Instant::ZERO;
        }
        self.waiting.insert(id, Ping { to, kind, deadline, token: None, sent: false });
        id
    }

    pub(super) fn mark_sent(&mut self, id: PingId, token: Option<u64>) {
        if let Some(ping) = self.waiting.get_mut(&id) {
            ping.sent = true;
            ping.token = token;
        }
    }

    pub(super) fn waiting_for(&self, addresses: &[Ipv6Addr]) -> Vec<(PingId, Ipv6Addr, PingKind)> {
        let waits = |p: &Ping| !p.sent && addresses.contains(&p.to);
        self.waiting.iter().filter(|(_, p)| waits(p)).map(|(id, p)| (*id, p.to, p.kind)).collect()
    }

    pub(super) fn take(&mut self, id: PingId) -> Option<Ping> {
        self.waiting.remove(&id)
    }

    pub(super) fn take_by_token(&mut self, token: u64) -> Option<PingId> {
        let id = self.waiting.iter().find(|(_, p)| p.token == Some(token)).map(|(id, _)| *id)?;
        self.waiting.remove(&id);
        Some(id)
    }

    pub(super) fn due(&self, now: Instant) -> Vec<PingId> {
        self.waiting.iter().filter(|(_, p)| p.deadline <= now).map(|(id, _)| *id).collect()
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        self.waiting.values().map(|p| p.deadline).min().map(|at| Deadline { at, why: "ping" })
    }
}
