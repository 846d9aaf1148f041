//! One control socket: bytes between the WebSocket and a [`ServerSession`], requests to the coordinator, news from it.

use super::{
    super::{
        access::Machine,
        app::App,
        live::{Latency, Presence},
        time::Stamp,
        upgrade::{Socket, closed_by_peer, farewell},
    },
    calls,
};
use crate::{
    base::RegionId,
    driver::{clock, control::REPLACED, websocket::Message},
    proto::coord::{Auth, ConnId, Death, Delivery, ServerCall, ServerEvent, ServerRole, ServerSession},
    wire::{
        coord::{
            drpc::RpcError,
            tailnet::{self, CoordinateRequest},
        },
        derp::RelayMap,
    },
};
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often a client's socket is pinged, and how long it may take to answer.
const PING: Duration = Duration::from_secs(15);
/// How long a write may take before the peer is given up.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// A day bounds what a timer is asked for where no deadline is set.
const FAR: Duration = Duration::from_secs(86_400);

/// Whose socket it is.
#[derive(Debug)]
pub(super) enum Owner {
    /// A user's process, under a peer id of its own.
    Client {
        /// Its peer id.
        peer: Uuid,
    },
    /// A process with an agent's token.
    Agent {
        /// The agent.
        machine: Arc<Machine>,
        /// The API version it asked for.
        version: String,
        /// Whether its coming and going is the agent's.
        watched: bool,
    },
}

/// One control socket's state.
#[derive(Debug)]
pub(super) struct Session {
    app: App,
    owner: Owner,
    auth: Auth,
    engine: ServerSession,
    calls: BTreeMap<ServerCall, ConnId>,
    wake: Arc<Notify>,
    relays: watch::Receiver<Arc<RelayMap>>,
    presence: Option<Presence>,
}

/// Why the socket ends from our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The peer left.
    Peer,
    /// The engine is through with it.
    Dead(Death),
    /// It does not answer pings.
    Silent,
    /// It sent what does not belong here.
    Text,
    /// Its workspace was stopped.
    Dismissed,
    /// Another connection of the same agent came.
    Replaced,
    /// The server stops.
    Stopping,
}

impl Session {
    pub(super) fn new(app: &App, role: ServerRole, owner: Owner, auth: Auth) -> Self {
        Self {
            app: app.clone(),
            owner,
            auth,
            engine: ServerSession::new(role, clock::now()),
            calls: BTreeMap::new(),
            wake: Arc::new(Notify::new()),
            relays: app.network().relays.watch(),
            presence: None,
        }
    }

    /// Runs the socket to its end.
    pub(super) async fn run(mut self, mut socket: Socket) -> io::Result<()> {
        let ended = match self.arrive().await {
            Ok(true) => self.talk(&mut socket).await,
            Ok(false) => Ok(End::Dismissed),
            Err(error) => Err(error),
        };
        self.leave(by_peer(&ended)).await;
        let (code, reason) = match ended? {
            End::Peer | End::Dead(Death::Ended) => {
                closed_by_peer(&mut socket).await;
                return Ok(());
            }
            End::Dead(Death::Silent) | End::Silent => (1001, "liveness probe failed".to_owned()),
            End::Dead(death) => (1011, death.to_string()),
            End::Text => (1003, "unexpected text message".to_owned()),
            End::Dismissed => (1001, "build is outdated".to_owned()),
            End::Replaced => (REPLACED, "another agent has connected with the same token".to_owned()),
            End::Stopping => (1001, "the server is shutting down".to_owned()),
        };
        farewell(socket, code, &reason).await
    }

    async fn talk(&mut self, socket: &mut Socket) -> io::Result<End> {
        let stopping = self.app.stopping().clone();
        let never = || (CancellationToken::new(), CancellationToken::new());
        let (dismissed, replaced) = self.presence.as_ref().map_or_else(never, |p| (p.dismissed.clone(), p.replaced.clone()));
        let is_client = matches!(self.owner, Owner::Client { .. });
        // Agents ping us.
        let mut ping_at = is_client.then(|| Instant::now() + PING);
        let mut pong_by = None;
        loop {
            if let Some(end) = self.work().await {
                // What the engine still has to say, such as the coordinator's last words.
                self.flush(socket).await?;
                return Ok(end);
            }
            self.flush(socket).await?;
            let due = self.engine.poll_timeout().map_or(FAR, |d| d.at - clock::now());
            tokio::select! {
                message = socket.next() => match message.transpose()? {
                    Some(Message::Binary(bytes)) => self.engine.handle_bytes(clock::now(), &bytes),
                    Some(Message::Ping) => {}
                    Some(Message::Pong) => pong_by = None,
                    Some(Message::Text(_)) => return Ok(End::Text),
                    Some(Message::Close { .. }) | None => return Ok(End::Peer),
                },
                () = self.wake.notified() => {}
                Ok(()) = self.relays.changed() => self.send_relay_map(),
                () = sleep_until(Instant::now() + due) => self.engine.handle_timeout(clock::now()),
                () = sleep_until(pong_by.or(ping_at).unwrap_or_else(|| Instant::now() + FAR)), if pong_by.or(ping_at).is_some() => {
                    if pong_by.is_some() {
                        return Ok(End::Silent);
                    }
                    in_time(socket.ping()).await?;
                    ping_at = Some(Instant::now() + PING);
                    pong_by = ping_at;
                }
                () = dismissed.cancelled() => return Ok(End::Dismissed),
                () = replaced.cancelled() => return Ok(End::Replaced),
                () = stopping.cancelled() => {
                    self.deliver();
                    self.flush(socket).await?;
                    return Ok(End::Stopping);
                }
            }
        }
    }

