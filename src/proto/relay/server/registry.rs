//! Who is connected to the relay, and what waits for them.

use super::{
    conn::RelayConn,
    queue::{BYTES, PacketQueue},
};
use crate::{
    base::{Instant, NodeKey, Rng},
    wire::{
        derp::{Frame, GoneReason, RelaySecret},
        disco,
    },
};
use slab::Slab;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// How many "not here" notices one connection gets at once, and how soon the next is allowed.
const GONE_BURST: u32 = 3;
const GONE_EVERY: Duration = Duration::from_secs(1);
/// How many notices about gone peers wait for one client; more are dropped and counted.
const MAX_NOTICES: usize = 1_024;

/// What the queues of all connections may hold together before none grows beyond its share of as much again; and beyond
/// twice this, none beyond [`LEAST`]. With the server's 8,192 connections that makes 256 MiB at most, and whoever fills many
/// queues takes nothing from a client that keeps up.
const BUDGET: usize = 64 << 20;
/// What every queue may hold whatever the others do: a few packets.
const LEAST: usize = 8 << 10;

/// One connection of the relay. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId {
    slot: usize,
    serial: u64,
}

/// What the relay has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Logins accepted.
    pub logins: u64,
    /// Packets that came in.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Packets dropped because their receiver is not connected.
    pub dropped_unknown: u64,
    /// Disco packets dropped, oldest first, because their receiver did not keep up.
    pub dropped_disco: u64,
    /// Other packets dropped for the same reason.
    pub dropped_other: u64,
    /// Notices about gone peers dropped because their receiver did not keep up.
    pub dropped_notices: u64,
}

/// What waits for one connection, and what it may do.
#[derive(Debug)]
struct Outbox {
    serial: u64,
    /// Greeting and answer to the login.
    head: Vec<u8>,
    pong: Option<[u8; 8]>,
    keep_alive: bool,
    notices: VecDeque<(NodeKey, GoneReason)>,
    disco: PacketQueue,
    other: PacketQueue,
    /// Listed in `Registry::ready`, or being drained.
    ready: bool,
    notices_left: u32,
    notices_since: Instant,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.head.is_empty()
            && self.pong.is_none()
            && !self.keep_alive
            && self.notices.is_empty()
            && self.disco.is_empty()
            && self.other.is_empty()
    }

    fn held(&self) -> usize {
        self.disco.held() + self.other.held()
    }

    /// At most one notice a second, three at once.
    fn may_notice(&mut self, now: Instant) -> bool {
        let grown = u32::try_from((now - self.notices_since).as_secs() / GONE_EVERY.as_secs()).unwrap_or(u32::MAX);
        if grown > 0 {
            self.notices_left = self.notices_left.saturating_add(grown).min(GONE_BURST);
            self.notices_since = now;
        }
        let allowed = self.notices_left > 0;
        self.notices_left = self.notices_left.saturating_sub(1);
        allowed
    }
}

/// All connections with one key.
#[derive(Debug, Default)]
struct Client {
    /// The one that spoke last stands last: it alone receives packets.
    conns: Vec<ConnId>,
    /// Who received packets from this key and wants to hear of its end.
    sent_to: BTreeSet<ConnId>,
}

/// Where a connection's last packet went, so that the next one needs no search.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hop {
    to: NodeKey,
    conn: ConnId,
    /// The hop holds as long as nobody came, left or took over.
    epoch: u64,
}

/// The relay's shared state: who is connected, and their queues. A plain value; the server puts it behind a lock.
#[derive(Debug)]
pub struct Registry {
    secret: RelaySecret,
    public: NodeKey,
    rng: Rng,
    outboxes: Slab<Outbox>,
    clients: BTreeMap<NodeKey, Client>,
    ready: VecDeque<ConnId>,
    next_serial: u64,
    epoch: u64,
    /// Bytes that the queues of all connections hold.
    held: usize,
    budget: usize,
    counters: Counters,
}

impl Registry {
    /// An empty relay.
    #[must_use]
    pub fn new(secret: RelaySecret, rng: Rng) -> Self {
        Self {
            public: secret.public(),
            secret,
            rng,
            outboxes: Slab::new(),
            clients: BTreeMap::new(),
            ready: VecDeque::new(),
            next_serial: 0,
            epoch: 0,
            held: 0,
            budget: BUDGET,
            counters: Counters::default(),
        }
    }

    /// The relay's public key, for the header of the HTTP upgrade.
    #[must_use]
    pub const fn public_key(&self) -> NodeKey {
        self.public
    }

    /// What the relay has done so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// How many keys are connected.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Takes a new connection in. Its greeting waits in [`poll_output`](Self::poll_output).
    #[must_use]
    pub fn open(&mut self, now: Instant) -> RelayConn {
        let mut head = Vec::new();
        Frame::ServerKey { key: self.public }.write(&mut head);
        let serial = self.next_serial;
        self.next_serial += 1;
        let slot = self.outboxes.insert(Outbox {
            serial,
            head,
            pong: None,
            keep_alive: false,
            notices: VecDeque::new(),
            disco: PacketQueue::default(),
            other: PacketQueue::default(),
            ready: false,
            notices_left: GONE_BURST,
            notices_since: now,
        });
        let id = ConnId { slot, serial };
        self.wake(id);
        RelayConn::new(now, id, self.secret.clone(), self.rng.split())
    }

