//! The control sockets of clients and agents (`coordination.md` §2.1, §2.3): checks before the upgrade, then a
//! [`session`].

mod calls;
mod session;
mod terminal;
mod version;

use super::{
    access::{Machine, Me, query},
    answer::{Answer, ApiError, json},
    api::agents,
    app::App,
    time::Stamp,
    upgrade::Upgrade,
};
use crate::proto::coord::{Auth, ServerRole};
use axum::{
    extract::{Path, Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use session::{Owner, Session};
use std::sync::Arc;
pub(crate) use terminal::open as terminal;
use uuid::Uuid;

fn bad_version(detail: String) -> ApiError {
    ApiError::bad_request("Unknown or unsupported API version").with_field("version", detail)
}

/// `GET /api/v2/workspaceagents/{id}/coordinate`
pub(crate) async fn client(State(app): State<App>, me: Me, Path(id): Path<String>, mut request: Request) -> Answer {
    let agent = agents::mine(&app, &me, &id).await?;
    if app.settings().browser_only {
        return Err(ApiError::new(StatusCode::CONFLICT, "Non-browser connections are disabled for your deployment."));
    }
    // Without a version a client means the one before there were versions.
    let version = query(request.uri(), "version").unwrap_or_else(|| "1.0".to_owned());
    version::check(&version).map_err(bad_version)?;
    let peer = match query(request.uri(), "resume_token").filter(|token| !token.is_empty()) {
        None => Uuid::new_v4(),
        Some(token) => app.resume().check(Stamp::now(), &token).map_err(|error| {
            ApiError::new(StatusCode::UNAUTHORIZED, error.to_string()).with_field("resume_token", error.to_string())
        })?,
    };
    let upgrade = match Upgrade::new(&app, &mut request) {
        Ok(upgrade) => upgrade,
        Err(refused) => return Ok(refused.into_response()),
    };
    let session = Session::new(&app, ServerRole::Client, Owner::Client { peer }, Auth::Client { agent: agent.id });
    Ok(upgrade.serve(&app, "client coordination", move |socket| session.run(socket)))
}

/// `GET /api/v2/workspaceagents/me/rpc`
pub(crate) async fn agent(State(app): State<App>, machine: Machine, mut request: Request) -> Answer {
    let version = query(request.uri(), "version").unwrap_or_else(|| "2.0".to_owned());
    version::check(&version).map_err(bad_version)?;
    // Others that share the token, such as log shippers, say so; they do not stand for the agent.
    let is_agent = query(request.uri(), "role").is_none_or(|role| role.is_empty() || role == "agent");
    let upgrade = match Upgrade::new(&app, &mut request) {
        Ok(upgrade) => upgrade,
        Err(refused) => return Ok(refused.into_response()),
    };
    let owner = Owner::Agent { machine: Arc::new(machine), version, watched: is_agent };
    let session = Session::new(&app, ServerRole::Agent, owner, Auth::Agent);
    Ok(upgrade.serve(&app, "agent socket", move |socket| session.run(socket)))
}

/// `GET /api/v2/workspaceagents/me/reinit`: a workspace never changes its agent's identity.
pub(crate) async fn no_reinit(_machine: Machine) -> Response {
    json(StatusCode::CONFLICT, &serde_json::json!({ "message": "The workspace of this agent is not prebuilt." }))
}
