//! The relays of the row, and Go clients on them.

use crate::{
    harness::{self, Process},
    peers::{Context, Deployment, Lines, Need, Program, free_tcp_port, free_udp_port, socket_address},
};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Which relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Upstream's relay server.
    Derper,
    /// The relay inside a Go server.
    GoServer,
    /// The relay inside ours.
    OurServer,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Derper => "Go derper",
            Self::GoServer => "the Go server's relay",
            Self::OurServer => "our server's relay",
        }
    }

    pub fn needs(self) -> Vec<Need> {
        match self {
            Self::Derper => vec![Need::Program(Program::Derper)],
            Self::GoServer => crate::peers::GO_SERVER.to_vec(),
            Self::OurServer => Vec::new(),
        }
    }
}

/// A running relay.
pub struct Relay {
    pub address: SocketAddr,
    /// Where it answers STUN, if it does.
    pub stun: Option<u16>,
    hold: Hold,
}

enum Hold {
    Derper { process: Process, _dir: tempfile::TempDir },
    Go { _server: Arc<Deployment> },
    Ours { _server: Box<harness::Server> },
}

impl Relay {
    pub fn start(context: &Context, kind: Kind) -> Self {
        match kind {
            Kind::Derper => Self::derper(context),
            Kind::GoServer => {
                let server = context.go_server();
                Self { address: socket_address(&server.url), stun: None, hold: Hold::Go { _server: server } }
            }
            Kind::OurServer => {
                let server = Box::new(harness::Server::start(&[]));
                let address = socket_address(&server.url);
                Self { address, stun: Some(address.port()), hold: Hold::Ours { _server: server } }
            }
        }
    }

    fn derper(context: &Context) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, stun) = (free_tcp_port(), free_udp_port());
        let mut command = context.program(Program::Derper);
        command.current_dir(dir.path()).env("HOME", dir.path());
        command.args(["-a", &format!("127.0.0.1:{port}"), "-stun-port", &stun.to_string(), "-http-port", "-1", "-c"]);
        command.arg(dir.path().join("key"));
        let mut process = Process::start("derper", command);
        process.wait_for("derper: serving on");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let relay = Self { address, stun: Some(stun), hold: Hold::Derper { process, _dir: dir } };
        relay.await_listener();
        relay
    }

    /// The process of a relay of its own.
    pub fn pid(&self) -> Option<u32> {
        match &self.hold {
            Hold::Derper { process, .. } => Some(process.child.id()),
            Hold::Go { .. } | Hold::Ours { .. } => None,
        }
    }

    /// It says that it serves a moment before it does.
    fn await_listener(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < end, "the relay does not listen on {}", self.address);
            std::thread::yield_now();
        }
    }
}

/// Which Go client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoClient {
    /// That of Coder's nodes.
    Coder,
    Upstream,
}

impl GoClient {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coder => "Go client",
            Self::Upstream => "upstream Go client",
        }
    }

    pub const fn program(self) -> Program {
        match self {
            Self::Coder => Program::DerpClient,
            Self::Upstream => Program::UpstreamDerpClient,
        }
    }

    /// Starts it and waits until it is logged in; gives its key.
    pub fn connect(self, context: &Context, port: u16, websocket: bool, secret: Option<&str>) -> (Lines, String) {
        let mut command = context.program(self.program());
        command.args(["-url", &format!("http://127.0.0.1:{port}/derp")]);
        if websocket {
            command.arg("-websocket");
        }
        if let Some(secret) = secret {
            command.args(["-key", secret]);
        }
        let mut client = Lines::start(self.name(), command);
        let up = client.event("up");
        client.ask(&serde_json::json!({ "op": "prefer" }));
        client.settle();
        (client, up["key"].as_str().unwrap().to_owned())
    }
}
