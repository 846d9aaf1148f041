//! Go clients and agents with our server.

use super::{ROW, UNKNOWN_CALL};
use crate::{
    harness::{LIMIT, Process, run_within, text},
    peers::{Context, Deployment, Front, Lines, Need, Program, Side, runtime, socket_address},
    table::{Cell, Outcome, step},
};
use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

const WORKSPACE: &str = "one";

pub fn cells() -> Vec<Cell> {
    let client = [Need::Program(Program::CoordClient)];
    let cell = |name: &str, run: fn(&Context) -> Outcome| Cell::new(ROW, format!("Go client, our server, {name}"), &client, run);
    let mut cells = vec![
        cell("resume token", resume_token),
        cell("relay map of another start", relay_map),
        cell("relay map pushed live", relay_map_pushed),
        cell("unknown call", unknown_call),
        cell("version refused", version_refused),
    ];
    for (cli, agent) in [(Side::Go, Side::Go), (Side::Ours, Side::Go), (Side::Go, Side::Ours)] {
        let name = format!("{} CLI and {} agent, our server killed under a live tunnel, then back", cli.name(), agent.name());
        let run = move |context: &Context| killed_and_back(context, cli, agent);
        cells.push(Cell::new(ROW, name, &[Need::Program(Program::Coder)], run).within(Duration::from_secs(240)));
    }
    cells
}

/// Go's client before our server.
struct World {
    deployment: Deployment,
    client: Lines,
}

impl World {
    fn start(context: &Context) -> Self {
        let deployment = Deployment::ours(context, &[WORKSPACE], &[]);
        let client = client(context, &deployment.token);
        Self { deployment, client }
    }

    /// Dials as a client, with more of a query.
    fn dial(&mut self, query: &str) {
        let agent = self.deployment.workspace(WORKSPACE).id;
        dial(&mut self.client, &self.deployment.url, &format!("/api/v2/workspaceagents/{agent}/coordinate{query}"));
    }

    /// Asks for a resume token; gives it and the peer that it is for.
    fn token(&mut self) -> anyhow::Result<(String, String)> {
        self.client.ask(&json!({ "op": "refresh" }));
        let answer = self.client.event("token");
        let token = answer["token"].as_str().context("no token")?.to_owned();
        let refresh = answer["refresh_in"].as_f64().unwrap_or_default();
        let expiry = answer["expires_in"].as_f64().unwrap_or_default();
        ensure!(refresh > 60.0 && expiry > refresh, "refresh in {refresh} s, expiry in {expiry} s");
        let claims = token.split('.').nth(1).context("no JSON web token")?;
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
        let peer = claims["sub"].as_str().context("no peer in the token")?.to_owned();
        Ok((token, peer))
    }
}

fn client(context: &Context, token: &str) -> Lines {
    let mut command = context.program(Program::CoordClient);
    command.args(["-token", token]);
    Lines::start("Go's client", command)
}

fn dial(client: &mut Lines, server: &str, path: &str) {
    let url = format!("{}{path}", server.replace("http://", "ws://"));
    client.ask(&json!({ "op": "dial", "url": url }));
}

fn resume_token(context: &Context) -> Outcome {
    let mut world = World::start(context);
    let mut first = None;
    for (again, resumed) in [(false, false), (true, true), (false, false)] {
        let query = match &first {
            Some((token, _)) if again => format!("?version=2.0&resume_token={token}"),
            _ => "?version=2.0".to_owned(),
        };
        world.dial(&query);
        world.client.event("dialed");
        let (token, peer) = world.token()?;
        if let Some((_, first)) = &first {
            ensure!((peer == *first) == resumed, "{query} gives peer {peer}, first it was {first}");
        }
        world.client.ask(&json!({ "op": "close" }));
        first.get_or_insert((token, peer));
    }
    world.dial("?version=2.0&resume_token=abc");
    let refused = world.client.event("refused");
    let named = refused["validations"].as_array().is_some_and(|v| v.iter().any(|v| v["field"] == "resume_token"));
    ensure!(refused["status"] == 401 && named, "Go's client goes on without the token only when it is named: {refused}");
    Ok(String::new())
}

/// The map is streamed, and again on the connection to a server that was started with another one.
fn relay_map(context: &Context) -> Outcome {
    let mut world = World::start(context);
    let stun = |map: &Value| map["map"]["Regions"]["999"]["Nodes"][0]["STUNPort"].clone();
    let mut ports = Vec::new();
    for port in [None, Some(crate::peers::free_port())] {
        if let Some(port) = port {
            world.deployment.kill_server();
            world.client.event("maps_ended");
            world.deployment.revive_our_server(&["--stun-address", &format!("127.0.0.1:{port}")]);
        }
        world.dial("?version=2.0");
        world.client.event("dialed");
        world.client.ask(&json!({ "op": "maps" }));
        let map = world.client.event("map");
        let found = stun(&map).as_u64().with_context(|| format!("no STUN port in {map}"))?;
        let want = port.unwrap_or(socket_address(&world.deployment.url).port());
        ensure!(found == u64::from(want), "STUN port {found}, not {want}: {map}");
        ports.push(found);
    }
    Ok(format!("STUN ports {ports:?}"))
}

