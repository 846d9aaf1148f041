//! The one table of routes. The router is built from it, so nothing is served that does not name who may call it.

use super::{
    access::{self, Access},
    api::{agents, builds, info, inside, keys, login, users, watch, workspaces},
    app::App,
    config::Redirect,
    limits::Class,
    origin::Origin,
    relay,
    scopes::Action,
    sockets,
};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::{MethodFilter, MethodRouter, on},
};

/// One route.
#[derive(Debug)]
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
const PUT: Method = Method::PUT;
const PATCH: Method = Method::PATCH;
const DELETE: Method = Method::DELETE;
use Access::{Agent, FirstUser, Public, Scoped, User};

/// Any login, whatever its scopes.
const LOGIN: Access = Scoped(&[]);
const READ_USER: Access = Scoped(&[Action("user", "read_personal")]);
const READ_KEYS: Access = Scoped(&[Action("api_key", "read")]);
const READ: Access = Scoped(&[Action("workspace", "read")]);
const UPDATE: Access = Scoped(&[Action("workspace", "read"), Action("workspace", "update")]);
const CONNECT: Access = Scoped(&[Action("workspace", "read"), Action("workspace", "ssh")]);

/// Every route of the server. What is public says why. Beside them only the metrics are served without a token, on an address
/// of their own that is off by default.
#[rustfmt::skip]
pub(crate) const ROUTES: &[Route] = &[
    // Load balancers, which have no login.
    route(GET, "/healthz", Public, |m| on(m, info::healthz)),
    // Relay clients prove a key of their own; what they relay is encrypted from end to end.
    route(GET, "/derp", Public, |m| on(m, relay::open)),
    route(GET, "/derp/latency-check", Public, |m| on(m, relay::latency_check)),
    route(HEAD, "/derp/latency-check", Public, |m| on(m, relay::only_get)),
    // What a command line asks before it can log in: which server this is, and how one gets in.
    route(GET, "/api/v2/buildinfo", Public, |m| on(m, info::buildinfo)),
    route(GET, "/api/v2/users/first", Public, |m| on(m, users::first)),
    // Makes the first user, and nothing once there is one.
    route(POST, "/api/v2/users/first", Public, |m| on(m, users::create_first)),
    route(GET, "/api/v2/users/authmethods", Public, |m| on(m, login::methods)),
    // The password is in the body; attempts are counted.
    route(POST, "/api/v2/users/login", Public, |m| on(m, login::login)),

    route(GET, "/api/v2/users", FirstUser, |m| on(m, users::list)),
    route(POST, "/api/v2/users", FirstUser, |m| on(m, users::create)),
    route(POST, "/api/v2/users/logout", LOGIN, |m| on(m, keys::logout)),
    route(GET, "/api/v2/users/{user}", READ_USER, |m| on(m, users::get)),
    route(GET, "/api/v2/users/{user}/organizations", READ_USER, |m| on(m, users::organizations)),
    route(PUT, "/api/v2/users/{user}/password", User, |m| on(m, login::set_password)),
    route(POST, "/api/v2/users/{user}/keys", User, |m| on(m, keys::create_session)),
    route(GET, "/api/v2/users/{user}/keys/{id}", READ_KEYS, |m| on(m, keys::get)),
    route(DELETE, "/api/v2/users/{user}/keys/{id}", Scoped(&[Action("api_key", "delete")]), |m| on(m, keys::delete)),
    route(PUT, "/api/v2/users/{user}/keys/{id}/expire", Scoped(&[Action("api_key", "update")]), |m| on(m, keys::expire)),
    route(GET, "/api/v2/users/{user}/keys/tokens", READ_KEYS, |m| on(m, keys::tokens)),
    route(POST, "/api/v2/users/{user}/keys/tokens", Scoped(&[Action("api_key", "create")]), |m| on(m, keys::create_token)),
    route(GET, "/api/v2/users/{user}/keys/tokens/tokenconfig", READ_KEYS, |m| on(m, keys::token_config)),
    route(GET, "/api/v2/users/{user}/keys/tokens/{name}", READ_KEYS, |m| on(m, keys::token_by_name)),

    route(GET, "/api/v2/deployment/ssh", LOGIN, |m| on(m, info::ssh_config)),
    route(GET, "/api/v2/applications/host", LOGIN, |m| on(m, info::applications_host)),
    route(GET, "/api/v2/templateversions/{id}", Scoped(&[Action("template", "read")]), |m| on(m, info::template_version)),

    route(POST, "/api/v2/users/{user}/workspaces", Scoped(&[Action("workspace", "create")]), |m| on(m, workspaces::create)),
    route(GET, "/api/v2/users/{user}/workspace/{name}", READ, |m| on(m, workspaces::by_name)),
    route(GET, "/api/v2/workspaces", READ, |m| on(m, workspaces::list)),
    route(GET, "/api/v2/workspaces/{id}", READ, |m| on(m, workspaces::get)),
    route(POST, "/api/v2/workspaces/{id}/usage", CONNECT, |m| on(m, workspaces::usage)),
    route(GET, "/api/v2/workspaces/{id}/watch", READ, |m| on(m, watch::events)),
    route(GET, "/api/v2/workspaces/{id}/watch-ws", READ, |m| on(m, watch::socket)),
    route(GET, "/api/v2/workspaces/{id}/builds", READ, |m| on(m, builds::list)),
    route(POST, "/api/v2/workspaces/{id}/builds", READ, |m| on(m, builds::create)),
    route(GET, "/api/v2/workspacebuilds/{id}", READ, |m| on(m, builds::get)),
    route(GET, "/api/v2/workspacebuilds/{id}/logs", READ, |m| on(m, builds::logs)),
    route(PATCH, "/api/v2/workspacebuilds/{id}/cancel", UPDATE, |m| on(m, builds::cancel)),

    route(GET, "/api/v2/workspaceagents/connection", LOGIN, |m| on(m, agents::any_connection)),
    route(GET, "/api/v2/workspaceagents/{id}", READ, |m| on(m, agents::get)),
    route(GET, "/api/v2/workspaceagents/{id}/connection", READ, |m| on(m, agents::connection)),
    route(GET, "/api/v2/workspaceagents/{id}/logs", READ, |m| on(m, agents::logs)),
    route(GET, "/api/v2/workspaceagents/{id}/listening-ports", CONNECT, |m| on(m, inside::listening_ports)),
    route(GET, "/api/v2/workspaceagents/{id}/containers", READ, |m| on(m, inside::containers)),
    route(GET, "/api/v2/workspaceagents/{id}/pty", CONNECT, |m| on(m, sockets::terminal)),
    route(GET, "/api/v2/workspaceagents/{id}/coordinate", CONNECT, |m| on(m, sockets::client)),

    route(GET, "/api/v2/workspaceagents/me/rpc", Agent, |m| on(m, sockets::agent)),
    route(GET, "/api/v2/workspaceagents/me/reinit", Agent, |m| on(m, sockets::no_reinit)),
];

