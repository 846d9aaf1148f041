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
mod clients;
mod config;
mod files;
mod forwards;
#[path = "../harness/mod.rs"]
mod harness;
mod host;
mod laptop;
mod rules;
mod through;
mod tunnel;
mod ways;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: each keeps all cores busy, and one that is held up for a tenth of a second by another would
/// rightly doubt its path.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
