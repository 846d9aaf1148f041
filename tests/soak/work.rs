//! A deployment and those who work with it: sessions, files, forwards, terminals, and clients that are killed in the middle.

use crate::harness::{
    Process, Server, clean, coder, free_port,
    keys::Keys,
    noise,
    process::{LIMIT, children, gone_within, pidfd, run, text},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

/// Bytes of a file that goes there and back.
const FILE: usize = 4_000_000;
/// Bytes of one forwarded connection.
const PART: usize = 256 << 10;

/// Server, agent, and the clients that stay all the time.
pub(crate) struct Lab {
    server: Server,
    agent: Process,
    /// Ports of the workspace, for everybody.
    forward: Process,
    forwarded: u16,
    /// A session in which one line a round is said.
    session: Process,
    keys: Keys,
    /// A service of the workspace that gives back what it gets.
    echo: u16,
    folders: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn start() -> Self {
        let folders = tempfile::tempdir().unwrap();
        let folder = |name: &str| folders.path().join(name);
        fs::create_dir(folder("tmp")).unwrap();
        fs::create_dir(folder("keys")).unwrap();
        let server = Server::start(&["--dangerous-disable-rate-limits"]);
        let mut agent = server.agent_command(None, &server.create("dev"));
        agent.env("TMPDIR", folder("tmp"));
        let mut agent = Process::start("the agent", agent);
        agent.wait_for("connected to the coordinator");
        let (echo, forwarded) = (echo(), free_port());
        let mut forward = Process::start(
            "coder port-forward",
            server.coder(&["port-forward", "dev", "-p", &format!("{forwarded}:{echo}"), "--udp", &format!("{forwarded}:{echo}")]),
        );
        forward.wait_for("Ready!");
        let mut session = Process::start("a session", server.coder(&["ssh", "dev", "--", "cat"]));
        session.type_in(b"here\n");
        session.wait_for("here");
        let keys = Keys::start(&folder("keys"));
        Self { server, agent, forward, forwarded, session, keys, echo, folders }
    }

    /// Those who may not grow.
    pub(crate) fn processes(&self) -> Vec<(&'static str, Pid)> {
        let Self { server, agent, forward, session, .. } = self;
        let all = [("server", &server.process), ("agent", agent), ("port-forward", forward), ("session", session)];
        all.map(|(name, process)| (name, process.pid())).into()
    }

    /// Where the agent puts temporary files.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.folders.path().join("tmp")
    }

    /// What the server keeps.
    pub(crate) fn data(&self) -> PathBuf {
        self.server.dir.path().join("data")
    }

    /// A word to the session that stays, and to the forward.
    pub(crate) fn greet(&mut self, round: u64) {
        let line = format!("round {round}.");
        self.session.type_in(format!("{line}\n").as_bytes());
        self.session.wait_for(&line);
        give_and_take(self.forwarded, &noise(PART, round));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect((Ipv4Addr::LOCALHOST, self.forwarded)).unwrap();
        // Nobody promises that it arrives; it is the flow that counts.
        socket.send(line.as_bytes()).unwrap();
    }

    /// Lets go of what the processes have said: this process has its hours, too.
    pub(crate) fn forget_lines(&mut self) {
        for process in [&mut self.server.process, &mut self.agent, &mut self.forward, &mut self.session] {
            process.drain();
            process.seen.clear();
        }
    }
}

/// Somebody who works direct, or by relay alone.
pub(crate) struct Lane {
    relayed: bool,
    folder: PathBuf,
    /// For `ssh -F`, as `coder config-ssh` wrote it.
    config: PathBuf,
    /// The terminal that is come back to.
    terminal: &'static str,
}

impl Lane {
    pub(crate) fn new(lab: &Lab, relayed: bool) -> Self {
        let folder = lab.folders.path().join(if relayed { "relayed" } else { "direct" });
        fs::create_dir(&folder).unwrap();
        let config = folder.join("config");
        let terminal = if relayed { "6c1fbbe5-4c4b-4d5e-9b7a-0d6a8d1c2e40" } else { "6c1fbbe5-4c4b-4d5e-9b7a-0d6a8d1c2e41" };
        let lane = Self { relayed, folder, config, terminal };
        let write = ["config-ssh", "--yes", "--ssh-config-file", lane.config.to_str().unwrap(), "--coder-binary-path"];
        lane.ok(lane.coder(lab, &[&write[..], &[coder().to_str().unwrap()]].concat()), b"");
        lane
    }

    /// A program with the login.
    fn command(&self, lab: &Lab, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        clean(&mut command).args(arguments).current_dir(&self.folder).env("HOME", &self.folder);
        command.env("CODER_URL", &lab.server.url).env("CODER_SESSION_TOKEN", &lab.server.token);
        command.env("CODER_CONFIG_DIR", self.folder.join("login")).env("SSH_AUTH_SOCK", &lab.keys.socket);
        if self.relayed {
            command.env("CODER_DISABLE_DIRECT_CONNECTIONS", "true");
        }
        command
    }

    fn coder(&self, lab: &Lab, arguments: &[&str]) -> Command {
        self.command(lab, coder(), arguments)
    }

    /// A terminal always goes through the server.
    fn terminal(&self, lab: &Lab, arguments: &[&str]) -> Command {
        let mut command = self.coder(lab, &[&["exp", "rpty"], arguments].concat());
        command.env_remove("CODER_DISABLE_DIRECT_CONNECTIONS");
        command
    }

