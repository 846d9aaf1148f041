//! Our client, server and coordinator together, in virtual time.

use super::super::{
    Auth, CallError, CallId, ClientEvent, ClientRole, ClientSession, CloseReason, ConnId, Coordinator, Death, Delivery,
    ServerCall, ServerEvent, ServerRole, ServerSession,
};
use crate::{
    base::{Deadline, Instant, Rng, WallTime, client_address},
    wire::coord::{
        agent,
        drpc::RpcError,
        tailnet::{self, DerpMap, Node, PeerUpdateKind, RefreshResumeTokenResponse},
    },
};
use prost::Message as _;
use std::{collections::BTreeMap, time::Duration};
use uuid::Uuid;

const START: Instant = Instant::ZERO;
const AGENT: Uuid = Uuid::from_u128(0xa1 << 64 | 0xa1);
const CLIENT: Uuid = Uuid::from_u128(0xc1 << 64 | 0xc1);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One socket: both sessions and the glue that a server has around its end.
struct Socket {
    client: ClientSession,
    server: ServerSession,
    calls: BTreeMap<ServerCall, ConnId>,
    peer: Uuid,
    auth: Auth,
    /// What the client was told.
    news: Vec<ClientEvent>,
    dead: Option<Death>,
    alive: usize,
    /// Unary calls that the test answers by itself.
    held: Vec<(ServerCall, String)>,
}

impl Socket {
    fn new(now: Instant, peer: Uuid, auth: Auth) -> Self {
        let (client, server) = match auth {
            Auth::Agent => (ClientRole::Agent, ServerRole::Agent),
            Auth::Client { .. } | Auth::All => (ClientRole::Client, ServerRole::Client),
        };
        Self {
            client: ClientSession::new(client, now),
            server: ServerSession::new(server, now),
            calls: BTreeMap::new(),
            peer,
            auth,
            news: Vec::new(),
            dead: None,
            alive: 0,
            held: Vec::new(),
        }
    }

    /// A fresh socket for the same client.
    fn redial(&mut self, now: Instant) {
        let role = if self.auth == Auth::Agent { ServerRole::Agent } else { ServerRole::Client };
        self.server = ServerSession::new(role, now);
        self.calls.clear();
        self.dead = None;
        self.client.restart(now);
    }

    fn updates(&mut self) -> Vec<(Uuid, PeerUpdateKind)> {
        let of = |event: &ClientEvent| match event {
            ClientEvent::PeerUpdate(u) => Some((Uuid::from_slice(&u.id).unwrap(), u.kind())),
            _ => None,
        };
        let updates = self.news.iter().filter_map(of).collect();
        self.news.retain(|e| of(e).is_none());
        updates
    }

    fn reply(&mut self, call: CallId) -> Option<Result<Vec<u8>, CallError>> {
        let at = self.news.iter().position(|e| matches!(e, ClientEvent::Reply { call: c, .. } if *c == call))?;
        match self.news.remove(at) {
            ClientEvent::Reply { result, .. } => Some(result),
            _ => None,
        }
    }

    fn closed(&self) -> Option<&CloseReason> {
        self.news.iter().find_map(|e| match e {
            ClientEvent::Closed(why) => Some(why),
            _ => None,
        })
    }
}

struct World {
    now: Instant,
    coordinator: Coordinator,
    sockets: Vec<Socket>,
    map: DerpMap,
    rng: Rng,
}

impl World {
    fn new() -> Self {
        let map = DerpMap { home_params: Some(tailnet::HomeParams::default()), ..Default::default() };
        Self { now: START, coordinator: Coordinator::new(), sockets: Vec::new(), map, rng: Rng::from_u64(11) }
    }

    fn add(&mut self, peer: Uuid, auth: Auth) -> usize {
        self.sockets.push(Socket::new(self.now, peer, auth));
        self.sockets.len() - 1
    }

