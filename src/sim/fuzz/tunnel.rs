//! WireGuard sessions and path selection between two honest nodes and a network that may do anything.

use crate::{
    base::{DiscoSecret, Instant, Lane, NodeKey, NodeSecret, PeerIx, RegionId, Rng, SocketIx, Via},
    proto::{
        path::{self, PathState, Paths, PeerAddrs},
        wg::{What, WireGuard},
    },
    wire::wg::MAX_DATAGRAM,
};
use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

const PEER: PeerIx = PeerIx(1);
/// A pair that talks to itself without an end has a bug.
const MAX_TURNS: usize = 10_000;

/// The input as single bytes and byte strings; an exhausted one ends the run.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(u16::from_le_bytes([self.byte()?, self.byte()?]));
        let (string, rest) = self.0.split_at_checked(len).unwrap_or((self.0, &[]));
        self.0 = rest;
        Some(string)
    }

    fn span(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(1 << u64::from(self.byte()? % 21)))
    }
}

/// A packet with a number, as the tunnel carries it.
fn packet(number: u64, len: u8) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet.extend_from_slice(&number.to_be_bytes());
    packet.resize(48 + usize::from(len), 0xee);
    let payload = (packet.len() - 40).to_be_bytes();
    let [.., high, low] = payload;
    if let [first, _, _, _, length_high, length_low, ..] = packet.as_mut_slice() {
        (*first, *length_high, *length_low) = (0x60, high, low);
    }
    packet
}

struct Tunnel {
    nodes: [WireGuard; 2],
    now: Instant,
    /// Datagrams that the network holds: receiver and bytes.
    held: VecDeque<(usize, Vec<u8>)>,
    sent: BTreeSet<Vec<u8>>,
    received: BTreeSet<Vec<u8>>,
}

impl Tunnel {
    fn new() -> Self {
        let mut rng = Rng::from_u64(3);
        let [a, b] = [NodeSecret::generate(&mut rng), NodeSecret::generate(&mut rng)];
        let mut nodes = [WireGuard::new(&a, rng.split()), WireGuard::new(&b, rng.split())];
        for (node, key) in nodes.iter_mut().zip([b.public(), a.public()]) {
            node.add_peer(PEER, key);
        }
        Self { nodes, now: Instant::ZERO, held: VecDeque::new(), sent: BTreeSet::new(), received: BTreeSet::new() }
    }

    fn deliver(&mut self, to: usize, d: &[u8]) {
        let mut plain = [0; MAX_DATAGRAM];
        let Some(node) = self.nodes.get_mut(to % 2) else { return };
        let Ok(opened) = node.open(self.now, d, &mut plain) else { return };
        assert_eq!(opened.peer, PEER);
        if let What::Data(len) = opened.what {
            let content = plain.get(..len).map(<[u8]>::to_vec).unwrap_or_default();
            assert!(self.sent.contains(&content), "the peer never sent this");
            assert!(self.received.insert(content), "the same packet twice");
        }
    }

    fn collect(&mut self) {
        for (side, node) in self.nodes.iter_mut().enumerate() {
            while let Some((_, d, _)) = node.poll_transmit() {
                self.held.push_back((1 - side, d));
            }
            while node.poll_event().is_some() {}
        }
    }

    fn wait(&mut self, span: Duration) {
        let end = self.now + span;
        for turn in 0.. {
            assert!(turn < MAX_TURNS, "time stands still");
            let next = self.nodes.iter().filter_map(WireGuard::poll_timeout).map(|d| d.at).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            self.nodes.iter_mut().for_each(|node| node.handle_timeout(self.now));
            self.collect();
        }
        self.now = end;
    }
}

