//! Our nodes, a client and an agent, with Go's coordinator.

use super::{ROW, UNKNOWN_CALL};
use crate::{
    harness::LIMIT,
    peers::{Context, GO_SERVER, Lines, Need, Program, free_port, region, runtime, secret},
    table::{Cell, Outcome},
};
use anyhow::{Context as _, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::net::SocketAddrV6;
use tailnet::{
    base::RegionId,
    driver::{
        clock,
        http::{Http, HttpError, HttpOptions, ProxyChoice, Token},
    },
    net::{Config, Control, ControlRole, ControlStatus, RelayServer, Stream, Tailnet},
    wire::{coord::tailnet::REFRESH_RESUME_TOKEN, derp::RelayMap},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    runtime::Runtime,
    time::timeout,
};
use uuid::Uuid;

/// Where our agent of these cells listens.
const PORT: u16 = 700;

pub fn cells() -> Vec<Cell> {
    let needs = [Need::Program(Program::Coordinator)];
    let cell =
        |name: &str, run: fn(&Context) -> Outcome| Cell::new(ROW, format!("our client, Go coordinator, {name}"), &needs, run);
    vec![
        cell("resume token", resume_token),
        cell("lost and back under a live tunnel", lost_and_back),
        cell("relay map pushed live", relay_map_pushed),
        cell("unknown call", unknown_call),
        cell("killed under a live tunnel, another in its place", killed),
        Cell::new(ROW, "our client, Go server, version refused", &GO_SERVER, version_refused),
    ]
}

/// Go's coordinator, and two nodes of ours that know each other through it alone.
struct World {
    runtime: Runtime,
    coordinator: Lines,
    port: u16,
    agent_id: Uuid,
    client: Tailnet,
    control: Control,
    _agent: Tailnet,
    agent_control: Control,
    /// The peer id that the coordinator gave the client.
    id: Value,
}

impl World {
    /// With this relay map; direct paths only where `direct` is set.
    fn start(context: &Context, direct: bool, relays: impl FnOnce(&Runtime) -> RelayMap) -> anyhow::Result<Self> {
        let runtime = runtime();
        let (agent_id, port) = (Uuid::new_v4(), free_port());
        let map = relays(&runtime);
        let mut coordinator = coordinator(context, port, agent_id, &map);
        let (agent, agent_control) = runtime.block_on(async {
            let http = http(port)?;
            let control = Control::open(http.clone(), ControlRole::Agent);
            let config =
                Config { control: Some(control.clone()), relay_map: Some(map.clone()), direct, ..Config::agent(http, agent_id)? };
            let agent = Tailnet::start(config)?;
            serve_echo(&agent).await?;
            control.open_coordination();
            Ok::<_, anyhow::Error>((agent, control))
        })?;
        let (client, control) = runtime.block_on(async {
            let http = http(port)?;
            let control = Control::open(http.clone(), ControlRole::Client { agent: agent_id });
            let destinations = vec![agent_id];
            let config =
                Config { control: Some(control.clone()), relay_map: Some(map), destinations, direct, ..Config::client(http)? };
            Ok::<_, anyhow::Error>((Tailnet::start(config)?, control))
        })?;
        let connected = coordinator.event_within("connected", LIMIT, |event| event["role"] == "client");
        ensure!(connected["resumed"] == false && connected["version"] == "2.0", "the first connection: {connected}");
        let id = connected["id"].clone();
        Ok(Self { runtime, coordinator, port, agent_id, client, control, _agent: agent, agent_control, id })
    }

    fn dial(&self) -> anyhow::Result<Stream> {
        let [address, _] = tailnet::base::agent_addresses(self.agent_id);
        let dial = self.client.dial_tcp_within(SocketAddrV6::new(address, PORT, 0, 0), LIMIT);
        self.runtime.block_on(dial).context("no tunnel")
    }

    /// Sends a text there and back.
    fn echo(&self, stream: &mut Stream, text: &str) -> anyhow::Result<()> {
        let both = async {
            stream.write_all(text.as_bytes()).await?;
            let mut back = vec![0; text.len()];
            stream.read_exact(&mut back).await?;
            Ok::<_, std::io::Error>(back)
        };
        let back =
            self.runtime.block_on(async { timeout(LIMIT, both).await }).with_context(|| format!("no echo of {text:?}"))??;
        ensure!(back == text.as_bytes(), "another echo");
        Ok(())
    }

    /// Makes sure that the client holds a resume token: its own question for one came before this one.
    fn await_resume_token(&self) -> anyhow::Result<()> {
        for _ in 0..2 {
            self.runtime.block_on(self.control.call(REFRESH_RESUME_TOKEN, Vec::new()))?;
        }
        Ok(())
    }

    /// Waits for the so-manieth connection of a control socket.
    fn await_connection(&self, control: &Control, number: u64) -> anyhow::Result<()> {
        let mut status = control.status();
        let stands = |status: &ControlStatus| matches!(status, ControlStatus::Connected(n) if *n >= number);
        let wait = async { timeout(LIMIT, status.wait_for(stands)).await.map(|found| found.map(drop)) };
        self.runtime.block_on(wait).map_err(|_| anyhow!("no connection {number}: {:?}", *control.status().borrow()))??;
        Ok(())
    }

    /// Both sockets broke; both come back.
    fn both_are_back(&mut self) -> anyhow::Result<Value> {
        let back = self.coordinator.event_within("connected", LIMIT, |event| event["role"] == "client");
        self.coordinator.event_within("connected", LIMIT, |event| event["role"] == "agent");
        self.await_connection(&self.control, 2)?;
        self.await_connection(&self.agent_control, 2)?;
        Ok(back)
    }
}

fn http(port: u16) -> Result<Http, HttpError> {
    http_at(&format!("http://127.0.0.1:{port}"), None)
}

fn http_at(url: &str, token: Option<Token>) -> Result<Http, HttpError> {
    Http::new(url, token, HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() })
}

