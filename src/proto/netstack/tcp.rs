//! TCP of the stack: packets to flows, flows to their owners.

use super::{
    Event, Netstack,
    flow::{CloseReason, Flow, FlowStats, Queued, REPLY, ReadState, Turn},
    incoming::{IncomingKey, Offer},
};
use crate::{
    base::{FlowId, Instant, PeerIx},
    wire::ip::{FlowKey, Ipv6, Tcp, TcpFlags},
};
use std::net::{Ipv6Addr, SocketAddrV6};

/// How many ephemeral ports there are: 49,152 to 65,535 (RFC 6335 §6).
pub(super) const EPHEMERAL: u16 = 16_384;
/// Flows at a time; beyond them connections are refused.
const FLOWS: usize = 8_192;
/// Buffers of SSH and speedtest flows, one each way.
const LARGE: usize = 1 << 20;
/// Buffers of other flows.
const MEDIUM: usize = 256 << 10;
/// Buffers of flows beyond the budget.
const SMALL: usize = 64 << 10;
/// The ports whose flows carry bulk: SSH (twice) and speedtest.
const LARGE_PORTS: [u16; 3] = [1, 3, 22];

/// The `n`-th ephemeral port.
pub(super) const fn ephemeral(n: u16) -> u16 {
    u16::MAX - n % EPHEMERAL
}

impl Netstack {
    pub(super) fn handle_tcp(&mut self, now: Instant, peer: PeerIx, ip: &Ipv6<'_>, tcp: &Tcp<'_>, packet: &[u8]) {
        let key = FlowKey::of(ip, tcp);
        if let Some(&slot) = self.by_key.get(&key)
            && let Some(flow) = self.flows.get_mut(slot as usize)
            && flow.peer == peer
        {
            if !flow.is_superseded_by(tcp) {
                let mut reply = [0; REPLY];
                let answer = flow.input(now, packet, tcp, &mut reply);
                let id = flow.id;
                if let Some(answer) = answer.and_then(|len| reply.get(..len)) {
                    let mut bytes = self.outbox.buffer();
                    bytes.extend_from_slice(answer);
                    self.send(peer, Some(id), false, bytes);
                }
                return self.after_input(now, slot);
            }
            flow.break_off(CloseReason::Reset);
            self.settle(now, slot);
        }
        if let Some(remains) = self.time_wait.get(now, &key)
            && remains.peer == peer
            && !tcp.flags.has(TcpFlags::SYN)
        {
            if tcp.seq_len() > 0 && !tcp.flags.has(TcpFlags::RST) {
                let ack = Tcp {
                    src_port: key.local_port,
                    dst_port: key.remote_port,
                    seq: remains.seq,
                    ack: remains.ack,
                    flags: TcpFlags::ACK,
                    window: remains.window,
                    options: &[],
                    payload: &[],
                };
                let mut bytes = self.outbox.buffer();
                ack.write(ip.dst, ip.src, &mut bytes);
                self.send(peer, None, false, bytes);
            }
            return;
        }
        let asks = tcp.flags.has(TcpFlags::SYN) && !tcp.flags.has(TcpFlags::ACK) && !tcp.flags.has(TcpFlags::RST);
        let heard = self.listening_to_rest || self.listening.contains(&key.local_port);
        if asks && heard && tcp.src_port != 0 {
            self.offer(now, peer, key, packet);
        } else if tcp.flags.has(TcpFlags::RST) {
            self.incoming.drain(|pending, from| *pending == key && from == peer);
        } else {
            self.answer_with_reset(peer, ip, tcp);
        }
    }

    fn answer_with_reset(&mut self, peer: PeerIx, ip: &Ipv6<'_>, tcp: &Tcp<'_>) {
        let mut bytes = self.outbox.buffer();
        tcp.write_reset(ip, &mut bytes);
        self.counters.resets += u64::from(!bytes.is_empty());
        self.send(peer, None, false, bytes);
    }

    fn offer(&mut self, now: Instant, peer: PeerIx, key: FlowKey, packet: &[u8]) {
        match self.incoming.offer(now, peer, key, packet) {
            Offer::New(key) => self.events.push_back(Event::Incoming { key, peer }),
            Offer::Repeated => {}
            Offer::Full => self.counters.backlog_full += 1,
        }
    }

