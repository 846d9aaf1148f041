//! The services as a peer meets them, through a real tunnel on this host.

use super::*;
use crate::{
    agent::Profile,
    base::{RegionId, agent_addresses},
    driver::{
        clock,
        http::{Http, HttpOptions, ProxyChoice},
    },
    net::{Config, DialError, Node, NodeSecret, RelayMap, RelayServer, Stream},
    wire::{
        coord::agent::Manifest,
        derp::{Region, RelayNode},
        pty::{Opening, Request, Size},
    },
};
use futures::poll;
use serde_json::json;
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV6},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, UdpSocket},
    task::JoinSet,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(60);
const AGENT: Uuid = Uuid::from_u128(0x2b1e_3346_53c0_4d1b_a0e5_3cbb_8f6e_d1a0);

/// An agent with all its services, and somebody who has a tunnel to it.
struct World {
    client: Tailnet,
    services: Services,
    _relay: JoinSet<()>,
    _introduction: JoinSet<()>,
}

fn http() -> Http {
    Http::new("http://unused.invalid", None, HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() }).unwrap()
}

impl World {
    async fn new() -> Self {
        let mut rng = clock::random().unwrap();
        let server = RelayServer::new(NodeSecret::generate(&mut rng), rng);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay_port = listener.local_addr().unwrap().port();
        let host = "127.0.0.1".to_owned();
        let node = RelayNode { name: "1a".into(), host, relay_port, plain_http: true, stun_port: None, ..RelayNode::default() };
        let region = Region { code: "one".into(), embedded: true, nodes: vec![node], ..Region::default() };
        let map = RelayMap { regions: [(RegionId::new(1).unwrap(), region)].into(), ..RelayMap::default() };
        let mut _relay = JoinSet::new();
        _relay.spawn(async move { server.listen(listener).await.unwrap() });

        let start = |config: Config| Tailnet::start(Config { relay_map: Some(map.clone()), ..config }).unwrap();
        let agent = start(Config::agent(http(), AGENT).unwrap());
        let client = start(Config::client(http()).unwrap());
        let mut _introduction = JoinSet::new();
        for (id, from, to) in [(AGENT, &agent, &client), (Uuid::from_u128(1), &client, &agent)] {
            let (mut own, to) = (from.own_node(), to.clone());
            _introduction.spawn(async move {
                loop {
                    let node = own.borrow_and_update().clone();
                    if let Some(node) = node {
                        to.add_peer(id, Node::clone(&node));
                    }
                    if own.changed().await.is_err() {
                        break;
                    }
                }
            });
        }
        let manifest = Manifest {
            agent_id: AGENT.as_bytes().to_vec(),
            agent_name: "main".into(),
            environment_variables: [("TOKEN".to_owned(), "hunter2".to_owned())].into(),
            derp_map: Some((&map).into()),
            ..Manifest::default()
        };
        let ssh = Server::new(Profile::default());
        let services = Services::start(AGENT, agent, ssh, api::describe(&manifest), None).await.unwrap();
        for (node, other) in [(&client, agent_addresses(AGENT)[0]), (&services.tailnet, client.addresses()[0])] {
            let mut path = node.watch_path(other).await.unwrap();
            timeout(PATIENCE, path.wait_for(Option::is_some)).await.expect("they never met").unwrap();
        }
        let world = Self { client, services, _relay, _introduction };
        world.client.wait_reachable(*world.at(1).ip(), PATIENCE).await.expect("no tunnel");
        world
    }

    fn at(&self, port: u16) -> SocketAddrV6 {
        SocketAddrV6::new(agent_addresses(AGENT)[0], port, 0, 0)
    }

    async fn dial(&self, port: u16) -> Stream {
        timeout(PATIENCE, self.client.dial_tcp(self.at(port))).await.expect("the dial hangs").unwrap()
    }

    /// Status, content type and body of an answer.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String, String) {
        let mut stream = self.dial(4).await;
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("no answer").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let kind = head.lines().find_map(|l| l.strip_prefix("content-type: ")).unwrap_or_default();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), kind.to_owned(), body.to_owned())
    }

    async fn terminal(&self, opening: &Opening) -> Stream {
        let mut stream = self.dial(2).await;
        stream.write_all(&opening.write().unwrap()).await.unwrap();
        stream
    }
}

async fn read_until(stream: &mut Stream, end: &str) -> Vec<u8> {
    let mut seen = Vec::new();
    let search = async {
        while !seen.windows(end.len()).any(|w| w == end.as_bytes()) {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "no {end:?} in {:?}", String::from_utf8_lossy(&seen));
        }
    };
    timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("no {end:?}"));
    seen
}