fn coordinator(context: &Context, port: u16, agent: Uuid, relays: &RelayMap) -> Lines {
    let mut command = context.program(Program::Coordinator);
    command.args(["-address", &format!("127.0.0.1:{port}"), "-agent", &agent.to_string(), "-relays", &json!(relays).to_string()]);
    let mut coordinator = Lines::start("Go's coordinator", command);
    coordinator.event("listening");
    coordinator
}

/// A relay of ours; gives its port.
fn relay(runtime: &Runtime) -> u16 {
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let relay = RelayServer::new(secret(), clock::random().unwrap());
        tokio::spawn(async move { relay.listen(listener).await });
        port
    })
}

/// A map of one region.
fn map(id: u16, port: u16) -> RelayMap {
    RelayMap { regions: [(RegionId::new(id).unwrap(), region(port))].into(), ..RelayMap::default() }
}

async fn serve_echo(node: &Tailnet) -> anyhow::Result<()> {
    let mut listener = node.listen_tcp(PORT).await?;
    tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            let Ok(stream) = incoming.accept().await else { continue };
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    Ok(())
}

fn resume_token(context: &Context) -> Outcome {
    let mut world = World::start(context, true, |runtime| map(7, relay(runtime)))?;
    world.await_resume_token()?;
    world.coordinator.ask(&json!({ "op": "drop" }));
    let back = world.both_are_back()?;
    ensure!(back["resumed"] == true && back["id"] == world.id, "first {}, then {back}", world.id);
    Ok(String::new())
}

fn lost_and_back(context: &Context) -> Outcome {
    let mut world = World::start(context, true, |runtime| map(7, relay(runtime)))?;
    let mut stream = world.dial()?;
    world.echo(&mut stream, "before")?;
    world.coordinator.ask(&json!({ "op": "drop" }));
    world.echo(&mut stream, "while both are away, or just back")?;
    world.both_are_back()?;
    world.echo(&mut stream, "after")?;
    let mut another = world.dial()?;
    world.echo(&mut another, "on a new connection")?;
    let counters = world.runtime.block_on(world.client.counters())?;
    Ok(format!("{} handshakes begun", counters.node.initiations_sent))
}

