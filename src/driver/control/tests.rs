//! The control socket against the server's engine, over loopback.

use super::*;
use crate::{
    driver::{
        clock,
        http::{HttpOptions, ProxyChoice, Token},
        websocket::{ByteStream, MAX_MESSAGE, WebSocket, accept_key},
    },
    proto::coord::{ServerEvent, ServerRole, ServerSession},
    wire::coord::tailnet::{CoordinateRequest, CoordinateResponse, RefreshResumeTokenResponse},
};
use prost::Message as _;
use prost_types::Timestamp;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);
const AGENT: Uuid = Uuid::from_u128(7);

struct Server(TcpListener);

impl Server {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn http(&self) -> Http {
        let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
        Http::new(&format!("http://{}", self.0.local_addr().unwrap()), Some(Token::new("tok-en")), options).unwrap()
    }

    /// The next dial: its head and its stream, not yet answered.
    async fn dial(&self) -> (String, TcpStream) {
        let (mut stream, _) = timeout(PATIENCE, self.0.accept()).await.expect("nobody dials").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (String::from_utf8(head).unwrap(), stream)
    }

    async fn refuse(&self, status: u16, body: &str) -> String {
        let (head, mut stream) = self.dial().await;
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        head
    }

    async fn accept(&self, role: ServerRole) -> Conn {
        let (head, mut stream) = self.dial().await;
        stream.write_all(switching(&head).as_bytes()).await.unwrap();
        let io = ByteStream::new(WebSocket::server(stream, MAX_MESSAGE));
        Conn { head, io, session: ServerSession::new(role, clock::now()) }
    }
}

#[tokio::test]
async fn connections_that_do_not_last_are_dialled_more_and_more_slowly_and_who_was_replaced_is_told() {
    let server = Server::new().await;
    let began = clock::now();
    let control = Control::open(server.http(), ControlRole::Agent);
    let mut status = control.status();
    for _ in 0..6 {
        let (head, mut stream) = server.dial().await;
        stream.write_all(switching(&head).as_bytes()).await.unwrap();
        let mut socket = WebSocket::server(stream, MAX_MESSAGE);
        socket.close(REPLACED, "another agent").await.unwrap();
        let told = |s: &ControlStatus| matches!(s, ControlStatus::Lost { why, replaced: true } if why.contains("another agent"));
        timeout(PATIENCE, status.wait_for(told)).await.expect("the agent was not told").unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    }
    // Half of 50, 100, 200, 400 and 800 ms.
    let passed = clock::now() - began;
    assert!(passed >= Duration::from_millis(775), "{passed:?}");
}

