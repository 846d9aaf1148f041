//! One TCP connection: a smoltcp interface with one socket, and what we must know beside it.
//!
//! smoltcp keeps its sequence numbers to itself, so the flow watches the headers that go in and out. It adds what
//! the engine lacks: retransmission at once when a path has changed, recovery of several losses without waiting for
//! the timer, a repeated SYN-ACK for a repeated SYN, a user timeout that survives a suspended host.

mod again;
mod owner;
mod repair;
mod window;

use super::device::Port;
use crate::{
    base::{FlowId, Instant, PeerIx},
    wire::ip::{FlowKey, HEADER_LEN as IPV6_HEADER, Ipv6, MTU, Tcp, TcpFlags, TcpOptions},
};
use repair::{Again, Flight, Repair, Repeat, before};
use smallvec::SmallVec;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    socket::tcp::{CongestionControl, Socket, SocketBuffer, State},
    time,
    wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint},
};
use std::{net::Ipv6Addr, time::Duration};
use window::Window;

/// The largest payload of a segment without options.
pub(super) const MSS: usize = 1_220;
/// How long an ACK may wait for company. Shorter than the shortest retransmission timeout of Go peers (200 ms) by far;
/// two full segments are acknowledged at once.
const ACK_DELAY: time::Duration = time::Duration::from_millis(10);
/// Without a sign of life for so long, and after [`USER_TIMEOUT_TRIES`], a connection with data in flight is given up.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// Retransmissions that must have gone unanswered, so that a host that slept for an hour gets its chance first.
const USER_TIMEOUT_TRIES: u32 = 5;
/// How long a flow whose owner is gone may take to deliver the rest.
pub(super) const LINGER: Duration = Duration::from_secs(60);
/// Data that may wait in the engine beyond twice what is in flight: enough to keep it busy, little enough that a
/// keystroke does not queue behind a megabyte.
const BACKLOG: usize = 64 * 1024;

/// Room from which on a waiting writer hears of it: small steps would cost a wake-up each.
const WRITABLE: usize = 16 * 1024;
/// IPv6 and TCP headers without options.
const HEADERS: usize = IPV6_HEADER + 20;

/// Room for an immediate answer of the engine: headers with options, never data.
pub(super) const REPLY: usize = 128;

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// Both sides have sent all they had.
    Finished,
    /// The peer reset it.
    Reset,
    /// The peer has nothing that listens there.
    Refused,
    /// Too many retransmissions went unanswered.
    TimedOut,
    /// The peer's process is another one now.
    PeerRestarted,
    /// The peer is gone from the network map.
    PeerLost,
    /// No port or no flow is left.
    Exhausted,
}

/// What reading from a flow can still bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadState {
    /// More may come.
    Open,
    /// The peer has finished and everything was read.
    Finished,
    /// The connection broke; what was not read before is still there, more never comes.
    Reset,
}

/// Counters of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowStats {
    /// SYNs or SYN-ACKs sent.
    pub syns: u32,
    /// Segments with data or FIN sent again.
    pub retransmits: u32,
    /// Retransmission timeouts.
    pub timeouts: u32,
    /// Segments sent again because nothing was heard for two round trips.
    pub probes: u32,
    /// Times that a path change made it send again.
    pub kicks: u32,
    /// Bytes taken from the owner.
    pub written: u64,
    /// Bytes handed to the owner.
    pub read: u64,
}

/// Where a flow stands in the order of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queued {
    No,
    Urgent,
    Bulk,
    Blocked,
}

/// What its owner should hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct News {
    pub(super) connected: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) closed: Option<CloseReason>,
}

/// What an emitted packet is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Emitted {
    pub(super) len: usize,
    pub(super) expects_answer: bool,
}

