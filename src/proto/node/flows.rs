//! Dialling, pings and what passes through to the stack.

use super::{DialFailure, DialId, Event, Node, PingId, PingKind, dials::Dial};
use crate::{
    base::{CODER_PREFIX, FlowId, Instant, Lane},
    proto::netstack::{self, CloseReason, FlowStats, IncomingKey, ReadState},
};
use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

impl Node {
    /// Connects to a port of a peer. The peer may still be unknown: the dial waits for it and for its session, and the
    /// SYN leaves in the same turn in which both are there. Ends in [`Event::Dialed`] or [`Event::DialFailed`].
    pub fn dial(&mut self, now: Instant, to: SocketAddrV6, deadline: Instant) -> DialId {
        let (dial, room) = self.dials.add(to, deadline);
        if room {
            self.start_dial(now, dial, to);
        } else {
            self.events.push_back(Event::DialFailed { dial, why: DialFailure::TooMany });
        }
        dial
    }

    /// Gives a dial up. Nothing is told of it any more.
    pub fn cancel_dial(&mut self, now: Instant, dial: DialId) {
        if let Some(Dial { started: Some((_, flow)), .. }) = self.dials.remove(dial) {
            self.netstack.abort(now, flow);
        }
    }

    fn start_dial(&mut self, now: Instant, dial: DialId, to: SocketAddrV6) {
        let Some(peer) = self.peers.at(to.ip()) else { return };
        self.counters.dials += 1;
        let flow = self.netstack.dial(now, peer, self.source_for(to.ip()), to);
        self.dials.start(dial, peer, flow);
    }

    /// Our address with the prefix of the other end, else our first one.
    pub(super) fn source_for(&self, to: &Ipv6Addr) -> Ipv6Addr {
        let coder = |ip: &Ipv6Addr| ip.octets().starts_with(&CODER_PREFIX);
        let same = self.addresses.iter().find(|own| coder(own) == coder(to));
        same.or_else(|| self.addresses.first()).copied().unwrap_or(Ipv6Addr::UNSPECIFIED)
    }

    /// Begins what waited for the owner of these addresses.
    pub(super) fn start_waiting(&mut self, now: Instant, addresses: &[Ipv6Addr]) {
        for (dial, to) in self.dials.waiting_for(addresses) {
            self.start_dial(now, dial, to);
        }
        for (ping, to, kind) in self.pings.waiting_for(addresses) {
            self.start_ping(now, ping, to, kind);
        }
    }

    /// Asks a peer for an answer, once. Ends in [`Event::Pong`] or [`Event::PingExpired`].
    pub fn ping(&mut self, now: Instant, to: Ipv6Addr, kind: PingKind, deadline: Instant) -> PingId {
        let ping = self.pings.add(to, kind, deadline);
        self.start_ping(now, ping, to, kind);
        self.settle(now);
        ping
    }

    fn start_ping(&mut self, now: Instant, ping: PingId, to: Ipv6Addr, kind: PingKind) {
        let Some(peer) = self.peers.at(&to) else { return };
        let from = self.source_for(&to);
        let token = match kind {
            PingKind::Disco => {
                self.paths.ping(now, peer, ping.0);
                None
            }
            PingKind::Tsmp => Some(self.netstack.ping(now, peer, from, to, netstack::PingKind::Tsmp)),
            PingKind::Icmp => Some(self.netstack.ping(now, peer, from, to, netstack::PingKind::Icmp)),
        };
        self.pings.mark_sent(ping, token);
    }

    pub(super) fn handle_disco_pong(&mut self, token: u64, latency: Duration, lane: Lane) {
        let ping = PingId(token);
        if self.pings.take(ping).is_some() {
            self.events.push_back(Event::Pong { ping, latency, lane: Some(lane) });
        }
    }

    pub(super) fn expire_dials(&mut self, now: Instant) {
        while let Some((dial, Dial { to, started, .. })) = self.dials.expire(now) {
            let why = match started {
                None if self.peers.at(to.ip()).is_none() => DialFailure::UnknownPeer,
                None => DialFailure::NoSession,
                Some((peer, flow)) => {
                    self.netstack.abort(now, flow);
                    if self.wg.has_session(now, peer) { DialFailure::NoAnswer } else { DialFailure::NoSession }
                }
            };
            self.events.push_back(Event::DialFailed { dial, why });
        }
        while let Some((ping, waiting)) = self.pings.expire(now) {
            self.events.push_back(Event::PingExpired { ping, known: waiting.sent });
        }
    }

