//! Two nodes joined by one lane, without a network between them. Whole networks: `crate::sim`'s tests.

use super::*;
use crate::{
    base::{agent_addresses, client_address},
    proto::netstack::ReadState,
    wire::{
        coord::tailnet::{self, PeerUpdate, PeerUpdateKind},
        derp::{Region, RelayMap, RelayNode},
        wg::Message,
    },
};
use std::{collections::BTreeMap, net::SocketAddrV6, time::Duration};

const AGENT: Uuid = Uuid::from_u128(0xa);
const CLIENT: Uuid = Uuid::from_u128(0xc);

#[test]
fn a_packet_from_a_source_that_is_not_the_peers_is_dropped() {
    let mut pair = Pair::new();
    pair.introduce();
    // The agent is told of another address than the one that the client uses.
    let mut node = pair.client.announced.clone().unwrap();
    node.allowed_ips = vec!["fd7a:115c:a1e0::bad/128".into()];
    pair.agent.tell(pair.now, CLIENT, PeerUpdateKind::Node, Some(node));
    let dial = pair.dial(22);
    pair.run(Duration::from_secs(20));
    assert_eq!(pair.agent.incoming.len(), 0);
    assert!(pair.agent.node.counters().drops.foreign_source > 0);
    assert_eq!(pair.client.failed, [(dial, DialFailure::NoAnswer)]);
}

#[test]
fn a_lane_without_room_pauses_its_flows_and_drops_nothing() {
    let mut pair = Pair::new();
    let flow = pair.connected();
    pair.client.lanes.open = false;
    assert_eq!(pair.client.node.write(flow, &[7; 5_000]), 5_000);
    assert_eq!(pair.client.transmit(pair.now), Turn::Blocked);
    pair.run(Duration::from_millis(50));
    assert_eq!(pair.agent.received, 0);
    pair.client.lanes.open = true;
    pair.run(Duration::from_millis(50));
    assert_eq!(pair.agent.received, 5_000);
    assert_eq!(pair.client.node.flow_stats(flow).unwrap().retransmits, 0);
}

#[test]
fn a_handshake_waits_for_its_relay_and_leaves_once() {
    let mut pair = Pair::new();
    pair.client.lanes.open = false;
    pair.introduce();
    pair.dial(22);
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.agent.node.counters().responses_sent, 0);
    pair.client.lanes.open = true;
    pair.run(Duration::from_millis(100));
    assert_eq!(pair.client.dialed.len(), 1);
    assert_eq!(pair.agent.node.counters().responses_sent, 1);
    assert_eq!(pair.client.node.counters().syns_sent, 1);
}

#[test]
fn a_dial_waits_for_its_peer_until_the_deadline() {
    let mut pair = Pair::new();
    let early = pair.dial(22);
    pair.run(Duration::from_secs(1));
    assert!(pair.client.dialed.is_empty());
    pair.introduce();
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.client.dialed.first().map(|(dial, _)| *dial), Some(early));

    let mut alone = Pair::new();
    let dial = alone.dial(22);
    alone.run(Duration::from_secs(20));
    assert_eq!(alone.client.failed, [(dial, DialFailure::UnknownPeer)]);
    assert_eq!(alone.client.node.poll_timeout(), None);
}

#[test]
fn a_dial_tells_a_silent_peer_from_a_refused_port() {
    let mut pair = Pair::new();
    pair.introduce();
    pair.agent.lanes.open = false;
    let silent = pair.dial(22);
    pair.run(Duration::from_secs(20));
    assert_eq!(pair.client.failed, [(silent, DialFailure::NoSession)]);
    pair.agent.lanes.open = true;
    pair.agent.accepts = false;
    let refused = pair.dial(22);
    pair.run(Duration::from_secs(8));
    assert_eq!(pair.client.failed.last(), Some(&(refused, DialFailure::Refused)));
    let cancelled = pair.dial(22);
    pair.client.node.cancel_dial(pair.now, cancelled);
    pair.run(Duration::from_secs(20));
    assert_eq!(pair.client.failed.len(), 2);
}

#[test]
fn another_disco_key_ends_the_session_and_the_stream_goes_on() {
    let mut pair = Pair::new();
    let flow = pair.connected();
    pair.run(Duration::from_secs(1));
    let sessions = pair.client.node.counters().initiations_sent;
    let mut node = pair.agent.announced.clone().unwrap();
    node.disco = DiscoSecret::generate(&mut Rng::from_u64(99)).public().to_text();
    pair.client.tell(pair.now, AGENT, PeerUpdateKind::Node, Some(node));
    pair.client.node.write(flow, b"x");
    pair.run(Duration::from_millis(100));
    assert_eq!(pair.client.node.counters().initiations_sent, sessions + 1);
    assert_eq!(pair.agent.received, 1);
}

