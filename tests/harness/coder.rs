//! The `coder` binary as server, agent and client.

use super::{
    namespace::command_in,
    process::{LIMIT, Process, run, text},
};
use rustix::process::Signal;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The binary under test: `TAILNET_CODER`, such as one that no later build replaces, else Cargo's.
pub fn coder() -> PathBuf {
    std::env::var_os("TAILNET_CODER").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_coder")), PathBuf::from)
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
    command.env("SHELL", "/bin/sh")
}

/// A server with its own data folder, and the first user's login.
pub struct Server {
    pub process: Process,
    pub url: String,
    pub token: String,
    pub dir: tempfile::TempDir,
    /// Where the server runs; clients do too unless told otherwise.
    namespace: Option<String>,
}

impl Server {
    /// Starts a server on a free port of loopback.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_in(None, tempfile::tempdir().unwrap(), "127.0.0.1:0", flags)
    }

    pub fn start_in(namespace: Option<&str>, dir: tempfile::TempDir, address: &str, flags: &[&str]) -> Self {
        let mut process = Process::start("the server", server_command(namespace, dir.path(), address, flags));
        let line = process.wait_for("listening on ");
        let url = line.split("listening on ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        process.wait_for("admin-token");
        let token = fs::read_to_string(dir.path().join("data/admin-token")).unwrap().trim().to_owned();
        Self { process, url, token, dir, namespace: namespace.map(str::to_owned) }
    }

    /// `HOST:PORT` of the server.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Ends the server and starts another on the same data folder and port.
    pub fn restart(self, flags: &[&str]) -> Self {
        let address = self.address().to_owned();
        let Self { mut process, dir, namespace, .. } = self;
        process.signal(Signal::TERM);
        let status = process.wait(LIMIT);
        assert!(status.success(), "the server ended with {status}: {:?}", process.drain());
        Self::start_in(namespace.as_deref(), dir, &address, flags)
    }

    /// A command line with the first user's login.
    pub fn coder(&self, args: &[&str]) -> Command {
        self.coder_as(&self.token, args)
    }

    /// A command line with another login.
    pub fn coder_as(&self, token: &str, args: &[&str]) -> Command {
        self.coder_in(self.namespace.as_deref(), token, args)
    }

    /// A command line in another namespace.
    pub fn coder_in(&self, namespace: Option<&str>, token: &str, args: &[&str]) -> Command {
        let mut command = command_in(namespace, coder());
        clean(&mut command).args(args);
        self.log_in(&mut command, token);
        command
    }

    fn log_in(&self, command: &mut Command, token: &str) {
        command.env("CODER_URL", &self.url).env("CODER_SESSION_TOKEN", token);
        command.env("CODER_CONFIG_DIR", self.dir.path().join("config")).env("HOME", self.dir.path());
    }

    /// Makes a workspace and gives its agent's token, as the line names it that `create` prints.
    pub fn create(&self, name: &str) -> String {
        self.create_as(&self.token, name)
    }

    pub fn create_as(&self, token: &str, name: &str) -> String {
        let out = run(self.coder_as(token, &["create", name]), b"");
        assert!(out.status.success(), "{}", text(&out.stderr));
        let out = text(&out.stdout);
        let line = out.lines().map(str::trim).find(|l| l.ends_with("coder agent")).expect("create prints how to start the agent");
        assert!(line.starts_with(&format!("CODER_AGENT_URL={} ", self.url)), "{line}");
        line.split("CODER_AGENT_TOKEN=")
            .nth(1)
            .expect("create prints the agent's token")
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    }

    /// Makes a user and gives the token.
    pub fn create_user(&self, name: &str) -> String {
        let out = run(self.coder(&["users", "create", name]), b"");
        assert!(out.status.success(), "{}", text(&out.stderr));
        printed_token(&text(&out.stdout))
    }

    /// Makes a workspace, starts its agent and waits until it is connected.
    pub fn workspace(&self, name: &str) -> Process {
        let token = self.create(name);
        self.agent(&token)
    }

    /// Starts an agent beside the server and waits until it is connected.
    pub fn agent(&self, token: &str) -> Process {
        self.agent_in(self.namespace.as_deref(), token)
    }

    pub fn agent_in(&self, namespace: Option<&str>, token: &str) -> Process {
        let mut agent = Process::start("the agent", self.agent_command(namespace, token));
        agent.wait_for("connected to the coordinator");
        agent
    }

    /// The line that `create` prints, with `-v`.
    pub fn agent_command(&self, namespace: Option<&str>, token: &str) -> Command {
        let mut command = command_in(namespace, coder());
        clean(&mut command).args(["agent", "-v"]).env("CODER_AGENT_URL", &self.url).env("CODER_AGENT_TOKEN", token);
        command.env("HOME", self.dir.path());
        command
    }

    /// OpenSSH through `coder ssh --stdio`. `flags` go to `coder`.
    pub fn ssh(&self, flags: &[&str], ssh_flags: &[&str], workspace: &str, remote: &str) -> Command {
        let mut command = self.openssh("ssh", flags, ssh_flags);
        command.args([workspace, remote]);
        command
    }

    /// One of OpenSSH's programs through `coder ssh --stdio`. `flags` go to `coder`, `options` to the program.
    pub fn openssh(&self, program: &str, flags: &[&str], options: &[&str]) -> Command {
        let proxy = format!("ProxyCommand={} {} ssh --stdio %h", coder().display(), flags.join(" "));
        let mut command = command_in(self.namespace.as_deref(), program);
        // Of several values of an option OpenSSH takes the first.
        clean(&mut command).args(options).args(["-F", "none", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", &proxy]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        self.log_in(&mut command, &self.token);
        command
    }
}

/// The token that `users create` prints.
pub fn printed_token(out: &str) -> String {
    out.lines().find(|l| l.starts_with("  ") && !l.trim().is_empty()).expect("users create prints a token").trim().to_owned()
}

/// A server's command line with the data folder `DIR/data`.
pub fn server_command(namespace: Option<&str>, dir: &Path, address: &str, flags: &[&str]) -> Command {
    let mut command = command_in(namespace, coder());
    clean(&mut command).args(["server", "--http-address", address, "--data-dir"]).arg(dir.join("data")).args(flags);
    command.env("CODER_CONFIG_DIR", dir.join("unused")).env("HOME", dir);
    command
}
