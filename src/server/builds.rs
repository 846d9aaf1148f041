//! Builds: what happens when a workspace is started, stopped or deleted.
//!
//! Without commands a build only says what was asked for: a stopped workspace's agent is turned away, a started one's is
//! let in, and the build is done at once. With commands it runs one: `sh -c COMMAND` in a process group of its own, its
//! output is the build's log, and an exit status other than 0 is the build's failure. The logs of a workspace's newest builds
//! are kept. The command gets, in its environment,
//!
//! | variable | holds |
//! |---|---|
//! | `CODER_WORKSPACE_NAME`, `_ID` | the workspace |
//! | `CODER_WORKSPACE_OWNER`, `_OWNER_ID` | whose it is |
//! | `CODER_WORKSPACE_TRANSITION` | `start`, `stop` or `delete` |
//! | `CODER_WORKSPACE_BUILD_ID` | the build |
//! | `CODER_AGENT_URL`, `CODER_AGENT_TOKEN` | what the agent is started with; the token is a fresh one, at a start alone |
//!
//! and nothing of the server's own login. What it leaves running in the background must not keep its output open.

use super::{
    answer::{Answer, ApiError},
    app::App,
    store::{Build, BuildLine, BuildStatus, NewBuild, StoreError, Transition, Workspace},
    time::Stamp,
    token::AgentToken,
};
use crate::driver::process::Group;
use axum::http::StatusCode;
use rustix::process::Signal;
use std::{
    collections::HashMap,
    io,
    process::Stdio,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long output may come after the command itself has ended.
const LAST_OUTPUT: Duration = Duration::from_millis(500);
/// How long a command may take to end when asked.
const END_TIME: Duration = Duration::from_secs(2);
/// How long to wait after each failure to note a build's end.
const END_PAUSES: &[Duration] =
    &[Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10), Duration::ZERO];
/// The longest line of a log; what is longer becomes several.
const MAX_LINE: usize = 4 << 10;
/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;

/// The builds whose commands run now.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Mutex<HashMap<Uuid, CancellationToken>>);

impl UnderWay {
    fn table(&self) -> MutexGuard<'_, HashMap<Uuid, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the command of a build; whether it had one that still ran.
    pub(crate) fn cancel(&self, build: Uuid) -> bool {
        let running = self.table().get(&build).cloned();
        running.inspect(CancellationToken::cancel).is_some()
    }
}

/// What is to be done beside noting a build.
pub(crate) enum Work {
    /// What the deployment has commands for.
    Usual,
    /// The same, with this token for the agent.
    With(AgentToken),
    /// Nothing: a workspace whose command does not do its work any more is deleted all the same.
    Nothing,
}

/// Makes a build of `workspace` and begins what belongs to it. A start command gets the token of `work`, or a fresh one.
/// Sessions end with a workspace that is stopped or deleted.
///
/// # Errors
/// When another build is under way, or the store fails.
///
/// # Cancel safety
/// What has begun goes on to its end when the future is dropped, as it is where a client hangs up.
pub(crate) async fn begin(app: &App, workspace: &Workspace, new: NewBuild<'static>, work: Work) -> Answer<Build> {
    let (tell, told) = oneshot::channel();
    let (task, workspace) = (app.clone(), workspace.clone());
    app.spawn(async move {
        let (answer, run) = match make(&task, workspace, new, work).await {
            Ok((build, run)) => (Ok(build), run),
            Err(error) => (Err(error), None),
        };
        // Whoever asked may be gone.
        let _ = tell.send(answer);
        if let Some(run) = run {
            run.finish().await;
        }
    });
    told.await.unwrap_or_else(|_| Err(ApiError::internal(&"the task of a build ended before it had begun")))
}

/// Makes a build. The command that belongs to it is still to be run.
async fn make(app: &App, workspace: Workspace, new: NewBuild<'_>, work: Work) -> Answer<(Build, Option<Run>)> {
    let now = Stamp::now();
    // What can fail comes before the build: one that is under way keeps others out until its end.
    let agents = app.store().agents(workspace.id).await?;
    let (command, token) = match work {
        Work::Usual => (app.settings().hooks.command(new.transition).cloned(), None),
        Work::With(token) => (app.settings().hooks.command(new.transition).cloned(), Some(token)),
        Work::Nothing => (None, None),
    };
    let made = match command {
        Some(_) => app.store().begin_build(now, new).await,
        None => app.store().insert_build(now, new).await,
    };
    let build = made.map_err(|error| match error {
        StoreError::Busy => ApiError::new(StatusCode::CONFLICT, "A workspace build is already active.")
            .with_detail("Wait for its end, or cancel it: its log tells how far it is."),
        other => other.into(),
    })?;
    if new.transition != Transition::Start {
        agents.iter().for_each(|agent| app.agents().dismiss(agent.id));
    }
    app.announce(workspace.id);
    if let Some(command) = command {
        let token = match (new.transition, token) {
            (Transition::Start, None) => match app.store().renew_agent_token(now, workspace.id).await {
                Ok(token) => Some(token),
                Err(error) => {
                    note_end(app, build.id, Some((BuildStatus::Failed, "the agent got no token"))).await;
                    return Err(error.into());
                }
            },
            (Transition::Start, given) => given,
            (Transition::Stop | Transition::Delete, _) => None,
        };
        let cancel = CancellationToken::new();
        app.builds().table().insert(build.id, cancel.clone());
        let run = Run { app: app.clone(), workspace, build: build.clone(), command, token, cancel };
        return Ok((build, Some(run)));
    }
    Ok((build, None))
}

