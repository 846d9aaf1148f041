//! From a workspace's name to an agent that can be dialled: what is stopped is started, what is not connected yet is
//! waited for, and so are startup scripts where the user wants that (`cli.md` §2.4).

use super::{args::Wait, deployment::explain, output, target::Target};
use crate::{
    base::Instant,
    client::{Agent, AgentStatus, Client, Lifecycle, Transition, Workspace},
    driver::{clock, http::HttpError},
};
use anyhow::{Context as _, anyhow, bail};
use std::time::Duration;

/// How long an agent that the server does not hear from is waited for.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// The same behind a start of the workspace, which may take a new machine.
const STARTED_AGENT_LIMIT: Duration = Duration::from_secs(600);
/// How long a workspace may take for its start.
const START_LIMIT: Duration = Duration::from_secs(1800);
/// How long the newest build may be another one than the start that was asked for.
const OTHER_BUILD_LIMIT: Duration = Duration::from_secs(10);
/// How long startup scripts are waited for; then the connection goes on without them.
const SCRIPTS_LIMIT: Duration = Duration::from_secs(3600);
/// Pause between two questions for the state of something, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(8);

/// What is done about a workspace that is not ready. By default it has to be started, and scripts are not waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Readiness {
    /// Start it if it is stopped.
    pub(super) start: bool,
    /// Wait for its startup scripts.
    pub(super) wait: Wait,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { start: false, wait: Wait::No }
    }
}

/// Looks the workspace up and gives its agent once the server hears from it.
///
/// # Errors
/// When there is none, it does not come up in time or fails to.
pub(super) async fn agent(client: &Client, target: &Target, readiness: Readiness) -> anyhow::Result<(Workspace, Agent)> {
    let mut workspace = find(client, target).await?;
    let mut limit = AGENT_LIMIT;
    if readiness.start && workspace.latest_build.transition != Transition::Start {
        start(client, &workspace).await?;
        limit = STARTED_AGENT_LIMIT;
    }
    if is_starting(&workspace) {
        output::note(&format!("Waiting for workspace {} to start …", workspace.name));
        limit = STARTED_AGENT_LIMIT;
    }
    if limit == STARTED_AGENT_LIMIT {
        workspace = started(client, target).await?;
    }
    let agent = pick_agent(&workspace, target.agent.as_deref())?.clone();
    let agent = wait_for_agent(client, &workspace, agent, limit).await?;
    let agent = wait_for_scripts(client, &workspace, agent, readiness.wait).await?;
    Ok((workspace, agent))
}

pub(super) async fn find(client: &Client, target: &Target) -> anyhow::Result<Workspace> {
    // The server would take it for another call.
    if [&target.owner, &target.workspace].iter().any(|name| name.is_empty() || name.contains('/')) {
        bail!("{:?} names no workspace: write [OWNER/]WORKSPACE[.AGENT]", target.typed);
    }
    client.workspace(&target.owner, &target.workspace).await.map_err(|e| match e.status() {
        Some(400 | 404) => {
            anyhow!("there is no workspace {:?} of {:?} that you may see: {e}", target.workspace, target.owner)
        }
        _ => explain(e),
    })
}

/// Asks for the start of a workspace that is not started.
async fn start(client: &Client, workspace: &Workspace) -> anyhow::Result<()> {
    let (name, build) = (&workspace.name, &workspace.latest_build);
    match (build.transition, build.status.as_str()) {
        (Transition::Delete, _) => bail!("workspace {name:?} is {}", build.status),
        (_, "stopped") => {}
        (_, status) => {
            bail!("workspace {name:?} is {status}, so it is not started: wait until it is stopped, or see what failed")
        }
    }
    output::note(&format!("Workspace {name} is stopped: starting it …"));
    let version = workspace.template_active_version_id;
    let refused = |e: HttpError| explain(e).context(format!("workspace {name:?} cannot be started"));
    match client.start_workspace(workspace.id, None).await {
        Ok(()) => Ok(()),
        // Somebody else was faster.
        Err(e) if e.status() == Some(409) => Ok(()),
        // The version of the last build may be forbidden by now.
        Err(e) if e.status() == Some(403) && version.is_some() => {
            client.start_workspace(workspace.id, version).await.map_err(refused)
        }
        Err(e) => Err(refused(e)),
    }
}

fn is_starting(workspace: &Workspace) -> bool {
    let build = &workspace.latest_build;
    build.transition == Transition::Start && matches!(build.status.as_str(), "pending" | "starting" | "canceling")
}

