//! The server as its clients see it: over TCP on loopback, with a client of few lines that hides nothing.

mod access;
mod builds;
mod keys;
mod life;
mod operation;
mod requests;
mod sockets;
mod terminal;
mod tls;
mod tunnel;

use super::{
    Config, Running, SshHosts, StunAddress, serve,
    store::{Agent, User, Workspace},
    time::Stamp,
};
use serde_json::Value;
use std::{net::SocketAddr, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use uuid::Uuid;

/// Nothing on loopback takes so long.
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn config(folder: &Path) -> Config {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    Config { stun: StunAddress::Off, rate_limits: None, ..Config::new(address, folder.to_owned()) }
}

/// A server with two users and what belongs to the first.
struct World {
    running: Running,
    /// The first user's token.
    admin: String,
    /// The other user's token.
    bob: String,
    agent_token: String,
    user: User,
    workspace: Workspace,
    agent: Agent,
    folder: TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        let running = serve(config).await.unwrap();
        let admin = std::fs::read_to_string(running.admin_token_path()).unwrap().trim().to_owned();
        let address = running.address();
        let made = call(address, "POST", "/api/v2/users", &auth(&admin), Some(r#"{"username":"bob"}"#)).await;
        let bob = made.json()["session_token"].as_str().unwrap().to_owned();
        let made = call(address, "POST", "/api/v2/users/me/workspaces", &auth(&admin), Some(r#"{"name":"dev"}"#)).await;
        let agent_token = made.json()["agent_token"].as_str().unwrap().to_owned();
        let store = running.app.store();
        let user = store.first_user().await.unwrap().unwrap();
        let workspace = store.workspace_by_name(user.id, "dev").await.unwrap();
        let agent = store.agents(workspace.id).await.unwrap().remove(0);
        Self { running, admin, bob, agent_token, user, workspace, agent, folder }
    }

    fn address(&self) -> SocketAddr {
        self.running.address()
    }

    async fn get(&self, path: &str) -> Answer {
        call(self.address(), "GET", path, &auth(&self.admin), None).await
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        call(self.address(), "POST", path, &auth(&self.admin), Some(body)).await
    }
}

fn auth(token: &str) -> Vec<(String, String)> {
    vec![("Coder-Session-Token".to_owned(), token.to_owned())]
}

/// An HTTP answer as it came.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Sends a request and reads the head of its answer; what came after it is in the body.
async fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: Option<&str>,
) -> (TcpStream, Answer) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    if let Some(body) = body {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    request += body.unwrap_or_default();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        let n = timeout(LIMIT, stream.read_buf(&mut read)).await.expect("no answer").unwrap();
        assert!(n > 0, "the server hung up: {:?}", String::from_utf8_lossy(&read));
    };
    let body = read.split_off(end + 4);
    let head = String::from_utf8(read).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|l| l.split_once(": ").unwrap()).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    (stream, Answer { status, headers, body })
}

/// A whole call on a connection of its own.
async fn call(address: SocketAddr, method: &str, path: &str, headers: &[(String, String)], body: Option<&str>) -> Answer {
    let mut headers = headers.to_vec();
    if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("connection")) {
        headers.push(("Connection".to_owned(), "close".to_owned()));
    }
    let (mut stream, mut answer) = open(address, method, path, &headers, body).await;
    if answer.status == 101 || answer.header("content-type") == Some("text/event-stream") {
        return answer;
    }
    match answer.header("content-length").map(|n| n.parse::<usize>().unwrap()) {
        Some(_) if method == "HEAD" => {}
        Some(length) => {
            while answer.body.len() < length {
                assert!(timeout(LIMIT, stream.read_buf(&mut answer.body)).await.unwrap().unwrap() > 0);
            }
        }
        None if answer.status == 204 || method == "HEAD" => {}
        None => drop(timeout(LIMIT, stream.read_to_end(&mut answer.body)).await.unwrap().unwrap()),
    }
    answer
}

/// The headers of a WebSocket handshake.
fn handshake(token: Option<&str>) -> Vec<(String, String)> {
    let mut headers = token.map(auth).unwrap_or_default();
    for (name, value) in [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        headers.push((name.to_owned(), value.to_owned()));
    }
    headers
}
