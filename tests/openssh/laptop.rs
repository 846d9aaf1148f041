//! A laptop whose `~/.ssh/config` leads into a workspace through the tunnel, direct or by relay: what every program that
//! runs `ssh` needs.

use crate::{
    harness::{
        LIMIT, Process, Server, clean, coder, have,
        process::{run_within, text},
    },
    ways::Way,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

/// The host in the file.
pub(crate) const HOST: &str = "box";

pub(crate) struct Laptop {
    pub(crate) way: Way,
    pub(crate) server: Server,
    pub(crate) agent: Process,
    /// The file for `ssh -F`.
    pub(crate) config: PathBuf,
    folders: tempfile::TempDir,
}

/// Runs a claim direct and by relay. Nothing runs, and a line says so, where one of the tools is missing.
pub(crate) fn direct_and_relayed(tools: &[&str], claim: impl Fn(&mut Laptop)) {
    if !have(&["ssh"]) || !have(tools) {
        return;
    }
    let _turn = crate::turn();
    for way in [Way::Direct, Way::Derp] {
        println!("{way:?}");
        let mut laptop = Laptop::start(way);
        claim(&mut laptop);
        laptop.prove();
    }
}

/// The same at once, for a claim that waits more than it works.
pub(crate) fn direct_and_relayed_at_once(tools: &[&str], claim: impl Fn(&mut Laptop) + Sync) {
    if !have(&["ssh"]) || !have(tools) {
        return;
    }
    let _turn = crate::turn();
    std::thread::scope(|scope| {
        for way in [Way::Direct, Way::Derp] {
            let claim = &claim;
            scope.spawn(move || {
                let mut laptop = Laptop::start(way);
                claim(&mut laptop);
                laptop.prove();
            });
        }
    });
}

impl Laptop {
    fn start(way: Way) -> Self {
        let server = Server::start(&[]);
        let agent = server.workspace(HOST);
        let folders = tempfile::tempdir().unwrap();
        for name in ["here", "there"] {
            fs::create_dir(folders.path().join(name)).unwrap();
        }
        let config = folders.path().join("config");
        let options = ["StrictHostKeyChecking no", "UserKnownHostsFile /dev/null", "LogLevel ERROR", "BatchMode yes"];
        let proxy = proxy(way, "%h").join(" ");
        fs::write(&config, format!("Host {HOST}\n\tProxyCommand {proxy}\n\t{}\n", options.join("\n\t"))).unwrap();
        Self { way, server, agent, config, folders }
    }

    /// A folder of the laptop.
    pub(crate) fn here(&self) -> PathBuf {
        self.folders.path().join("here")
    }

    /// A folder of the workspace.
    pub(crate) fn there(&self) -> PathBuf {
        self.folders.path().join("there")
    }

    /// What stands for a path in the workspace in `scp`, `rsync` and `git`.
    pub(crate) fn remote(&self, path: &str) -> String {
        format!("{HOST}:{}/{path}", self.there().display())
    }

    /// The `ssh` that programs start.
    pub(crate) fn ssh_program(&self) -> String {
        format!("ssh -F {}", self.config.display())
    }

    /// The ProxyCommand, for clients that read no such file.
    pub(crate) fn proxy(&self) -> String {
        proxy(self.way, HOST).join(" ")
    }

    /// A program in the laptop's folder with its login.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        clean(&mut command).args(arguments).current_dir(self.here()).env("HOME", self.here());
        command.env("CODER_URL", &self.server.url).env("CODER_SESSION_TOKEN", &self.server.token);
        command.env("CODER_CONFIG_DIR", self.folders.path().join("login"));
        command
    }

    /// One of OpenSSH's programs with the file.
    pub(crate) fn openssh(&self, program: &str, arguments: &[&str]) -> Command {
        self.command(program, &[&["-F", self.config.to_str().unwrap()], arguments].concat())
    }

    /// Runs a program that must succeed.
    pub(crate) fn ok(&self, command: Command, input: &[u8]) -> Output {
        let name = format!("{command:?}");
        let out = run_within(command, input, 3 * LIMIT);
        assert!(out.status.success(), "{name}: {}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
        out
    }

    /// The same, and how long it took.
    pub(crate) fn timed(&self, command: Command, input: &[u8]) -> (Output, Duration) {
        let started = Instant::now();
        let out = self.ok(command, input);
        (out, started.elapsed())
    }

    /// The agent became direct, or never did.
    fn prove(&mut self) {
        let way = self.way;
        let lines = self.agent.drain();
        let direct = lines.iter().filter(|line| line.contains("path changed") && line.contains("to=direct")).count();
        assert_eq!(direct > 0, way == Way::Direct, "{way:?}, and the agent became direct {direct} times");
    }
}

fn proxy(way: Way, host: &str) -> Vec<String> {
    let mut words = vec![coder().display().to_string()];
    if way != Way::Direct {
        words.push("--disable-direct-connections".to_owned());
    }
    words.extend(["ssh", "--stdio", host].map(str::to_owned));
    words
}

/// A Python that knows these modules: `TAILNET_PYTHON`, else `python3`.
pub(crate) fn python(modules: &[&str]) -> Option<PathBuf> {
    let python = std::env::var_os("TAILNET_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let mut ask = Command::new(&python);
    ask.args(["-c", &format!("import {}", modules.join(", "))]).stderr(std::process::Stdio::null());
    if ask.status().is_ok_and(|status| status.success()) {
        return Some(python);
    }
    crate::harness::skip(&format!("{} has not all of {modules:?}", python.display()));
    None
}

/// A file beside the tests.
pub(crate) fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openssh/clients").join(name)
}
