//! The JSON of workspaces, builds and agents (`http-api.md` §4).

use super::super::{
    answer::put,
    app::App,
    store::{Agent, Build, BuildStatus, Lifecycle, Result, Transition, Workspace},
    time::Stamp,
};
use serde_json::{Map, Value, json};
use std::time::Duration;
use uuid::Uuid;

/// The name of the one organization.
pub(crate) const ORGANIZATION: &str = "coder";
/// The name of the one template.
const TEMPLATE: &str = "agent";
/// An agent that has not been heard for so long is gone: twice the server's ping.
pub(crate) const AGENT_INACTIVE: Duration = Duration::from_secs(30);

/// Whether an agent can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Connecting,
    Connected,
    Disconnected,
}

impl Status {
    /// The status that follows from an agent's times.
    pub(crate) fn of(agent: &Agent, now: Stamp) -> Self {
        let Some(last) = agent.last_connected_at else { return Self::Connecting };
        match agent.disconnected_at {
            Some(gone) if gone >= last => Self::Disconnected,
            _ if now.since(last) > AGENT_INACTIVE => Self::Disconnected,
            _ => Self::Connected,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
        }
    }
}

/// Why an agent is not well.
fn ailment(agent: &Agent, status: Status) -> Option<&'static str> {
    match (status, agent.lifecycle) {
        (Status::Connecting | Status::Disconnected, Lifecycle::Off) => Some("agent is not running"),
        (Status::Disconnected, _) => Some("agent has lost connection"),
        (_, Lifecycle::StartError) => Some("agent startup script exited with an error"),
        (_, Lifecycle::ShuttingDown | Lifecycle::ShutdownTimeout | Lifecycle::ShutdownError | Lifecycle::Off) => {
            Some("agent is shutting down")
        }
        _ => None,
    }
}

/// What Go calls this machine's processor. Agents do not tell theirs.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An agent as part of the resource `resource`.
pub(crate) fn agent(app: &App, agent: &Agent, resource: Uuid, now: Stamp) -> Value {
    let status = Status::of(agent, now);
    let health = match ailment(agent, status) {
        Some(reason) => json!({ "healthy": false, "reason": reason }),
        None => json!({ "healthy": true }),
    };
    let (scripts, log_sources) = agent.additions.views(agent.id, &agent.created_at.to_string());
    let blocks = agent.additions.scripts.iter().any(|s| s.start_blocks_login);
    let mut view = json!({
        "id": agent.id,
        "parent_id": null,
        "created_at": agent.created_at,
        "updated_at": agent.updated_at,
        "status": status.as_str(),
        "lifecycle_state": agent.lifecycle.as_str(),
        "name": agent.name,
        "resource_id": resource,
        "architecture": architecture(),
        "environment_variables": null,
        "operating_system": "linux",
        "logs_length": agent.logs_bytes,
        "logs_overflowed": agent.logs_overflowed,
        "version": agent.version,
        "api_version": agent.api_version,
        "apps": [],
        "connection_timeout_seconds": 0,
        "troubleshooting_url": "",
        "subsystems": [],
        "health": health,
        "display_apps": ["vscode", "ssh_helper", "port_forwarding_helper", "web_terminal"],
        "log_sources": log_sources,
        "scripts": scripts,
        "startup_script_behavior": if blocks { "blocking" } else { "non-blocking" },
    });
    let times = [
        ("first_connected_at", agent.first_connected_at),
        ("last_connected_at", agent.last_connected_at),
        ("disconnected_at", agent.disconnected_at),
        ("started_at", agent.started_at),
        ("ready_at", agent.ready_at),
    ];
    for (field, at) in times {
        // What has not happened is left out.
        if let Some(at) = at {
            put(&mut view, field, at.to_string());
        }
    }
    if !agent.expanded_directory.is_empty() {
        put(&mut view, "expanded_directory", agent.expanded_directory.as_str());
    }
    if !agent.additions.directory.is_empty() {
        put(&mut view, "directory", agent.additions.directory.as_str());
    }
    if status == Status::Connected
        && let Some(latency) = latency(app, agent.id)
    {
        put(&mut view, "latency", latency);
    }
    view
}

