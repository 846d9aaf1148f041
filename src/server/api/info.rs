//! What the server tells of itself.

use super::super::{
    access::Me,
    answer::{Answer, ApiError, ok, text},
    app::App,
    limits::{Class, Counted},
    origin::Origin,
    time::Stamp,
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
    let is_api = request.uri().path().starts_with("/api/");
    let who = request.extensions().get::<Origin>().map_or(Counted::Others, |origin| Counted::source(origin.ip));
    let now = Stamp::now();
    let told = if is_api { app.limits().count(now, who, "none", Class::Api) } else { None };
    let mut response = match told.and_then(|told| told.refusal()) {
        Some(refusal) => refusal.into_response(),
        None if is_api => ApiError::new(StatusCode::NOT_FOUND, "Route not found.").into_response(),
        None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    if let Some(told) = told {
        told.tell(now, response.headers_mut());
    }
    app.requests().count(request.method(), "none", response.status());
    response
}
