//! Encrypted peer-to-peer networking inside one process: WireGuard, an embedded TCP/IP stack, hole punching and relays.
//!
//! The engines in [`proto`] are sans-IO: datagrams, time and randomness come in as arguments. `driver` runs them on
//! tokio, `net` is what programs use, and `client`, `agent`, `server` and `cli` are the products built on it.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")
)]

/// The version that every product reports: a development version, which no Go peer compares with its own.
pub const VERSION: &str = concat!("v0.0.0-devel+tailnet.", env!("CARGO_PKG_VERSION"));

pub mod base;
pub mod proto;
pub mod wire;

#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "driver")]
pub mod net;

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "driver")]
pub mod client;
#[cfg(feature = "server")]
pub mod server;

#[cfg(feature = "cli")]
pub mod cli;

#[cfg(any(test, feature = "sim"))]
pub mod sim;
