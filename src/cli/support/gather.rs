//! What a bundle holds, and where it comes from: everything is asked for at once and has a limit of its own.

use super::secrets::{hide, hide_values};
use crate::{
    cli::{
        agent_api,
        args::Global,
        connect::{Tunnel, Wishes},
        deployment::{Deployment, explain},
        netcheck, ping, ready,
        target::Target,
    },
    client::{Agent, AgentStatus, Client, Workspace},
    driver::http::Method,
    net::PingKind,
};
use anyhow::{Context as _, bail};
use futures::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write as _, time::Duration};
use tokio::time::timeout;
use uuid::Uuid;

/// How long the tunnel may take to reach the agent.
const REACH_LIMIT: Duration = Duration::from_secs(15);
/// How long the agent may take for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long all that goes through the tunnel may take.
const TUNNEL_LIMIT: Duration = Duration::from_secs(60);

/// The entries of a bundle, and why others are missing.
#[derive(Debug, Default)]
pub(super) struct Parts {
    entries: BTreeMap<&'static str, Vec<u8>>,
    missing: BTreeMap<&'static str, String>,
}

impl Parts {
    pub(super) fn add(&mut self, name: &'static str, part: anyhow::Result<Vec<u8>>) {
        match part {
            Ok(bytes) => drop(self.entries.insert(name, bytes)),
            Err(error) => drop(self.missing.insert(name, format!("{error:#}"))),
        }
    }

    fn extend(&mut self, parts: impl IntoIterator<Item = (&'static str, anyhow::Result<Vec<u8>>)>) {
        parts.into_iter().for_each(|(name, part)| self.add(name, part));
    }

    /// The entries, with one more that says what is missing.
    pub(super) fn finish(mut self) -> BTreeMap<&'static str, Vec<u8>> {
        let mut told = format!("coder {}: {} parts, {} missing\n", crate::VERSION, self.entries.len(), self.missing.len());
        for (name, why) in &self.missing {
            // Writing to a string does not fail.
            let _ = writeln!(told, "{name} is missing: {}", why.replace(char::is_control, " "));
        }
        self.entries.insert("logs.txt", told.into_bytes());
        self.entries
    }
}

/// Asks whoever may know something.
///
/// # Errors
/// When the server does not know the workspace; the rest is left out where it is not to be had.
pub(super) async fn everything(deployment: &Deployment, global: &Global, target: &Target) -> anyhow::Result<Parts> {
    let client = &deployment.client;
    let workspace = ready::find(client, target).await?;
    let agent = ready::pick_agent(&workspace, target.agent.as_deref()).cloned();
    let target = Target { agent: agent.as_ref().ok().map(|agent| agent.name.clone()), ..target.clone() };
    let mut parts = Parts::default();
    let (server, of_workspace, of_agent, network, through_tunnel) = tokio::join!(
        of_server(client),
        Box::pin(of_workspace(client, &workspace)),
        async {
            match &agent {
                Ok(agent) => of_agent(client, agent.id).await,
                Err(_) => Vec::new(),
            }
        },
        Box::pin(of_network(deployment)),
        Box::pin(async {
            match &agent {
                Ok(agent) => through_tunnel(deployment, global, &target, agent).await,
                Err(error) => missing(&INSIDE, error),
            }
        }),
    );
    for some in [server, of_workspace, of_agent, network, through_tunnel] {
        parts.extend(some);
    }
    Ok(parts)
}

