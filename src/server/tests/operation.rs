//! What an operator sets: limits, metrics, relays, redirects.

use super::*;
use crate::{
    server::{RateLimits, Redirect, RelayConfig, TrustedProxies},
    wire::coord::agent::{Connection, ConnectionAction, REPORT_CONNECTION, ReportConnectionRequest},
};
use std::num::NonZeroU32;

fn limits(api: u32, login: u32) -> Option<RateLimits> {
    Some(RateLimits { api: NonZeroU32::new(api).unwrap(), login: NonZeroU32::new(login).unwrap() })
}

#[tokio::test]
async fn too_many_requests_are_refused_by_user_and_route_but_not_the_first_users_who_asks() {
    let world = World::with(|config| config.rate_limits = limits(3, 2)).await;
    let me = async |token: &str| call(world.address(), "GET", "/api/v2/users/me", &auth(token), None).await;
    let answers = [me(&world.bob).await, me(&world.bob).await, me(&world.bob).await, me(&world.bob).await];
    assert_eq!(answers.each_ref().map(|a| a.status), [200, 200, 200, 429]);
    assert_eq!(answers.each_ref().map(|a| a.header("x-ratelimit-remaining").unwrap()), ["2", "1", "0", "0"]);
    assert_eq!(answers[3].header("x-ratelimit-limit"), Some("3"));
    assert!(answers[3].header("retry-after").is_some() && answers[3].header("x-ratelimit-reset").is_some());
    let text = "You've been rate limited for sending more than 3 requests in 1m0s.";
    assert_eq!(answers[3].json()["message"], text);
    let list = call(world.address(), "GET", "/api/v2/workspaces", &auth(&world.bob), None).await;
    assert_eq!(list.status, 200, "another route");
    assert_eq!(me(&world.admin).await.status, 200, "another user");
    let nobody = format!("AAAAAAAAAA-{}", "B".repeat(22));
    let counted = Some("3");
    for (token, statuses, limit) in [
        (&world.admin, [200, 200, 200, 200, 200], None),
        (&world.bob, [428, 428, 428, 429, 429], counted),
        (&nobody, [428, 428, 428, 429, 429], counted),
    ] {
        for status in statuses {
            let mut headers = auth(token);
            headers.push(("X-Coder-Bypass-Ratelimit".into(), "true".into()));
            let answer = call(world.address(), "GET", "/api/v2/deployment/ssh", &headers, None).await;
            assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (status, limit), "{token}");
        }
    }
    let healthy = async || call(world.address(), "GET", "/healthz", &[], None).await.status;
    assert_eq!([healthy().await, healthy().await, healthy().await, healthy().await], [200; 4]);
}

#[tokio::test]
async fn passwords_and_tokens_cannot_be_tried_without_end() {
    let world = World::with(|config| config.rate_limits = limits(4, 2)).await;
    let login = async || {
        let body = Some(r#"{"email":"bob@localhost","password":"x"}"#);
        call(world.address(), "POST", "/api/v2/users/login", &[], body).await.status
    };
    assert_eq!([login().await, login().await, login().await], [401, 401, 429]);
    let guess = async |n: u32| {
        let token = format!("AAAAAAAAAA-{n:022}");
        call(world.address(), "GET", "/api/v2/users/me", &auth(&token), None).await.status
    };
    assert_eq!([guess(0).await, guess(1).await, guess(2).await, guess(3).await, guess(4).await], [401, 401, 401, 401, 429]);
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_is_counted_for_itself() {
    let proxies = TrustedProxies { networks: vec!["127.0.0.0/8".parse().unwrap()], headers: vec!["X-Forwarded-For".into()] };
    let world = World::with(|config| {
        config.rate_limits = limits(4, 1);
        config.proxies = proxies;
    })
    .await;
    let login = async |from: &str| {
        let headers = [("X-Forwarded-For".to_owned(), from.to_owned())];
        call(world.address(), "POST", "/api/v2/users/login", &headers, Some("{}")).await.status
    };
    let answers = [login("192.0.2.1").await, login("192.0.2.1").await, login("192.0.2.2").await];
    assert_eq!(answers, [401, 429, 401]);
}

#[tokio::test]
async fn without_limits_nobody_is_counted() {
    let world = World::with(|config| config.rate_limits = None).await;
    let answer = world.get("/api/v2/users/me").await;
    assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, None));
}

