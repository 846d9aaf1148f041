//! From a name to a tunnel, as a graph: whatever does not wait for something else runs beside it (DESIGN §3.12).
//!
//! Needed before the dial are the agent's id and the relay map; both are asked for at once. With them the relay, STUN, the
//! UDP sockets and the control socket start together, and the first SYN leaves as soon as the tunnel can carry it.

use super::{
    deployment::{Deployment, explain},
    output,
    target::Target,
};
use crate::{
    base::{RegionId, agent_addresses},
    client::{Agent, AgentStatus, Client, Lifecycle, Transition, Workspace},
    driver::{
        clock,
        control::{Control, ControlRole},
    },
    net::{Config, Counters, DialError, Stream, Tailnet},
    wire::derp::RelayMap,
};
use anyhow::{Context as _, anyhow, bail};
use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};
use tokio::sync::mpsc;

/// The agent's SSH server.
pub(super) const SSH_PORT: u16 = 1;
/// The agent's speed test server.
pub(super) const SPEEDTEST_PORT: u16 = 3;
/// How long an agent that the server does not hear from is waited for.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two questions for the agent's state.
const AGENT_POLL: Duration = Duration::from_millis(250);
/// How long the tunnel and the first answer through it may take.
const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// After this time a person is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A node that has a tunnel to one agent, or will have it.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) tailnet: Tailnet,
    /// `WORKSPACE` or `WORKSPACE.AGENT`, for messages.
    pub(super) name: String,
    /// The agent's overlay address.
    pub(super) address: Ipv6Addr,
    pub(super) relays: RelayMap,
    /// Whether the command line and the deployment allow direct paths.
    pub(super) direct: bool,
    control: Control,
}

impl Tunnel {
    /// Looks the workspace up and starts everything that leads to its agent.
    ///
    /// # Errors
    /// When there is no such workspace or agent, or it does not come up in time.
    pub(super) async fn open(deployment: &Deployment, target: &Target, direct: bool) -> anyhow::Result<Self> {
        Self::open_captured(deployment, target, direct, None).await
    }

    /// The same, with every packet of the tunnel handed to `capture`.
    ///
    /// # Errors
    /// As [`Tunnel::open`].
    pub(super) async fn open_captured(
        deployment: &Deployment,
        target: &Target,
        direct: bool,
        capture: Option<mpsc::Sender<Vec<u8>>>,
    ) -> anyhow::Result<Self> {
        let client = &deployment.client;
        let lookup = async {
            let workspace = client.workspace(&target.owner, &target.workspace).await.map_err(|e| match e.status() {
                Some(400 | 404) => {
                    anyhow!("there is no workspace {:?} of {:?} that you may see: {e}", target.workspace, target.owner)
                }
                _ => explain(e),
            })?;
            let agent = pick_agent(&workspace, target.agent.as_deref())?.clone();
            wait_for_agent(client, &workspace, &agent).await?;
            Ok::<_, anyhow::Error>((workspace, agent))
        };
        let connection = async { client.connection().await.map_err(explain) };
        let ((workspace, agent), connection) = tokio::try_join!(lookup, connection)?;

        let http = client.http().clone();
        let mut relays = connection.derp_map;
        let (host, port, plain) = http.endpoint();
        relays.rewrite_embedded(&host, port, plain);
        let direct = direct && !connection.disable_direct_connections;
        let control = Control::open(http.clone(), ControlRole::Client { agent: agent.id });
        let tailnet = Tailnet::start(Config {
            relay_map: Some(relays.clone()),
            control: Some(control.clone()),
            destinations: vec![agent.id],
            direct,
            force_websockets: connection.derp_force_websockets,
            capture,
            ..Config::client(http)?
        })
        .context("cannot open the network of this process")?;
        report_usage(client.clone(), &workspace, &agent);
        let [address, _] = agent_addresses(agent.id);
        Ok(Self { tailnet, name: target.to_string(), address, relays, direct, control })
    }

