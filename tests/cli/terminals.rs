//! Terminals that outlive their connections: `coder exp rpty`, through the server.

use crate::{
    Lab,
    harness::{
        Process, Server, have_as_root,
        namespace::{MOUNT_TOOLS, with_mounts},
        process::{LIMIT, run, text, until},
        terminal::Terminal,
    },
};
use rustix::process::Signal;

const ID: &str = "6c1fbbe5-4c4b-4d5e-9b7a-0d6a8d1c2e3f";

#[test]
fn a_command_runs_in_a_terminal_through_the_server_and_its_end_is_ours() {
    let lab = Lab::new();
    let out = run(lab.server.coder(&["exp", "rpty", "dev", "tty;", "stty", "size;", "echo", "$TERM"]), b"");
    let shown = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(shown.starts_with("/dev/pts/") && shown.ends_with("24 80\r\nxterm-256color\r\n"), "{shown:?}");
    // The end of a pipe is the end of a program's input.
    let out = run(lab.server.coder(&["exp", "rpty", "dev", "cat; echo end"]), b"hello\n");
    let shown = text(&out.stdout);
    // The terminal shows what is typed, and cat shows it again.
    assert_eq!((out.status.code(), shown.as_str()), (Some(0), "hello\r\nhello\r\nend\r\n"));
}

#[test]
fn a_shell_is_come_back_to_and_follows_the_size_of_whoever_sits_before_it() {
    let lab = Lab::new();
    let open = || Terminal::start(lab.server.coder(&["exp", "rpty", "-r", ID, "dev"]));
    let mut first = open();
    first.type_in("kept=one; echo was$((41 + 1))\r");
    first.wait_for("was42");
    assert!(!first.echoes());
    let first_process = first.pid();
    rustix::process::kill_process(first_process, Signal::TERM).unwrap();
    assert_eq!(first.wait(LIMIT).code(), Some(143));
    assert!(first.is_restored());
    first.wait_for(ID);

    let mut second = open();
    // What was shown is shown again.
    second.wait_for("was42");
    second.resize(100, 30);
    // What is typed may overtake the news of the size.
    second.type_in("until [ \"$(stty size)\" = \"30 100\" ]; do sleep 0.1; done; echo si''zed; echo $kept-two\r");
    second.wait_for("sized");
    second.wait_for("one-two");
    let mut third = open();
    third.wait_for("one-two");
    third.type_in("exit\r");
    for terminal in [&mut second, &mut third] {
        assert_eq!(terminal.wait(LIMIT).code(), Some(0));
    }
}

#[test]
fn what_cannot_be_had_is_told() {
    let lab = Lab::new();
    let out = run(lab.server.coder(&["exp", "rpty", "--disable-direct-connections", "dev"]), b"");
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("always goes through the server"), "{}", text(&out.stderr));
    let out = run(lab.server.coder(&["exp", "rpty", "-u", "root", "dev", "true"]), b"");
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b""[..]));
    assert!(text(&out.stderr).contains("name that with --container"), "{}", text(&out.stderr));
    let out = run(lab.server.coder(&["exp", "rpty", "-c", "c1", "dev", "true"]), b"");
    assert!(text(&out.stdout).contains("runs no terminals in containers"), "{}", text(&out.stdout));
}

#[test]
fn much_input_and_much_output_pass_each_other() {
    let lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("got");
    // More than fits into everything on the way.
    let input: String = (0..40_000).map(|n| format!("{n} {}\n", "x".repeat(100))).collect();
    let command = format!("stty -echo; tee '{}'", file.display());
    let out = run(lab.server.coder(&["exp", "rpty", "dev", &command]), input.as_bytes());
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(std::fs::read_to_string(&file).unwrap() == input);
    // What was typed before there was no echo any more shows twice.
    assert!(text(&out.stdout).replace('\r', "").ends_with(&input[input.len() / 2..]));
}

#[test]
fn a_terminal_ends_with_the_reason_when_its_workspace_is_stopped_or_deleted() {
    for (command, reason) in [("stop", "the workspace was stopped"), ("delete", "the workspace was deleted")] {
        let lab = Lab::new();
        let mut terminal = Terminal::start(lab.server.coder(&["exp", "rpty", "dev"]));
        terminal.type_in("echo here$((1 + 1))\r");
        terminal.wait_for("here2");
        let out = run(lab.server.coder(&[command, "--yes", "dev"]), b"");
        assert!(out.status.success(), "{}", text(&out.stderr));
        terminal.wait_for(&format!("error: the terminal has ended: {reason}"));
        assert_eq!(terminal.wait(LIMIT).code(), Some(1));
        assert!(terminal.is_restored() && !terminal.shown().contains("--reconnect"), "{}", terminal.shown());
    }
}

#[test]
fn a_connection_that_breaks_is_told_with_the_way_back_and_so_is_whoever_leaves() {
    let mut lab = Lab::new();
    let open = |lab: &Lab| {
        let mut terminal = Terminal::start(lab.server.coder(&["exp", "rpty", "-r", ID, "dev"]));
        terminal.type_in("\recho here$((1 + 1))\r");
        terminal.wait_for("here2");
        terminal
    };
    let mut left = open(&lab);
    left.type_in("~.");
    left.wait_for("The terminal goes on: ");
    assert_eq!(left.wait(LIMIT).code(), Some(1));
    let mut lost = open(&lab);
    lab.server.process.kill();
    lost.wait_for("error: the connection to the terminal was lost: ");
    lost.wait_for(&format!("--reconnect {ID} dev comes back"));
    assert_eq!(lost.wait(LIMIT).code(), Some(1));
    assert!(left.is_restored() && lost.is_restored());
}

/// Runs an agent on a machine that has two terminals.
fn agent_with_two_terminals(server: &Server, token: &str) -> Process {
    let mounts = "mount -t devpts -o newinstance,ptmxmode=0666,max=2 devpts /dev/pts && mount --bind /dev/pts/ptmx /dev/ptmx";
    let command = with_mounts(mounts, &server.agent_command(None, token));
    let mut agent = Process::start("the agent", command);
    agent.wait_for("connected to the coordinator");
    agent
}

#[test]
fn a_machine_without_a_free_terminal_says_so_and_goes_on() {
    if !have_as_root(&MOUNT_TOOLS) {
        return;
    }
    let server = Server::start(&[]);
    let _agent = agent_with_two_terminals(&server, &server.create("dev"));
    let open = || {
        let mut terminal = Process::start("a terminal", server.coder(&["exp", "rpty", "dev", "echo here; cat"]));
        terminal.wait_for("here");
        terminal
    };
    let (mut first, _second) = (open(), open());
    let another = || text(&run(server.coder(&["exp", "rpty", "dev", "echo another"]), b"").stdout);
    let told = another();
    assert!(told.contains("this machine has no terminal left"), "{told}");
    let mut shell = Terminal::start(server.coder(&["ssh", "dev"]));
    shell.wait_for("this machine has no terminal left");
    assert!(!shell.wait(LIMIT).success() && shell.is_restored());
    // Whoever wants none has his session.
    assert_eq!(text(&run(server.coder(&["ssh", "dev", "--", "echo without"]), b"").stdout), "without\n");
    first.close_stdin();
    assert!(first.wait(LIMIT).success());
    // The system gives a terminal back when the last process has let go of it.
    until("the terminal was not given back", || another() == "another\r\n");
}