    /// The next connection that has got something to write since it was last empty.
    pub fn poll_ready(&mut self) -> Option<ConnId> {
        loop {
            let id = self.ready.pop_front()?;
            if self.outbox(id).is_some() {
                return Some(id);
            }
        }
    }

    /// Appends what waits for a connection, whole frames up to about `max` bytes, and tells whether more is left.
    ///
    /// Go on with an emptied `out` while it says so: only a drained connection is reported by
    /// [`poll_ready`](Self::poll_ready) again.
    #[must_use]
    pub fn poll_output(&mut self, id: ConnId, out: &mut Vec<u8>, max: usize) -> bool {
        let full = self.held > self.budget;
        let Some(outbox) = self.outbox(id) else { return false };
        out.append(&mut outbox.head);
        if let Some(data) = outbox.pong.take() {
            Frame::Pong(data).write(out);
        }
        if std::mem::take(&mut outbox.keep_alive) {
            Frame::KeepAlive.write(out);
        }
        // Neither queue starves the other.
        outbox.disco.take(out, max / 2);
        outbox.other.take(out, max);
        outbox.disco.take(out, max);
        for (peer, reason) in outbox.notices.drain(..) {
            Frame::PeerGone { peer, reason }.write(out);
        }
        let ready = !outbox.is_empty();
        outbox.ready = ready;
        if full {
            self.relax(id);
        }
        ready
    }

    /// Gives the memory back that emptied queues of a connection hold.
    fn relax(&mut self, id: ConnId) {
        let Some(outbox) = self.outbox(id) else { return };
        let before = outbox.held();
        outbox.disco.relax();
        outbox.other.relax();
        let after = outbox.held();
        self.held = self.held - before + after;
    }

    /// Takes a connection out, which is of no more use. When it was the last one with its key, those who got packets from it
    /// are told.
    pub fn close(&mut self, conn: RelayConn) {
        self.forget(conn.id(), conn.key());
    }

    fn forget(&mut self, id: ConnId, key: Option<NodeKey>) {
        if self.outbox(id).is_some() {
            self.held -= self.outboxes.remove(id.slot).held();
        }
        self.epoch += 1;
        let Some(key) = key else { return };
        let Some(client) = self.clients.get_mut(&key) else { return };
        client.conns.retain(|other| *other != id);
        if !client.conns.is_empty() {
            return;
        }
        let told = std::mem::take(&mut client.sent_to);
        self.clients.remove(&key);
        for peer in told {
            self.notice(peer, key, GoneReason::Disconnected);
        }
    }

    /// A connection has proven its key and is to be told `answer`: it becomes the active one at once.
    pub(super) fn login(&mut self, id: ConnId, key: NodeKey, answer: &[u8]) {
        self.counters.logins += 1;
        self.epoch += 1;
        self.clients.entry(key).or_default().conns.push(id);
        if let Some(outbox) = self.outbox(id) {
            outbox.head.extend_from_slice(answer);
        }
        self.wake(id);
    }

    /// A connection has spoken: among those with its key it receives from now on.
    pub(super) fn touch(&mut self, id: ConnId, key: &NodeKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.conns.len() > 1 && client.conns.last() != Some(&id) {
            client.conns.retain(|other| *other != id);
            client.conns.push(id);
            self.epoch += 1;
        }
    }

