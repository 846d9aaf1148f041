//! Real processes for the tests: the `coder` binary as server, agent and client, OpenSSH, terminals, network namespaces.
//!
//! Nothing here waits without a limit, and whatever was started ends when its value is dropped.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]
#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]
#![allow(unreachable_pub, missing_debug_implementations, missing_docs, reason = "shared by test binaries only")]

pub mod coder;
pub mod counters;
pub mod http;
pub mod keys;
pub mod namespace;
pub mod ports;
pub mod process;
pub mod shapes;
pub mod terminal;
pub mod usage;

pub use coder::{Server, clean, coder};
pub use ports::{DeadPort, free_port};
pub use process::{LIMIT, Process, run, run_within, text, until, until_within};

use std::{fs, os::unix::fs::MetadataExt as _};

/// Whether the tools are here. Without `TAILNET_CI=1` a missing one skips the test with one line, with it the test fails.
pub fn have(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools.iter().filter(|t| !on_path(t)).collect();
    missing.is_empty() || skip(&format!("missing tools {missing:?}"))
}

/// As [`have`], for tests that make network namespaces.
pub fn have_namespaces() -> bool {
    have_as_root(&["ip", "nft"])
}

/// As [`have`], for tools that only root may use.
pub fn have_as_root(tools: &[&str]) -> bool {
    let root = || fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    have(tools) && (root() || skip("namespaces need root"))
}

/// Says why nothing runs; with `TAILNET_CI=1` it fails.
pub fn skip(why: &str) -> bool {
    assert!(std::env::var_os("TAILNET_CI").is_none_or(|v| v != "1"), "TAILNET_CI=1 and {why}");
    println!("skipped: {why}");
    false
}

/// Whether a tool is found.
pub fn on_path(tool: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(tool).is_file())
}

/// `len` bytes that neither repeat nor compress.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