fn switching(head: &str) -> String {
    let key = head.lines().find_map(|l| l.to_ascii_lowercase().starts_with("sec-websocket-key").then(|| &l[19..])).unwrap();
    let accept = accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

struct Conn {
    head: String,
    io: ByteStream<TcpStream>,
    session: ServerSession,
}

impl Conn {
    /// The next event that `pick` wants. Calls for a resume token are answered with `token` on the way.
    async fn next<T>(&mut self, token: Option<&str>, mut pick: impl FnMut(ServerEvent) -> Option<T>) -> T {
        let search = async {
            loop {
                while let Some(event) = self.session.poll_event() {
                    match (&event, token) {
                        (ServerEvent::Call { call, path, .. }, Some(token)) if path.ends_with("RefreshResumeToken") => {
                            let response = RefreshResumeTokenResponse {
                                token: token.to_owned(),
                                refresh_in: None,
                                expires_at: Some(Timestamp { seconds: i64::from(u32::MAX), nanos: 0 }),
                            };
                            self.session.reply(*call, Ok(&response.encode_to_vec()));
                        }
                        _ => {
                            if let Some(found) = pick(event) {
                                self.flush().await;
                                return found;
                            }
                        }
                    }
                }
                self.flush().await;
                let mut buffer = vec![0; 4096];
                let n = self.io.read(&mut buffer).await.unwrap();
                match n {
                    0 => self.session.handle_closed(),
                    n => self.session.handle_bytes(clock::now(), &buffer[..n]),
                }
            }
        };
        timeout(PATIENCE, search).await.expect("the client never did what was waited for")
    }

    async fn flush(&mut self) {
        let mut out = Vec::new();
        self.session.poll_output(&mut out);
        self.io.write_all(&out).await.unwrap();
        self.io.flush().await.unwrap();
    }

    async fn request(&mut self) -> CoordinateRequest {
        let pick = |e| if let ServerEvent::Coordinate { request, .. } = e { Some(*request) } else { None };
        self.next(Some("first"), pick).await
    }
}

fn node(home: i32) -> Box<Node> {
    Box::new(Node { preferred_derp: home, ..Node::default() })
}

#[tokio::test]
async fn a_call_waits_for_the_first_connection_and_gets_its_answer() {
    let server = Server::new().await;
    let control = Control::open(server.http(), ControlRole::Agent);
    let call = tokio::spawn({
        let control = control.clone();
        async move { control.call("/coder.agent.v2.Agent/GetManifest", b"ask".to_vec()).await }
    });
    server.refuse(503, "").await;
    let mut conn = server.accept(ServerRole::Agent).await;
    assert!(conn.head.starts_with("GET /api/v2/workspaceagents/me/rpc?version=2.0&role=agent "), "{}", conn.head);
    assert!(conn.head.to_ascii_lowercase().contains("coder-session-token: tok-en"));
    let call_id = conn
        .next(None, |e| match e {
            ServerEvent::Call { call, path, body } => {
                assert_eq!((path.as_str(), body.as_slice()), ("/coder.agent.v2.Agent/GetManifest", &b"ask"[..]));
                Some(call)
            }
            other => panic!("{other:?}"),
        })
        .await;
    conn.session.reply(call_id, Ok(b"answer"));
    conn.flush().await;
    assert_eq!(timeout(PATIENCE, call).await.unwrap().unwrap(), Ok(b"answer".to_vec()));
    control.connected().await.unwrap();
}

#[tokio::test]
async fn tunnels_and_node_are_told_again_after_a_reconnect_and_the_token_is_used() {
    let server = Server::new().await;
    let control = Control::open(server.http(), ControlRole::Client { agent: AGENT });
    let mut updates = control.take_updates().unwrap();
    control.announce(node(3));
    for round in 0..2 {
        let mut conn = server.accept(ServerRole::Client).await;
        assert_eq!(conn.head.contains("&resume_token=first "), round == 1, "{}", conn.head);
        assert_eq!(conn.request().await.add_tunnel.unwrap().id, AGENT.as_bytes());
        let told = conn.request().await.update_self.unwrap().node.unwrap();
        assert_eq!(told.preferred_derp, 3);
        assert!(told.as_of.is_some());
        // The answer to a later call proves that the token before it has arrived.
        let call = tokio::spawn({
            let control = control.clone();
            async move { control.call("/x/Y", Vec::new()).await }
        });
        let pick = |e| if let ServerEvent::Call { call, path, .. } = e { (path == "/x/Y").then_some(call) } else { None };
        let id = conn.next(Some("first"), pick).await;
        conn.session.reply(id, Ok(b""));
        conn.flush().await;
        timeout(PATIENCE, call).await.unwrap().unwrap().unwrap();
        drop(conn);
        assert!(matches!(timeout(PATIENCE, updates.recv()).await.unwrap(), Some(Update::Lost)));
    }
    assert!(matches!(&*control.status().borrow(), ControlStatus::Lost { .. }));
    assert_eq!(control.call("/x/Y", Vec::new()).await, Err(CallError::Closed), "nothing waits between two connections");
    // A token that the server no longer likes is dropped without waiting.
    let body = r#"{"message":"Invalid resume token","validations":[{"field":"resume_token","detail":"x"}]}"#;
    assert!(server.refuse(401, body).await.contains("resume_token"));
    assert!(!server.accept(ServerRole::Client).await.head.contains("resume_token"));
}

#[tokio::test]
async fn updates_and_relay_maps_reach_the_loop_with_the_embedded_relay_rewritten() {
    use crate::wire::derp::{Region, RelayNode};
    let server = Server::new().await;
    let control = Control::open(server.http(), ControlRole::Client { agent: AGENT });
    let mut updates = control.take_updates().unwrap();
    assert!(control.take_updates().is_none());
    let mut conn = server.accept(ServerRole::Client).await;
    let opened = conn.next(None, |e| if let ServerEvent::CoordinateOpened { call } = e { Some(call) } else { None }).await;
    let node = RelayNode { host: "elsewhere.invalid".into(), ..RelayNode::default() };
    let region = Region { embedded: true, nodes: vec![node], ..Region::default() };
    let mut map = RelayMap::default();
    map.regions.insert(crate::base::RegionId::new(999).unwrap(), region);
    let update = PeerUpdate { id: AGENT.as_bytes().to_vec(), ..PeerUpdate::default() };
    conn.session.send_relay_map(&(&map).into());
    conn.session.send_coordinate(opened, &CoordinateResponse { peer_updates: vec![update.clone()], error: String::new() });
    conn.flush().await;
    // Served until both are there: the map's stream may not be open yet.
    let server_side = tokio::spawn(async move { conn.next(None, |e| matches!(e, ServerEvent::Dead(_)).then_some(())).await });
    let (mut peer, mut relays) = (None, None);
    while peer.is_none() || relays.is_none() {
        match timeout(PATIENCE, updates.recv()).await.unwrap().unwrap() {
            Update::Peer(update) => peer = Some(*update),
            Update::RelayMap(map) => relays = Some(map),
            Update::Lost => panic!("the connection stands"),
        }
    }
    assert_eq!(peer.unwrap(), update);
    let node = relays.unwrap().regions.into_values().next().unwrap().nodes.remove(0);
    let port = server.0.local_addr().unwrap().port();
    assert_eq!((node.host.as_str(), node.relay_port, node.plain_http), ("127.0.0.1", port, true));
    server_side.abort();
}

#[tokio::test]
async fn a_refusal_of_the_first_dial_is_final_and_says_why() {
    for status in [400, 401, 403, 404, 409, 500] {
        let server = Server::new().await;
        let control = Control::open(server.http(), ControlRole::Client { agent: AGENT });
        let call = control.call("/x/Y", Vec::new());
        let serve = server.refuse(status, r#"{"message":"Not you."}"#);
        let (answer, _) = tokio::join!(call, serve);
        assert_eq!(answer, Err(CallError::Closed));
        let error = control.connected().await.unwrap_err();
        assert_eq!(error.status(), Some(status));
        assert!(error.to_string().contains("Not you"));
    }
}

#[tokio::test]
async fn a_refusal_after_a_connection_is_retried() {
    let server = Server::new().await;
    let _control = Control::open(server.http(), ControlRole::Client { agent: AGENT });
    drop(server.accept(ServerRole::Client).await);
    server.refuse(401, "").await;
    server.accept(ServerRole::Client).await;
}

#[tokio::test]
async fn closing_says_good_bye_and_does_not_wait_for_a_server_that_never_answers() {
    let server = Server::new().await;
    let control = Control::open(server.http(), ControlRole::Client { agent: AGENT });
    let mut conn = server.accept(ServerRole::Client).await;
    conn.request().await;
    let closing = tokio::spawn(async move { control.close().await });
    loop {
        if conn.request().await.disconnect.is_some() {
            break;
        }
    }
    timeout(PATIENCE, closing).await.expect("close hangs").unwrap();
    drop(conn);
}

#[tokio::test]
async fn the_last_handle_closes_the_socket() {
    let server = Server::new().await;
    let control = Control::open(server.http(), ControlRole::Client { agent: AGENT });
    let mut conn = server.accept(ServerRole::Client).await;
    conn.request().await;
    drop(control);
    loop {
        if conn.request().await.disconnect.is_some() {
            break;
        }
    }
}
