//! The agent's rounds against the server's engine over loopback.

#[cfg(target_os = "linux")]
pub(in crate::agent) mod held;
mod scripts;

use super::{Config, run};
use crate::{
    driver::{
        clock,
        http::{HttpOptions, ProxyChoice, Token},
        websocket::{ByteStream, MAX_MESSAGE, WebSocket, accept_key},
    },
    proto::coord::{ServerEvent, ServerRole, ServerSession},
    wire::coord::{
        agent::{
            GET_MANIFEST, LifecycleState, Manifest, Stats, UPDATE_LIFECYCLE, UPDATE_STARTUP, UPDATE_STATS,
            UpdateLifecycleRequest, UpdateStartupRequest, UpdateStatsRequest, UpdateStatsResponse,
        },
        tailnet::{CoordinateRequest, DerpMap, HomeParams, Region, RelayNode},
    },
};
use prost::Message as _;
use std::{collections::VecDeque, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);
const AGENT: Uuid = Uuid::from_u128(0x2b1e_3346_53c0_4d1b_a0e5_3cbb_8f6e_d1a0);

/// What the server saw on one connection.
#[derive(Debug)]
enum Seen {
    Call(String, Vec<u8>),
    Coordinate(Box<CoordinateRequest>),
}

/// One region: the relay embedded in the server.
fn relay_map() -> DerpMap {
    let node = RelayNode { name: "1a".into(), region_id: 1, host_name: "elsewhere".into(), ..RelayNode::default() };
    let region = Region { region_id: 1, embedded_relay: true, nodes: vec![node], ..Region::default() };
    DerpMap { home_params: Some(HomeParams::default()), regions: [(1, region)].into() }
}

fn manifest() -> Manifest {
    Manifest {
        agent_id: AGENT.as_bytes().to_vec(),
        workspace_id: Uuid::from_u128(5).as_bytes().to_vec(),
        agent_name: "main".into(),
        workspace_name: "dev".into(),
        owner_username: "alice".into(),
        directory: "~/project".into(),
        derp_map: Some(relay_map()),
        ..Manifest::default()
    }
}

/// A server that holds one control connection at a time; everything else it is asked for is not found.
struct Server {
    listener: TcpListener,
    /// Where the agent puts what its scripts have and say.
    folder: TempDir,
}

struct Conn {
    /// What was seen and not looked for yet.
    passed: VecDeque<Seen>,
    seen: mpsc::UnboundedReceiver<Seen>,
    task: JoinHandle<()>,
}

impl Server {
    async fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    /// Starts an agent; the sender stops it.
    fn agent(&self) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
        let url = format!("http://{}", self.listener.local_addr().unwrap());
        let config = Config {
            log_dir: Some(self.folder.path().to_owned()),
            script_data_dir: Some(self.folder.path().to_owned()),
            ..Config::new(url, Token::new("sesame"), options)
        };
        assert!(!format!("{config:?}").contains("sesame"));
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            run(config, async { stopped.await.unwrap() }).await.unwrap();
        });
        (stop, running)
    }

    /// The next dial of the control socket, not yet answered.
    async fn dial(&self) -> (String, TcpStream) {
        let search = async {
            loop {
                let (mut stream, _) = self.listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        // The agent has given it up meanwhile.
                        Err(_) => break,
                    }
                }
                let head = String::from_utf8(head).unwrap();
                if head.starts_with("GET /api/v2/workspaceagents/me/rpc?") {
                    return (head, stream);
                }
                let _ = stream.write_all(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            }
        };
        timeout(PATIENCE, search).await.expect("the agent does not dial")
    }

    async fn refuse(&self, status: u16) {
        let (_, mut stream) = self.dial().await;
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    /// Takes the next control connection and answers its calls; the n-th call for a manifest gets the n-th of `manifests`,
    /// the last one for ever.
    async fn accept(&self, manifests: Vec<Manifest>) -> Conn {
        let (head, mut stream) = self.dial().await;
        let key = head.lines().find_map(|l| l.to_ascii_lowercase().starts_with("sec-websocket-key").then(|| &l[19..])).unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            accept_key(key.as_bytes())
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let io = ByteStream::new(WebSocket::server(stream, MAX_MESSAGE));
        let (sender, seen) = mpsc::unbounded_channel();
        Conn { passed: VecDeque::new(), seen, task: tokio::spawn(serve(io, manifests, sender)) }
    }
}

