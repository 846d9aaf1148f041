//! The scripts of a workspace: run beside each other at the agent's start and stop, their output streamed to the server
//! (agent.md §3.1, §3.3, §4). Scripts that run by the clock (`cron`) alone are not run.

use super::{
    account::Account,
    calls::timestamp,
    environment::{Profile, Sources, expand},
    logs::{LogFile, Logs},
    outbox::Outbox,
    ssh::{command_line, own_session},
};
use crate::{
    base::WallTime,
    driver::{
        blocking, clock,
        files::{Keep, make_folder, open_log, own_folder},
        process::{Group, KillOnDrop},
    },
    wire::coord::agent::{self, LogLevel, ScriptCompletedRequest, Timing, TimingStage, TimingStatus},
};
use futures::future::join_all;
use rustix::process::Signal;
use std::{
    ffi::OsString,
    fmt, io,
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
    pub(crate) async fn run(&self, stage: Stage, profile: &Arc<Profile>, stop: &CancellationToken) -> Outcome {
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

    async fn run_one(&self, script: &Script, stage: Stage, profile: &Arc<Profile>, stop: &CancellationToken) -> Outcome {
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

    async fn execute(&self, script: &Script, profile: &Arc<Profile>, stop: &CancellationToken) -> io::Result<Ended> {
        if script.text.trim().is_empty() {
            // The shell would take no command for a login shell.
            return Ok(Ended { status: TimingStatus::Ok, code: 0 });
        }
        let limit = async {
            match script.limit {
                Some(limit) => sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let mut limit = std::pin::pin!(limit);
        let started = tokio::select! {
            started = self.start(script, profile) => started?,
            () = &mut limit => return Ok(self.late(script)),
            () = stop.cancelled() => return Ok(Ended { status: TimingStatus::ExitFailure, code: NO_CODE }),
        };
        let (kill, mut child, file) = started;
        kill.let_go();
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
            return Ok(self.late(script));
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

    fn late(&self, script: &Script) -> Ended {
        let after = script.limit.unwrap_or_default();
        let text = format!("{} was ended: it had not ended by itself within {after:?}, its time limit", script.name);
        self.logs.line(script.source, LogLevel::Error, text.as_bytes());
        Ended { status: TimingStatus::TimedOut, code: NO_CODE }
    }

    /// Starts a script beside the file of its log. A cancelled call kills what it starts.
    async fn start(&self, script: &Script, profile: &Arc<Profile>) -> io::Result<(KillOnDrop, Child, Option<LogFile>)> {
        let data = self.folders.data.join(script.source.to_string());
        let mut command = self.command(&script.text, profile);
        command.env("CODER_SCRIPT_DATA_DIR", &data).env("CODER_SCRIPT_BIN_DIR", self.folders.programs());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let (folders, log) = (self.folders.clone(), self.log_path(script));
        let launch = self.launch(command, profile);
        let start = move || {
            folders.ready()?;
            make_folder(&data)?;
            let file = log_file(&log);
            let (kill, child) = launch()?;
            Ok((kill, child, file))
        };
        blocking::run(start).await?
    }

    /// What starts a command where commands start. It may block, and what it gives is killed where nobody takes it.
    fn launch(
        &self,
        mut command: Command,
        profile: &Arc<Profile>,
    ) -> impl FnOnce() -> io::Result<(KillOnDrop, Child)> + Send + 'static {
        let (profile, account) = (Arc::clone(profile), self.account.clone());
        move || {
            let child = command.current_dir(profile.folder(&account)).spawn()?;
            Ok((KillOnDrop::new(Group::of(&child)?), child))
        }
    }

    /// A command of the workspace with its environment, in a session of its own and without input.
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
        command.args(arguments).env_clear().envs(sources.build());
        own_session(command.stdin(Stdio::null()));
        command
    }

    /// What a short command writes, or why there is nothing. It ends with this call and takes along what it started. The limit
    /// begins when it runs: for one that cannot be started yet the caller waits, instead of starting the next beside it.
    pub(crate) async fn output(&self, text: &str, limit: Duration, most: u64, profile: &Arc<Profile>) -> Result<String, String> {
        let mut command = self.command(text, profile);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let started = blocking::run(self.launch(command, profile)).await.and_then(|started| started);
        let (kill, mut child) = started.map_err(|error| format!("cannot be run: {error}"))?;
        // Behind the child, and so dropped before it: until then its number is its own.
        let _kill = kill;
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

    fn log_path(&self, script: &Script) -> PathBuf {
        let text = expand(&script.log_path, &self.process);
        match text.strip_prefix("~/") {
            Some(rest) => self.account.home.join(rest),
            None if text.is_empty() => self.folders.logs.join(format!("coder-script-{}.log", script.source)),
            // An absolute path replaces what it is joined to.
            None => self.folders.logs.join(text),
        }
    }
}

/// The file that keeps all of a script's output; without one the script runs all the same.
fn log_file(path: &Path) -> Option<LogFile> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_folder(folder)
        .and_then(|()| open_log(path, Keep::New))
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no log file for a script"))
        .ok()
        .map(|file| Arc::new(Mutex::new(file)))
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
mod tests;