#[test]
fn another_node_key_resets_every_flow_of_the_peer() {
    let mut pair = Pair::new();
    let flow = pair.connected();
    let mut node = pair.agent.announced.clone().unwrap();
    node.key = NodeSecret::generate(&mut Rng::from_u64(98)).public().to_binary();
    pair.client.tell(pair.now, AGENT, PeerUpdateKind::Node, Some(node));
    pair.run(Duration::from_millis(1));
    assert_eq!(pair.client.node.read_state(flow), ReadState::Reset);
    assert_eq!(pair.client.gone, [Gone::Restarted]);
}

#[test]
fn a_node_announces_once_what_changed_together_and_nothing_without_home() {
    let mut side = Side::new(CLIENT, Role::Client, true);
    let now = Instant::ZERO;
    side.node.set_local_endpoints(now, vec!["192.168.0.1:7".parse().unwrap()]);
    side.drain(now);
    assert_eq!(side.announcements, 0);
    side.node.set_relay_map(now, &map());
    side.node.set_local_endpoints(now, vec!["192.168.0.2:7".parse().unwrap()]);
    side.drain(now);
    side.node.set_local_endpoints(now, vec!["192.168.0.2:7".parse().unwrap()]);
    side.drain(now);
    assert_eq!(side.announcements, 1);
    let node = side.announced.unwrap();
    assert_eq!((node.preferred_derp, node.endpoints), (1, vec!["192.168.0.2:7".to_owned()]));
    assert_eq!(node.allowed_ips, [format!("{}/128", client_address(CLIENT))]);
}

#[test]
fn a_relays_first_latency_is_announced_and_another_value_is_not() {
    let mut side = Side::new(CLIENT, Role::Client, false);
    let mut now = Instant::ZERO;
    side.node.set_relay_map(now, &map());
    side.node.handle_timeout(now);
    let first = std::iter::from_fn(|| side.node.poll_event()).find_map(|event| match event {
        Event::Announce(node) => Some(node.derp_latency),
        _ => None,
    });
    assert_eq!(first, Some(BTreeMap::new()), "the home is announced before anything is measured");
    for latency in [1, 2] {
        side.latency = Duration::from_millis(latency);
        side.node.handle_relay_latency(now, region(), Some(side.latency));
        side.drain(now);
        let end = now + Duration::from_secs(30);
        while let Some(deadline) = side.node.poll_timeout().filter(|deadline| deadline.at < end) {
            now = now.max(deadline.at);
            side.node.handle_timeout(now);
            side.drain(now);
        }
        assert_eq!(side.announcements, 1);
        assert_eq!(side.announced.as_ref().map(|node| node.derp_latency["1-v4"]), Some(0.001));
        side.node.handle_link_change(now);
    }
    assert!(side.measures > 0, "the second value was measured");
}

#[test]
fn a_node_without_direct_paths_announces_no_endpoint() {
    let mut side = Side::new(CLIENT, Role::Client, false);
    let now = Instant::ZERO;
    side.node.set_local_endpoints(now, vec!["192.168.0.1:7".parse().unwrap()]);
    side.node.set_relay_map(now, &map());
    side.drain(now);
    assert_eq!(side.announced.as_ref().map(|n| n.endpoints.len()), Some(0));
    side.node.set_direct(now, true);
    side.drain(now);
    assert_eq!(side.announced.as_ref().map(|n| n.endpoints.len()), Some(1));
}

#[test]
fn an_agent_says_ready_for_every_node_and_a_client_waits_for_it() {
    let mut pair = Pair::new();
    let announced = pair.exchange();
    pair.dial(22);
    pair.client.tell(pair.now, AGENT, PeerUpdateKind::Node, Some(announced.1));
    pair.run(Duration::from_secs(4));
    assert_eq!(pair.client.node.counters().initiations_sent, 0);
    pair.agent.tell(pair.now, CLIENT, PeerUpdateKind::Node, Some(announced.0));
    pair.run(Duration::ZERO);
    assert_eq!(pair.agent.ready, [CLIENT]);
    pair.client.tell(pair.now, AGENT, PeerUpdateKind::ReadyForHandshake, None);
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.client.dialed.len(), 1);
    assert_eq!(pair.client.node.counters().initiations_sent, 1);
}