/// One connection.
pub(super) struct Flow {
    pub(super) id: FlowId,
    pub(super) key: FlowKey,
    pub(super) peer: PeerIx,
    pub(super) queued: Queued,
    /// Bytes of its two buffers.
    pub(super) buffers: usize,
    pub(super) stats: FlowStats,
    /// When the owner is gone: the moment until which it may linger.
    pub(super) released: Option<Instant>,
    /// The same for an owner that is gone, but whose bytes are not all handed over yet.
    lingers: Option<Instant>,
    iface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    end: Option<CloseReason>,
    /// The SYN or SYN-ACK as sent, until the handshake is done.
    syn: SmallVec<[u8; 96]>,
    /// Our first sequence number, once the SYN is out.
    iss: u32,
    /// The peer's first sequence number, once its SYN is in.
    irs: Option<u32>,
    /// The end of the highest sequence range sent.
    snd_max: u32,
    /// The window field of the newest segment that is no SYN.
    peer_window: Option<u16>,
    /// Whether the newest segment we sent was a SYN, whose window is not scaled.
    sent_only_syn: bool,
    repair: Repair,
    window: Window,
    /// Whether everything is being sent again, under the engine's congestion control.
    starts_over: bool,
    /// Whether the engine was told a later time once and sent something else.
    turned_forward: bool,
    /// When the SYN or SYN-ACK left, as long as it left once only.
    syn_sent: Option<Instant>,
    /// The window field of the newest segment we sent.
    sent_window: u16,
    /// Consumed by the owner but not yet taken from the engine, see [`Flow::consume`].
    consumed: usize,
    fin_wanted: bool,
    fin_seen: bool,
    wants_write: bool,
    told_connected: bool,
    told_readable: bool,
    told_fin: bool,
    told_closed: bool,
}

/// When a flow wants to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    At(Instant),
    Quiet,
    /// Never again.
    Over,
}

fn smol(now: Instant) -> time::Instant {
    time::Instant::from_micros(i64::try_from(now.as_nanos() / 1_000).unwrap_or(i64::MAX))
}

fn endpoint(ip: u128, port: u16) -> IpEndpoint {
    IpEndpoint::new(IpAddress::from(Ipv6Addr::from_bits(ip)), port)
}