    /// Takes the engine's events and the coordinator's news until there are no more.
    async fn work(&mut self) -> Option<End> {
        while let Some(event) = self.engine.poll_event() {
            match event {
                ServerEvent::CoordinateOpened { call } => {
                    let peer = self.peer();
                    self.calls.insert(call, self.app.coordination().connect(peer, self.auth, &self.wake));
                }
                ServerEvent::Coordinate { call, request } => self.coordinate(call, &request),
                ServerEvent::CoordinateClosed { call } => {
                    if let Some(conn) = self.calls.remove(&call) {
                        self.app.coordination().lost(conn);
                    }
                }
                ServerEvent::DerpMapsWanted => {
                    self.send_relay_map();
                }
                ServerEvent::Call { call, path, body } => {
                    let reply = self.answer(&path, &body).await;
                    self.engine.reply(call, reply.as_deref());
                }
                ServerEvent::Alive => self.note_alive().await,
                ServerEvent::Dead(death) => return Some(End::Dead(death)),
            }
        }
        self.deliver();
        None
    }

    /// Gives the newest relay map to those that wait for maps, now or later.
    fn send_relay_map(&mut self) {
        let map = Arc::clone(&self.relays.borrow_and_update());
        let map = match &self.owner {
            Owner::Agent { machine, .. } => self.app.map_for(&machine.workspace, map),
            Owner::Client { .. } => map,
        };
        let map = tailnet::DerpMap::from(&*map);
        self.engine.send_relay_map(&map);
    }

    fn peer(&self) -> Uuid {
        match &self.owner {
            Owner::Client { peer } => *peer,
            Owner::Agent { machine, .. } => machine.agent.id,
        }
    }

    async fn answer(&self, path: &str, body: &[u8]) -> Result<Vec<u8>, RpcError> {
        match &self.owner {
            Owner::Client { peer } => calls::of_client(&self.app, *peer, path, body),
            // It speaks of itself, not of the agent that is there now.
            Owner::Agent { .. } if self.presence.as_ref().is_some_and(|presence| presence.replaced.is_cancelled()) => {
                Err(RpcError::plain("another agent has connected with the same token"))
            }
            Owner::Agent { machine, version, .. } => calls::of_agent(&self.app, machine, version, path, body).await,
        }
    }

    fn coordinate(&mut self, call: ServerCall, request: &CoordinateRequest) {
        let Some(conn) = self.calls.get(&call) else { return };
        if let Err(error) = self.app.coordination().handle(*conn, request) {
            tracing::info!(peer = %self.peer(), %error, "a coordination request was refused");
            return;
        }
        if let (Some(presence), Some(node)) = (&self.presence, request.update_self.as_ref().and_then(|u| u.node.as_ref())) {
            self.app.agents().set_latency(presence, latency(node));
        }
    }

    /// Moves the coordinator's news into the engine, as far as the peer reads them.
    fn deliver(&mut self) {
        let (engine, coordination) = (&mut self.engine, self.app.coordination());
        self.calls.retain(|call, conn| {
            while engine.coordinate_has_room(*call) {
                match coordination.poll(*conn) {
                    Some(Delivery::Response(response)) => engine.send_coordinate(*call, &response),
                    Some(Delivery::End) => {
                        engine.close_coordinate(*call);
                        coordination.lost(*conn);
                        return false;
                    }
                    None => break,
                }
            }
            true
        });
    }

    async fn flush(&mut self, socket: &mut Socket) -> io::Result<()> {
        loop {
            let mut out = Vec::new();
            self.engine.poll_output(&mut out);
            if out.is_empty() {
                return Ok(());
            }
            in_time(socket.send_binary(out)).await?;
        }
    }

    /// Notes an agent's coming; whether it may stay. Between the look at its token and its coming, a stop finds nobody to
    /// dismiss: whoever has come looks once more.
    async fn arrive(&mut self) -> io::Result<bool> {
        let Owner::Agent { machine, watched, .. } = &self.owner else { return Ok(true) };
        self.presence = watched.then(|| self.app.agents().arrive(machine.agent.id));
        if !self.app.store().is_started(machine.workspace.id).await.map_err(io::Error::other)? {
            return Ok(false);
        }
        if self.presence.is_some() {
            self.note_alive().await;
            self.app.announce(machine.workspace.id);
        }
        Ok(true)
    }