#[tokio::test]
async fn metrics_count_requests_agents_users_and_relayed_packets() {
    let world = World::with(|config| config.metrics = Some(SocketAddr::from(([127, 0, 0, 1], 0)))).await;
    let address = world.running.metrics_address().unwrap();
    world.get("/api/v2/users/me").await;
    world.get("/api/v2/users/me").await;
    call(world.address(), "GET", "/api/v2/users/me", &[], None).await;
    let rpc = "/api/v2/workspaceagents/me/rpc?version=2.0";
    let (_agent, opened) = open(world.address(), "GET", rpc, &handshake(Some(&world.agent_token)), None).await;
    assert_eq!(opened.status, 101);
    let until_there = async {
        loop {
            let page = call(address, "GET", "/metrics", &[], None).await;
            assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
            if page.text().contains("coderd_agents_connected 1\n") {
                return page;
            }
            tokio::task::yield_now().await;
        }
    };
    let page = timeout(LIMIT, until_there).await.unwrap();
    let route = "method=\"GET\",path=\"/api/v2/users/{user}\"";
    for line in [
        format!("coderd_api_requests_processed_total{{{route},code=\"200\"}} 2"),
        format!("coderd_api_requests_processed_total{{{route},code=\"401\"}} 1"),
        "coderd_users 2".into(),
        "coderd_workspaces 1".into(),
        "coderd_coordinator_peers 0".into(),
        "coderd_relay_packets_total 0".into(),
        "coderd_relay_dropped_total{reason=\"receiver_unknown\"} 0".into(),
    ] {
        assert!(page.text().lines().any(|l| l == line), "{line} is not in\n{}", page.text());
    }
    // Every line is a comment or a name, labels and a number.
    let well_formed = |l: &str| l.starts_with("# ") || l.rsplit_once(' ').is_some_and(|(_, n)| n.parse::<u64>().is_ok());
    assert!(page.text().lines().all(well_formed), "{}", page.text());
    assert_eq!(call(address, "GET", "/", &[], None).await.status, 404);
    assert_eq!(call(address, "POST", "/metrics", &[], Some("")).await.status, 405);
}

#[tokio::test]
async fn in_browser_only_mode_no_client_may_coordinate_and_strangers_learn_nothing() {
    let world = World::with(|config| config.browser_only = true).await;
    let path = format!("/api/v2/workspaceagents/{}/coordinate?version=2.0", world.agent.id);
    let refused = call(world.address(), "GET", &path, &handshake(Some(&world.admin)), None).await;
    let message = "Non-browser connections are disabled for your deployment.";
    assert_eq!((refused.status, refused.json()["message"].as_str().unwrap()), (409, message));
    assert_eq!(call(world.address(), "GET", &path, &handshake(Some(&world.bob)), None).await.status, 404);
    let connection = format!("/api/v2/workspaceagents/{}/connection", world.agent.id);
    assert_eq!(world.get(&connection).await.status, 200);
}

