//! The first minutes: `quickstart`, and `server --dev` with `ssh dev`.

use crate::harness::{
    clean, coder,
    coder::server_command,
    process::{LIMIT, Process, find, gone_within, pidfd, run, text},
    terminal::Terminal,
};
use rustix::process::Signal;
use std::{fs, os::fd::OwnedFd, path::Path, process::Command};

/// `quickstart` with folders of its own for temporary files and for what the shell leaves at home.
fn quickstart(folder: &Path, command: &[&str]) -> Command {
    for name in ["tmp", "home"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    let mut quickstart = Command::new(coder());
    clean(&mut quickstart).arg("quickstart").args(command).env("TMPDIR", folder.join("tmp")).env("HOME", folder.join("home"));
    quickstart
}

/// Whether a quickstart has left no file behind.
fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder.join("tmp")).unwrap().next().is_none()
}

/// The agents of a quickstart.
fn agents(folder: &Path) -> Vec<OwnedFd> {
    find(&format!("TMPDIR={}", folder.join("tmp").display()), "agent").into_iter().map(pidfd).collect()
}

#[test]
fn quickstart_runs_a_command_through_the_tunnel_and_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let out = run(quickstart(folder.path(), &["--", "uname", "-a"]), b"");
    let here = run(
        {
            let mut uname = Command::new("uname");
            uname.arg("-a");
            uname
        },
        b"",
    );
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), text(&here.stdout)), "{}", text(&out.stderr));
    assert!(is_empty(folder.path()) && agents(folder.path()).is_empty(), "something was left behind");
}

#[test]
fn quickstart_quotes_each_word_and_passes_input_and_status() {
    let folder = tempfile::tempdir().unwrap();
    let out = run(quickstart(folder.path(), &["--", "printf", "<%s>", "a  b", "$HOME", "it's", "*", ""]), b"");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "<a  b><$HOME><it's><*><>".into()), "{}", text(&out.stderr));
    let out = run(quickstart(folder.path(), &["--", "sh", "-c", "cat; exit 3"]), b"input");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(3), "input".into()));
}

#[test]
fn quickstart_alone_shows_relay_direct_and_a_ping() {
    let folder = tempfile::tempdir().unwrap();
    let out = run(quickstart(folder.path(), &[]), b"");
    let shown = text(&out.stdout) + &text(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{shown}");
    let first =
        |start: &str| shown.lines().position(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start:?}:\n{shown}"));
    assert!(
        first("by relay after ") < first("direct after ") && first("direct after ") < first("pong from dev p2p via "),
        "{shown}"
    );
    assert!(is_empty(folder.path()) && agents(folder.path()).is_empty(), "something was left behind");
}

#[test]
fn quickstart_in_a_terminal_is_a_shell_and_names_the_way_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Terminal::start(quickstart(folder.path(), &[]));
    shell.wait_for("CODER_CONFIG_DIR=");
    shell.wait_for(" ssh ");
    shell.type_in("echo sh''ell; exit 4\n");
    shell.wait_for("shell");
    assert_eq!(shell.wait(LIMIT).code(), Some(4));
    assert!(shell.is_restored() && is_empty(folder.path()), "something was left behind");
}

#[test]
fn the_example_echoes_by_relay_and_then_directly() {
    // `cargo test` builds the examples beside the binaries.
    let example = std::path::PathBuf::from(env!("CARGO_BIN_EXE_coder")).with_file_name("examples").join("echo");
    if !example.exists() {
        crate::harness::skip("the example was not built");
        return;
    }
    let out = run(Command::new(example), b"");
    let said = text(&out.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert!(out.status.success() && lines[0].contains("hello came back by relay"), "{said}{}", text(&out.stderr));
    assert!(lines.len() >= 3 && lines[lines.len() - 2].contains("hello came back directly"), "{said}");
}

#[test]
fn an_ended_quickstart_takes_its_agent_along() {
    for signal in [Signal::TERM, Signal::HUP, Signal::KILL] {
        let folder = tempfile::tempdir().unwrap();
        let mut process =
            Process::start("quickstart", quickstart(folder.path(), &["--", "sh", "-c", "echo up; exec sleep 1000"]));
        process.wait_for("up");
        let agents = agents(folder.path());
        assert_eq!(agents.len(), 1, "its agent runs beside it");
        process.signal(signal);
        process.wait(LIMIT);
        assert!(gone_within(&agents[0], LIMIT), "the agent outlives {signal:?}");
        assert!(signal == Signal::KILL || is_empty(folder.path()), "{signal:?} leaves files behind");
    }
}

#[test]
fn a_dev_server_in_one_terminal_gives_a_shell_in_another() {
    let folder = tempfile::tempdir().unwrap();
    let login = folder.path().join("existing");
    fs::create_dir(&login).unwrap();
    fs::write(login.join("url"), "https://elsewhere.example.com").unwrap();
    let mut command = server_command(None, folder.path(), "127.0.0.1:0", &["--dev"]);
    command.env("CODER_CONFIG_DIR", &login);
    let mut server = Process::start("the server", command);
    let line = server.wait_for("coder ssh dev");
    let dir = line.split("CODER_CONFIG_DIR=").nth(1).unwrap().split_whitespace().next().unwrap().trim_matches('\'').to_owned();
    assert_eq!(fs::read_to_string(login.join("url")).unwrap(), "https://elsewhere.example.com", "an existing login stays");

    let mut ssh = Command::new(coder());
    clean(&mut ssh).args(["ssh", "dev"]).env("CODER_CONFIG_DIR", &dir).env("HOME", folder.path()).env("TERM", "xterm-256color");
    let mut shell = Terminal::start(ssh);
    shell.type_in("PS1='dev$ '\n");
    shell.wait_for("dev$ ");
    shell.type_in("printf '\\033[32m%s\\033[0m on %s\\n' green \"$(stty size)\"\n");
    shell.wait_for("\x1b[32mgreen\x1b[0m on 24 80");
    shell.resize(120, 40);
    shell.type_in("stty size\n");
    shell.wait_for("40 120");
    shell.type_in("exit\n");
    assert_eq!(shell.wait(LIMIT).code(), Some(0));
    assert!(shell.is_restored());
    println!("--- capture\n{}\n---", shell.shown().replace('\x1b', "␛").replace('\r', ""));

    let agent: Vec<_> = find(&format!("HOME={}", folder.path().display()), "agent").into_iter().map(pidfd).collect();
    assert_eq!(agent.len(), 1, "the agent is a child of the server");
    server.signal(Signal::TERM);
    assert_eq!(server.wait(LIMIT).code(), Some(0));
    assert!(gone_within(&agent[0], LIMIT), "the agent outlives its server");
}

#[test]
fn a_killed_dev_server_takes_its_agent_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start("the server", server_command(None, folder.path(), "127.0.0.1:0", &["--dev"]));
    let line = server.wait_for("coder ssh dev");
    let dir = line.split("CODER_CONFIG_DIR=").nth(1).unwrap().split_whitespace().next().unwrap().trim_matches('\'').to_owned();
    let mut ssh = Command::new(coder());
    clean(&mut ssh).args(["ssh", "dev", "--", "true"]).env("CODER_CONFIG_DIR", &dir).env("HOME", folder.path());
    assert_eq!(run(ssh, b"").status.code(), Some(0));
    let agent: Vec<_> = find(&format!("HOME={}", folder.path().display()), "agent").into_iter().map(pidfd).collect();
    assert_eq!(agent.len(), 1);
    server.kill();
    assert!(gone_within(&agent[0], LIMIT), "the agent outlives its server");
}
