//! The embedded stack against a peer that may send anything, with an owner who may do anything.

use crate::{
    base::{FlowId, Instant, PeerIx, Rng},
    proto::netstack::{CloseReason, Config, Event, IncomingKey, Netstack, PingKind},
    wire::ip::{Ipv6, MTU, Tcp, TcpFlags, Udp, checksum_is_right, protocol},
};
use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

const PEER: PeerIx = PeerIx(1);
const OURS: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);
const THEIRS: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 2);
/// A stack that sends without an end has a bug.
const MAX_PACKETS: usize = 20_000;

/// The input byte by byte; an exhausted one ends the run.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.byte()?);
        let (string, rest) = self.0.split_at_checked(len).unwrap_or((self.0, &[]));
        self.0 = rest;
        Some(string)
    }

    /// A distance in sequence space: mostly small, some far.
    fn distance(&mut self) -> Option<u32> {
        Some(match self.byte()? {
            0 => 1 << 31,
            1 => u32::from(self.word()?) << 16,
            2 => u32::from(self.word()?),
            3 => u32::from(self.word()?).wrapping_neg(),
            near => u32::from(near).wrapping_sub(128),
        })
    }
}

/// What the peer knows of a connection from the stack's own segments.
#[derive(Debug, Clone, Copy)]
struct Seen {
    next: u32,
    acked: u32,
}

struct Run {
    stack: Netstack,
    now: Instant,
    open: bool,
    flows: Vec<FlowId>,
    requests: Vec<IncomingKey>,
    seen: BTreeMap<(u16, u16), Seen>,
}

impl Run {
    fn new() -> Self {
        let mut stack = Netstack::new(Config { budget_bytes: 0 }, Rng::from_u64(9));
        stack.set_addresses(vec![OURS]);
        stack.listen(22);
        stack.udp_bind(Some(53));
        Self { stack, now: Instant::ZERO, open: true, flows: Vec::new(), requests: Vec::new(), seen: BTreeMap::new() }
    }

    /// Drains the stack and checks every packet of it.
    fn drain(&mut self) {
        let mut buf = [0; MTU];
        let open = self.open;
        for n in 0.. {
            assert!(n < MAX_PACKETS, "the stack sends without an end");
            let Some(packet) = self.stack.poll_transmit(self.now, &mut buf, &mut |_, _| open) else { break };
            assert!(open && packet.peer == PEER && packet.len <= MTU);
            let ip = Ipv6::parse(buf.get(..packet.len).unwrap_or_default());
            let Ok(ip) = ip else { panic!("no IPv6 packet: {ip:?}") };
            assert_eq!((ip.src, ip.hop_limit), (OURS, 64));
            assert!(ip.next_header == protocol::TSMP || checksum_is_right(&ip));
            if ip.next_header == protocol::TCP {
                self.observe(&ip);
            }
        }
        while let Some(event) = self.stack.poll_event() {
            if let Event::Incoming { key, .. } = event {
                self.requests.push(key);
            }
        }
    }

    /// A deadline in the past is over after one call.
    fn settle(&mut self) {
        self.drain();
        for _ in 0..3 {
            if self.stack.poll_timeout().is_none_or(|deadline| deadline.at > self.now) {
                return;
            }
            self.stack.handle_timeout(self.now);
            self.drain();
        }
        panic!("{:?} has passed", self.stack.poll_timeout());
    }

    fn observe(&mut self, ip: &Ipv6<'_>) {
        let Ok(tcp) = Tcp::parse(ip.payload) else { panic!("a broken segment") };
        let seen = Seen { next: tcp.seq.wrapping_add(tcp.seq_len()), acked: tcp.ack };
        self.seen.insert((tcp.src_port, tcp.dst_port), seen);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.stack.handle_timeout(self.now);
    }

    fn flow(&self, n: u8) -> Option<FlowId> {
        self.flows.get(usize::from(n) % self.flows.len().max(1)).copied()
    }