fn typed(data: &str) -> Vec<u8> {
    Request { data: data.to_owned(), size: Size::default() }.write()
}

#[tokio::test]
async fn a_terminal_is_come_back_to_with_its_last_64_kib_and_shared_by_all_who_attach() {
    let world = World::new().await;
    let command = "stty raw -echo; head -c 150000 /dev/zero | tr '\\0' x; printf END; while read x; do echo \"got $x\"; done";
    let size = Size { height: 24, width: 80 };
    let opening = Opening { id: Uuid::from_u128(77), size, command: command.to_owned(), ..Opening::default() };
    let mut first = world.terminal(&opening).await;
    assert_eq!(read_until(&mut first, "END").await.len(), 150_003);
    first.abort();
    let mut second = world.terminal(&opening).await;
    let replay = read_until(&mut second, "END").await;
    assert_eq!((replay.len(), replay.iter().filter(|b| **b == b'x').count()), (64 << 10, (64 << 10) - 3));
    let mut third = world.terminal(&opening).await;
    assert_eq!(read_until(&mut third, "END").await, replay);
    third.write_all(&typed("hello\n")).await.unwrap();
    assert_eq!(read_until(&mut second, "got hello\n").await, read_until(&mut third, "got hello\n").await);
    assert_eq!(world.services.sample().ssh.sessions.get(pty::KIND), Some(&2));
    // The agent's stop is the end of the terminal, and told to whoever still watches, while the tunnel stands.
    world.services.end_sessions().await;
    for watcher in [&mut second, &mut third] {
        let mut rest = String::new();
        timeout(PATIENCE, watcher.read_to_string(&mut rest)).await.expect("the terminal outlives the agent").unwrap();
        assert!(rest.ends_with("the agent is shutting down\r\n"), "{rest:?}");
    }
    world.services.close().await;
}

/// Vectors whose answers are data, and the maps in them whose keys are.
const MAPS: [&str; 4] = ["DERPLatency", "DERPLatencyV4", "Regions", "environment_variables"];

/// Where `ours` has another shape than `go`: other keys, other types. Null goes with everything.
fn difference(at: &str, ours: &Value, go: &Value) -> Vec<String> {
    match (ours, go) {
        (Value::Null, _) | (_, Value::Null) => Vec::new(),
        (Value::Object(ours), Value::Object(go)) if MAPS.iter().any(|map| at.ends_with(map)) => {
            let Some(go) = go.values().next() else { return Vec::new() };
            ours.iter().flat_map(|(key, value)| difference(&format!("{at}.{key}"), value, go)).collect()
        }
        (Value::Object(ours), Value::Object(go)) => {
            let missing = go.keys().filter(|key| !ours.contains_key(*key)).map(|key| format!("{at} lacks {key}"));
            let new = ours.keys().filter(|key| !go.contains_key(*key)).map(|key| format!("{at} has {key}"));
            let both = ours.iter().filter_map(|(key, value)| Some((key, value, go.get(key)?)));
            let below = both.flat_map(|(key, value, go)| difference(&format!("{at}.{key}"), value, go));
            missing.chain(new).chain(below).collect()
        }
        (Value::Array(ours), Value::Array(go)) => {
            let Some(go) = go.first() else { return Vec::new() };
            ours.iter().flat_map(|value| difference(&format!("{at}[]"), value, go)).collect()
        }
        (ours, go) => {
            let kind = std::mem::discriminant(ours) == std::mem::discriminant(go);
            if kind { Vec::new() } else { vec![format!("{at} is {ours}, in Go {go}")] }
        }
    }
}

