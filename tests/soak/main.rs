//! Hours of what people do all day, and of what goes wrong meanwhile: neither server nor agent nor a client that stays may grow.
//!
//! `TAILNET_SOAK=3600 cargo test --release --test soak -- --nocapture` goes on for an hour, prints a line a minute and a table
//! at the end. Without the variable it is two rounds, in which nobody is killed: those are forgotten after half a minute only.
#![cfg(all(unix, feature = "cli", feature = "agent", feature = "server"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]
#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]

mod figures;
#[path = "../harness/mod.rs"]
mod harness;
mod work;

use figures::Watch;
use std::{
    thread,
    time::{Duration, Instant},
};
use work::{Lab, Lane};

/// How long a killed client is remembered, and a bit.
const FORGOTTEN: Duration = Duration::from_secs(35);
/// Clients that stay tell the server of their use once a minute.
const MINUTE: Duration = Duration::from_secs(65);
/// Longest warm-up.
const WARM_UP: Duration = Duration::from_secs(300);

#[test]
fn nothing_grows_while_people_work() {
    let long = std::env::var("TAILNET_SOAK").ok().map(|s| Duration::from_secs(s.parse().expect("TAILNET_SOAK is seconds")));
    if !harness::have(&["ssh", "scp", "ssh-agent", "ssh-add", "ssh-keygen"]) {
        return;
    }
    let mut lab = Lab::start();
    let mut watch = Watch::of(&lab);
    let mut lanes = [Lane::new(&lab, false), Lane::new(&lab, true)];
    let started = Instant::now();
    let (after, within) = if long.is_some() { (FORGOTTEN, MINUTE) } else { (Duration::ZERO, Duration::from_secs(1)) };
    let mut rounds = 0;
    let mut work_for = |lab: &mut Lab, watch: &mut Watch, time: Duration| {
        let end = Instant::now() + time;
        loop {
            round(lab, &mut lanes, rounds, long.is_some());
            rounds += 1;
            watch.look(started, rounds);
            if Instant::now() >= end {
                return;
            }
        }
    };
    let warm_up = long.map_or(Duration::ZERO, |long| WARM_UP.min(long / 6));
    work_for(&mut lab, &mut watch, warm_up);
    watch.rest(after, within);
    watch.keep_as_start();
    work_for(&mut lab, &mut watch, long.unwrap_or_default().saturating_sub(warm_up));
    watch.rest_as_at_start(after, within);
    println!("{rounds} rounds in {:.0?}\n{}", started.elapsed(), watch.table());
    let grown = watch.grown();
    assert!(grown.is_empty(), "{}", grown.join("\n"));
}

/// Both lanes at once, and a word to those who stay.
fn round(lab: &mut Lab, lanes: &mut [Lane], number: u64, kill: bool) {
    lab.greet(number);
    thread::scope(|scope| {
        let lab = &*lab;
        for lane in lanes {
            scope.spawn(move || {
                lane.work(lab, number);
                if kill {
                    lane.be_killed(lab, number);
                }
            });
        }
    });
    lab.forget_lines();
}
