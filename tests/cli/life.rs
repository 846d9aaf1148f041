//! Workspaces that commands start and stop, agents with a URL of their own, and a deployment with TLS.

use crate::harness::{
    Process, Server,
    process::{LIMIT, run, text},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use std::{collections::BTreeSet, fs, net::UdpSocket, process::Output};

fn coder(server: &Server, args: &[&str]) -> Output {
    run(server.coder(args), b"")
}

fn done(out: &Output) -> String {
    assert_eq!(out.status.code(), Some(0), "{}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

#[test]
fn a_command_starts_the_agent_and_another_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let program = crate::harness::coder();
    let start = format!(
        "echo starting $CODER_WORKSPACE_NAME; '{}' agent --quiet > /dev/null 2>&1 & echo $! > '{}'",
        program.display(),
        pid.display()
    );
    let stop = format!("echo stopping $CODER_WORKSPACE_NAME; kill $(cat '{}')", pid.display());
    let server = Server::start(&["--workspace-start-command", &start, "--workspace-stop-command", &stop]);
    let made = done(&coder(&server, &["create", "dev"]));
    assert!(made.contains("CODER_AGENT_TOKEN=") && !made.contains("coder agent"), "one agent has been started: {made}");
    let hello = |expected: &str| {
        let out = coder(&server, &["ssh", "dev", "--", "echo", expected]);
        assert_eq!(done(&out), format!("{expected}\n"));
    };
    hello("first");
    let log = done(&coder(&server, &["stop", "--yes", "dev"]));
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines[..2], ["==> ⧗ Stopping workspace", "stopping dev"], "{log}");
    assert!(lines[2].starts_with("=== ✔ Stopping workspace [") && lines[3].is_empty(), "{log}");
    assert!(lines[4].starts_with("The dev workspace has been stopped at ") && lines[4].ends_with('!'), "{log}");
    let out = coder(&server, &["ssh", "--disable-autostart", "dev", "--", "true"]);
    assert_eq!(out.status.code(), Some(1));
    let log = done(&coder(&server, &["start", "--yes", "me/dev", "--reason", "vscode_connection"]));
    assert!(log.contains("starting dev\n") && log.contains("The dev workspace has been started at "), "{log}");
    hello("second");
    assert_eq!(done(&coder(&server, &["start", "dev"])), "\nThe dev workspace is already running!\n");
    let log = done(&coder(&server, &["restart", "-y", "dev"]));
    assert!(log.contains("stopping dev\n") && log.contains("starting dev\n") && log.contains("has been restarted at "), "{log}");
    hello("third");
    assert_eq!(done(&coder(&server, &["update", "dev"])), "Workspace is up-to-date.\n");
    let log = done(&coder(&server, &["delete", "--yes", "dev"]));
    assert!(log.contains("stopping dev\n") && log.contains("The dev workspace has been deleted at "), "{log}");
    assert!(!done(&coder(&server, &["list", "-o", "json"])).contains("\"dev\""));
}

#[test]
fn a_failed_build_is_told_and_nobody_is_asked_without_a_terminal() {
    let server = Server::start(&["--workspace-stop-command", "echo no way; exit 7"]);
    server.create("dev");
    let out = coder(&server, &["stop", "--yes", "dev"]);
    let (log, said) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(1));
    assert!(log.contains("no way\n") && log.contains("=== ✘ Stopping workspace ["), "{log}");
    assert!(said.contains("was not stopped") && said.contains("exit status: 7") && said.lines().count() == 1, "{said}");
    for command in ["stop", "restart", "delete"] {
        let out = coder(&server, &[command, "dev"]);
        assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b""[..]), "{command}");
        assert!(text(&out.stderr).contains("--yes"), "{command}: {}", text(&out.stderr));
    }
    let out = coder(&server, &["start", "--yes", "nosuch"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("nosuch"), "{}", text(&out.stderr));
    let out = coder(&server, &["start", "--yes", "--reason", "foo", "dev"]);
    assert!(text(&out.stderr).contains("vscode_connection"), "{}", text(&out.stderr));
}

