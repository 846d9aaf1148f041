//! `coder start`, `stop`, `restart`, `update` and `delete`: builds of a workspace with their logs (`cli.md` §2.3); `logs` and
//! `cancel` for those that somebody else has begun, or that failed.

use super::{
    args::{Global, go_bool},
    deployment::{Deployment, explain},
    interrupt::OwnSignals,
    output,
    ready::find,
    target::{HostNames, Target},
};
use crate::{
    client::{Build, BuildLine, Client, Job, Transition, Workspace},
    driver::{clock, http::HttpError, process::EndSignal, terminal::Terminals, websocket::Message},
};
use anyhow::{Context as _, anyhow, bail};
use clap::{Args, builder::PossibleValuesParser};
use jiff::Timestamp;
use std::{io, pin::pin, time::Duration};
use tokio::time::{sleep, timeout};

/// How long a build may take.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);
/// How long a log may be quiet before the build itself is looked at.
const QUIET: Duration = Duration::from_secs(30);
/// Pause before a log that broke off is asked for again.
const PAUSE: Duration = Duration::from_secs(1);

/// Flags of `coder start`.
#[derive(Debug, Args)]
pub(super) struct Start {
    /// [OWNER/]WORKSPACE
    workspace: String,
    #[command(flatten)]
    yes: Yes,
    /// Why: for editors
    #[arg(long, default_value = "cli", hide = true, value_parser = PossibleValuesParser::new(["cli", "vscode_connection", "jetbrains_connection"]))]
    reason: String,
    /// Do not wait for the end
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    no_wait: bool,
}

/// Flags of `coder delete`.
#[derive(Debug, Args)]
pub(super) struct Delete {
    #[command(flatten)]
    change: Change,
    /// Delete the workspace without the work that belongs to it: what that would have cleaned up stays
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    orphan: bool,
}

/// Flags of `coder logs`.
#[derive(Debug, Args)]
pub(super) struct BuildLogs {
    /// [OWNER/]WORKSPACE
    workspace: String,
    /// Number of the build; by default the newest one
    #[arg(short = 'n', long, value_name = "NUMBER")]
    build_number: Option<i64>,
    /// Go on until the build is done
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    follow: bool,
}

/// Flags of `coder cancel`.
#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// [OWNER/]WORKSPACE
    workspace: String,
}

/// Flags of `coder stop`, `restart`, `update` and, with its own, `delete`.
#[derive(Debug, Args)]
pub(super) struct Change {
    /// [OWNER/]WORKSPACE
    workspace: String,
    #[command(flatten)]
    yes: Yes,
}

#[derive(Debug, Args)]
pub(super) struct Yes {
    /// Ask nothing
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    yes: bool,
}

pub(super) async fn start(global: &Global, args: &Start) -> anyhow::Result<u8> {
    let (client, workspace) = open(global, &args.workspace).await?;
    let name = &workspace.name;
    if is_running(&workspace) {
        output::line(&format!("\nThe {name} workspace is already running!"))?;
        return Ok(0);
    }
    let build = begin(&client, &workspace, Transition::Start, &args.reason, None).await?;
    if args.no_wait {
        output::line(&format!("\nThe {name} workspace is being started."))?;
        return Ok(0);
    }
    finish(&client, &workspace, &build, "started").await?;
    done(name, "started")
}

pub(super) async fn stop(global: &Global, args: &Change) -> anyhow::Result<u8> {
    let (client, workspace) = open(global, &args.workspace).await?;
    confirm(&args.yes, &format!("Stop the workspace {}, with all sessions in it?", workspace.name)).await?;
    let build = begin(&client, &workspace, Transition::Stop, "cli", None).await?;
    finish(&client, &workspace, &build, "stopped").await?;
    done(&workspace.name, "stopped")
}

