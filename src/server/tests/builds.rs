//! Starting, stopping and deleting workspaces with commands.

use super::{
    sockets::{agent, client, http, relay_map_of},
    *,
};
use crate::{
    driver::websocket::Message,
    server::{
        Hooks, builds,
        store::{Build, BuildStatus, NewBuild, Transition},
    },
    wire::coord::tailnet::PeerUpdateKind,
};

/// A world whose first workspace was started by the command, and its newest build when that is done.
async fn world(start: Option<&str>, stop: Option<&str>) -> World {
    let hooks = Hooks { start: start.map(str::to_owned), stop: stop.map(str::to_owned), ..Hooks::default() };
    World::with(|config| config.hooks = hooks).await
}

impl World {
    /// The newest build once it is done.
    async fn built(&self) -> Build {
        let mut changes = self.running.app.changes(self.workspace.id);
        let done = async {
            loop {
                let build = self.running.app.store().latest_build(self.workspace.id).await.unwrap();
                if build.status != BuildStatus::Running {
                    return build;
                }
                changes.next().await;
            }
        };
        timeout(LIMIT, done).await.expect("the build did not end")
    }

    async fn build(&self, transition: &str) -> Answer {
        let body = format!(r#"{{"transition":"{transition}"}}"#);
        self.post(&format!("/api/v2/workspaces/{}/builds", self.workspace.id), &body).await
    }

    async fn log(&self, build: &Build) -> Vec<(String, String)> {
        let lines = self.get(&format!("/api/v2/workspacebuilds/{}/logs", build.id)).await.json();
        let line = |line: &Value| (line["log_level"].as_str().unwrap().into(), line["output"].as_str().unwrap().into());
        lines.as_array().unwrap().iter().map(line).collect()
    }
}

#[tokio::test]
async fn a_start_command_knows_its_workspace_and_its_output_is_the_log() {
    let command = "echo $CODER_WORKSPACE_OWNER/$CODER_WORKSPACE_NAME $CODER_WORKSPACE_TRANSITION $CODER_AGENT_URL; \
                   echo token $CODER_AGENT_TOKEN >&2; echo $CODER_WORKSPACE_ID $CODER_WORKSPACE_BUILD_ID";
    let world = world(Some(command), None).await;
    let build = world.built().await;
    assert_eq!((build.status, build.number), (BuildStatus::Succeeded, 2));
    let log = world.log(&build).await;
    let has = |level: &str, text: String| log.iter().any(|line| *line == (level.to_owned(), text.clone()));
    assert!(has("info", format!("admin/dev start http://{}", world.address())), "{log:?}");
    assert!(has("info", format!("{} {}", world.workspace.id, build.id)), "{log:?}");
    assert!(has("error", "token (token)".into()), "the token is no part of the log: {log:?}");
    // The token that was shown when the workspace was made is the one that the command got.
    let path = "/api/v2/workspaceagents/me/rpc?version=2.0";
    assert_eq!(open(world.address(), "GET", path, &handshake(Some(&world.agent_token)), None).await.1.status, 101);
    let shown = world.get(&format!("/api/v2/workspaces/{}", world.workspace.id)).await.json();
    assert_eq!(
        (&shown["latest_build"]["status"], &shown["latest_build"]["job"]["status"]),
        (&"running".into(), &"succeeded".into())
    );
}

#[tokio::test]
async fn each_start_has_a_token_of_its_own_which_the_agent_may_use() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let command = format!("echo $CODER_AGENT_TOKEN > '{}'", file.display());
    let world = world(Some(&command), None).await;
    world.built().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), world.agent_token);
    assert_eq!(world.build("start").await.status, 201);
    world.built().await;
    let token = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    let path = "/api/v2/workspaceagents/me/rpc?version=2.0";
    for (token, status) in [(&token, 101), (&world.agent_token, 401)] {
        assert_eq!(call(world.address(), "GET", path, &handshake(Some(token)), None).await.status, status);
    }
}

#[tokio::test]
async fn a_command_that_fails_fails_its_build_with_its_status() {
    let world = world(None, Some("echo cannot; exit 7")).await;
    assert_eq!(world.build("delete").await.status, 201);
    let build = world.built().await;
    assert_eq!((build.status, build.error.as_str()), (BuildStatus::Failed, "the command failed: exit status: 7"));
    let log = world.log(&build).await;
    assert!(log.contains(&("info".into(), "cannot".into())) && log.contains(&("error".into(), build.error.clone())), "{log:?}");
    let shown = world.get(&format!("/api/v2/workspacebuilds/{}", build.id)).await.json();
    assert_eq!((&shown["status"], &shown["job"]["error"]), (&Value::from("failed"), &Value::from(build.error)));
    assert_eq!(world.get("/api/v2/users/me/workspace/dev").await.status, 200, "what was not deleted is still there");
}

