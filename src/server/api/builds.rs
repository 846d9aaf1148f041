//! Builds. One only says what was asked for: a stopped workspace's agent is turned away, a started one's is let in.

use super::{
    super::{
        access::{Me, query},
        answer::{Answer, ApiError, json, ok},
        app::App,
        store::{Build, NewBuild, Transition},
        time::Stamp,
        upgrade::{Upgrade, farewell},
    },
    Input, id, views, workspaces,
};
use axum::{
    extract::{Path, Request, State},
    http::{StatusCode, Uri},
    response::IntoResponse as _,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Why a client may say that it makes a build.
const REASONS: &[&str] =
    &["dashboard", "cli", "ssh_connection", "vscode_connection", "jetbrains_connection", "task_manual_pause", "task_resume"];
const MAX_PAGE: i64 = 100;

/// What `POST …/builds` looks at.
#[derive(Debug, Deserialize)]
pub(crate) struct NewBuildRequest {
    #[serde(default)]
    transition: String,
    #[serde(default)]
    reason: String,
}

/// `POST /api/v2/workspaces/{id}/builds`
pub(crate) async fn create(State(app): State<App>, me: Me, Path(id): Path<String>, Input(new): Input<NewBuildRequest>) -> Answer {
    let workspace = workspaces::mine(&app, &me, &id).await?;
    let Some(transition) = Transition::from_word(&new.transition) else {
        return Err(ApiError::invalid("transition", "oneof", &new.transition));
    };
    let reason = match new.reason.as_str() {
        "" => "initiator",
        known if REASONS.contains(&known) => known,
        other => return Err(ApiError::invalid("reason", "oneof", other)),
    };
    let build = NewBuild { workspace: workspace.id, transition, reason, initiator: me.user.id };
    let build = app.store().insert_build(Stamp::now(), build).await?;
    let agents = app.store().agents(workspace.id).await?;
    if transition != Transition::Start {
        agents.iter().for_each(|agent| app.agents().dismiss(agent.id));
    }
    app.announce(workspace.id);
    Ok(json(StatusCode::CREATED, &views::build(&app, &workspace, &build, &agents, Stamp::now())))
}

/// `GET /api/v2/workspaces/{id}/builds?limit=`: newest first.
pub(crate) async fn list(State(app): State<App>, me: Me, Path(id): Path<String>, uri: Uri) -> Answer {
    let workspace = workspaces::mine(&app, &me, &id).await?;
    let limit = query(&uri, "limit").and_then(|text| text.parse().ok()).filter(|n| (1..=MAX_PAGE).contains(n));
    let agents = app.store().agents(workspace.id).await?;
    let builds = app.store().builds(workspace.id, limit.unwrap_or(MAX_PAGE)).await?;
    let now = Stamp::now();
    let views: Vec<_> = builds.iter().map(|b| views::build(&app, &workspace, b, &agents, now)).collect();
    Ok(ok(&views))
}

async fn mine(app: &App, me: &Me, text: &str) -> Answer<Build> {
    Ok(app.store().build(me.user.id, id(text)?).await?)
}

/// `GET /api/v2/workspacebuilds/{id}`
pub(crate) async fn get(State(app): State<App>, me: Me, Path(id): Path<String>) -> Answer {
    let build = mine(&app, &me, &id).await?;
    let workspace = app.store().workspace(me.user.id, build.workspace_id).await?;
    let agents = app.store().agents(workspace.id).await?;
    Ok(ok(&views::build(&app, &workspace, &build, &agents, Stamp::now())))
}

fn log(build: &Build) -> Value {
    let stage = match build.transition {
        Transition::Start => "Starting workspace",
        Transition::Stop => "Stopping workspace",
        Transition::Delete => "Deleting workspace",
    };
    json!({
        "id": 1,
        "created_at": build.created_at,
        "log_source": "provisioner_daemon",
        "log_level": "info",
        "stage": stage,
        "output": "",
    })
}

/// `GET /api/v2/workspacebuilds/{id}/logs[?follow&after=]`: a list, or the same on a WebSocket that then closes.
pub(crate) async fn logs(State(app): State<App>, me: Me, Path(id): Path<String>, mut request: Request) -> Answer {
    let build = mine(&app, &me, &id).await?;
    let after = query(request.uri(), "after").and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    let lines: Vec<_> = if after < 1 { vec![log(&build)] } else { Vec::new() };
    if query(request.uri(), "follow").is_none() {
        return Ok(ok(&lines));
    }
    let upgrade = match Upgrade::new(&app, &mut request) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return Ok(refusal.into_response()),
    };
    Ok(upgrade.serve(&app, "build log", move |mut socket| async move {
        for line in lines {
            socket.send_text(line.to_string()).await?;
        }
        farewell(socket, 1000, "done").await
    }))
}
