//! What the agent serves in the tunnel: SSH on ports 1 and 22, terminals on port 2, speed tests on port 3, HTTP on port 4,
//! and the machine's own ports (agent.md §5.1).

use super::{
    api::{self, Api},
    assignment::Assignment,
    datagrams, ports,
    pty::{self, Terminals},
    speedtest::{self, Speedtests},
    ssh::Server,
    statistics::Sample,
    traffic::Traffic,
};
use crate::{
    net::{BindError, Incoming, Listener, Tailnet},
    proto::node::PingKind,
};
use futures::future::join_all;
use serde_json::Value;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

/// The ports of the SSH server: the command line's and the usual one.
const SSH_PORTS: [u16; 2] = [1, 22];
/// Ports kept for services of the agent; what is not served among them is closed, not forwarded.
const RESERVED: std::ops::RangeInclusive<u16> = 1..=8;
/// What SSH sessions get to close when the agent stops.
const SSH_LIMIT: Duration = Duration::from_secs(5);
/// Most forwarded connections at the same time.
const MAX_FORWARDS: usize = 4096;

/// How long a peer may take to answer the ping of a report.
const PING: Duration = Duration::from_secs(5);
/// Most peers that are pinged for one report.
const MAX_PINGS: usize = 64;

/// The running services. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    agent: Uuid,
    tailnet: Tailnet,
    pub(crate) ssh: Server,
    terminals: Terminals,
    api: Api,
    traffic: Traffic,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Services {
    /// Listens and serves until [`Services::close`]. `log` is the file that keeps the agent's own log.
    ///
    /// # Cancel safety
    /// What a cancelled or failed call has begun ends, and with it the node, once nobody else holds it.
    pub(crate) async fn start(
        agent: Uuid,
        tailnet: Tailnet,
        ssh: Server,
        manifest: Value,
        log: Option<PathBuf>,
    ) -> Result<Self, BindError> {
        let (traffic, terminals) = (Traffic::default(), Terminals::new(ssh.clone()));
        let api = Api::new(tailnet.clone(), traffic.clone(), ssh.clone(), manifest, log);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let broken_off = stop.clone().drop_guard();
        let this = Self { agent, tailnet, ssh, terminals, api, traffic, stop, tasks };
        for port in SSH_PORTS {
            let listener = this.tailnet.listen_tcp(port).await?;
            this.spawn(this.clone().serve_ssh(listener));
        }
        let listener = this.tailnet.listen_tcp(speedtest::PORT).await?;
        this.spawn(this.clone().serve_speedtests(listener));
        let listener = this.tailnet.listen_tcp(pty::PORT).await?;
        this.spawn(this.clone().serve_terminals(listener));
        let listener = this.tailnet.listen_tcp(api::PORT).await?;
        this.spawn(this.clone().serve_api(listener));
        let rest = this.tailnet.listen_rest().await?;
        this.spawn(this.clone().forward_rest(rest));
        let datagrams = this.tailnet.bind_udp_rest().await?;
        this.spawn(datagrams::forward(datagrams, |port| !RESERVED.contains(&port)));
        broken_off.disarm();
        Ok(this)
    }

    /// Applies a later manifest.
    pub(crate) fn update(&self, assignment: Assignment) {
        if assignment.agent != self.agent {
            tracing::error!(was = %self.agent, is = %assignment.agent, "the token names another agent now: restart this one");
            return;
        }
        self.ssh.set_profile(assignment.profile);
        self.api.set_manifest(assignment.manifest);
        self.tailnet.set_relay_map(assignment.relay_map);
        self.tailnet.set_force_websockets(assignment.force_websockets);
        self.tailnet.set_direct(assignment.direct);
    }

    /// The counters as they are now.
    pub(crate) fn sample(&self) -> Sample {
        Sample { traffic: self.traffic.read(), ssh: self.ssh.counters() }
    }

    /// The median round trip to the peers that have connections now, if any answers.
    pub(crate) async fn median_latency(&self) -> Option<Duration> {
        let mut pings = Vec::new();
        for peer in self.traffic.peers().into_iter().take(MAX_PINGS) {
            pings.push(self.tailnet.ping(peer, PingKind::Disco, PING));
        }
        let mut answers: Vec<Duration> = join_all(pings).await.into_iter().flatten().map(|pong| pong.latency).collect();
        answers.sort_unstable();
        answers.get(answers.len() / 2).copied()
    }

    /// Tells all who are here that the agent stops, and ends their sessions and terminals within a few seconds.
    pub(crate) async fn end_sessions(&self) {
        tokio::join!(self.ssh.shutdown(SSH_LIMIT), self.terminals.shutdown());
    }

    /// Ends what [`Services::end_sessions`] has left and leaves the tunnel.
    pub(crate) async fn close(&self) {
        self.log_counters().await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.tailnet.close().await;
    }

    /// What the node counted, as one line of JSON.
    async fn log_counters(&self) {
        if tracing::enabled!(tracing::Level::DEBUG)
            && let Ok(counters) = self.tailnet.counters().await
            && let Ok(json) = serde_json::to_string(&counters.node)
        {
            tracing::debug!("counters {json}");
        }
    }

    /// Runs a task until the services close.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    async fn serve_ssh(self, mut listener: Listener) {
        while let Ok(incoming) = listener.accept().await {
            let this = self.clone();
            self.spawn(async move {
                match incoming.accept().await {
                    Ok(stream) => {
                        let from = *stream.peer_addr().ip();
                        this.ssh.serve_from(this.traffic.count(stream).of(from), Some(from.into())).await;
                        this.log_counters().await;
                    }
                    Err(error) => tracing::debug!(%error, "an SSH client did not wait"),
                }
            });
        }
    }

    async fn serve_terminals(self, mut listener: Listener) {
        while let Ok(incoming) = listener.accept().await {
            let this = self.clone();
            self.spawn(async move {
                if let Ok(stream) = incoming.accept().await {
                    let from = *stream.peer_addr().ip();
                    this.terminals.serve(this.traffic.count(stream), Some(from.into())).await;
                }
            });
        }
    }

    async fn serve_api(self, mut listener: Listener) {
        while let Ok(incoming) = listener.accept().await {
            let this = self.clone();
            self.spawn(async move {
                if let Ok(stream) = incoming.accept().await {
                    this.api.serve(this.traffic.count(stream)).await;
                }
            });
        }
    }

    async fn serve_speedtests(self, mut listener: Listener) {
        let tests = Speedtests::new();
        while let Ok(incoming) = listener.accept().await {
            let (this, tests) = (self.clone(), tests.clone());
            self.spawn(async move {
                let Ok(stream) = incoming.accept().await else { return };
                let mut stream = this.traffic.count(stream);
                if let Err(error) = tests.serve(&mut stream).await {
                    tracing::debug!(%error, "a speed test broke off");
                    stream.into_inner().abort();
                }
            });
        }
    }

    async fn forward_rest(self, mut listener: Listener) {
        let room = Arc::new(Semaphore::new(MAX_FORWARDS));
        while let Ok(incoming) = listener.accept().await {
            let port = incoming.local_addr().port();
            let place = Arc::clone(&room).try_acquire_owned();
            let Ok(place) = place else {
                tracing::debug!(port, "too many forwarded connections");
                incoming.refuse();
                continue;
            };
            if RESERVED.contains(&port) {
                incoming.refuse();
                continue;
            }
            let this = self.clone();
            self.spawn(async move {
                this.forward(incoming, port).await;
                drop(place);
            });
        }
    }

    /// The client's connection stands only once the local one does.
    async fn forward(&self, incoming: Incoming, port: u16) {
        let mut local = match ports::connect(port).await {
            Ok(local) => local,
            Err(error) => {
                tracing::debug!(port, %error, "nothing listens");
                return incoming.refuse();
            }
        };
        let Ok(stream) = incoming.accept().await else { return };
        let from = *stream.peer_addr().ip();
        let mut stream = self.traffic.count(stream).of(from);
        if stream.carry(&mut local).await.is_err() {
            // What one side reset is reset on the other too, instead of looking like a proper end.
            let _ = local.set_zero_linger();
            stream.into_inner().abort();
        }
    }
}

#[cfg(test)]
mod tests;
