//! `--dev`: an agent beside the server, as a child of it.
//!
//! The child is the own binary, started as `<program> agent --exit-with-parent --quiet` with its URL and its token in the
//! environment, where no other user of the machine can read them. It is started anew when it ends, with a growing pause.
//! It ends with the server: asked by SIGTERM when the server shuts down, and by the kernel when the server dies.

use super::token::AgentToken;
use std::{io, path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Pause before a child that ended at once is started anew; doubles up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// A child that ran so long did not fail at its start.
const STEADY: Duration = Duration::from_secs(30);
/// How long a child may take to end when asked.
const END_TIME: Duration = Duration::from_secs(5);

/// What is run.
#[derive(Debug, Clone)]
pub(super) struct AgentChild {
    /// The own binary.
    pub(super) program: PathBuf,
    /// Where the agent reaches the server.
    pub(super) url: String,
    /// What proves that it is the agent.
    pub(super) token: AgentToken,
}

impl AgentChild {
    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(["agent", "--exit-with-parent", "--quiet"])
            .env("CODER_AGENT_URL", &self.url)
            .env("CODER_AGENT_TOKEN", self.token.expose())
            // The shells of the workspace are not logged in as whoever started the server.
            .env_remove("CODER_SESSION_TOKEN")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        // A Ctrl-C in the server's terminal is the server's to handle.
        #[cfg(unix)]
        command.process_group(0);
        command.spawn()
    }

    /// Keeps the child running until `stop`, then ends it.
    pub(super) async fn keep(self, stop: CancellationToken) {
        let mut pause = PAUSE;
        while !stop.is_cancelled() {
            let started = Instant::now();
            match self.spawn() {
                Ok(mut child) => {
                    tokio::select! {
                        ended = child.wait() => tracing::warn!(status = ?ended.ok(), "the dev agent ended; it is started anew"),
                        () = stop.cancelled() => return end(child).await,
                    }
                }
                Err(error) => tracing::error!(%error, program = %self.program.display(), "the dev agent cannot be started"),
            }
            pause = if started.elapsed() >= STEADY { PAUSE } else { (pause * 2).min(MAX_PAUSE) };
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

async fn end(mut child: Child) {
    #[cfg(unix)]
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
        // It may have ended this instant.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if timeout(END_TIME, child.wait()).await.is_err() {
        tracing::warn!("the dev agent did not end when asked");
        let _ = child.kill().await;
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};
    use uuid::Uuid;

    /// A program that notes its start and then runs `rest`.
    fn child(folder: &Path, rest: &str) -> AgentChild {
        let (program, log) = (folder.join("agent"), folder.join("log"));
        let script = format!("#!/bin/sh\necho \"$$ $* $CODER_AGENT_URL $CODER_AGENT_TOKEN\" >> '{}'\n{rest}\n", log.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        AgentChild { program, url: "http://x".into(), token: AgentToken::from(Uuid::nil()) }
    }

    async fn lines(folder: &Path, n: usize) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            if log.lines().count() >= n {
                return log.lines().map(str::to_owned).collect();
            }
            assert!(Instant::now() < until, "the child was not started {n} times");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_child_that_ends_is_started_anew_with_its_url_and_token() {
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(child(folder.path(), "exit 1").keep(stop.clone()));
        let started = lines(folder.path(), 2).await;
        let line = "agent --exit-with-parent --quiet http://x 00000000-0000-0000-0000-000000000000";
        assert!(started.iter().all(|l| l.split_once(' ').unwrap().1 == line), "{started:?}");
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn the_child_ends_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(child(folder.path(), "exec sleep 1000").keep(stop.clone()));
        let started = lines(folder.path(), 1).await;
        let pid: i32 = started[0].split(' ').next().unwrap().parse().unwrap();
        stop.cancel();
        task.await.unwrap();
        let gone = rustix::process::test_kill_process(rustix::process::Pid::from_raw(pid).unwrap()).is_err();
        assert!(gone, "process {pid} is still there");
    }
}