    async fn note_alive(&self) {
        if let (Owner::Agent { machine, .. }, Some(_)) = (&self.owner, &self.presence)
            && let Err(error) = self.app.store().agent_connected(Stamp::now(), machine.agent.id).await
        {
            tracing::error!(%error, "an agent's presence cannot be noted");
        }
    }

    async fn leave(&mut self, by_peer: bool) {
        let coordination = self.app.coordination();
        for conn in std::mem::take(&mut self.calls).into_values() {
            if by_peer { coordination.closed(conn) } else { coordination.lost(conn) }
        }
        let (Owner::Agent { machine, .. }, Some(presence)) = (&self.owner, self.presence.take()) else { return };
        if self.app.agents().leave(&presence) {
            if let Err(error) = self.app.store().agent_disconnected(Stamp::now(), machine.agent.id).await {
                tracing::error!(%error, "an agent's leaving cannot be noted");
            }
            self.app.announce(machine.workspace.id);
        }
    }
}

/// Whether the peer's end closed the connection, other than by falling silent.
fn by_peer(ended: &io::Result<End>) -> bool {
    match ended {
        Ok(end) => matches!(end, End::Peer | End::Dead(Death::Ended)),
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionAborted
        ),
    }
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(WRITE_TIME, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The latencies in a node, by region; the better of both families.
fn latency(node: &tailnet::Node) -> Latency {
    let mut seconds = BTreeMap::new();
    for (key, value) in &node.derp_latency {
        let region = key.strip_suffix("-v4").or_else(|| key.strip_suffix("-v6")).unwrap_or(key);
        if let Ok(region) = region.parse::<RegionId>() {
            let best = seconds.entry(region).or_insert(*value);
            *best = value.min(*best);
        }
    }
    Latency { home: RegionId::try_from(i64::from(node.preferred_derp)).ok(), seconds }
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::{
            serve,
            store::{NewBuild, Transition},
            tests::config,
        },
        *,
    };
    use crate::driver::websocket::{MAX_MESSAGE, WebSocket};

    /// With which close a socket of an agent ends that comes after a build of its workspace, but whose token was looked at
    /// before. Where it may stay, it is the peer that closes.
    async fn close_after(transition: Transition) -> Option<Message> {
        let folder = tempfile::tempdir().unwrap();
        let running = serve(config(folder.path())).await.unwrap();
        let (app, store) = (&running.app, running.app.store());
        let user = store.first_user().await.unwrap().unwrap();
        let (_, token) = store.insert_workspace(Stamp::now(), user.id, "dev").await.unwrap();
        let (agent, workspace) = store.agent_by_token(&token).await.unwrap().unwrap();
        let build = NewBuild { workspace: workspace.id, transition, reason: "cli", initiator: user.id };
        store.insert_build(Stamp::now(), build).await.unwrap();
        let machine = Arc::new(Machine { agent: Arc::new(agent), workspace: Arc::new(workspace) });
        let owner = Owner::Agent { machine, version: "2.0".to_owned(), watched: true };
        let session = Session::new(app, ServerRole::Agent, owner, Auth::Agent);
        let (near, far) = tokio::io::duplex(4096);
        let mut peer = WebSocket::client(far, MAX_MESSAGE);
        let run = tokio::spawn(session.run(WebSocket::server(Box::new(near), MAX_MESSAGE)));
        if transition == Transition::Start {
            peer.close(1000, "").await.unwrap();
        }
        // Nothing in one process takes so long.
        let heard = timeout(Duration::from_secs(20), peer.next()).await.expect("the agent stays");
        drop(peer);
        run.await.unwrap().unwrap();
        assert_eq!(app.agents().count(), 0);
        running.shutdown().await;
        heard.map(Result::unwrap)
    }

    #[tokio::test]
    async fn an_agent_that_was_admitted_before_a_stop_and_comes_after_it_is_dismissed() {
        let dismissed = Message::Close { code: 1001, reason: "build is outdated".to_owned() };
        for transition in [Transition::Stop, Transition::Delete] {
            assert_eq!(close_after(transition).await, Some(dismissed.clone()), "{transition:?}");
        }
        let own = Message::Close { code: 1000, reason: String::new() };
        assert_eq!(close_after(Transition::Start).await, Some(own), "started once more");
    }

    #[test]
    fn latencies_are_the_better_of_both_families() {
        let derp_latency = [("999-v4", 0.5), ("999-v6", 0.25), ("7-v4", 1.0), ("x-v4", 9.0)];
        let node = tailnet::Node {
            preferred_derp: 999,
            derp_latency: derp_latency.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
            ..Default::default()
        };
        let region = |n| RegionId::new(n).unwrap();
        let latency = latency(&node);
        assert_eq!(latency.home, Some(region(999)));
        assert_eq!(latency.seconds, BTreeMap::from([(region(7), 1.0), (region(999), 0.25)]));
    }
}
