//! One line in the log for each call that changes something or opens a way to a workspace: who, what, which, from where,
//! and what came of it.
//!
//! The line is made of the route, the path without its query, and what a handler says of whom and what it acted upon.
//! Bodies, headers and queries, where secrets are, never come near it.

use super::{
    access::{Access, Machine, Me},
    routes::Route,
};
use axum::http::{Method, StatusCode, request::Parts};
use std::net::IpAddr;

/// Put into an answer by a handler that knows better than the route who acted: a login names the user.
#[derive(Debug, Clone)]
pub(crate) struct Who(pub(crate) String);

/// Put into an answer by a handler that made something: a key's id, a workspace's name.
#[derive(Debug, Clone)]
pub(crate) struct Which(pub(crate) String);

/// Whether calls of a route are noted.
pub(crate) fn is_noted(route: &Route) -> bool {
    let changes = !matches!(route.method, Method::GET | Method::HEAD);
    let opens = ["/coordinate", "/pty", "/rpc"].iter().any(|end| route.path.ends_with(end));
    (changes && !route.path.ends_with("/usage")) || opens
}

/// What is known of a call before it is answered.
#[derive(Debug)]
pub(crate) struct Call {
    who: String,
    which: String,
    ip: Option<IpAddr>,
}

impl Call {
    /// Notes who calls, after [`super::access`] has found out.
    pub(crate) fn of(parts: &Parts, ip: Option<IpAddr>) -> Self {
        let user = parts.extensions.get::<Me>().map(|me| format!("user {} by key {}", me.user.username, me.key.id));
        let agent = parts.extensions.get::<Machine>().map(|m| format!("agent {} of {}", m.agent.id, m.workspace.name));
        Self { who: user.or(agent).unwrap_or_else(|| "nobody".to_owned()), which: parts.uri.path().to_owned(), ip }
    }

    /// Writes the line.
    pub(crate) fn note(self, route: &Route, status: StatusCode, who: Option<&Who>, which: Option<&Which>) {
        let who = who.map_or(self.who.as_str(), |who| who.0.as_str());
        let made = which.map(|which| which.0.as_str());
        let outcome = match status.as_u16() {
            101 | 200..=399 => "done",
            401 | 403 | 404 | 428 | 429 => "refused",
            _ => "failed",
        };
        let ip = self.ip.map(|ip| ip.to_string());
        tracing::info!(
            target: "tailnet::audit",
            who,
            what = %format_args!("{} {}", route.method, route.path),
            which = self.which.as_str(),
            made,
            outcome,
            status = status.as_u16(),
            ip = ip.as_deref(),
            public = route.access == Access::Public,
        );
    }
}