#[tokio::test]
async fn answers_of_the_http_api_have_the_shape_of_the_go_agents() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let vectors = [
        include_str!("../../../tests/vectors/http/agent_root.json"),
        include_str!("../../../tests/vectors/http/agent_listening_ports.json"),
        include_str!("../../../tests/vectors/http/agent_netcheck.json"),
        include_str!("../../../tests/vectors/http/agent_list_directory_home.json"),
        include_str!("../../../tests/vectors/http/agent_error_404.json"),
        include_str!("../../../tests/vectors/http/agent_error_404_list_directory.json"),
        include_str!("../../../tests/vectors/http/agent_error_500_list_directory.json"),
        include_str!("../../../tests/vectors/http/agent_debug_manifest.json"),
    ];
    for vector in vectors {
        let go: Value = serde_json::from_str(vector).unwrap();
        let request = &go["request"];
        let (method, path) = (request["method"].as_str().unwrap(), request["path"].as_str().unwrap());
        let body = if request["body"].is_null() { String::new() } else { request["body"].to_string() };
        let (status, kind, answer) = world.ask(method, path, &body).await;
        assert_eq!((json!(status), json!(kind)), (go["status"].clone(), go["headers"]["content-type"].clone()), "{path}");
        if let Value::String(text) = &go["body"] {
            assert_eq!(&answer, text, "{path}");
            continue;
        }
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(difference(path, &answer, &go["body"]), [""; 0]);
        match path {
            "/" => assert_eq!(answer, go["body"]),
            "/api/v0/listening-ports" => {
                let ports = answer["ports"].as_array().unwrap();
                assert!(!cfg!(target_os = "linux") || ports.iter().any(|p| p["port"] == port), "{answer}");
            }
            "/api/v0/netcheck" => assert_eq!(answer["net_info"]["PreferredDERP"], 1),
            "/debug/manifest" => {
                assert_eq!(answer["agent_id"], AGENT.to_string());
                assert!(!answer.to_string().contains("hunter2"));
            }
            _ => {}
        }
    }
    let (status, _, answer) = world.ask("GET", "/api/v0/containers/x", "").await;
    assert!(status == 403 && answer.contains("message"), "{answer}");
    assert_eq!(world.ask("POST", "/api/v0/netcheck", "").await.0, 405);
    assert_eq!(world.ask("GET", "/debug/logs", "").await.0, 404);
    assert!(world.ask("GET", "/debug/magicsock", "").await.2.contains("data_sent"));
    let (_, kind, metrics) = world.ask("GET", "/debug/prometheus", "").await;
    assert!(kind.starts_with("text/plain; version=0.0.4"));
    assert!(metrics.contains("# TYPE coder_agent_connections gauge\ncoder_agent_connections 1\n"), "{metrics}");
    assert!(metrics.contains("coder_agent_tunnel_data_received_total{kind=\"relay\"} "), "{metrics}");
    let long = world.ask("POST", "/api/v0/list-directory", &"x".repeat(70_000)).await;
    assert_eq!(long.0, 413);
}

#[tokio::test]
async fn a_service_on_the_ipv6_loopback_alone_is_reached_and_a_port_without_one_refuses() {
    let world = World::new().await;
    // Bound, so that nobody else gets it, but nobody listens.
    let held = TcpSocket::new_v4().unwrap();
    held.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let free = held.local_addr().unwrap().port();
    let refused = timeout(PATIENCE, world.client.dial_tcp(world.at(free))).await.unwrap().unwrap_err();
    assert_eq!(refused, DialError::Refused(free));
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
        return println!("skipped: no IPv6 on this machine");
    };
    let port = listener.local_addr().unwrap().port();
    let (mut near, accepted) = tokio::join!(world.dial(port), listener.accept());
    let (mut service, _) = accepted.unwrap();
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut question = String::new();
    timeout(PATIENCE, service.read_to_string(&mut question)).await.unwrap().unwrap();
    service.write_all(b"answer").await.unwrap();
    drop(service);
    let mut answer = String::new();
    timeout(PATIENCE, near.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
}

#[tokio::test]
async fn datagrams_reach_services_on_both_loopback_addresses_and_their_answers_come_back() {
    let world = World::new().await;
    let mut near = world.client.bind_udp(None).await.unwrap();
    let mut found = 0;
    for ip in [std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let Ok(service) = UdpSocket::bind((ip, 0)).await else { continue };
        found += 1;
        let port = service.local_addr().unwrap().port();
        near.send_to(b"ask", world.at(port)).await.unwrap();
        let mut buffer = [0; 2048];
        let (n, from) = timeout(PATIENCE, service.recv_from(&mut buffer)).await.expect("no question").unwrap();
        assert_eq!(&buffer[..n], b"ask");
        service.send_to(&[7; 1_200], from).await.unwrap();
        let answer = timeout(PATIENCE, near.recv_from()).await.expect("no answer").unwrap();
        assert_eq!(answer, (vec![7; 1_200], world.at(port)));
    }
    assert!(found > 0);
}

#[tokio::test]
async fn a_start_that_is_broken_off_ends_its_node_and_all_it_has_begun() {
    let tailnet = Tailnet::start(Config::agent(http(), AGENT).unwrap()).unwrap();
    let (handle, mut own) = (tailnet.clone(), tailnet.own_node());
    let mut start = Box::pin(Services::start(AGENT, tailnet, Server::new(Profile::default()), Value::Null, None));
    // Each port takes the node one turn: three are asked for here, and the tasks of two run.
    for _ in 0..3 {
        assert!(poll!(&mut start).is_pending());
        handle.counters().await.unwrap();
    }
    drop((start, handle));
    let ended = async { while own.changed().await.is_ok() {} };
    timeout(PATIENCE, ended).await.expect("the node lives on");
}
