//! Real Go peers against ours: relays, STUN, tunnels, coordination, whole sessions. One line a cell, a sum at the end.
//!
//! `TAILNET_INTEROP=1 cargo test --release --test interop` builds the Go programs once, under `target/interop/`, and runs
//! all cells; words after `--` choose those whose line holds one of them. Without the variable nothing runs, for the
//! build takes minutes. `TAILNET_INTEROP=full` runs the long forms.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a cell fails by panicking and the table is printed"
)]
#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]
#![allow(unreachable_pub, missing_debug_implementations, missing_docs, reason = "one test binary")]

mod cells;
mod coordination;
mod figures;
#[path = "../harness/mod.rs"]
mod harness;
mod peers;
mod relay;
mod shapes;
mod speed;
mod stun;
mod table;
mod tunnel;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match table::Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    };
    // The order of the issue; each group is a list of cells.
    let cells =
        [relay::cells(), stun::cells(), tunnel::cells(), coordination::cells(), cells::cells(), shapes::cells(), speed::cells()];
    let cells = cells.into_iter().flatten().collect();
    table::run(&arguments, cells)
}
