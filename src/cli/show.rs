//! `coder show`: a workspace's resources and agents as a tree in a box (`cli.md` §2.3).

use super::{
    args::{Global, go_bool},
    deployment::Deployment,
    go_time::go_text,
    output,
    ready::find,
    target::{HostNames, Target},
};
use crate::{
    client::{Agent, AgentStatus, Client, ListeningPort, Workspace},
    driver::clock,
};
use clap::Args;
use futures::future::join_all;
use std::{collections::BTreeMap, time::Duration};
use uuid::Uuid;

const HEADS: [&str; 5] = ["RESOURCE", "STATUS", "HEALTH", "VERSION", "ACCESS"];

/// Flags of `coder show`.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// [OWNER/]WORKSPACE
    workspace: String,
    /// Say also why something is not known
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    details: bool,
}

pub(super) async fn run(global: &Global, args: &Show) -> anyhow::Result<u8> {
    let deployment = Deployment::open(global).await?;
    let target = Target::parse(&args.workspace, &HostNames::default());
    let workspace = find(&deployment.client, &target).await?;
    let ports = ports(&deployment.client, &workspace, args.details).await;
    output::line(&in_a_box(&rows(&workspace, &ports, clock::wall().since_unix())))?;
    Ok(0)
}

/// What programs listen on beside the agents that can tell.
async fn ports(client: &Client, workspace: &Workspace, details: bool) -> BTreeMap<Uuid, Vec<ListeningPort>> {
    let connected = workspace.agents().filter(|agent| agent.status == AgentStatus::Connected);
    let asked = connected.map(|agent| async move { (agent, client.listening_ports(agent.id).await) });
    let mut known = BTreeMap::new();
    for (agent, answer) in join_all(asked).await {
        match answer {
            Ok(mut ports) => {
                ports.sort_by_key(|p| p.port);
                known.insert(agent.id, ports);
            }
            Err(error) if details => output::note(&format!("The open ports of agent {} are not known: {error}", agent.name)),
            Err(error) => tracing::debug!(%error, "open ports are not known"),
        }
    }
    known
}

/// A line of the tree.
#[derive(Debug, Default, PartialEq, Eq)]
struct Row([String; 5]);

fn rows(workspace: &Workspace, ports: &BTreeMap<Uuid, Vec<ListeningPort>>, now: Duration) -> Vec<Row> {
    let only_the_tree = |text: String| Row([text, String::new(), String::new(), String::new(), String::new()]);
    let named = workspace.agents().count() > 1 || workspace.latest_build.status == "running";
    let mut out = Vec::new();
    for resource in workspace.latest_build.resources.iter().filter(|r| !r.hide) {
        out.push(only_the_tree(match (resource.kind.as_str(), resource.name.as_str()) {
            ("", "") => workspace.name.clone(),
            ("", one) | (one, "") => one.to_owned(),
            (kind, name) => format!("{kind}.{name}"),
        }));
        let agents: Vec<&Agent> = resource.agents.iter().filter(|a| a.parent_id.is_none()).collect();
        for (at, agent) in agents.iter().enumerate() {
            let last = at + 1 == agents.len();
            let name = format!("{} {} ({}, {})", branch(last), agent.name, agent.operating_system, agent.architecture);
            let access =
                format!("coder ssh {}{}", workspace.name, if named { format!(".{}", agent.name) } else { String::new() });
            let version = if agent.version.is_empty() { "(unknown)".to_owned() } else { agent.version.clone() };
            out.push(Row([name, status(agent, now), health(agent), version, access]));
            let listening = ports.get(&agent.id).map_or(&[][..], Vec::as_slice);
            let trunk = if last { "   " } else { "│  " };
            if !listening.is_empty() {
                out.push(only_the_tree(format!("{trunk}{} Open Ports", branch(true))));
            }
            for (at, port) in listening.iter().enumerate() {
                let branch = branch(at + 1 == listening.len());
                let network = if port.network.is_empty() { "tcp" } else { &port.network };
                let program = if port.process_name.is_empty() { String::new() } else { format!(" [{}]", port.process_name) };
                out.push(only_the_tree(format!("{trunk}   {branch} {:>5}/{network}{program}", port.port)));
            }
        }
    }
    out
}

const fn branch(last: bool) -> &'static str {
    if last { "└─" } else { "├─" }
}

