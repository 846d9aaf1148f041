//! The scripts of a workspace: run beside each other at the agent's start and stop, their output streamed to the server
//! (agent.md §3.1, §3.3, §4). Scripts that run by the clock (`cron`) alone are not run.

use super::{
    account::Account,
    calls::timestamp,
    environment::{Profile, Sources, expand},
    logs::Logs,
    outbox::Outbox,
    ssh::{command_line, own_session},
};
use crate::{
    base::WallTime,
    driver::{
        clock,
        files::{Keep, make_folder, open_log, own_folder},
        process::Group,
    },
    wire::coord::agent::{self, LogLevel, ScriptCompletedRequest, Timing, TimingStage, TimingStatus},
};
use futures::future::join_all;
use rustix::process::Signal;
use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt as _,
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What a script's output may stay open for behind its end.
const PIPES: Duration = Duration::from_secs(10);
/// What a script gets between being told to end and being killed.
const GRACE: Duration = Duration::from_secs(2);
/// How often it is looked whether all of a script has ended: nothing tells the end of what it started.
const LOOK: Duration = Duration::from_millis(20);
/// The exit code that is reported for a script that has none of its own.
const NO_CODE: i32 = 255;

/// One script of the manifest.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Script {
    /// `None` when the server named none that can be reported back.
    id: Option<Uuid>,
    source: Uuid,
    name: String,
    log_path: String,
    text: String,
    on_start: bool,
    on_stop: bool,
    limit: Option<Duration>,
}

impl fmt::Debug for Script {
    // The text may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("name", &self.name).finish_non_exhaustive()
    }
}

impl From<agent::Script> for Script {
    fn from(script: agent::Script) -> Self {
        Self {
            id: Uuid::from_slice(&script.id).ok(),
            source: Uuid::from_slice(&script.log_source_id).unwrap_or_default(),
            name: if script.display_name.is_empty() { "script".to_owned() } else { script.display_name },
            log_path: script.log_path,
            text: script.script,
            on_start: script.run_on_start,
            on_stop: script.run_on_stop,
            limit: script.timeout.and_then(|t| Duration::try_from(t).ok()).filter(|t| !t.is_zero()),
        }
    }
}

/// When scripts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Start,
    Stop,
}

/// How the scripts of a stage ended together: the worst of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Done,
    Failed,
    TimedOut,
}

/// How one script ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ended {
    status: TimingStatus,
    code: i32,
}

impl Ended {
    const fn outcome(self) -> Outcome {
        match self.status {
            TimingStatus::Ok => Outcome::Done,
            TimingStatus::TimedOut => Outcome::TimedOut,
            TimingStatus::ExitFailure | TimingStatus::PipesLeftOpen => Outcome::Failed,
        }
    }
}

/// Where scripts have their files.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    /// Their own data, one folder each, and their programs.
    data: PathBuf,
    /// Their logs.
    logs: PathBuf,
}

impl Folders {
    /// Below the folders that the agent was given, else below its user's home: programs in a folder where everybody may
    /// write, as the one for temporary files is, would be everybody's to replace.
    pub(crate) fn new(data: Option<&Path>, logs: Option<&Path>, home: &Path) -> Self {
        let own = home.join(".cache/coder-agent");
        let data = data.unwrap_or(&own).join("coder-script-data");
        Self { data, logs: logs.unwrap_or(&own).to_owned() }
    }

    /// Programs that scripts put there are found by everything that runs in the workspace.
    fn programs(&self) -> PathBuf {
        self.data.join("bin")
    }

    /// Makes the folders of data and programs, or checks that those which are there are nobody else's.
    fn ready(&self) -> io::Result<()> {
        let made = own_folder(&self.data).and_then(|()| own_folder(&self.programs()));
        made.map_err(|error| {
            let why = format!("the folder of scripts cannot be used: {error}; or choose another one with --script-data-dir");
            io::Error::new(error.kind(), why)
        })
    }

    /// The folder of programs, if it may lead everybody's search path.
    pub(crate) fn trusted_programs(&self) -> Option<PathBuf> {
        self.ready().inspect_err(|error| tracing::error!(%error, "programs of scripts are not on the search path")).ok()?;
        Some(self.programs())
    }
}

