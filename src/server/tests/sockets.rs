//! Control sockets, the relay and streams against the real server.

use super::*;
use crate::{
    base::{NodeSecret, Rng, agent_addresses, client_address},
    driver::{
        clock,
        http::{Http, HttpOptions, Token},
        websocket::{ByteStream, Message, WebSocket},
    },
    proto::{
        coord::{CallError, ClientEvent, ClientRole, ClientSession},
        relay::client::{Received, RelayClient},
    },
    wire::coord::{
        agent,
        tailnet::{self, PeerUpdateKind},
    },
};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};

pub(super) fn http(world: &World, token: Option<&str>) -> Http {
    Http::new(&format!("http://{}", world.address()), token.map(Token::new), HttpOptions::default()).unwrap()
}

/// One end of a control socket.
pub(super) struct Peer<S> {
    socket: WebSocket<S>,
    session: ClientSession,
    /// What came and was not asked for yet.
    events: Vec<ClientEvent>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    fn new(socket: WebSocket<S>, role: ClientRole) -> Self {
        Self { socket, session: ClientSession::new(role, clock::now()), events: Vec::new() }
    }

    pub(super) async fn flush(&mut self) {
        loop {
            let mut out = Vec::new();
            self.session.poll_output(&mut out);
            if out.is_empty() {
                return;
            }
            // A socket that ended shows in what comes, or no longer comes.
            let _ = self.socket.send_binary(out).await;
        }
    }

    /// Runs the socket until an event fits; false at its end.
    async fn until<T>(&mut self, mut fits: impl FnMut(&ClientEvent) -> Option<T>) -> Option<T> {
        let run = async {
            loop {
                while let Some(event) = self.session.poll_event() {
                    self.events.push(event);
                }
                if let Some((at, found)) = self.events.iter().enumerate().find_map(|(at, e)| fits(e).map(|f| (at, f))) {
                    self.events.remove(at);
                    return Some(found);
                }
                self.flush().await;
                match self.socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => self.session.handle_bytes(clock::now(), &bytes),
                    Some(Ok(Message::Ping | Message::Pong)) => {}
                    _ => return None,
                }
            }
        };
        timeout(LIMIT, run).await.expect("the event never came")
    }

    pub(super) async fn call(&mut self, path: &str, body: &impl prost::Message) -> Result<Vec<u8>, CallError> {
        let id = self.session.call(clock::now(), path, &body.encode_to_vec());
        let reply = self.until(|event| match event {
            ClientEvent::Reply { call, result } if *call == id => Some(result.clone()),
            _ => None,
        });
        reply.await.expect("the socket ended")
    }

    pub(super) async fn update(&mut self, wanted: PeerUpdateKind) -> tailnet::PeerUpdate {
        let update = self.until(|event| match event {
            ClientEvent::PeerUpdate(update) if update.kind == i32::from(wanted) => Some((**update).clone()),
            _ => None,
        });
        update.await.expect("the socket ended")
    }
}

pub(super) type Dialled = Peer<Box<dyn crate::driver::http::Io>>;

pub(super) async fn agent(world: &World) -> Dialled {
    let path = "/api/v2/workspaceagents/me/rpc?version=2.0&role=agent";
    Peer::new(http(world, Some(&world.agent_token)).websocket(path, None).await.unwrap(), ClientRole::Agent)
}

pub(super) async fn client(world: &World, more: &str) -> Dialled {
    let path = format!("/api/v2/workspaceagents/{}/coordinate?version=2.0{more}", world.agent.id);
    let mut peer = Peer::new(http(world, Some(&world.admin)).websocket(&path, None).await.unwrap(), ClientRole::Client);
    peer.session.add_tunnel(world.agent.id);
    peer
}

impl Dialled {
    /// Announces a node as the agent of `world`.
    pub(super) async fn announce_agent(&mut self, world: &World) {
        self.session.open_coordination();
        self.session.set_self(Some(node(1, &agent_addresses(world.agent.id))));
        self.flush().await;
    }
}