#[test]
fn a_handshake_that_runs_ahead_of_its_senders_announcement_is_answered_when_that_comes() {
    let mut pair = Pair::new();
    let (client, agent) = pair.exchange();
    pair.client.tell(pair.now, AGENT, PeerUpdateKind::Node, Some(agent));
    pair.client.tell(pair.now, AGENT, PeerUpdateKind::ReadyForHandshake, None);
    pair.dial(22);
    pair.run(Duration::from_millis(500));
    assert!(pair.client.dialed.is_empty());
    pair.agent.tell(pair.now, CLIENT, PeerUpdateKind::Node, Some(client));
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.client.dialed.len(), 1);
    assert_eq!(pair.client.node.counters().initiations_sent, 1);
}

#[test]
fn junk_and_damaged_datagrams_are_counted_and_change_nothing() {
    let mut pair = Pair::new();
    let flow = pair.connected();
    pair.client.node.write(flow, &[1; 100]);
    pair.client.transmit(pair.now);
    let (_, mut sealed) = pair.client.lanes.sent.pop_back().unwrap();
    let via = Via::Relay { region: region(), from: pair.client.node.key() };
    let mut rng = Rng::from_u64(5);
    for _ in 0..1_000 {
        let at = rng.below(sealed.len() as u64) as usize;
        sealed[at] ^= 1 << rng.below(8);
        let cut = rng.below(sealed.len() as u64 + 1) as usize;
        pair.agent.node.handle_datagram(pair.now, via, &sealed[..cut]);
    }
    let drops = pair.agent.node.counters().drops;
    assert!(drops.junk > 0 && drops.wireguard > 0, "{drops:?}");
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.agent.received, 100);
}

fn region() -> RegionId {
    RegionId::new(1).unwrap()
}

fn map() -> RelayMap {
    let node = RelayNode { name: "1a".into(), host: "relay".into(), stun_port: None, ..RelayNode::default() };
    let region_1 = Region { embedded: true, nodes: vec![node], ..Region::default() };
    RelayMap { regions: [(region(), region_1)].into(), ..RelayMap::default() }
}

/// A relay connection without a relay.
#[derive(Default)]
struct Lanes {
    open: bool,
    sent: VecDeque<(Lane, Vec<u8>)>,
    slot: Vec<u8>,
}

impl SendSpace for Lanes {
    fn room(&self, lane: &Lane, _: usize) -> bool {
        self.open && lane.is_relay()
    }

    fn slot(&mut self, _: &Lane, len: usize) -> &mut [u8] {
        self.slot.resize(len, 0);
        &mut self.slot
    }

    fn commit(&mut self, lane: &Lane, used: usize) {
        self.sent.push_back((*lane, self.slot[..used].to_vec()));
    }
}

/// One node with what its owner has seen.
struct Side {
    node: Node,
    lanes: Lanes,
    announced: Option<tailnet::Node>,
    announcements: usize,
    /// What the relay's latency is found to be, and how often it was asked for.
    latency: Duration,
    measures: usize,
    ready: Vec<Uuid>,
    dialed: Vec<(DialId, crate::base::FlowId)>,
    failed: Vec<(DialId, DialFailure)>,
    incoming: Vec<netstack::IncomingKey>,
    accepts: bool,
    flows: Vec<crate::base::FlowId>,
    received: usize,
    gone: Vec<Gone>,
}

impl Side {
    fn new(id: Uuid, role: Role, direct: bool) -> Self {
        let mut rng = Rng::from_u64(id.as_u64_pair().1);
        let addresses = match role {
            Role::Agent => agent_addresses(id).to_vec(),
            Role::Client => vec![client_address(id)],
        };
        let config = Config {
            secret: NodeSecret::generate(&mut rng),
            disco: DiscoSecret::generate(&mut rng),
            node_id: 1,
            addresses,
            role,
            direct,
            buffer_bytes: 64 << 20,
        };
        let mut node = Node::new(config, &mut rng);
        node.listen_rest(true);
        Self {
            node,
            lanes: Lanes { open: true, ..Lanes::default() },
            announced: None,
            announcements: 0,
            latency: Duration::from_millis(1),
            measures: 0,
            ready: Vec::new(),
            dialed: Vec::new(),
            failed: Vec::new(),
            incoming: Vec::new(),
            accepts: true,
            flows: Vec::new(),
            received: 0,
            gone: Vec::new(),
        }
    }

