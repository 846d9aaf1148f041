//! Builds as users see them. What they do: [`super::super::builds`].

use super::{
    super::{
        access::{Me, query},
        answer::{Answer, ApiError, json, ok},
        app::App,
        builds,
        scopes::Action,
        store::{Build, BuildLine, BuildStatus, NewBuild, Transition},
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
    /// Delete the workspace whatever its command would do.
    #[serde(default)]
    orphan: bool,
}

/// `POST /api/v2/workspaces/{id}/builds`
pub(crate) async fn create(State(app): State<App>, me: Me, Path(id): Path<String>, Input(new): Input<NewBuildRequest>) -> Answer {
    let workspace = workspaces::mine(&app, &me, &id).await?;
    let Some(transition) = Transition::from_word(&new.transition) else {
        return Err(ApiError::invalid("transition", "oneof", &new.transition));
    };
    me.may(Action("workspace", transition.as_str()))?;
    let reason = match new.reason.as_str() {
        "" => "initiator",
        given => *REASONS.iter().find(|known| **known == given).ok_or_else(|| ApiError::invalid("reason", "oneof", given))?,
    };
    let build = NewBuild { workspace: workspace.id, transition, reason, initiator: me.user.id };
    if new.orphan && transition != Transition::Delete {
        return Err(ApiError::bad_request("Only a workspace that is deleted can be orphaned.").with_field("orphan", "delete it"));
    }
    let work = if new.orphan { builds::Work::Nothing } else { builds::Work::Usual };
    let build = builds::begin(&app, &workspace, build, work).await?;
    let agents = app.store().agents(workspace.id).await?;
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

/// `PATCH /api/v2/workspacebuilds/{id}/cancel`: the command is ended, and the build with it.
pub(crate) async fn cancel(State(app): State<App>, me: Me, Path(id): Path<String>) -> Answer {
    let build = mine(&app, &me, &id).await?;
    if !app.builds().cancel(build.id) {
        return Err(ApiError::bad_request("The build has ended already."));
    }
    Ok(ok(&json!({ "message": "The build is being canceled." })))
}

fn line(line: &BuildLine) -> Value {
    json!({
        "id": line.id,
        "created_at": line.created_at,
        "log_source": "provisioner_daemon",
        "log_level": line.level,
        "stage": line.stage,
        "output": line.output,
    })
}

/// `GET /api/v2/workspacebuilds/{id}/logs[?follow&after=]`: a list, or a line a message on a WebSocket that closes with
/// the build's end.
pub(crate) async fn logs(State(app): State<App>, me: Me, Path(id): Path<String>, mut request: Request) -> Answer {
    let build = mine(&app, &me, &id).await?;
    let after = query(request.uri(), "after").and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    if query(request.uri(), "follow").is_none() {
        let lines = app.store().build_lines(build.id, after).await?;
        return Ok(ok(&lines.iter().map(line).collect::<Vec<_>>()));
    }
    let upgrade = match Upgrade::new(&app, &mut request) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return Ok(refusal.into_response()),
    };
    let follower = app.clone();
    Ok(upgrade.serve(&app, "build log", move |mut socket| async move {
        let mut changes = follower.changes(build.id);
        let mut after = after;
        loop {
            // The state first: lines that come after it are seen with the change that they make.
            let now = follower.store().build(me.user.id, build.id).await.map_err(std::io::Error::other)?;
            let lines = follower.store().build_lines(build.id, after).await.map_err(std::io::Error::other)?;
            for new in &lines {
                after = new.id;
                socket.send_text(line(new).to_string()).await?;
            }
            if now.status != BuildStatus::Running {
                return farewell(socket, 1000, "done").await;
            }
            tokio::select! {
                more = changes.next() => if !more { return farewell(socket, 1001, "the server is shutting down").await },
                end = super::watch::ended(&mut socket) => return end,
            }
        }
    }))
}