#[test]
fn a_log_that_is_not_kept_any_more_is_told() {
    let server = Server::start(&[]);
    server.create("dev");
    for _ in 0..10 {
        done(&coder(&server, &["restart", "--yes", "dev"]));
    }
    let out = coder(&server, &["logs", "-n", "1", "dev"]);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), String::new()));
    assert!(text(&out.stderr).contains("The server has no log of build 1: "), "{}", text(&out.stderr));
    assert!(done(&coder(&server, &["logs", "-n", "2", "dev"])).starts_with("==> ⧗ Stopping workspace"));
}

/// A command that hangs until it is ended, once it has begun; and its file.
fn hanging(folder: &std::path::Path) -> String {
    let fifo = folder.join("never");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    format!("echo begun; read line < '{}'", fifo.display())
}

#[test]
fn a_failed_start_fails_create_and_its_log_can_be_read_afterwards() {
    let server = Server::start(&["--workspace-start-command", "echo no machine; exit 7"]);
    let out = coder(&server, &["create", "dev"]);
    let (shown, said) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(1), "{shown}{said}");
    assert!(shown.contains("CODER_AGENT_TOKEN=") && shown.contains("no machine\n"), "{shown}");
    assert!(said.contains("was not started: the command failed: exit status: 7"), "{said}");
    let out = coder(&server, &["start", "--yes", "dev"]);
    assert!(out.status.code() == Some(1) && text(&out.stdout).contains("no machine\n"), "{}", text(&out.stderr));
    let log = done(&coder(&server, &["logs", "dev"]));
    assert!(log.starts_with("==> ⧗ Starting workspace\nno machine\n") && log.contains("=== ✘ "), "{log}");
    let first = done(&coder(&server, &["logs", "-n", "1", "dev"]));
    assert!(!first.contains("no machine"), "{first}");
    let out = coder(&server, &["logs", "-n", "99", "dev"]);
    assert!(out.status.code() == Some(1) && text(&out.stderr).contains("no build 99"), "{}", text(&out.stderr));
    // Whoever connects all the same is told at once why that is in vain.
    let out = coder(&server, &["ssh", "dev", "--", "true"]);
    let said = text(&out.stderr);
    let why = "error: the start of workspace \"dev\" ended as failed: the command failed: exit status: 7; 'coder logs dev' shows its \
               log, 'coder start dev' tries again\n";
    assert!(out.status.code() == Some(1) && said == why, "{said}");
}

#[test]
fn a_build_that_hangs_is_canceled_by_ctrl_c_or_by_command_and_its_workspace_deleted_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&["--workspace-stop-command", &hanging(folder.path())]);
    server.create("dev");
    let mut stop = Process::start("coder stop", server.coder(&["stop", "--yes", "dev"]));
    stop.wait_for("begun");
    let out = coder(&server, &["delete", "--yes", "dev"]);
    assert!(out.status.code() == Some(1) && text(&out.stderr).contains("'coder cancel dev' ends it"), "{}", text(&out.stderr));
    stop.signal(Signal::INT);
    stop.wait_for("error: workspace \"dev\" was not stopped: the build was canceled");
    assert_eq!(stop.wait(LIMIT).code(), Some(1));
    // Also where signals are heard already, for a header command.
    let mut stop = Process::start("coder stop", server.coder(&["--header-command", "true", "stop", "--yes", "dev"]));
    stop.wait_for("begun");
    stop.signal(Signal::INT);
    stop.wait_for("error: workspace \"dev\" was not stopped: the build was canceled");
    assert_eq!(stop.wait(LIMIT).code(), Some(1));
    let mut stop = Process::start("coder stop", server.coder(&["stop", "--yes", "dev"]));
    stop.wait_for("begun");
    // Whoever is killed cancels nothing.
    stop.signal(Signal::TERM);
    stop.wait_for("the build goes on");
    let log = done(&coder(&server, &["cancel", "dev"]));
    assert!(log.contains("begun\n") && log.ends_with("has ended as canceled.\n"), "{log}");
    let out = coder(&server, &["cancel", "dev"]);
    assert!(out.status.code() == Some(1) && text(&out.stderr).contains("no build"), "{}", text(&out.stderr));
    let log = done(&coder(&server, &["delete", "--yes", "--orphan", "dev"]));
    assert!(!log.contains("begun") && log.contains("has been deleted"), "{log}");
}