impl Flow {
    fn new(now: Instant, id: FlowId, key: FlowKey, peer: PeerIx, buffer: usize, seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut Port::new(None, &mut []), smol(now));
        let local = IpAddress::from(Ipv6Addr::from_bits(key.local));
        iface.update_ip_addrs(|addrs| _ = addrs.push(IpCidr::new(local, 128)));
        let mut socket = Socket::new(SocketBuffer::new(vec![0; buffer]), SocketBuffer::new(vec![0; buffer]));
        socket.set_congestion_control(CongestionControl::None);
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let socket = sockets.add(socket);
        Self {
            id,
            key,
            peer,
            queued: Queued::No,
            buffers: 2 * buffer,
            stats: FlowStats::default(),
            released: None,
            lingers: None,
            iface,
            sockets,
            socket,
            end: None,
            syn: SmallVec::new(),
            iss: 0,
            irs: None,
            snd_max: 0,
            peer_window: None,
            sent_only_syn: true,
            repair: Repair::default(),
            window: Window::new(),
            starts_over: false,
            syn_sent: None,
            turned_forward: false,
            sent_window: 0,
            consumed: 0,
            fin_wanted: false,
            fin_seen: false,
            wants_write: false,
            told_connected: false,
            told_readable: false,
            told_fin: false,
            told_closed: false,
        }
    }

    /// A flow that connects; its SYN leaves at its first turn.
    pub(super) fn connect(now: Instant, id: FlowId, key: FlowKey, peer: PeerIx, buffer: usize, seed: u64) -> Self {
        let mut flow = Self::new(now, id, key, peer, buffer, seed);
        let local: IpListenEndpoint = endpoint(key.local, key.local_port).into();
        let remote = endpoint(key.remote, key.remote_port);
        let socket = flow.sockets.get_mut::<Socket<'_>>(flow.socket);
        if socket.connect(flow.iface.context(), remote, local).is_err() {
            flow.end = Some(CloseReason::Refused);
        }
        flow
    }

    /// A flow that answers the held `syn`; its SYN-ACK leaves at its first turn.
    pub(super) fn answer(now: Instant, id: FlowId, key: FlowKey, peer: PeerIx, buffer: usize, seed: u64, syn: &[u8]) -> Self {
        let mut flow = Self::new(now, id, key, peer, buffer, seed);
        let local: IpListenEndpoint = endpoint(key.local, key.local_port).into();
        if flow.tcp().listen(local).is_err() {
            flow.end = Some(CloseReason::Refused);
        }
        let mut reply = [0; REPLY];
        if let Ok(ip) = Ipv6::parse(syn)
            && let Ok(tcp) = Tcp::parse(ip.payload)
        {
            flow.input(now, syn, &tcp, &mut reply);
        }
        if flow.state() != State::SynReceived {
            flow.end = Some(CloseReason::Reset);
        }
        flow
    }

    /// A flow that never was: no port or no place is left.
    pub(super) fn exhausted(now: Instant, id: FlowId, key: FlowKey, peer: PeerIx) -> Self {
        let mut flow = Self::new(now, id, key, peer, 0, 0);
        flow.end = Some(CloseReason::Exhausted);
        flow
    }

    fn tcp(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    fn view(&self) -> &Socket<'static> {
        self.sockets.get(self.socket)
    }

    fn state(&self) -> State {
        self.view().state()
    }

    fn is_opening(&self) -> bool {
        matches!(self.state(), State::Listen | State::SynSent | State::SynReceived)
    }

    /// The lowest sequence number that the peer has not acknowledged.
    fn una(&self) -> u32 {
        if self.is_opening() {
            return self.iss;
        }
        let acked = self.stats.written - self.view().send_queue() as u64;
        let fin = matches!(self.state(), State::FinWait2 | State::TimeWait);
        self.iss.wrapping_add(1).wrapping_add(acked as u32).wrapping_add(u32::from(fin))
    }

    /// The next sequence number that we expect from the peer.
    fn rcv_nxt(&self) -> u32 {
        let received = self.stats.read + self.view().recv_queue() as u64;
        let taken = u32::from(self.irs.is_some()) + u32::from(self.fin_seen);
        self.irs.unwrap_or_default().wrapping_add(taken).wrapping_add(received as u32)
    }

    /// Sequence space sent and not acknowledged.
    fn in_flight(&self) -> u32 {
        let una = self.una();
        let none = (self.syn.is_empty() && self.is_opening()) || before(self.snd_max, una);
        if none { 0 } else { self.snd_max.wrapping_sub(una) }
    }

    /// Bytes that wait for their first transmission.
    pub(super) fn unsent(&self) -> usize {
        self.view().send_queue().saturating_sub(self.in_flight() as usize)
    }

    /// Whether the peer has yet to acknowledge bytes or the FIN.
    pub(super) fn undelivered(&self) -> bool {
        let fin = matches!(self.state(), State::FinWait1 | State::Closing | State::LastAck);
        self.end.is_none() && (fin || self.view().send_queue() > 0)
    }

    /// Takes in a packet for this flow; the length of an immediate answer that lies in `reply`, if there is one.
    pub(super) fn input(&mut self, now: Instant, packet: &[u8], tcp: &Tcp<'_>, reply: &mut [u8; REPLY]) -> Option<usize> {
        if self.end.is_some() {
            return None;
        }
        let before_state = self.state();
        let syn = tcp.flags.has(TcpFlags::SYN);
        if syn && before_state == State::SynReceived && !tcp.flags.has(TcpFlags::ACK) && self.irs == Some(tcp.seq) {
            // The dialler has not seen our SYN-ACK. The engine would answer with a bare ACK.
            return self.repeat_syn(reply);
        }
        if self.sent_only_syn && self.beyond_first_window(tcp) {
            return None;
        }
        let una = self.una();
        if self.is_fin_duplicate(tcp, una) {
            return None;
        }
        let mut port = Port::new(Some(packet), reply);
        self.iface.poll_ingress_single(smol(now), &mut port, &mut self.sockets);
        let emitted = port.emitted();
        self.repair.handle_heard();
        let state = self.state();
        if syn && self.irs.is_none() && matches!(state, State::SynReceived | State::Established) {
            self.irs = Some(tcp.seq);
        }
        if syn && tcp.flags.has(TcpFlags::ACK) {
            // A SYN's window is not scaled, the next segment's is: the same window in its terms.
            let scale = TcpOptions::parse(tcp.options).window_scale.unwrap_or(0);
            self.peer_window = Some((tcp.window >> scale).max(1));
        } else if !syn && !tcp.flags.has(TcpFlags::RST) {
            self.peer_window = Some(tcp.window);
        }
        self.fin_seen |= matches!(state, State::CloseWait | State::Closing | State::LastAck | State::TimeWait);
        if before_state != state {
            self.follow(now, before_state, state);
        }
        self.watch_acks(now, tcp, una);
        let len = emitted?;
        let answer = reply.get_mut(..len)?;
        self.finish(answer);
        self.sent_only_syn = false;
        Some(len)
    }

    /// Completes a packet of the engine.
    ///
    /// After a timeout the engine numbers even its bare ACKs from where it starts over. The peer may be beyond that
    /// number, takes the ACK for an old segment and never sees what it acknowledges; if both sides do so, they stop
    /// for good. A bare ACK bears the next number that was never sent (RFC 9293 §3.10.7.4); to a peer whose window is
    /// closed, the only one that it takes then, whatever was sent beyond to probe it.
    fn finish(&self, packet: &mut [u8]) {
        let tcp = packet.get(IPV6_HEADER..).and_then(|bytes| Tcp::parse(bytes).ok());
        if tcp.is_some_and(|tcp| tcp.seq_len() == 0 && tcp.flags == TcpFlags::ACK) && !self.is_opening() {
            Tcp::set_seq(packet, if self.peer_window == Some(0) { self.una() } else { self.snd_max });
        }
        Tcp::seal(packet);
    }

    /// Whether a segment reaches beyond what a SYN's unscaled window allowed. The engine scales that window, so it
    /// would take more than its buffer holds.
    fn beyond_first_window(&self, tcp: &Tcp<'_>) -> bool {
        let Some(irs) = self.irs else { return false };
        let window = self.view().recv_capacity().min(usize::from(u16::MAX)) as u32;
        let edge = irs.wrapping_add(1).wrapping_add(window);
        !tcp.payload.is_empty() && before(edge, tcp.seq.wrapping_add(tcp.seq_len()))
    }

    /// Whether a segment only repeats that our FIN, all that is in flight, has not arrived. At the third of them the
    /// engine would stop its timer and yet send nothing.
    fn is_fin_duplicate(&self, tcp: &Tcp<'_>, una: u32) -> bool {
        tcp.flags == TcpFlags::ACK
            && tcp.payload.is_empty()
            && tcp.ack == una
            && tcp.seq == self.rcv_nxt()
            && Some(tcp.window) == self.peer_window
            && self.view().send_queue() == 0
            && self.in_flight() == 1
            && !self.is_opening()
    }

    fn repeat_syn(&mut self, reply: &mut [u8; REPLY]) -> Option<usize> {
        let to = reply.get_mut(..self.syn.len())?;
        to.copy_from_slice(&self.syn);
        self.stats.syns += u32::from(!self.syn.is_empty());
        (!self.syn.is_empty()).then_some(self.syn.len())
    }

    /// Acts on a change of the engine's state.
    fn follow(&mut self, now: Instant, from: State, to: State) {
        match to {
            State::Closed | State::Listen => {
                self.end = Some(match from {
                    State::SynSent => CloseReason::Refused,
                    State::LastAck | State::Closing | State::TimeWait => CloseReason::Finished,
                    _ => CloseReason::Reset,
                });
            }
            State::Established | State::CloseWait if matches!(from, State::SynSent | State::SynReceived) => {
                self.syn.clear();
                if let Some(sent) = self.syn_sent.take() {
                    self.repair.add_sample(now - sent);
                    self.window.add_sample(now, now - sent);
                }
                if self.fin_wanted {
                    self.tcp().close();
                }
            }
            _ => {}
        }
    }

    /// A bare segment of ours.
    fn write_bare(&self, seq: u32, flags: TcpFlags, out: &mut Vec<u8>) {
        let tcp = Tcp {
            src_port: self.key.local_port,
            dst_port: self.key.remote_port,
            seq,
            ack: if flags.has(TcpFlags::ACK) { self.rcv_nxt() } else { 0 },
            flags,
            window: if flags.has(TcpFlags::RST) { 0 } else { self.sent_window },
            options: &[],
            payload: &[],
        };
        tcp.write(Ipv6Addr::from_bits(self.key.local), Ipv6Addr::from_bits(self.key.remote), out);
    }

    /// One turn of sending: at most one packet into `buf`.
    pub(super) fn output(&mut self, now: Instant, buf: &mut [u8; MTU]) -> Option<Emitted> {
        if self.end.is_some() {
            return None;
        }
        let from = self.state();
        let engine_now = self.engine_time(now);
        let mut port = Port::new(None, buf);
        self.iface.poll_egress(engine_now, &mut port, &mut self.sockets);
        let emitted = port.emitted();
        let to = self.state();
        if from != to {
            self.follow(now, from, to);
        }
        let Some(packet) = emitted.and_then(|len| buf.get_mut(..len)) else {
            let asked = self.repair.asked();
            self.repair.forget_asked();
            if asked == Some(Again::All) {
                self.wake_engine(now);
            }
            return None;
        };
        self.finish(packet);
        let tcp = Tcp::parse(packet.get(IPV6_HEADER..)?).ok()?;
        let takes_space = tcp.seq_len() > 0;
        self.sent_only_syn = tcp.flags.has(TcpFlags::SYN);
        self.sent_window = tcp.window;
        let len = packet.len();
        if self.sent_only_syn {
            self.note_syn(now, tcp.seq, packet);
        } else if self.peer_window == Some(0) && tcp.payload.len() == 1 {
            // The engine does not count a probe of a closed window as sent.
            self.repair.handle_engine_repeat(now);
        } else if takes_space {
            self.note_sent(now, tcp.seq, tcp.seq.wrapping_add(tcp.seq_len()));
        }
        if self.repair.asked() == Some(Again::All) {
            // Something else was due first: one ACK may have been, anything more is not waited for.
            self.turned_forward = !takes_space && !self.turned_forward;
            if !self.turned_forward {
                self.repair.forget_asked();
            }
        }
        Some(Emitted { len, expects_answer: takes_space })
    }

    fn note_syn(&mut self, now: Instant, seq: u32, packet: &[u8]) {
        self.stats.syns += 1;
        if self.syn.is_empty() {
            self.iss = seq;
            self.snd_max = seq.wrapping_add(1);
            self.syn = SmallVec::from_slice(packet);
            self.syn_sent = Some(now);
        } else {
            self.syn_sent = None;
            self.repair.handle_engine_repeat(now);
        }
    }

    fn note_sent(&mut self, now: Instant, seq: u32, end: u32) {
        let repeat = self.repair.handle_sent(now, seq, end, self.flight());
        self.stats.retransmits += u32::from(repeat != Repeat::No);
        self.stats.timeouts += u32::from(repeat == Repeat::EngineTimeout);
        if before(self.snd_max, end) {
            self.snd_max = end;
        }
    }

    /// Whether the engine wants a turn of sending now, or else when.
    pub(super) fn next_turn(&mut self, now: Instant) -> Turn {
        if self.end.is_none() && self.state() == State::TimeWait {
            // Its rest is a matter of a few bytes, which the netstack keeps.
            self.end = Some(CloseReason::Finished);
        }
        if self.end.is_some() {
            return Turn::Over;
        }
        let mut at = self.iface.poll_at(smol(now), &self.sockets);
        if at.is_none() && self.waits_for_a_window() {
            self.wake_engine(now);
            at = self.iface.poll_at(smol(now), &self.sockets);
        }
        let at = at.map(|at| Instant::from_nanos(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1_000)));
        if at.is_some_and(|at| at <= now) || self.repair.asked() == Some(Again::All) {
            return Turn::Now;
        }
        [at, self.patience(), self.repair.due()].into_iter().flatten().min().map_or(Turn::Quiet, Turn::At)
    }

    /// Ends the flow without a word to the peer.
    pub(super) fn break_off(&mut self, why: CloseReason) {
        self.end.get_or_insert(why);
    }

    /// Why the connection is over, if it is.
    pub(super) fn end(&self) -> Option<CloseReason> {
        self.end
    }

    /// Writes the reset that tells the peer of an abort, and ends the flow.
    pub(super) fn abort(&mut self, out: &mut Vec<u8>) {
        if self.end.replace(CloseReason::Reset).is_some() {
            return;
        }
        match self.state() {
            State::SynSent if self.syn.is_empty() => {}
            State::SynSent => self.write_bare(self.snd_max, TcpFlags::RST, out),
            _ => self.write_bare(self.snd_max, TcpFlags::RST.with(TcpFlags::ACK), out),
        }
    }

    /// The sequence number and the window with which a late segment is acknowledged after the end.
    pub(super) fn last_words(&self) -> (u32, u32, u16) {
        (self.snd_max, self.rcv_nxt(), self.sent_window)
    }

    /// Whether a new SYN with this sequence number shows that the dialler has started over.
    pub(super) fn is_superseded_by(&self, tcp: &Tcp<'_>) -> bool {
        let fresh = tcp.flags.has(TcpFlags::SYN) && !tcp.flags.has(TcpFlags::ACK);
        fresh && self.state() == State::SynReceived && self.irs != Some(tcp.seq)
    }
}
