//! The one coordinator behind a lock, and the wakers of the sockets it has news for.

use crate::{
    proto::coord::{Auth, AuthError, ConnId, Coordinator, Delivery},
    wire::coord::tailnet::CoordinateRequest,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;
use uuid::Uuid;

/// The shared coordinator.
#[derive(Debug, Default)]
pub(crate) struct Coordination(Mutex<Shared>);

#[derive(Debug, Default)]
struct Shared {
    coordinator: Coordinator,
    wakers: BTreeMap<ConnId, Arc<Notify>>,
}

impl Coordination {
    /// Runs `work` and wakes the sockets that it made news for.
    fn with<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work(&mut shared);
        while let Some(conn) = shared.coordinator.poll_ready() {
            if let Some(waker) = shared.wakers.get(&conn) {
                waker.notify_one();
            }
        }
        done
    }

    /// A Coordinate call of `peer` begins; `waker` rings when there is something to deliver.
    pub(crate) fn connect(&self, peer: Uuid, auth: Auth, waker: &Arc<Notify>) -> ConnId {
        self.with(|shared| {
            let conn = shared.coordinator.connect(peer, auth);
            shared.wakers.insert(conn, Arc::clone(waker));
            // The first news may be queued already.
            waker.notify_one();
            conn
        })
    }

    /// Applies a request.
    ///
    /// # Errors
    /// When the peer may not ask this; it will be told, and the call ends.
    pub(crate) fn handle(&self, conn: ConnId, request: &CoordinateRequest) -> Result<(), AuthError> {
        self.with(|shared| shared.coordinator.handle_request(conn, request))
    }

    /// What a call is to do next.
    pub(crate) fn poll(&self, conn: ConnId) -> Option<Delivery> {
        self.with(|shared| shared.coordinator.poll(conn))
    }

    /// How many Coordinate calls are open: one for each peer that is connected.
    pub(crate) fn peers(&self) -> usize {
        self.with(|shared| shared.wakers.len())
    }

    /// A call ended.
    pub(crate) fn lost(&self, conn: ConnId) {
        self.with(|shared| {
            shared.wakers.remove(&conn);
            shared.coordinator.lost(conn);
        });
    }

    /// The peer's end closed the socket of a call.
    pub(crate) fn closed(&self, conn: ConnId) {
        self.with(|shared| {
            shared.wakers.remove(&conn);
            shared.coordinator.closed(conn);
        });
    }

    /// Tells everybody that the coordinator closes.
    pub(crate) fn close(&self) {
        self.with(|shared| shared.coordinator.close());
    }
}