/// The scripts and all that they need. One for the agent's whole life: a later manifest changes no running start.
#[derive(Debug)]
pub(crate) struct Scripts {
    pub(crate) list: Vec<Script>,
    pub(crate) account: Account,
    pub(crate) process: Vec<(OsString, OsString)>,
    pub(crate) executable: PathBuf,
    pub(crate) folders: Folders,
    pub(crate) logs: Logs,
    pub(crate) completed: Arc<Outbox<ScriptCompletedRequest>>,
}

impl Scripts {
    /// Runs the scripts of a stage beside each other until all have ended, each at its time limit at the latest. `stop`
    /// ends those that still run.
    pub(crate) async fn run(&self, stage: Stage, profile: &Profile, stop: &CancellationToken) -> Outcome {
        let mut all = Vec::new();
        for script in &self.list {
            let wanted = match stage {
                Stage::Start => script.on_start,
                Stage::Stop => script.on_stop,
            };
            if wanted {
                all.push(self.run_one(script, stage, profile, stop));
            }
        }
        join_all(all).await.into_iter().max().unwrap_or(Outcome::Done)
    }

    async fn run_one(&self, script: &Script, stage: Stage, profile: &Profile, stop: &CancellationToken) -> Outcome {
        let start = clock::wall();
        tracing::info!(script = script.name, ?stage, "running");
        let ended = match self.execute(script, profile, stop).await {
            Ok(ended) => ended,
            Err(error) => {
                self.logs.line(script.source, LogLevel::Error, format!("cannot run {}: {error}", script.name).as_bytes());
                Ended { status: TimingStatus::ExitFailure, code: NO_CODE }
            }
        };
        tracing::info!(script = script.name, ?stage, status = ?ended.status, code = ended.code, "ended");
        self.report(script, stage, start, ended);
        ended.outcome()
    }

    fn report(&self, script: &Script, stage: Stage, start: WallTime, ended: Ended) {
        let Some(id) = script.id else { return };
        let stage = if stage == Stage::Start { TimingStage::Start } else { TimingStage::Stop };
        let timing = Timing {
            script_id: id.as_bytes().to_vec(),
            start: Some(timestamp(start)),
            end: Some(timestamp(clock::wall())),
            exit_code: ended.code,
            stage: stage.into(),
            status: ended.status.into(),
        };
        self.completed.put(ScriptCompletedRequest { timing: Some(timing) });
    }