/// Two WireGuard nodes and a network that drops, repeats, reorders, damages and invents datagrams: nothing that was not
/// sent arrives, nothing arrives twice, and timers always move time on.
///
/// # Panics
/// When one of these is broken.
pub fn wg_datagram(input: &[u8]) {
    let mut input = Input(input);
    let mut tunnel = Tunnel::new();
    while let Some(step) = input.byte() {
        let side = usize::from(step >> 7);
        let Some(node) = tunnel.nodes.get_mut(side) else { return };
        match step & 0x7f {
            0 => node.want_session(tunnel.now, PEER),
            1 => node.retry_handshake(tunnel.now, PEER),
            2 => node.reset_peer(tunnel.now, PEER),
            3 => {
                let Some(seconds) = input.byte() else { return };
                node.set_keepalive(tunnel.now, PEER, Some(Duration::from_secs(seconds.into())));
            }
            4 => {
                let Some(len) = input.byte() else { return };
                let plain = packet(tunnel.sent.len() as u64, len);
                let mut out = [0; MAX_DATAGRAM];
                if let Ok(used) = node.seal(tunnel.now, PEER, &plain, &mut out) {
                    tunnel.sent.insert(plain);
                    tunnel.held.push_back((1 - side, out.get(..used).unwrap_or_default().to_vec()));
                }
            }
            5 => _ = tunnel.held.pop_front(),
            6 => {
                if let Some((to, d)) = tunnel.held.front().cloned() {
                    tunnel.deliver(to, &d);
                }
            }
            7 => tunnel.held.rotate_left(1.min(tunnel.held.len())),
            8 => {
                let (Some(at), Some(bits)) = (input.byte(), input.byte()) else { return };
                if let Some(byte) = tunnel.held.front_mut().and_then(|(_, d)| d.get_mut(usize::from(at))) {
                    *byte ^= bits;
                }
            }
            9 => {
                let Some(d) = input.string() else { return };
                tunnel.deliver(side, d);
            }
            10 => {
                let Some(span) = input.span() else { return };
                tunnel.wait(span);
            }
            _ => {
                if let Some((to, d)) = tunnel.held.pop_front() {
                    tunnel.deliver(to, &d);
                }
            }
        }
        tunnel.collect();
    }
}

/// Addresses of a node: the port tells them apart.
fn endpoint(side: usize, port: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, if side == 0 { 1 } else { 2 }], 1_000 + u16::from(port)))
}

struct Meeting {
    nodes: [Paths; 2],
    keys: [NodeKey; 2],
    now: Instant,
    /// Disco packets that the network holds: receiver, way and bytes.
    held: VecDeque<(usize, Via, Vec<u8>)>,
}

impl Meeting {
    fn new() -> Self {
        let mut rng = Rng::from_u64(4);
        let discos = [DiscoSecret::generate(&mut rng), DiscoSecret::generate(&mut rng)];
        let keys = [7, 8].map(|byte| NodeKey::from([byte; 32]));
        let ([a, b], [key_a, key_b], home) = (discos, keys, RegionId::new(1));
        let others = [(b.public(), key_b), (a.public(), key_a)];
        let mut nodes = [Paths::new(a, key_a, rng.split()), Paths::new(b, key_b, rng.split())];
        for (node, (disco, key)) in nodes.iter_mut().zip(others) {
            node.upsert_peer(Instant::ZERO, PEER, PeerAddrs { node: key, disco, home, endpoints: Vec::new() });
        }
        Self { nodes, keys, now: Instant::ZERO, held: VecDeque::new() }
    }

    fn collect(&mut self) {
        let both = self.nodes.iter_mut().zip(self.keys).enumerate();
        for (side, (node, key)) in both {
            while let Some(event) = node.poll_event() {
                if event == path::Event::WantEndpoints {
                    node.set_own_endpoints(self.now, vec![endpoint(side, 0)]);
                }
            }
            while let Some((lane, d)) = node.poll_transmit() {
                let via = match lane {
                    Lane::Udp { socket, .. } => Via::Udp { socket, from: endpoint(side, 0) },
                    Lane::Relay { region, .. } => Via::Relay { region, from: key },
                };
                self.held.push_back((1 - side, via, d));
            }
        }
        // The network forgets what it cannot hold.
        self.held.truncate(1_000);
    }

