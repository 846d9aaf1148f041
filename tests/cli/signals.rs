//! Closed pipes, closed terminals and signals end a command at once and without noise.

use crate::{
    Lab,
    harness::{
        DeadPort, Server,
        coder::server_command,
        free_port,
        process::{LIMIT, Process, gone_within, pidfd, run, text, until},
        terminal::Terminal,
    },
};
use rustix::{
    io::ioctl_fionbio,
    process::{Pid, Signal, kill_process},
};
use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, PipeReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

/// Nothing that ends us takes longer.
const SOON: Duration = Duration::from_secs(5);

/// Ended by the signal, or with the status that a shell gives for it.
fn is_ended_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal.as_raw()) || status.code() == Some(128 + signal.as_raw())
}

/// Runs a command whose reader goes away after its first line.
fn cut_short(mut command: Command) -> (ExitStatus, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    assert!(gone_within(pidfd(Pid::from_child(&child)), SOON), "it goes on without a reader");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap(), said)
}

#[test]
fn a_reader_that_has_enough_ends_the_command_without_a_word() {
    let lab = Lab::new();
    for arguments in [&["ssh", "dev", "--", "yes"][..], &["ping", "dev", "--wait", "10ms"]] {
        let (status, said) = cut_short(lab.server.coder(arguments));
        assert!(!status.success() || arguments[0] == "ping", "{status}");
        // What ping tells of the connection comes before its first line.
        let noise = said.lines().any(|line| line.starts_with("error") || line.contains("panicked"));
        assert!(if arguments[0] == "ping" { !noise } else { said.is_empty() }, "{arguments:?}: {said}");
    }
    // The reader is gone before the first byte.
    let mut list = lab.server.coder(&["list"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = list.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(text(&out.stderr), "");
}

#[test]
fn a_terminated_session_ends_and_restores_its_terminal() {
    let lab = Lab::new();
    let mut shell = Terminal::start(lab.server.coder(&["ssh", "dev"]));
    shell.type_in("echo rea''dy\n");
    shell.wait_for("ready");
    assert!(!shell.echoes());
    kill_process(shell.pid(), Signal::TERM).unwrap();
    let status = shell.wait(SOON);
    assert!(is_ended_by(status, Signal::TERM), "{status}");
    assert!(shell.is_restored(), "the terminal's modes are not as before");
}

#[test]
fn a_closed_terminal_ends_the_session_here_and_there() {
    let lab = Lab::new();
    let mut shell = Terminal::start(lab.server.coder(&["ssh", "dev"]));
    shell.type_in("echo pi''d=$$=\n");
    shell.wait_for("pid=");
    shell.wait_for("=");
    let shown = shell.shown();
    let remote: i32 = shown.rsplit("pid=").next().unwrap().split('=').next().unwrap().parse().unwrap();
    let remote = pidfd(Pid::from_raw(remote).unwrap());
    let mut child = shell.hang_up();
    assert!(gone_within(pidfd(Pid::from_child(&child)), SOON), "it outlives its terminal");
    child.wait().unwrap();
    assert!(gone_within(remote, SOON), "the shell in the workspace outlives its terminal");
}

#[test]
fn each_signal_ends_a_running_command_soon() {
    let lab = Lab::new();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        for arguments in [
            &["ssh", "dev", "--", "echo up; sleep 1000"][..],
            &["ping", "dev", "--wait", "50ms"],
            &["speedtest", "dev", "-t", "1h"],
        ] {
            let mut process = Process::start("the command", lab.server.coder(arguments));
            process.wait_for(match arguments[0] {
                "ssh" => "up",
                "ping" => "pong",
                _ => "Testing the ",
            });
            process.signal(signal);
            let status = process.wait(SOON);
            // A ping that was interrupted has still measured something.
            assert!(is_ended_by(status, signal) || arguments[0] == "ping", "{signal:?} {arguments:?}: {status}");
            assert!(!process.drain().iter().any(|l| l.contains("panicked")), "{:?}", process.seen);
        }
        // `--stdio`: its user is OpenSSH, which wants no status.
        let mut stdio = Process::start("ssh --stdio", lab.server.coder(&["ssh", "--stdio", "dev"]));
        stdio.wait_for("SSH-2.0-");
        stdio.signal(signal);
        stdio.wait(SOON);
    }
}

#[test]
fn ctrl_c_while_a_workspace_is_waited_for_gives_130() {
    let server = Server::start(&[]);
    server.create("dev");
    for arguments in [&["ssh", "dev"][..], &["ssh", "dev", "--", "true"], &["ping", "dev"], &["speedtest", "dev"]] {
        let mut process = Process::start("the command", server.coder(arguments));
        process.wait_for("Waiting for the agent of workspace dev");
        process.signal(Signal::INT);
        assert_eq!(process.wait(SOON).code(), Some(130), "{arguments:?}");
        assert!(!process.drain().iter().any(|line| line.starts_with("error")), "{:?}", process.seen);
    }
}

#[test]
fn a_header_command_ends_with_the_command_that_runs_it() {
    let server = Server::start(&[]);
    for arguments in [&["list"][..], &["ssh", "dev", "--", "true"], &["ssh", "--stdio", "dev"], &["ping", "dev"]] {
        let said = server.dir.path().join("header-command");
        let _ = fs::remove_file(&said);
        // What the shell has started ends too.
        let line = format!("sleep 1000 & echo $$ $! > {0}.new; mv {0}.new {0}; wait", said.display());
        let mut process = Process::start("the command", server.coder(&[&["--header-command", &line], arguments].concat()));
        until("the header command runs", || said.exists());
        let ids = fs::read_to_string(&said).unwrap();
        let started: Vec<_> = ids.split_whitespace().map(|id| pidfd(Pid::from_raw(id.parse().unwrap()).unwrap())).collect();
        process.signal(Signal::TERM);
        assert_eq!(process.wait(SOON).code(), Some(143), "{arguments:?}");
        assert!(started.iter().all(|process| gone_within(process, SOON)), "{arguments:?}: something goes on");
    }
}

#[test]
fn a_result_that_cannot_be_written_is_told_with_what_was_made() {
    let server = Server::start(&[]);
    let full = |arguments: &[&str]| {
        let mut command = server.coder(arguments);
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let out = command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.starts_with("error: cannot write to standard output: ") && said.lines().count() == 1, "{said}");
        said
    };
    full(&["login", "token"]);
    full(&["list", "--output", "json"]);
    assert!(full(&["create", "dev"]).contains("'coder delete dev'"));
    assert!(full(&["users", "create", "ann"]).contains("'coder tokens create --user ann'"));
    let said = full(&["tokens", "create", "--name", "lost"]);
    let id = said.split("token ").nth(1).unwrap().split(' ').next().unwrap();
    let out = run(server.coder(&["tokens", "remove", id]), b"");
    assert!(out.status.success() && said.contains(&format!("'coder tokens remove {id}'")), "{said}{}", text(&out.stderr));
    assert!(!run(server.coder(&["tokens", "view", "lost"]), b"").status.success(), "it was another one");
}

