//! Relays of all sides, and the maps that lead to them.

use super::{Context, Deployment, Need, Program, free_port, socket_address};
use crate::harness::{self, Process};
use anyhow::bail;
use serde_json::Value;
use std::{net::SocketAddr, process::Stdio, sync::Arc};
use tailnet::{
    base::{NodeSecret, RegionId},
    driver::clock,
    wire::derp::{Region, RelayMap, RelayNode},
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
        let (port, stun) = (free_port(), free_port());
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
        harness::until("the relay does not listen", || std::net::TcpStream::connect(self.address).is_ok());
    }
}

pub fn secret() -> NodeSecret {
    NodeSecret::generate(&mut clock::random().unwrap())
}

pub fn region_id() -> RegionId {
    RegionId::new(7).unwrap()
}

/// A region with one plain HTTP relay on loopback and no STUN. Without STUN a Go netcheck has only the relay's answer to
/// measure, no ICMP.
pub fn region(port: u16) -> Region {
    let node = RelayNode {
        name: "7a".into(),
        host: "127.0.0.1".into(),
        stun_port: None,
        relay_port: port,
        plain_http: true,
        ..RelayNode::default()
    };
    Region { nodes: vec![node], ..Region::default() }
}

/// What a Go netcheck finds about a relay map.
pub fn netcheck(context: &Context, program: Program, map: &RelayMap) -> Result<Value, anyhow::Error> {
    let mut command = context.program(program);
    command.stdin(Stdio::piped());
    let out = harness::run(command, map.to_json().to_string().as_bytes());
    if !out.status.success() {
        bail!("netcheck ended with {}: {}", out.status, harness::text(&out.stderr));
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}