pub(super) async fn restart(global: &Global, args: &Change) -> anyhow::Result<u8> {
    let (client, workspace) = open(global, &args.workspace).await?;
    confirm(&args.yes, &format!("Restart the workspace {}, ending all sessions in it?", workspace.name)).await?;
    let build = begin(&client, &workspace, Transition::Stop, "cli", None).await?;
    finish(&client, &workspace, &build, "stopped").await?;
    let build = begin(&client, &workspace, Transition::Start, "cli", None).await?;
    finish(&client, &workspace, &build, "started").await?;
    done(&workspace.name, "restarted")
}

pub(super) async fn update(global: &Global, args: &Change) -> anyhow::Result<u8> {
    let (client, workspace) = open(global, &args.workspace).await?;
    if !workspace.outdated {
        output::line("Workspace is up-to-date.")?;
        return Ok(0);
    }
    confirm(&args.yes, &format!("Update the workspace {}, ending all sessions in it?", workspace.name)).await?;
    if is_running(&workspace) {
        let build = begin(&client, &workspace, Transition::Stop, "cli", None).await?;
        finish(&client, &workspace, &build, "stopped").await?;
    }
    let build = begin(&client, &workspace, Transition::Start, "cli", workspace.template_active_version_id).await?;
    finish(&client, &workspace, &build, "started").await?;
    done(&workspace.name, "updated")
}

pub(super) async fn delete(global: &Global, args: &Delete) -> anyhow::Result<u8> {
    let (client, workspace) = open(global, &args.change.workspace).await?;
    confirm(&args.change.yes, &format!("Delete the workspace {} for ever?", workspace.name)).await?;
    let build = client.build_workspace(workspace.id, Transition::Delete, "cli", None, args.orphan).await;
    let build = build.map_err(|error| refused(&workspace, error))?;
    finish(&client, &workspace, &build, "deleted").await?;
    done(&workspace.name, "deleted")
}

/// Shows the log of a build.
pub(super) async fn logs(global: &Global, args: &BuildLogs) -> anyhow::Result<u8> {
    let (client, workspace) = open(global, &args.workspace).await?;
    let build = match args.build_number {
        None => workspace.latest_build.clone(),
        Some(number) => {
            let builds = client.builds(workspace.id).await.map_err(explain)?;
            let found = builds.into_iter().find(|build| build.build_number == number);
            found.with_context(|| format!("workspace {:?} has no build {number}", workspace.name))?
        }
    };
    if args.follow {
        follow(&client, &build).await?;
        return Ok(0);
    }
    let mut shown = Stages::of(&build);
    let lines = client.build_lines(build.id, 0).await.map_err(explain)?;
    if lines.is_empty() && build.job.is_done() {
        output::note(&format!("The server has no log of build {}: those of old builds are not kept.", build.build_number));
    }
    for line in lines {
        shown.line(&line)?;
    }
    if build.job.is_done() {
        shown.end(&build.job)?;
    }
    Ok(0)
}

/// Cancels the build that is under way, and waits for its end.
pub(super) async fn cancel(global: &Global, args: &Cancel) -> anyhow::Result<u8> {
    let (client, workspace) = open(global, &args.workspace).await?;
    let (name, build) = (&workspace.name, &workspace.latest_build);
    if build.job.is_done() {
        bail!("no build of workspace {name:?} is under way: the newest one is {}", build.job.status);
    }
    client.cancel_build(build.id).await.map_err(explain)?;
    let ended = follow(&client, build).await?;
    output::line(&format!("\nThe build of the {name} workspace has ended as {}.", ended.job.status))?;
    Ok(0)
}

async fn open(global: &Global, argument: &str) -> anyhow::Result<(Client, Workspace)> {
    let deployment = Deployment::open(global).await?;
    let workspace = find(&deployment.client, &Target::parse(argument, &HostNames::default())).await?;
    Ok((deployment.client, workspace))
}

fn is_running(workspace: &Workspace) -> bool {
    workspace.latest_build.transition == Transition::Start && workspace.latest_build.status == "running"
}

/// Asks whoever sits at the terminal.
pub(super) async fn confirm(yes: &Yes, question: &str) -> anyhow::Result<()> {
    if yes.yes {
        return Ok(());
    }
    if !Terminals::of_process().input {
        bail!("{question} There is nobody to ask: pass --yes to agree");
    }
    output::note(&format!("{question} (yes/no)"));
    let answer = output::answer().await.context("cannot read the answer")?.unwrap_or_default();
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") { Ok(()) } else { Err(anyhow!("nothing was done")) }
}