#[tokio::test]
async fn a_server_that_is_no_relay_has_none_in_its_map_and_serves_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("relays.json");
    let map = r#"{"Regions":{"1":{"RegionID":1,"RegionCode":"eu","RegionName":"Europe","Nodes":[{"Name":"1a","RegionID":1,"HostName":"derp.example.com"}]}}}"#;
    std::fs::write(&file, map).unwrap();
    let source = Some(crate::server::RelaySource::File(file));
    let world = World::with(|config| {
        config.stun = StunAddress::LikeHttp;
        config.relays = RelayConfig { embedded: false, source, ..RelayConfig::default() };
    })
    .await;
    let info = world.get("/api/v2/workspaceagents/connection").await.json();
    assert_eq!(info["derp_map"]["Regions"].as_object().unwrap().keys().collect::<Vec<_>>(), ["1"]);
    assert_eq!(world.running.stun_address(), None);
    let upgrade = [("Connection".to_owned(), "Upgrade".to_owned()), ("Upgrade".to_owned(), "DERP".to_owned())];
    for (path, headers) in [("/derp", &upgrade[..]), ("/derp/latency-check", &[])] {
        assert_eq!(call(world.address(), "GET", path, headers, None).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn requests_under_other_hosts_go_to_the_access_url_where_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let access_url = Some("http://coder.example.com:8080".into());
    let running = serve(Config { access_url, redirect: Redirect::ToAccessUrl, ..config(folder.path()) }).await.unwrap();
    let answer = call(running.address(), "GET", "/api/v2/buildinfo?a=b", &[], None).await;
    let there = "http://coder.example.com:8080/api/v2/buildinfo?a=b";
    assert_eq!((answer.status, answer.header("location")), (307, Some(there)));
    for path in ["/healthz", "/derp/latency-check"] {
        assert_eq!(call(running.address(), "GET", path, &[], None).await.status, 200, "{path}");
    }
    running.shutdown().await;
}

#[tokio::test]
async fn a_proxy_that_ends_tls_gets_answers_and_not_its_own_url() {
    let proxies = TrustedProxies { networks: vec!["127.0.0.0/8".parse().unwrap()], headers: Vec::new() };
    for (proxies, trusted) in [(TrustedProxies::default(), false), (proxies, true)] {
        let folder = tempfile::tempdir().unwrap();
        let access_url = Some("https://coder.example.com".into());
        let redirect = Redirect::ToAccessUrl;
        let running = serve(Config { access_url, redirect, proxies, ..config(folder.path()) }).await.unwrap();
        let own = running.address().to_string();
        let ask = async |host: &str, more: &[(&str, &str)]| {
            let mut stream = TcpStream::connect(running.address()).await.unwrap();
            let lines: String = more.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head = format!("GET /api/v2/buildinfo HTTP/1.1\r\nHost: {host}\r\n{lines}Connection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
            answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
        };
        let (ours, proto) = ("Coder.example.com", "X-Forwarded-Proto");
        for (host, more, status) in [
            (ours, &[][..], 200),
            (ours, &[(proto, "https")], 200),
            (ours, &[(proto, "http")], if trusted { 307 } else { 200 }),
            (own.as_str(), &[(proto, "https"), ("X-Forwarded-Host", ours)], 200),
            (own.as_str(), &[(proto, "https")], 307),
            ("other.example.com", &[], 307),
        ] {
            assert_eq!(ask(host, more).await, status, "{host} {more:?} trusted: {trusted}");
        }
        running.shutdown().await;
    }
}

#[tokio::test]
async fn the_host_of_applications_is_told_with_the_access_urls_port() {
    let world = World::with(|config| {
        config.access_url = Some("http://127.0.0.1:3100".into());
        config.wildcard_host = Some("*.apps.example.com".into());
    })
    .await;
    assert_eq!(world.get("/api/v2/applications/host").await.json()["host"], "*.apps.example.com:3100");
    assert_eq!(World::new().await.get("/api/v2/applications/host").await.json()["host"], "");
}

/// What was logged by this thread.
#[derive(Debug, Clone, Default)]
struct Logged(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Logged {
    /// Takes what is logged until what is returned beside it is dropped.
    fn begin() -> (Self, impl Sized) {
        let logged = Self::default();
        let writer = logged.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        // The runtime of a test has this one thread.
        let guard = tracing::subscriber::set_default(subscriber);
        // As long as there is one subscriber, whichever thread first comes by a line decides for all of them whether anybody
        // wants it; with a second one all subscribers are asked.
        let second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
        (logged, (guard, second))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn what_an_agent_tells_of_a_session_is_cut_and_kept_on_one_line_of_the_log() {
    let (logged, _guards) = Logged::begin();
    let world = World::new().await;
    let mut agent = sockets::agent(&world).await;
    let long = |text: &str| format!("\u{1b}[2J\n{}", text.repeat(10_000));
    for action in [ConnectionAction::Connect, ConnectionAction::Disconnect] {
        let connection = Connection {
            action: action.into(),
            app_name: long("a"),
            ip: long("1"),
            reason: Some(long("ä")),
            ..Connection::default()
        };
        agent.call(REPORT_CONNECTION, &ReportConnectionRequest { connection: Some(connection) }).await.unwrap();
    }
    let text = logged.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("a session ")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    let longest = |line: &str, c: char| line.split(|other| other != c).map(|run| run.chars().count()).max();
    for line in &lines {
        // Five characters come before them.
        assert_eq!([longest(line, 'a'), longest(line, '1')], [Some(59), Some(59)], "{line}");
        assert!(!line.contains(['\u{1b}', '\n']) && !line.contains("\\n") && !line.contains("u{1b}"), "{line}");
    }
    assert_eq!(longest(lines[1], 'ä'), Some(251));
}

#[tokio::test]
async fn each_call_that_matters_leaves_one_line_without_secrets() {
    let (logged, _guards) = Logged::begin();
    let world = World::new().await;
    // The second one has typed the password in the place of the address.
    for email in ["bob@localhost", "hunter2-hunter2"] {
        let login = format!(r#"{{"email":"{email}","password":"hunter2-hunter2"}}"#);
        call(world.address(), "POST", "/api/v2/users/login", &[], Some(&login)).await;
    }
    let made = world.post("/api/v2/users/me/keys/tokens", r#"{"token_name":"ci"}"#).await.json();
    let token = made["key"].as_str().unwrap().to_owned();
    let (id, secret) = token.split_once('-').unwrap();
    world.get(&format!("/api/v2/users/me?coder_session_token={token}")).await;
    world.post(&format!("/api/v2/workspaces/{}/builds", world.workspace.id), r#"{"transition":"stop"}"#).await;
    let coordinate = format!("/api/v2/workspaceagents/{}/coordinate?version=2.0&coder_session_token={token}", world.agent.id);
    call(world.address(), "GET", &coordinate, &handshake(Some(&world.bob)), None).await;
    world.post(&format!("/api/v2/workspaces/{}/usage", world.workspace.id), "").await;

    let text = logged.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("tailnet::audit")).collect();
    let count = |parts: &[&str]| lines.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count();
    let ip = "ip=\"127.0.0.1\"";
    let me = format!("who=\"user admin by key {}\"", world.admin.split('-').next().unwrap());
    for who in ["who=\"nobody as user bob\"", "who=\"nobody as an unknown address\""] {
        assert_eq!(count(&[who, "what=POST /api/v2/users/login", "outcome=\"refused\"", ip]), 1, "{text}");
    }
    assert_eq!(
        count(&[&me, "what=POST /api/v2/users/{user}/keys/tokens", &format!("made=\"key {id}\""), "outcome=\"done\"", ip]),
        1,
        "{text}"
    );
    let which = format!("which=\"/api/v2/workspaces/{}/builds\"", world.workspace.id);
    assert_eq!(count(&[&me, &which, "status=201", ip]), 1, "{text}");
    assert_eq!(count(&["/coordinate", ip]), 1, "{text}");
    assert_eq!(count(&["made=\"user bob\""]) + count(&["made=\"workspace dev\""]), 2, "{text}");
    assert_eq!(lines.len(), 7, "reading and usage leave none: {lines:#?}");
    let parts = [&world.admin, &world.bob].map(|token| token.split('-').nth(1).unwrap());
    for secret in [secret, "hunter2", &world.agent_token, parts[0], parts[1]] {
        assert!(!text.contains(secret), "{secret} is in\n{text}");
    }
}