/// Notes the end of a build that was under way: until then there is no other one of its workspace. A store that fails,
/// say for a full disk, is tried again for a while.
async fn note_end(app: &App, build: Uuid, failure: Option<(BuildStatus, &str)>) {
    let (status, error) = failure.unwrap_or((BuildStatus::Succeeded, ""));
    for pause in END_PAUSES {
        match app.store().end_build(Stamp::now(), build, status, error).await {
            Ok(()) => return,
            Err(error) => tracing::error!(%error, %build, "the end of a build cannot be noted"),
        }
        // The next server ends what this one has left.
        if timeout(*pause, app.stopping().cancelled()).await.is_ok() {
            return;
        }
    }
}

fn line(transition: Transition, level: &str, output: String) -> BuildLine {
    BuildLine { id: 0, created_at: Stamp::now(), level: level.to_owned(), stage: transition.stage().to_owned(), output }
}

/// One command of one build.
struct Run {
    app: App,
    workspace: Workspace,
    build: Build,
    command: String,
    token: Option<AgentToken>,
    /// Cancelled when the command shall end.
    cancel: CancellationToken,
}

impl Run {
    async fn finish(self) {
        let failure = self.run().await.err();
        // From here on there is nothing to cancel.
        self.app.builds().table().remove(&self.build.id);
        if let Some((_, error)) = &failure {
            self.note(vec![line(self.build.transition, "error", error.clone())]).await;
        }
        note_end(&self.app, self.build.id, failure.as_ref().map(|(status, error)| (*status, error.as_str()))).await;
        self.app.announce(self.build.id);
        self.app.announce(self.workspace.id);
    }

    fn spawn(&self) -> io::Result<Child> {
        let url = if self.workspace.agent_url.is_empty() { self.app.access_url() } else { &self.workspace.agent_url };
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(&self.command)
            .env_remove("CODER_SESSION_TOKEN")
            .env_remove("CODER_AGENT_TOKEN")
            .env("CODER_WORKSPACE_NAME", &self.workspace.name)
            .env("CODER_WORKSPACE_ID", self.workspace.id.to_string())
            .env("CODER_WORKSPACE_OWNER", &self.workspace.owner_name)
            .env("CODER_WORKSPACE_OWNER_ID", self.workspace.owner_id.to_string())
            .env("CODER_WORKSPACE_TRANSITION", self.build.transition.as_str())
            .env("CODER_WORKSPACE_BUILD_ID", self.build.id.to_string())
            .env("CODER_AGENT_URL", url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(token) = &self.token {
            command.env("CODER_AGENT_TOKEN", token.expose());
        }
        #[cfg(unix)]
        command.process_group(0);
        command.spawn()
    }

    /// Runs the command; the error is how the build ends and a line for people.
    async fn run(&self) -> Result<(), (BuildStatus, String)> {
        let failed = |why: String| (BuildStatus::Failed, why);
        let limit = self.app.settings().hooks.limit;
        let mut child = self.spawn().map_err(|error| failed(format!("the command cannot be run: {error}")))?;
        // Logs are for all who may see the workspace; the token is for its agent alone.
        let secret = self.token.as_ref().map(AgentToken::expose).unwrap_or_default();
        let (mut out, mut err) = (Lines::of(child.stdout.take(), &secret), Lines::of(child.stderr.take(), &secret));
        let until = Instant::now() + limit;
        let mut ended = None;
        // Output may go on for a moment after the end, and for ever where something in the background holds it open.
        let mut last = until;
        while ended.is_none() || !out.done() || !err.done() {
            let (lines, level) = tokio::select! {
                lines = out.next(), if !out.done() => (lines, "info"),
                lines = err.next(), if !err.done() => (lines, "error"),
                status = child.wait(), if ended.is_none() => {
                    ended = Some(status.map_err(|error| failed(format!("the command cannot be waited for: {error}")))?);
                    last = Instant::now() + LAST_OUTPUT;
                    continue;
                }
                () = sleep_until(last) => break,
                () = self.cancel.cancelled(), if ended.is_none() => {
                    end(&mut child).await;
                    return Err((BuildStatus::Canceled, "the build was canceled and its command ended".to_owned()));
                }
                () = self.app.stopping().cancelled() => {
                    end(&mut child).await;
                    return Err(failed("the server was stopped while the command ran".to_owned()));
                }
            };
            self.note(lines.into_iter().map(|text| line(self.build.transition, level, text)).collect()).await;
        }
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(failed(format!("the command failed: {status}"))),
            None => {
                end(&mut child).await;
                Err(failed(format!("the command took longer than {} s and was ended", limit.as_secs())))
            }
        }
    }