    /// Opens a connection. Its SYN leaves at the next [`Netstack::poll_transmit`]; a failure comes as
    /// [`Event::Closed`].
    pub fn dial(&mut self, now: Instant, peer: PeerIx, local: Ipv6Addr, remote: SocketAddrV6) -> FlowId {
        let port = self.free_port(now, local, remote);
        let key = FlowKey::new(SocketAddrV6::new(local, port.unwrap_or(0), 0, 0), remote);
        let fits = port.is_some() && self.flows.len() < FLOWS;
        self.insert(now, &key, |id, buffer, seed| {
            if fits { Flow::connect(now, id, key, peer, buffer, seed) } else { Flow::exhausted(now, id, key, peer) }
        })
    }

    /// Takes connections to `port`: each comes as [`Event::Incoming`].
    pub fn listen(&mut self, port: u16) {
        self.listening.insert(port);
    }

    /// Takes no more connections to `port` and refuses those that wait.
    pub fn unlisten(&mut self, port: u16) {
        self.listening.remove(&port);
        if !self.listening_to_rest {
            for pending in self.incoming.drain(|key, _| key.local_port == port) {
                self.refuse_syn(pending.peer, &pending.syn);
            }
        }
    }

    /// Whether connections to ports without a listener come as [`Event::Incoming`] too, instead of being refused.
    pub fn listen_rest(&mut self, on: bool) {
        self.listening_to_rest = on;
    }

    /// Accepts a waiting connection. `None` when its time is over, its dialler has given up, or no flow is left.
    pub fn accept(&mut self, now: Instant, key: IncomingKey) -> Option<FlowId> {
        let (key, pending) = self.incoming.take(&key)?;
        if self.by_key.contains_key(&key) || self.flows.len() >= FLOWS {
            self.refuse_syn(pending.peer, &pending.syn);
            return None;
        }
        self.time_wait.remove(&key);
        let id = self.insert(now, &key, |id, buffer, seed| Flow::answer(now, id, key, pending.peer, buffer, seed, &pending.syn));
        Some(id)
    }

    /// Refuses a waiting connection with a reset.
    pub fn refuse(&mut self, key: IncomingKey) {
        if let Some((_, pending)) = self.incoming.take(&key) {
            self.refuse_syn(pending.peer, &pending.syn);
        }
    }

    fn refuse_syn(&mut self, peer: PeerIx, syn: &[u8]) {
        if let Ok(ip) = Ipv6::parse(syn)
            && let Ok(tcp) = Tcp::parse(ip.payload)
        {
            self.answer_with_reset(peer, &ip, &tcp);
        }
    }

    fn free_port(&mut self, now: Instant, local: Ipv6Addr, remote: SocketAddrV6) -> Option<u16> {
        (0..EPHEMERAL).find_map(|_| {
            self.next_port = (self.next_port + 1) % EPHEMERAL;
            let port = ephemeral(self.next_port);
            let key = FlowKey::new(SocketAddrV6::new(local, port, 0, 0), remote);
            let taken = self.by_key.contains_key(&key) || self.time_wait.get(now, &key).is_some() || self.incoming.contains(&key);
            (!taken).then_some(port)
        })
    }

    fn insert(&mut self, now: Instant, key: &FlowKey, make: impl FnOnce(FlowId, usize, u64) -> Flow) -> FlowId {
        let large = LARGE_PORTS.contains(&key.local_port) || LARGE_PORTS.contains(&key.remote_port);
        let wish = if large { LARGE } else { MEDIUM };
        let buffer = if self.used + 2 * wish > self.config.budget_bytes { SMALL } else { wish };
        let seed = self.rng.u64();
        self.generation = self.generation.wrapping_add(1);
        let entry = self.flows.vacant_entry();
        let slot = u32::try_from(entry.key()).unwrap_or(u32::MAX);
        let id = FlowId { slot, generation: self.generation };
        let flow = make(id, buffer, seed);
        self.used += flow.buffers;
        if flow.end().is_none() {
            self.by_key.insert(*key, slot);
        }
        entry.insert(Box::new(flow));
        self.mark(slot);
        self.settle(now, slot);
        id
    }

    fn flow(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(id.slot as usize).map(Box::as_ref).filter(|flow| flow.id == id && flow.released.is_none())
    }