async fn serve(mut io: ByteStream<TcpStream>, mut manifests: Vec<Manifest>, seen: mpsc::UnboundedSender<Seen>) {
    let mut session = ServerSession::new(ServerRole::Agent, clock::now());
    loop {
        while let Some(event) = session.poll_event() {
            match event {
                ServerEvent::Call { call, path, body } => {
                    let answer = match path.as_str() {
                        GET_MANIFEST if manifests.len() > 1 => manifests.remove(0).encode_to_vec(),
                        GET_MANIFEST => manifests[0].encode_to_vec(),
                        UPDATE_STATS => {
                            let report_interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
                            UpdateStatsResponse { report_interval }.encode_to_vec()
                        }
                        _ => Vec::new(),
                    };
                    session.reply(call, Ok(&answer));
                    let _ = seen.send(Seen::Call(path, body));
                }
                ServerEvent::Coordinate { request, call } => {
                    if request.disconnect.is_some() {
                        session.close_coordinate(call);
                    }
                    let _ = seen.send(Seen::Coordinate(request));
                }
                ServerEvent::DerpMapsWanted => session.send_relay_map(&relay_map()),
                ServerEvent::Dead(_) => return,
                _ => {}
            }
        }
        let mut out = Vec::new();
        session.poll_output(&mut out);
        if io.write_all(&out).await.is_err() || io.flush().await.is_err() {
            return;
        }
        let mut buffer = vec![0; 4096];
        match io.read(&mut buffer).await {
            Ok(0) | Err(_) => session.handle_closed(),
            Ok(n) => session.handle_bytes(clock::now(), &buffer[..n]),
        }
    }
}

impl Conn {
    async fn next(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("the agent is silent").expect("the connection ended")
    }

    /// The first that `pick` wants; the rest is kept.
    async fn find<T>(&mut self, what: &str, mut pick: impl FnMut(&Seen) -> Option<T>) -> T {
        if let Some((at, found)) = self.passed.iter().enumerate().find_map(|(at, seen)| Some((at, pick(seen)?))) {
            self.passed.remove(at);
            return found;
        }
        let search = async {
            loop {
                let seen = self.seen.recv().await.expect("the connection ended");
                match pick(&seen) {
                    Some(found) => return found,
                    None => self.passed.push_back(seen),
                }
            }
        };
        timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("no {what}"))
    }

    /// The next call of `path`.
    async fn call<M: prost::Message + Default>(&mut self, path: &str) -> M {
        let pick = |seen: &Seen| match seen {
            Seen::Call(called, body) if called == path => Some(M::decode(body.as_slice()).unwrap()),
            _ => None,
        };
        self.find(path, pick).await
    }

    async fn state(&mut self) -> LifecycleState {
        self.call::<UpdateLifecycleRequest>(UPDATE_LIFECYCLE).await.lifecycle.unwrap().state()
    }

    /// The key of our node as the agent announces it.
    async fn announced_key(&mut self) -> Vec<u8> {
        self.find("announcement", announced_key).await
    }
}

fn announced_key(seen: &Seen) -> Option<Vec<u8>> {
    let Seen::Coordinate(request) = seen else { return None };
    request.update_self.as_ref().map(|update| update.node.clone().unwrap().key)
}

