//! Who may call what: each route by each kind of caller. The table below says it a second time, in its own words, and
//! must name exactly the routes that the router is built from.

use super::*;
use crate::server::{
    routes::{ROUTES, Route},
    scopes::Scopes,
    store::{KeyKind, NewKey},
};
use std::collections::BTreeSet;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// Everybody.
    All,
    /// Users with a token that can do everything.
    Users,
    /// Users with a token that has all of these scopes.
    Scopes(&'static str),
    /// The first user with a token that can do everything.
    First,
    /// Agents.
    Agents,
}
use For::{Agents, All, First, Users};

const READ: For = For::Scopes("workspace:read");
const CONNECT: For = For::Scopes("workspace:read workspace:ssh");
const LOGIN: For = For::Scopes("");

#[rustfmt::skip]
const TABLE: &[(&str, For)] = &[
    ("GET /healthz", All),
    ("GET /derp", All),
    ("GET /derp/latency-check", All),
    ("HEAD /derp/latency-check", All),
    ("GET /api/v2/buildinfo", All),
    ("GET /api/v2/users/first", All),
    ("POST /api/v2/users/first", All),
    ("GET /api/v2/users/authmethods", All),
    ("POST /api/v2/users/login", All),
    ("GET /api/v2/users", First),
    ("POST /api/v2/users", First),
    ("POST /api/v2/users/logout", LOGIN),
    ("GET /api/v2/users/{user}", For::Scopes("user:read_personal")),
    ("GET /api/v2/users/{user}/organizations", For::Scopes("user:read_personal")),
    ("PUT /api/v2/users/{user}/password", Users),
    ("POST /api/v2/users/{user}/keys", Users),
    ("GET /api/v2/users/{user}/keys/{id}", For::Scopes("api_key:read")),
    ("DELETE /api/v2/users/{user}/keys/{id}", For::Scopes("api_key:delete")),
    ("PUT /api/v2/users/{user}/keys/{id}/expire", For::Scopes("api_key:update")),
    ("GET /api/v2/users/{user}/keys/tokens", For::Scopes("api_key:read")),
    ("POST /api/v2/users/{user}/keys/tokens", For::Scopes("api_key:create")),
    ("GET /api/v2/users/{user}/keys/tokens/tokenconfig", For::Scopes("api_key:read")),
    ("GET /api/v2/users/{user}/keys/tokens/{name}", For::Scopes("api_key:read")),
    ("GET /api/v2/deployment/ssh", LOGIN),
    ("GET /api/v2/applications/host", LOGIN),
    ("GET /api/v2/templateversions/{id}", For::Scopes("template:read")),
    ("POST /api/v2/users/{user}/workspaces", For::Scopes("workspace:create")),
    ("GET /api/v2/users/{user}/workspace/{name}", READ),
    ("GET /api/v2/workspaces", READ),
    ("GET /api/v2/workspaces/{id}", READ),
    ("POST /api/v2/workspaces/{id}/usage", CONNECT),
    ("GET /api/v2/workspaces/{id}/watch", READ),
    ("GET /api/v2/workspaces/{id}/watch-ws", READ),
    ("GET /api/v2/workspaces/{id}/builds", READ),
    ("POST /api/v2/workspaces/{id}/builds", For::Scopes("workspace:read workspace:stop")),
    ("GET /api/v2/workspacebuilds/{id}", READ),
    ("GET /api/v2/workspacebuilds/{id}/logs", READ),
    ("PATCH /api/v2/workspacebuilds/{id}/cancel", For::Scopes("workspace:read workspace:update")),
    ("GET /api/v2/workspaceagents/connection", LOGIN),
    ("GET /api/v2/workspaceagents/{id}", READ),
    ("GET /api/v2/workspaceagents/{id}/connection", READ),
    ("GET /api/v2/workspaceagents/{id}/logs", READ),
    ("GET /api/v2/workspaceagents/{id}/listening-ports", CONNECT),
    ("GET /api/v2/workspaceagents/{id}/containers", READ),
    ("GET /api/v2/workspaceagents/{id}/pty", CONNECT),
    ("GET /api/v2/workspaceagents/{id}/coordinate", CONNECT),
    ("GET /api/v2/workspaceagents/me/rpc", Agents),
    ("GET /api/v2/workspaceagents/me/reinit", Agents),
];

/// All that can be granted on its own.
const ALL_SCOPES: &[&str] = &[
    "api_key:create",
    "api_key:read",
    "api_key:update",
    "api_key:delete",
    "file:create",
    "file:read",
    "template:read",
    "template:use",
    "user:read",
    "user:read_personal",
    "user:update_personal",
    "workspace:create",
    "workspace:read",
    "workspace:update",
    "workspace:delete",
    "workspace:start",
    "workspace:stop",
    "workspace:ssh",
    "workspace:application_connect",
];