/// Waits for the end of a start that was asked for.
async fn started(client: &Client, target: &Target) -> anyhow::Result<Workspace> {
    let since = clock::now();
    loop {
        let workspace = find(client, target).await?;
        let build = &workspace.latest_build;
        if build.transition == Transition::Start && !is_starting(&workspace) {
            if let Some(failed) = failed_start(&workspace) {
                bail!("the {failed}");
            }
            return Ok(workspace);
        }
        let ended = !matches!(build.status.as_str(), "pending" | "stopping" | "deleting" | "canceling");
        if build.transition != Transition::Start && ended && clock::now() - since >= OTHER_BUILD_LIMIT {
            bail!("workspace {:?} is {} again: somebody else stopped it", workspace.name, build.status);
        }
        if clock::now() - since >= START_LIMIT {
            bail!("workspace {:?} did not start within {} min", workspace.name, START_LIMIT.as_secs() / 60);
        }
        tokio::time::sleep(pause(since)).await;
    }
}

/// How the newest build ended, if it was a start that did not end well.
fn failed_start(workspace: &Workspace) -> Option<String> {
    let build = &workspace.latest_build;
    if build.transition != Transition::Start || is_starting(workspace) || build.status == "running" {
        return None;
    }
    let (name, error) = (&workspace.name, &build.job.error);
    let why = if error.is_empty() { String::new() } else { format!(": {error}") };
    Some(format!("start of workspace {name:?} ended as {}{why}; 'coder logs {name}' shows its log", build.status))
}

/// Longer and longer, so that a server is not asked ten thousand times for what takes its time.
fn pause(since: Instant) -> Duration {
    ((clock::now() - since) / 30).clamp(FIRST_PAUSE, LAST_PAUSE)
}

/// The agent of that name, or the only one.
pub(super) fn pick_agent<'a>(workspace: &'a Workspace, name: Option<&str>) -> anyhow::Result<&'a Agent> {
    if workspace.latest_build.transition != Transition::Start || workspace.latest_build.status == "stopped" {
        bail!("workspace {:?} is {}: it must be started first", workspace.name, workspace.latest_build.status);
    }
    let agents: Vec<_> = workspace.agents().collect();
    let names = || agents.iter().map(|a| a.name.as_str()).collect::<Vec<_>>().join(" ");
    match (name, agents.as_slice()) {
        (Some(name), agents) => {
            let found = agents.iter().find(|a| a.name.eq_ignore_ascii_case(name));
            found.copied().with_context(|| format!("agent not found by name {name:?}, available agents: [{}]", names()))
        }
        (None, [agent]) => Ok(agent),
        (None, []) => bail!("workspace {:?} has no agents", workspace.name),
        (None, _) => bail!("multiple agents found, please specify the agent name, available agents: [{}]", names()),
    }
}

/// Waits until the server hears from the agent.
async fn wait_for_agent(client: &Client, workspace: &Workspace, mut agent: Agent, limit: Duration) -> anyhow::Result<Agent> {
    let since = clock::now();
    let name = &workspace.name;
    let mut told = false;
    loop {
        if agent.status == AgentStatus::Connected {
            return match agent.lifecycle_state {
                Lifecycle::ShuttingDown | Lifecycle::ShutdownTimeout | Lifecycle::ShutdownError | Lifecycle::Off => {
                    bail!("the agent of workspace {name:?} is shutting down")
                }
                _ => Ok(agent),
            };
        }
        // Whoever starts the agent by hand all the same has it connected.
        if let Some(failed) = failed_start(workspace) {
            bail!("the {failed}, 'coder start {name}' tries again");
        }
        if clock::now() - since >= limit {
            let limit = limit.as_secs();
            match agent.status {
                AgentStatus::Disconnected => bail!(
                    "the agent of workspace {name:?} lost its connection to the server and did not come back within {limit} s: \
                     start it again"
                ),
                _ => bail!(
                    "the agent of workspace {name:?} did not connect to the server within {limit} s: start it with the line \
                     that 'coder create' printed"
                ),
            }
        }
        if !told {
            told = true;
            output::note(&format!("Waiting for the agent of workspace {name} to connect …"));
        }
        tokio::time::sleep(pause(since)).await;
        agent = look_again(client, name, &agent).await?;
    }
}

/// The agent as it is now.
async fn look_again(client: &Client, name: &str, agent: &Agent) -> anyhow::Result<Agent> {
    client.agent(agent.id).await.map_err(|e| match e.status() {
        Some(404 | 410) => anyhow!("the agent of workspace {name:?} is gone: the workspace was deleted, or built anew ({e})"),
        _ => explain(e),
    })
}