async fn begin(
    client: &Client,
    workspace: &Workspace,
    transition: Transition,
    reason: &str,
    version: Option<uuid::Uuid>,
) -> anyhow::Result<Build> {
    client.build_workspace(workspace.id, transition, reason, version, false).await.map_err(|error| refused(workspace, error))
}

fn refused(workspace: &Workspace, error: HttpError) -> anyhow::Error {
    let name = &workspace.name;
    let under_way = error.status() == Some(409);
    let told = explain(error).context(format!("workspace {name:?} cannot be changed"));
    if under_way { anyhow!("{told:#}; 'coder logs {name}' shows the build, 'coder cancel {name}' ends it") } else { told }
}

/// Shows the log of a build to its end. Ctrl-C cancels it.
///
/// # Errors
/// When it does not end well.
pub(super) async fn finish(client: &Client, workspace: &Workspace, build: &Build, what: &str) -> anyhow::Result<()> {
    let name = &workspace.name;
    let mut signals = OwnSignals::open()?;
    let left = || anyhow!("the build goes on: 'coder logs -f {name}' shows it, 'coder cancel {name}' ends it");
    let mut following = pin!(timeout(BUILD_LIMIT, follow(client, build)));
    let ended = tokio::select! {
        ended = &mut following => ended,
        signal = signals.next() => {
            if signal != EndSignal::Interrupt {
                return Err(left());
            }
            output::note("Canceling the build; Ctrl-C once more leaves it alone.");
            let canceled = async {
                if let Err(error) = client.cancel_build(build.id).await {
                    output::note(&format!("The build is not canceled: {}", explain(error)));
                }
                following.await
            };
            tokio::select! {
                ended = canceled => ended,
                _ = signals.next() => return Err(left()),
            }
        }
    };
    let ended =
        ended.with_context(|| format!("workspace {name:?} was not {what} within {} min", BUILD_LIMIT.as_secs() / 60))??;
    match ended.job.error.as_str() {
        "" if ended.job.status == "succeeded" => Ok(()),
        "" => bail!("workspace {name:?} was not {what}: its build {}", ended.job.status),
        error => bail!("workspace {name:?} was not {what}: {error}"),
    }
}

fn done(name: &str, what: &str) -> anyhow::Result<u8> {
    let since = clock::wall().since_unix();
    let now = Timestamp::new(i64::try_from(since.as_secs()).unwrap_or(0), 0).unwrap_or_default();
    let now = now.to_zoned(jiff::tz::TimeZone::system());
    output::line(&format!("\nThe {name} workspace has been {what} at {}!", now.strftime("%b %e %H:%M:%S")))?;
    Ok(0)
}

/// Follows a build's log until the build is done.
async fn follow(client: &Client, build: &Build) -> anyhow::Result<Build> {
    let mut shown = Stages::of(build);
    loop {
        let read = read_log(client, build, &mut shown).await;
        let now = client.build(build.id).await.map_err(explain)?;
        if now.job.is_done() {
            if read.is_err() {
                // What came after the log broke off.
                for line in client.build_lines(build.id, shown.after).await.map_err(explain)? {
                    shown.line(&line)?;
                }
            }
            shown.end(&now.job)?;
            return Ok(now);
        }
        sleep(PAUSE).await;
    }
}

