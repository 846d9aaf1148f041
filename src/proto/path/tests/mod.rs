//! Two nodes, a relay and a direct wire in virtual time. In place of WireGuard and TCP: numbered bytes that are
//! acknowledged, repeated after a second or when the engine says so, and dropped when they come twice.

use super::*;
use crate::base::SocketIx;
use std::collections::{BTreeMap, BTreeSet};

mod death;
mod messages;
mod upgrade;

const PEER: PeerIx = PeerIx(3);

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn region(n: u16) -> RegionId {
    RegionId::new(n).unwrap()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    A = 0,
    B = 1,
}

use Side::{A, B};

impl Side {
    fn other(self) -> Self {
        match self {
            A => B,
            B => A,
        }
    }
}

#[derive(Debug, Clone)]
enum Frame {
    Disco(Vec<u8>),
    /// The `serial` stands for WireGuard's counter: two copies of one datagram share it.
    Byte {
        serial: u64,
        byte: u64,
    },
    Ack {
        serial: u64,
        byte: u64,
    },
}

impl Frame {
    fn is_disco(&self) -> bool {
        matches!(self, Self::Disco(_))
    }

    fn len(&self) -> usize {
        match self {
            Self::Disco(d) => d.len(),
            Self::Byte { .. } | Self::Ack { .. } => 100,
        }
    }
}

struct Host {
    paths: Paths,
    node: NodeKey,
    disco: DiscoKey,
    /// The address that its datagrams come from.
    addr: SocketAddr,
    /// What it tells about itself.
    own: Vec<SocketAddr>,
    seen: BTreeSet<u64>,
    /// Bytes without acknowledgement and when they were sent last.
    open: BTreeMap<u64, Instant>,
    read: BTreeMap<u64, Instant>,
    events: Vec<(Instant, Event)>,
    /// Datagrams that left: when, whether through the relay, whether disco.
    sent: Vec<(Instant, bool, bool)>,
    /// Addresses it has sent to, for a firewall that lets only answers in.
    sent_to: BTreeSet<SocketAddr>,
}

type Lose = Box<dyn FnMut(Side, &Frame) -> bool>;

struct World {
    now: Instant,
    hosts: [Host; 2],
    wire: BTreeMap<(Instant, u64), (Side, Via, Frame)>,
    serial: u64,
    next_byte: u64,
    direct: Duration,
    relay: Duration,
    /// What the direct wire swallows, by sender.
    lose: Lose,
    firewall: bool,
    /// Further addresses that lead to a host, and how long that takes.
    aliases: BTreeMap<SocketAddr, (Side, Duration)>,
    steps: u32,
}

impl World {
    /// Both know each other's address and relay; round trips are 40 ms directly and 60 ms by relay.
    fn new() -> Self {
        Self::with_endpoints(true)
    }

    fn with_endpoints(known: bool) -> Self {
        let mut rng = Rng::from_u64(5);
        let mut host = |own: &str| {
            let secret = DiscoSecret::generate(&mut rng);
            let node = crate::base::NodeSecret::generate(&mut rng).public();
            Host {
                node,
                disco: secret.public(),
                paths: Paths::new(secret, node, rng.split()),
                addr: addr(own),
                own: vec![addr(own)],
                seen: BTreeSet::new(),
                open: BTreeMap::new(),
                read: BTreeMap::new(),
                events: Vec::new(),
                sent: Vec::new(),
                sent_to: BTreeSet::new(),
            }
        };
        let hosts = [host("10.0.0.1:4001"), host("10.0.0.2:4002")];
        let mut world = Self {
            now: Instant::ZERO + secs(100),
            hosts,
            wire: BTreeMap::new(),
            serial: 0,
            next_byte: 0,
            direct: ms(20),
            relay: ms(30),
            lose: Box::new(|_, _| false),
            firewall: false,
            aliases: BTreeMap::new(),
            steps: 0,
        };
        for side in [A, B] {
            let addrs = world.addrs(side.other(), known);
            assert!(!world.upsert(side, addrs));
        }
        world
    }

