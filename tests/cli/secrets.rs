//! No secret is ever written where logs go.

use crate::harness::{Server, process::run, text};
use std::{fs, os::unix::fs::PermissionsExt as _};

#[test]
fn no_output_holds_a_secret() {
    let server = Server::start(&["-v"]);
    let agent_token = server.create("dev");
    let user_token = server.create_user("bob");
    let mut agent = server.agent(&agent_token);
    let mut said = String::new();
    for arguments in [
        &["ssh", "-v", "dev", "--", "true"][..],
        &["ssh", "-v", "--disable-direct-connections", "dev", "--", "true"],
        &["ssh", "-v", "nope", "--", "true"],
        &["ping", "-v", "dev", "-n", "1"],
        &["list", "-v"],
        &["list", "-v", "--nope"],
    ] {
        for token in [&server.token, &user_token, &"wrong-1234567890123456789012".to_owned()] {
            let mut command = server.coder_as(token, arguments);
            command.arg(format!("--token={token}")).env("RUST_LOG", "trace");
            let out = run(command, b"");
            said += &format!("{arguments:?}\n{}{}", text(&out.stdout), text(&out.stderr));
        }
    }
    agent.signal(rustix::process::Signal::TERM);
    agent.wait(crate::harness::LIMIT);
    said += &agent.drain().join("\n");
    let Server { mut process, token, dir, .. } = server;
    process.signal(rustix::process::Signal::TERM);
    process.wait(crate::harness::LIMIT);
    said += &process.drain().join("\n");
    let secrets = [("session token", &token), ("agent token", &agent_token), ("user's token", &user_token)];
    for (what, secret) in secrets {
        assert!(secret.len() >= 16, "{what}");
        // The second half of a session token is what must not be known.
        let parts = [secret.as_str(), secret.rsplit('-').next().unwrap()];
        for part in parts {
            let line = said.lines().find(|line| line.contains(part)).map(|line| line.replace(part, "SECRET"));
            assert_eq!(line, None, "a log holds the {what}");
        }
    }
    for word in ["wrong-1234567890123456789012", "privkey:"] {
        assert!(!said.contains(word), "a log holds {word}");
    }
    let file = dir.path().join("data/admin-token");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // The store keeps hashes only.
    for entry in fs::read_dir(dir.path().join("data")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| *path != file) {
        let bytes = fs::read(&entry).unwrap_or_default();
        for (what, secret) in secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds the {what}", entry.display());
        }
    }
}