/// Shows lines as they come, until the server closes the log or is quiet for long.
async fn read_log(client: &Client, build: &Build, shown: &mut Stages) -> anyhow::Result<()> {
    let mut socket = client.follow_build(build.id, shown.after).await.map_err(explain)?;
    loop {
        match timeout(QUIET, socket.next()).await.context("the log is quiet")? {
            Some(Ok(Message::Text(text))) => {
                let line: BuildLine = serde_json::from_slice(&text).context("the server's log line cannot be read")?;
                shown.line(&line)?;
            }
            Some(Ok(Message::Close { .. })) | None => return Ok(()),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// The stages of a build as they were shown so far, with their times by the server's clock: a log may be read long after.
#[derive(Debug, Default)]
struct Stages {
    /// The newest line that was shown.
    after: i64,
    /// When the build began; unknown from its second stage on.
    begin: Option<Timestamp>,
    now: Option<(String, Option<Timestamp>)>,
}

impl Stages {
    fn of(build: &Build) -> Self {
        Self { begin: build.job.started_at.as_deref().and_then(time), ..Self::default() }
    }

    fn line(&mut self, line: &BuildLine) -> io::Result<()> {
        self.texts(line).iter().try_for_each(|text| output::line(text))
    }

    /// Ends the stage that is under way as its build ended.
    fn end(&mut self, job: &Job) -> io::Result<()> {
        let text = self.ended(job.status == "succeeded", job.completed_at.as_deref());
        text.map_or(Ok(()), |text| output::line(&text))
    }

    /// What a line of the log adds to what is shown.
    fn texts(&mut self, line: &BuildLine) -> Vec<String> {
        self.after = self.after.max(line.id);
        let mut texts = Vec::new();
        if !line.stage.is_empty() && self.now.as_ref().is_none_or(|(stage, _)| *stage != line.stage) {
            texts.extend(self.ended(true, Some(&line.created_at)));
            texts.push(format!("==> ⧗ {}", line.stage));
            // What a command does before its first line is of its stage, too.
            self.now = Some((line.stage.clone(), self.begin.take().or_else(|| time(&line.created_at))));
        }
        texts.extend(Some(printable(&line.output)).filter(|text| !text.is_empty()));
        texts
    }

    fn ended(&mut self, good: bool, at: Option<&str>) -> Option<String> {
        let (stage, since) = self.now.take()?;
        let sign = if good { '✔' } else { '✘' };
        // A server may leave its times out.
        let took =
            since.zip(at.and_then(time)).map(|(since, at)| format!(" [{}ms]", at.duration_since(since).as_millis().max(0)));
        Some(format!("=== {sign} {stage}{}", took.unwrap_or_default()))
    }
}

fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// A log line without what would drive the terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_takes_as_long_as_it_took_at_the_server_whenever_its_log_is_read() {
        let mut stages = Stages { begin: time("2026-11-27T10:00:00Z"), ..Stages::default() };
        let mut line = |id, created_at: &str, stage: &str, output: &str| {
            let (created_at, stage, output) = (created_at.to_owned(), stage.to_owned(), output.to_owned());
            stages.texts(&BuildLine { id, created_at, stage, output })
        };
        assert_eq!(line(1, "2026-11-27T10:00:00.2Z", "Plan", "a"), ["==> ⧗ Plan", "a"]);
        assert_eq!(line(2, "2026-11-27T10:00:01Z", "Plan", "b"), ["b"]);
        assert_eq!(line(3, "2026-11-27T10:00:01.5Z", "Apply", ""), ["=== ✔ Plan [1500ms]", "==> ⧗ Apply"]);
        assert_eq!(line(4, "2026-11-27T10:00:03Z", "Clean", "c"), ["=== ✔ Apply [1500ms]", "==> ⧗ Clean", "c"]);
        let ended = stages.ended(false, Some("2026-11-27T10:00:03.539Z"));
        assert_eq!((ended.as_deref(), stages.after), (Some("=== ✘ Clean [539ms]"), 4));
        assert_eq!(stages.ended(true, None), None);
        // A server that tells no times gets none.
        let untold = BuildLine { id: 5, created_at: String::new(), stage: "Plan".into(), output: String::new() };
        assert_eq!((stages.texts(&untold), stages.ended(true, None).as_deref()), (vec!["==> ⧗ Plan".into()], Some("=== ✔ Plan")));
    }

    #[test]
    fn a_log_line_cannot_drive_the_terminal() {
        assert_eq!(printable("\x1b[2Jred\x07\tx\r"), "[2Jred\tx");
    }
}