    /// Direct in both directions, with the first bytes exchanged a second ago.
    fn direct() -> Self {
        let mut world = Self::new();
        for _ in 0..10 {
            world.say(A);
            world.say(B);
            world.run(ms(100));
        }
        assert_eq!(world.state(A), PathState::Direct);
        assert_eq!(world.state(B), PathState::Direct);
        world.forget();
        world
    }

    fn host(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[side as usize]
    }

    fn addrs(&self, of: Side, known: bool) -> PeerAddrs {
        let host = &self.hosts[of as usize];
        PeerAddrs {
            node: host.node,
            disco: host.disco,
            home: Some(region(of as u16 + 1)),
            endpoints: if known { host.own.clone() } else { Vec::new() },
        }
    }

    fn upsert(&mut self, at: Side, addrs: PeerAddrs) -> bool {
        let now = self.now;
        self.host(at).paths.upsert_peer(now, PEER, addrs)
    }

    fn state(&self, side: Side) -> PathState {
        self.hosts[side as usize].paths.state(PEER).0
    }

    fn forget(&mut self) {
        for host in &mut self.hosts {
            host.events.clear();
            host.sent.clear();
            host.read.clear();
        }
    }

    fn suspects(&self, side: Side) -> Vec<Instant> {
        self.hosts[side as usize].events.iter().filter(|(_, e)| matches!(e, Event::Suspect { .. })).map(|(at, _)| *at).collect()
    }

    fn changes(&self, side: Side) -> Vec<(Instant, PathState)> {
        self.hosts[side as usize]
            .events
            .iter()
            .filter_map(|(at, e)| match e {
                Event::PathChanged { to, .. } => Some((*at, *to)),
                _ => None,
            })
            .collect()
    }

    /// Sends one new byte and returns its number.
    fn say(&mut self, side: Side) -> u64 {
        self.next_byte += 1;
        let byte = self.next_byte;
        self.send_byte(side, byte);
        byte
    }

    fn send_byte(&mut self, side: Side, byte: u64) {
        let now = self.now;
        self.host(side).open.insert(byte, now);
        self.serial += 1;
        let serial = self.serial;
        self.send_data(side, &Frame::Byte { serial, byte }, true);
    }

    fn send_data(&mut self, side: Side, frame: &Frame, expects_answer: bool) {
        let now = self.now;
        let Choice { first, second } = self.host(side).paths.choose(now, PEER);
        let lanes: Vec<Lane> = [first, second].into_iter().flatten().collect();
        for lane in &lanes {
            self.post(side, *lane, frame.clone());
        }
        let direct = lanes.iter().any(|lane| !lane.is_relay());
        self.host(side).paths.handle_sent(now, PEER, direct, expects_answer);
    }

    fn post(&mut self, from: Side, lane: Lane, frame: Frame) {
        let now = self.now;
        let source = self.host(from).addr;
        let node = self.host(from).node;
        self.host(from).sent.push((now, lane.is_relay(), frame.is_disco()));
        let (latency, via) = match lane {
            Lane::Relay { region, to } => {
                assert_eq!(to, self.host(from.other()).node);
                (self.relay, Via::Relay { region, from: node })
            }
            Lane::Udp { to, .. } => {
                self.host(from).sent_to.insert(to);
                let at_home = (self.host(from.other()).addr == to).then_some(self.direct);
                let alias = self.aliases.get(&to).filter(|(side, _)| *side != from).map(|(_, latency)| *latency);
                let Some(latency) = at_home.or(alias) else { return };
                if (self.lose)(from, &frame) {
                    return;
                }
                (latency, Via::Udp { socket: SocketIx::V4, from: source })
            }
        };
        self.serial += 1;
        self.wire.insert((now + latency, self.serial), (from.other(), via, frame));
    }

