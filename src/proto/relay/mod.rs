//! Both ends of a DERP connection, and which relays a node keeps open (`derp.md`, `path-selection.md` §7).
//!
//! - [`client::RelayClient`]: the client's side of one connection, between a byte stream and packets.
//! - [`server`]: the relay, one [`server::RelayConn`] a connection around one shared [`server::Registry`].
//! - [`routes::Relays`]: which regions a node is connected to, and through which one a peer is reached.

mod inbox;

pub mod client;
pub mod routes;
pub mod server;
