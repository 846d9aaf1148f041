//! Status, headers and JSON shape of every answer, beside those of the Go server.

use super::*;

/// Headers of the Go server that we do not send: our version would make Go clients warn, and there are no rate limits.
const NOT_OURS: &[&str] = &["x-coder-build-version", "x-ratelimit-limit", "transfer-encoding"];

/// Where the shapes may differ.
#[derive(Clone, Copy, Default)]
pub(super) struct Slack {
    /// Fields that only one side has.
    pub(super) fields: &'static [&'static str],
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

fn compare(ours: &Value, theirs: &Value, slack: Slack, path: &str, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (name, value) in theirs {
                match ours.get(name) {
                    _ if slack.fields.contains(&name.as_str()) => {}
                    Some(own) => compare(own, value, slack, &format!("{path}.{name}"), out),
                    None => out.push(format!("{path}.{name} is missing")),
                }
            }
            let more = ours.keys().filter(|n| !theirs.contains_key(*n) && !slack.fields.contains(&n.as_str()));
            out.extend(more.map(|name| format!("{path}.{name} is not in Go's answer")));
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            if let (Some(ours), Some(theirs)) = (ours.first(), theirs.first()) {
                compare(ours, theirs, slack, &format!("{path}[]"), out);
            } else if ours.is_empty() != theirs.is_empty() {
                out.push(format!("{path} has {} entries, Go's {}", ours.len(), theirs.len()));
            }
        }
        _ if kind(ours) == kind(theirs) => {}
        _ => out.push(format!("{path} is a {}, Go's a {}", kind(ours), kind(theirs))),
    }
}

/// Texts that clients look for.
fn same_texts(ours: &Value, theirs: &Value, path: &str, out: &mut Vec<String>) {
    for field in ["message", "detail"] {
        if ours.get(field) != theirs.get(field) {
            out.push(format!("{path}.{field} is {:?}, Go's {:?}", ours.get(field), theirs.get(field)));
        }
    }
    if ours["validations"] != theirs["validations"] {
        out.push(format!("{path}.validations are {}, Go's {}", ours["validations"], theirs["validations"]));
    }
}

pub(super) fn check(name: &str, answer: &Answer, slack: Slack) -> Vec<String> {
    let theirs = vector(name);
    let mut out = Vec::new();
    if u64::from(answer.status) != theirs["status"].as_u64().unwrap() {
        out.push(format!("status {}, Go's {}: {answer:?}", answer.status, theirs["status"]));
        return out;
    }
    for (header, value) in theirs["headers"].as_object().unwrap() {
        let value = value.as_str().unwrap();
        let own = answer.header(header);
        let alike = match header.as_str() {
            name if NOT_OURS.contains(&name) => true,
            // Differs in the host alone.
            "www-authenticate" => own.is_some_and(|own| own.split("http").next() == value.split("http").next()),
            "derp-public-key" => own.is_some_and(|own| own.len() == value.len()),
            _ => own == Some(value),
        };
        if !alike {
            out.push(format!("header {header} is {own:?}, Go's {value:?}"));
        }
    }
    match &theirs["body"] {
        Value::Null => {}
        // A stream has no end; what it holds has tests of its own.
        _ if name.ends_with("_sse") => {}
        Value::String(text) => {
            if answer.text() != text {
                out.push(format!("body is {:?}, Go's {text:?}", answer.text()));
            }
        }
        body => {
            let ours = answer.json();
            compare(&ours, body, slack, "", &mut out);
            if answer.status >= 400 {
                same_texts(&ours, body, "", &mut out);
            }
        }
    }
    out.into_iter().map(|line| format!("{name}: {line}")).collect()
}

