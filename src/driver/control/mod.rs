//! The control socket: coordination and calls, over a WebSocket that is dialled again for ever (`coordination.md` §2, §12).
//!
//! ```text
//! dialling ── final refusal on the first dial ──► refused
//!    │  ▲
//!    ▼  │ back-off 50 ms … 10 s
//! connected ── close() ──► good-bye, at most 1 s ──► closed
//! ```
//! The back-off begins anew only behind a connection that lasted: two agents with one token replace each other without end.
//! The task behind a [`Control`] owns the engine. It dials at once when the handle is made, and ends by itself when
//! all handles are gone. Losing the socket costs nothing but news: node, tunnels and resume token are kept and told
//! again on the next one.

mod task;

use super::http::{Http, HttpError};
use crate::{
    proto::coord::{CallError, ClientRole},
    wire::{
        coord::tailnet::{Node, PeerUpdate},
        derp::RelayMap,
    },
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

/// News that may wait for the data loop before the socket is read no further.
const UPDATES: usize = 256;
/// How long a good-bye may take, its bytes included.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// The code with which our server closes an agent's socket for another one with the same token.
pub const REPLACED: u16 = 4409;

/// Whose control socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlRole {
    /// A client that wants a tunnel to this agent.
    Client {
        /// The agent.
        agent: Uuid,
    },
    /// The agent that the token names. It coordinates when [`Control::open_coordination`] is called.
    Agent,
}

impl ControlRole {
    fn path(self) -> String {
        // The lowest versions that know the calls: every server takes them.
        match self {
            Self::Client { agent } => format!("/api/v2/workspaceagents/{agent}/coordinate?version=2.0"),
            Self::Agent => "/api/v2/workspaceagents/me/rpc?version=2.0&role=agent".to_owned(),
        }
    }

    const fn engine(self) -> ClientRole {
        match self {
            Self::Client { .. } => ClientRole::Client,
            Self::Agent => ClientRole::Agent,
        }
    }
}

/// Where the socket stands.
#[derive(Debug, Clone)]
pub enum ControlStatus {
    /// The first dial runs or is retried; the text says why it failed last.
    Connecting(Option<String>),
    /// Connected, for the so-manieth time.
    Connected(u64),
    /// Was connected and is dialled again.
    Lost {
        /// What ended it or keeps it from coming back.
        why: String,
        /// Another process with the same token took our place.
        replaced: bool,
    },
    /// The first dial was refused for good.
    Refused(HttpError),
    /// Closed by us.
    Closed,
}

/// News for the data loop.
#[derive(Debug)]
pub(crate) enum Update {
    /// Of a peer.
    Peer(Box<PeerUpdate>),
    /// A relay map, with embedded relays already pointing at this server.
    RelayMap(RelayMap),
    /// The socket is gone.
    Lost,
}

/// What the task is asked for.
enum Ask {
    Call { path: &'static str, body: Vec<u8>, reply: oneshot::Sender<Result<Vec<u8>, CallError>> },
    Announce(Box<Node>),
    AddTunnel(Uuid),
    RemoveTunnel(Uuid),
    Ready(Vec<Uuid>),
    OpenCoordination,
    Close,
}

/// A handle on a control socket. Clones share it; the last one to go closes it.
#[derive(Clone)]
pub struct Control {
    asks: mpsc::UnboundedSender<Ask>,
    status: watch::Receiver<ControlStatus>,
    updates: Arc<Mutex<Option<mpsc::Receiver<Update>>>>,
}

impl Control {
    /// Starts dialling, on the current runtime.
    #[must_use]
    pub fn open(http: Http, role: ControlRole) -> Self {
        let (asks, asked) = mpsc::unbounded_channel();
        let (status_sender, status) = watch::channel(ControlStatus::Connecting(None));
        let (update_sender, updates) = mpsc::channel(UPDATES);
        tokio::spawn(task::Task::new(http, role, asked, status_sender, update_sender).run());
        Self { asks, status, updates: Arc::new(Mutex::new(Some(updates))) }
    }

    /// Where the socket stands, now and from now on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ControlStatus> {
        self.status.clone()
    }

    /// Waits for the first connection.
    ///
    /// # Errors
    /// When the server refused for good: wrong token, no such agent, and the like (`coordination.md` §2.6).
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait, not the dialling.
    pub async fn connected(&self) -> Result<(), HttpError> {
        let mut status = self.status.clone();
        let settled = |s: &ControlStatus| !matches!(s, ControlStatus::Connecting(_));
        let closed = || HttpError::Setting("the control connection was closed".to_owned());
        match status.wait_for(settled).await.as_deref() {
            Ok(ControlStatus::Refused(error)) => Err(error.clone()),
            Ok(ControlStatus::Closed) | Err(_) => Err(closed()),
            Ok(_) => Ok(()),
        }
    }

    /// Makes a unary call. Before the first connection it waits for that; between two connections it fails at once.
    ///
    /// # Errors
    /// When the server answers with an error, not within 30 s, or the socket is gone.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the answer; the call may have its effect.
    pub async fn call(&self, path: &'static str, body: Vec<u8>) -> Result<Vec<u8>, CallError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Call { path, body, reply }).map_err(|_| CallError::Closed)?;
        answer.await.unwrap_or(Err(CallError::Closed))
    }

    /// Asks the coordinator for a tunnel to an agent, now and after every reconnect.
    pub fn add_tunnel(&self, agent: Uuid) {
        self.ask(Ask::AddTunnel(agent));
    }

    /// Gives a tunnel up.
    pub fn remove_tunnel(&self, agent: Uuid) {
        self.ask(Ask::RemoveTunnel(agent));
    }

    /// Starts coordination on this and every later connection: for agents, after the manifest.
    pub fn open_coordination(&self) {
        self.ask(Ask::OpenCoordination);
    }

    /// Says good-bye and closes; takes at most about a second. The coordinator then forgets this node at once instead
    /// of waiting for it to come back.
    pub async fn close(&self) {
        self.ask(Ask::Close);
        let mut status = self.status.clone();
        let over = |s: &ControlStatus| matches!(s, ControlStatus::Closed | ControlStatus::Refused(_));
        // The task ends by itself a moment later if the limit strikes here.
        let _ = tokio::time::timeout(CLOSE_LIMIT + CLOSE_LIMIT / 10, status.wait_for(over)).await;
    }

    /// The news. Only one can have them.
    pub(crate) fn take_updates(&self) -> Option<mpsc::Receiver<Update>> {
        self.updates.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Announces our node, now and after every reconnect.
    pub(crate) fn announce(&self, node: Box<Node>) {
        self.ask(Ask::Announce(node));
    }

    /// Tells the coordinator that these peers may start a handshake.
    pub(crate) fn ready(&self, peers: Vec<Uuid>) {
        self.ask(Ask::Ready(peers));
    }

    fn ask(&self, ask: Ask) {
        // A task that has ended needs to hear nothing.
        let _ = self.asks.send(ask);
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