#[test]
fn server_and_agent_end_well_when_asked() {
    for signal in [Signal::INT, Signal::TERM] {
        let Lab { mut agent, mut server } = Lab::new();
        agent.signal(signal);
        assert_eq!(agent.wait(LIMIT).code(), Some(0), "the agent");
        server.process.signal(signal);
        assert_eq!(server.process.wait(LIMIT).code(), Some(0), "the server");
    }
}

#[test]
fn stdio_ends_when_its_reader_and_writer_are_gone() {
    let lab = Lab::new();
    let mut child = lab.server.coder(&["ssh", "--stdio", "dev"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 4]).unwrap();
    drop((stdout, child.stdin.take()));
    assert!(gone_within(pidfd(Pid::from_child(&child)), SOON), "it goes on without OpenSSH");
    child.wait().unwrap();
}

/// A process whose standard error somebody holds and never reads: it is full from the beginning on.
struct Unread {
    child: Child,
    _reader: PipeReader,
}

impl Unread {
    fn start(mut command: Command) -> Self {
        let (reader, mut writer) = std::io::pipe().unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        for size in [4096, 1] {
            while writer.write(&vec![b'x'; size]).is_ok() {}
        }
        assert_eq!(writer.write(b"x").unwrap_err().kind(), ErrorKind::WouldBlock);
        ioctl_fionbio(&writer, false).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
        Self { child, _reader: reader }
    }

    fn end(mut self, name: &str) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        assert!(gone_within(pidfd(pid), SOON), "{name} waits for the reader of its standard error");
        self.child.wait().unwrap()
    }

    fn terminate(self, name: &str) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.end(name);
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn nobody_waits_for_a_reader_of_standard_error_that_has_stopped() {
    let mut server = Server::start(&[]);
    let token = server.create("dev");
    server.process.signal(Signal::TERM);
    server.process.wait(LIMIT);
    let address = server.address().to_owned();
    let unread = Unread::start(server_command(None, server.dir.path(), &address, &["-v"]));
    until("the server answers", || run(server.coder(&["list"]), b"").status.success());
    let agent = Unread::start(server.agent_command(None, &token));
    for _ in 0..3 {
        let out = run(server.coder(&["ssh", "dev", "--", "echo here"]), b"");
        assert_eq!((out.status.code(), text(&out.stdout).as_str()), (Some(0), "here\n"), "{}", text(&out.stderr));
    }
    let session = Unread::start(server.coder(&["ssh", "-v", "dev", "--", "true"]));
    assert_eq!(session.end("a session").code(), Some(0));

    let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (nobody, local, dead) = (DeadPort::hold(), free_port(), free_port());
    let ports = [format!("{local}:{}", echo.local_addr().unwrap().port()), format!("{dead}:{}", nobody.port())];
    let forward = Unread::start(server.coder(&["port-forward", "dev", "-p", &ports[0], "-p", &ports[1]]));
    let open = |port: u16| {
        let mut stream = None;
        until("the port is open", || {
            stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    };
    for _ in 0..3 {
        // Each of them is a line.
        let end = open(dead).read(&mut [0]);
        assert!(end.as_ref().is_ok_and(|n| *n == 0) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    }
    let mut near = open(local);
    near.write_all(b"through").unwrap();
    let (mut far, _) = echo.accept().unwrap();
    let mut got = [0; 7];
    far.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"through");
    drop((near, far));

    forward.terminate("port-forward");
    agent.terminate("the agent");
    unread.terminate("the server");
}
