//! `ssh -o ProxyCommand='coder ssh --stdio %h'`: what OpenSSH's users do, on every way through the tunnel.

use crate::{
    harness::{
        counters::Counters,
        noise,
        process::{Finished, LIMIT, children, gone_within, pidfd, text},
    },
    ways::{AT_ONCE, on_every_way},
};
use std::time::{Duration, Instant};

const MEGABYTES_100: usize = 100_000_000;

#[test]
fn a_command_that_ends_well_gives_0() {
    on_every_way(|lab| assert_eq!(lab.run(&[], "true", Vec::new()).code(), Some(0)));
}

#[test]
fn the_exit_status_of_a_command_comes_back() {
    on_every_way(|lab| assert_eq!(lab.run(&[], "exit 7", Vec::new()).code(), Some(7)));
}

#[test]
fn a_command_killed_by_a_signal_is_told_as_such() {
    on_every_way(|lab| {
        let ended = lab.run(&["-o", "LogLevel=DEBUG"], "kill -9 $$", Vec::new());
        assert_eq!(ended.code(), Some(255), "what OpenSSH makes of a signal");
        assert!(ended.said().contains("rtype exit-signal") && !ended.said().contains("rtype exit-status"), "{}", ended.said());
    });
}

#[test]
fn a_hundred_megabytes_arrive_equal_in_each_direction() {
    on_every_way(|lab| {
        let sent = noise(MEGABYTES_100, 1);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("there");
        let started = Instant::now();
        let there = lab.run(&[], &format!("cat > '{}'", file.display()), sent.clone());
        assert_eq!(there.code(), Some(0), "{}", there.said());
        assert!(std::fs::read(&file).unwrap() == sent, "the bytes changed on their way to the workspace");
        let (there, started) = (started.elapsed(), Instant::now());
        let back = lab.run(&[], &format!("cat '{}'", file.display()), Vec::new());
        assert!(back.code() == Some(0) && back.stdout == sent, "the bytes changed on their way back");
        println!("  to the workspace {}, back {}", rate(there), rate(started.elapsed()));
    });
}

#[test]
fn twenty_times_a_hundred_megabytes_come_back_equal_through_cat() {
    on_every_way(|lab| {
        const ROUNDS: u32 = 20;
        let started = Instant::now();
        for round in 1..=ROUNDS {
            let sent = noise(MEGABYTES_100, round.into());
            let came = lab.run(&[], "cat", sent.clone());
            assert!(
                came.code() == Some(0) && came.stdout == sent,
                "round {round}: {:?}, {} bytes",
                came.status,
                came.stdout.len()
            );
        }
        println!("  {ROUNDS} × 100 MB through cat, each {}", rate(started.elapsed() / ROUNDS));
    });
}

#[test]
fn a_terminal_is_one_in_the_workspace() {
    on_every_way(|lab| {
        let mut terminal = lab.start_in_terminal("tty; echo shown; exit 3");
        terminal.wait_for("/dev/pts/");
        terminal.wait_for("shown");
        assert_eq!(lab.finish(terminal), Some(3));
        assert_eq!(text(&lab.run(&[], "tty", Vec::new()).stdout), "not a tty\n");
    });
}

#[test]
fn a_resized_terminal_is_resized_in_the_workspace() {
    on_every_way(|lab| {
        let mut terminal = lab.start_in_terminal("trap 'stty size; exit 0' WINCH; stty size; sleep 60 & wait $!");
        terminal.wait_for("24 80");
        terminal.resize(132, 43);
        terminal.wait_for("43 132");
        assert_eq!(lab.finish(terminal), Some(0));
    });
}

#[test]
fn the_end_of_input_reaches_the_command_at_once() {
    on_every_way(|lab| {
        let mut ssh = lab.start(&[], "cat");
        let started = Instant::now();
        ssh.type_in(b"x");
        let Finished { status, stdout, lines } = ssh.finish(AT_ONCE);
        assert_eq!((status.code(), text(&stdout)), (Some(0), "x".to_owned()));
        println!("  ended {:?} after its input", started.elapsed());
        lab.prove(&lines);
    });
}

#[test]
fn fifty_connects_in_a_row_repeat_nothing() {
    on_every_way(|lab| {
        let mut took = Vec::new();
        for round in 1..=50 {
            let started = Instant::now();
            let mut ssh = lab.connect(&[], "echo here");
            let ended = ssh.finish(LIMIT);
            took.push(started.elapsed());
            assert_eq!((ended.code(), text(&ended.stdout)), (Some(0), "here\n".to_owned()), "{}", ended.said());
            let counted = Counters::last(&ended.lines);
            let repeated = (counted.initiations, counted.syns, counted.relay_dials);
            assert_eq!(repeated, (1, 1, 1), "connect {round}: initiations, SYNs, relay dials\n{}", ended.said());
        }
        took.sort();
        println!("  a whole `ssh … echo`: median {:?}, worst {:?}", took[took.len() / 2], took[took.len() - 1]);
    });
}

#[test]
fn our_process_ends_with_its_killed_parent() {
    on_every_way(|lab| {
        let mut ssh = lab.start(&[], "echo up; cat");
        let ours = proxy_of(&ssh);
        ssh.kill();
        let killed = Instant::now();
        assert!(gone_within(ours, Duration::from_secs(2)), "it outlives its parent");
        println!("  gone {:?} after its parent", killed.elapsed());
    });
}

/// The `coder ssh --stdio` of an OpenSSH.
fn proxy_of(ssh: &crate::harness::Process) -> std::os::fd::OwnedFd {
    let of = children(ssh.pid());
    assert_eq!(of.len(), 1, "OpenSSH has one child, its ProxyCommand");
    let command = std::fs::read(format!("/proc/{}/cmdline", of[0].as_raw_nonzero())).unwrap();
    assert!(text(&command).contains("--stdio"), "{:?}", text(&command));
    pidfd(of[0])
}

fn rate(time: Duration) -> String {
    format!("{time:.2?} ({:.0} Mbit/s)", 800.0 / time.as_secs_f64())
}