    /// Carries bytes, cut at random, until nothing moves.
    fn settle(&mut self) {
        let now = self.now;
        loop {
            let mut moved = false;
            for socket in &mut self.sockets {
                let mut up = Vec::new();
                socket.client.poll_output(&mut up);
                let mut down = Vec::new();
                socket.server.poll_output(&mut down);
                moved |= !up.is_empty() || !down.is_empty();
                for (bytes, to_server) in [(up, true), (down, false)] {
                    let mut rest = bytes.as_slice();
                    while !rest.is_empty() {
                        let (part, later) = rest.split_at(rest.len().min(1 + self.rng.below(2_000) as usize));
                        if to_server {
                            socket.server.handle_bytes(now, part);
                        } else {
                            socket.client.handle_bytes(now, part);
                        }
                        rest = later;
                    }
                }
                while let Some(event) = socket.client.poll_event() {
                    moved = true;
                    socket.news.push(event);
                }
                while let Some(event) = socket.server.poll_event() {
                    moved = true;
                    serve(socket, &mut self.coordinator, &self.map, event);
                }
                for (call, conn) in &socket.calls {
                    while socket.server.coordinate_has_room(*call) {
                        match self.coordinator.poll(*conn) {
                            Some(Delivery::Response(response)) => socket.server.send_coordinate(*call, &response),
                            Some(Delivery::End) => socket.server.close_coordinate(*call),
                            None => break,
                        }
                        moved = true;
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Runs timers up to `until`.
    fn run(&mut self, until: Instant) {
        self.settle();
        loop {
            let due = |s: &Socket| Deadline::earliest(s.client.poll_timeout(), s.server.poll_timeout());
            let next = self.sockets.iter().filter_map(due).min().filter(|d| d.at <= until);
            let Some(next) = next else { break };
            assert!(next.at > self.now || self.now == START, "{next:?} does not go away");
            self.now = next.at.max(self.now);
            for socket in &mut self.sockets {
                socket.client.handle_timeout(self.now);
                socket.server.handle_timeout(self.now);
            }
            self.settle();
        }
        self.now = until;
    }
}

fn serve(socket: &mut Socket, coordinator: &mut Coordinator, map: &DerpMap, event: ServerEvent) {
    match event {
        ServerEvent::CoordinateOpened { call } => {
            socket.calls.insert(call, coordinator.connect(socket.peer, socket.auth));
        }
        ServerEvent::Coordinate { call, request } => {
            let _ = coordinator.handle_request(socket.calls[&call], &request);
        }
        ServerEvent::CoordinateClosed { call } => coordinator.lost(socket.calls[&call]),
        ServerEvent::DerpMapsWanted => socket.server.send_relay_map(map),
        ServerEvent::Alive => socket.alive += 1,
        ServerEvent::Dead(why) => socket.dead = Some(why),
        ServerEvent::Call { call, path, body } => match path.as_str() {
            tailnet::REFRESH_RESUME_TOKEN => {
                let token = RefreshResumeTokenResponse {
                    token: format!("token of {}", socket.peer),
                    refresh_in: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
                    expires_at: Some(prost_types::Timestamp { seconds: 1_000, nanos: 0 }),
                };
                socket.server.reply(call, Ok(&token.encode_to_vec()));
            }
            agent::BATCH_CREATE_LOGS => socket.server.reply(call, Ok(&body)),
            agent::GET_MANIFEST => socket.held.push((call, path)),
            other => socket.server.reply(call, Err(&RpcError::unimplemented(other))),
        },
    }
}

fn node(id: Uuid, version: i32) -> Node {
    let address = format!("{}/128", client_address(id));
    Node { preferred_derp: version, addresses: vec![address.clone()], allowed_ips: vec![address], ..Default::default() }
}

/// A client with a tunnel to a connected agent, both announced.
fn joined() -> (World, usize, usize) {
    let mut world = World::new();
    let agent = world.add(AGENT, Auth::Agent);
    let client = world.add(CLIENT, Auth::Client { agent: AGENT });
    world.sockets[agent].client.open_coordination();
    world.sockets[client].client.add_tunnel(AGENT);
    world.sockets[agent].client.set_self(Some(node(AGENT, 1)));
    world.sockets[client].client.set_self(Some(node(CLIENT, 1)));
    world.settle();
    assert_eq!(world.sockets[agent].updates(), [(CLIENT, PeerUpdateKind::Node)]);
    assert_eq!(world.sockets[client].updates(), [(AGENT, PeerUpdateKind::Node)]);
    (world, agent, client)
}

#[test]
fn a_client_and_an_agent_hear_of_each_other_and_of_the_relays() {
    let (mut world, agent, client) = joined();
    for ix in [agent, client] {
        let map = ClientEvent::RelayMap(Box::new(world.map.clone()));
        assert_eq!(std::mem::take(&mut world.sockets[ix].news), [map]);
    }
    world.sockets[agent].client.ready(vec![CLIENT]);
    world.settle();
    assert_eq!(world.sockets[client].updates(), [(AGENT, PeerUpdateKind::ReadyForHandshake)]);
    world.sockets[client].client.ready(vec![AGENT]);
    world.settle();
    assert!(world.sockets[client].closed().is_none(), "a client's own notice is not sent, it would end the stream");
}

#[test]
fn a_changed_relay_map_reaches_every_stream() {
    let (mut world, agent, client) = joined();
    let region = tailnet::Region { region_id: 7, ..Default::default() };
    let map = DerpMap { regions: [(7, region)].into(), ..world.map.clone() };
    for ix in [agent, client] {
        world.sockets[ix].news.clear();
        world.sockets[ix].server.send_relay_map(&map);
    }
    world.settle();
    for ix in [agent, client] {
        assert_eq!(world.sockets[ix].news, [ClientEvent::RelayMap(Box::new(map.clone()))]);
    }
}

#[test]
fn a_disconnect_ends_the_stream_and_tells_the_other_side() {
    let (mut world, agent, client) = joined();
    world.sockets[client].client.disconnect(world.now);
    world.settle();
    assert_eq!(world.sockets[agent].updates(), [(CLIENT, PeerUpdateKind::Disconnected)]);
    assert_eq!(world.sockets[client].closed(), Some(&CloseReason::Disconnected));
    assert_eq!(world.sockets[client].client.poll_timeout(), None);
}

#[test]
fn a_disconnect_waits_one_second_for_a_server_that_does_not_answer() {
    let mut session = ClientSession::new(ClientRole::Client, START);
    session.disconnect(START);
    let due = session.poll_timeout().unwrap();
    assert_eq!((due.at - START, due.why), (secs(1), "disconnect"));
    session.handle_timeout(due.at);
    assert_eq!(std::iter::from_fn(|| session.poll_event()).last(), Some(ClientEvent::Closed(CloseReason::Disconnected)));
}

#[test]
fn a_lost_socket_is_lost_for_the_peer_and_a_redial_tells_everything_again() {
    let (mut world, agent, client) = joined();
    let manifest = world.sockets[client].client.call(world.now, "/held", &[]);
    world.sockets[client].client.handle_closed();
    world.sockets[client].server.handle_closed();
    world.settle();
    assert_eq!(world.sockets[agent].updates(), [(CLIENT, PeerUpdateKind::Lost)]);
    assert_eq!(world.sockets[client].reply(manifest), Some(Err(CallError::Closed)));
    assert_eq!(world.sockets[client].closed(), Some(&CloseReason::Ended));
    assert_eq!(world.sockets[client].dead, Some(Death::Ended));

    world.sockets[client].news.clear();
    let now = world.now;
    world.sockets[client].redial(now);
    world.settle();
    assert_eq!(world.sockets[agent].updates(), [(CLIENT, PeerUpdateKind::Node)]);
    assert_eq!(world.sockets[client].updates(), [(AGENT, PeerUpdateKind::Node)]);
    assert!(world.sockets[client].closed().is_none());
}

#[test]
fn an_agent_coordinates_again_on_its_next_socket() {
    let (mut world, agent, client) = joined();
    world.sockets[agent].client.handle_closed();
    world.sockets[agent].server.handle_closed();
    world.settle();
    assert_eq!(world.sockets[client].updates(), [(AGENT, PeerUpdateKind::Lost)]);
    let now = world.now;
    world.sockets[agent].redial(now);
    world.settle();
    assert_eq!(world.sockets[client].updates(), [(AGENT, PeerUpdateKind::Node)]);
    assert_eq!(world.sockets[agent].updates(), [(CLIENT, PeerUpdateKind::Node)]);
}

#[test]
fn an_end_of_the_old_socket_is_never_taken_for_one_of_the_new() {
    let mut session = ClientSession::new(ClientRole::Client, START);
    let call = session.call(START, "/x", &[]);
    session.restart(START);
    let events: Vec<ClientEvent> = std::iter::from_fn(|| session.poll_event()).collect();
    assert_eq!(events, [ClientEvent::Reply { call, result: Err(CallError::Closed) }]);
    session.handle_closed();
    session.restart(START);
    assert_eq!(session.poll_event(), None);
}

#[test]
fn only_the_newest_node_is_sent_when_the_socket_is_slow() {
    let (mut world, agent, client) = joined();
    let long = |version| Node { endpoints: vec!["192.0.2.1:1".into(); 4_000], ..node(AGENT, version) };
    for version in 2..12 {
        world.sockets[agent].client.set_self(Some(long(version)));
    }
    world.settle();
    let seen: Vec<i32> = world.sockets[client]
        .news
        .iter()
        .filter_map(|e| match e {
            ClientEvent::PeerUpdate(u) => u.node.as_ref().map(|n| n.preferred_derp),
            _ => None,
        })
        .collect();
    assert!(seen.len() < 10, "{seen:?}");
    assert_eq!(seen.last(), Some(&11));
}

#[test]
fn calls_run_side_by_side_and_one_that_waits_holds_nothing_up() {
    let (mut world, agent, _client) = joined();
    let now = world.now;
    let slow = world.sockets[agent].client.call(now, agent::GET_MANIFEST, &[]);
    let big: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 253) as u8).collect();
    let logs = world.sockets[agent].client.call(now, agent::BATCH_CREATE_LOGS, &big);
    let unknown = world.sockets[agent].client.call(now, "/coder.agent.v2.Agent/PushContextState", &[]);
    world.settle();
    assert_eq!(world.sockets[agent].reply(logs), Some(Ok(big)));
    assert!(world.sockets[agent].reply(unknown).unwrap().unwrap_err().is_unimplemented());
    assert_eq!(world.sockets[agent].reply(slow), None);
    let (call, _) = world.sockets[agent].held.pop().unwrap();
    world.sockets[agent].server.reply(call, Ok(b"\x0a\x00"));
    world.settle();
    assert_eq!(world.sockets[agent].reply(slow), Some(Ok(b"\x0a\x00".to_vec())));
}

#[test]
fn a_call_without_answer_times_out_and_the_socket_lives_on() {
    let (mut world, agent, _client) = joined();
    let now = world.now;
    let call = world.sockets[agent].client.call(now, agent::GET_MANIFEST, &[]);
    world.run(now + secs(31));
    assert_eq!(world.sockets[agent].reply(call), Some(Err(CallError::Timeout)));
    assert!(world.sockets[agent].closed().is_none());
}

#[test]
fn the_agent_service_is_not_on_client_sockets() {
    let (mut world, _agent, client) = joined();
    let now = world.now;
    let call = world.sockets[client].client.call(now, agent::GET_MANIFEST, &[]);
    world.settle();
    assert!(world.sockets[client].reply(call).unwrap().unwrap_err().is_unimplemented());
    assert!(world.sockets[client].held.is_empty());
}

#[test]
fn a_resume_token_is_kept_over_sockets_and_refreshed_in_time() {
    let (mut world, agent, client) = joined();
    let wall = WallTime::from_unix(secs(999));
    let token = format!("token of {CLIENT}");
    assert_eq!(world.sockets[client].client.resume_token(wall), Some(token.as_str()));
    assert_eq!(world.sockets[agent].client.resume_token(wall), None, "agents use none");
    world.sockets[client].peer = Uuid::from_u128(9);
    let now = world.now;
    world.run(now + secs(599));
    assert_eq!(world.sockets[client].client.resume_token(wall), Some(token.as_str()));
    world.run(now + secs(601));
    assert_eq!(world.sockets[client].client.resume_token(wall), Some(format!("token of {}", Uuid::from_u128(9)).as_str()));
    world.sockets[client].client.handle_closed();
    let now = world.now;
    world.sockets[client].client.restart(now);
    assert!(world.sockets[client].client.resume_token(wall).is_some());
    assert!(!format!("{:?}", world.sockets[client].client).contains("token of"));
    world.sockets[client].client.forget_resume_token();
    assert_eq!(world.sockets[client].client.resume_token(wall), None);
}

#[test]
fn an_idle_session_lives_for_hours_and_the_agents_is_pinged_every_15_seconds() {
    let (mut world, agent, client) = joined();
    let now = world.now;
    world.run(now + secs(2 * 3600));
    assert!(world.sockets.iter().all(|s| s.dead.is_none() && s.closed().is_none()));
    assert_eq!(world.sockets[agent].alive, 2 * 3600 / 15);
    assert_eq!(world.sockets[client].alive, 2 * 3600 / 30);
}

#[test]
fn a_silent_agent_is_dead_after_30_seconds_and_a_silent_server_after_40() {
    let mut server = ServerSession::new(ServerRole::Agent, START);
    let mut client = ClientSession::new(ClientRole::Agent, START);
    for at in [15, 30] {
        let due = server.poll_timeout().unwrap().at;
        assert_eq!(due - START, secs(at));
        server.handle_timeout(due);
    }
    assert_eq!(server.poll_event(), Some(ServerEvent::Dead(Death::Silent)));
    assert_eq!(server.poll_timeout(), None);
    for at in [30, 40] {
        let due = client.poll_timeout().unwrap().at;
        assert_eq!(due - START, secs(at));
        client.handle_timeout(due);
    }
    assert_eq!(client.poll_event(), Some(ClientEvent::Closed(CloseReason::Silent)));
}

#[test]
fn a_machine_that_slept_asks_before_it_gives_up() {
    let (mut world, agent, client) = joined();
    world.now += secs(8 * 3600);
    for socket in &mut world.sockets {
        socket.client.handle_timeout(world.now);
        socket.server.handle_timeout(world.now);
    }
    world.settle();
    let now = world.now;
    world.run(now + secs(60));
    for ix in [agent, client] {
        assert!(world.sockets[ix].dead.is_none() && world.sockets[ix].closed().is_none());
    }
}

#[test]
fn a_server_that_goes_away_or_talks_nonsense_is_left() {
    let mut session = ClientSession::new(ClientRole::Client, START);
    session.handle_bytes(START, &hex::decode("000300000000000000000000").unwrap());
    assert_eq!(session.poll_event(), Some(ClientEvent::Closed(CloseReason::GoingAway)));
    session.restart(START);
    session.handle_bytes(START, b"HTTP/1.1 502");
    assert!(matches!(session.poll_event(), Some(ClientEvent::Closed(CloseReason::Protocol(_)))));
    assert_eq!(session.poll_event(), None);
}

#[test]
fn streams_that_the_server_opens_are_reset() {
    let mut session = ClientSession::new(ClientRole::Agent, START);
    session.handle_bytes(START, &hex::decode("000100010000000200000000").unwrap());
    let mut out = Vec::new();
    session.poll_output(&mut out);
    assert_eq!(hex::encode(out), "000100020000000200000000000100080000000200000000");
}

#[test]
fn an_error_of_the_coordinator_is_told_with_the_end() {
    let mut world = World::new();
    let client = world.add(CLIENT, Auth::Client { agent: AGENT });
    world.sockets[client].client.add_tunnel(CLIENT);
    world.settle();
    let why = format!("authorization: invalid agent id, expected {AGENT}, got {CLIENT}");
    assert!(world.sockets[client].news.contains(&ClientEvent::CoordinatorError(why.clone())));
    assert_eq!(world.sockets[client].closed(), Some(&CloseReason::Coordinate(why)));
}