/// A request like the vector's, with our ids in the path and our tokens.
async fn replay(world: &World, name: &str) -> Answer {
    let vector = vector(name);
    let request = &vector["request"];
    let known = [
        ("257d8db7-a037-4160-949a-04f290ed2aca", world.workspace.id),
        ("ad94eea7-c7aa-4903-b40c-5bd619c76729", world.workspace.id),
        ("d0e8f0cf-1a99-4a38-b8e9-c1d7fc977c15", world.agent.id),
        ("0b152d97-62b3-48c8-b308-27c818b93d6e", world.agent.id),
        ("9b78826c-2014-4b5e-9aba-e9e53f462fff", world.running.app.store().deployment().template_version),
        ("1dcf0316-4cad-48a3-92fc-f31cde996826", world.running.app.store().latest_build(world.workspace.id).await.unwrap().id),
    ];
    let mut path = request["path"].as_str().unwrap().to_owned();
    for (theirs, ours) in known {
        path = path.replace(theirs, &ours.to_string());
    }
    let key_id = world.admin.split('-').next().unwrap();
    path = path.replace("<TOKEN_ID>", key_id);
    let mut headers = match (request["auth"].as_str().unwrap(), name) {
        ("none", _) => Vec::new(),
        ("session", _) => auth(&world.admin),
        ("other user", _) => auth(&world.bob),
        ("agent", _) => auth(&world.agent_token),
        ("invalid", "agent_rpc_unknown_token") => auth(&Uuid::new_v4().to_string()),
        ("invalid", "error_401_bad_key") => auth("AAAAAAAAAA-BBBBBBBBBBBBBBBBBBBBBB"),
        ("invalid", "agent_rpc_malformed_token") => auth("abc"),
        ("invalid", "error_401_malformed_token") => auth("abc"),
        other => panic!("{other:?}"),
    };
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        headers.push((name.clone(), value.as_str().unwrap().to_owned()));
    }
    let body = match &request["body"] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    };
    let method = request["method"].as_str().unwrap();
    if vector["status"] == 101 || name.ends_with("_sse") {
        return open(world.address(), method, &path, &headers, body.as_deref()).await.1;
    }
    call(world.address(), method, &path, &headers, body.as_deref()).await
}

