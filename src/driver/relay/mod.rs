//! Relay connections: one task a region (`derp.md`).
//!
//! The data loop holds a [`Link`] for every region its node wants open. When and whether to open one again is the
//! node's decision; a link that is down stays down.

mod check;
mod conn;
mod dial;
mod lane;
mod serve;
mod standalone;

pub use check::{RelayCheck, check};
pub use dial::{DialError, Transport};
pub use lane::{Bell, Incoming, LoopSide, State};
pub use serve::RelayServer;

use super::{clock, http::Http};
use crate::{
    base::{Instant, NodeSecret, RegionId, Rng},
    wire::derp::Region,
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::AbortHandle;

/// What all relay connections of a node share.
#[derive(Clone)]
pub struct Relays {
    http: Http,
    secret: NodeSecret,
    websocket_only: bool,
    bell: Arc<Bell>,
    /// What served last, by region: it goes first the next time.
    served: Arc<Mutex<BTreeMap<RegionId, Transport>>>,
    tally: Arc<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    dials: AtomicU64,
    failures: AtomicU64,
    upgrades: AtomicU64,
    websockets: AtomicU64,
    first: OnceLock<(Instant, Duration)>,
}

/// What the relay connections did; a snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayCounters {
    /// Connections begun.
    pub dials: u64,
    /// Dials that ended without a connection.
    pub failures: u64,
    /// Connections that stood behind `Upgrade: DERP`.
    pub upgrades: u64,
    /// Connections that stood in a WebSocket.
    pub websockets: u64,
    /// When the first connection stood and how long it took.
    pub first: Option<(Instant, Duration)>,
}

impl Relays {
    /// Relay connections of the node with this secret, through `http`'s proxy, headers and trust.
    #[must_use]
    pub fn new(http: Http, secret: NodeSecret, websocket_only: bool) -> Self {
        Self { http, secret, websocket_only, bell: Arc::default(), served: Arc::default(), tally: Arc::default() }
    }

    /// From now on connections are made by WebSocket alone, or not.
    pub const fn set_websocket_only(&mut self, on: bool) {
        self.websocket_only = on;
    }

    /// The network has changed: a new connection must not be tried on an old one that waits for its next request.
    pub fn handle_link_change(&mut self) {
        match self.http.anew() {
            Ok(http) => self.http = http,
            Err(error) => tracing::debug!(%error, "relay connections go on with the old HTTP client"),
        }
    }

    /// What wakes the loop for any of them.
    #[must_use]
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> RelayCounters {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let Tally { dials, failures, upgrades, websockets, first } = &*self.tally;
        RelayCounters {
            dials: get(dials),
            failures: get(failures),
            upgrades: get(upgrades),
            websockets: get(websockets),
            first: first.get().copied(),
        }
    }

    /// Starts a connection to a region. It ends with the link.
    #[must_use]
    pub fn open(&self, id: RegionId, region: Region, preferred: bool, rng: Rng) -> Link {
        let (loop_side, task_side) = lane::lane(Arc::clone(&self.bell), preferred);
        let this = self.clone();
        let task = tokio::spawn(async move { this.connect(id, region, rng, task_side).await });
        Link { lane: loop_side, task: task.abort_handle() }
    }

    /// The time a region takes to answer, `None` when it does not.
    pub async fn measure(&self, region: &Region) -> Option<Duration> {
        dial::measure(&self.http, region).await
    }

    async fn connect(self, id: RegionId, region: Region, rng: Rng, lane: lane::TaskSide) {
        self.tally.dials.fetch_add(1, Ordering::Relaxed);
        let began = clock::now();
        let before = self.served.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
        let dialed = match dial::dial(&self.http, id, &region, self.websocket_only, before).await {
            Ok(dialed) => dialed,
            Err(error) => {
                self.tally.failures.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(region = %id, %error, "no relay connection");
                return lane.down(error.to_string());
            }
        };
        let count = match dialed.transport {
            Transport::Upgrade => &self.tally.upgrades,
            Transport::WebSocket => &self.tally.websockets,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let now = clock::now();
        // Later ones are of other regions or come after a break.
        let _ = self.tally.first.set((now, now - began));
        self.served.lock().unwrap_or_else(PoisonError::into_inner).insert(id, dialed.transport);
        tracing::debug!(region = %id, transport = %dialed.transport.name(), "relay connected");
        let (why, lane) = conn::run(dialed.io, &dialed.first, self.secret.clone(), rng, lane).await;
        tracing::debug!(region = %id, %why, "a relay connection ended");
        lane.down(why.to_string());
    }
}

impl fmt::Debug for Relays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relays").field("websocket_only", &self.websocket_only).finish_non_exhaustive()
    }
}

/// The data loop's hold on one connection. Dropping it ends the connection.
pub struct Link {
    /// Packets to and from it.
    pub lane: LoopSide,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("state", &self.lane.state()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