    async fn note(&self, lines: Vec<BuildLine>) {
        if lines.is_empty() {
            return;
        }
        match self.app.store().insert_build_lines(self.build.id, &lines).await {
            Ok(true) => {}
            Ok(false) => tracing::debug!("a build's log is full"),
            Err(error) => tracing::error!(%error, "a build's log cannot be kept"),
        }
        self.app.announce(self.build.id);
    }
}

/// Ends a command and all it started in its group.
async fn end(child: &mut Child) {
    // It may have ended this instant.
    let Ok(group) = Group::of(child) else { return };
    group.end(child, Signal::TERM, END_TIME).await;
    group.signal(Signal::KILL);
}

/// A stream's lines without a secret.
struct Lines<'s, R> {
    from: Option<R>,
    buffer: Box<[u8]>,
    rest: Vec<u8>,
    /// Empty for none.
    secret: &'s [u8],
}

impl<'s, R: AsyncRead + Unpin> Lines<'s, R> {
    fn of(from: Option<R>, secret: &'s str) -> Self {
        Self { from, buffer: vec![0; READ_BYTES].into(), rest: Vec::new(), secret: secret.as_bytes() }
    }

    const fn done(&self) -> bool {
        self.from.is_none()
    }

    /// The next whole lines; at the end of the stream what is left.
    ///
    /// # Cancel safety
    /// Nothing that was read is lost when the future is dropped.
    async fn next(&mut self) -> Vec<String> {
        let Some(from) = &mut self.from else { return Vec::new() };
        let n = from.read(&mut self.buffer).await.unwrap_or(0);
        if n == 0 {
            self.from = None;
        }
        self.rest.extend(self.buffer.iter().take(n).filter(|b| **b != 0));
        self.take_secret_out();
        let mut lines = Vec::new();
        while let Some(length) = self.line_length() {
            let bytes: Vec<u8> = self.rest.drain(..length).collect();
            lines.push(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned());
        }
        lines
    }

    fn take_secret_out(&mut self) {
        let length = self.secret.len();
        if length == 0 {
            return;
        }
        let mut from = 0;
        while let Some(at) = self.rest.get(from..).and_then(|rest| rest.windows(length).position(|part| part == self.secret)) {
            drop(self.rest.splice(from + at..from + at + length, *b"(token)"));
            from += at;
        }
    }

    /// A cut must not go through the secret: behind the place of one as much is read as it is long, so that it is seen whole
    /// before. No end of a line is in it.
    fn line_length(&self) -> Option<usize> {
        let rest = self.rest.len();
        match self.rest.iter().position(|b| *b == b'\n') {
            Some(at) if at < MAX_LINE => Some(at + 1),
            Some(_) => Some(MAX_LINE),
            None if rest >= MAX_LINE + self.secret.len() => Some(MAX_LINE),
            None if self.from.is_none() && rest > 0 => Some(rest.min(MAX_LINE)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_whole_long_ones_in_pieces_and_the_last_without_its_end() {
        let text = format!("one\r\ntwo\n{}\nlast", "x".repeat(MAX_LINE + 3));
        assert_eq!(all(Lines::of(Some(text.as_bytes()), "")).await, ["one", "two", &"x".repeat(MAX_LINE), "xxx", "last"]);
    }

    async fn all<R: AsyncRead + Unpin>(mut lines: Lines<'_, R>) -> Vec<String> {
        let mut all = Vec::new();
        while !lines.done() {
            all.extend(lines.next().await);
        }
        all
    }

    #[tokio::test]
    async fn a_secret_is_taken_out_wherever_it_is_read_or_cut_in_two() {
        let secret = AgentToken::generate().unwrap().expose();
        let hole = "(token)";
        for before in [0, 1, MAX_LINE - 20, MAX_LINE - 7, MAX_LINE - 1, MAX_LINE, 2 * MAX_LINE - 20] {
            for read in [1, before, before + 20, before + secret.len()] {
                let text = format!("{}{secret}\n{secret}{secret}\0 {}\0{} end", "x".repeat(before), &secret[..9], &secret[9..]);
                let (head, tail) = text.as_bytes().split_at(read);
                let lines = all(Lines::of(Some(head.chain(tail)), &secret)).await;
                let whole = format!("{}{hole}{hole}{hole} {hole} end", "x".repeat(before));
                assert_eq!(lines.concat(), whole, "{before} {read}");
                assert!(lines.iter().all(|line| line.len() <= MAX_LINE));
            }
        }
    }
}
