//! L6: the coder server: API, coordinator, embedded relay and STUN in one process on one port.
//!
//! ```text
//! TCP ── listen ── HTTP/1.1 ── routes (one table, access first) ─┬─ api: REST
//!          │                                                     ├─ sockets: control sockets ── coordination
//!          └─ fast start ────────────────────────────────────────┴─ relay: /derp on both transports
//! UDP ── stun                                  store: SQLite in the data folder
//!                                              tunnels: the server's own node, by which it reaches agents
//! ```
//! Routes of our own, in Coder's shapes: `POST /api/v2/users/{user}/workspaces` (`api/workspaces.rs`) and
//! `POST /api/v2/users` (`api/users.rs`), whose answers carry a token that is shown nowhere else.
//!
//! Secrets: the store holds hashes only, the first user's token lies in a file of mode 0600 in the data folder, and no
//! token reaches a log or `Debug`.
//!
//! Not here: templates, several replicas, web pages.

mod access;
mod admin;
mod answer;
mod api;
mod app;
mod audit;
mod builds;
mod changes;
mod config;
mod coordination;
mod dev;
mod limits;
mod listen;
mod live;
mod manifest;
mod metrics;
mod origin;
mod password;
mod places;
mod relay;
mod relays;
mod resume;
mod routes;
mod scopes;
mod sockets;
mod ssh_hosts;
mod start;
mod store;
mod stun;
mod time;
mod tls;
mod token;
mod tunnels;
mod upgrade;

#[cfg(test)]
mod tests;

pub use config::{Config, Hooks, RateLimits, Redirect, SessionRules, StunAddress};
pub use origin::{ParseSubnetError, Subnet, TrustedProxies};
pub use relays::{RelayConfig, RelayMapError, RelaySource};
pub use ssh_hosts::SshHosts;
pub use start::{Running, StartError, serve};
pub use store::OpenError;
pub use tls::{ClientAuth, TlsConfig, TlsError, TlsVersion};
pub use token::NoRandomness;
