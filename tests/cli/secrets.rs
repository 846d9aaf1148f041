//! No secret is ever written where logs go.

use crate::harness::{
    LIMIT, Process, Server, clean, coder, free_port,
    process::{find, run, text},
};
use rustix::process::Signal;
use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

const WRONG_TOKEN: &str = "wrong-1234567890123456789012";
const HEADER: &str = "hunter2-of-the-header";
const HEADER_COMMAND: &str = "hunter2-of-the-header-command";

/// All that was said, and what must not be in it.
#[derive(Default)]
struct Log {
    said: String,
    secrets: Vec<(&'static str, String)>,
}

impl Log {
    fn add(&mut self, what: &str, lines: &str) {
        self.said += &format!("--- {what}\n{lines}\n");
    }

    fn add_secret(&mut self, what: &'static str, secret: &str) {
        assert!(secret.len() >= 16, "{what}: {secret:?} is none");
        self.secrets.push((what, secret.to_owned()));
        // The second half of a session token is what must not be known.
        if let Some((_, half)) = secret.rsplit_once('-').filter(|(_, half)| half.len() >= 16) {
            self.secrets.push((what, half.to_owned()));
        }
    }

    fn check(&self) {
        for line in self.said.lines() {
            for (what, secret) in &self.secrets {
                assert!(!line.contains(secret), "the {what} is in: {}", line.replace(secret, "SECRET"));
            }
            // Secrets that nobody outside can know are found by their shape. The head of a signed token, as resume tokens are:
            assert!(!line.contains("eyJhbGciOi"), "a resume token is in: {line}");
            // 32 bytes as digits are a key; only the public halves, which name what they are, may show.
            assert!(!holds_bare_key(line), "perhaps a private key is in: {line}");
            assert!(!holds_byte_list(line), "perhaps a private key is in: {line}");
        }
    }
}

/// Whether there are 64 hexadecimal digits in a row that no public key's prefix stands before.
fn holds_bare_key(line: &str) -> bool {
    let mut at = 0;
    line.split_inclusive(|c: char| !c.is_ascii_hexdigit()).any(|part| {
        let before = &line[..at];
        at += part.len();
        let digits = part.trim_end_matches(|c: char| !c.is_ascii_hexdigit()).len();
        digits >= 64 && !["nodekey:", "discokey:"].iter().any(|prefix| before.ends_with(prefix))
    })
}

/// Whether 32 or more bytes are printed as a list of numbers.
fn holds_byte_list(line: &str) -> bool {
    line.split('[').any(|part| {
        let numbers = part.split(']').next().unwrap_or_default().split(',');
        numbers.take_while(|n| n.trim().parse::<u8>().is_ok()).count() >= 32
    })
}

/// With `-v`, which is all that can be switched on: it raises our own parts to debug level, libraries stay at warnings.
/// Looked at is what server, agent and every kind of client write to either output; for the two commands that print a new
/// token once, the standard error, and that the token stands once on the standard output.
#[test]
fn no_output_holds_a_secret() {
    let mut log = Log::default();
    let server = Server::start(&["-v"]);
    let agent_token = server.create("dev");
    let user_token = server.create_user("bob");
    let mut agent = server.agent(&agent_token);
    log.add_secret("agent's token", &agent_token);
    log.add_secret("first user's token", &server.token);
    log.add_secret("second user's token", &user_token);
    for (what, secret) in [("wrong token", WRONG_TOKEN), ("header", HEADER), ("header of a command", HEADER_COMMAND)] {
        log.add_secret(what, secret);
    }
    let headers = [format!("--header=X-Secret={HEADER}"), format!("--header-command=echo X-More={HEADER_COMMAND}")];
    for arguments in [
        &["ssh", "-v", "dev", "--", "true"][..],
        &["ssh", "-v", "--disable-direct-connections", "dev", "--", "true"],
        &["ssh", "-v", "nope", "--", "true"],
        &["ping", "-v", "dev", "-n", "1"],
        &["list", "-v"],
        &["whoami", "-v"],
        &["show", "-v", "dev"],
        &["tokens", "list", "-v"],
        &["netcheck", "-v"],
        &["list", "-v", "--nope"],
        &["login", "-v"],
        &["ssh", "-v", "--stdio", "dev"],
        &["exp", "rpty", "-v", "dev", "true"],
        &["speedtest", "-v", "dev", "-t", "1s"],
        &["port-forward", "-v", "dev"],
        &["port-forward", "-v", "nope", "--tcp", "1"],
        &["support", "bundle", "-v", "--yes", "-O", "/dev/null/no", "dev"],
        &["start", "-v", "--yes", "dev"],
        &["logs", "-v", "dev"],
    ] {
        for token in [&server.token, &user_token, WRONG_TOKEN] {
            let mut command = server.coder_as(token, &[]);
            // In front of a command that belongs to the workspace.
            command.arg(format!("--token={token}")).args(&headers).args(arguments);
            let out = run(command, b"");
            log.add(&arguments.join(" "), &(text(&out.stdout) + &text(&out.stderr)));
            if let Ok(stored) = fs::read_to_string(server.dir.path().join("config/session")) {
                log.add_secret("stored login", stored.trim());
            }
        }
    }
    let mut forward = server.coder(&[]);
    forward.args(&headers).args(["port-forward", "-v", "dev", "--tcp", &free_port().to_string()]);
    let mut forward = Process::start("port-forward", forward);
    forward.wait_for("Ready!");
    forward.signal(Signal::INT);
    forward.wait(LIMIT);
    log.add("port-forward", &forward.drain().join("\n"));
    // What a header command is and prints is no reason to show it.
    for ending in ["exit 3", "echo no header"] {
        let command = format!("--header-command=echo X-More={HEADER_COMMAND}; {ending}");
        let out = run(server.coder(&["list", "-v", &command]), b"");
        assert_eq!(out.status.code(), Some(1), "{ending}");
        log.add("a header command that fails", &(text(&out.stdout) + &text(&out.stderr)));
    }
    for (made, what) in
        [(&["create", "-v", "two"][..], "new agent's token"), (&["users", "create", "-v", "eve"], "new user's token")]
    {
        let out = run(server.coder(made), b"");
        let shown = text(&out.stdout);
        let token = shown.split(|c: char| c.is_whitespace() || c == '=').filter(|word| word.len() >= 30 && !word.contains('/'));
        let tokens: Vec<_> = token.collect();
        assert_eq!(tokens.len(), 1, "one token is printed, once: {shown}");
        log.add_secret(what, tokens[0]);
        log.add(&made.join(" "), &text(&out.stderr));
    }
    // A whole token in place of its name, while it lives and afterwards.
    let named = text(&run(server.coder(&["tokens", "create", "--name", "named"]), b"").stdout).trim().to_owned();
    log.add_secret("token that is named by itself", &named);
    for verb in ["view", "remove", "view", "remove"] {
        let out = run(server.coder(&["tokens", verb, "-v", &named]), b"");
        log.add(&format!("tokens {verb}"), &(text(&out.stdout) + &text(&out.stderr)));
    }
    quickstart(&mut log);

    agent.signal(Signal::TERM);
    agent.wait(LIMIT);
    log.add("agent", &agent.drain().join("\n"));
    let Server { mut process, dir, .. } = server;
    process.signal(Signal::TERM);
    process.wait(LIMIT);
    log.add("server", &process.drain().join("\n"));
    for seen in ["[debu]", "path changed", "relay connected", "counters {"] {
        assert!(log.said.contains(seen), "the log is too quiet to show anything: no {seen:?}");
    }
    log.check();

    let file = dir.path().join("data/admin-token");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // The store keeps hashes only.
    for entry in fs::read_dir(dir.path().join("data")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| *path != file) {
        let bytes = fs::read(&entry).unwrap_or_default();
        for (what, secret) in &log.secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds the {what}", entry.display());
        }
    }
}

/// A quickstart makes its own tokens: they are read from its files and its agent's environment while it runs.
fn quickstart(log: &mut Log) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(coder());
    clean(&mut command).args(["quickstart", "-v", "--", "sh", "-c", "echo it is up; read -r end"]);
    command.env("TMPDIR", folder.path()).env("HOME", folder.path());
    let mut process = Process::start("quickstart", command);
    process.wait_for("it is up");
    let own = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.join("login").is_dir());
    let login = fs::read_to_string(own.expect("its folder holds a login").join("login/session")).unwrap();
    log.add_secret("quickstart's login", login.trim());
    let agents = find(&format!("TMPDIR={}", folder.path().display()), "agent");
    let environment = fs::read(format!("/proc/{}/environ", agents[0].as_raw_nonzero())).unwrap();
    let token =
        environment.split(|b| *b == 0).find_map(|v| v.strip_prefix(b"CODER_AGENT_TOKEN=")).expect("its agent has a token");
    log.add_secret("quickstart's agent's token", &text(token));
    process.type_in(b"\n");
    assert_eq!(process.wait(LIMIT).code(), Some(0));
    log.add("quickstart", &process.drain().join("\n"));
}