/// The agent's round trips to the relays, by the regions' names.
fn latency(app: &App, agent: Uuid) -> Option<Value> {
    let node = app.latency_of(agent)?;
    let mut out = Map::new();
    for (region, seconds) in &node.seconds {
        let name = app.relay_map().regions.get(region).map_or_else(|| format!("Unnamed {region}"), |r| r.name.clone());
        out.insert(name, json!({ "preferred": Some(*region) == node.home, "latency_ms": seconds * 1000.0 }));
    }
    Some(Value::Object(out))
}

/// The job of a build.
fn build_job(app: &App, build: &Build) -> Value {
    let input = json!({ "workspace_build_id": build.id });
    let mut job = job(app, build.job_id, build.created_at, build.initiator_id, input);
    put(&mut job, "status", build.status.as_str());
    match build.completed_at {
        Some(at) => put(&mut job, "completed_at", at.to_string()),
        // What has not happened is left out.
        None => drop(job.as_object_mut().and_then(|job| job.remove("completed_at"))),
    }
    if let (BuildStatus::Canceled, Some(at)) = (build.status, build.completed_at) {
        put(&mut job, "canceled_at", at.to_string());
    }
    if !build.error.is_empty() {
        put(&mut job, "error", build.error.as_str());
    }
    job
}

/// A job that is done.
pub(crate) fn job(app: &App, id: Uuid, at: Stamp, initiator: Uuid, input: Value) -> Value {
    let kind = if input.get("workspace_build_id").is_some() { "workspace_build" } else { "template_version_import" };
    json!({
        "id": id,
        "created_at": at,
        "started_at": at,
        "completed_at": at,
        "status": "succeeded",
        "worker_id": app.store().deployment().id,
        "file_id": Uuid::nil(),
        "tags": { "owner": "", "scope": "organization" },
        "queue_position": 0,
        "queue_size": 0,
        "organization_id": app.store().deployment().organization,
        "initiator_id": initiator,
        "input": input,
        "type": kind,
        "metadata": {
            "template_version_name": "",
            "template_id": Uuid::nil(),
            "template_name": "",
            "template_display_name": "",
            "template_icon": "",
        },
        "logs_overflowed": false,
    })
}

/// A build of `workspace`, with its agents where it started them.
pub(crate) fn build(app: &App, workspace: &Workspace, build: &Build, agents: &[Agent], now: Stamp) -> Value {
    let status = match (build.status, build.transition) {
        (BuildStatus::Failed, _) => "failed",
        (BuildStatus::Canceled, _) => "canceled",
        (BuildStatus::Running, Transition::Start) => "starting",
        (BuildStatus::Running, Transition::Stop) => "stopping",
        (BuildStatus::Running, Transition::Delete) => "deleting",
        (BuildStatus::Succeeded, Transition::Start) => "running",
        (BuildStatus::Succeeded, Transition::Stop) => "stopped",
        (BuildStatus::Succeeded, Transition::Delete) => "deleted",
    };
    let agents = if build.transition == Transition::Start { agents } else { &[] };
    let resource = json!({
        "id": build.resource_id,
        "created_at": build.created_at,
        "job_id": build.job_id,
        "workspace_transition": build.transition.as_str(),
        "type": "agent",
        "name": workspace.name,
        "hide": false,
        "icon": "",
        "agents": agents.iter().map(|a| agent(app, a, build.resource_id, now)).collect::<Vec<_>>(),
        "daily_cost": 0,
    });
    json!({
        "id": build.id,
        "created_at": build.created_at,
        "updated_at": build.completed_at.unwrap_or(build.created_at),
        "workspace_id": workspace.id,
        "workspace_name": workspace.name,
        "workspace_owner_id": workspace.owner_id,
        "workspace_owner_name": workspace.owner_name,
        "template_version_id": app.store().deployment().template_version,
        "template_version_name": TEMPLATE,
        "build_number": build.number,
        "transition": build.transition.as_str(),
        "initiator_id": build.initiator_id,
        "initiator_name": workspace.owner_name,
        "job": build_job(app, build),
        "reason": build.reason,
        "resources": if agents.is_empty() { json!([]) } else { json!([resource]) },
        "deadline": null,
        "max_deadline": null,
        "status": status,
        "daily_cost": 0,
        "matched_provisioners": { "count": 0, "available": 0, "most_recently_seen": null },
        "template_version_preset_id": null,
        "has_ai_task": false,
        "has_external_agent": false,
    })
}

