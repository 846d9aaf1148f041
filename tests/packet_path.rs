//! The packet path costs no heap allocation: two nodes in one process, all lanes in memory.
//!
//! `cargo test --release --test packet_path -- --nocapture` prints what a packet costs with both ends on one core.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "it measures and prints")]
#![allow(unsafe_code, reason = "an allocator that counts must implement an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::{SocketAddr, SocketAddrV6},
    time::Duration,
};
use tailnet::{
    base::{
        DiscoSecret, FlowId, Instant, Lane, NodeSecret, RegionId, Rng, SocketIx, Via, agent_addresses, client_address, node_id,
    },
    proto::{
        netstack,
        node::{Budget, Config, Event, Node, Role, SendSpace, Turn},
    },
    wire::{
        coord::tailnet::{self as messages, PeerUpdate, PeerUpdateKind},
        derp::{Region, RelayMap, RelayNode},
    },
};
use uuid::Uuid;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator as it came; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System` with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: `at` came from `System` with this layout.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const AGENT: Uuid = Uuid::from_u128(0xa);
const CLIENT: Uuid = Uuid::from_u128(0xc);
/// Datagrams that a lane holds between two turns.
const SLOTS: usize = 256;

/// A lane in memory: a fixed number of slots.
struct Space {
    slots: Vec<[u8; 2_048]>,
    used: Vec<(Lane, usize)>,
}

impl Space {
    fn new() -> Self {
        Self { slots: vec![[0; 2_048]; SLOTS], used: Vec::with_capacity(SLOTS) }
    }
}

impl SendSpace for Space {
    fn room(&self, _: &Lane, _: usize) -> bool {
        self.used.len() < SLOTS
    }

    fn slot(&mut self, _: &Lane, len: usize) -> &mut [u8] {
        &mut self.slots[self.used.len()][..len]
    }

    fn commit(&mut self, lane: &Lane, used: usize) {
        self.used.push((*lane, used));
    }
}

struct Side {
    node: Node,
    space: Space,
    address: SocketAddr,
    announced: Option<messages::Node>,
    flow: Option<FlowId>,
    received: u64,
}

impl Side {
    fn new(id: Uuid, role: Role, address: &str) -> Self {
        let mut rng = Rng::from_u64(id.as_u64_pair().1);
        let addresses = match role {
            Role::Agent => agent_addresses(id).to_vec(),
            Role::Client => vec![client_address(id)],
        };
        let config = Config {
            secret: NodeSecret::generate(&mut rng),
            disco: DiscoSecret::generate(&mut rng),
            node_id: node_id(id),
            addresses,
            role,
            direct: true,
            buffer_bytes: 64 << 20,
        };
        let mut node = Node::new(config, &mut rng);
        node.listen_rest(true);
        let address = address.parse().unwrap();
        Self { node, space: Space::new(), address, announced: None, flow: None, received: 0 }
    }

    fn tell(&mut self, now: Instant, id: Uuid, kind: PeerUpdateKind, node: Option<messages::Node>) {
        let update = PeerUpdate { id: id.as_bytes().to_vec(), kind: kind.into(), node, ..PeerUpdate::default() };
        self.node.handle_peer_update(now, &update);
    }

    fn turn(&mut self, now: Instant) -> bool {
        if self.node.poll_timeout().is_some_and(|d| d.at <= now) {
            self.node.handle_timeout(now);
        }
        if let Some(flow) = self.flow {
            loop {
                let n = self.node.readable(flow).len();
                if n == 0 {
                    break;
                }
                self.node.consume(flow, n);
                self.received += n as u64;
            }
        }
        let before = self.space.used.len();
        while self.node.transmit(now, &mut self.space, &mut Budget::new(SLOTS)) == Turn::More {}
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Announce(node) => self.announced = Some(*node),
                Event::Dialed { flow, .. } => self.flow = Some(flow),
                Event::OpenRelay { region, .. } => self.node.handle_relay_up(now, region),
                Event::Netstack(netstack::Event::Incoming { key, .. }) => self.flow = self.node.accept(now, key),
                _ => {}
            }
        }
        self.space.used.len() > before
    }
}

fn carry(now: Instant, from: &mut Side, to: &mut Side) {
    for (slot, (lane, len)) in from.space.used.drain(..).enumerate() {
        let via = match lane {
            Lane::Udp { .. } => Via::Udp { socket: SocketIx::V4, from: from.address },
            Lane::Relay { region, .. } => Via::Relay { region, from: from.node.key() },
        };
        to.node.handle_datagram(now, via, &from.space.slots[slot][..len]);
    }
}

struct Pair {
    now: Instant,
    client: Side,
    agent: Side,
}

impl Pair {
    /// A connected pair on a direct path.
    fn new() -> Self {
        let now = Instant::ZERO + Duration::from_secs(1);
        let region = RegionId::new(1).unwrap();
        let relay = RelayNode { name: "1a".into(), host: "relay".into(), stun_port: None, ..RelayNode::default() };
        let entry = Region { embedded: true, nodes: vec![relay], ..Region::default() };
        let map = RelayMap { regions: [(region, entry)].into(), ..RelayMap::default() };
        let client = Side::new(CLIENT, Role::Client, "9.0.0.1:1");
        let agent = Side::new(AGENT, Role::Agent, "9.0.0.2:2");
        let mut pair = Self { now, client, agent };
        for side in [&mut pair.client, &mut pair.agent] {
            side.node.set_relay_map(now, &map);
            side.node.set_local_endpoints(now, vec![side.address]);
            side.turn(now);
        }
        let (client, agent) = (pair.client.announced.clone(), pair.agent.announced.clone());
        pair.client.node.add_destination(now, AGENT);
        pair.agent.tell(now, CLIENT, PeerUpdateKind::Node, client);
        pair.client.tell(now, AGENT, PeerUpdateKind::Node, agent);
        pair.client.tell(now, AGENT, PeerUpdateKind::ReadyForHandshake, None);
        let to = SocketAddrV6::new(agent_addresses(AGENT)[0], 22, 0, 0);
        pair.client.node.dial(now, to, now + Duration::from_secs(10));
        pair.run(Duration::from_secs(10));
        assert!(pair.client.flow.is_some() && pair.agent.flow.is_some(), "no connection");
        pair
    }

    /// One exchange in both directions; every step takes 20 µs.
    fn step(&mut self) -> bool {
        self.now += Duration::from_micros(20);
        let mut moved = self.client.turn(self.now);
        carry(self.now, &mut self.client, &mut self.agent);
        moved |= self.agent.turn(self.now);
        carry(self.now, &mut self.agent, &mut self.client);
        moved
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            if !self.step() {
                let wakes = [&self.client, &self.agent].into_iter().filter_map(|s| s.node.poll_timeout()).map(|d| d.at);
                self.now = wakes.min().unwrap_or(end).clamp(self.now, end);
            }
        }
    }

    /// Sends `bytes` from client to agent.
    fn stream(&mut self, bytes: u64) {
        let flow = self.client.flow.unwrap();
        let chunk = [7; 64 << 10];
        let (mut left, end) = (bytes, self.agent.received + bytes);
        while self.agent.received < end {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            left -= self.client.node.write(flow, &chunk[..want]) as u64;
            self.step();
        }
    }
}

#[test]
fn a_packet_in_steady_state_allocates_nothing() {
    let mut pair = Pair::new();
    pair.stream(20_000_000);
    let sent = |pair: &Pair| pair.client.node.counters().data_sent.udp + pair.agent.node.counters().data_sent.udp;
    let (packets, allocations) = (sent(&pair), ALLOCATIONS.with(Cell::get));
    let started = std::time::Instant::now();
    let bytes = 60_000_000;
    pair.stream(bytes);
    let took = started.elapsed();
    let (packets, allocations) = (sent(&pair) - packets, ALLOCATIONS.with(Cell::get) - allocations);
    let counters = pair.client.node.counters();
    println!(
        "packet path: {:.2} Gbit/s with both ends on one core, {} ns a packet, {packets} packets, {allocations} allocations",
        bytes as f64 * 8.0 / took.as_nanos() as f64,
        took.as_nanos() / u128::from(packets),
    );
    assert_eq!(counters.data_sent.relay, 0, "{counters:?}");
    assert_eq!(allocations, 0, "for {packets} packets");
}
