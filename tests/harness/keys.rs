//! A key agent of OpenSSH with one key.

use super::process::{LIMIT, Process, run, text};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

pub const KEY_TOOLS: [&str; 4] = ["ssh", "ssh-agent", "ssh-add", "ssh-keygen"];

pub struct Keys {
    _agent: Process,
    pub socket: String,
    /// What `ssh-add -l` prints.
    pub fingerprint: String,
}

impl Keys {
    pub fn start(folder: &Path) -> Self {
        let (socket, key) = (folder.join("agent").display().to_string(), folder.join("key").display().to_string());
        let mut agent = Command::new("ssh-agent");
        agent.args(["-D", "-a", &socket]);
        let agent = Process::start("the key agent", agent);
        let end = Instant::now() + LIMIT;
        while !Path::new(&socket).exists() {
            assert!(Instant::now() < end, "no key agent");
            std::thread::sleep(Duration::from_millis(5));
        }
        let ask = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).env("SSH_AUTH_SOCK", &socket);
            let out = run(command, b"");
            assert!(out.status.success(), "{program}: {}", text(&out.stderr));
            text(&out.stdout)
        };
        ask("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "of the client", "-f", &key]);
        ask("ssh-add", &["-q", &key]);
        let fingerprint = ask("ssh-add", &["-l"]);
        assert!(fingerprint.contains("of the client"), "{fingerprint}");
        Self { _agent: agent, socket, fingerprint }
    }
}
