//! For whoever looks for a fault: counters, the node's state. Nothing here is a secret.

use super::Answer;
use crate::{
    agent::{ssh::Counters, traffic::Reading},
    net::Tailnet,
};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

/// Most of the log that is shown: its end.
const MAX_LOG: u64 = 1 << 20;

/// The end of the agent's log, if it is kept in a file.
pub(super) async fn logs(file: Option<PathBuf>) -> Answer {
    let Some(path) = file else {
        let none = "this agent keeps no log: look where its standard error goes, or start it with --log-dir\n";
        return Answer::text(StatusCode::NOT_FOUND, none);
    };
    let shown = path.display().to_string();
    let read = tokio::task::spawn_blocking(move || tail(&path, MAX_LOG)).await.unwrap_or_else(|e| Err(io::Error::other(e)));
    match read {
        Ok(text) => Answer::text(StatusCode::OK, text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Answer::text(StatusCode::NOT_FOUND, format!("the log {shown} of --log-dir is not there\n"))
        }
        Err(error) => {
            Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read the log {shown} of --log-dir: {error}\n"))
        }
    }
}

/// The last lines of a file, `most` bytes of them at most.
fn tail(path: &Path, most: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    // It grows meanwhile.
    file.take(most).read_to_end(&mut bytes)?;
    if from > 0 {
        // Perhaps it begins in the middle of a line.
        let line = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
        bytes.drain(..line);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn closed() -> Answer {
    Answer::error(StatusCode::INTERNAL_SERVER_ERROR, "the agent's tunnel is closed")
}

/// The node's counters and the node as it is announced.
pub(super) async fn network(tailnet: &Tailnet) -> Answer {
    let Ok(counters) = tailnet.counters().await else { return closed() };
    let own = tailnet.own_node();
    let home = own.borrow().as_ref().map(|node| node.preferred_derp);
    let document = json!({
        "addresses": tailnet.addresses(),
        "home_relay": home,
        "counters": counters.node,
        "turns": counters.turns,
        "sleeps": counters.sleeps,
    });
    Answer::text(StatusCode::OK, format!("{document:#}\n"))
}

/// Everything that is counted, in the text form of Prometheus.
pub(super) async fn metrics(tailnet: &Tailnet, traffic: Reading, ssh: &Counters) -> Answer {
    let Ok(counters) = tailnet.counters().await else { return closed() };
    let mut out = String::new();
    let gauge = "gauge";
    one(&mut out, "coder_agent_connections", gauge, "Connections through the tunnel that are open.", traffic.open);
    one(&mut out, "coder_agent_received_bytes_total", "counter", "Bytes that came by connections.", traffic.received);
    one(&mut out, "coder_agent_sent_bytes_total", "counter", "Bytes that left by connections.", traffic.sent);
    one(&mut out, "coder_agent_ssh_connections_total", "counter", "SSH connections served.", ssh.connections);
    one(&mut out, "coder_agent_ssh_forwards_total", "counter", "Connections that SSH forwarded.", ssh.forwards);
    head(&mut out, "coder_agent_sessions", gauge, "Sessions that run, by kind of client.");
    for (kind, n) in &ssh.sessions {
        let kind: String = kind.chars().filter(|c| !matches!(c, '"' | '\\' | '\n')).collect();
        let _ = writeln!(out, "coder_agent_sessions{{app=\"{kind}\"}} {n}");
    }
    if let Ok(Value::Object(node)) = serde_json::to_value(counters.node) {
        for (name, value) in node {
            counted(&mut out, &name, &value);
        }
    }
    Answer { kind: "text/plain; version=0.0.4; charset=utf-8", ..Answer::text(StatusCode::OK, out) }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn one(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}

/// A counter of the node, or a group of them by way or by reason.
fn counted(out: &mut String, name: &str, value: &Value) {
    let metric = format!("coder_agent_tunnel_{name}_total");
    let help = format!("Counted by the node: {}.", name.replace('_', " "));
    match value {
        Value::Number(n) => {
            head(out, &metric, "counter", &help);
            let _ = writeln!(out, "{metric} {n}");
        }
        Value::Object(group) => {
            head(out, &metric, "counter", &help);
            for (label, n) in group.iter().filter(|(_, n)| n.is_number()) {
                let _ = writeln!(out, "{metric}{{kind=\"{label}\"}} {n}");
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_the_log_is_shown_in_whole_lines_and_without_one_the_flag_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let missing = logs(Some(path.clone())).await;
        let none = logs(None).await;
        for answer in [missing, none] {
            assert!(answer.status == StatusCode::NOT_FOUND && answer.body.contains("--log-dir"), "{answer:?}");
        }
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(logs(Some(path.clone())).await, Answer::text(StatusCode::OK, "one\ntwo\nthree\n"));
        for (most, shown) in [(14, "one\ntwo\nthree\n"), (13, "two\nthree\n"), (9, "three\n"), (3, "")] {
            assert_eq!(tail(&path, most).unwrap(), shown, "{most}");
        }
    }
}
