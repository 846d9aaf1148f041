//! From a name to a tunnel, as a graph: whatever does not wait for something else runs beside it (DESIGN §3.12).
//!
//! Needed before the dial are the agent's id and the relay map; both are asked for at once. With them the relay, STUN, the
//! UDP sockets and the control socket start together, and the first SYN leaves as soon as the tunnel can carry it.

use super::{
    deployment::{Deployment, explain},
    output,
    ready::{self, Readiness},
    target::Target,
    timeline::Timeline,
    watch::{Fate, Watch},
};
use crate::{
    base::{RegionId, agent_addresses},
    client::Client,
    driver::{
        clock,
        control::{Control, ControlRole},
        http::Http,
    },
    net::{Config, Counters, DialError, Stream, Tailnet},
    wire::derp::RelayMap,
};
use anyhow::{Context as _, anyhow};
use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle};
use uuid::Uuid;

/// The agent's SSH server.
pub(super) const SSH_PORT: u16 = 1;
/// The agent's speed test server.
pub(super) const SPEEDTEST_PORT: u16 = 3;
/// How long the tunnel and the first answer through it may take.
const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// After this time a person is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two reports that a workspace is in use.
const USAGE_INTERVAL: Duration = Duration::from_secs(60);

/// What a command wants of its tunnel.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Direct paths are allowed.
    pub(super) direct: bool,
    /// Gets every packet of the tunnel.
    pub(super) capture: Option<mpsc::Sender<Vec<u8>>>,
    /// As what the use of the workspace is reported, if at all.
    pub(super) usage: Option<Usage>,
    /// The workspace is watched: what becomes of it decides over the connection.
    pub(super) watch: bool,
    /// What is done about a workspace that is not ready.
    pub(super) readiness: Readiness,
}

/// What the server is told of the use of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    /// A kind of program uses it.
    App(&'static str),
    /// It is in use.
    Unnamed,
}

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
    pub(super) timeline: Timeline,
    /// Whether the deployment forbids them.
    pub(super) relayed_only: bool,
    control: Control,
    watch: Option<Watch>,
    _usage: Option<UsageReports>,
}

impl Tunnel {
    /// Looks the workspace up and starts everything that leads to its agent.
    ///
    /// # Errors
    /// When there is no such workspace or agent, or it does not come up in time.
    pub(super) async fn open(deployment: &Deployment, target: &Target, wishes: Wishes) -> anyhow::Result<Self> {
        let Wishes { direct, capture, usage, watch, readiness } = wishes;
        let client = &deployment.client;
        let timeline = Timeline::start();
        let began = clock::now();
        let lookup = ready::agent(client, target, readiness);
        let connection = async { client.connection().await.map_err(explain) };
        let ((workspace, agent), connection) = tokio::try_join!(lookup, connection)?;
        timeline.ended("api", began);

        let http = client.http().clone();
        let mut relays = connection.derp_map;
        let (host, port, plain) = http.endpoint();
        relays.rewrite_embedded(&host, port, plain);
        let relayed_only = connection.disable_direct_connections;
        let direct = direct && !relayed_only;
        let control = Control::open(http.clone(), ControlRole::Client { agent: agent.id });
        time_coordinator(&control, &timeline);
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
        let usage = usage.map(|usage| UsageReports::start(client.clone(), workspace.id, agent.id, usage));
        let watch = watch.then(|| Watch::start(client.clone(), workspace.id, agent.id));
        let [address, _] = agent_addresses(agent.id);
        let name = target.to_string();
        Ok(Self { tailnet, name, address, relays, direct, relayed_only, timeline, control, watch, _usage: usage })
    }

    /// Waits until the workspace is something else than it was when it was looked up. Never, if it is not watched.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait.
    pub(super) async fn fate(&self) -> Fate {
        match &self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Why a connection of the tunnel was lost, if the workspace itself is the reason.
    pub(super) async fn why_lost(&self) -> Option<Fate> {
        let fate = self.watch.as_ref()?.fate().await;
        (fate != Fate::Same).then_some(fate)
    }

    /// Waits for the server's refusal to introduce us to the agent.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait.
    pub(super) async fn refused(&self) -> anyhow::Error {
        match self.control.connected().await {
            Err(error) => explain(error),
            Ok(()) => std::future::pending().await,
        }
    }

    /// Connects to a port of the agent.
    ///
    /// # Errors
    /// When the server refuses the coordination or the agent does not answer in time.
    pub(super) async fn dial(&self, port: u16) -> anyhow::Result<Stream> {
        let began = clock::now();
        let to = SocketAddrV6::new(self.address, port, 0, 0);
        let dial = self.tailnet.dial_tcp_within(to, DIAL_LIMIT);
        tokio::pin!(dial);
        let refused = self.refused();
        tokio::pin!(refused);
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        let mut told = false;
        loop {
            tokio::select! {
                stream = &mut dial => {
                    self.timeline.ended("first packet", began);
                    return stream.map_err(|e| self.explain(e));
                }
                error = &mut refused => return Err(error),
                () = &mut patience, if !told => {
                    told = true;
                    output::note(&format!("Waiting for the agent of {} to answer …", self.name));
                }
            }
        }
    }

    /// Writes how long each stage took (`-v`), once. Cancel safe: who broke it off may call again.
    pub(super) async fn log_timeline(&self, http: &Http) {
        let relay = self.tailnet.counters().await.map(|counters| counters.relays.first);
        if let Some((end, took)) = http.first_lookup() {
            self.timeline.took("resolve", end, took);
        }
        if let Ok(Some((end, took))) = relay {
            self.timeline.took("relay", end, took);
        }
        self.timeline.log();
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

    /// [`Tunnel::close`] in a hurry: what is not said in time, the coordinator finds out by the closed socket.
    pub(super) async fn close_within(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.close()).await;
    }

    /// Says good-bye to the coordinator and, with `-v`, what was counted.
    pub(super) async fn close(&self) {
        if let Ok(counters) = self.tailnet.counters().await {
            log_counters(&counters);
        }
        self.tailnet.close().await;
    }
}

/// Notes when the coordinator is there.
fn time_coordinator(control: &Control, timeline: &Timeline) {
    let (control, timeline, began) = (control.clone(), timeline.clone(), clock::now());
    tokio::spawn(async move {
        if control.connected().await.is_ok() {
            timeline.ended("coordinator", began);
        }
    });
}

/// What was counted, as one line of JSON.
pub(super) fn log_counters(counters: &Counters) {
    if let Ok(json) = serde_json::to_string(&counters.node) {
        tracing::debug!("counters {json}");
    }
}

/// Tells the server that the workspace is in use, now and every minute, until this is dropped.
#[derive(Debug)]
struct UsageReports(JoinHandle<()>);

impl UsageReports {
    fn start(client: Client, workspace: Uuid, agent: Uuid, usage: Usage) -> Self {
        let app = match usage {
            Usage::App(app) => Some(app),
            Usage::Unnamed => None,
        };
        Self(tokio::spawn(async move {
            loop {
                if let Err(error) = client.report_usage(workspace, agent, app).await {
                    tracing::debug!(%error, "the use of the workspace was not reported");
                }
                tokio::time::sleep(USAGE_INTERVAL).await;
            }
        }))
    }
}

impl Drop for UsageReports {
    fn drop(&mut self) {
        self.0.abort();
    }
}
