//! The `coder` binary as its users meet it: a server, agents and command lines on loopback.
#![cfg(all(unix, feature = "cli", feature = "agent", feature = "server"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]
#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]

mod accounts;
mod agents;
mod config_ssh;
mod disk;
mod editor_lines;
mod editors;
mod errors;
mod first;
#[path = "../harness/mod.rs"]
mod harness;
mod interactive;
mod life;
mod matrix;
mod netcheck;
mod ping;
mod port_forward;
mod proxies;
mod remote_forward;
mod secrets;
mod sessions;
mod shapes;
mod signals;
mod speedtest;
mod support;
mod terminals;
mod users;

use harness::{Process, Server};

/// A server with a workspace `dev` and its agent.
struct Lab {
    agent: Process,
    server: Server,
}

impl Lab {
    fn new() -> Self {
        let server = Server::start(&[]);
        let agent = server.workspace("dev");
        Self { agent, server }
    }
}