    fn flush(&mut self) {
        for side in [A, B] {
            while let Some((lane, d)) = self.host(side).paths.poll_transmit() {
                self.post(side, lane, Frame::Disco(d));
            }
            while let Some(event) = self.host(side).paths.poll_event() {
                let now = self.now;
                self.host(side).events.push((now, event));
                match event {
                    Event::Suspect { .. } => {
                        let open: Vec<u64> = self.host(side).open.keys().copied().collect();
                        open.into_iter().for_each(|byte| self.send_byte(side, byte));
                    }
                    Event::WantEndpoints => {
                        let own = self.host(side).own.clone();
                        self.host(side).paths.set_own_endpoints(now, own);
                    }
                    Event::PathChanged { .. } | Event::Pong { .. } => {}
                }
            }
        }
    }

    fn deliver(&mut self, to: Side, via: &Via, frame: Frame) {
        let now = self.now;
        let answers = |host: &Host| matches!(via, Via::Udp { from, .. } if host.sent_to.contains(from));
        if self.firewall && !via.is_relay() && !answers(self.host(to)) {
            return;
        }
        let (serial, byte, is_ack) = match frame {
            Frame::Disco(d) => {
                self.host(to).paths.handle_disco(now, via, &d);
                return;
            }
            Frame::Byte { serial, byte } => (serial, byte, false),
            Frame::Ack { serial, byte } => (serial, byte, true),
        };
        if !self.host(to).seen.insert(serial) {
            self.host(to).paths.handle_replay(now, via);
            return;
        }
        self.host(to).paths.handle_authenticated(now, PEER, via, true);
        if is_ack {
            self.host(to).open.remove(&byte);
            return;
        }
        self.host(to).read.entry(byte).or_insert(now);
        // What the arrival tells comes before what it causes, as in a node.
        self.flush();
        self.serial += 1;
        let serial = self.serial;
        self.send_data(to, &Frame::Ack { serial, byte }, false);
    }

    /// Lets `span` pass.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.flush();
            self.steps += 1;
            assert!(self.steps < 2_000_000, "time stands still");
            let arrival = self.wire.first_key_value().map(|(&(at, _), _)| at);
            let timer = self.hosts.iter().filter_map(|h| h.paths.poll_timeout()).map(|d| d.at).min();
            let repeat = self.hosts.iter().flat_map(|h| h.open.values()).map(|at| *at + secs(1)).min();
            let Some(next) = [arrival, timer, repeat].into_iter().flatten().min().filter(|&at| at <= end) else { break };
            self.now = self.now.max(next);
            let now = self.now;
            if arrival == Some(next) {
                let (_, (to, via, frame)) = self.wire.pop_first().unwrap();
                self.deliver(to, &via, frame);
                continue;
            }
            for side in [A, B] {
                self.host(side).paths.handle_timeout(now);
                let late: Vec<u64> =
                    self.host(side).open.iter().filter(|(_, at)| now - **at >= secs(1)).map(|(byte, _)| *byte).collect();
                late.into_iter().for_each(|byte| self.send_byte(side, byte));
            }
        }
        self.now = end;
    }

    /// Runs until both paths are direct; the time that took.
    fn run_until_direct(&mut self, limit: Duration, mut talk: impl FnMut(&mut Self)) -> Duration {
        let start = self.now;
        while self.state(A) != PathState::Direct || self.state(B) != PathState::Direct {
            assert!(self.now - start < limit, "not direct after {limit:?}: {:?} {:?}", self.state(A), self.state(B));
            talk(self);
            self.run(ms(10));
        }
        self.now - start
    }

    /// Cuts the direct wire for datagrams of these senders.
    fn cut(&mut self, senders: &'static [Side]) {
        self.lose = Box::new(move |from, _| senders.contains(&from));
    }

    fn repair(&mut self) {
        self.lose = Box::new(|_, _| false);
    }

    fn relayed_data(&self, side: Side) -> usize {
        self.hosts[side as usize].sent.iter().filter(|(_, relay, disco)| *relay && !*disco).count()
    }
}
