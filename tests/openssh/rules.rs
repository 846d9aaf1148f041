//! What an agent's owner can forbid, as OpenSSH's programs meet it.

use crate::{
    harness::text,
    host::{Host, finish},
};
use std::{
    net::{Ipv4Addr, TcpListener},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};
use tailnet::agent::{Profile, ssh::Rules};

const SAID: &str = "File transfer has been disabled.";

fn host(tools: &[&str], rules: Rules) -> Option<Host> {
    Host::start_ruled(tools, Profile::default(), rules)
}

fn client(host: &Host, program: &str, arguments: &[&str]) -> Output {
    finish(host.client(program, arguments).spawn().unwrap())
}

fn rsync(host: &Host, from: &str, to: &str) -> Output {
    let shell =
        format!("ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p {}", host.port);
    let mut rsync = Command::new("rsync");
    rsync.args(["-e", &shell, from, to]).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(rsync.spawn().unwrap())
}

#[test]
fn a_transfer_that_is_blocked_is_told_by_each_program_and_writes_nothing() {
    let rules = Rules { block_file_transfer: true, ..Rules::default() };
    let Some(host) = host(&["ssh", "scp", "sftp", "rsync"], rules) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    std::fs::write(&here, "bytes").unwrap();
    let (from, to) = (here.to_str().unwrap(), format!("x@127.0.0.1:{}", there.display()));
    // Both of scp's protocols: SFTP, and its own.
    for flags in [&["-O", from, &to][..], &[from, &to][..]] {
        let output = client(&host, "scp", flags);
        assert!(!output.status.success() && text(&output.stderr).contains(SAID), "{flags:?}: {output:?}");
    }
    let output = client(&host, "sftp", &["-b", "/dev/null", "x@127.0.0.1"]);
    assert!(!output.status.success() && text(&output.stderr).contains(SAID), "{output:?}");
    // It takes the words for another protocol, so they are looked at without it.
    let output = rsync(&host, from, &to);
    assert!(!output.status.success(), "{output:?}");
    assert!(!there.exists());
    for command in ["/bin/nc -l 1", "rsync --server . /x"] {
        let output = host.run(&[], command, b"");
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(65), format!("\u{2}{SAID}\n")), "{command}");
    }
    assert_eq!(text(&host.run(&[], "echo still here", b"").stdout), "still here\n");
    drop(host);
    // Nothing but the rule was in its way.
    let Some(host) = self::host(&["ssh", "rsync"], Rules::default()) else { return };
    let output = rsync(&host, from, &to);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read(&there).unwrap(), b"bytes");
}

#[test]
fn forwards_that_are_blocked_are_refused_with_their_reason() {
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = target.local_addr().unwrap().to_string();
    let reverse = format!("0:{address}");
    // The reason is a word of its log.
    let to_target = ["-o", "LogLevel=INFO", "-W", &address, "x@127.0.0.1"];
    let from_target = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", &reverse, "x@127.0.0.1"];
    {
        let Some(host) = host(&["ssh"], Rules { block_local_forwarding: true, ..Rules::default() }) else { return };
        let output = client(&host, "ssh", &to_target);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains("prohibited: port forwarding is disabled"), "{said}");
    }
    let Some(host) = host(&["ssh"], Rules { block_reverse_forwarding: true, ..Rules::default() }) else { return };
    let output = client(&host, "ssh", &from_target);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(255) && said.contains("remote port forwarding failed"), "{said}");
}

#[test]
fn a_short_limit_ends_a_connection_and_says_so() {
    let rules = Rules { max_timeout: Duration::from_millis(700), ..Rules::default() };
    let Some(host) = host(&["ssh"], rules) else { return };
    let started = Instant::now();
    let output = host.run(&["-o", "LogLevel=INFO"], "sleep 1000", b"");
    assert_eq!(output.status.code(), Some(255));
    assert!(text(&output.stderr).contains("--ssh-max-timeout"), "{}", text(&output.stderr));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_client_that_asks_for_life_and_answers_for_its_own_stays() {
    // Both ends ask each second or so; either would give the other up within three.
    let rules = Rules { max_timeout: Duration::from_secs(3), ..Rules::default() };
    let Some(host) = host(&["ssh"], rules) else { return };
    let options = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2"];
    let output = host.run(&options, "sleep 6; echo alive", b"");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "alive\n".into()), "{}", text(&output.stderr));
}

#[test]
fn a_stopping_agent_ends_its_clients_at_once_and_says_why() {
    let Some(host) = host(&["ssh"], Rules::default()) else { return };
    let client = host.ssh(&[]).args(["x@127.0.0.1", "echo up; sleep 1000"]).spawn().unwrap();
    crate::host::eventually("no session", || !host.counters().sessions.is_empty());
    let (server, started) = (host.server.clone(), Instant::now());
    host.runtime.spawn(async move { server.shutdown(Duration::from_secs(5)).await });
    let output = finish(client);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(output.status.code(), Some(255), "no status stands for a command that was cut");
    assert!(text(&output.stderr).contains("the agent is shutting down"), "{}", text(&output.stderr));
}