#[test]
fn an_agent_starts_with_the_url_that_was_chosen_for_it() {
    let server = Server::start(&[]);
    let url = server.url.replace("127.0.0.1", "localhost");
    let out = done(&coder(&server, &["create", "two", "--agent-url", &url]));
    let line = out.lines().map(str::trim).find(|line| line.starts_with("CODER_AGENT_URL=")).unwrap();
    assert!(line.starts_with(&format!("CODER_AGENT_URL={url} ")), "{line}");
    let token = line.split("CODER_AGENT_TOKEN=").nth(1).unwrap().split(' ').next().unwrap();
    let mut command = server.agent_command(None, token);
    command.env("CODER_AGENT_URL", &url);
    let mut agent = Process::start("the agent", command);
    agent.wait_for("connected to the coordinator");
    assert_eq!(done(&coder(&server, &["ssh", "two", "--", "echo hello"])), "hello\n");
    let out = coder(&server, &["create", "three", "--agent-url", "localhost"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("http"), "{}", text(&out.stderr));
}

#[test]
fn a_relay_map_that_was_read_again_reaches_everybody_who_is_connected() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("relays.json");
    let place = |stun: &UdpSocket| {
        let port = stun.local_addr().unwrap().port();
        let node =
            serde_json::json!({ "Name": "2a", "RegionID": 2, "HostName": "127.0.0.1", "STUNPort": port, "STUNOnly": true });
        let region = serde_json::json!({ "RegionID": 2, "RegionCode": "two", "RegionName": "Two", "Nodes": [node] });
        fs::write(&file, serde_json::json!({ "Regions": { "2": region } }).to_string()).unwrap();
    };
    let (first, second) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    place(&first);
    let mut server = Server::start(&["--derp-config-path", file.to_str().unwrap()]);
    let _agent = server.workspace("dev");
    let mut session = Process::start("coder ssh", server.coder(&["ssh", "dev", "--", "cat"]));
    session.type_in(b"here\n");
    session.wait_for("here");

    place(&second);
    server.process.signal(Signal::USR1);
    server.process.wait_for("The relay map was read again.");
    // Agent and client ask the new server where they are.
    second.set_read_timeout(Some(LIMIT)).unwrap();
    let mut asked = BTreeSet::new();
    while asked.len() < 2 {
        asked.insert(second.recv_from(&mut [0; 2048]).expect("two ask the new STUN server").1);
    }
    // What cannot be used changes nothing.
    fs::write(&file, "{").unwrap();
    server.process.signal(Signal::USR1);
    server.process.wait_for("The relay map stays what it was: ");
    session.type_in(b"still here\n");
    session.wait_for("still here");
}

#[test]
fn a_session_goes_over_https_from_end_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let roots = file("roots.pem", &params.self_signed(&key).unwrap().pem());
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let issued = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let (certificate, key) = (file("tls.crt", &issued.pem()), file("tls.key", &key.serialize_pem()));
    let flags = ["--tls-enable", "--tls-address", "127.0.0.1:0", "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let server = Server::start(&flags);
    assert!(server.url.starts_with("https://127.0.0.1:"), "{}", server.url);
    let coder = |args: &[&str]| {
        let mut command = server.coder(args);
        command.env("SSL_CERT_FILE", &roots);
        run(command, b"")
    };
    let out = done(&coder(&["create", "dev"]));
    let token = out.split("CODER_AGENT_TOKEN=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mut command = server.agent_command(None, &token);
    command.env("SSL_CERT_FILE", &roots);
    let mut agent = Process::start("the agent", command);
    agent.wait_for("connected to the coordinator");
    for flags in [&["ssh", "dev"][..], &["--disable-direct-connections", "ssh", "dev"]] {
        assert_eq!(done(&coder(&[flags, &["--", "echo over https"]].concat())), "over https\n");
    }
    // Whoever does not know the authority is told so.
    let out = run(server.coder(&["list"]), b"");
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("certificate"), "{}", text(&out.stderr));
}
