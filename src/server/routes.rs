//! The one table of routes. The router is built from it, so nothing is served that does not name who may call it.

use super::{
    access::{self, Access},
    api::{agents, builds, info, inside, keys, users, watch, workspaces},
    app::App,
    relay, sockets,
};
use axum::{
    Router,
    http::{HeaderValue, Method, header},
    middleware::{from_fn_with_state, map_response},
    response::Response,
    routing::{MethodFilter, MethodRouter, on},
};

/// One route.
pub(crate) struct Route {
    pub(crate) method: Method,
    /// Segments in braces are parameters.
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    to: fn(MethodFilter) -> MethodRouter<App>,
}

const fn route(method: Method, path: &'static str, access: Access, to: fn(MethodFilter) -> MethodRouter<App>) -> Route {
    Route { method, path, access, to }
}

const GET: Method = Method::GET;
const HEAD: Method = Method::HEAD;
const POST: Method = Method::POST;
const DELETE: Method = Method::DELETE;
use Access::{Agent, FirstUser, Public, User};

/// Every route of the server.
#[rustfmt::skip]
pub(crate) const ROUTES: &[Route] = &[
    route(GET, "/healthz", Public, |m| on(m, info::healthz)),
    route(GET, "/derp", Public, |m| on(m, relay::open)),
    route(GET, "/derp/latency-check", Public, |m| on(m, relay::latency_check)),
    route(HEAD, "/derp/latency-check", Public, |m| on(m, relay::only_get)),
    route(GET, "/api/v2/buildinfo", Public, |m| on(m, info::buildinfo)),
    route(GET, "/api/v2/users/first", Public, |m| on(m, users::first)),
    route(POST, "/api/v2/users/first", Public, |m| on(m, users::create_first)),

    route(POST, "/api/v2/users", FirstUser, |m| on(m, users::create)),
    route(POST, "/api/v2/users/logout", User, |m| on(m, keys::logout)),
    route(GET, "/api/v2/users/{user}", User, |m| on(m, users::get)),
    route(GET, "/api/v2/users/{user}/organizations", User, |m| on(m, users::organizations)),
    route(POST, "/api/v2/users/{user}/keys", User, |m| on(m, keys::create_session)),
    route(GET, "/api/v2/users/{user}/keys/{id}", User, |m| on(m, keys::get)),
    route(DELETE, "/api/v2/users/{user}/keys/{id}", User, |m| on(m, keys::delete)),
    route(GET, "/api/v2/users/{user}/keys/tokens", User, |m| on(m, keys::tokens)),
    route(POST, "/api/v2/users/{user}/keys/tokens", User, |m| on(m, keys::create_token)),
    route(GET, "/api/v2/users/{user}/keys/tokens/tokenconfig", User, |m| on(m, keys::token_config)),
    route(GET, "/api/v2/users/{user}/keys/tokens/{name}", User, |m| on(m, keys::token_by_name)),

    route(GET, "/api/v2/deployment/ssh", User, |m| on(m, info::ssh_config)),
    route(GET, "/api/v2/templateversions/{id}", User, |m| on(m, info::template_version)),

    route(POST, "/api/v2/users/{user}/workspaces", User, |m| on(m, workspaces::create)),
    route(GET, "/api/v2/users/{user}/workspace/{name}", User, |m| on(m, workspaces::by_name)),
    route(GET, "/api/v2/workspaces", User, |m| on(m, workspaces::list)),
    route(GET, "/api/v2/workspaces/{id}", User, |m| on(m, workspaces::get)),
    route(POST, "/api/v2/workspaces/{id}/usage", User, |m| on(m, workspaces::usage)),
    route(GET, "/api/v2/workspaces/{id}/watch", User, |m| on(m, watch::events)),
    route(GET, "/api/v2/workspaces/{id}/watch-ws", User, |m| on(m, watch::socket)),
    route(GET, "/api/v2/workspaces/{id}/builds", User, |m| on(m, builds::list)),
    route(POST, "/api/v2/workspaces/{id}/builds", User, |m| on(m, builds::create)),
    route(GET, "/api/v2/workspacebuilds/{id}", User, |m| on(m, builds::get)),
    route(GET, "/api/v2/workspacebuilds/{id}/logs", User, |m| on(m, builds::logs)),

    route(GET, "/api/v2/workspaceagents/connection", User, |m| on(m, agents::any_connection)),
    route(GET, "/api/v2/workspaceagents/{id}", User, |m| on(m, agents::get)),
    route(GET, "/api/v2/workspaceagents/{id}/connection", User, |m| on(m, agents::connection)),
    route(GET, "/api/v2/workspaceagents/{id}/logs", User, |m| on(m, agents::logs)),
    route(GET, "/api/v2/workspaceagents/{id}/listening-ports", User, |m| on(m, inside::listening_ports)),
    route(GET, "/api/v2/workspaceagents/{id}/containers", User, |m| on(m, inside::containers)),
    route(GET, "/api/v2/workspaceagents/{id}/pty", User, |m| on(m, sockets::terminal)),
    route(GET, "/api/v2/workspaceagents/{id}/coordinate", User, |m| on(m, sockets::client)),

    route(GET, "/api/v2/workspaceagents/me/rpc", Agent, |m| on(m, sockets::agent)),
    route(GET, "/api/v2/workspaceagents/me/reinit", Agent, |m| on(m, sockets::no_reinit)),
];

/// The router that the table makes.
pub(crate) fn router(app: &App) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let admit = from_fn_with_state((app.clone(), route.access), access::admit);
        if let Ok(method) = MethodFilter::try_from(route.method.clone()) {
            router = router.route(route.path, (route.to)(method).route_layer(admit));
        }
    }
    router.fallback(info::no_route).layer(map_response(harden)).with_state(app.clone())
}

async fn harden(mut response: Response) -> Response {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
