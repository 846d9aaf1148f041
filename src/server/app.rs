//! What all handlers and tasks of one server share.

use super::token::{NoRandomness, seed};
use super::{
    builds::UnderWay,
    changes::{Changed, Changes},
    config::{Hooks, Redirect, SessionRules},
    coordination::Coordination,
    limits::Limits,
    live::{Agents, Latency},
    metrics::Requests,
    origin::TrustedProxies,
    places::Places,
    relays::{Relays, seen_from},
    resume::ResumeTokens,
    ssh_hosts::SshHosts,
    store::{Store, Workspace},
    tunnels::Tunnels,
};
use crate::{
    base::{NodeSecret, Rng},
    driver::relay::RelayServer,
    wire::derp::RelayMap,
};
use axum::http::HeaderValue;
use std::{future::Future, sync::Arc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;
use uuid::Uuid;

/// What does not change while the server runs.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where users reach the server; no slash at the end.
    pub(crate) access_url: String,
    /// Host and port of the access URL, as a browser writes them.
    pub(crate) authority: String,
    /// What users' SSH configurations shall hold.
    pub(crate) ssh_hosts: SshHosts,
    /// Which requests are sent to the access URL.
    pub(crate) redirect: Redirect,
    /// HTTPS is served.
    pub(crate) has_tls: bool,
    /// The value of `Strict-Transport-Security`.
    pub(crate) transport_security: Option<HeaderValue>,
    /// Only browsers may connect to workspaces.
    pub(crate) browser_only: bool,
    /// The host of workspace applications, with the access URL's port.
    pub(crate) wildcard_host: String,
    /// How long keys live.
    pub(crate) sessions: SessionRules,
    /// Whoever asks first makes the first user.
    pub(crate) first_user_by_request: bool,
    /// Who is believed to ask for others.
    pub(crate) proxies: TrustedProxies,
    /// What starts and stops workspaces.
    pub(crate) hooks: Hooks,
}

/// How nodes shall find each other.
#[derive(Debug)]
pub(crate) struct Network {
    /// This server is a relay.
    pub(crate) embedded: bool,
    /// The relays and STUN servers.
    pub(super) relays: Relays,
    /// Nodes shall announce no endpoints.
    pub(crate) block_direct: bool,
    /// Nodes shall speak to relays over WebSockets.
    pub(crate) force_websockets: bool,
    /// Where this process itself reaches its HTTP address.
    pub(super) own_url: String,
}

/// The server's state. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    network: Network,
    settings: Settings,
    limits: Limits,
    requests: Requests,
    agents: Agents,
    coordination: Coordination,
    tunnels: Tunnels,
    relay: RelayServer,
    places: Places,
    resume: ResumeTokens,
    changes: Arc<Changed>,
    builds: UnderWay,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl App {
    /// The state of a server.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub(crate) fn new(store: Store, network: Network, settings: Settings, limits: Limits) -> Result<Self, NoRandomness> {
        let mut rng = Rng::from_seed(seed()?);
        Ok(Self(Arc::new(Inner {
            store,
            network,
            settings,
            limits,
            requests: Requests::default(),
            agents: Agents::default(),
            coordination: Coordination::default(),
            tunnels: Tunnels::default(),
            relay: RelayServer::new(NodeSecret::generate(&mut rng), rng),
            places: Places::as_many_as_files(),
            resume: ResumeTokens::new()?,
            changes: Arc::default(),
            builds: UnderWay::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })))
    }

    /// What is remembered.
    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// How nodes shall find each other.
    pub(crate) fn network(&self) -> &Network {
        &self.0.network
    }

    /// What does not change while the server runs.
    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// How many requests are answered.
    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The requests that were answered.
    pub(crate) fn requests(&self) -> &Requests {
        &self.0.requests
    }

    /// What users' SSH configurations shall hold.
    pub(crate) fn ssh_hosts(&self) -> &SshHosts {
        &self.0.settings.ssh_hosts
    }

    /// The relay map as users get it.
    pub(crate) fn relay_map(&self) -> Arc<RelayMap> {
        self.0.network.relays.now()
    }

    /// The relay map `map` as the agent of `workspace` gets it: an agent may reach the server by a URL of its own.
    pub(crate) fn map_for(&self, workspace: &Workspace, map: Arc<RelayMap>) -> Arc<RelayMap> {
        match Url::parse(&workspace.agent_url) {
            Ok(url) => Arc::new(seen_from(&map, &url)),
            Err(_) => map,
        }
    }

    /// Where users reach the server; no slash at the end.
    pub(crate) fn access_url(&self) -> &str {
        &self.0.settings.access_url
    }

    /// Whether users reach the server by https.
    pub(crate) fn is_https(&self) -> bool {
        self.0.settings.access_url.starts_with("https://")
    }

    /// Host and port of the access URL, as a browser writes them.
    pub(crate) fn authority(&self) -> &str {
        &self.0.settings.authority
    }

    /// The agents that are connected now.
    pub(crate) fn agents(&self) -> &Agents {
        &self.0.agents
    }

    /// Who is to find whom.
    pub(crate) fn coordination(&self) -> &Coordination {
        &self.0.coordination
    }

    /// The way to agents.
    pub(crate) fn tunnels(&self) -> &Tunnels {
        &self.0.tunnels
    }

    /// The embedded relay.
    pub(crate) fn relay(&self) -> &RelayServer {
        &self.0.relay
    }

    /// Who may hold how many connections.
    pub(crate) fn places(&self) -> &Places {
        &self.0.places
    }

    /// The tokens by which clients keep their peer id.
    pub(crate) fn resume(&self) -> &ResumeTokens {
        &self.0.resume
    }

    /// The latencies that a connected agent announced.
    pub(crate) fn latency_of(&self, agent: Uuid) -> Option<Latency> {
        self.0.agents.latency(agent)
    }

    /// The builds whose commands run now.
    pub(crate) fn builds(&self) -> &UnderWay {
        &self.0.builds
    }

    /// Tells those who watch a workspace or a build that something about it changed.
    pub(crate) fn announce(&self, what: Uuid) {
        self.0.changes.announce(what);
    }

    /// The changes of a workspace or a build from now on.
    pub(crate) fn changes(&self, of: Uuid) -> Changes {
        Changes::of(&self.0.changes, of, self.0.stop.clone())
    }

    /// Cancelled when the server shuts down.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Runs a task that ends by itself soon after [`App::stopping`].
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(task);
    }

    /// All tasks of the server.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }
}
