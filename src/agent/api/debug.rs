//! For whoever looks for a fault: counters, the node's state. Nothing here is a secret.

use super::Answer;
use crate::{
    agent::{ssh::Counters, traffic::Reading},
    net::Tailnet,
};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// The agent writes its log to standard error alone, and what it wrote is not kept.
pub(super) fn logs() -> Answer {
    Answer::text(StatusCode::NOT_FOUND, "this agent keeps no log: look where its standard error goes\n")
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
