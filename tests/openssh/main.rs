//! OpenSSH's client against our agent: over loopback TCP, and through the tunnel by `ProxyCommand … ssh --stdio`.
#![cfg(all(unix, feature = "cli", feature = "agent", feature = "server"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]
#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]

mod agent;
#[path = "../harness/mod.rs"]
mod harness;
mod tunnel;
mod ways;