    fn wait(&mut self, span: Duration) {
        let end = self.now + span;
        for turn in 0.. {
            assert!(turn < MAX_TURNS, "time stands still");
            let next = self.nodes.iter().filter_map(Paths::poll_timeout).map(|d| d.at).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            self.nodes.iter_mut().for_each(|node| node.handle_timeout(self.now));
            self.collect();
        }
        self.now = end;
    }

    fn step(&mut self, side: usize, step: u8, input: &mut Input<'_>) -> Option<()> {
        let now = self.now;
        let node = self.nodes.get_mut(side)?;
        match step {
            0 => {
                let direct = node.choose(now, PEER).first.is_some_and(|lane| !lane.is_relay());
                node.handle_sent(now, PEER, direct, true);
            }
            1 => {
                let via = Via::Udp { socket: SocketIx::V4, from: endpoint(1 - side, input.byte()?) };
                node.handle_authenticated(now, PEER, &via, true);
            }
            2 | 3 => {
                let via = Via::Relay { region: RegionId::new(1)?, from: *self.keys.get(1 - side)? };
                if step == 2 {
                    node.handle_authenticated(now, PEER, &via, true);
                } else {
                    node.handle_replay(now, &via);
                }
            }
            4 => node.rebind(now),
            5 => node.ping(now, PEER, 1),
            6 => node.set_direct_allowed(now, input.byte()? & 1 == 0),
            7 => node.set_own_endpoints(now, input.string()?.iter().map(|port| endpoint(side, *port)).collect()),
            8 => self.held.rotate_left(1.min(self.held.len())),
            9 => _ = self.held.pop_front(),
            10 => {
                let (at, bits) = (input.byte()?, input.byte()?);
                if let Some(byte) = self.held.front_mut().and_then(|(.., d)| d.get_mut(usize::from(at))) {
                    *byte ^= bits;
                }
            }
            11 => {
                // From another address than the one it was sent from, as behind a NAT.
                let port = input.byte()?;
                if let Some((to, Via::Udp { from, .. }, _)) = self.held.front_mut() {
                    *from = endpoint(1 - *to, port);
                }
            }
            12 => {
                let d = input.string()?;
                let via = Via::Udp { socket: SocketIx::V4, from: endpoint(1 - side, 0) };
                assert_eq!(node.handle_disco(now, &via, d), None, "nobody can seal for us");
            }
            13 => self.wait(input.span()?),
            14 => {
                let (to, via, d) = self.held.front().cloned()?;
                self.nodes.get_mut(to)?.handle_disco(now, &via, &d);
            }
            _ => {
                if let Some((to, via, d)) = self.held.pop_front() {
                    self.nodes.get_mut(to)?.handle_disco(now, &via, &d);
                }
            }
        }
        Some(())
    }
}

/// Two path engines and a network that does as it likes: forged packets prove nothing, timers move time on, the state
/// fits the choice, and in the end a pair that sends nothing falls silent.
///
/// # Panics
/// When one of these is broken.
pub fn path_steps(input: &[u8]) {
    let mut input = Input(input);
    let mut meeting = Meeting::new();
    while let Some(step) = input.byte() {
        if meeting.step(usize::from(step >> 7), step & 0x7f, &mut input).is_none() {
            break;
        }
        meeting.collect();
        for node in &mut meeting.nodes {
            let choice = node.choose(meeting.now, PEER);
            let direct = choice.first.is_some_and(|lane| !lane.is_relay());
            let (state, lane) = node.state(PEER);
            assert_eq!(
                (direct, choice.second.is_some()),
                match state {
                    PathState::None | PathState::Relay => (false, false),
                    PathState::Direct => (true, false),
                    PathState::Doubtful => (true, true),
                }
            );
            assert_eq!(choice.first, lane);
        }
    }
    meeting.held.clear();
    meeting.wait(Duration::from_secs(120));
    assert!(meeting.nodes.iter().all(|node| node.poll_timeout().is_none()), "still busy after two minutes of silence");
}
