//! Connections that are over on our side first: what is needed to acknowledge a late FIN once more (RFC 9293 §3.6.1).

use crate::{
    base::{Instant, PeerIx},
    wire::ip::FlowKey,
};
use rustc_hash::FxHashMap;
use std::{collections::VecDeque, time::Duration};

/// How long the ports of a finished connection are not used again. Go peers keep them as long.
const QUIET: Duration = Duration::from_secs(60);
/// Connections remembered; the oldest is forgotten beyond.
const LIMIT: usize = 4_096;

/// What remains of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remains {
    pub(super) peer: PeerIx,
    /// Our next sequence number.
    pub(super) seq: u32,
    /// The next one expected from the peer.
    pub(super) ack: u32,
    pub(super) window: u16,
    until: Instant,
}

/// The remembered connections. Nothing here needs a timer: what is too old is swept when another comes.
#[derive(Debug, Default)]
pub(super) struct TimeWait {
    by_key: FxHashMap<FlowKey, Remains>,
    order: VecDeque<(Instant, FlowKey)>,
}

impl TimeWait {
    /// Remembers a connection.
    pub(super) fn insert(&mut self, now: Instant, key: FlowKey, peer: PeerIx, (seq, ack, window): (u32, u32, u16)) {
        while let Some((until, key)) = self.order.front().copied()
            && (until <= now || self.order.len() >= LIMIT)
        {
            self.order.pop_front();
            if self.by_key.get(&key).is_some_and(|r| r.until == until) {
                self.by_key.remove(&key);
            }
        }
        let until = now + QUIET;
        self.by_key.insert(key, Remains { peer, seq, ack, window, until });
        self.order.push_back((until, key));
    }

    /// What remains of the connection, if it is not too long ago.
    pub(super) fn get(&self, now: Instant, key: &FlowKey) -> Option<Remains> {
        self.by_key.get(key).copied().filter(|r| r.until > now)
    }

    /// Forgets a connection whose ports are used anew.
    pub(super) fn remove(&mut self, key: &FlowKey) {
        self.by_key.remove(key);
    }

    /// Forgets all of a peer's.
    pub(super) fn forget_peer(&mut self, peer: PeerIx) {
        self.by_key.retain(|_, r| r.peer != peer);
    }
}
