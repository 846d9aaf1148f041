//! What the server tells of itself.

use super::super::{
    access::Me,
    answer::{Answer, ApiError, ok, text},
    app::App,
};
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::json;

/// `GET /healthz`
pub(crate) async fn healthz() -> Response {
    text(StatusCode::OK, "OK")
}

/// `GET /api/v2/buildinfo`
pub(crate) async fn buildinfo(State(app): State<App>) -> Response {
    ok(&json!({
        "external_url": "",
        "version": crate::VERSION,
        "dashboard_url": app.access_url(),
        "telemetry": false,
        "workspace_proxy": false,
        // The version of the REST calls that agents once used; the dRPC version has its own negotiation.
        "agent_api_version": "1.0",
        "provisioner_api_version": "1.12",
        "upgrade_message": "",
        "deployment_id": app.store().deployment().id,
    }))
}

/// `GET /api/v2/deployment/ssh`
pub(crate) async fn ssh_config(State(app): State<App>, _me: Me) -> Response {
    let hosts = app.ssh_hosts();
    ok(&json!({ "hostname_prefix": hosts.prefix, "hostname_suffix": hosts.suffix, "ssh_config_options": hosts.options }))
}

/// `GET /api/v2/applications/host`: empty where applications have no hosts of their own.
pub(crate) async fn applications_host(State(app): State<App>, _me: Me) -> Response {
    ok(&json!({ "host": app.settings().wildcard_host }))
}

/// `GET /api/v2/templateversions/{id}`: the one version of the one template.
pub(crate) async fn template_version(State(app): State<App>, _me: Me, Path(id): Path<String>) -> Answer {
    let deployment = app.store().deployment();
    if super::id(&id)? != deployment.template_version {
        return Err(ApiError::not_found());
    }
    let first = app.store().first_user().await?.ok_or_else(ApiError::not_found)?;
    let job = super::views::job(
        &app,
        deployment.template_version,
        deployment.created_at,
        first.id,
        json!({
            "template_version_id": deployment.template_version,
        }),
    );
    Ok(ok(&json!({
        "id": deployment.template_version,
        "template_id": deployment.template,
        "organization_id": deployment.organization,
        "created_at": deployment.created_at,
        "updated_at": deployment.created_at,
        "name": "agent",
        "message": "",
        "job": job,
        "readme": "",
        "created_by": { "id": first.id, "username": first.username, "name": first.name },
        "archived": false,
        "has_external_agent": false,
    })))
}

/// What no route matches.
pub(crate) async fn no_route(State(app): State<App>, request: axum::extract::Request) -> Response {
    app.requests().count(request.method(), "none", StatusCode::NOT_FOUND);
    if request.uri().path().starts_with("/api/") {
        ApiError::new(StatusCode::NOT_FOUND, "Route not found.").into_response()
    } else {
        text(StatusCode::NOT_FOUND, "404 page not found\n")
    }
}