    fn flow_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(id.slot as usize).map(Box::as_mut).filter(|flow| flow.id == id && flow.released.is_none())
    }

    /// Bytes that have arrived, as far as they lie in one piece; [`Self::consume`] takes them off and may show more.
    pub fn readable(&mut self, flow: FlowId) -> &[u8] {
        self.flow_mut(flow).map_or(&[], Flow::readable)
    }

    /// Takes `n` bytes off what [`Self::readable`] shows.
    pub fn consume(&mut self, flow: FlowId, n: usize) {
        if self.flow_mut(flow).is_some_and(|flow| flow.consume(n)) {
            self.mark(flow.slot);
        }
    }

    /// What reading can still bring.
    #[must_use]
    pub fn read_state(&self, flow: FlowId) -> ReadState {
        self.flow(flow).map_or(ReadState::Reset, Flow::read_state)
    }

    /// How many bytes [`Self::write`] would take. After a write that left none, [`Event::Writable`] tells of more.
    #[must_use]
    pub fn room(&self, flow: FlowId) -> usize {
        self.flow(flow).map_or(0, Flow::room)
    }

    /// Takes bytes to send; returns how many.
    pub fn write(&mut self, flow: FlowId, data: &[u8]) -> usize {
        let taken = self.flow_mut(flow).map_or(0, |flow| flow.write(data));
        if taken > 0 {
            self.mark(flow.slot);
        }
        taken
    }

    /// Ends our half of the connection: a FIN follows what was written. Reading goes on.
    pub fn close_write(&mut self, flow: FlowId) {
        if let Some(found) = self.flow_mut(flow) {
            found.close_write();
            self.mark(flow.slot);
        }
    }

    /// Breaks the connection with a reset and lets go of the flow.
    pub fn abort(&mut self, now: Instant, flow: FlowId) {
        let mut bytes = self.outbox.buffer();
        let Some(found) = self.flow_mut(flow) else { return };
        found.abort(&mut bytes);
        found.released = Some(now);
        let peer = found.peer;
        self.counters.resets += u64::from(!bytes.is_empty());
        self.send(peer, None, false, bytes);
        self.settle(now, flow.slot);
    }

    /// The owner is gone, but holds bytes that are still to be written: from the first call on it has 60 s in all, then
    /// the connection is reset and [`Event::Closed`] says so. [`Netstack::release`] does not begin the time anew.
    pub fn linger(&mut self, now: Instant, flow: FlowId) {
        if let Some(found) = self.flow_mut(flow) {
            found.linger(now);
            self.settle(now, flow.slot);
        }
    }

    /// Lets go of the flow: what was written is still delivered, for at most 60 s, and the connection then closed.
    pub fn release(&mut self, now: Instant, flow: FlowId) {
        if let Some(found) = self.flow_mut(flow) {
            found.release(now);
            self.mark(flow.slot);
            self.settle(now, flow.slot);
        }
    }

    /// Whether any flow, released ones included, has bytes or a FIN that the peer has yet to acknowledge.
    #[must_use]
    pub fn undelivered(&self) -> bool {
        self.flows.iter().any(|(_, flow)| flow.undelivered())
    }

    /// Ends all flows of a peer at once, without a packet: the other side of them is gone.
    pub fn reset_peer(&mut self, now: Instant, peer: PeerIx, why: CloseReason) {
        for slot in self.slots_of(peer) {
            if let Some(flow) = self.flows.get_mut(slot as usize) {
                flow.break_off(why);
            }
            self.settle(now, slot);
        }
        self.incoming.drain(|_, from| from == peer);
        self.time_wait.forget_peer(peer);
        self.outbox.forget_peer(peer);
    }

    /// Makes every flow of a peer send again at once what is unacknowledged: the path to it has changed.
    pub fn kick_peer(&mut self, now: Instant, peer: PeerIx) {
        for slot in self.slots_of(peer) {
            let mut bytes = self.outbox.buffer();
            let Some(flow) = self.flows.get_mut(slot as usize) else { continue };
            let before = flow.stats;
            flow.kick(now, &mut bytes);
            let id = flow.id;
            self.counters.syns += u64::from(flow.stats.syns - before.syns);
            self.send(peer, Some(id), true, bytes);
            self.mark(slot);
        }
    }

    /// Whether a peer has flows.
    #[must_use]
    pub fn has_flows(&self, peer: PeerIx) -> bool {
        self.flows.iter().any(|(_, flow)| flow.peer == peer)
    }

    fn slots_of(&self, peer: PeerIx) -> Vec<u32> {
        self.flows.iter().filter(|(_, flow)| flow.peer == peer).map(|(slot, _)| slot as u32).collect()
    }

    /// The counters of a flow.
    #[must_use]
    pub fn stats(&self, flow: FlowId) -> Option<FlowStats> {
        self.flow(flow).map(|flow| flow.stats)
    }

    /// Our end and the peer's end of a flow.
    #[must_use]
    pub fn ends(&self, flow: FlowId) -> Option<(SocketAddrV6, SocketAddrV6)> {
        self.flow(flow).map(|flow| (flow.key.local_addr(), flow.key.remote_addr()))
    }

    fn after_input(&mut self, now: Instant, slot: u32) {
        self.mark(slot);
        if let Some(flow) = self.flows.get_mut(slot as usize)
            && flow.released.is_some()
            && flow.discard()
        {
            let (peer, mut bytes) = (flow.peer, Vec::new());
            flow.abort(&mut bytes);
            self.counters.resets += 1;
            self.send(peer, None, false, bytes);
        }
        self.tell(slot);
        if self.flows.get(slot as usize).is_some_and(|flow| flow.end().is_some()) {
            self.settle(now, slot);
        }
    }

    pub(super) fn handle_flow_timeout(&mut self, now: Instant, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot as usize) else { return };
        let before = flow.stats;
        flow.handle_timeout(now);
        self.counters.timeouts += u64::from(flow.stats.timeouts - before.timeouts);
        if flow.patience().is_some_and(|until| until <= now) {
            let (peer, mut bytes) = (flow.peer, Vec::new());
            flow.abort(&mut bytes);
            self.counters.resets += u64::from(!bytes.is_empty());
            self.send(peer, None, false, bytes);
            return self.settle(now, slot);
        }
        if flow.end().is_some() {
            return self.settle(now, slot);
        }
        self.mark(slot);
    }

    /// Tells a flow's owner what is new.
    pub(super) fn tell(&mut self, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot as usize) else { return };
        let (id, news) = (flow.id, flow.news());
        if flow.released.is_some() {
            return;
        }
        if news.connected {
            self.events.push_back(Event::Connected { flow: id });
        }
        if news.readable {
            self.events.push_back(Event::Readable { flow: id });
        }
        if news.writable {
            self.events.push_back(Event::Writable { flow: id });
        }
        if let Some(reason) = news.closed {
            self.events.push_back(Event::Closed { flow: id, reason });
        }
    }

    /// After a turn: when the flow wants the next one, or that it is over.
    pub(super) fn settle(&mut self, now: Instant, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot as usize) else { return };
        let turn = flow.next_turn(now);
        self.apply(now, slot, turn);
    }

    pub(super) fn apply(&mut self, now: Instant, slot: u32, turn: Turn) {
        let Some(flow) = self.flows.get_mut(slot as usize) else { return };
        match turn {
            Turn::Now => {
                // Its lane may stay closed for long, but not its owner's patience open.
                let linger = flow.patience();
                self.timers.set(slot, linger);
                self.mark(slot);
            }
            Turn::At(at) => self.timers.set(slot, Some(at)),
            Turn::Quiet => self.timers.set(slot, None),
            Turn::Over => {
                let (key, peer) = (flow.key, flow.peer);
                let (end, words, released) = (flow.end(), flow.last_words(), flow.released.is_some());
                self.timers.set(slot, None);
                self.tell(slot);
                if self.by_key.get(&key) == Some(&slot) {
                    self.by_key.remove(&key);
                    if end == Some(CloseReason::Finished) {
                        self.time_wait.insert(now, key, peer, words);
                    }
                }
                if released && let Some(flow) = self.flows.try_remove(slot as usize) {
                    self.used -= flow.buffers;
                }
            }
        }
    }

    /// Puts a flow in line for sending, unless it stands there already.
    pub(super) fn mark(&mut self, slot: u32) {
        if let Some(flow) = self.flows.get_mut(slot as usize)
            && flow.queued == Queued::No
        {
            flow.queued = self.order.push(slot, flow.unsent());
        }
    }
}