/// A running server is told that its file of relays has changed; the streams that are open say so.
fn relay_map_pushed(context: &Context) -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    let regions = |numbers: &[u16]| {
        let region = |number: &u16| {
            let node = json!({ "Name": format!("{number}a"), "RegionID": number, "HostName": "192.0.2.1" });
            (number.to_string(), json!({ "RegionID": number, "RegionCode": "far", "RegionName": "Far away", "Nodes": [node] }))
        };
        json!({ "Regions": numbers.iter().map(region).collect::<serde_json::Map<_, _>>() }).to_string()
    };
    std::fs::write(file.path(), regions(&[1]))?;
    let path = file.path().to_str().context("a path of text")?;
    let mut deployment = Deployment::ours(context, &[WORKSPACE], &["--derp-config-path", path]);
    let agent_token = deployment.workspace(WORKSPACE).token.clone();
    let mut ends = [client(context, &deployment.token), client(context, &agent_token)];
    let coordinate = format!("/api/v2/workspaceagents/{}/coordinate?version=2.0", deployment.workspace(WORKSPACE).id);
    for (end, path) in ends.iter_mut().zip([coordinate.as_str(), "/api/v2/workspaceagents/me/rpc?version=2.0"]) {
        dial(end, &deployment.url, path);
        end.event("dialed");
        end.ask(&json!({ "op": "maps" }));
    }
    let mut counts = Vec::new();
    for numbers in [&[1][..], &[1, 2, 3], &[]] {
        if numbers != [1] {
            std::fs::write(file.path(), regions(numbers))?;
            deployment.process().signal(rustix::process::Signal::USR1);
        }
        for end in &mut ends {
            let map = end.event("map");
            let found = map["map"]["Regions"].as_object().with_context(|| format!("no regions in {map}"))?;
            let known = numbers.iter().chain([&999]).all(|number| found.contains_key(&number.to_string()));
            ensure!(known && found.len() == numbers.len() + 1, "regions {:?}, not {numbers:?} and 999", found.keys());
        }
        counts.push((numbers.len() + 1).to_string());
    }
    Ok(format!("{} regions, to a client and an agent", counts.join(", then ")))
}

fn unknown_call(context: &Context) -> Outcome {
    let mut world = World::start(context);
    world.dial("?version=2.0");
    world.client.event("dialed");
    world.client.ask(&json!({ "op": "unknown", "path": UNKNOWN_CALL }));
    let answer = world.client.event("unknown");
    ensure!(answer["unimplemented"] == true, "{answer}");
    world.token().context("the connection does not go on")?;
    Ok(answer["error"].to_string())
}

fn version_refused(context: &Context) -> Outcome {
    let mut world = World::start(context);
    let agent_token = world.deployment.workspace(WORKSPACE).token.clone();
    let url = world.deployment.url.clone();
    let mut agent = client(context, &agent_token);
    let mut reasons = Vec::new();
    for (query, for_agents) in [("?version=9.9", true), ("?version=1.0", true), ("?version=x", true), ("", false)] {
        world.dial(query);
        let mut refusals = vec![world.client.event("refused")];
        if for_agents {
            dial(&mut agent, &url, &format!("/api/v2/workspaceagents/me/rpc{query}"));
            refusals.push(agent.event("refused"));
        }
        for refused in refusals {
            let validations = refused["validations"].as_array().context("no validations")?;
            let named = validations.iter().find(|v| v["field"] == "version").with_context(|| format!("{query}: {refused}"))?;
            // Go's client adds its help for this message.
            let message = refused["message"] == "Unknown or unsupported API version";
            ensure!(refused["status"] == 400 && message, "{query}: {refused}");
            reasons.push(named["detail"].as_str().unwrap_or_default().to_owned());
        }
    }
    // Go agents of every age come with a minor version of their own.
    for version in ["2.0", "2.6", "2.99"] {
        dial(&mut agent, &url, &format!("/api/v2/workspaceagents/me/rpc?version={version}"));
        agent.event("dialed");
        agent.ask(&json!({ "op": "close" }));
    }
    reasons.sort();
    reasons.dedup();
    Ok(reasons.join("; "))
}

/// A session on a direct path outlives its server, and the server that comes back serves both ends again.
fn killed_and_back(context: &Context, cli: Side, agent: Side) -> Outcome {
    let runtime = runtime();
    let mut deployment = Deployment::ours(context, &[WORKSPACE], &[]);
    let server: SocketAddr = socket_address(&deployment.url);
    let front = runtime.block_on(Front::open(server, false));
    let url = format!("http://127.0.0.1:{}", front.port);
    let mut agent = deployment.agent(agent, WORKSPACE);
    let mut command = deployment.cli(cli, &["ssh", WORKSPACE, "--", "while read -r line; do echo \"<$line>\"; done"]);
    command.env("CODER_URL", &url);
    let mut session = Process::start("the session", command);
    let mut lines = 0;
    let mut line = |session: &mut Process| {
        lines += 1;
        // Longer than what a control socket says meanwhile.
        let text = format!("{lines}{}", "x".repeat(1_000));
        session.type_in(format!("{text}\n").as_bytes());
        session.wait_for(&format!("<{text}>"));
        Ok(())
    };
    let end = Instant::now() + LIMIT;
    let mut direct = 0;
    while direct < 3 {
        ensure!(Instant::now() < end, "the session stays on the relay");
        let before = front.down();
        step("echo", || line(&mut session))?;
        direct = if front.down() - before < 500 { direct + 1 } else { 0 };
    }
    deployment.kill_server();
    for _ in 0..3 {
        step("without a server", || line(&mut session))?;
    }
    deployment.revive_our_server(&[]);
    let begin = Instant::now();
    step("after the server's return", || line(&mut session))?;
    let out = run_within(deployment.cli(cli, &["ssh", WORKSPACE, "--", "echo again"]), b"", LIMIT);
    if text(&out.stdout).trim_end() != "again" {
        let agent = agent.drain();
        bail!(
            "no new session: {} {}; the agent said {:?}",
            out.status,
            text(&out.stderr),
            &agent[agent.len().saturating_sub(5)..]
        );
    }
    step("the old session beside the new one", || line(&mut session))?;
    Ok(format!("a new session {:.1} s after the server's return", begin.elapsed().as_secs_f64()))
}
