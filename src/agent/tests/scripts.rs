//! The scripts of a workspace, from its manifest to what the server hears of them.

use super::*;
use crate::wire::coord::agent::{
    BATCH_CREATE_LOGS, BATCH_UPDATE_METADATA, BatchCreateLogsRequest, BatchUpdateMetadataRequest, Metadata, MetadataDescription,
    SCRIPT_COMPLETED, Script, ScriptCompletedRequest, TimingStage, TimingStatus,
};

fn script(number: u128, text: &str) -> Script {
    let id = Uuid::from_u128(number).as_bytes().to_vec();
    Script { id: id.clone(), log_source_id: id, script: text.into(), run_on_start: true, ..Script::default() }
}

fn with(scripts: Vec<Script>) -> Vec<Manifest> {
    vec![Manifest { scripts, ..manifest() }]
}

impl Conn {
    async fn completed(&mut self) -> (TimingStage, TimingStatus, i32) {
        let timing = self.call::<ScriptCompletedRequest>(SCRIPT_COMPLETED).await.timing.unwrap();
        (timing.stage(), timing.status(), timing.exit_code)
    }

    /// The lines of the next call.
    async fn lines(&mut self) -> Vec<String> {
        let batch = self.call::<BatchCreateLogsRequest>(BATCH_CREATE_LOGS).await;
        batch.logs.into_iter().map(|log| log.output).collect()
    }
}

#[tokio::test]
async fn the_agent_serves_while_its_start_scripts_run_and_is_ready_behind_them() {
    let server = Server::new().await;
    let go = server.folder.path().join("go");
    let text = format!("echo begun; while ! test -e '{}'; do sleep 0.02; done; echo over", go.display());
    let _agent = server.agent();
    let mut conn = server.accept(with(vec![script(1, &text), script(2, "exit 0")])).await;
    assert_eq!(conn.state().await, LifecycleState::Starting);
    conn.announced_key().await;
    assert_eq!(conn.lines().await, ["begun"], "the log waits for no end");
    let told = |seen: &Seen| matches!(seen, Seen::Call(path, _) if path == UPDATE_LIFECYCLE);
    assert!(!conn.passed.iter().any(told), "ready before its scripts have ended");
    std::fs::write(&go, "").unwrap();
    assert_eq!(conn.state().await, LifecycleState::Ready);
    assert_eq!(conn.lines().await, ["over"]);
    for _ in 0..2 {
        assert_eq!(conn.completed().await, (TimingStage::Start, TimingStatus::Ok, 0));
    }
}

#[tokio::test]
async fn a_start_script_that_fails_or_takes_too_long_is_a_state_of_the_agent() {
    let limit = Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 });
    for (failing, state, status) in [
        (script(1, "exit 3"), LifecycleState::StartError, TimingStatus::ExitFailure),
        (Script { timeout: limit, ..script(1, "sleep 1000") }, LifecycleState::StartTimeout, TimingStatus::TimedOut),
    ] {
        let server = Server::new().await;
        let _agent = server.agent();
        let mut conn = server.accept(with(vec![failing])).await;
        assert_eq!(conn.state().await, LifecycleState::Starting);
        assert_eq!(conn.state().await, state);
        assert_eq!(conn.completed().await.1, status);
        conn.announced_key().await;
    }
}

#[tokio::test]
async fn what_happens_while_the_server_is_gone_is_told_once_it_is_back() {
    let server = Server::new().await;
    let go = server.folder.path().join("go");
    let text = format!("while ! test -e '{}'; do sleep 0.02; done; echo over; exit 5", go.display());
    let _agent = server.agent();
    let mut first = server.accept(with(vec![script(1, &text)])).await;
    assert_eq!(first.state().await, LifecycleState::Starting);
    first.announced_key().await;
    first.task.abort();
    std::fs::write(&go, "").unwrap();
    let mut second = server.accept(with(vec![script(1, "echo again")])).await;
    // A state whose confirmation was lost with the connection is told again.
    let told = match second.state().await {
        LifecycleState::Starting => second.state().await,
        other => other,
    };
    assert_eq!(told, LifecycleState::StartError);
    assert_eq!(second.lines().await, ["over"]);
    assert_eq!(second.completed().await, (TimingStage::Start, TimingStatus::ExitFailure, 5));
}

#[tokio::test]
async fn facts_about_the_workspace_are_found_out_and_reported_together() {
    let fact = |key: &str, script: &str, nanos| MetadataDescription {
        key: key.into(),
        script: script.into(),
        interval: Some(prost_types::Duration { seconds: 0, nanos }),
        ..MetadataDescription::default()
    };
    let metadata = vec![fact("once", "echo 1", 0), fact("again", "echo x >> count; wc -l < count", 1), fact("bad", "exit 9", 0)];
    let server = Server::new().await;
    let _agent = server.agent();
    let directory = server.folder.path().to_str().unwrap().to_owned();
    let mut conn = server.accept(vec![Manifest { metadata, directory, ..manifest() }]).await;
    let mut seen = std::collections::BTreeMap::new();
    let mut last = 0;
    while last < 3 {
        let batch: BatchUpdateMetadataRequest = conn.call(BATCH_UPDATE_METADATA).await;
        for Metadata { key, result } in batch.metadata {
            let result = result.unwrap();
            assert!(result.collected_at.is_some());
            if key == "again" {
                let count = result.value.trim().parse::<u32>().unwrap();
                assert!(count > last, "{count} behind {last}");
                last = count;
            } else {
                assert!(seen.insert(key, (result.value, result.error)).is_none(), "found out twice");
            }
        }
    }
    assert_eq!(seen["once"], ("1".to_owned(), String::new()));
    assert!(seen["bad"].0.is_empty() && seen["bad"].1.contains('9'), "{seen:?}");
}

#[tokio::test]
async fn stop_scripts_run_behind_the_sessions_and_their_end_is_the_agents_last_state() {
    for (code, last) in [(0, LifecycleState::Off), (4, LifecycleState::ShutdownError)] {
        let server = Server::new().await;
        let (stop, running) = server.agent();
        let text = format!("echo bye; exit {code}");
        let stopping = Script { run_on_start: false, run_on_stop: true, ..script(1, &text) };
        let mut conn = server.accept(with(vec![stopping, script(2, "exec sleep 1000")])).await;
        assert_eq!(conn.state().await, LifecycleState::Starting);
        conn.announced_key().await;
        stop.send(()).unwrap();
        assert_eq!(conn.state().await, LifecycleState::ShuttingDown, "the start that still ran has no state");
        assert_eq!(conn.state().await, last);
        assert_eq!(conn.lines().await, ["bye"]);
        assert_eq!(conn.completed().await.0, TimingStage::Start, "it was ended");
        assert_eq!(
            conn.completed().await,
            (TimingStage::Stop, if code == 0 { TimingStatus::Ok } else { TimingStatus::ExitFailure }, code)
        );
        timeout(PATIENCE, running).await.expect("the agent does not end").unwrap();
    }
}
