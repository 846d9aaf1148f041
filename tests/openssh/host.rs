//! The agent's SSH server on a loopback port, for OpenSSH's programs.

use crate::harness::have;
use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Output, Stdio},
    sync::MutexGuard,
    thread,
    time::{Duration, Instant},
};
use tailnet::agent::{
    Profile,
    ssh::{Counters, Rules, Server},
};

/// Longest that any one command of a test may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A server on a loopback port, with its own runtime and thread.
pub(crate) struct Host {
    pub(crate) port: u16,
    pub(crate) server: Server,
    pub(crate) runtime: tokio::runtime::Handle,
    _turn: MutexGuard<'static, ()>,
}

impl Host {
    /// `None`, and a line that says so, where OpenSSH's client is not installed.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&["ssh"], Profile::default())
    }

    /// The same for a workspace of this profile and for more tools.
    pub(crate) fn start_with(tools: &[&str], profile: Profile) -> Option<Self> {
        Self::start_ruled(tools, profile, Rules::default())
    }

    /// The same with rules for its clients.
    pub(crate) fn start_ruled(tools: &[&str], profile: Profile, rules: Rules) -> Option<Self> {
        if !have(tools) {
            return None;
        }
        let turn = crate::turn();
        let mut variables: BTreeMap<String, String> = profile.variables.clone();
        variables.insert("FROM_TEMPLATE".to_owned(), "yes".to_owned());
        let server = Server::with_rules(Profile { workspace: "dev".into(), variables, ..profile }, rules);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (handle, accepting) = (runtime.handle().clone(), server.clone());
        thread::spawn(move || {
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).unwrap();
                    let server = accepting.clone();
                    tokio::spawn(async move { server.serve(stream).await });
                }
            });
        });
        Some(Self { port, server, runtime: handle, _turn: turn })
    }

    pub(crate) fn ssh(&self, options: &[&str]) -> Command {
        self.client("ssh", options)
    }

    /// One of OpenSSH's programs with what all of them need.
    pub(crate) fn client(&self, program: &str, options: &[&str]) -> Command {
        let mut command = Command::new(program);
        // Of two values OpenSSH takes the first.
        let level = options.iter().find(|o| o.starts_with("LogLevel=")).unwrap_or(&"LogLevel=ERROR");
        command
            .args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", level])
            .args(["-o", "BatchMode=yes", "-o", &format!("Port={}", self.port)])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `command` in the workspace with `input` on its standard input.
    pub(crate) fn run(&self, options: &[&str], command: &str, input: &[u8]) -> Output {
        let mut child = self.ssh(options).args(["anyone@127.0.0.1", command]).stdin(Stdio::piped()).spawn().expect("ssh starts");
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        let feed = thread::spawn(move || {
            // A command that ended early closes the pipe.
            let _ = stdin.write_all(&input);
        });
        let output = finish(child);
        feed.join().unwrap();
        output
    }

    pub(crate) fn counters(&self) -> Counters {
        self.server.counters()
    }
}

/// Waits for a child, which is killed when it takes too long.
pub(crate) fn finish(mut child: Child) -> Output {
    let id = child.id();
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let out = thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let err = thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "ssh {id} hangs");
        thread::sleep(Duration::from_millis(2));
    };
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

/// Tries until `done` or the limit; nothing outside tells when a process has gone.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}