/// The only relay moves to another region and place: nodes without direct paths have to follow.
fn relay_map_pushed(context: &Context) -> Outcome {
    let mut second = 0;
    let mut world = World::start(context, false, |runtime| {
        second = relay(runtime);
        map(7, relay(runtime))
    })?;
    let mut stream = world.dial()?;
    world.echo(&mut stream, "by the first relay")?;
    world.coordinator.ask(&json!({ "op": "relays", "map": map(8, second) }));
    let mut own = world.client.own_node();
    let moved =
        async { timeout(LIMIT, own.wait_for(|node| node.as_ref().is_some_and(|node| node.preferred_derp == 8))).await.map(drop) };
    world.runtime.block_on(moved).context("the client's home stayed where it was")?;
    world.echo(&mut stream, "by the second relay")?;
    Ok(String::new())
}

fn unknown_call(context: &Context) -> Outcome {
    let world = World::start(context, true, |runtime| map(7, relay(runtime)))?;
    let Err(error) = world.runtime.block_on(world.control.call(UNKNOWN_CALL, Vec::new())) else { bail!("it was answered") };
    ensure!(error.is_unimplemented(), "it counts as another failure: {error}");
    let mut stream = world.dial()?;
    world.echo(&mut stream, "the connection goes on")?;
    ensure!(matches!(*world.control.status().borrow(), ControlStatus::Connected(1)), "the call ended the connection");
    Ok(error.to_string())
}

/// The next coordinator has other keys: it refuses the resume token, and the client comes as somebody new.
fn killed(context: &Context) -> Outcome {
    let mut map_of_all = None;
    let mut world = World::start(context, true, |runtime| map_of_all.insert(map(7, relay(runtime))).clone())?;
    let mut stream = world.dial()?;
    world.echo(&mut stream, "before")?;
    world.await_resume_token()?;
    world.coordinator.process().kill();
    let mut status = world.control.status();
    let lost = async { timeout(LIMIT, status.wait_for(|s| matches!(s, ControlStatus::Lost { .. }))).await.map(drop) };
    world.runtime.block_on(lost).context("nobody noticed that the coordinator is dead")?;
    world.echo(&mut stream, "without a coordinator")?;
    world.coordinator = coordinator(context, world.port, world.agent_id, &map_of_all.context("a map")?);
    let refused = world.coordinator.event_within("refused", LIMIT, |event| event["role"] == "client");
    let back = world.both_are_back()?;
    ensure!(back["resumed"] == false && back["id"] != world.id, "after the refusal {refused}: {back}");
    world.echo(&mut stream, "with another coordinator")?;
    let mut another = world.dial()?;
    world.echo(&mut another, "on a new connection")?;
    Ok(String::new())
}

fn version_refused(context: &Context) -> Outcome {
    let server = context.go_server();
    let runtime = runtime();
    let http = http_at(&server.url, Some(Token::new(server.token.clone())))?;
    let agent = server.workspace("one");
    let as_agent = http.with_token(Some(Token::new(agent.token.clone())));
    let client_path = format!("/api/v2/workspaceagents/{}/coordinate", agent.id);
    let mut reasons = Vec::new();
    for (http, path, versions) in [
        (&http, client_path.as_str(), &["?version=9.9", "?version=2.99", "?version=1.0", "?version=x", ""][..]),
        (&as_agent, "/api/v2/workspaceagents/me/rpc", &["?version=9.9", "?version=2.99", "?version=1.0", "?version=x"][..]),
    ] {
        for version in versions {
            let Err(HttpError::Refused(refusal)) = runtime.block_on(http.websocket(&format!("{path}{version}"), None)) else {
                bail!("{path}{version} was not refused");
            };
            ensure!(refusal.status == 400, "{path}{version}: {refusal}");
            let named = refusal.validations.iter().find(|v| v.field == "version");
            reasons.push(named.with_context(|| format!("the refusal does not name the version: {refusal}"))?.detail.clone());
        }
    }
    reasons.sort();
    reasons.dedup();
    Ok(reasons.join("; "))
}