    fn tell(&mut self, now: Instant, id: Uuid, kind: PeerUpdateKind, node: Option<tailnet::Node>) {
        let update = PeerUpdate { id: id.as_bytes().to_vec(), kind: kind.into(), node, ..PeerUpdate::default() };
        self.node.handle_peer_update(now, &update);
    }

    fn transmit(&mut self, now: Instant) -> Turn {
        self.node.transmit(now, &mut self.lanes, &mut Budget::new(1_000))
    }

    fn drain(&mut self, now: Instant) {
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Announce(node) => {
                    self.announcements += 1;
                    self.announced = Some(*node);
                }
                Event::Ready(ids) => self.ready.extend(ids),
                Event::Dialed { dial, flow } => self.dialed.push((dial, flow)),
                Event::DialFailed { dial, why } => self.failed.push((dial, why)),
                Event::PeerGone { why, .. } => self.gone.push(why),
                Event::OpenRelay { region, .. } => self.node.handle_relay_up(now, region),
                Event::MeasureRelay { region } => {
                    self.measures += 1;
                    self.node.handle_relay_latency(now, region, Some(self.latency));
                }
                Event::Netstack(netstack::Event::Incoming { key, .. }) => {
                    self.incoming.push(key);
                    if self.accepts {
                        self.flows.extend(self.node.accept(now, key));
                    } else {
                        self.node.refuse(key);
                    }
                }
                _ => {}
            }
        }
        for flow in self.flows.clone() {
            let n = self.node.readable(flow).len();
            self.received += n;
            self.node.consume(flow, n);
        }
    }
}

/// A client and an agent; what one sends reaches the other at once.
struct Pair {
    now: Instant,
    client: Side,
    agent: Side,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::ZERO + Duration::from_secs(1);
        let (mut client, mut agent) = (Side::new(CLIENT, Role::Client, false), Side::new(AGENT, Role::Agent, false));
        client.node.add_destination(now, AGENT);
        for side in [&mut client, &mut agent] {
            side.node.set_relay_map(now, &map());
            side.drain(now);
        }
        Self { now, client, agent }
    }

    fn exchange(&mut self) -> (tailnet::Node, tailnet::Node) {
        let take = |side: &mut Side| side.announced.clone().expect("a node with a home announces itself");
        (take(&mut self.client), take(&mut self.agent))
    }

    /// Tells both of each other, and the client that the agent is ready.
    fn introduce(&mut self) {
        let (client, agent) = self.exchange();
        self.agent.tell(self.now, CLIENT, PeerUpdateKind::Node, Some(client));
        self.client.tell(self.now, AGENT, PeerUpdateKind::Node, Some(agent));
        self.client.tell(self.now, AGENT, PeerUpdateKind::ReadyForHandshake, None);
    }

    fn dial(&mut self, port: u16) -> DialId {
        let [address, _] = agent_addresses(AGENT);
        self.client.node.dial(self.now, SocketAddrV6::new(address, port, 0, 0), self.now + Duration::from_secs(15))
    }

    fn connected(&mut self) -> crate::base::FlowId {
        self.introduce();
        self.dial(22);
        self.run(Duration::from_millis(10));
        self.client.dialed.first().map(|(_, flow)| *flow).expect("it connects at once")
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..20_000 {
            for _ in 0..100 {
                let before = self.client.lanes.sent.len() + self.agent.lanes.sent.len();
                for side in [&mut self.client, &mut self.agent] {
                    side.node.handle_timeout(self.now);
                    side.drain(self.now);
                    side.transmit(self.now);
                    side.drain(self.now);
                }
                let moved = self.client.lanes.sent.len() + self.agent.lanes.sent.len();
                carry(self.now, &mut self.client, &mut self.agent);
                carry(self.now, &mut self.agent, &mut self.client);
                if before == 0 && moved == 0 {
                    break;
                }
            }
            let next = [&self.client, &self.agent].into_iter().filter_map(|side| side.node.poll_timeout()).min();
            match next.filter(|deadline| deadline.at <= end) {
                Some(deadline) => self.now = self.now.max(deadline.at),
                None => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("time stands still at {:?}", self.now);
    }
}

fn carry(now: Instant, from: &mut Side, to: &mut Side) {
    let via = Via::Relay { region: region(), from: from.node.key() };
    for (lane, bytes) in from.lanes.sent.drain(..) {
        if lane != (Lane::Relay { region: region(), to: to.node.key() }) {
            continue;
        }
        assert!(Message::parse(&bytes).is_ok() || crate::wire::disco::looks_like(&bytes));
        to.node.handle_datagram(now, via, &bytes);
    }
}