#[tokio::test]
async fn one_build_at_a_time_and_a_deleted_workspace_is_gone_when_its_command_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("go");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let world = world(None, Some(&format!("read line < '{}'; echo got $line", fifo.display()))).await;
    let answer = world.build("delete").await;
    assert_eq!((answer.status, &answer.json()["status"]), (201, &Value::from("deleting")));
    assert_eq!(answer.json()["job"]["completed_at"], Value::Null);
    let busy = world.build("start").await;
    assert_eq!((busy.status, &busy.json()["message"]), (409, &Value::from("A workspace build is already active.")));
    assert_eq!(world.get("/api/v2/users/me/workspace/dev").await.status, 200);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v2/workspacebuilds/{id}/logs?follow&after=0");
    let mut follower = http(&world, Some(&world.admin)).websocket(&path, None).await.unwrap();
    tokio::task::spawn_blocking(move || std::fs::write(fifo, "this\n").unwrap()).await.unwrap();
    let mut outputs = Vec::new();
    loop {
        match timeout(LIMIT, follower.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => {
                let line: Value = serde_json::from_slice(&text).unwrap();
                assert_eq!(line["stage"], "Deleting workspace");
                outputs.push(line["output"].as_str().unwrap().to_owned());
            }
            Message::Close { code, .. } => break assert_eq!(code, 1000),
            _ => {}
        }
    }
    assert_eq!(outputs, ["", "got this"]);
    world.built().await;
    assert_eq!(world.get("/api/v2/users/me/workspace/dev").await.status, 404);
}

#[tokio::test]
async fn a_build_that_hangs_is_canceled_with_its_command_and_its_log_stays() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("never");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let world = world(None, Some(&format!("echo begun; read line < '{}'", fifo.display()))).await;
    let id = world.build("stop").await.json()["id"].as_str().unwrap().to_owned();
    let mut changes = world.running.app.changes(id.parse().unwrap());
    let begun = async {
        while !world
            .log(&world.running.app.store().latest_build(world.workspace.id).await.unwrap())
            .await
            .iter()
            .any(|l| l.1 == "begun")
        {
            changes.next().await;
        }
    };
    timeout(LIMIT, begun).await.expect("the command did not begin");
    let cancel = async || {
        let path = format!("/api/v2/workspacebuilds/{id}/cancel");
        call(world.address(), "PATCH", &path, &auth(&world.admin), None).await
    };
    assert_eq!(cancel().await.status, 200);
    let build = world.built().await;
    assert_eq!((build.status, build.error.as_str()), (BuildStatus::Canceled, "the build was canceled and its command ended"));
    let log = world.log(&build).await;
    assert!(log.contains(&("info".into(), "begun".into())) && log.contains(&("error".into(), build.error)), "{log:?}");
    let shown = world.get(&format!("/api/v2/workspacebuilds/{id}")).await.json();
    assert_eq!((&shown["status"], &shown["job"]["status"]), (&"canceled".into(), &"canceled".into()));
    assert!(shown["job"]["canceled_at"].is_string(), "{shown}");
    assert_eq!(cancel().await.status, 400, "it has ended already");
    // The next one is free to begin.
    assert_eq!(world.build("start").await.status, 201);
}

