//! The agent's SSH server as OpenSSH's client meets it, over loopback TCP.

use crate::{
    harness::{noise, text},
    host::{Host, eventually, finish},
};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// The receive window of OpenSSH's client for a session without a terminal: its `CHAN_SES_WINDOW_DEFAULT`. A client whose
/// own reader has stopped takes this much and what its pipe holds, and not one byte more.
const CLIENT_WINDOW: u64 = 2 << 20;

fn alive(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).join("exe").exists()
}

#[test]
fn a_command_has_its_status_and_both_outputs_apart() {
    let Some(host) = Host::start() else { return };
    let output = host.run(&[], "echo out; echo err >&2; exit 7", b"");
    assert_eq!((output.status.code(), text(&output.stdout), text(&output.stderr)), (Some(7), "out\n".into(), "err\n".into()));
    assert_eq!(host.run(&[], "true", b"").status.code(), Some(0));
    assert_eq!(host.run(&[], "no-such-command-here", b"").status.code(), Some(127));
}

#[test]
fn a_command_killed_by_a_signal_is_told_as_one() {
    let Some(host) = Host::start() else { return };
    let output = host.run(&["-v", "-o", "LogLevel=DEBUG"], "kill -TERM $$", b"");
    assert_eq!(output.status.code(), Some(255), "OpenSSH's status for a signal");
    let log = text(&output.stderr);
    assert!(log.contains("rtype exit-signal") && !log.contains("rtype exit-status"), "{log}");
}

#[test]
fn input_and_its_end_reach_the_command() {
    let Some(host) = Host::start() else { return };
    let output = host.run(&[], "cat; echo end", b"x");
    assert_eq!(text(&output.stdout), "xend\n");
}

#[test]
fn the_environment_holds_the_workspace_and_what_the_client_sent() {
    let Some(host) = Host::start() else { return };
    let options = ["-o", "SetEnv=FROM_CLIENT=1 CODER_SSH_SESSION_TYPE=vscode"];
    let command = "echo $CODER $CODER_WORKSPACE_NAME $FROM_TEMPLATE $FROM_CLIENT [$CODER_SSH_SESSION_TYPE] $SSH_CONNECTION";
    assert_eq!(text(&host.run(&options, command, b"").stdout), "true dev yes 1 [] 0.0.0.0 0 0.0.0.0 0\n");
}

#[test]
fn twenty_times_a_hundred_megabytes_come_back_through_cat_unchanged() {
    let Some(host) = Host::start() else { return };
    let rounds = if cfg!(debug_assertions) { 5 } else { 20 };
    let started = Instant::now();
    for round in 1..=rounds {
        let sent = noise(100 << 20, round);
        let output = host.run(&[], "cat", &sent);
        assert!(output.status.success() && output.stdout == sent, "round {round}");
    }
    let megabits = 1600.0 * 1.048 * f64::from(u32::try_from(rounds).unwrap()) / started.elapsed().as_secs_f64();
    println!("{rounds} × 100 MiB through cat: {megabits:.0} Mbit/s both ways together");
    assert_eq!(host.counters().input_waits, 0);
}