    /// Queues a packet for `to`, or drops it.
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        id: ConnId,
        from: &NodeKey,
        hop: &mut Option<Hop>,
        to: &NodeKey,
        packet: &[u8],
    ) {
        self.counters.packets_in += 1;
        self.counters.bytes_in += u64::try_from(packet.len()).unwrap_or(0);
        let disco = disco::looks_like(packet);
        let conn = match hop {
            Some(hop) if hop.epoch == self.epoch && hop.to == *to => hop.conn,
            _ => {
                let Some(conn) = self.clients.get(to).and_then(|client| client.conns.last().copied()) else {
                    self.counters.dropped_unknown += 1;
                    if disco && self.outbox(id).is_some_and(|o| o.may_notice(now)) {
                        self.notice(id, *to, GoneReason::NotHere);
                    }
                    return;
                };
                self.remember(from, conn);
                *hop = Some(Hop { to: *to, conn, epoch: self.epoch });
                conn
            }
        };
        // Each connection has two queues.
        let share = self.budget / (2 * self.outboxes.len()).max(1);
        let limit = match self.held {
            held if held <= self.budget => BYTES,
            held if held <= 2 * self.budget => share.clamp(LEAST, BYTES),
            _ => LEAST,
        };
        let Some(outbox) = self.outbox(conn) else { return };
        let queue = if disco { &mut outbox.disco } else { &mut outbox.other };
        let before = queue.held();
        let dropped = queue.push(from, packet, limit);
        let after = queue.held();
        self.held = self.held - before + after;
        if disco {
            self.counters.dropped_disco += dropped;
        } else {
            self.counters.dropped_other += dropped;
        }
        self.wake(conn);
    }

    /// Queues the answer to a ping; while one waits, further pings are not answered.
    pub(super) fn pong(&mut self, id: ConnId, data: [u8; 8]) {
        if let Some(outbox) = self.outbox(id) {
            outbox.pong.get_or_insert(data);
            self.wake(id);
        }
    }

    pub(super) fn keep_alive(&mut self, id: ConnId) {
        if let Some(outbox) = self.outbox(id) {
            outbox.keep_alive = true;
            self.relax(id);
            self.wake(id);
        }
    }

    /// Notes that `to` is to be told when `from` goes.
    fn remember(&mut self, from: &NodeKey, to: ConnId) {
        let Self { clients, outboxes, .. } = self;
        let Some(client) = clients.get_mut(from) else { return };
        client.sent_to.insert(to);
        // Receivers that are gone are forgotten once they outnumber all that live.
        if client.sent_to.len() > 2 * outboxes.len() + 16 {
            client.sent_to.retain(|id| outboxes.get(id.slot).is_some_and(|o| o.serial == id.serial));
        }
    }

    fn notice(&mut self, id: ConnId, peer: NodeKey, reason: GoneReason) {
        let Some(outbox) = self.outbox(id) else { return };
        if outbox.notices.len() >= MAX_NOTICES {
            self.counters.dropped_notices += 1;
            return;
        }
        outbox.notices.push_back((peer, reason));
        self.wake(id);
    }

    fn outbox(&mut self, id: ConnId) -> Option<&mut Outbox> {
        self.outboxes.get_mut(id.slot).filter(|outbox| outbox.serial == id.serial)
    }

    fn wake(&mut self, id: ConnId) {
        if let Some(outbox) = self.outbox(id)
            && !std::mem::replace(&mut outbox.ready, true)
        {
            self.ready.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> NodeKey {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        key.into()
    }

    /// A connection that has proven its key.
    fn join(registry: &mut Registry, n: u64) -> ConnId {
        let id = registry.open(Instant::ZERO).id();
        registry.login(id, key(n), &[]);
        id
    }

    fn leave(registry: &mut Registry, id: ConnId, n: u64) {
        registry.forget(id, Some(key(n)));
    }

    fn registry() -> Registry {
        Registry::new(RelaySecret::from_random([7; 32]), Rng::from_u64(1))
    }

    #[test]
    fn receivers_that_left_are_not_remembered_for_ever() {
        let mut registry = registry();
        let sender = join(&mut registry, 0);
        for n in 1..1_000 {
            let receiver = join(&mut registry, n);
            registry.deliver(Instant::ZERO, sender, &key(0), &mut None, &key(n), b"x");
            leave(&mut registry, receiver, n);
        }
        assert!(registry.clients[&key(0)].sent_to.len() < 40);
    }

    #[test]
    fn clients_that_do_not_read_stay_within_the_bound_and_take_nothing_from_one_that_does() {
        let mut registry = registry();
        registry.budget = 4 << 20;
        let sender = join(&mut registry, 0);
        let (reader, mut out) = (join(&mut registry, 1), Vec::new());
        while registry.poll_output(reader, &mut out, 64 << 10) {}
        let mut got = 0;
        for n in 2..66 {
            join(&mut registry, n);
            for round in 0..600 {
                registry.deliver(Instant::ZERO, sender, &key(0), &mut None, &key(n), &[7; 1_400]);
                if round % 10 == 0 {
                    registry.deliver(Instant::ZERO, sender, &key(0), &mut None, &key(1), &[8; 1_400]);
                    out.clear();
                    while registry.poll_output(reader, &mut out, 64 << 10) {}
                    got += usize::from(out.len() > 1_400);
                }
                let bound = 2 * registry.budget + 2 * LEAST * registry.outboxes.len();
                assert!(registry.held <= bound, "{} of {bound}", registry.held);
            }
        }
        assert_eq!(got, 64 * 60, "a client that keeps up loses nothing");
        assert!(registry.counters().dropped_other > 0);
        let real: usize = registry.outboxes.iter().map(|(_, outbox)| outbox.held()).sum();
        assert_eq!(registry.held, real);
        for n in 2..66 {
            let id = registry.clients[&key(n)].conns[0];
            leave(&mut registry, id, n);
        }
        assert!(registry.held <= 64 << 10, "{}", registry.held);
    }

    #[test]
    fn a_client_that_does_not_read_is_kept_a_bounded_number_of_notices() {
        let mut registry = registry();
        join(&mut registry, 0);
        for n in 1..2_000 {
            let sender = join(&mut registry, n);
            registry.deliver(Instant::ZERO, sender, &key(n), &mut None, &key(0), b"x");
            leave(&mut registry, sender, n);
        }
        assert_eq!(registry.counters().dropped_notices, 1_999 - MAX_NOTICES as u64);
    }
}
