//! A recorded session of the Go implementation, played to our server with its coordinator, and to our clients.

use super::super::{
    Auth, ClientEvent, ClientRole, ClientSession, CloseReason, ConnId, Coordinator, Delivery, ServerCall, ServerEvent,
    ServerRole, ServerSession,
    drpc::{Packet, Reader},
};
use crate::{
    base::{Instant, WallTime},
    wire::coord::{
        drpc::{Kind, RpcError},
        tailnet::{self, DerpMap, Node, PeerUpdateKind},
        yamux::{self, Flags, HEADER, Header},
    },
};
use prost::Message as _;
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use uuid::Uuid;

const NOW: Instant = Instant::ZERO;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/wire/coordination-session.json")).unwrap()
}

fn id(vectors: &Value, name: &str) -> Uuid {
    vectors["ids"][name].as_str().unwrap().parse().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Header and body of a recorded frame.
fn frame_bytes(frame: &Value) -> Vec<u8> {
    let body = frame["body"].as_str().unwrap_or_default();
    hex::decode(format!("{}{body}", text(&frame["header"]))).unwrap()
}

/// Stream, kind, message id and data of a packet.
type Sent = (u32, Kind, u64, Vec<u8>);

/// What travels on a session, one way.
#[derive(Default)]
struct Way {
    header: Vec<u8>,
    /// Data per stream, and whether it was finished.
    streams: BTreeMap<u32, (Vec<u8>, bool)>,
}

impl Way {
    fn take(&mut self, bytes: &[u8]) {
        self.header.extend_from_slice(bytes);
        while let Some(head) = self.header.first_chunk::<HEADER>() {
            let header = Header::parse(head).unwrap();
            let data = if header.kind == yamux::Kind::Data { header.value as usize } else { 0 };
            let Some(body) = self.header.get(HEADER..HEADER + data) else { return };
            if header.stream > 0 {
                let stream = self.streams.entry(header.stream).or_default();
                stream.0.extend_from_slice(body);
                stream.1 |= header.flags.has(Flags::FIN);
            }
            self.header.drain(..HEADER + data);
        }
    }

    /// The packets since `before`, and the streams that were finished since.
    fn since(&self, before: &Self) -> (Vec<Sent>, Vec<u32>) {
        let (mut packets, mut finished) = (Vec::new(), Vec::new());
        for (&id, (data, fin)) in &self.streams {
            let (old, old_fin) = before.streams.get(&id).map_or((0, false), |(data, fin)| (data.len(), *fin));
            packets.extend(read(data, old).into_iter().map(|p| (id, p.kind, p.message, p.data)));
            if *fin && !old_fin {
                finished.push(id);
            }
        }
        (packets, finished)
    }

    fn copy(&self) -> Self {
        Self { header: self.header.clone(), streams: self.streams.clone() }
    }
}

fn read(data: &[u8], from: usize) -> Vec<Packet> {
    let (mut reader, mut packets, mut at) = (Reader::default(), Vec::new(), 0);
    while let (used, Some(packet)) = reader.read(&data[at..]).unwrap() {
        at += used;
        if at > from {
            packets.push(packet);
        }
    }
    packets
}

struct Socket {
    session: ServerSession,
    calls: BTreeMap<ServerCall, ConnId>,
    peer: Uuid,
    auth: Auth,
    sent: Way,
}

impl Socket {
    fn new(peer: Uuid, auth: Auth) -> Self {
        let role = if auth == Auth::Agent { ServerRole::Agent } else { ServerRole::Client };
        Self { session: ServerSession::new(role, NOW), calls: BTreeMap::new(), peer, auth, sent: Way::default() }
    }
}

struct Server {
    coordinator: Coordinator,
    sockets: BTreeMap<String, Socket>,
    map: DerpMap,
}

impl Server {
    fn run(&mut self) {
        for _ in 0..4 {
            for socket in self.sockets.values_mut() {
                while let Some(event) = socket.session.poll_event() {
                    match event {
                        ServerEvent::CoordinateOpened { call } => {
                            socket.calls.insert(call, self.coordinator.connect(socket.peer, socket.auth));
                        }
                        ServerEvent::Coordinate { call, request } => {
                            // A refusal is told through the queue.
                            let _ = self.coordinator.handle_request(socket.calls[&call], &request);
                        }
                        ServerEvent::CoordinateClosed { call } => self.coordinator.lost(socket.calls[&call]),
                        ServerEvent::DerpMapsWanted => socket.session.send_relay_map(&self.map),
                        ServerEvent::Call { call, path, body } => match path.as_str() {
                            tailnet::REFRESH_RESUME_TOKEN => {
                                let token = tailnet::RefreshResumeTokenResponse {
                                    token: "header.payload.signature".into(),
                                    refresh_in: Some(prost_types::Duration { seconds: 43_200, nanos: 0 }),
                                    expires_at: Some(prost_types::Timestamp { seconds: 1_700_086_400, nanos: 0 }),
                                };
                                socket.session.reply(call, Ok(&token.encode_to_vec()));
                            }
                            tailnet::POST_TELEMETRY => {
                                assert_eq!(tailnet::TelemetryRequest::decode(body.as_slice()).unwrap().events.len(), 1);
                                socket.session.reply(call, Ok(&[]));
                            }
                            other => socket.session.reply(call, Err(&RpcError::unimplemented(other))),
                        },
                        ServerEvent::Alive | ServerEvent::Dead(_) => {}
                    }
                }
            }
            for socket in self.sockets.values_mut() {
                for (call, conn) in &socket.calls {
                    while let Some(delivery) = self.coordinator.poll(*conn) {
                        match delivery {
                            Delivery::Response(response) => socket.session.send_coordinate(*call, &response),
                            Delivery::End => socket.session.close_coordinate(*call),
                        }
                    }
                }
                let mut out = Vec::new();
                socket.session.poll_output(&mut out);
                socket.sent.take(&out);
            }
        }
    }
}

/// The first map of the recording, and the changed one.
fn maps(vectors: &Value) -> Vec<DerpMap> {
    let mut maps = Vec::new();
    for frame in vectors["steps"].as_array().unwrap().iter().flat_map(|s| s["frames"].as_array().unwrap()) {
        if text(&frame["dir"]) == "server to client" && frame["stream"].as_u64() == Some(3) {
            for packet in frame["drpc"].as_array().into_iter().flatten() {
                if let (Some(data), Some("Message")) = (packet["data"].as_str(), packet["kind"].as_str()) {
                    maps.push(DerpMap::decode(hex::decode(data).unwrap().as_slice()).unwrap());
                }
            }
        }
    }
    maps
}

#[test]
fn our_server_answers_recorded_peers_as_the_go_server_did() {
    let vectors = vectors();
    let (agent, client) = (id(&vectors, "agent"), id(&vectors, "client"));
    let [first_map, second_map] = maps(&vectors).try_into().unwrap_or_else(|m: Vec<_>| panic!("{} maps", m.len()));
    let mut server = Server { coordinator: Coordinator::new(), sockets: BTreeMap::new(), map: first_map };
    let as_client = Auth::Client { agent };
    let mut compared = 0;
    for step in vectors["steps"].as_array().unwrap() {
        let name = text(&step["step"]);
        if name.starts_with("another server") {
            break;
        }
        match name {
            "agent opens Coordinate" => {
                server.sockets.insert("agent".into(), Socket::new(agent, Auth::Agent));
                server.sockets.insert("client".into(), Socket::new(client, as_client));
            }
            "the DERP map changes" => {
                server.map = second_map.clone();
                server.sockets.get_mut("client").unwrap().session.send_relay_map(&second_map);
            }
            "the coordinator is closed" => server.coordinator.close(),
            name if name.starts_with("the agent's connection ends") => {
                server.sockets.get_mut("agent").unwrap().session.handle_closed();
            }
            name if name.starts_with("the agent connects again") => {
                server.sockets.insert("agent".into(), Socket::new(agent, Auth::Agent));
            }
            name if name.starts_with("a second socket") => {
                server.sockets.insert("agent (second socket)".into(), Socket::new(agent, Auth::Agent));
            }
            name if name.starts_with("refused: client") => {
                server.sockets.insert("peer".into(), Socket::new(client, as_client));
            }
            name if name.starts_with("refused: agent") || name.starts_with("not refused") => {
                server.sockets.insert("peer".into(), Socket::new(agent, Auth::Agent));
            }
            _ => {}
        }
        let before: BTreeMap<String, Way> = server.sockets.iter().map(|(n, s)| (n.clone(), s.sent.copy())).collect();
        // The recording goes on from what we sent, unless it differs here.
        let own = |way: &Way| if difference(name).is_some() { Way::default() } else { way.copy() };
        let mut recorded: BTreeMap<String, Way> = before.iter().map(|(n, way)| (n.clone(), own(way))).collect();
        server.run();
        for frame in step["frames"].as_array().unwrap() {
            let bytes = frame_bytes(frame);
            match text(&frame["dir"]).split_once(" to ").unwrap() {
                (from, "server") => {
                    server.sockets.get_mut(from).unwrap().session.handle_bytes(NOW, &bytes);
                    server.run();
                }
                (_, to) => recorded.get_mut(to).unwrap().take(&bytes),
            }
        }
        for (to, socket) in &server.sockets {
            let (packets, finished) = socket.sent.since(&before[to]);
            if let Some(check) = difference(name) {
                if recorded[to].streams.values().any(|(data, _)| !data.is_empty()) {
                    check(&packets);
                }
                continue;
            }
            let (expected, expected_finished) = recorded[to].since(&before[to]);
            assert_eq!(packets, expected, "{name}: to {to}");
            assert_eq!(finished, expected_finished, "{name}: to {to}");
            compared += expected.len();
        }
    }
    assert!(compared > 35, "{compared}");
}

/// Where our server means to differ from Go's: what it must send instead.
fn difference(step: &str) -> Option<fn(&[Sent])> {
    fn unimplemented(packets: &[Sent]) {
        let [(_, Kind::Error, 1, body)] = packets else { panic!("{packets:?}") };
        let error = RpcError::parse(body);
        assert!(error.code == 12 && error.text.contains("unknown rpc: "), "{error:?}");
    }
    fn refused(packets: &[Sent]) {
        let [(_, Kind::Message, 1, body), (_, Kind::Close, 2, _)] = packets else { panic!("{packets:?}") };
        let response = tailnet::CoordinateResponse::decode(body.as_slice()).unwrap();
        assert!(response.error.starts_with("authorization: "), "{response:?}");
    }
    fn other(_: &[Sent]) {}
    match step {
        _ if step.starts_with("client calls an unknown path") => Some(unimplemented),
        _ if step.starts_with("client calls the agent API") => Some(unimplemented),
        _ if step.starts_with("client opens WorkspaceUpdates") => Some(unimplemented),
        // The text of Go's parser.
        "refused: client announces no address" => Some(refused),
        // We check allowed_ips as newer servers do, so this peer is gone before the coordinator closes.
        _ if step.starts_with("not refused by v2.29.1") => Some(refused),
        "the coordinator is closed" => Some(other),
        _ => None,
    }
}

fn node_of(step: &Value) -> Node {
    let packets = step["frames"].as_array().unwrap().iter().flat_map(|f| f["drpc"].as_array().into_iter().flatten());
    let node = |p: &Value| {
        let data = hex::decode(p["data"].as_str()?).unwrap();
        tailnet::CoordinateRequest::decode(data.as_slice()).ok()?.update_self?.node
    };
    packets.filter(|p| p["value"]["update_self"].is_object()).find_map(node).unwrap()
}

fn events(session: &mut ClientSession) -> Vec<ClientEvent> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

fn peer_updates(events: &[ClientEvent]) -> Vec<(Uuid, PeerUpdateKind, bool)> {
    let of = |event: &ClientEvent| match event {
        ClientEvent::PeerUpdate(u) => Some((Uuid::from_slice(&u.id).unwrap(), u.kind(), u.node.is_some())),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

/// Feeds one step's frames from the server and collects what the session sends.
fn play(step: &Value, to: &str, session: &mut ClientSession, sent: &mut Way) -> Vec<ClientEvent> {
    let mut got = Vec::new();
    let mut out = Vec::new();
    session.poll_output(&mut out);
    for frame in step["frames"].as_array().unwrap() {
        if text(&frame["dir"]) == format!("server to {to}") {
            for byte in frame_bytes(frame) {
                session.handle_bytes(NOW, &[byte]);
            }
            got.extend(events(session));
            session.poll_output(&mut out);
        }
    }
    sent.take(&out);
    got
}

#[test]
fn our_client_says_what_the_go_client_said_and_understands_the_answers() {
    let vectors = vectors();
    let agent = id(&vectors, "agent");
    let steps = vectors["steps"].as_array().unwrap();
    let mut session = ClientSession::new(ClientRole::Client, NOW);
    session.add_tunnel(agent);
    let (mut sent, mut recorded) = (Way::default(), Way::default());
    let mut nodes = 0;
    for step in steps {
        let name = text(&step["step"]);
        if name.starts_with("refused") {
            break;
        }
        for frame in step["frames"].as_array().unwrap() {
            if text(&frame["dir"]) == "client to server" {
                recorded.take(&frame_bytes(frame));
            }
        }
        let mut call = |path: &str, body: &[u8]| session.call(NOW, path, body);
        let called = match name {
            "client sends UpdateSelf; the agent gets the node" => {
                session.set_self(Some(node_of(step)));
                None
            }
            "client sends RemoveTunnel" => {
                session.remove_tunnel(agent);
                None
            }
            "client sends AddTunnel again" => {
                session.add_tunnel(agent);
                None
            }
            "client calls PostTelemetry" => {
                let packets = step["frames"][1]["drpc"].as_array().unwrap();
                Some(call(tailnet::POST_TELEMETRY, &hex::decode(text(&packets[1]["data"])).unwrap()))
            }
            "client opens WorkspaceUpdates; snapshot and one difference" => {
                let id = id(&vectors, "client").into_bytes();
                Some(call(tailnet::WORKSPACE_UPDATES, &[&[0x0a, 16], id.as_slice()].concat()))
            }
            name if name.starts_with("client calls an unknown path") => Some(call("/coder.tailnet.v2.Tailnet/NoSuchCall", &[])),
            name if name.starts_with("client calls the agent API") => Some(call("/coder.agent.v2.Agent/GetManifest", &[])),
            name if name.starts_with("client opens WorkspaceUpdates with") => {
                Some(call(tailnet::WORKSPACE_UPDATES, &[0x0a, 3, 1, 2, 3]))
            }
            "client opens a second StreamDERPMaps" => Some(call(tailnet::STREAM_DERP_MAPS, &[])),
            name if name.starts_with("client sends Disconnect") => {
                session.disconnect(NOW);
                None
            }
            _ => None,
        };
        let got = play(step, "client", &mut session, &mut sent);
        for (id, kind, with_node) in peer_updates(&got) {
            assert_eq!((id, with_node), (agent, kind == PeerUpdateKind::Node), "{name}");
            nodes += usize::from(with_node);
        }
        if let Some(call) = called {
            let Some(ClientEvent::Reply { call: replied, result }) = got.first() else { panic!("{name}: {got:?}") };
            assert_eq!(*replied, call);
            if name.contains("unknown rpc") {
                assert!(result.as_ref().unwrap_err().is_unimplemented());
            } else {
                assert_eq!(result.is_err(), name.contains("3 bytes"), "{name}: {result:?}");
            }
        }
        if name.starts_with("client sends Disconnect") {
            assert_eq!(got.last(), Some(&ClientEvent::Closed(CloseReason::Disconnected)));
        }
        if name.starts_with("client opens StreamDERPMaps") || name == "the DERP map changes" {
            assert!(matches!(got.as_slice(), [ClientEvent::RelayMap(_)]), "{got:?}");
        }
    }
    assert_eq!(nodes, 4);
    let wall = |seconds| WallTime::from_unix(Duration::from_secs(seconds));
    assert_eq!(session.resume_token(wall(1_700_086_399)), Some("header.payload.signature"));
    assert_eq!(session.resume_token(wall(1_700_086_400)), None);
    for (id, (data, fin)) in &recorded.streams {
        let (ours, our_fin) = &sent.streams[id];
        // Streams 9 and 17 carry streaming calls, which our client opens as a unary one here: it ends them itself.
        if ![9, 17].contains(id) {
            assert_eq!(hex::encode(ours), hex::encode(data), "stream {id}");
            assert!(*our_fin || !fin, "stream {id}");
        }
    }
}

#[test]
fn our_agent_says_what_the_go_agent_said() {
    let vectors = vectors();
    let client = id(&vectors, "client");
    let mut session = ClientSession::new(ClientRole::Agent, NOW);
    session.open_coordination();
    let (mut sent, mut recorded) = (Way::default(), Way::default());
    let mut kinds = Vec::new();
    for step in vectors["steps"].as_array().unwrap() {
        let name = text(&step["step"]);
        if name.starts_with("the agent's connection ends") {
            break;
        }
        for frame in step["frames"].as_array().unwrap() {
            if text(&frame["dir"]) == "agent to server" {
                recorded.take(&frame_bytes(frame));
            }
        }
        match name {
            "agent sends ReadyForHandshake; the client gets it" => session.ready(vec![client]),
            name if name.starts_with("agent is ready for a peer without tunnel") => session.ready(vec![id(&vectors, "other")]),
            name if name.starts_with("agent ") && !name.starts_with("agent opens") => session.set_self(Some(node_of(step))),
            _ => {}
        }
        let got = play(step, "agent", &mut session, &mut sent);
        kinds.extend(peer_updates(&got).into_iter().map(|(_, kind, _)| kind));
        let complained = got.iter().any(|e| matches!(e, ClientEvent::CoordinatorError(_)));
        assert_eq!(complained, name.starts_with("agent is ready for a peer without tunnel"), "{name}");
    }
    assert_eq!(hex::encode(&sent.streams[&1].0), hex::encode(&recorded.streams[&1].0));
    assert_eq!(kinds, [PeerUpdateKind::Node, PeerUpdateKind::Disconnected, PeerUpdateKind::Node]);
}

#[test]
fn the_first_messages_of_real_sockets_are_answered() {
    let vectors: Value = serde_json::from_str(include_str!("../../../../tests/vectors/wire/control-socket.json")).unwrap();
    let messages = |socket: &Value, of: &str| -> Vec<Vec<u8>> {
        let list = socket[of].as_array().unwrap().iter();
        list.filter_map(|m| m["payload"].as_str()).map(|m| hex::decode(m).unwrap()).collect()
    };
    let [agent, client, ..] = vectors["sockets"].as_array().unwrap().as_slice() else { panic!("sockets") };
    let mut session = ServerSession::new(ServerRole::Agent, NOW);
    let mut ours = Way::default();
    for message in messages(agent, "client_messages") {
        session.handle_bytes(NOW, &message);
        if let Some(ServerEvent::Call { call, path, .. }) = session.poll_event() {
            assert_eq!(path, crate::wire::coord::agent::GET_MANIFEST);
            session.reply(call, Ok(b"\x7a\x04main"));
        }
        let mut out = Vec::new();
        session.poll_output(&mut out);
        ours.take(&out);
    }
    let mut recorded = Way::default();
    recorded.take(&messages(agent, "server_messages").concat());
    assert_eq!(ours.streams, recorded.streams);

    let mut session = ServerSession::new(ServerRole::Client, NOW);
    session.handle_bytes(NOW, &messages(client, "client_messages").concat());
    let events: Vec<ServerEvent> = std::iter::from_fn(|| session.poll_event()).collect();
    let [
        ServerEvent::CoordinateOpened { .. },
        ServerEvent::Coordinate { request, .. },
        ServerEvent::DerpMapsWanted,
        ServerEvent::Call { path, .. },
    ] = events.as_slice()
    else {
        panic!("{events:?}")
    };
    assert_eq!(request.add_tunnel.as_ref().unwrap().id, id(&self::vectors(), "agent").as_bytes());
    assert_eq!(path, tailnet::REFRESH_RESUME_TOKEN);
}

#[test]
fn a_server_without_the_streaming_call_ends_the_socket_and_one_without_tokens_does_not() {
    let unimplemented = "07010115000000000000000c556e696d706c656d656e746564";
    let frame = |stream: u32| {
        let body = hex::decode(unimplemented).unwrap();
        let mut out = Vec::new();
        Header { kind: yamux::Kind::Data, flags: Flags::NONE, stream, value: body.len() as u32 }.write(&mut out);
        [out, body].concat()
    };
    let mut session = ClientSession::new(ClientRole::Client, NOW);
    session.handle_bytes(NOW, &frame(5));
    assert_eq!(events(&mut session), []);
    assert!(session.poll_timeout().is_some_and(|d| d.why != "resume token"));
    session.handle_bytes(NOW, &frame(3));
    assert_eq!(events(&mut session), [ClientEvent::Closed(CloseReason::RelayMaps("Unimplemented".into()))]);
}