fn status(agent: &Agent, now: Duration) -> String {
    let since = |time: Option<&str>| {
        let at = time.and_then(|t| t.parse::<jiff::Timestamp>().ok())?;
        let at = Duration::from_secs(u64::try_from(at.as_second()).ok()?);
        Some(format!(" [{}]", go_text(Duration::from_secs(now.saturating_sub(at).as_secs()))))
    };
    let made = || since(Some(&agent.created_at)).unwrap_or_default();
    match agent.status {
        AgentStatus::Connected => "⦿ connected".to_owned(),
        AgentStatus::Connecting => format!("⦾ connecting{}", made()),
        AgentStatus::Disconnected => format!("⦾ disconnected{}", since(agent.disconnected_at.as_deref()).unwrap_or_default()),
        AgentStatus::Timeout => format!("⦾ timeout{}", made()),
        AgentStatus::Unknown => "⦾ unknown".to_owned(),
    }
}

fn health(agent: &Agent) -> String {
    if agent.health.healthy { "✔ healthy".to_owned() } else { format!("✘ {}", agent.health.reason) }
}

/// The columns between lines; all signs used are one column wide.
fn in_a_box(rows: &[Row]) -> String {
    let head = Row(HEADS.map(str::to_owned));
    let all = || std::iter::once(&head).chain(rows);
    let mut widths = [0; 5];
    for Row(cells) in all() {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |Row(cells): &Row| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("│ {} │", padded.join("  "))
    };
    // One blank at each side, two between each two columns.
    let across = "─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1) + 2);
    let mut out = vec![format!("┌{across}┐"), line(&head), format!("├{across}┤")];
    out.extend(rows.iter().map(line));
    out.push(format!("└{across}┘"));
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn workspace(build: &str, agents: &[Value]) -> Workspace {
        let vector: Value =
            serde_json::from_str(include_str!("../../tests/vectors/http/workspace_by_owner_and_name.json")).unwrap();
        let mut body = vector["body"].clone();
        let agent = body["latest_build"]["resources"][0]["agents"][0].clone();
        let with = |changes: &Value| {
            let mut agent = agent.clone();
            for (key, value) in changes.as_object().unwrap() {
                agent[key] = value.clone();
            }
            agent
        };
        body["latest_build"]["resources"][0]["agents"] = agents.iter().map(with).collect();
        body["latest_build"]["status"] = build.into();
        serde_json::from_value(body).unwrap()
    }

    fn stdout(vector: &str) -> String {
        let lines = vector.lines().skip_while(|l| *l != "## stdout").skip(1);
        lines.take_while(|l| *l != "## stderr").collect::<Vec<_>>().join("\n")
    }

    fn now() -> Duration {
        let now: jiff::Timestamp = "2026-11-22T23:23:00Z".parse().unwrap();
        Duration::from_secs(now.as_second().try_into().unwrap())
    }

    #[test]
    fn the_box_is_that_of_the_go_command_line() {
        let listens = |port, name: &str| ListeningPort { port, process_name: name.into(), network: "tcp".into() };
        let dev = workspace("running", &[json!({})]);
        let id = dev.agents().next().unwrap().id;
        let ports = BTreeMap::from([(id, vec![listens(3100, "coder-full"), listens(55_432, "postgres")])]);
        let shown = in_a_box(&rows(&dev, &ports, now()));
        assert_eq!(shown, stdout(include_str!("../../tests/vectors/cli/show.txt")));

        let gone = json!({ "status": "disconnected", "disconnected_at": "2026-11-22T23:22:20Z",
                           "health": { "healthy": false, "reason": "agent is not running" } });
        let shown = in_a_box(&rows(&workspace("running", &[gone]), &BTreeMap::new(), now()));
        assert_eq!(shown, stdout(include_str!("../../tests/vectors/cli/show_agent_shut_down.txt")));

        let new =
            |name: &str| json!({ "name": name, "status": "connecting", "version": "", "created_at": "2026-11-22T23:22:58Z" });
        let mut two = workspace("running", &[new("main"), new("side")]);
        two.name = "two".into();
        let shown = in_a_box(&rows(&two, &BTreeMap::new(), now()));
        assert_eq!(shown, stdout(include_str!("../../tests/vectors/cli/show_two.txt")));
    }

    #[test]
    fn the_only_agent_of_a_stopped_workspace_needs_no_name() {
        let agent = json!({ "status": "connecting", "version": "", "created_at": "2026-11-22T23:23:00Z" });
        let mut stopped = workspace("stopped", &[agent]);
        stopped.name = "st".into();
        let shown = in_a_box(&rows(&stopped, &BTreeMap::new(), now()));
        assert_eq!(shown, stdout(include_str!("../../tests/vectors/cli/show_stopped.txt")));
    }
}
