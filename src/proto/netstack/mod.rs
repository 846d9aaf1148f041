//! The embedded TCP/IP stack: demultiplexer, TCP flows, UDP, ICMPv6 echo and TSMP (`netstack.md`, DESIGN.md §3.6–9).
//!
//! Sans-IO: decrypted packets go in by [`Netstack::handle_packet`], packets to encrypt come out of
//! [`Netstack::poll_transmit`] one at a time, straight into the caller's buffer. Each TCP flow is a small stack of its
//! own behind a table of 4-tuples, so a packet costs the same with one flow and with a thousand. A flow's owner reads
//! and writes through its [`FlowId`]; stale ids are harmless.
//!
//! Invariants
//! - Only packets to our own addresses are looked at, and no bytes make it panic.
//! - No packet is larger than 1,280 bytes, no queue is unbounded, every dropped packet is counted.
//! - A peer without room (`gate` says no) pauses its own flows only, and nothing of theirs is dropped or spun on.
//! - A packet in steady state allocates nothing.
//! - With nothing to do there is no deadline.
//!
//! Order of sending: finished answers, then flows with at most one segment waiting (keystrokes, ACKs), then the others
//! in turns of 16 segments.

mod device;
mod flow;
mod incoming;
mod outbox;
mod ping;
mod tcp;
mod time_wait;
mod timer;
mod transmit;

#[cfg(test)]
mod tests;

pub use flow::{CloseReason, FlowStats, ReadState};
pub use incoming::IncomingKey;
pub use ping::PingKind;
pub use transmit::{Packet, Urgency};

use crate::{
    base::{Deadline, FlowId, Instant, PeerIx, Rng},
    wire::ip::{Echo, FlowKey, HEADER_LEN, Ipv6, MTU, Tcp, Tsmp, Udp, protocol},
};
use flow::Flow;
use incoming::Incoming;
use outbox::{Outbox, Waiting};
use ping::Pings;
use rustc_hash::FxHashMap;
use slab::Slab;
use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};
use time_wait::TimeWait;
use timer::TimerQueue;

/// Datagrams that may wait for their lane, and as many for their reader.
const DATAGRAMS: usize = 512;

/// Settings.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// What the buffers of all flows together may take before new flows get small ones.
    pub budget_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { budget_bytes: 64 << 20 }
    }
}

/// News for the owner of the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer asks for a connection: [`Netstack::accept`] or [`Netstack::refuse`] it.
    Incoming {
        /// The request.
        key: IncomingKey,
        /// Who asks.
        peer: PeerIx,
    },
    /// The handshake of a flow is done.
    Connected {
        /// The flow.
        flow: FlowId,
    },
    /// There is something to read, or reading has come to its end. Told once until the owner consumes.
    Readable {
        /// The flow.
        flow: FlowId,
    },
    /// There is room again after a write that found too little.
    Writable {
        /// The flow.
        flow: FlowId,
    },
    /// The connection is over. What has arrived can still be read; the flow stays until it is released.
    Closed {
        /// The flow.
        flow: FlowId,
        /// Why.
        reason: CloseReason,
    },
    /// A datagram for a bound port.
    Datagram {
        /// Who sent it.
        peer: PeerIx,
        /// The sender's address and port.
        from: SocketAddrV6,
        /// Our address and port.
        to: SocketAddrV6,
        /// Its data.
        data: Vec<u8>,
    },
    /// The answer to a ping.
    Pong {
        /// What [`Netstack::ping`] returned.
        token: u64,
        /// Who answered.
        peer: PeerIx,
        /// How long it took.
        latency: Duration,
    },
}

/// What the stack has counted since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// SYNs and SYN-ACKs sent, repeats included.
    pub syns: u64,
    /// TCP segments with data or FIN sent again.
    pub retransmits: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Resets sent.
    pub resets: u64,
    /// Dropped: no IPv6 packet, or its upper layer broken.
    pub malformed: u64,
    /// Dropped: to an address that is not ours.
    pub not_ours: u64,
    /// Dropped: a protocol or message that nobody here speaks.
    pub unknown_protocol: u64,
    /// Ignored: SYNs beyond the limit of waiting requests.
    pub backlog_full: u64,
    /// Requests that nobody answered in time.
    pub incoming_expired: u64,
    /// Dropped: datagrams to a port that is not bound.
    pub udp_unbound: u64,
    /// Dropped: datagrams beyond the reader's queue.
    pub udp_overflow_in: u64,
    /// Dropped: datagrams beyond the lane's queue.
    pub udp_overflow_out: u64,
    /// Dropped: finished packets beyond the outbox.
    pub outbox_overflow: u64,
}