/// The relay map of the manifest of the agent with this token.
pub(super) async fn relay_map_of(world: &World, token: &str) -> tailnet::DerpMap {
    let path = "/api/v2/workspaceagents/me/rpc?version=2.0&role=agent";
    let mut agent = Peer::new(http(world, Some(token)).websocket(path, None).await.unwrap(), ClientRole::Agent);
    let reply = agent.call(agent::GET_MANIFEST, &()).await.unwrap();
    agent::Manifest::decode(reply.as_slice()).unwrap().derp_map.unwrap()
}

fn node(seed: u64, addresses: &[std::net::Ipv6Addr]) -> tailnet::Node {
    let mut rng = Rng::from_u64(seed);
    let prefixes: Vec<_> = addresses.iter().map(|ip| format!("{ip}/128")).collect();
    tailnet::Node {
        id: 1,
        key: NodeSecret::generate(&mut rng).public().to_binary(),
        disco: crate::base::DiscoSecret::generate(&mut rng).public().to_text(),
        preferred_derp: 999,
        derp_latency: [("999-v4".to_owned(), 0.25)].into(),
        addresses: prefixes.clone(),
        allowed_ips: prefixes,
        ..Default::default()
    }
}

async fn status(world: &World) -> Value {
    world.get(&format!("/api/v2/workspaceagents/{}", world.agent.id)).await.json()
}