#[tokio::test]
async fn a_first_round_goes_in_order() {
    let server = Server::new().await;
    let _agent = server.agent();
    let mut conn = server.accept(vec![manifest()]).await;
    assert!(matches!(conn.next().await, Seen::Call(path, _) if path == GET_MANIFEST));
    let Seen::Call(path, body) = conn.next().await else { panic!("coordination before the start") };
    assert_eq!(path, UPDATE_STARTUP);
    let startup = UpdateStartupRequest::decode(body.as_slice()).unwrap().startup.unwrap();
    assert!(startup.version.starts_with('v') && startup.expanded_directory.ends_with("/project"), "{startup:?}");
    assert!(startup.expanded_directory.starts_with('/'));
    assert_eq!(conn.state().await, LifecycleState::Starting);
    assert_eq!(conn.state().await, LifecycleState::Ready);
    assert!(!conn.announced_key().await.is_empty());
}

#[tokio::test]
async fn statistics_are_asked_for_and_then_reported() {
    let server = Server::new().await;
    let _agent = server.agent();
    let mut conn = server.accept(vec![manifest()]).await;
    assert_eq!(conn.call::<UpdateStatsRequest>(UPDATE_STATS).await.stats, None);
    let report: Stats = conn.call::<UpdateStatsRequest>(UPDATE_STATS).await.stats.unwrap();
    assert_eq!((report.rx_bytes, report.session_count_ssh), (0, 0));
}

#[tokio::test]
async fn a_lost_connection_changes_neither_node_nor_lifecycle() {
    let server = Server::new().await;
    let _agent = server.agent();
    let mut first = server.accept(vec![manifest()]).await;
    while first.state().await != LifecycleState::Ready {}
    let key = first.announced_key().await;
    first.task.abort();
    let mut second = server.accept(vec![manifest()]).await;
    let again = second.announced_key().await;
    assert_eq!(again, key);
    let began = |seen: &Seen| matches!(seen, Seen::Call(path, _) if path == UPDATE_LIFECYCLE);
    assert!(!second.passed.iter().any(began), "the lifecycle began anew");
}

#[tokio::test]
async fn a_server_that_refuses_is_asked_again() {
    let server = Server::new().await;
    let _agent = server.agent();
    server.refuse(401).await;
    server.refuse(503).await;
    server.refuse(401).await;
    let mut conn = server.accept(vec![manifest()]).await;
    assert_eq!(conn.state().await, LifecycleState::Starting);
}

#[tokio::test]
async fn a_useless_manifest_is_asked_for_again() {
    let server = Server::new().await;
    let _agent = server.agent();
    let mut conn = server.accept(vec![Manifest { agent_id: vec![0; 16], ..manifest() }, manifest()]).await;
    assert!(matches!(conn.next().await, Seen::Call(path, _) if path == GET_MANIFEST));
    assert!(matches!(conn.next().await, Seen::Call(path, _) if path == GET_MANIFEST));
    assert_eq!(conn.state().await, LifecycleState::Starting);
}

#[tokio::test]
async fn a_stop_reports_its_states_and_says_good_bye() {
    let server = Server::new().await;
    let (stop, running) = server.agent();
    let mut conn = server.accept(vec![manifest()]).await;
    conn.announced_key().await;
    assert_eq!(conn.state().await, LifecycleState::Starting);
    assert_eq!(conn.state().await, LifecycleState::Ready);
    stop.send(()).unwrap();
    assert_eq!(conn.state().await, LifecycleState::ShuttingDown);
    assert_eq!(conn.state().await, LifecycleState::Off);
    let disconnect = |seen: &Seen| matches!(seen, Seen::Coordinate(request) if request.disconnect.is_some()).then_some(());
    conn.find("good-bye", disconnect).await;
    timeout(PATIENCE, running).await.expect("the agent does not end").unwrap();
}

#[tokio::test]
async fn a_stop_before_the_first_connection_ends_at_once() {
    let server = Server::new().await;
    let (stop, running) = server.agent();
    server.dial().await;
    stop.send(()).unwrap();
    timeout(PATIENCE, running).await.expect("the agent does not end").unwrap();
}