    /// Connects to a port of the agent.
    ///
    /// # Errors
    /// When the server refuses the coordination or the agent does not answer in time.
    pub(super) async fn dial(&self, port: u16) -> anyhow::Result<Stream> {
        let to = SocketAddrV6::new(self.address, port, 0, 0);
        let dial = self.tailnet.dial_tcp_within(to, DIAL_LIMIT);
        tokio::pin!(dial);
        let refused = async {
            match self.control.connected().await {
                Err(error) => explain(error),
                Ok(()) => std::future::pending().await,
            }
        };
        tokio::pin!(refused);
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        let mut told = false;
        loop {
            tokio::select! {
                stream = &mut dial => return stream.map_err(|e| self.explain(e)),
                error = &mut refused => return Err(error),
                () = &mut patience, if !told => {
                    told = true;
                    output::note(&format!("Waiting for the agent of {} to answer …", self.name));
                }
            }
        }
    }

    fn explain(&self, error: DialError) -> anyhow::Error {
        let name = &self.name;
        let limit = DIAL_LIMIT.as_secs();
        match error {
            DialError::UnknownPeer { .. } => {
                anyhow!("the coordinator did not announce the agent of {name} within {limit} s: is it running and connected?")
            }
            DialError::Unreachable { .. } => {
                anyhow!("no tunnel to the agent of {name} within {limit} s: it was announced, but answers on no path")
            }
            DialError::NoAnswer { port, .. } => {
                anyhow!("the tunnel to the agent of {name} stands, but its port {port} did not answer within {limit} s")
            }
            DialError::Refused(port) => anyhow!("the agent of {name} refused the connection to port {port}"),
            other => anyhow!("cannot connect to the agent of {name}: {other}"),
        }
    }

    /// The name of a relay region, for people.
    pub(super) fn region_name(&self, region: RegionId) -> String {
        self.relays.regions.get(&region).map_or_else(|| format!("Unnamed {region}"), |r| r.name.clone())
    }

    /// Says good-bye to the coordinator and, with `-v`, what was counted.
    pub(super) async fn close(self) {
        if let Ok(counters) = self.tailnet.counters().await {
            log_counters(&counters);
        }
        self.tailnet.close().await;
    }
}

/// What was counted, as one line of JSON.
pub(super) fn log_counters(counters: &Counters) {
    if let Ok(json) = serde_json::to_string(&counters.node) {
        tracing::debug!("counters {json}");
    }
}

/// The agent of that name, or the only one.
fn pick_agent<'a>(workspace: &'a Workspace, name: Option<&str>) -> anyhow::Result<&'a Agent> {
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
async fn wait_for_agent(client: &Client, workspace: &Workspace, agent: &Agent) -> anyhow::Result<()> {
    let mut agent = agent.clone();
    let end = clock::now() + AGENT_LIMIT;
    let mut told = false;
    loop {
        match agent.lifecycle_state {
            Lifecycle::ShuttingDown | Lifecycle::ShutdownTimeout | Lifecycle::ShutdownError | Lifecycle::Off
                if agent.status == AgentStatus::Connected =>
            {
                bail!("the agent of workspace {:?} is shutting down", workspace.name)
            }
            _ => {}
        }
        if agent.status == AgentStatus::Connected {
            return Ok(());
        }
        if clock::now() >= end {
            let limit = AGENT_LIMIT.as_secs();
            match agent.status {
                AgentStatus::Disconnected => {
                    bail!(
                        "the agent of workspace {:?} lost its connection to the server and did not come back within {limit} s: \
                           start it again",
                        workspace.name
                    )
                }
                _ => bail!(
                    "the agent of workspace {:?} did not connect to the server within {limit} s: start it with the line \
                            that 'coder create' printed",
                    workspace.name
                ),
            }
        }
        if !told {
            told = true;
            output::note(&format!("Waiting for the agent of workspace {} to connect …", workspace.name));
        }
        tokio::time::sleep(AGENT_POLL).await;
        agent = client.agent(agent.id).await.map_err(explain)?;
    }
}

/// Tells the server that the workspace is in use, beside everything else.
fn report_usage(client: Client, workspace: &Workspace, agent: &Agent) {
    let (workspace, agent) = (workspace.id, agent.id);
    tokio::spawn(async move {
        if let Err(error) = client.report_usage(workspace, agent, "ssh").await {
            tracing::debug!(%error, "the use of the workspace was not reported");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_stopped_workspace_is_not_dialled() {
        let mut stopped = workspace(&["main"]);
        stopped.latest_build.transition = Transition::Stop;
        assert!(pick_agent(&stopped, None).unwrap_err().to_string().contains("must be started"));
    }
}