#[tokio::test]
async fn answers_have_the_shape_of_the_go_servers() {
    let world = World::new().await;
    world.post("/api/v2/users/me/keys/tokens", r#"{"token_name":"ci","lifetime":3600000000000}"#).await;
    // What Go leaves out where it is empty, or has for a connected agent only.
    const WORKSPACE: Slack =
        Slack { fields: &["first_connected_at", "last_connected_at", "started_at", "ready_at", "latency", "reason"] };
    const USER: Slack = Slack { fields: &["name"] };
    // Our builds are done when they are made.
    const BUILD: Slack =
        Slack { fields: &["started_at", "completed_at", "worker_id", "has_ai_task", "has_external_agent", "most_recently_seen"] };
    const NONE: Slack = Slack { fields: &[] };
    let cases = [
        ("buildinfo", NONE),
        ("users_first_exists", NONE),
        ("error_409_users_first", NONE),
        ("users_me", USER),
        ("users_me_member", USER),
        ("organizations_me", NONE),
        ("key_create", NONE),
        ("key_get", NONE),
        ("token_config", NONE),
        ("token_by_name", NONE),
        ("tokens_list", NONE),
        ("token_create_lifetime_zero", NONE),
        ("error_400_token_lifetime", NONE),
        ("error_409_token_name_taken", NONE),
        ("error_404_token_name", NONE),
        ("error_404_key", NONE),
        ("error_401_no_token", NONE),
        ("error_401_bad_key", NONE),
        ("error_401_malformed_token", NONE),
        ("error_401_agent_token_on_user_route", NONE),
        ("agent_rpc_without_token", NONE),
        ("agent_rpc_malformed_token", NONE),
        ("agent_rpc_user_token", NONE),
        ("agent_rpc_unknown_token", NONE),
        ("workspace", WORKSPACE),
        ("workspace_by_owner_and_name", WORKSPACE),
        ("workspaces_query", WORKSPACE),
        ("workspaces_query_empty", NONE),
        ("workspace_usage_body", NONE),
        ("workspace_usage_plain", NONE),
        ("usage_half_body_ignored", NONE),
        ("usage_unknown_app_ignored", NONE),
        ("template_version", USER),
        ("workspace_agent", WORKSPACE),
        ("workspace_agent_never_connected", NONE),
        ("workspace_agent_connection", NONE),
        ("workspace_agents_connection_generic", NONE),
        ("workspace_agent_logs", NONE),
        ("workspace_build", WORKSPACE),
        ("workspace_builds_list", WORKSPACE),
        ("workspace_build_logs", NONE),
        ("deployment_ssh", NONE),
        ("healthz", NONE),
        ("derp_without_upgrade", NONE),
        ("derp_latency_check", NONE),
        ("derp_upgrade", NONE),
        ("derp_upgrade_websocket", NONE),
        ("derp_upgrade_websocket_no_subprotocol", NONE),
        ("coordinate_upgrade", NONE),
        ("coordinate_without_upgrade", NONE),
        ("workspace_watch_sse", NONE),
        ("workspace_watch_ws", NONE),
        ("workspace_agent_logs_follow", NONE),
        ("workspace_build_logs_follow", NONE),
        ("error_400_agent_id_not_uuid", NONE),
        ("error_400_workspace_id_not_uuid", NONE),
        ("error_400_build_bad_reason", NONE),
        ("error_400_build_bad_transition", NONE),
        ("error_400_user", NONE),
        ("error_400_user_not_visible", NONE),
        ("error_400_workspaces_limit", NONE),
        ("error_400_workspaces_query", NONE),
        ("error_404_agent_connection_of_other_user", NONE),
        ("error_404_agent_coordinate_of_other_user", NONE),
        ("error_404_agent_of_other_user", NONE),
        ("error_404_agent_id", NONE),
        ("error_404_build_of_other_user", NONE),
        ("error_404_usage_other_user", NONE),
        ("error_404_workspace_id", NONE),
        ("error_404_workspace_name", NONE),
        ("error_404_workspace_of_other_user", NONE),
        ("error_404_route", NONE),
        ("error_404_bin", NONE),
        ("appearance", NONE),
        ("entitlements", NONE),
        ("workspaceproxies", NONE),
        ("build_stop", BUILD),
        ("build_start", BUILD),
        ("agent_rpc_upgrade", NONE),
    ];
    let mut differences = Vec::new();
    for (name, slack) in cases {
        let answer = replay(&world, name).await;
        let mut found = check(name, &answer, slack);
        if name == "build_start" {
            // A start has its agent at once.
            found.retain(|line| !line.contains(".resources has"));
        }
        differences.extend(found);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn texts_that_name_versions_and_parsers_differ_in_these_alone() {
    let world = World::new().await;
    for name in ["coordinate_bad_version", "agent_rpc_bad_version"] {
        let (answer, theirs) = (replay(&world, name).await, vector(name));
        let ours: Value = serde_json::from_str(&answer.text().replace("2.13", "2.6")).unwrap();
        assert_eq!(ours, theirs["body"], "{name}");
        assert_eq!(answer.status, 400);
    }
    let answer = replay(&world, "error_400_build_not_json").await;
    assert_eq!(answer.json()["message"], vector("error_400_build_not_json")["body"]["message"]);
    assert_eq!((answer.status, answer.header("content-type")), (400, Some("application/json; charset=utf-8")));
}

#[tokio::test]
async fn a_socket_refuses_plain_requests_and_other_sites_in_the_librarys_words() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaceagents/{}/coordinate?version=2.0", world.agent.id);
    let answer = world.get(&path).await;
    let theirs = vector("tailnet_without_upgrade");
    // The call says "Connection: close", Go's request had no such header.
    assert_eq!(answer.text().replace("\"close\"", "\"\"").replace("\\\"close\\\"", "\\\"\\\""), theirs["body"].as_str().unwrap());
    assert_eq!((answer.status, answer.header("upgrade")), (426, Some("websocket")));

    let mut headers = handshake(Some(&world.admin));
    headers.push(("Origin".into(), "http://evil.example.com".into()));
    let answer = call(world.address(), "GET", &path, &headers, None).await;
    let host = world.address().to_string();
    assert_eq!(answer.text().replace(&host, "127.0.0.1:3100"), vector("pty_wrong_origin")["body"].as_str().unwrap());
    assert_eq!(answer.status, 403);

    headers.pop();
    headers.push(("Origin".into(), format!("http://{host}")));
    assert_eq!(open(world.address(), "GET", &path, &headers, None).await.1.status, 101);
}

#[tokio::test]
async fn blocked_direct_connections_and_forced_websockets_are_told() {
    let world = World::with(|config| {
        config.stun = StunAddress::LikeHttp;
        config.block_direct = true;
        config.force_websockets = true;
    })
    .await;
    let name = "workspace_agent_connection_block_direct_force_websockets";
    let answer = replay(&world, name).await;
    assert_eq!(check(name, &answer, Slack::default()), [""; 0]);
    let ours = answer.json();
    assert_eq!((&ours["derp_force_websockets"], &ours["disable_direct_connections"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(ours["derp_map"]["Regions"]["999"]["Nodes"][0]["STUNPort"], -1);
    assert_eq!(world.running.stun_address(), None);
}

#[tokio::test]
async fn stun_is_served_where_the_relay_map_says() {
    let world = World::with(|config| config.stun = StunAddress::LikeHttp).await;
    let info = world.get("/api/v2/workspaceagents/connection").await.json();
    let port = info["derp_map"]["Regions"]["999"]["Nodes"][0]["STUNPort"].as_u64().unwrap();
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tx = crate::wire::stun::TxId([1; 12]);
    socket.send_to(&crate::wire::stun::write_request(tx), ("127.0.0.1", u16::try_from(port).unwrap())).await.unwrap();
    let mut buffer = [0; 1500];
    let n = timeout(LIMIT, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(crate::wire::stun::parse_response(&buffer[..n]).unwrap(), (tx, socket.local_addr().unwrap()));
}

#[tokio::test]
async fn bodies_are_bounded() {
    let world = World::new().await;
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(70_000));
    let answer = world.post("/api/v2/users/me/workspaces", &long).await;
    assert_eq!((answer.status, answer.header("content-type")), (413, Some("application/json; charset=utf-8")));
}

#[tokio::test]
async fn names_in_use_and_bad_names_are_refused_with_their_field() {
    let world = World::new().await;
    let field = |answer: &Answer| (answer.status, answer.json()["validations"][0]["field"].as_str().unwrap().to_owned());
    let taken = world.post("/api/v2/users/me/workspaces", r#"{"name":"DEV"}"#).await;
    assert_eq!(field(&taken), (409, "name".into()));
    let uuid = Uuid::new_v4();
    for bad in ["", "a b", "-x", &uuid.to_string()] {
        let answer = world.post("/api/v2/users/me/workspaces", &format!(r#"{{"name":"{bad}"}}"#)).await;
        assert_eq!(field(&answer), (400, "name".into()), "{bad}");
    }
    assert_eq!(field(&world.post("/api/v2/users", r#"{"username":"Bob"}"#).await), (409, "username".into()));
    assert_eq!(field(&world.post("/api/v2/users", r#"{"username":"me"}"#).await), (400, "username".into()));
}

#[tokio::test]
async fn a_token_counts_in_each_of_its_places() {
    let world = World::new().await;
    let token = &world.admin;
    for (name, value) in [
        ("Cookie", format!("a=b; coder_session_token={token}")),
        ("Coder-Session-Token", token.clone()),
        ("Authorization", format!("Bearer {token}")),
    ] {
        let answer = call(world.address(), "GET", "/api/v2/users/me", &[(name.into(), value)], None).await;
        assert_eq!(answer.status, 200, "{name}");
    }
    for name in ["coder_session_token", "access_token"] {
        let answer = call(world.address(), "GET", &format!("/api/v2/users/me?{name}={token}"), &[], None).await;
        assert_eq!(answer.status, 200, "{name}");
    }
}

#[tokio::test]
async fn a_cookie_does_not_let_other_sites_change_anything() {
    let world = World::new().await;
    let from = |origin: &str| {
        [("Cookie".to_owned(), format!("coder_session_token={}", world.admin)), ("Origin".to_owned(), origin.to_owned())]
    };
    let evil = call(world.address(), "POST", "/api/v2/users/me/keys", &from("http://evil.example"), None).await;
    assert_eq!(evil.status, 403);
    let own = format!("http://{}", world.address());
    assert_eq!(call(world.address(), "POST", "/api/v2/users/me/keys", &from(&own), None).await.status, 201);
}

#[tokio::test]
async fn a_logged_out_token_is_over() {
    let world = World::new().await;
    let token = world.post("/api/v2/users/me/keys", "").await.json()["key"].as_str().unwrap().to_owned();
    let answer = call(world.address(), "POST", "/api/v2/users/logout", &auth(&token), None).await;
    assert_eq!(check("logout", &answer, Slack::default()), [""; 0]);
    assert_eq!(call(world.address(), "GET", "/api/v2/users/me", &auth(&token), None).await.status, 401);
}

#[tokio::test]
async fn a_deleted_key_answers_204_and_is_over() {
    let world = World::new().await;
    let token = world.post("/api/v2/users/me/keys", "").await.json()["key"].as_str().unwrap().to_owned();
    let id = token.split('-').next().unwrap();
    let path = format!("/api/v2/users/me/keys/{id}");
    let answer = call(world.address(), "DELETE", &path, &auth(&world.admin), None).await;
    assert_eq!(check("key_delete", &answer, Slack::default()), [""; 0]);
    assert_eq!(call(world.address(), "GET", "/api/v2/users/me", &auth(&token), None).await.status, 401);
}

#[tokio::test]
async fn a_stopped_workspace_shows_no_agents_and_a_deleted_one_not_itself() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaces/{}", world.workspace.id);
    let builds = format!("{path}/builds");
    assert_eq!(world.post(&builds, r#"{"transition":"stop"}"#).await.status, 201);
    let stopped = world.get(&path).await.json();
    assert_eq!(stopped["latest_build"]["status"], "stopped");
    assert_eq!(stopped["latest_build"]["resources"], serde_json::json!([]));
    assert_eq!(world.post(&builds, r#"{"transition":"start","reason":"ssh_connection"}"#).await.status, 201);
    let started = world.get(&path).await.json();
    assert_eq!(started["latest_build"]["resources"][0]["agents"][0]["id"], world.agent.id.to_string());
    assert!(started["latest_build"]["job"]["completed_at"].is_string());
    assert_eq!(world.post(&builds, r#"{"transition":"delete"}"#).await.status, 201);
    assert_eq!(world.get(&path).await.status, 404);
    assert_eq!(world.get("/api/v2/workspaces").await.json()["count"], 0);
}

#[tokio::test]
async fn head_requests_to_the_latency_check_are_told_what_is_allowed() {
    let world = World::new().await;
    let answer = call(world.address(), "HEAD", "/derp/latency-check", &[], None).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET")));
}

#[tokio::test]
async fn the_deployments_ssh_settings_are_told_as_go_tells_them() {
    let options = [("ForwardAgent", "yes"), ("LogLevel", "DEBUG")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let hosts = SshHosts { prefix: "acme.".into(), suffix: "acme".into(), options: options.into() };
    let world = World::with(|config| config.ssh_hosts = hosts).await;
    assert_eq!(world.get("/api/v2/deployment/ssh").await.json(), vector("deployment_ssh_options")["body"]);
    let connection = world.get("/api/v2/workspaceagents/connection").await.json();
    assert_eq!(connection["hostname_suffix"], "acme");
    let world = World::new().await;
    assert_eq!(world.get("/api/v2/deployment/ssh").await.json(), vector("deployment_ssh")["body"]);
}

#[tokio::test]
async fn usage_is_noted() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaces/{}", world.workspace.id);
    assert_eq!(world.get(&path).await.json()["last_used_at"], Stamp::NEVER.to_string());
    world.post(&format!("{path}/usage"), "").await;
    assert_ne!(world.get(&path).await.json()["last_used_at"], Stamp::NEVER.to_string());
}