#[tokio::test]
async fn an_orphaned_workspace_is_deleted_whatever_its_command_would_do() {
    let world = world(None, Some("exit 7")).await;
    let builds = format!("/api/v2/workspaces/{}/builds", world.workspace.id);
    let refused = world.post(&builds, r#"{"transition":"stop","orphan":true}"#).await;
    assert_eq!((refused.status, &refused.json()["validations"][0]["field"]), (400, &Value::from("orphan")));
    let done = world.post(&builds, r#"{"transition":"delete","orphan":true}"#).await;
    assert_eq!((done.status, &done.json()["status"]), (201, &Value::from("deleted")));
    assert_eq!(world.get("/api/v2/users/me/workspace/dev").await.status, 404);
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_no_build_that_never_ends() {
    let world = world(None, Some("echo done")).await;
    let (app, workspace) = (&world.running.app, world.workspace.id);
    let mut changes = app.changes(workspace);
    let new = NewBuild { workspace, transition: Transition::Stop, reason: "cli", initiator: world.user.id };
    let mut beginning = Box::pin(builds::begin(app, &world.workspace, new, builds::Work::Usual));
    assert!(futures::poll!(beginning.as_mut()).is_pending());
    drop(beginning);
    let done = async {
        loop {
            let build = app.store().latest_build(workspace).await.unwrap();
            if build.number == 2 && build.status != BuildStatus::Running {
                return build;
            }
            changes.next().await;
        }
    };
    let build = timeout(LIMIT, done).await.expect("the build did not end");
    assert_eq!(build.status, BuildStatus::Succeeded);
    assert!(world.log(&build).await.contains(&("info".into(), "done".into())));
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_ended_with_all_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let command = format!("sleep 1000 & echo $! > '{}'; wait", file.display());
    let limit = Duration::from_secs(1);
    let world = World::with(|config| config.hooks = Hooks { start: None, stop: Some(command), limit }).await;
    world.build("stop").await;
    let build = world.built().await;
    assert_eq!(build.error, "the command took longer than 1 s and was ended");
    let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let gone = async {
        // Whoever inherits it has to wait for it.
        while rustix::process::test_kill_process(pid).is_ok() && !is_zombie(pid) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, gone).await.expect("what the command started is still there");
}

fn is_zombie(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn what_a_command_leaves_in_the_background_holds_no_build_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let world = world(None, Some(&format!("sleep 1000 & echo $! > '{}'; echo done", file.display()))).await;
    world.build("stop").await;
    let build = world.built().await;
    let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    assert_eq!(build.status, BuildStatus::Succeeded);
    assert!(world.log(&build).await.contains(&("info".into(), "done".into())));
}

#[tokio::test]
async fn a_stop_ends_sessions_and_watchers_see_each_step() {
    let world = world(None, Some("true")).await;
    let watch = format!("/api/v2/workspaces/{}/watch-ws", world.workspace.id);
    let mut watcher = http(&world, Some(&world.admin)).websocket(&watch, None).await.unwrap();
    let mut agent = agent(&world).await;
    agent.announce_agent(&world).await;
    let mut client = client(&world, "").await;
    client.flush().await;
    client.update(PeerUpdateKind::Node).await;
    world.build("stop").await;
    let lost = client.update(PeerUpdateKind::Lost).await;
    assert_eq!(lost.id, world.agent.id.as_bytes());
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "stopped") {
        let Message::Text(text) = timeout(LIMIT, watcher.next()).await.unwrap().unwrap().unwrap() else { continue };
        let event: Value = serde_json::from_slice(&text).unwrap();
        seen.extend(event["data"]["latest_build"]["status"].as_str().map(str::to_owned));
        seen.dedup();
    }
    assert_eq!(seen.first().unwrap(), "running");
    assert!(seen[1..seen.len() - 1].iter().all(|status| status == "stopping"), "{seen:?}");
}

#[tokio::test]
async fn an_agent_with_a_url_of_its_own_is_told_of_the_relay_there() {
    let world = World::new().await;
    let body = r#"{"name":"inner","agent_url":"http://coder.internal:8080/"}"#;
    let made = world.post("/api/v2/users/me/workspaces", body).await;
    assert_eq!((made.status, &made.json()["agent_url"]), (201, &Value::from("http://coder.internal:8080")));
    let token = made.json()["agent_token"].as_str().unwrap().to_owned();
    for (token, host, port) in [(&token, "coder.internal", 8080), (&world.agent_token, "127.0.0.1", world.address().port())] {
        let map = relay_map_of(&world, token).await;
        let node = &map.regions[&999].nodes[0];
        assert_eq!((node.host_name.as_str(), node.derp_port), (host, i32::from(port)));
    }
    for bad in ["coder.internal", "ftp://x", "http://u:p@x", "http://x/path"] {
        let answer = world.post("/api/v2/users/me/workspaces", &format!(r#"{{"name":"x","agent_url":"{bad}"}}"#)).await;
        assert_eq!((answer.status, &answer.json()["validations"][0]["field"]), (400, &Value::from("agent_url")), "{bad}");
    }
    assert_eq!(world.get("/api/v2/users/me/workspace/x").await.status, 404);
}
