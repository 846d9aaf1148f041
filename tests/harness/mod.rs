//! Real processes for the tests: the `coder` binary as server, agent and client, OpenSSH, network namespaces.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a test fails by panicking")]
#![allow(unreachable_pub, missing_debug_implementations, missing_docs, reason = "shared by test binaries only")]

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// No step of a test takes this long on a busy machine; reaching it is a hang.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn coder() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_coder"))
}

/// Whether the tools are here. Without `TAILNET_CI=1` a missing one skips the test with one line, with it the test fails.
pub fn have(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools.iter().filter(|t| !on_path(t)).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var_os("TAILNET_CI").is_none(), "missing tools: {missing:?}");
    println!("skipped: missing tools {missing:?}");
    false
}

/// As [`have`], for tests that make network namespaces.
pub fn have_namespaces(tools: &[&str]) -> bool {
    if !have(&[&["ip", "nft"], tools].concat()) {
        return false;
    }
    let root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    assert!(root || std::env::var_os("TAILNET_CI").is_none(), "network namespaces need root");
    if !root {
        println!("skipped: network namespaces need root");
    }
    root
}

fn on_path(tool: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(tool).is_file())
}

/// A running process whose output lines can be waited for. It is killed when dropped.
pub struct Process {
    pub child: Child,
    lines: Receiver<String>,
    /// Everything seen so far, for messages of failing tests.
    pub seen: Vec<String>,
    name: String,
}

impl Process {
    /// Starts `command` and reads its standard output and error as lines.
    pub fn start(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        let (sender, lines) = mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] = [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        return;
                    }
                }
            });
        }
        Self { child, lines, seen: Vec::new(), name: name.to_owned() }
    }

    /// Waits for a line that holds `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_within(text, LIMIT)
    }

    /// Waits for a line that holds `text`, at most `limit`.
    pub fn wait_within(&mut self, text: &str, limit: Duration) -> String {
        let end = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(why) => {
                    let why = if why == RecvTimeoutError::Timeout { "said nothing in time" } else { "ended" };
                    panic!("{} {why} while waiting for {text:?}; it said:\n{}", self.name, self.seen.join("\n"));
                }
            }
        }
    }

    /// The next line, if one comes within `limit`.
    pub fn next_line(&mut self, limit: Duration) -> Option<String> {
        let line = self.lines.recv_timeout(limit).ok()?;
        self.seen.push(line.clone());
        Some(line)
    }

    /// All lines that have come by now.
    pub fn drain(&mut self) -> &[String] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait_child(&mut self.child, limit).unwrap_or_else(|| panic!("{} still runs; it said:\n{}", self.name, self.drain().join("\n")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child, `None` when the limit passes.
pub fn wait_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    // A child's end cannot be waited for with a limit in std; a helper thread watches its pidfd.
    let pid = rustix::process::Pid::from_child(child);
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    let ready = rustix::event::poll(&mut fds, Some(&limit)).unwrap();
    if ready == 0 { None } else { Some(child.wait().unwrap()) }
}

/// Runs a command to its end with input, within the limit.
pub fn run(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let text = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {text}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || drop(std::io::Write::write_all(&mut stdin, &input)));
    let reader = |mut stream: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            all
        })
    };
    let out = reader(Box::new(child.stdout.take().unwrap()));
    let err = reader(Box::new(child.stderr.take().unwrap()));
    let status = wait_child(&mut child, LIMIT).unwrap_or_else(|| {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{text} still runs after {LIMIT:?}");
    });
    writer.join().unwrap();
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server with its own data folder, and the first user's login.
pub struct Server {
    pub process: Process,
    pub url: String,
    pub token: String,
    pub dir: tempfile::TempDir,
    /// `ip netns exec NAME`, or nothing.
    namespace: Option<String>,
}

