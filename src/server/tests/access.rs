//! Nobody gets in without a token, and nobody to what is another's: every route of the table is walked.

use super::*;
use crate::server::{access::Access, routes::ROUTES};

/// Everything that may be open to everybody.
const PUBLIC: &[&str] = &[
    "GET /healthz",
    "GET /derp",
    "GET /derp/latency-check",
    "HEAD /derp/latency-check",
    "GET /api/v2/buildinfo",
    "GET /api/v2/users/first",
    "POST /api/v2/users/first",
];

/// The path of a route with the first user's things in it.
async fn path_of_admins(world: &World, pattern: &str) -> String {
    let build = world.running.app.store().latest_build(world.workspace.id).await.unwrap().id.to_string();
    let (workspace, agent) = (world.workspace.id.to_string(), world.agent.id.to_string());
    let key = world.admin.split('-').next().unwrap();
    let id = match pattern {
        p if p.contains("/workspaces/{id}") => &workspace,
        p if p.contains("/workspacebuilds/{id}") => &build,
        p if p.contains("/workspaceagents/{id}") => &agent,
        p if p.contains("/keys/{id}") => key,
        _ => "00000000-0000-0000-0000-000000000001",
    };
    let name = if pattern.contains("/workspace/{name}") { "dev" } else { "ci" };
    pattern.replace("{user}", &world.user.username).replace("{id}", id).replace("{name}", name)
}

/// A body that the route would act upon.
fn body_for(pattern: &str) -> Option<&'static str> {
    match pattern {
        "/api/v2/users" => Some(r#"{"username":"eve"}"#),
        "/api/v2/users/{user}/workspaces" => Some(r#"{"name":"stolen"}"#),
        "/api/v2/workspaces/{id}/builds" => Some(r#"{"transition":"stop"}"#),
        "/api/v2/users/{user}/keys/tokens" => Some(r#"{"token_name":"stolen"}"#),
        _ => Some("{}"),
    }
}

async fn walk(world: &World, token: Option<&str>) -> Vec<(&'static str, Access, String, Answer)> {
    let mut answers = Vec::new();
    let mut routes: Vec<_> = ROUTES.iter().collect();
    // The last call of a token.
    routes.sort_by_key(|route| route.path.ends_with("/logout"));
    for route in routes {
        let path = path_of_admins(world, route.path).await;
        let sockets = ["/coordinate", "/rpc", "/watch-ws"].iter().any(|s| path.ends_with(s));
        let headers = match token {
            _ if sockets => handshake(token),
            Some(token) => auth(token),
            None => Vec::new(),
        };
        let path = if sockets { format!("{path}?version=2.0") } else { path };
        let body = (route.method == "POST").then(|| body_for(route.path)).flatten();
        let answer = call(world.address(), route.method.as_str(), &path, &headers, body).await;
        answers.push((route.path, route.access, format!("{} {path}", route.method), answer));
    }
    answers
}

#[test]
fn the_routes_open_to_everybody_are_exactly_these() {
    let public: Vec<_> =
        ROUTES.iter().filter(|r| r.access == Access::Public).map(|r| format!("{} {}", r.method, r.path)).collect();
    assert_eq!(public, PUBLIC);
}

#[tokio::test]
async fn without_a_token_every_route_that_is_not_public_answers_401() {
    let world = World::new().await;
    for token in [None, Some("abc"), Some("AAAAAAAAAA-BBBBBBBBBBBBBBBBBBBBBB"), Some("00000000-0000-4000-8000-000000000000")] {
        for (_, access, request, answer) in walk(&world, token).await {
            let refused = answer.status == 401;
            assert_eq!(refused, access != Access::Public, "{request} with {token:?}: {answer:?}");
            if refused {
                assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"), "{request}");
                assert_eq!(answer.header("www-authenticate").is_some(), access != Access::Agent, "{request}");
            }
        }
    }
}

#[tokio::test]
async fn another_users_token_opens_nothing_of_the_first_user() {
    let world = World::new().await;
    world.post("/api/v2/users/me/keys/tokens", r#"{"token_name":"ci"}"#).await;
    let before = world.get("/api/v2/workspaces").await.json();
    let secrets = [world.workspace.id.to_string(), world.agent.id.to_string(), world.user.id.to_string()];
    for (pattern, access, request, answer) in walk(&world, Some(&world.bob)).await {
        match access {
            Access::Public => continue,
            Access::Agent => assert_eq!(answer.status, 401, "{request}"),
            Access::FirstUser => assert_eq!(answer.status, 403, "{request}"),
            // These are about another's things: they do not exist.
            Access::User if pattern.contains('{') => {
                assert!([400, 404].contains(&answer.status), "{request}: {answer:?}");
            }
            Access::User => assert!(answer.status < 300, "{request}: {answer:?}"),
        }
        let text = answer.text();
        assert!(!secrets.iter().any(|s| text.contains(s.as_str())), "{request} tells: {text}");
    }
    assert_eq!(world.get("/api/v2/workspaces").await.json()["workspaces"][0]["latest_build"]["build_number"], 1);
    assert_eq!(world.get("/api/v2/workspaces").await.json()["count"], before["count"]);
    assert_eq!(world.get("/api/v2/users/me").await.status, 200, "the first user's key was ended");
}

#[tokio::test]
async fn an_agents_token_opens_no_users_route_and_a_users_no_agents() {
    let world = World::new().await;
    for (_, access, request, answer) in walk(&world, Some(&world.agent_token)).await {
        if matches!(access, Access::User | Access::FirstUser) {
            assert_eq!(answer.status, 401, "{request}");
        }
    }
    for (_, access, request, answer) in walk(&world, Some(&world.admin)).await {
        if access == Access::Agent {
            assert_eq!(answer.status, 401, "{request}");
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