/// Where a WebSocket is opened.
const SOCKETS: &[&str] = &["/coordinate", "/pty", "/rpc", "/watch-ws"];

fn name(route: &Route) -> String {
    format!("{} {}", route.method, route.path)
}

fn open_to(route: &Route) -> For {
    TABLE.iter().find(|(row, _)| *row == name(route)).unwrap_or_else(|| panic!("no row for {}", name(route))).1
}

/// How a caller shows itself.
#[derive(Debug, Clone, Copy)]
enum By<'a> {
    Nothing,
    Header(&'a str),
    /// A browser on a page of this origin; empty for one that tells none.
    Cookie(&'a str, &'a str),
}

impl By<'_> {
    fn headers(self) -> Vec<(String, String)> {
        match self {
            By::Nothing => Vec::new(),
            By::Header(token) => auth(token),
            By::Cookie(token, origin) => {
                let origin = (!origin.is_empty()).then(|| ("Origin".to_owned(), origin.to_owned()));
                [("Cookie".to_owned(), format!("coder_session_token={token}"))].into_iter().chain(origin).collect()
            }
        }
    }
}

impl World {
    /// A token of the first user with these scopes.
    async fn scoped(&self, scopes: impl IntoIterator<Item = &'static str>) -> String {
        let scopes = Scopes::read(scopes).unwrap();
        self.key(Stamp::now(), Some(&scopes)).await
    }

    /// A token of the first user that was made at `made` and lives an hour.
    async fn key(&self, made: Stamp, scopes: Option<&Scopes>) -> String {
        let name = Uuid::new_v4().to_string();
        let lifetime = Duration::from_secs(3600);
        let key = NewKey { user: self.user.id, kind: KeyKind::Token, name: &name, lifetime, scopes, by_password: false };
        self.running.app.store().insert_key(made, key).await.unwrap().expose()
    }