#[test]
fn a_slow_reader_of_its_own_output_still_gets_all_of_it() {
    let Some(host) = Host::start() else { return };
    // Much more than all windows and buffers hold is offered as input, and nobody reads the client's output before its window
    // is used up.
    let sent = noise(64 << 20, 3);
    let mut child = host.ssh(&[]).args(["x@127.0.0.1", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let input = sent.clone();
    let feed = thread::spawn(move || stdin.write_all(&input).unwrap());
    eventually("the output did not fill the client's window", || host.counters().sent > CLIENT_WINDOW);
    let mut got = Vec::new();
    stdout.read_to_end(&mut got).unwrap();
    feed.join().unwrap();
    assert!(child.wait().unwrap().success() && got == sent);
}

#[test]
fn a_second_session_answers_beside_one_that_reads_nothing() {
    let Some(host) = Host::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let control = format!("ControlPath={}/c", folder.path().display());
    let mut master =
        host.ssh(&["-M", "-o", &control]).args(["x@127.0.0.1", "exec sleep 1000"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = master.stdin.take().unwrap();
    let offered = thread::spawn(move || {
        let block = vec![0; 1 << 20];
        // Ends when the master is killed.
        while stdin.write_all(&block).is_ok() {}
    });
    eventually("no master", || folder.path().join("c").exists());
    let started = Instant::now();
    for round in 0..20 {
        let output = host.run(&["-o", &control], "head -c 300000 | wc -c", &noise(300_000, round));
        assert_eq!(text(&output.stdout).trim(), "300000");
    }
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(host.counters().input_waits, 0);
    master.kill().unwrap();
    master.wait().unwrap();
    offered.join().unwrap();
}

#[test]
fn a_second_session_answers_beside_one_whose_output_nobody_reads() {
    let Some(host) = Host::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let control = format!("ControlPath={}/c", folder.path().display());
    let mut master = host.ssh(&["-M", "-o", &control]).args(["x@127.0.0.1", "cat /dev/zero"]).spawn().unwrap();
    eventually("no master", || folder.path().join("c").exists());
    eventually("the output did not fill the client's window", || host.counters().sent > CLIENT_WINDOW);
    assert_eq!(text(&host.run(&["-o", &control], "echo here", b"").stdout), "here\n");
    let sent = host.counters().sent;
    assert!(sent < 2 * CLIENT_WINDOW, "{sent} bytes were sent to a client that reads nothing");
    master.kill().unwrap();
    master.wait().unwrap();
}

#[test]
fn a_terminal_has_a_device_a_size_and_a_kind() {
    let Some(host) = Host::start() else { return };
    let output = host.run(&["-tt"], "tty; echo $TERM; test \"$SSH_TTY\" = \"$(tty)\" && stty size; exit 3", b"");
    let shown = text(&output.stdout);
    assert!(shown.starts_with("/dev/pts/") && shown.contains("\r\n"), "{shown}");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&host.run(&[], "tty", b"").stdout), "not a tty\n");
}

#[test]
fn all_output_of_a_terminal_arrives_before_its_end() {
    let Some(host) = Host::start() else { return };
    for _ in 0..5 {
        let output = host.run(&["-tt"], "seq 1 20000; sleep 100 & exit 0", b"");
        let lines = text(&output.stdout);
        assert_eq!((lines.lines().count(), lines.lines().last()), (20_000, Some("20000")));
    }
}

#[test]
fn losing_the_client_hangs_up_a_terminal_and_leaves_other_commands_alone() {
    let Some(host) = Host::start() else { return };
    for (options, survives) in [(&["-tt"][..], false), (&[][..], true)] {
        let mut client = host.ssh(options).args(["x@127.0.0.1", "echo $$; exec sleep 300"]).spawn().unwrap();
        let mut pid = Vec::new();
        let stdout = client.stdout.as_mut().unwrap();
        while !pid.ends_with(b"\n") {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            pid.push(byte[0]);
        }
        let pid = text(&pid);
        assert!(alive(&pid));
        client.kill().unwrap();
        assert_eq!(client.wait().unwrap().signal(), Some(9));
        eventually("the session still counts", || host.counters().sessions.is_empty());
        if survives {
            assert!(alive(&pid), "killed with its client");
            host.runtime.block_on(async {});
            let server = host.server.clone();
            host.runtime.spawn(async move { server.shutdown(Duration::from_secs(5)).await });
        }
        eventually("the process is still there", || !alive(&pid));
    }
}

#[test]
fn a_forward_to_standard_output_ends_with_both_its_directions() {
    let Some(host) = Host::start() else { return };
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = target.local_addr().unwrap().to_string();
    let far = thread::spawn(move || {
        let (mut far, _) = target.accept().unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        far.write_all(b"bye").unwrap();
        got
    });
    let started = Instant::now();
    let mut client = host.ssh(&["-W", &address]).arg("x@127.0.0.1").stdin(Stdio::piped()).spawn().unwrap();
    client.stdin.take().unwrap().write_all(b"hello").unwrap();
    let output = finish(client);
    assert_eq!((text(&output.stdout), far.join().unwrap()), ("bye".to_owned(), b"hello".to_vec()));
    // OpenSSH waits for the agent to close the channel.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[test]
fn a_forwarded_port_carries_each_direction_to_its_own_end() {
    let Some(host) = Host::start() else { return };
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target_port = target.local_addr().unwrap().port();
    let local = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let forward = format!("{local}:127.0.0.1:{target_port}");
    let mut client = host.ssh(&["-L", &forward]).args(["-N", "x@127.0.0.1"]).spawn().unwrap();
    let mut connected = None;
    eventually("no forward", || {
        connected = TcpStream::connect((Ipv4Addr::LOCALHOST, local)).ok();
        connected.is_some()
    });
    let mut near = connected.unwrap();
    let (mut far, _) = target.accept().unwrap();
    let (up, down) = (noise(3 << 20, 1), noise(3 << 20, 2));
    let sent = up.clone();
    let mut writer = near.try_clone().unwrap();
    let sender = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    far.read_to_end(&mut got).unwrap();
    assert!(got == up, "the way there, with its end");
    // Only now the other direction begins: the first one's end has not closed it.
    far.write_all(&down).unwrap();
    drop(far);
    let mut back = Vec::new();
    near.read_to_end(&mut back).unwrap();
    assert!(back == down, "the way back");
    sender.join().unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
}