    /// A segment for a connection that the stack has, near to what it expects.
    fn segment(&mut self, input: &mut Input<'_>) -> Option<()> {
        let pick = usize::from(input.byte()?);
        let ((ours, theirs), seen) = self
            .seen
            .iter()
            .nth(pick % self.seen.len().max(1))
            .map_or(((22, 9_000), Seen { next: 0, acked: 0 }), |(k, s)| (*k, *s));
        let (seq, ack) = (seen.acked.wrapping_add(input.distance()?), seen.next.wrapping_add(input.distance()?));
        let (flags, window, fill) = (TcpFlags(input.byte()?), input.word()?, usize::from(input.byte()?) * 5);
        let options = input.string()?;
        let options = options.get(..(options.len() / 4 * 4).min(40)).unwrap_or_default();
        let payload = vec![0x5a; if fill > 1_220 { 0 } else { fill }];
        let tcp = Tcp { src_port: theirs, dst_port: ours, seq, ack, flags, window, options, payload: &payload };
        let mut packet = Vec::new();
        tcp.write(THEIRS, OURS, &mut packet);
        self.stack.handle_packet(self.now, PEER, &packet);
        Some(())
    }

    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        let now = self.now;
        match input.byte()? % 20 {
            0 => self.stack.handle_packet(now, PEER, input.string()?),
            1 => {
                // Anything behind an honest IPv6 header.
                let (next_header, payload) = (input.byte()?, input.string()?);
                let ip = Ipv6 { traffic_class: 0, flow_label: 0, next_header, hop_limit: 64, src: THEIRS, dst: OURS, payload };
                let mut packet = Vec::new();
                ip.write(&mut packet);
                self.stack.handle_packet(now, PEER, &packet);
            }
            2..=6 => self.segment(input)?,
            7 => self.pass(Duration::from_millis(1 << u64::from(input.byte()? % 21))),
            8 => {
                let remote = SocketAddrV6::new(THEIRS, input.word()? % 4, 0, 0);
                let flow = self.stack.dial(now, PEER, OURS, remote);
                self.flows.push(flow);
            }
            9 => {
                if let Some(key) = self.requests.pop()
                    && let Some(flow) = self.stack.accept(now, key)
                {
                    self.flows.push(flow);
                }
            }
            10 => {
                if let Some(key) = self.requests.pop() {
                    self.stack.refuse(key);
                }
            }
            11 => {
                let (flow, len) = (self.flow(input.byte()?)?, usize::from(input.word()?));
                let room = self.stack.room(flow);
                assert!(self.stack.write(flow, &vec![7; len]) <= room);
            }
            12 => {
                let flow = self.flow(input.byte()?)?;
                let len = self.stack.readable(flow).len().min(usize::from(input.word()?));
                self.stack.consume(flow, len);
            }
            13 => self.stack.close_write(self.flow(input.byte()?)?),
            14 => self.stack.release(now, self.flow(input.byte()?)?),
            15 => self.stack.abort(now, self.flow(input.byte()?)?),
            16 => self.stack.kick_peer(now, PEER),
            17 => {
                self.open = !self.open;
                self.stack.listen_rest(self.open);
            }
            18 => match input.byte()? {
                0 => self.stack.reset_peer(now, PEER, CloseReason::PeerRestarted),
                n if n < 128 => {
                    _ = self.stack.ping(now, PEER, OURS, THEIRS, if n % 2 == 0 { PingKind::Tsmp } else { PingKind::Icmp })
                }
                _ => {
                    let mut packet = Vec::new();
                    let (from, to) = (SocketAddrV6::new(THEIRS, 1, 0, 0), SocketAddrV6::new(OURS, 53, 0, 0));
                    Udp::write(from, to, input.string()?, &mut packet);
                    self.stack.handle_packet(now, PEER, &packet);
                }
            },
            _ => {
                // A fresh SYN.
                let (src_port, dst_port, seq) = (input.word()? % 8 + 1, u16::from(input.byte()?), u32::from(input.word()?));
                let options = [2, 4, 4, 0xc4, 1, 1, 4, 2, 1, 3, 3, 7];
                let tcp = Tcp {
                    src_port,
                    dst_port,
                    seq,
                    ack: 0,
                    flags: TcpFlags::SYN,
                    window: 24_320,
                    options: &options,
                    payload: &[],
                };
                let mut packet = Vec::new();
                tcp.write(THEIRS, OURS, &mut packet);
                self.stack.handle_packet(now, PEER, &packet);
            }
        }
        Some(())
    }
}

/// Packets and the owner's wishes in any order: no panic, only valid packets of at most 1,280 bytes, no sending without
/// an end, no deadline that stays in the past; and after the owner lets go of everything, quiet.
pub fn ip_demux(bytes: &[u8]) {
    let (mut run, mut input) = (Run::new(), Input(bytes));
    while !input.0.is_empty() {
        // A step that names a flow when there is none does nothing.
        let _ = run.step(&mut input);
        run.settle();
    }
    run.open = true;
    run.stack.listen_rest(false);
    for flow in run.flows.clone() {
        run.stack.release(run.now, flow);
    }
    run.requests.drain(..).for_each(|key| run.stack.refuse(key));
    for _ in 0..200 {
        run.drain();
        let Some(deadline) = run.stack.poll_timeout() else { return };
        let wait = deadline.at.saturating_duration_since(run.now).max(Duration::from_millis(1));
        run.pass(wait);
    }
    panic!("the stack is never quiet: {:?}", run.stack.poll_timeout());
}
