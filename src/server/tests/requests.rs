//! Requests and their limits. That answers have the shapes of the Go server's: `tests/cli/shapes.rs`.

use super::*;

#[tokio::test]
async fn a_socket_opens_for_the_servers_own_pages() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaceagents/{}/coordinate?version=2.0", world.agent.id);
    let mut headers = handshake(Some(&world.admin));
    headers.push(("Origin".into(), format!("http://{}", world.address())));
    assert_eq!(open(world.address(), "GET", &path, &headers, None).await.1.status, 101);
    headers.pop();
    headers.push(("Origin".into(), "http://evil.example.com".into()));
    assert_eq!(call(world.address(), "GET", &path, &headers, None).await.status, 403);
}

#[tokio::test]
async fn a_server_that_blocks_direct_connections_serves_no_stun() {
    let world = World::with(|config| {
        config.stun = StunAddress::LikeHttp;
        config.block_direct = true;
    })
    .await;
    let info = world.get("/api/v2/workspaceagents/connection").await.json();
    assert_eq!(info["disable_direct_connections"], true);
    assert_eq!(info["derp_map"]["Regions"]["999"]["Nodes"][0]["STUNPort"], -1);
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
    assert_eq!(answer.status, 200);
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.starts_with("coder_session_token=; Path=/;") && cookie.ends_with("; Max-Age=0"), "{cookie}");
    assert_eq!(call(world.address(), "GET", "/api/v2/users/me", &auth(&token), None).await.status, 401);
}

#[tokio::test]
async fn a_deleted_key_answers_204_and_is_over() {
    let world = World::new().await;
    let token = world.post("/api/v2/users/me/keys", "").await.json()["key"].as_str().unwrap().to_owned();
    let id = token.split('-').next().unwrap();
    let path = format!("/api/v2/users/me/keys/{id}");
    let answer = call(world.address(), "DELETE", &path, &auth(&world.admin), None).await;
    assert_eq!(answer.status, 204);
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
async fn the_deployments_ssh_settings_are_told() {
    let options = [("ForwardAgent", "yes"), ("LogLevel", "DEBUG")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let hosts = SshHosts { prefix: "acme.".into(), suffix: "acme".into(), options: options.into() };
    let world = World::with(|config| config.ssh_hosts = hosts).await;
    let told = serde_json::json!({
        "hostname_prefix": "acme.", "hostname_suffix": "acme",
        "ssh_config_options": { "ForwardAgent": "yes", "LogLevel": "DEBUG" },
    });
    assert_eq!(world.get("/api/v2/deployment/ssh").await.json(), told);
    assert_eq!(world.get("/api/v2/workspaceagents/connection").await.json()["hostname_suffix"], "acme");
}

#[tokio::test]
async fn usage_is_noted() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaces/{}", world.workspace.id);
    assert_eq!(world.get(&path).await.json()["last_used_at"], Stamp::NEVER.to_string());
    world.post(&format!("{path}/usage"), "").await;
    assert_ne!(world.get(&path).await.json()["last_used_at"], Stamp::NEVER.to_string());
}
