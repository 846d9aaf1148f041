//! Agents as users see them, and what a user needs to connect to one (`http-api.md` §4, §5).

use super::{
    super::{
        access::{Me, query},
        answer::{Answer, ApiError, ok},
        app::App,
        store::{Agent, LogLine, StoreError},
        time::Stamp,
        upgrade::{Upgrade, farewell},
    },
    id, views,
};
use axum::{
    extract::{Path, Request, State},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

/// An agent of the caller by the id in a path.
pub(crate) async fn mine(app: &App, me: &Me, text: &str) -> Answer<Agent> {
    app.store().agent(me.user.id, id(text)?).await.map_err(|error| match error {
        StoreError::NotFound => ApiError::no_agent(),
        other => other.into(),
    })
}

/// `GET /api/v2/workspaceagents/{id}`
pub(crate) async fn get(State(app): State<App>, me: Me, Path(id): Path<String>) -> Answer {
    let agent = mine(&app, &me, &id).await?;
    let build = app.store().latest_build(agent.workspace_id).await?;
    Ok(ok(&views::agent(&app, &agent, build.resource_id, Stamp::now())))
}

fn connection_info(app: &App) -> Response {
    let network = app.network();
    ok(&json!({
        "derp_map": *app.relay_map(),
        "derp_force_websockets": network.force_websockets,
        "disable_direct_connections": network.block_direct,
        "hostname_suffix": app.ssh_hosts().suffix,
    }))
}

/// `GET /api/v2/workspaceagents/{id}/connection`
pub(crate) async fn connection(State(app): State<App>, me: Me, Path(id): Path<String>) -> Answer {
    mine(&app, &me, &id).await?;
    Ok(connection_info(&app))
}

/// `GET /api/v2/workspaceagents/connection`: the same for no particular agent.
pub(crate) async fn any_connection(State(app): State<App>, _me: Me) -> Response {
    connection_info(&app)
}

fn line(line: &LogLine) -> Value {
    json!({
        "id": line.id,
        "created_at": line.created_at,
        "output": line.output,
        "level": line.level,
        "source_id": line.source_id,
    })
}

/// `GET /api/v2/workspaceagents/{id}/logs[?follow&after=]`: a list, or lists on a WebSocket as lines come.
pub(crate) async fn logs(State(app): State<App>, me: Me, Path(id): Path<String>, mut request: Request) -> Answer {
    let agent = mine(&app, &me, &id).await?;
    let after = query(request.uri(), "after").and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    if query(request.uri(), "follow").is_none() {
        let lines = app.store().logs(agent.id, after).await?;
        return Ok(ok(&lines.iter().map(line).collect::<Vec<_>>()));
    }
    let upgrade = match Upgrade::new(&app, &mut request) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return Ok(refusal.into_response()),
    };
    let follower = app.clone();
    Ok(upgrade.serve(&app, "agent log", move |mut socket| async move {
        let mut changes = follower.changes(agent.workspace_id);
        let mut after = after;
        let mut first = true;
        loop {
            let lines = follower.store().logs(agent.id, after).await.map_err(std::io::Error::other)?;
            // The first message comes at once, an empty list where there is nothing yet.
            if first || !lines.is_empty() {
                after = lines.last().map_or(after, |l| l.id);
                socket.send_text(Value::from_iter(lines.iter().map(line)).to_string()).await?;
            }
            first = false;
            tokio::select! {
                more = changes.next() => if !more { return farewell(socket, 1001, "the server is shutting down").await },
                end = super::watch::ended(&mut socket) => return end,
            }
        }
    }))
}
