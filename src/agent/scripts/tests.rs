//! Scripts as real processes, and what the server is told of them.

#[cfg(target_os = "linux")]
use super::super::tests::held::{HOLDS, HeldFile};
use super::{super::calls::fake::Fake, *};
use crate::{
    proto::coord::CallError,
    wire::coord::agent::{BATCH_CREATE_LOGS, BatchCreateLogsRequest, SCRIPT_COMPLETED},
};
use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};
use tempfile::TempDir;
use tokio::time::Instant;

fn script(number: u128, text: &str) -> Script {
    let id = Uuid::from_u128(number);
    let (name, text) = (format!("script {number}"), text.to_owned());
    Script { id: Some(id), source: id, name, log_path: String::new(), text, on_start: true, on_stop: false, limit: None }
}

#[tokio::test]
async fn a_short_command_gives_its_output_or_says_why_not() {
    let world = World::new(Vec::new());
    let output = async |text: &str, limit| world.scripts.output(text, Duration::from_millis(limit), 10, &world.profile).await;
    assert_eq!(output("echo $FROM_TEMPLATE; echo no >&2", 60_000).await, Ok("yes".to_owned()));
    assert_eq!(output("yes | head -c 1000000", 60_000).await.unwrap().len(), 9, "ten bytes without the last line's end");
    assert!(output("exit 3", 60_000).await.unwrap_err().contains('3'));
    let mark = world.folder.path().join("mark");
    let slow = format!("echo $$ > '{}'; sleep 1000", mark.display());
    assert_eq!(output(&slow, 300).await, Err("did not end within 300ms".to_owned()));
    let process = Path::new("/proc").join(fs::read_to_string(&mark).unwrap().trim()).join("exe");
    timeout(Duration::from_secs(20), async {
        while process.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it lives");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn what_cannot_be_started_yet_stops_nothing_else_and_ends_at_its_limit_and_at_the_stop() {
    let held = HeldFile::copy_of("/bin/sh");
    let text = format!("#!{}\necho late", held.path().display());
    let world = World::new(vec![
        Script { limit: Some(Duration::from_millis(200)), ..script(1, &text) },
        Script { on_start: false, on_stop: true, ..script(2, &text) },
    ]);
    let begun = Instant::now();
    let output = async |text: &str| world.scripts.output(text, Duration::from_secs(60), 10, &world.profile).await;
    let mut late = std::pin::pin!(output(&text));
    tokio::select! {
        biased;
        _ = &mut late => panic!("it was started"),
        quick = output("echo quick") => assert_eq!(quick, Ok("quick".to_owned())),
    }
    assert_eq!(world.run(Stage::Start).await, Outcome::TimedOut);
    let stop = CancellationToken::new();
    let (outcome, ()) = tokio::join!(world.scripts.run(Stage::Stop, &world.profile, &stop), async { stop.cancel() });
    assert_eq!(outcome, Outcome::Failed);
    assert!(begun.elapsed() < HOLDS);
    held.let_go();
    assert_eq!(late.await, Ok("late".to_owned()));
    let (lines, _) = world.told().await;
    assert!(lines.iter().any(|line| line.0.contains("time limit")), "{lines:?}");
}

struct World {
    scripts: Scripts,
    profile: Arc<Profile>,
    folder: TempDir,
}

impl World {
    fn new(list: Vec<Script>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders::new(Some(folder.path()), Some(folder.path()), Path::new("/nowhere"));
        let variables = BTreeMap::from([("FROM_TEMPLATE".to_owned(), "yes".to_owned())]);
        let directory = folder.path().to_owned();
        let profile = Profile { variables, directory, script_bin: folders.programs(), ..Profile::default() };
        let profile = Arc::new(profile);
        let scripts = Scripts {
            list,
            account: Account { shell: "/bin/sh".into(), ..Account::current() },
            process: std::env::vars_os().collect(),
            executable: "/opt/coder".into(),
            folders,
            logs: Logs::default(),
            completed: Arc::new(Outbox::new(SCRIPT_COMPLETED)),
        };
        Self { scripts, profile, folder }
    }

    async fn run(&self, stage: Stage) -> Outcome {
        self.scripts.run(stage, &self.profile, &CancellationToken::new()).await
    }

    /// The lines and the timings that the server gets.
    async fn told(&self) -> (Vec<(String, i32)>, Vec<Timing>) {
        let server = Fake::new(|_, _: &[u8]| Ok::<_, CallError>(Vec::new()));
        tokio::select! {
            biased;
            () = async { tokio::join!(self.scripts.logs.flushed(), self.scripts.completed.sent()); } => {}
            _ = self.scripts.logs.send(&server) => panic!("no connection failed"),
            _ = self.scripts.completed.send(&server) => panic!("no connection failed"),
        }
        let batches = server.asked::<BatchCreateLogsRequest>(BATCH_CREATE_LOGS);
        let lines = batches.into_iter().flat_map(|b| b.logs).map(|l| (l.output, l.level)).collect();
        let timings = server.asked::<ScriptCompletedRequest>(SCRIPT_COMPLETED);
        (lines, timings.into_iter().map(|t| t.timing.unwrap()).collect())
    }
}

#[tokio::test]
async fn a_script_runs_in_its_folder_with_the_workspaces_environment_and_both_outputs_are_streamed() {
    let text = "pwd; echo $FROM_TEMPLATE $CODER; echo bad >&2; printf '#!/bin/sh\\necho tool' > $CODER_SCRIPT_BIN_DIR/t; \
                chmod +x $CODER_SCRIPT_BIN_DIR/t; test -d $CODER_SCRIPT_DATA_DIR && t";
    let world = World::new(vec![script(1, text)]);
    assert_eq!(world.run(Stage::Start).await, Outcome::Done);
    let (mut lines, timings) = world.told().await;
    lines.sort();
    let info = i32::from(LogLevel::Info);
    let folder = world.folder.path().canonicalize().unwrap().to_str().unwrap().to_owned();
    let mut expected =
        vec![(folder, info), ("yes true".into(), info), ("tool".into(), info), ("bad".into(), LogLevel::Error.into())];
    expected.sort();
    assert_eq!(lines, expected);
    assert_eq!((timings[0].exit_code, timings[0].status()), (0, TimingStatus::Ok));
    let kept = fs::read_to_string(world.folder.path().join(format!("coder-script-{}.log", Uuid::from_u128(1)))).unwrap();
    assert!(kept.contains("yes true") && kept.contains("bad"), "{kept}");
}

#[tokio::test]
async fn scripts_run_beside_each_other_and_the_worst_counts() {
    // Each waits for what the other makes.
    let wait = |mine: &str, other: &str| format!("touch {mine}; while ! test -e {other}; do sleep 0.02; done");
    let world = World::new(vec![script(1, &wait("a", "b")), script(2, &wait("b", "a")), script(3, "exit 7"), script(4, " ")]);
    assert_eq!(world.run(Stage::Start).await, Outcome::Failed);
    let (_, mut timings) = world.told().await;
    timings.sort_by_key(|t| t.script_id.clone());
    let codes: Vec<_> = timings.iter().map(|t| (t.exit_code, t.status())).collect();
    let ok = (0, TimingStatus::Ok);
    assert_eq!(codes, [ok, ok, (7, TimingStatus::ExitFailure), ok]);
    assert_eq!(world.run(Stage::Stop).await, Outcome::Done, "none of them is for the stop");
}

#[tokio::test]
async fn a_script_that_takes_too_long_is_ended_with_all_it_started() {
    // With a shell that stays, and with one that goes while its child does not.
    for text in ["trap '' HUP; sleep 1000 & echo $!; wait", "(trap '' HUP; exec sleep 1000) & echo $!; wait"] {
        let mut slow = script(1, text);
        slow.limit = Some(Duration::from_millis(300));
        let world = World::new(vec![slow, script(2, "exit 1")]);
        assert_eq!(world.run(Stage::Start).await, Outcome::TimedOut, "worse than a failure");
        let (lines, timings) = world.told().await;
        let process = lines.iter().find(|(text, _)| text.bytes().all(|b| b.is_ascii_digit())).unwrap();
        assert!(!Path::new("/proc").join(&process.0).join("exe").exists(), "its child lives: {lines:?}");
        assert!(lines.iter().any(|(text, _)| text.contains("script 1 was ended") && text.contains("300ms")), "{lines:?}");
        assert!(timings.iter().any(|t| t.status() == TimingStatus::TimedOut));
    }
}

// Time jumps once there is nothing but time to wait for.
#[tokio::test(start_paused = true)]
async fn what_a_script_leaves_running_may_not_hold_its_output() {
    let world = World::new(vec![script(1, "sleep 20 & echo done")]);
    assert_eq!(world.run(Stage::Start).await, Outcome::Failed);
    let (lines, timings) = world.told().await;
    assert!(lines.iter().any(|(text, _)| text.contains("script 1 has ended") && text.contains(">/dev/null")), "{lines:?}");
    assert_eq!((timings[0].exit_code, timings[0].status()), (0, TimingStatus::PipesLeftOpen));
}

#[tokio::test]
async fn a_script_may_leave_something_running_that_holds_nothing_of_it() {
    let world = World::new(vec![script(1, "sleep 20 >/dev/null 2>&1 & echo done")]);
    let started = Instant::now();
    assert_eq!(world.run(Stage::Start).await, Outcome::Done);
    assert!(started.elapsed() < PIPES);
}

#[tokio::test]
async fn a_stopping_agent_ends_its_start_scripts() {
    let world = World::new(vec![script(1, "sleep 1000")]);
    let stop = CancellationToken::new();
    let started = Instant::now();
    let running = world.scripts.run(Stage::Start, &world.profile, &stop);
    let (outcome, ()) = tokio::join!(running, async { stop.cancel() });
    assert!(outcome == Outcome::Failed && started.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn a_folder_that_others_may_write_to_runs_no_script_and_leads_no_path() {
    let world = World::new(vec![script(1, "echo ran")]);
    assert_eq!(world.scripts.folders.trusted_programs(), Some(world.folder.path().join("coder-script-data/bin")));
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(world.folder.path().join("coder-script-data/bin"), open).unwrap();
    assert_eq!(world.scripts.folders.trusted_programs(), None);
    assert_eq!(world.run(Stage::Start).await, Outcome::Failed);
    let (lines, _) = world.told().await;
    assert!(lines.len() == 1 && lines[0].0.contains("--script-data-dir") && lines[0].0.contains("chmod"), "{lines:?}");
}

#[tokio::test]
async fn a_log_path_that_is_no_file_neither_holds_a_script_up_nor_fails_it() {
    let mut piped = script(1, "echo out");
    piped.log_path = "pipe".into();
    let world = World::new(vec![piped]);
    assert!(std::process::Command::new("mkfifo").arg(world.folder.path().join("pipe")).status().unwrap().success());
    assert_eq!(world.run(Stage::Start).await, Outcome::Done);
    assert_eq!(world.told().await.0[0].0, "out");
}

#[tokio::test]
async fn what_cannot_be_run_is_told_in_the_log() {
    let mut world = World::new(vec![script(1, "true")]);
    world.scripts.account.shell = "/no/such/shell".into();
    assert_eq!(world.run(Stage::Start).await, Outcome::Failed);
    let (lines, timings) = world.told().await;
    assert!(lines[0].0.contains("cannot run script 1"), "{lines:?}");
    assert_eq!(timings[0].exit_code, NO_CODE);
}