/// A workspace with its newest build.
pub(crate) async fn workspace(app: &App, workspace: &Workspace) -> Result<Value> {
    let (now, deployment) = (Stamp::now(), app.store().deployment());
    let latest = app.store().latest_build(workspace.id).await?;
    let agents = app.store().agents(workspace.id).await?;
    let running = latest.transition == Transition::Start;
    let failing = agents.iter().filter(|a| running && ailment(a, Status::of(a, now)).is_some()).map(|a| a.id);
    let failing: Vec<_> = failing.collect();
    Ok(json!({
        "id": workspace.id,
        "created_at": workspace.created_at,
        "updated_at": workspace.updated_at,
        "owner_id": workspace.owner_id,
        "owner_name": workspace.owner_name,
        "owner_avatar_url": "",
        "organization_id": deployment.organization,
        "organization_name": ORGANIZATION,
        "template_id": deployment.template,
        "template_name": TEMPLATE,
        "template_display_name": "",
        "template_icon": "",
        "template_allow_user_cancel_workspace_jobs": false,
        "template_active_version_id": deployment.template_version,
        "template_require_active_version": false,
        "template_use_classic_parameter_flow": false,
        "latest_build": build(app, workspace, &latest, &agents, now),
        "latest_app_status": null,
        "outdated": false,
        "name": workspace.name,
        "last_used_at": workspace.last_used_at,
        "deleting_at": null,
        "dormant_at": null,
        "health": { "healthy": failing.is_empty(), "failing_agents": failing },
        "automatic_updates": "never",
        "allow_renames": false,
        "favorite": false,
        "next_start_at": null,
        "is_prebuild": false,
        "task_id": null,
    }))
}

#[cfg(test)]
mod tests {
    use super::{super::super::manifest::Additions, *};

    fn agent_at(last: Option<i64>, gone: Option<i64>) -> Agent {
        let at = |seconds: i64| Stamp::from_micros(seconds * 1_000_000);
        Agent {
            id: Uuid::nil(),
            workspace_id: Uuid::nil(),
            name: "main".into(),
            lifecycle: Lifecycle::Ready,
            version: String::new(),
            api_version: String::new(),
            expanded_directory: String::new(),
            created_at: at(0),
            updated_at: at(0),
            first_connected_at: last.map(at),
            last_connected_at: last.map(at),
            disconnected_at: gone.map(at),
            started_at: None,
            ready_at: None,
            logs_bytes: 0,
            logs_overflowed: false,
            additions: Additions::default(),
        }
    }

    #[test]
    fn an_agents_status_follows_from_its_times() {
        let now = Stamp::from_micros(100_000_000);
        let cases = [
            (None, None, Status::Connecting),
            (Some(90), None, Status::Connected),
            (Some(69), None, Status::Disconnected),
            (Some(90), Some(91), Status::Disconnected),
            (Some(90), Some(90), Status::Disconnected),
            (Some(90), Some(80), Status::Connected),
        ];
        for (last, gone, expected) in cases {
            assert_eq!(Status::of(&agent_at(last, gone), now), expected, "{last:?} {gone:?}");
        }
    }
}