/// Asks until the agent's JSON fits.
async fn until_status(world: &World, fits: impl Fn(&Value) -> bool) -> Value {
    let asked = async {
        loop {
            let now = status(world).await;
            if fits(&now) {
                return now;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, asked).await.expect("the agent's state never came")
}

#[tokio::test]
async fn an_agent_is_told_who_it_is() {
    let world = World::new().await;
    let mut agent = agent(&world).await;
    let reply = agent.call(agent::GET_MANIFEST, &()).await.unwrap();
    let manifest = agent::Manifest::decode(reply.as_slice()).unwrap();
    assert_eq!(manifest.agent_id, world.agent.id.as_bytes());
    assert_eq!(manifest.workspace_id, world.workspace.id.as_bytes());
    assert_eq!((manifest.agent_name.as_str(), manifest.workspace_name.as_str()), ("main", "dev"));
    assert_eq!((manifest.owner_username.as_str(), manifest.parent_id), ("admin", None));
    let map = manifest.derp_map.unwrap();
    assert!(map.home_params.is_some(), "Go agents read through it");
    assert_eq!(map.regions[&999].nodes[0].host_name, "127.0.0.1");
}

#[tokio::test]
async fn every_call_of_a_go_agent_is_answered_and_others_are_unknown() {
    let world = World::new().await;
    let mut agent = agent(&world).await;
    let text = include_str!("../../../tests/vectors/wire/agent-calls.json");
    let vectors: Value = serde_json::from_str(text).unwrap();
    let mut answered = 0;
    for call in vectors["calls"].as_array().unwrap() {
        let Some(path) = call["request"][0]["path"].as_str() else { continue };
        let messages: Vec<_> = call["request"].as_array().unwrap().iter().filter(|f| f["kind"] == "Message").collect();
        let [message] = messages.as_slice() else { continue };
        let Ok(body) = hex::decode(message["data"].as_str().unwrap_or("no")) else { continue };
        let id = agent.session.call(clock::now(), path, &body);
        let reply = agent.until(|event| match event {
            ClientEvent::Reply { call, result } if *call == id => Some(result.clone()),
            _ => None,
        });
        let reply = reply.await.expect("the socket ended");
        let known = call["reply"][0]["kind"] == "Message";
        let name = call["call"].as_str().unwrap();
        let optional = ["SubAgent", "Boundary", "UpdateAppStatus", "PushContextState"].iter().any(|o| path.contains(o));
        match reply {
            // Some were refused by the recorded server on purpose.
            Ok(_) => {}
            Err(CallError::Rpc(error)) => assert!(!known || (optional && error.is_unimplemented()), "{name}: {error}"),
            Err(error) => panic!("{name}: {error}"),
        }
        answered += 1;
    }
    assert!(answered > 12, "{answered} calls only");
    let Err(CallError::Rpc(error)) = agent.call("/coder.agent.v2.Agent/Nonsense", &()).await else { panic!("known") };
    assert_eq!(error.code, 12);
    assert!(error.text.contains("unknown rpc: "), "{error}");
}

#[tokio::test]
async fn resources_are_watched_at_intervals_that_do_not_crash_go_agents() {
    let world = World::new().await;
    let mut agent = agent(&world).await;
    let reply = agent.call(agent::GET_RESOURCES_MONITORING, &()).await.unwrap();
    let config = agent::ResourcesMonitoring::decode(reply.as_slice()).unwrap().config.unwrap();
    assert_eq!((config.num_datapoints, config.collection_interval_seconds), (20, 10));
    let reply = agent.call(agent::UPDATE_STATS, &agent::UpdateStatsRequest { stats: None }).await.unwrap();
    let interval = agent::UpdateStatsResponse::decode(reply.as_slice()).unwrap().report_interval.unwrap();
    assert_eq!((interval.seconds, interval.nanos), (30, 0));
}

#[tokio::test]
async fn an_agents_life_shows_in_its_status() {
    let world = World::new().await;
    assert_eq!(status(&world).await["status"], "connecting");
    let mut agent = agent(&world).await;
    let startup = agent::Startup { version: "v2.29.1".into(), expanded_directory: "/home/a".into(), subsystems: vec![] };
    agent.call(agent::UPDATE_STARTUP, &agent::UpdateStartupRequest { startup: Some(startup) }).await.unwrap();
    for state in [agent::LifecycleState::Starting, agent::LifecycleState::Ready] {
        let lifecycle = agent::Lifecycle { state: state.into(), changed_at: None };
        agent.call(agent::UPDATE_LIFECYCLE, &agent::UpdateLifecycleRequest { lifecycle: Some(lifecycle) }).await.unwrap();
    }
    agent.session.open_coordination();
    agent.session.set_self(Some(node(1, &agent_addresses(world.agent.id))));
    agent.flush().await;
    let up = until_status(&world, |s| s["latency"].is_object()).await;
    assert_eq!((&up["status"], &up["lifecycle_state"]), (&Value::from("connected"), &Value::from("ready")));
    assert_eq!((&up["version"], &up["api_version"]), (&Value::from("v2.29.1"), &Value::from("2.0")));
    assert_eq!(up["expanded_directory"], "/home/a");
    assert!(up["started_at"].is_string() && up["ready_at"].is_string() && up["first_connected_at"].is_string());
    assert_eq!(up["latency"]["Coder Embedded Relay"], serde_json::json!({ "preferred": true, "latency_ms": 250.0 }));
    drop(agent);
    let down = until_status(&world, |s| s["status"] == "disconnected").await;
    assert_eq!(down["health"]["reason"], "agent has lost connection");
}

#[tokio::test]
async fn client_and_agent_find_each_other_and_hear_of_the_others_end() {
    let world = World::new().await;
    let mut agent = agent(&world).await;
    agent.session.open_coordination();
    agent.session.set_self(Some(node(1, &agent_addresses(world.agent.id))));
    agent.flush().await;
    let mut client = client(&world, "").await;
    let own = node(2, &[client_address(Uuid::new_v4())]);
    client.session.set_self(Some(own.clone()));
    client.flush().await;
    let seen = client.update(PeerUpdateKind::Node).await;
    assert_eq!(seen.id, world.agent.id.as_bytes());
    let seen = agent.update(PeerUpdateKind::Node).await;
    assert_eq!(seen.node.unwrap().key, own.key);
    let peer = Uuid::from_slice(&seen.id).unwrap();
    agent.session.ready(vec![peer]);
    agent.flush().await;
    assert_eq!(client.update(PeerUpdateKind::ReadyForHandshake).await.id, world.agent.id.as_bytes());
    let map = client.until(|e| match e {
        ClientEvent::RelayMap(map) => Some(map.clone()),
        _ => None,
    });
    assert_eq!(map.await.unwrap().regions[&999].nodes[0].derp_port, i32::from(world.address().port()));
    drop(client);
    assert_eq!(Uuid::from_slice(&agent.update(PeerUpdateKind::Lost).await.id).unwrap(), peer);
}

#[tokio::test]
async fn a_shutdown_tells_both_sides_and_closes_their_sockets() {
    let world = World::new().await;
    let mut agent = agent(&world).await;
    agent.session.open_coordination();
    agent.session.set_self(Some(node(1, &agent_addresses(world.agent.id))));
    agent.flush().await;
    let mut client = client(&world, "").await;
    client.flush().await;
    client.update(PeerUpdateKind::Node).await;
    let ending = tokio::spawn(world.running.shutdown());
    assert_eq!(client.update(PeerUpdateKind::Lost).await.id, world.agent.id.as_bytes());
    for peer in [&mut client, &mut agent] {
        let told = peer.until(|event| match event {
            ClientEvent::CoordinatorError(text) => Some(text.clone()),
            _ => None,
        });
        assert_eq!(told.await.as_deref(), Some("coordinator closed"));
        while let Some(Ok(_)) = timeout(LIMIT, peer.socket.next()).await.unwrap() {}
    }
    timeout(LIMIT, ending).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_close_is_answered_by_a_close() {
    let world = World::new().await;
    let watch = format!("/api/v2/workspaces/{}/watch-ws", world.workspace.id);
    let coordinate = format!("/api/v2/workspaceagents/{}/coordinate?version=2.0", world.agent.id);
    for path in [watch, coordinate] {
        let mut socket = http(&world, Some(&world.admin)).websocket(&path, None).await.unwrap();
        socket.close(1000, "").await.unwrap();
        let answered = async {
            while let Some(message) = socket.next().await {
                if let Message::Close { code, .. } = message.unwrap() {
                    return code;
                }
            }
            0
        };
        assert_eq!(timeout(LIMIT, answered).await.unwrap(), 1000, "{path}");
    }
}

#[tokio::test]
async fn a_newer_socket_of_an_agent_ends_the_older_one_and_the_agent_stays_connected() {
    let world = World::new().await;
    let mut old = agent(&world).await;
    old.call(agent::GET_MANIFEST, &()).await.unwrap();
    let mut new = agent(&world).await;
    new.call(agent::GET_MANIFEST, &()).await.unwrap();
    let state = |state: agent::LifecycleState| {
        let lifecycle = agent::Lifecycle { state: state.into(), changed_at: None };
        agent::UpdateLifecycleRequest { lifecycle: Some(lifecycle) }
    };
    new.call(agent::UPDATE_LIFECYCLE, &state(agent::LifecycleState::Ready)).await.unwrap();
    // What the older one says of its end is not the agent's.
    old.session.call(clock::now(), agent::UPDATE_LIFECYCLE, &state(agent::LifecycleState::ShuttingDown).encode_to_vec());
    old.flush().await;
    let mut told = None;
    while let Some(Ok(message)) = timeout(LIMIT, old.socket.next()).await.unwrap() {
        told = told.or(if let Message::Close { code, .. } = message { Some(code) } else { None });
    }
    assert_eq!(told, Some(crate::driver::control::REPLACED));
    new.call(agent::GET_MANIFEST, &()).await.unwrap();
    let now = status(&world).await;
    assert_eq!((&now["status"], &now["lifecycle_state"]), (&"connected".into(), &"ready".into()));
}

#[tokio::test]
async fn a_long_batch_of_log_lines_is_kept_whole() {
    let world = World::new().await;
    let mut agent = agent(&world).await;
    let line = |n: u32| agent::Log { created_at: None, output: n.to_string(), level: agent::LogLevel::Info.into() };
    let batch = agent::BatchCreateLogsRequest { log_source_id: vec![1; 16], logs: (0..12_000).map(line).collect() };
    let reply = agent.call(agent::BATCH_CREATE_LOGS, &batch).await.unwrap();
    assert!(!agent::BatchCreateLogsResponse::decode(reply.as_slice()).unwrap().log_limit_exceeded);
    let logs = world.running.app.store().logs(world.agent.id, 0).await.unwrap();
    assert!(logs.iter().map(|line| line.output.clone()).eq((0..12_000).map(|n: u32| n.to_string())));
}

#[tokio::test]
async fn a_stopped_workspace_turns_its_agent_away_until_it_is_started() {
    let world = World::new().await;
    let mut agent = agent(&world).await;
    agent.call(agent::GET_MANIFEST, &()).await.unwrap();
    let builds = format!("/api/v2/workspaces/{}/builds", world.workspace.id);
    world.post(&builds, r#"{"transition":"stop"}"#).await;
    while let Some(Ok(_)) = timeout(LIMIT, agent.socket.next()).await.unwrap() {}
    let path = "/api/v2/workspaceagents/me/rpc?version=2.0";
    let refused = call(world.address(), "GET", path, &handshake(Some(&world.agent_token)), None).await;
    assert_eq!((refused.status, refused.json()["message"].as_str().unwrap()), (401, "Workspace agent not authorized."));
    world.post(&builds, r#"{"transition":"start"}"#).await;
    assert_eq!(open(world.address(), "GET", path, &handshake(Some(&world.agent_token)), None).await.1.status, 101);
}

#[tokio::test]
async fn an_agent_may_bring_its_token_in_a_cookie() {
    let world = World::new().await;
    let mut headers = handshake(None);
    headers.push(("Cookie".into(), format!("coder_session_token={}", world.agent_token)));
    let path = "/api/v2/workspaceagents/me/rpc?version=2.6";
    assert_eq!(open(world.address(), "GET", path, &headers, None).await.1.status, 101);
}

#[tokio::test]
async fn others_with_the_agents_token_do_not_stand_for_it() {
    let world = World::new().await;
    let path = "/api/v2/workspaceagents/me/rpc?version=2.0&role=logstream";
    let socket = http(&world, Some(&world.agent_token)).websocket(path, None).await.unwrap();
    let mut other = Peer::new(socket, ClientRole::Agent);
    other.call(agent::GET_MANIFEST, &()).await.unwrap();
    assert_eq!(status(&world).await["status"], "connecting");
}

#[tokio::test]
async fn a_resume_token_keeps_the_peer_id_and_a_bad_one_is_named() {
    let world = World::new().await;
    let mut agent = agent(&world).await;
    agent.session.open_coordination();
    agent.session.set_self(Some(node(1, &agent_addresses(world.agent.id))));
    agent.flush().await;
    let own = node(2, &[client_address(Uuid::new_v4())]);
    let mut first = client(&world, "").await;
    first.session.set_self(Some(own.clone()));
    let reply = first.call(tailnet::REFRESH_RESUME_TOKEN, &()).await.unwrap();
    let token = tailnet::RefreshResumeTokenResponse::decode(reply.as_slice()).unwrap().token;
    let id = agent.update(PeerUpdateKind::Node).await.id;
    drop(first);
    agent.update(PeerUpdateKind::Lost).await;
    let mut second = client(&world, &format!("&resume_token={token}")).await;
    second.session.set_self(Some(own));
    second.flush().await;
    assert_eq!(agent.update(PeerUpdateKind::Node).await.id, id);

    let path = format!("/api/v2/workspaceagents/{}/coordinate?version=2.0&resume_token=x.y.z", world.agent.id);
    let refused = call(world.address(), "GET", &path, &handshake(Some(&world.admin)), None).await;
    assert_eq!((refused.status, &refused.json()["validations"][0]["field"]), (401, &Value::from("resume_token")));
}

#[tokio::test]
async fn telemetry_is_taken_and_a_client_may_not_act_as_an_agent() {
    let world = World::new().await;
    let mut client = client(&world, "").await;
    client.call(tailnet::POST_TELEMETRY, &tailnet::TelemetryRequest::default()).await.unwrap();
    let Err(CallError::Rpc(error)) = client.call(agent::GET_MANIFEST, &()).await else { panic!("known") };
    assert_eq!(error.code, 12);
}

#[tokio::test]
async fn an_agents_log_lines_are_listed_and_followed() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaceagents/{}/logs", world.agent.id);
    let mut follower = http(&world, Some(&world.admin)).websocket(&format!("{path}?follow&after=0"), None).await.unwrap();
    let first = timeout(LIMIT, follower.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first, Message::Text("[]".into()));
    let mut agent = agent(&world).await;
    let source = Uuid::new_v4();
    let log = agent::Log { created_at: None, output: "hello".into(), level: agent::LogLevel::Warn.into() };
    let batch = agent::BatchCreateLogsRequest { log_source_id: source.as_bytes().to_vec(), logs: vec![log] };
    agent.call(agent::BATCH_CREATE_LOGS, &batch).await.unwrap();
    let Message::Text(text) = timeout(LIMIT, follower.next()).await.unwrap().unwrap().unwrap() else { panic!("no text") };
    let line = serde_json::from_slice::<Value>(&text).unwrap()[0].clone();
    assert_eq!((&line["output"], &line["level"]), (&Value::from("hello"), &Value::from("warn")));
    assert_eq!(world.get(&path).await.json()[0]["source_id"], source.to_string());
    let after = world.get(&format!("{path}?after={}", line["id"])).await.json();
    assert_eq!(after, serde_json::json!([]));
}

#[tokio::test]
async fn a_watcher_sees_a_ping_the_workspace_and_its_changes() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaces/{}/watch-ws", world.workspace.id);
    let mut watcher = http(&world, Some(&world.admin)).websocket(&path, None).await.unwrap();
    let next = async |watcher: &mut WebSocket<_>| -> Value {
        match timeout(LIMIT, watcher.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => serde_json::from_slice(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(next(&mut watcher).await, serde_json::json!({ "type": "ping", "data": null }));
    let now = next(&mut watcher).await;
    assert_eq!((&now["type"], &now["data"]["latest_build"]["status"]), (&Value::from("data"), &Value::from("running")));
    world.post(&format!("/api/v2/workspaces/{}/builds", world.workspace.id), r#"{"transition":"stop"}"#).await;
    assert_eq!(next(&mut watcher).await["data"]["latest_build"]["status"], "stopped");
}

#[tokio::test]
async fn the_event_stream_begins_with_a_ping_and_the_workspace_and_ends_with_the_server() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaces/{}/watch", world.workspace.id);
    let (mut stream, mut answer) = open(world.address(), "GET", &path, &auth(&world.admin), None).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    while !String::from_utf8_lossy(&answer.body).contains("}\n\n") {
        assert!(timeout(LIMIT, stream.read_buf(&mut answer.body)).await.unwrap().unwrap() > 0);
    }
    let text = answer.text();
    let (ping, data) = (text.find("event: ping\n\n").unwrap(), text.find("event: data\ndata: {\"").unwrap());
    assert!(ping < data);
    let ending = tokio::spawn(world.running.shutdown());
    timeout(LIMIT, stream.read_to_end(&mut answer.body)).await.unwrap().unwrap();
    timeout(LIMIT, ending).await.unwrap().unwrap();
}

/// Logs in on a stream and hands back what a peer sends.
async fn relay_login(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), seed: u64) -> RelayClient {
    let mut rng = Rng::from_u64(seed);
    let secret = NodeSecret::generate(&mut rng);
    let mut client = RelayClient::new(clock::now(), secret, rng);
    while !client.is_ready() {
        relay_turn(stream, &mut client).await;
    }
    client
}

async fn relay_turn(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), client: &mut RelayClient) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let n = timeout(LIMIT, stream.read(&mut buffer)).await.expect("the relay is silent").unwrap();
    assert!(n > 0, "the relay hung up");
    let mut packet = None;
    client
        .handle_bytes(clock::now(), &buffer[..n], &mut |received: Received<'_>| {
            if let Received::Packet { packet: bytes, .. } = received {
                packet = Some(bytes.to_vec());
            }
        })
        .unwrap();
    let mut out = Vec::new();
    client.poll_output(&mut out);
    stream.write_all(&out).await.unwrap();
    stream.flush().await.unwrap();
    packet
}

#[tokio::test]
async fn both_transports_and_the_fast_start_meet_in_one_relay() {
    let world = World::new().await;
    let http = http(&world, None);
    let mut bare = http.upgrade_derp("/derp").await.unwrap();
    let mut socket = ByteStream::new(http.websocket("/derp", Some("derp")).await.unwrap());
    let mut fast = TcpStream::connect(world.address()).await.unwrap();
    let request = "GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n";
    fast.write_all(request.as_bytes()).await.unwrap();
    let (mut a, mut b, mut c) =
        (relay_login(&mut bare, 1).await, relay_login(&mut socket, 2).await, relay_login(&mut fast, 3).await);
    let key = |seed| NodeSecret::generate(&mut Rng::from_u64(seed)).public();

    let mut out = Vec::new();
    // A receiver that has not logged in yet would lose the packet: ask until it comes.
    let sent = async {
        loop {
            a.write_packet(clock::now(), &key(2), b"from a", &mut out);
            bare.write_all(&out).await.unwrap();
            bare.flush().await.unwrap();
            out.clear();
            if let Ok(Some(packet)) = timeout(Duration::from_millis(200), relay_turn(&mut socket, &mut b)).await {
                return packet;
            }
        }
    };
    assert_eq!(timeout(LIMIT, sent).await.unwrap(), b"from a");
    let sent = async {
        loop {
            b.write_packet(clock::now(), &key(3), b"from b", &mut out);
            socket.write_all(&out).await.unwrap();
            socket.flush().await.unwrap();
            out.clear();
            if let Ok(Some(packet)) = timeout(Duration::from_millis(200), relay_turn(&mut fast, &mut c)).await {
                return packet;
            }
        }
    };
    assert_eq!(timeout(LIMIT, sent).await.unwrap(), b"from b");
}

/// What follows the answer to the relay's upgrade in `derp-http.json`: refusals, subprotocols, header forms.
#[tokio::test]
async fn the_relays_http_side_answers_as_the_go_server() {
    let world = World::new().await;
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/wire/derp-http.json")).unwrap();
    let mut checked = 0;
    for exchange in vectors["exchanges"].as_array().unwrap() {
        let name = exchange["name"].as_str().unwrap();
        let Some(expected) = exchange["response_without_date"].as_str() else { continue };
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        let request = exchange["request"].as_str().unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        if expected.is_empty() {
            while read.len() < 45 {
                assert!(timeout(LIMIT, stream.read_buf(&mut read)).await.expect(name).unwrap() > 0, "{name}");
            }
            assert_eq!(&read[..13], b"\x01\x00\x00\x00\x28DERP\xf0\x9f\x94\x91", "{name}");
            checked += 1;
            continue;
        }
        while !read.windows(4).any(|w| w == b"\r\n\r\n") {
            assert!(timeout(LIMIT, stream.read_buf(&mut read)).await.expect(name).unwrap() > 0, "{name}");
        }
        let head = String::from_utf8_lossy(&read).split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
        let mut lines = expected.trim_end().split("\r\n");
        let status = lines.next().unwrap();
        assert_eq!(head.split("\r\n").next().unwrap().split(' ').nth(1), status.split(' ').nth(1), "{name}");
        for line in lines {
            let (field, value) = line.split_once(": ").unwrap();
            let own = head.split("\r\n").find_map(|l| l.strip_prefix(&format!("{}: ", field.to_ascii_lowercase())));
            match field {
                "Derp-Public-Key" => assert_eq!(own.map(str::len), Some(64), "{name}"),
                _ => assert_eq!(own, Some(value.to_ascii_lowercase().as_str()), "{name}: {field}"),
            }
        }
        let body = exchange["body"].as_str().unwrap_or_default().as_bytes();
        let code = exchange["server_messages"][0]["close_code"].is_u64();
        let wire = hex::decode(exchange["server_messages"][0]["wire"].as_str().unwrap_or_default()).unwrap();
        let after = if code { wire.as_slice() } else { body };
        while !after.is_empty() && !read.ends_with(after) {
            assert!(timeout(LIMIT, stream.read_buf(&mut read)).await.expect(name).unwrap() > 0, "{name}");
        }
        checked += 1;
    }
    assert!(checked > 8, "{checked} exchanges only");
}