/// The embedded stack of one node.
pub struct Netstack {
    config: Config,
    rng: Rng,
    addresses: Vec<Ipv6Addr>,
    flows: Slab<Box<Flow>>,
    by_key: FxHashMap<FlowKey, u32>,
    time_wait: TimeWait,
    incoming: Incoming,
    listening: BTreeSet<u16>,
    listening_to_rest: bool,
    udp_bound: BTreeSet<u16>,
    udp_rest: bool,
    datagrams_in: usize,
    pings: Pings,
    timers: TimerQueue,
    order: transmit::Order,
    outbox: Outbox,
    events: VecDeque<Event>,
    counters: Counters,
    /// Bytes of all flows' buffers.
    used: usize,
    next_port: u16,
    generation: u32,
}

impl fmt::Debug for Netstack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netstack").field("flows", &self.flows.len()).field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Netstack {
    /// A stack without addresses, listeners and flows.
    #[must_use]
    pub fn new(config: Config, mut rng: Rng) -> Self {
        let next_port = rng.below(u64::from(tcp::EPHEMERAL)) as u16;
        Self {
            config,
            rng,
            addresses: Vec::new(),
            flows: Slab::new(),
            by_key: FxHashMap::default(),
            time_wait: TimeWait::default(),
            incoming: Incoming::default(),
            listening: BTreeSet::new(),
            listening_to_rest: false,
            udp_bound: BTreeSet::new(),
            udp_rest: false,
            datagrams_in: 0,
            pings: Pings::default(),
            timers: TimerQueue::default(),
            order: transmit::Order::default(),
            outbox: Outbox::default(),
            events: VecDeque::new(),
            counters: Counters::default(),
            used: 0,
            next_port,
            generation: 0,
        }
    }

    /// Sets the addresses that packets must have as destination. Flows on a former address go on.
    pub fn set_addresses(&mut self, addresses: Vec<Ipv6Addr>) {
        self.addresses = addresses;
    }

    /// Takes in a decrypted packet. The caller has checked that `from` may use its source address.
    pub fn handle_packet(&mut self, now: Instant, from: PeerIx, packet: &[u8]) {
        let Ok(ip) = Ipv6::parse(packet) else {
            self.counters.malformed += 1;
            return;
        };
        if !self.addresses.contains(&ip.dst) {
            self.counters.not_ours += 1;
            return;
        }
        let packet = packet.get(..HEADER_LEN + ip.payload.len()).unwrap_or(packet);
        let understood = match ip.next_header {
            protocol::TCP => Tcp::parse(ip.payload).map(|tcp| self.handle_tcp(now, from, &ip, &tcp, packet)).is_ok(),
            protocol::UDP => Udp::parse(ip.payload).map(|udp| self.handle_udp(from, &ip, &udp)).is_ok(),
            protocol::ICMPV6 => match Echo::parse(ip.payload) {
                Ok(echo) => {
                    self.handle_echo(now, from, &ip, &echo);
                    true
                }
                Err(_) => return self.counters.unknown_protocol += 1,
            },
            protocol::TSMP => match Tsmp::parse(ip.payload) {
                Ok(tsmp) => {
                    self.handle_tsmp(now, from, &ip, tsmp);
                    true
                }
                Err(_) => return self.counters.unknown_protocol += 1,
            },
            _ => return self.counters.unknown_protocol += 1,
        };
        self.counters.malformed += u64::from(!understood);
    }

    fn handle_udp(&mut self, peer: PeerIx, ip: &Ipv6<'_>, udp: &Udp<'_>) {
        if !self.udp_rest && !self.udp_bound.contains(&udp.dst_port) {
            self.counters.udp_unbound += 1;
            return;
        }
        if self.datagrams_in >= DATAGRAMS {
            self.counters.udp_overflow_in += 1;
            return;
        }
        self.datagrams_in += 1;
        let from = SocketAddrV6::new(ip.src, udp.src_port, 0, 0);
        let to = SocketAddrV6::new(ip.dst, udp.dst_port, 0, 0);
        self.events.push_back(Event::Datagram { peer, from, to, data: udp.payload.to_vec() });
    }

    fn handle_echo(&mut self, now: Instant, peer: PeerIx, ip: &Ipv6<'_>, echo: &Echo<'_>) {
        if echo.is_reply {
            let mut data = [0; 8];
            let same_length = echo.body.len() == 4;
            for (to, from) in data.iter_mut().zip(echo.body) {
                *to = *from;
            }
            if same_length {
                self.finish_ping(now, peer, PingKind::Icmp, data);
            }
            return;
        }
        if ip.payload.len() + HEADER_LEN > MTU {
            self.counters.unknown_protocol += 1;
            return;
        }
        let mut bytes = self.outbox.buffer();
        Echo { is_reply: true, body: echo.body }.write(ip.dst, ip.src, ip.traffic_class, &mut bytes);
        self.send(peer, None, false, bytes);
    }

    fn handle_tsmp(&mut self, now: Instant, peer: PeerIx, ip: &Ipv6<'_>, tsmp: Tsmp) {
        match tsmp {
            Tsmp::Ping { data } => {
                let mut bytes = self.outbox.buffer();
                Tsmp::Pong { data, port: 0 }.write(ip.dst, ip.src, !ip.flow_label, &mut bytes);
                self.send(peer, None, false, bytes);
            }
            Tsmp::Pong { data, .. } => self.finish_ping(now, peer, PingKind::Tsmp, data),
        }
    }

    fn finish_ping(&mut self, now: Instant, peer: PeerIx, kind: PingKind, data: [u8; 8]) {
        if let Some((token, latency)) = self.pings.answered(now, peer, kind, data) {
            self.events.push_back(Event::Pong { token, peer, latency });
        }
    }

    /// Queues a finished packet.
    fn send(&mut self, peer: PeerIx, flow: Option<FlowId>, expects_answer: bool, bytes: Vec<u8>) {
        let full = self.outbox.push(Waiting { peer, flow, expects_answer, bytes });
        self.counters.outbox_overflow += u64::from(full);
    }

    /// Pings a peer; the answer comes as [`Event::Pong`] with the returned token, or never.
    pub fn ping(&mut self, now: Instant, peer: PeerIx, from: Ipv6Addr, to: Ipv6Addr, kind: PingKind) -> u64 {
        let mut bytes = self.outbox.buffer();
        let data = match kind {
            PingKind::Tsmp => {
                let data = self.rng.bytes();
                Tsmp::Ping { data }.write(from, to, 0, &mut bytes);
                data
            }
            PingKind::Icmp => {
                let [a, b, c, d] = self.rng.bytes();
                Echo { is_reply: false, body: &[a, b, c, d] }.write(from, to, 0, &mut bytes);
                [a, b, c, d, 0, 0, 0, 0]
            }
        };
        self.send(peer, None, true, bytes);
        self.pings.sent(now, peer, kind, data)
    }

    /// Binds a UDP port, or an ephemeral one. `None` when it is taken.
    pub fn udp_bind(&mut self, port: Option<u16>) -> Option<u16> {
        let port = match port {
            Some(port) => port,
            None => {
                let first = self.rng.below(u64::from(tcp::EPHEMERAL)) as u16;
                (0..tcp::EPHEMERAL).map(|n| tcp::ephemeral(first.wrapping_add(n))).find(|p| !self.udp_bound.contains(p))?
            }
        };
        self.udp_bound.insert(port).then_some(port)
    }

    /// Takes datagrams for every other port too, or not any more.
    pub const fn udp_listen_rest(&mut self, on: bool) {
        self.udp_rest = on;
    }

    /// Gives a UDP port back.
    pub fn udp_unbind(&mut self, port: u16) {
        self.udp_bound.remove(&port);
    }

    /// Sends a datagram. Returns whether it was queued: not when it is larger than a packet holds or too many wait.
    pub fn udp_send(&mut self, peer: PeerIx, local: SocketAddrV6, to: SocketAddrV6, data: &[u8]) -> bool {
        if data.len() > Udp::MAX_PAYLOAD || self.outbox.len() >= DATAGRAMS {
            self.counters.udp_overflow_out += 1;
            return false;
        }
        let mut bytes = self.outbox.buffer();
        Udp::write(local, to, data, &mut bytes);
        self.send(peer, None, false, bytes);
        true
    }

    /// The next piece of news.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if matches!(event, Event::Datagram { .. }) {
            self.datagrams_in -= 1;
        }
        Some(event)
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.pings.expire(now);
        self.counters.incoming_expired += self.incoming.expire(now);
        while let Some(slot) = self.timers.pop_due(now) {
            self.handle_flow_timeout(now, slot);
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let flow = self.timers.next().map(|at| Deadline { at, why: "tcp flow" });
        let incoming = self.incoming.next_expiry().map(|at| Deadline { at, why: "unanswered connection request" });
        let ping = self.pings.next_expiry().map(|at| Deadline { at, why: "unanswered ping" });
        Deadline::earliest(Deadline::earliest(flow, incoming), ping)
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }
}
