//! Both ends of a DERP connection (`derp.md`).
//!
//! - [`client::RelayClient`]: the client's side of one connection, between a byte stream and packets.
//! - [`server`]: the relay, one [`server::RelayConn`] a connection around one shared [`server::Registry`].

mod inbox;

pub mod client;
pub mod server;