/// Waits for startup scripts, if the user or one of them wants that. One that fails is told and no error.
async fn wait_for_scripts(client: &Client, workspace: &Workspace, mut agent: Agent, wait: Wait) -> anyhow::Result<Agent> {
    let since = clock::now();
    let name = &workspace.name;
    let mut told = false;
    while is_running_scripts(&agent) && is_waited_for(&agent, wait) {
        if agent.status != AgentStatus::Connected {
            bail!("the agent of workspace {name:?} lost its connection to the server while its startup scripts ran");
        }
        if !told {
            told = true;
            output::note(&format!(
                "Waiting for the startup scripts of workspace {name} to end; with --wait=no you connect at once …"
            ));
        }
        if clock::now() - since >= SCRIPTS_LIMIT {
            break;
        }
        tokio::time::sleep(pause(since)).await;
        agent = look_again(client, name, &agent).await?;
    }
    if agent.scripts.is_empty() {
        return Ok(agent);
    }
    match agent.lifecycle_state {
        Lifecycle::StartError => {
            output::note(&format!("Warning: a startup script of workspace {name} failed, and something may be missing there."))
        }
        Lifecycle::StartTimeout => output::note(&format!(
            "Warning: a startup script of workspace {name} takes too long, and something may be missing there yet."
        )),
        _ if is_running_scripts(&agent) => {
            output::note(&format!("The startup scripts of workspace {name} still run, and something may be missing there yet."))
        }
        _ => {}
    }
    Ok(agent)
}

fn is_running_scripts(agent: &Agent) -> bool {
    matches!(agent.lifecycle_state, Lifecycle::Created | Lifecycle::Starting)
}

fn is_waited_for(agent: &Agent, wait: Wait) -> bool {
    match wait {
        Wait::Yes => true,
        Wait::No => false,
        Wait::Auto => agent.scripts.iter().any(|script| script.start_blocks_login),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Script;

    fn workspace(agents: &[&str]) -> Workspace {
        let vector: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/http/workspace_by_owner_and_name.json")).unwrap();
        let mut workspace: Workspace = serde_json::from_value(vector["body"].clone()).unwrap();
        let resource = &mut workspace.latest_build.resources[0];
        let agent = resource.agents.pop().unwrap();
        resource.agents = agents.iter().map(|name| Agent { name: (*name).into(), ..agent.clone() }).collect();
        workspace
    }

    #[test]
    fn the_only_agent_is_taken_and_several_must_be_named() {
        let text = |r: anyhow::Result<&Agent>| r.map(|a| a.name.clone()).map_err(|e| e.to_string());
        assert_eq!(text(pick_agent(&workspace(&["main"]), None)), Ok("main".into()));
        assert_eq!(text(pick_agent(&workspace(&["main", "side"]), Some("SIDE"))), Ok("side".into()));
        let many = "multiple agents found, please specify the agent name, available agents: [main side]";
        assert_eq!(text(pick_agent(&workspace(&["main", "side"]), None)), Err(many.into()));
        let none = "agent not found by name \"x\", available agents: [main]";
        assert_eq!(text(pick_agent(&workspace(&["main"]), Some("x"))), Err(none.into()));
    }

    #[test]
    fn scripts_are_waited_for_as_the_user_and_they_themselves_want() {
        let agent = |blocks: &[bool]| {
            let mut agent = workspace(&["main"]).agents().next().unwrap().clone();
            agent.scripts = blocks.iter().map(|&start_blocks_login| Script { start_blocks_login }).collect();
            agent
        };
        for (blocks, yes, no, auto) in
            [(&[][..], true, false, false), (&[false], true, false, false), (&[false, true], true, false, true)]
        {
            let got = [Wait::Yes, Wait::No, Wait::Auto].map(|wait| is_waited_for(&agent(blocks), wait));
            assert_eq!(got, [yes, no, auto], "{blocks:?}");
        }
    }

    #[test]
    fn a_start_that_ended_badly_is_named_with_its_reason_and_the_way_to_its_log() {
        let mut dev = workspace(&["main"]);
        for good in ["running", "pending", "starting", "canceling"] {
            good.clone_into(&mut dev.latest_build.status);
            assert_eq!(failed_start(&dev), None, "{good}");
        }
        "failed".clone_into(&mut dev.latest_build.status);
        "no quota".clone_into(&mut dev.latest_build.job.error);
        let told = "start of workspace \"dev\" ended as failed: no quota; 'coder logs dev' shows its log";
        assert_eq!(failed_start(&dev).unwrap(), told);
        dev.latest_build.transition = Transition::Stop;
        assert_eq!(failed_start(&dev), None);
    }

    #[test]
    fn a_stopped_workspace_is_not_dialled() {
        let mut stopped = workspace(&["main"]);
        stopped.latest_build.transition = Transition::Stop;
        assert!(pick_agent(&stopped, None).unwrap_err().to_string().contains("must be started"));
    }
}