impl Route {
    /// Which limit counts for it: logging in and changing a password try one with each call.
    pub(crate) fn class(&self) -> Class {
        let tries = self.path == "/api/v2/users/login" || self.path.ends_with("/password");
        if tries { Class::Login } else { Class::Api }
    }
}

/// The router that the table makes.
pub(crate) fn router(app: &App) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let admit = from_fn_with_state((app.clone(), route), access::admit);
        if let Ok(method) = MethodFilter::try_from(route.method.clone()) {
            router = router.route(route.path, (route.to)(method).route_layer(admit));
        }
    }
    router.fallback(info::no_route).layer(from_fn_with_state(app.clone(), front)).with_state(app.clone())
}

/// In front of all routes: redirects, and the headers of every answer.
async fn front(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = match redirect(&app, &request) {
        Some(redirect) => redirect,
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(value) = app.settings().transport_security.clone().filter(|_| app.is_https()) {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, value);
    }
    response
}

/// Where a request is sent that shall come to the access URL. Health checks and relay clients are served anywhere, and so
/// are agents, which may have a URL of their own and follow a redirect nowhere else.
fn redirect(app: &App, request: &Request) -> Option<Response> {
    let path = request.uri().path();
    let is_agents = ROUTES.iter().any(|route| route.access == Agent && route.path == path);
    if path == "/healthz" || path == "/derp" || path.starts_with("/derp/") || is_agents {
        return None;
    }
    // Where nobody says how the client came, a redirect might lead back here without end.
    let plain = request.extensions().get::<Origin>().is_some_and(|origin| origin.secure == Some(false));
    let to_https = plain && app.is_https();
    // A proxy may put our own name in the place of the one that the client asked for.
    let mut hosts = [header::HOST, HeaderName::from_static("x-forwarded-host")].into_iter();
    let is_ours =
        |name| request.headers().get(name).is_some_and(|host| app.authority().as_bytes().eq_ignore_ascii_case(host.as_bytes()));
    let elsewhere = match app.settings().redirect {
        Redirect::Never => false,
        Redirect::ToHttps => to_https,
        Redirect::ToAccessUrl => to_https || !hosts.any(is_ours),
    };
    let rest = request.uri().path_and_query().map_or("/", |rest| rest.as_str());
    let to = HeaderValue::from_str(&format!("{}{rest}", app.access_url())).ok().filter(|_| elsewhere)?;
    Some((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response())
}