type Part = (&'static str, anyhow::Result<Vec<u8>>);

/// The same reason for each of them.
fn missing(names: &[&'static str], error: &anyhow::Error) -> Vec<Part> {
    let why = format!("{error:#}");
    names.iter().map(|name| (*name, Err(anyhow::anyhow!(why.clone())))).collect()
}

fn document(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(value)?)
}

/// An answer of the server without its secrets.
async fn ask(client: &Client, path: &str) -> anyhow::Result<Value> {
    let mut value: Value = client.http().get_json(path).await.map_err(explain)?;
    hide(&mut value);
    Ok(value)
}

async fn json_of(client: &Client, path: &str) -> anyhow::Result<Vec<u8>> {
    document(&ask(client, path).await?)
}

async fn page_of(client: &Client, path: &str) -> anyhow::Result<Vec<u8>> {
    let reply = client.http().call(Method::Get, path, None::<&()>).await.map_err(explain)?;
    Ok(reply.body().to_vec())
}

/// What the server tells of itself.
async fn of_server(client: &Client) -> Vec<Part> {
    let documents = [
        ("deployment/buildinfo.json", "/api/v2/buildinfo"),
        ("deployment/config.json", "/api/v2/deployment/config"),
        ("deployment/experiments.json", "/api/v2/experiments"),
        ("deployment/health.json", "/api/v2/debug/health"),
        ("network/connection_info.json", "/api/v2/workspaceagents/connection"),
    ];
    let pages = [
        ("network/coordinator_debug.html", "/api/v2/debug/coordinator"),
        ("network/tailnet_debug.html", "/api/v2/debug/tailnet"),
    ];
    let documents = join_all(documents.map(|(name, path)| async move { (name, json_of(client, path).await) }));
    let pages = join_all(pages.map(|(name, path)| async move { (name, page_of(client, path).await) }));
    let (documents, pages) = tokio::join!(documents, pages);
    documents.into_iter().chain(pages).collect()
}

/// The workspace, its template and its newest build.
async fn of_workspace(client: &Client, workspace: &Workspace) -> Vec<Part> {
    let build = workspace.latest_build.id;
    let whole = ask(client, &format!("/api/v2/workspaces/{}", workspace.id)).await;
    let id = |pointer: &str| {
        let value = whole.as_ref().ok().and_then(|whole| whole.pointer(pointer));
        value.and_then(Value::as_str).and_then(|text| text.parse::<Uuid>().ok()).context("the workspace names none")
    };
    let template = async { json_of(client, &format!("/api/v2/templates/{}", id("/template_id")?)).await };
    let version = id("/latest_build/template_version_id");
    let version = async { json_of(client, &format!("/api/v2/templateversions/{}", version?)).await };
    let parameters = async {
        let mut values = ask(client, &format!("/api/v2/workspacebuilds/{build}/parameters")).await?;
        hide_values(&mut values);
        document(&values)
    };
    let log = async {
        let lines = client.build_lines(build, 0).await.map_err(explain)?;
        let text: String = lines.iter().map(|line| format!("{}: {}\n", line.stage, line.output)).collect();
        Ok(text.into_bytes())
    };
    let (template, version, parameters, log) = tokio::join!(template, version, parameters, log);
    vec![
        ("workspace/template.json", template),
        ("workspace/template_version.json", version),
        ("workspace/parameters.json", parameters),
        ("workspace/build_logs.txt", log),
        ("workspace/workspace.json", whole.and_then(|whole| document(&whole))),
    ]
}

/// What the server knows of the agent.
async fn of_agent(client: &Client, agent: Uuid) -> Vec<Part> {
    let path = |of: &str| format!("/api/v2/workspaceagents/{agent}{of}");
    let (own, listening) = (path(""), path("/listening-ports"));
    let (whole, ports) = (json_of(client, &own), json_of(client, &listening));
    let log = async {
        let lines = ask(client, &path("/logs")).await?;
        let line = |line: &Value| {
            let text = |key| line.get(key).and_then(Value::as_str).unwrap_or_default();
            format!("{} [{}] {}\n", text("created_at"), text("level"), text("output"))
        };
        Ok(lines.as_array().into_iter().flatten().map(line).collect::<String>().into_bytes())
    };
    let (whole, ports, log) = tokio::join!(whole, ports, log);
    vec![("agent/agent.json", whole), ("agent/listening_ports.json", ports), ("agent/startup_logs.txt", log)]
}

/// The network between here and the relays.
async fn of_network(deployment: &Deployment) -> Vec<Part> {
    match netcheck::check(deployment).await {
        Ok(found) => vec![("network/netcheck.json", document(&found)), ("network/interfaces.json", document(&found.interfaces))],
        Err(error) => missing(&["network/netcheck.json", "network/interfaces.json"], &error),
    }
}

/// What the agent is asked for through the tunnel.
const ASKED: [(&str, &str); 4] = [
    ("agent/manifest.json", "/debug/manifest"),
    ("agent/logs.txt", "/debug/logs"),
    ("agent/prometheus.txt", "/debug/prometheus"),
    ("agent/agent_magicsock.html", "/debug/magicsock"),
];
const PING: &str = "agent/ping_result.json";
const PEER: &str = "agent/peer_diagnostics.json";
const OURS: &str = "agent/client_magicsock.html";
/// All that needs a tunnel.
const INSIDE: [&str; 7] = [ASKED[0].0, ASKED[1].0, ASKED[2].0, ASKED[3].0, PING, PEER, OURS];

async fn through_tunnel(deployment: &Deployment, global: &Global, target: &Target, agent: &Agent) -> Vec<Part> {
    let inside = async {
        if agent.status != AgentStatus::Connected {
            bail!("the agent is not connected to the server");
        }
        let wishes = Wishes { direct: !global.disable_direct_connections, ..Wishes::default() };
        let tunnel = Tunnel::open(deployment, target, wishes).await?;
        let reached = ping::first(&tunnel, REACH_LIMIT).await;
        let mut found = match &reached {
            Ok(()) => asked(&tunnel).await,
            Err(error) => missing(&ASKED.map(|(name, _)| name), error),
        };
        found.push((PING, reached.map(drop).and(pinged(&tunnel).await)));
        // An agent that is not reached is described best of all.
        found.push((PEER, peer(&tunnel).await));
        found.push((OURS, ours(&tunnel).await));
        tunnel.close().await;
        Ok(found)
    };
    let late = |_| anyhow::anyhow!("it took more than {} s", TUNNEL_LIMIT.as_secs());
    let found = timeout(TUNNEL_LIMIT, inside).await.map_err(late).and_then(|found| found);
    found.unwrap_or_else(|error| missing(&INSIDE, &error))
}

/// What the agent tells of itself.
async fn asked(tunnel: &Tunnel) -> Vec<Part> {
    join_all(ASKED.map(|(name, path)| async move {
        let answer = agent_api::get(tunnel, path, ANSWER_LIMIT).await;
        let answer = answer.and_then(|body| {
            if !name.ends_with(".json") {
                return Ok(body);
            }
            let mut value: Value = serde_json::from_slice(&body).context("it is no JSON")?;
            hide(&mut value);
            document(&value)
        });
        (name, answer)
    }))
    .await
}

/// How long a packet takes there and back, and by which way.
async fn pinged(tunnel: &Tunnel) -> anyhow::Result<Vec<u8>> {
    let pong = tunnel.tailnet.ping(tunnel.address, PingKind::Disco, ANSWER_LIMIT).await?;
    document(&json!({
        "node_ip": tunnel.address,
        "latency_seconds": pong.latency.as_secs_f64(),
        "direct": ping::is_direct(&pong),
        "way": ping::way(tunnel, &pong),
    }))
}

/// How far the connection came.
async fn peer(tunnel: &Tunnel) -> anyhow::Result<Vec<u8>> {
    let own = tunnel.tailnet.own_node().borrow().clone();
    let control = tunnel.tailnet.control().map(|control| format!("{:?}", *control.status().borrow()));
    let peer = tunnel.tailnet.peer_info(tunnel.address).await?;
    let path = tunnel.tailnet.watch_path(tunnel.address).await?.borrow().map(|path| format!("{path:?}"));
    document(&json!({
        "preferred_derp": own.as_ref().map(|own| own.preferred_derp),
        "sent_node": own.is_some(),
        "coordinator": control,
        "received_node": peer.as_ref().map(|peer| json!({
            "key": peer.key.to_string(),
            "preferred_derp": peer.home.get(),
            "endpoints": peer.endpoints,
        })),
        "last_wireguard_handshake_seconds_ago": peer.and_then(|peer| peer.handshake_age).map(|age| age.as_secs()),
        "path": path,
        "direct_allowed_here": tunnel.direct,
        "direct_forbidden_by_deployment": tunnel.relayed_only,
    }))
}

/// What our own node has counted.
async fn ours(tunnel: &Tunnel) -> anyhow::Result<Vec<u8>> {
    let counters = tunnel.tailnet.counters().await?;
    document(&json!({ "addresses": tunnel.tailnet.addresses(), "counters": counters.node }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_reason_beside_what_is_there() {
        let mut parts = Parts::default();
        parts.add("agent/agent.json", Ok(b"{}".to_vec()));
        parts.extend(missing(&["agent/logs.txt"], &anyhow::anyhow!("no\nlog").context("asked")));
        let entries = parts.finish();
        assert_eq!(entries.keys().copied().collect::<Vec<_>>(), ["agent/agent.json", "logs.txt"]);
        let told = String::from_utf8(entries["logs.txt"].clone()).unwrap();
        assert!(told.ends_with(": 1 parts, 1 missing\nagent/logs.txt is missing: asked: no log\n"), "{told}");
    }
}