    async fn execute(&self, script: &Script, profile: &Profile, stop: &CancellationToken) -> io::Result<Ended> {
        if script.text.trim().is_empty() {
            // The shell would take no command for a login shell.
            return Ok(Ended { status: TimingStatus::Ok, code: 0 });
        }
        self.folders.ready()?;
        let data = self.folders.data.join(script.source.to_string());
        make_folder(&data)?;
        let file = self.log_file(script);
        let mut child = self.start(script, profile, &data)?;
        let group = Group::of(&child)?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("the process has no pipes"));
        };
        let file = file.as_ref();
        let output = async {
            tokio::join!(
                self.logs.copy(script.source, LogLevel::Info, stdout, file),
                self.logs.copy(script.source, LogLevel::Error, stderr, file)
            );
        };
        let mut output = std::pin::pin!(output);
        let limit = async {
            match script.limit {
                Some(limit) => sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let mut limit = std::pin::pin!(limit);
        let mut open = true;
        let cut = loop {
            tokio::select! {
                () = &mut output, if open => open = false,
                status = child.wait() => {
                    let code = status?.code().unwrap_or(NO_CODE);
                    break Some(code);
                }
                () = &mut limit => break None,
                () = stop.cancelled() => {
                    end(&mut child, group).await;
                    return Ok(Ended { status: TimingStatus::ExitFailure, code: NO_CODE });
                }
            }
        };
        let Some(code) = cut else {
            end(&mut child, group).await;
            let _ = timeout(GRACE, output).await;
            let after = script.limit.unwrap_or_default();
            let text = format!("{} was ended: it had not ended by itself within {after:?}, its time limit", script.name);
            self.logs.line(script.source, LogLevel::Error, text.as_bytes());
            return Ok(Ended { status: TimingStatus::TimedOut, code: NO_CODE });
        };
        if open && timeout(PIPES, output).await.is_err() {
            let text = format!(
                "{} has ended, but something that it started still holds its output open after {PIPES:?}: start it with \
                 '>/dev/null 2>&1 &', or with a file instead of /dev/null",
                script.name
            );
            self.logs.line(script.source, LogLevel::Warn, text.as_bytes());
            return Ok(Ended { status: TimingStatus::PipesLeftOpen, code });
        }
        Ok(Ended { status: if code == 0 { TimingStatus::Ok } else { TimingStatus::ExitFailure }, code })
    }

    fn start(&self, script: &Script, profile: &Profile, data: &Path) -> io::Result<Child> {
        let mut command = self.command(&script.text, profile);
        command.env("CODER_SCRIPT_DATA_DIR", data).env("CODER_SCRIPT_BIN_DIR", self.folders.programs());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }

    /// A command of the workspace, in its folder and with its environment, in a session of its own and without input.
    fn command(&self, text: &str, profile: &Profile) -> Command {
        let sources = Sources {
            profile,
            account: &self.account,
            process: &self.process,
            client: &[],
            executable: &self.executable,
            terminal: None,
            key_agent: None,
            display: None,
        };
        let (program, arguments) = command_line(&self.account.shell, Some(text.as_bytes()));
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(sources.build()).current_dir(profile.folder(&self.account));
        own_session(command.stdin(Stdio::null()));
        command
    }

    /// What a short command writes, or why there is nothing. It ends with this call and takes along what it started.
    pub(crate) async fn output(&self, text: &str, limit: Duration, most: u64, profile: &Profile) -> Result<String, String> {
        let mut command = self.command(text, profile);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("cannot be run: {error}"))?;
        let group = Group::of(&child).map_err(|error| error.to_string())?;
        let _end = EndOnDrop(group);
        let Some(mut stdout) = child.stdout.take() else { return Err("has no output".to_owned()) };
        let run = async {
            let mut value = Vec::new();
            let read = async {
                (&mut stdout).take(most).read_to_end(&mut value).await?;
                // More is read so that the command can end, and dropped.
                tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await
            };
            let (_, status) = tokio::join!(read, child.wait());
            (value, status)
        };
        match timeout(limit, run).await {
            Err(_) => Err(format!("did not end within {limit:?}")),
            Ok((_, Err(error))) => Err(error.to_string()),
            Ok((_, Ok(status))) if !status.success() => Err(format!("ended with {status}")),
            Ok((value, Ok(_))) => Ok(String::from_utf8_lossy(&value).trim_end().to_owned()),
        }
    }

    /// The file that keeps all of a script's output; without one the script runs all the same.
    fn log_file(&self, script: &Script) -> Option<Mutex<File>> {
        let text = expand(&script.log_path, &self.process);
        let path = match text.strip_prefix("~/") {
            Some(rest) => self.account.home.join(rest),
            None if text.is_empty() => self.folders.logs.join(format!("coder-script-{}.log", script.source)),
            // An absolute path replaces what it is joined to.
            None => self.folders.logs.join(text),
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        make_folder(folder)
            .and_then(|()| open_log(&path, Keep::New))
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no log file for a script"))
            .ok()
            .map(Mutex::new)
    }
}

/// Kills a group when its command is not waited for any more.
struct EndOnDrop(Group);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.signal(Signal::KILL);
    }
}

/// Ends a script and all that runs in its group: what the shell leaves behind has the rest of the time to end by itself.
async fn end(child: &mut Child, group: Group) {
    group.signal(Signal::HUP);
    let ended = async {
        let _ = child.wait().await;
        while group.lives() {
            sleep(LOOK).await;
        }
    };
    let _ = timeout(GRACE, ended).await;
    group.signal(Signal::KILL);
    let _ = timeout(GRACE, child.wait()).await;
}

#[cfg(test)]
mod tests {
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

    struct World {
        scripts: Scripts,
        profile: Profile,
        folder: TempDir,
    }

    impl World {
        fn new(list: Vec<Script>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let folders = Folders::new(Some(folder.path()), Some(folder.path()), Path::new("/nowhere"));
            let variables = BTreeMap::from([("FROM_TEMPLATE".to_owned(), "yes".to_owned())]);
            let directory = folder.path().to_owned();
            let profile = Profile { variables, directory, script_bin: folders.programs(), ..Profile::default() };
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
}