/// A command that runs in a namespace, or here.
pub fn command_in(namespace: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    match namespace {
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

impl Server {
    /// Starts a server on a free port of loopback.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_in(None, tempfile::tempdir().unwrap(), "127.0.0.1:0", flags)
    }

    pub fn start_in(namespace: Option<&str>, dir: tempfile::TempDir, address: &str, flags: &[&str]) -> Self {
        let mut command = command_in(namespace, coder());
        clean(&mut command).args(["server", "--http-address", address, "--data-dir"]).arg(dir.path().join("data")).args(flags);
        command.env("CODER_CONFIG_DIR", dir.path().join("unused"));
        let mut process = Process::start("the server", command);
        let line = process.wait_for("listening on ");
        let url = line.split("listening on ").nth(1).unwrap().trim().to_owned();
        let token = fs::read_to_string(dir.path().join("data/admin-token")).unwrap().trim().to_owned();
        Self { process, url, token, dir, namespace: namespace.map(str::to_owned) }
    }

    /// Ends the server and starts another on the same data folder and port.
    pub fn restart(self, flags: &[&str]) -> Self {
        let Self { mut process, url, dir, namespace, .. } = self;
        process.signal(rustix::process::Signal::TERM);
        assert!(process.wait(LIMIT).success(), "the server did not end well: {:?}", process.seen);
        let address = url.trim_start_matches("http://").to_owned();
        Self::start_in(namespace.as_deref(), dir, &address, flags)
    }

    /// A command line with the first user's login.
    pub fn coder(&self, args: &[&str]) -> Command {
        self.coder_in(self.namespace.as_deref(), args)
    }

    pub fn coder_in(&self, namespace: Option<&str>, args: &[&str]) -> Command {
        let mut command = command_in(namespace, coder());
        clean(&mut command).args(args);
        command.env("CODER_URL", &self.url).env("CODER_SESSION_TOKEN", &self.token);
        command.env("CODER_CONFIG_DIR", self.dir.path().join("config"));
        command
    }

    /// Makes a workspace and gives its agent's token.
    pub fn create(&self, name: &str) -> String {
        let out = run(self.coder(&["create", name]), b"");
        assert!(out.status.success(), "{}", text(&out.stderr));
        let line = text(&out.stdout);
        line.split("CODER_AGENT_TOKEN=").nth(1).expect("create prints the agent's token").split_whitespace().next().unwrap().to_owned()
    }

    /// Makes a workspace, starts its agent and waits until it is connected.
    pub fn workspace(&self, name: &str) -> Process {
        let token = self.create(name);
        self.agent(self.namespace.as_deref(), &token, &self.url)
    }

    /// Starts an agent and waits until it is connected.
    pub fn agent(&self, namespace: Option<&str>, token: &str, url: &str) -> Process {
        let mut command = command_in(namespace, coder());
        clean(&mut command).args(["agent", "-v"]).env("CODER_AGENT_URL", url).env("CODER_AGENT_TOKEN", token);
        command.env("HOME", self.dir.path());
        let mut agent = Process::start("the agent", command);
        agent.wait_for("connected to the coordinator");
        agent
    }

    /// OpenSSH through `coder ssh --stdio`. `flags` go to `coder`.
    pub fn ssh(&self, flags: &[&str], ssh_flags: &[&str], workspace: &str, remote: &[&str]) -> Command {
        let proxy = format!("ProxyCommand={} {} ssh --stdio %h", coder().display(), flags.join(" "));
        let mut command = command_in(self.namespace.as_deref(), "ssh");
        clean(&mut command).args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-o", "LogLevel=ERROR", "-o", &proxy]).args(ssh_flags).arg(workspace).args(remote);
        command.env("CODER_URL", &self.url).env("CODER_SESSION_TOKEN", &self.token);
        command.env("CODER_CONFIG_DIR", self.dir.path().join("config"));
        command
    }
}

/// Takes the user's own settings out of a command's environment.
pub fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CODER_") {
            command.env_remove(name);
        }
    }
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSH_AUTH_SOCK"] {
        command.env_remove(name);
    }
    command
}

/// The counters that `-v` prints at the end of a connection.
pub fn counters(lines: impl IntoIterator<Item = impl AsRef<str>>) -> serde_json::Value {
    let found = lines.into_iter().filter_map(|l| Some(serde_json::from_str(l.as_ref().split("counters ").nth(1)?).unwrap())).last();
    found.expect("no counters were printed")
}

/// A file of `len` bytes that do not repeat.
pub fn random_file(path: &Path, len: usize) -> Vec<u8> {
    let mut rng = tailnet::base::Rng::from_u64(len as u64);
    let bytes: Vec<u8> = (0..len.div_ceil(4096)).flat_map(|_| rng.bytes::<4096>()).take(len).collect();
    fs::write(path, &bytes).unwrap();
    bytes
}
