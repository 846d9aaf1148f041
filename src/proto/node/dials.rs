//! Dials and pings that wait: for their peer to appear, for their answer, for their deadline.

use super::event::{DialId, PingId, PingKind};
use crate::base::{Deadline, FlowId, Instant, PeerIx, Timers};
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
    timers: Timers<DialId>,
    by_flow: FxHashMap<FlowId, DialId>,
}

impl Dials {
    /// A new dial; `false` beside its id when too many wait already and this one is not held.
    pub(super) fn add(&mut self, to: SocketAddrV6, deadline: Instant) -> (DialId, bool) {
        let id = DialId(self.next);
        self.next += 1;
        let room = self.waiting.len() < MAX_WAITING;
        if room {
            self.waiting.insert(id, Dial { to, deadline, started: None });
            self.timers.schedule(id, &mut None, Some(deadline));
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
        self.timers.remove(id, Some(dial.deadline));
        if let Some((_, flow)) = dial.started {
            self.by_flow.remove(&flow);
        }
        Some(dial)
    }

    /// Takes out a dial whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Option<(DialId, Dial)> {
        let id = self.timers.pop(now)?;
        self.remove(id).map(|dial| (id, dial))
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        self.timers.first().map(|(at, _)| Deadline { at, why: "dial" })
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
    timers: Timers<PingId>,
}

impl Pings {
    pub(super) fn add(&mut self, to: Ipv6Addr, kind: PingKind, deadline: Instant) -> PingId {
        let id = PingId(self.next);
        self.next += 1;
        // Beyond the bound the oldest one is given up; its expiry is still told.
        if self.waiting.len() >= MAX_WAITING
            && let Some(mut oldest) = self.waiting.first_entry()
        {
            let (id, ping) = (*oldest.key(), oldest.get_mut());
            self.timers.schedule(id, &mut Some(ping.deadline), Some(Instant::ZERO));
            ping.deadline = Instant::ZERO;
        }
        self.waiting.insert(id, Ping { to, kind, deadline, token: None, sent: false });
        self.timers.schedule(id, &mut None, Some(deadline));
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
        let ping = self.waiting.remove(&id)?;
        self.timers.remove(id, Some(ping.deadline));
        Some(ping)
    }

    pub(super) fn take_by_token(&mut self, token: u64) -> Option<PingId> {
        let id = self.waiting.iter().find(|(_, p)| p.token == Some(token)).map(|(id, _)| *id)?;
        self.take(id).map(|_| id)
    }

    /// Takes out a ping whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Option<(PingId, Ping)> {
        let id = self.timers.pop(now)?;
        self.take(id).map(|ping| (id, ping))
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        self.timers.first().map(|(at, _)| Deadline { at, why: "ping" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(n: u64) -> Instant {
        Instant::from_nanos(n)
    }

    #[test]
    fn dials_and_pings_end_at_their_deadlines_in_order_and_only_once() {
        let to = Ipv6Addr::LOCALHOST;
        let (mut dials, mut pings) = (Dials::default(), Pings::default());
        for n in [30, 10, 20] {
            dials.add(SocketAddrV6::new(to, 1, 0, 0), at(n));
            pings.add(to, PingKind::Disco, at(n));
        }
        pings.mark_sent(PingId(2), Some(7));
        assert_eq!((dials.remove(DialId(2)).is_some(), pings.take_by_token(7)), (true, Some(PingId(2))));
        assert_eq!((dials.poll_timeout().unwrap().at, pings.poll_timeout().unwrap().at), (at(10), at(10)));
        for (now, dial, ping) in
            [(9, None, None), (25, Some(DialId(1)), Some(PingId(1))), (25, None, None), (30, Some(DialId(0)), Some(PingId(0)))]
        {
            assert_eq!(dials.expire(at(now)).map(|(id, _)| id), dial);
            assert_eq!(pings.expire(at(now)).map(|(id, _)| id), ping);
        }
        assert_eq!((dials.poll_timeout(), pings.poll_timeout()), (None, None));
    }

    #[test]
    fn beyond_the_bound_the_oldest_ping_is_given_up_at_once() {
        let mut pings = Pings::default();
        let last = (0..=MAX_WAITING).map(|_| pings.add(Ipv6Addr::LOCALHOST, PingKind::Disco, at(50))).last();
        assert_eq!(pings.expire(at(0)).map(|(id, _)| id), Some(PingId(0)));
        assert_eq!((pings.expire(at(49)).is_none(), pings.take(last.unwrap()).is_some()), (true, true));
    }
}