    /// Calls a route about the first user's things. Keys are ended that nobody needs.
    async fn try_route(&self, route: &Route, by: By<'_>) -> Answer {
        let build = self.running.app.store().latest_build(self.workspace.id).await.unwrap().id.to_string();
        let (workspace, agent) = (self.workspace.id.to_string(), self.agent.id.to_string());
        let key = self.key(Stamp::now(), None).await;
        let id = match route.path {
            p if p.contains("/workspaces/{id}") => &workspace,
            p if p.contains("/workspacebuilds/{id}") => &build,
            p if p.contains("/workspaceagents/{id}") => &agent,
            p if p.contains("/keys/{id}") => key.split('-').next().unwrap(),
            p if p.contains("/templateversions/{id}") => &self.running.app.store().deployment().template_version.to_string(),
            p => {
                assert!(!p.contains("{id}"), "say what {p} is about");
                ""
            }
        };
        let thing = if route.path.contains("/workspace/{name}") { "dev" } else { "ci" };
        let mut path = route.path.replace("{user}", &self.user.username).replace("{id}", id).replace("{name}", thing);
        let socket = SOCKETS.iter().any(|end| path.ends_with(end));
        let mut headers = if socket { handshake(None) } else { Vec::new() };
        if path.ends_with("/pty") {
            path += "?reconnect=11111111-2222-4333-8444-555555555555&width=80&height=24";
        } else if socket {
            path += "?version=2.0";
        }
        headers.extend(by.headers());
        let body = match route.path {
            _ if !["POST", "PUT"].contains(&route.method.as_str()) => None,
            "/api/v2/users" => Some(r#"{"username":"eve"}"#),
            "/api/v2/users/{user}/workspaces" => Some(r#"{"name":"stolen"}"#),
            "/api/v2/workspaces/{id}/builds" => Some(r#"{"transition":"stop"}"#),
            "/api/v2/users/{user}/keys/tokens" => Some(r#"{"token_name":"stolen","scopes":["api_key:create"]}"#),
            _ => Some("{}"),
        };
        call(self.address(), route.method.as_str(), &path, &headers, body).await
    }
}

/// Nobody who may call a route gets one of these, but for the route that tells everybody with 403 that there is nothing.
fn is_let_in(answer: &Answer) -> bool {
    let nothing_there = String::from_utf8_lossy(&answer.body).contains("no support for dev containers");
    nothing_there || ![401, 403, 428, 429].contains(&answer.status)
}

#[test]
fn the_table_names_exactly_the_routes_that_are_served() {
    let served: BTreeSet<_> = ROUTES.iter().map(name).collect();
    let named: BTreeSet<_> = TABLE.iter().map(|(row, _)| (*row).to_owned()).collect();
    let differ: Vec<_> = served.symmetric_difference(&named).collect();
    assert!(differ.is_empty(), "give each of these a row, or take it out: {differ:?}");
    assert_eq!(TABLE.len(), ROUTES.len(), "a row is there twice");
}

#[tokio::test]
async fn without_a_valid_token_every_route_that_is_not_public_answers_401() {
    let world = World::new().await;
    let two_hours_ago = Stamp::from_micros(Stamp::now().micros() - 7_200_000_000);
    let expired = world.key(two_hours_ago, None).await;
    let wrong = format!("{}-BBBBBBBBBBBBBBBBBBBBBB", world.admin.split('-').next().unwrap());
    let tokens = ["abc", "AAAAAAAAAA-BBBBBBBBBBBBBBBBBBBBBB", "00000000-0000-4000-8000-000000000000", &wrong, &expired];
    let headers = tokens.iter().map(|token| By::Header(token));
    let cookies = tokens.iter().map(|token| By::Cookie(token, ""));
    for by in headers.chain(cookies) {
        for route in ROUTES {
            let (answer, nobodys) = (world.try_route(route, by).await, world.try_route(route, By::Nothing).await);
            let what = format!("{} by {by:?}: {answer:?}", name(route));
            if open_to(route) == All {
                assert_eq!(answer.status, nobodys.status, "{what}");
                continue;
            }
            assert_eq!((answer.status, nobodys.status), (401, 401), "{what}");
            assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"), "{what}");
            assert_eq!(answer.header("www-authenticate").is_some(), open_to(route) != Agents, "{what}");
        }
    }
    let told = call(world.address(), "GET", "/api/v2/users/me", &auth(&expired), None).await.json();
    assert!(told["detail"].as_str().unwrap().starts_with("API key expired at"), "{told}");
}

#[tokio::test]
async fn another_users_token_opens_nothing_of_the_first_user() {
    let world = World::new().await;
    world.post("/api/v2/users/me/keys/tokens", r#"{"token_name":"ci"}"#).await;
    let before = world.get("/api/v2/workspaces").await.json();
    let secrets = [world.workspace.id.to_string(), world.agent.id.to_string(), world.user.id.to_string()];
    let mut routes: Vec<_> = ROUTES.iter().collect();
    // The last call of a token.
    routes.sort_by_key(|route| route.path.ends_with("/logout"));
    for route in routes {
        let answer = world.try_route(route, By::Header(&world.bob)).await;
        let what = format!("{}: {answer:?}", name(route));
        match open_to(route) {
            All => continue,
            Agents => assert_eq!(answer.status, 401, "{what}"),
            First => assert_eq!(answer.status, 403, "{what}"),
            // These are about another's things: they do not exist. There is one template for all.
            Users | For::Scopes(_) if route.path.contains('{') && !route.path.contains("/templateversions/") => {
                assert!([400, 404].contains(&answer.status), "{what}");
            }
            Users | For::Scopes(_) => assert!(answer.status < 300, "{what}"),
        }
        if !route.path.contains("/templateversions/") {
            let text = answer.text();
            assert!(!secrets.iter().any(|s| text.contains(s.as_str())), "{what}");
        }
    }
    assert_eq!(world.get("/api/v2/workspaces").await.json()["workspaces"][0]["latest_build"]["build_number"], 1);
    assert_eq!(world.get("/api/v2/workspaces").await.json()["count"], before["count"]);
    assert_eq!(world.get("/api/v2/users/me").await.status, 200, "the first user's key was ended");
}

#[tokio::test]
async fn an_agents_token_opens_no_users_route_and_a_users_no_agents() {
    let world = World::new().await;
    for route in ROUTES {
        let by_agent = world.try_route(route, By::Header(&world.agent_token)).await;
        match open_to(route) {
            All => {}
            Agents => {
                assert!(is_let_in(&by_agent), "{}: {by_agent:?}", name(route));
                assert_eq!(world.try_route(route, By::Header(&world.admin)).await.status, 401, "{}", name(route));
            }
            _ => assert_eq!(by_agent.status, 401, "{}", name(route)),
        }
    }
}

#[tokio::test]
async fn a_token_with_scopes_opens_what_they_grant_and_nothing_else() {
    let world = World::new().await;
    for route in ROUTES {
        let (needs, everything) = match open_to(route) {
            All | Agents => continue,
            Users | First => (Vec::new(), true),
            For::Scopes(words) => (words.split(' ').filter(|word| !word.is_empty()).collect(), false),
        };
        if everything {
            let all = world.scoped(ALL_SCOPES.iter().copied()).await;
            assert_eq!(world.try_route(route, By::Header(&all)).await.status, 403, "{}", name(route));
        } else {
            let just = if needs.is_empty() { vec!["file:read"] } else { needs.clone() };
            let answer = world.try_route(route, By::Header(&world.scoped(just).await)).await;
            assert!(is_let_in(&answer), "{}: {answer:?}", name(route));
        }
        for needed in &needs {
            let others = world.scoped(ALL_SCOPES.iter().copied().filter(|scope| scope != needed)).await;
            let answer = world.try_route(route, By::Header(&others)).await;
            assert_eq!(answer.status, 403, "{} without {needed}: {answer:?}", name(route));
            assert!(answer.json()["detail"].as_str().unwrap().contains(needed), "{}: {answer:?}", name(route));
        }
        let of_apps = world.scoped(["application_connect"]).await;
        let by_app = world.try_route(route, By::Header(&of_apps)).await;
        // A token may always end itself, and learns what every login does.
        let harmless = needs.is_empty() && !everything;
        assert_eq!(is_let_in(&by_app), harmless, "{}: {by_app:?}", name(route));
    }
}

#[tokio::test]
async fn a_browsers_cookie_counts_for_its_own_pages_and_changes_nothing_for_others() {
    let world = World::new().await;
    let own = format!("http://{}", world.address());
    for route in ROUTES {
        if [All, Agents].contains(&open_to(route)) {
            continue;
        }
        let changes = route.method != "GET";
        let socket = SOCKETS.iter().any(|end| route.path.ends_with(end));
        if route.path.ends_with("/pty") {
            // A terminal is opened, or not, where its agent is connected.
            world.running.app.store().agent_connected(Stamp::now(), world.agent.id).await.unwrap();
        }
        for (origin, let_in) in [("", true), (own.as_str(), true), ("https://evil.example", !changes && !socket)] {
            let token = world.key(Stamp::now(), None).await;
            let answer = world.try_route(route, By::Cookie(&token, origin)).await;
            assert_eq!(is_let_in(&answer), let_in, "{} from {origin:?}: {answer:?}", name(route));
        }
    }
    assert_eq!(world.get("/api/v2/users/me").await.status, 200);
}

#[tokio::test]
async fn each_transition_of_a_workspace_needs_its_scope_its_owner_and_its_own_pages() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaces/{}/builds", world.workspace.id);
    for (transition, scope) in [("stop", "workspace:stop"), ("start", "workspace:start"), ("delete", "workspace:delete")] {
        let body = format!(r#"{{"transition":"{transition}"}}"#);
        let others = world.scoped(ALL_SCOPES.iter().copied().filter(|other| *other != scope)).await;
        let (just, all) = (world.scoped(["workspace:read", scope]).await, world.key(Stamp::now(), None).await);
        for (by, status) in [
            (By::Nothing, 401),
            (By::Header(&world.agent_token), 401),
            (By::Header(&world.bob), 404),
            (By::Header(&others), 403),
            (By::Cookie(&all, "https://evil.example"), 403),
            (By::Header(&just), 201),
        ] {
            let answer = call(world.address(), "POST", &path, &by.headers(), Some(&body)).await;
            assert_eq!(answer.status, status, "{transition} by {by:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn two_users_do_not_see_each_others_workspaces() {
    let world = World::new().await;
    let made = call(world.address(), "POST", "/api/v2/users/me/workspaces", &auth(&world.bob), Some(r#"{"name":"dev"}"#)).await;
    assert_eq!(made.status, 201);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let names = |answer: &Answer| {
        let all = answer.json();
        let owners = all["workspaces"].as_array().unwrap().iter().map(|w| w["owner_name"].as_str().unwrap().to_owned());
        owners.collect::<Vec<_>>()
    };
    assert_eq!(names(&world.get("/api/v2/workspaces").await), ["admin"]);
    assert_eq!(names(&world.get("/api/v2/workspaces?q=owner:bob").await), [""; 0]);
    assert_eq!(names(&call(world.address(), "GET", "/api/v2/workspaces", &auth(&world.bob), None).await), ["bob"]);
    assert_eq!(world.get(&format!("/api/v2/workspaces/{id}")).await.status, 404);
    assert_eq!(world.get("/api/v2/users/bob/workspace/dev").await.status, 404);
}

#[tokio::test]
async fn no_token_reaches_the_debug_output_of_what_holds_it() {
    let world = World::new().await;
    let text = format!("{:?} {:?}", world.running, world.agent);
    for secret in [&world.admin, &world.bob, &world.agent_token] {
        assert!(!text.contains(secret.as_str()));
    }
}