    fn openssh(&self, lab: &Lab, program: &str, arguments: &[&str]) -> Command {
        let options = ["-F", self.config.to_str().unwrap(), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"];
        self.command(lab, program, &[&options, arguments].concat())
    }

    /// Runs a program that must succeed; what it printed.
    fn ok(&self, command: Command, input: &[u8]) -> Vec<u8> {
        let name = format!("{command:?}");
        let out = run(command, input);
        assert!(out.status.success(), "{name}: {}\n{}", out.status, text(&out.stderr));
        out.stdout
    }

    /// One of each kind, to its end.
    pub(crate) fn work(&mut self, lab: &Lab, round: u64) {
        let seed = round * 2 + u64::from(self.relayed);
        let out = run(self.coder(lab, &["ssh", "dev", "--", "exit 7"]), b"");
        assert_eq!(out.status.code(), Some(7), "{}", text(&out.stderr));
        let out = run(self.openssh(lab, "ssh", &["-A", "dev.coder", "ssh-add -l; exit 9"]), b"");
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(9), lab.keys.fingerprint.clone()), "{}", text(&out.stderr));
        let bytes = noise(FILE, seed);
        let back = self.ok(self.coder(lab, &["ssh", "dev", "--", "cat"]), &bytes);
        assert!(back == bytes, "what came back through `coder ssh` differs");
        self.copy(lab, &bytes);
        self.forward(lab, seed);
        let shown = self.ok(self.terminal(lab, &["dev", "echo in $((20 + 22)); cat"]), b"bye\n");
        assert!(text(&shown).contains("in 42\r\n"), "{}", text(&shown));
        self.ok(self.coder(lab, &["ping", "dev", "-n", "1"]), b"");
        self.ok(self.coder(lab, &["speedtest", "dev", "-t", "300ms"]), b"");
        self.ok(self.coder(lab, &["list"]), b"");
    }

    /// A file goes there and comes back by `scp`.
    fn copy(&self, lab: &Lab, bytes: &[u8]) {
        let there = self.folder.join("there");
        let remote = format!("dev.coder:{}", there.display());
        fs::write(self.folder.join("file"), bytes).unwrap();
        self.ok(self.openssh(lab, "scp", &["-q", "file", &remote]), b"");
        assert!(fs::read(there).unwrap() == bytes, "what `scp` brought differs");
        self.ok(self.openssh(lab, "scp", &["-q", &remote, "back"]), b"");
        assert!(fs::read(self.folder.join("back")).unwrap() == bytes, "what `scp` fetched differs");
    }

    /// Connections through a forward of its own: some to their end, one given up in the middle.
    fn forward(&self, lab: &Lab, seed: u64) {
        let (mut process, port) = self.open_forward(lab);
        for part in 0..4 {
            give_and_take(port, &noise(PART, seed * 10 + part));
        }
        let mut left = connect(port);
        left.write_all(&noise(PART, seed)).unwrap();
        left.read_exact(&mut [0]).unwrap();
        drop(left);
        process.signal(Signal::INT);
        assert!(process.wait(LIMIT).success(), "{:?}", process.drain());
    }

    fn open_forward(&self, lab: &Lab) -> (Process, u16) {
        let port = free_port();
        let forward = self.coder(lab, &["port-forward", "dev", "-p", &format!("{port}:{}", lab.echo)]);
        let mut process = Process::start("a forward", forward);
        process.wait_for("Ready!");
        (process, port)
    }

    /// One of each kind, killed in the middle.
    pub(crate) fn be_killed(&mut self, lab: &Lab, round: u64) {
        // OpenSSH with all that it can ask for, or its ProxyCommand.
        let reverse = format!("0:127.0.0.1:{}", lab.echo);
        let mut ssh =
            Process::start("ssh", self.openssh(lab, "ssh", &["-tt", "-A", "-R", &reverse, "dev.coder", "echo up; cat"]));
        ssh.wait_for("up");
        let proxy = children(ssh.pid());
        assert_eq!(proxy.len(), 1, "OpenSSH has one child, its ProxyCommand");
        let ours = pidfd(proxy[0]);
        if round.is_multiple_of(2) {
            ssh.kill();
        } else {
            kill_process(proxy[0], Signal::KILL).unwrap();
            ssh.wait(LIMIT);
        }
        assert!(gone_within(ours, Duration::from_secs(10)), "it outlives its parent");

        let mut upload = Process::start("an upload", self.coder(lab, &["ssh", "dev", "--", "echo up; cat > /dev/null"]));
        upload.wait_for("up");
        upload.feed(noise(8 * FILE, round));
        let mut download = Process::start("a download", self.coder(lab, &["ssh", "dev", "--", "yes"]));
        download.wait_for("y");
        upload.kill();
        download.kill();

        let (mut forward, port) = self.open_forward(lab);
        let mut open = connect(port);
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        forward.kill();

        let mut terminal = Process::start("a terminal", self.terminal(lab, &["-r", self.terminal, "dev"]));
        terminal.type_in(format!("echo was$(({round} + 1000))\n").as_bytes());
        terminal.wait_for(&format!("was{}", round + 1000));
        terminal.kill();
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), LIMIT).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Sends it all to an echo and gets it back.
fn give_and_take(port: u16, bytes: &[u8]) {
    let mut stream = connect(port);
    let (mut sender, all) = (stream.try_clone().unwrap(), bytes.to_vec());
    let sending = thread::spawn(move || {
        sender.write_all(&all).unwrap();
        sender.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert!(back == bytes, "what came back through a forward differs");
}

/// Gives back what it gets, by TCP.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // One that goes away in between is no failure.
            thread::spawn(move || drop(std::io::copy(&mut &stream, &mut &stream)));
        }
    });
    port
}
