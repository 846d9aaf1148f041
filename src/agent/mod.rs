//! L6: the workspace agent.
//!
//! It keeps one control connection to the server, one node in the tunnel and the services behind it: an SSH server on
//! ports 1 and 22, terminals that outlive their connections on port 2, speed tests on port 3, an HTTP API on port 4, and a
//! forward of every other port to the machine's own loopback (agent.md §4–6). It runs the scripts of its workspace and
//! reports what happens: states, log lines, sessions, traffic.

mod account;
mod api;
mod assignment;
mod calls;
mod connections;
mod datagrams;
mod environment;
mod health;
mod jetbrains;
mod lifecycle;
mod logs;
mod metadata;
mod outbox;
mod ports;
mod pty;
mod reports;
mod run;
mod scripts;
mod secrets;
mod services;
mod sockets;
mod speedtest;
pub mod ssh;
mod statistics;
#[cfg(test)]
mod tests;
mod traffic;

pub use environment::Profile;
pub use run::{Config, LOG_FILE, RunError, run};