    /// What a netstack event means to the owner, if anything.
    pub(super) fn translate(&mut self, event: netstack::Event) -> Option<Event> {
        match event {
            netstack::Event::Connected { flow } => {
                if let Some(dial) = self.dials.by_flow(flow) {
                    self.dials.remove(dial);
                    return Some(Event::Dialed { dial, flow });
                }
                Some(Event::Netstack(event))
            }
            netstack::Event::Closed { flow, reason } => {
                if let Some(dial) = self.dials.by_flow(flow) {
                    self.dials.remove(dial);
                    let why = match reason {
                        CloseReason::PeerRestarted | CloseReason::PeerLost => DialFailure::PeerGone,
                        CloseReason::TimedOut => DialFailure::NoAnswer,
                        _ => DialFailure::Refused,
                    };
                    return Some(Event::DialFailed { dial, why });
                }
                Some(Event::Netstack(event))
            }
            netstack::Event::Pong { token, latency, .. } => {
                let ping = self.pings.take_by_token(token)?;
                Some(Event::Pong { ping, latency, lane: None })
            }
            other => Some(Event::Netstack(other)),
        }
    }
}

/// What passes through to the stack.
impl Node {
    /// Our overlay addresses.
    #[must_use]
    pub fn addresses(&self) -> &[Ipv6Addr] {
        &self.addresses
    }

    /// Takes connections to `port`; each request is a [`netstack::Event::Incoming`].
    pub fn listen(&mut self, port: u16) {
        self.netstack.listen(port);
    }

    /// Takes no more connections to `port`.
    pub fn unlisten(&mut self, port: u16) {
        self.netstack.unlisten(port);
    }

    /// Takes connections to every other port too.
    pub fn listen_rest(&mut self, on: bool) {
        self.netstack.listen_rest(on);
    }

    /// Accepts a waiting connection. `None` when it waits no longer.
    pub fn accept(&mut self, now: Instant, key: IncomingKey) -> Option<FlowId> {
        self.netstack.accept(now, key)
    }

    /// Refuses a waiting connection.
    pub fn refuse(&mut self, key: IncomingKey) {
        self.netstack.refuse(key);
    }

    /// Received bytes in order, as far as they lie in one piece.
    pub fn readable(&mut self, flow: FlowId) -> &[u8] {
        self.netstack.readable(flow)
    }

    /// Takes `n` bytes off what [`Node::readable`] shows.
    pub fn consume(&mut self, flow: FlowId, n: usize) {
        self.netstack.consume(flow, n);
    }

    /// Whether more bytes can come.
    #[must_use]
    pub fn read_state(&self, flow: FlowId) -> ReadState {
        self.netstack.read_state(flow)
    }

    /// How many bytes [`Node::write`] would take.
    #[must_use]
    pub fn room(&self, flow: FlowId) -> usize {
        self.netstack.room(flow)
    }

    /// Takes bytes to send; returns how many.
    pub fn write(&mut self, flow: FlowId, data: &[u8]) -> usize {
        self.netstack.write(flow, data)
    }

    /// Sends FIN after everything written; reading goes on.
    pub fn close_write(&mut self, flow: FlowId) {
        self.netstack.close_write(flow);
    }

    /// Resets the connection and gives the flow back.
    pub fn abort(&mut self, now: Instant, flow: FlowId) {
        self.netstack.abort(now, flow);
    }

    /// The owner is gone, but holds bytes that are still to be written: it has 60 s in all from the first call on.
    pub fn linger(&mut self, now: Instant, flow: FlowId) {
        self.netstack.linger(now, flow);
    }

    /// Gives the flow back: what was written is still delivered, for a while.
    pub fn release(&mut self, now: Instant, flow: FlowId) {
        self.netstack.release(now, flow);
    }

    /// Whether any flow, released ones included, has bytes or a FIN that the peer has yet to acknowledge.
    #[must_use]
    pub fn undelivered(&self) -> bool {
        self.netstack.undelivered()
    }

    /// Counters of one flow.
    #[must_use]
    pub fn flow_stats(&self, flow: FlowId) -> Option<FlowStats> {
        self.netstack.stats(flow)
    }

    /// Our end and the peer's end of a flow.
    #[must_use]
    pub fn flow_ends(&self, flow: FlowId) -> Option<(SocketAddrV6, SocketAddrV6)> {
        self.netstack.ends(flow)
    }

    /// Binds a UDP port, or an ephemeral one. `None` when it is taken.
    pub fn udp_bind(&mut self, port: Option<u16>) -> Option<u16> {
        self.netstack.udp_bind(port)
    }

    /// Takes datagrams for every other port too.
    pub const fn udp_listen_rest(&mut self, on: bool) {
        self.netstack.udp_listen_rest(on);
    }

    /// Gives a UDP port back.
    pub fn udp_unbind(&mut self, port: u16) {
        self.netstack.udp_unbind(port);
    }

    /// Sends a datagram from one of our ports. Returns whether it was queued.
    pub fn udp_send(&mut self, local_port: u16, to: SocketAddrV6, data: &[u8]) -> bool {
        let Some(peer) = self.peers.at(to.ip()) else { return false };
        let local = SocketAddrV6::new(self.source_for(to.ip()), local_port, 0, 0);
        self.netstack.udp_send(peer, local, to, data)
    }
}
