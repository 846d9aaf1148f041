//! Connections that peers have asked for and nobody has answered yet. Each holds its SYN and nothing else.

use crate::{
    base::{Instant, PeerIx},
    wire::ip::FlowKey,
};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::{collections::VecDeque, net::SocketAddrV6, time::Duration};

/// Requests that may wait at a time. Further SYNs are ignored, as Go peers do (`netstack.md` §5).
pub(super) const LIMIT: usize = 1_024;
/// How long a request waits for `accept` or `refuse`.
///
/// An agent first connects to the local port, which may take as long as the host's own SYN retries, but the dialler's
/// users give up before. An expired request goes silently: the dialler's next SYN asks anew.
const PATIENCE: Duration = Duration::from_secs(30);

/// Names one request of a peer for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IncomingKey {
    /// The address and port that the peer wants to reach.
    pub local: SocketAddrV6,
    /// The peer's address and port.
    pub remote: SocketAddrV6,
    /// Tells a repeated request from an earlier one between the same ports.
    id: u32,
}

/// One request.
#[derive(Debug)]
pub(super) struct Pending {
    id: u32,
    pub(super) peer: PeerIx,
    /// The whole SYN packet, replayed into the flow that accepts it.
    pub(super) syn: SmallVec<[u8; 96]>,
}

/// The waiting requests.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pending: FxHashMap<FlowKey, Pending>,
    /// Oldest first. A request that is gone leaves its entry behind until its time, or until they are too many.
    expiry: VecDeque<(Instant, FlowKey, u32)>,
    next_id: u32,
}

/// What became of a SYN.
pub(super) enum Offer {
    /// A new request.
    New(IncomingKey),
    /// Repeats a waiting one.
    Repeated,
    /// Too many wait.
    Full,
}

impl Incoming {
    /// Takes in a SYN.
    pub(super) fn offer(&mut self, now: Instant, peer: PeerIx, key: FlowKey, syn: &[u8]) -> Offer {
        if let Some(pending) = self.pending.get_mut(&key) {
            // The newest SYN counts: its sender may have restarted and chosen another sequence number.
            pending.syn = SmallVec::from_slice(syn);
            pending.peer = peer;
            return Offer::Repeated;
        }
        if self.pending.len() >= LIMIT {
            return Offer::Full;
        }
        // An old request in front keeps the entries of answered ones behind it. Rare enough to cost nothing a request.
        if self.expiry.len() >= 4 * LIMIT {
            let pending = &self.pending;
            self.expiry.retain(|(_, key, id)| pending.get(key).is_some_and(|p| p.id == *id));
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.pending.insert(key, Pending { id, peer, syn: SmallVec::from_slice(syn) });
        self.expiry.push_back((now + PATIENCE, key, id));
        Offer::New(IncomingKey { local: key.local_addr(), remote: key.remote_addr(), id })
    }

    /// Takes out a request to answer it.
    pub(super) fn take(&mut self, key: &IncomingKey) -> Option<(FlowKey, Pending)> {
        let flow = FlowKey::new(key.local, key.remote);
        if self.pending.get(&flow)?.id != key.id {
            return None;
        }
        let taken = self.pending.remove(&flow).map(|pending| (flow, pending));
        self.trim();
        taken
    }

    /// Whether a request between these ports waits.
    pub(super) fn contains(&self, key: &FlowKey) -> bool {
        self.pending.contains_key(key)
    }

    /// Takes out every request that `test` names.
    pub(super) fn drain(&mut self, mut test: impl FnMut(&FlowKey, PeerIx) -> bool) -> Vec<Pending> {
        let mut keys: Vec<_> = self.pending.iter().filter(|(key, p)| test(key, p.peer)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        let taken = keys.iter().filter_map(|key| self.pending.remove(key)).collect();
        self.trim();
        taken
    }

    /// Forgets requests whose time is over; returns how many.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut gone = 0;
        while let Some((at, key, id)) = self.expiry.front().copied()
            && at <= now
        {
            self.expiry.pop_front();
            if self.pending.get(&key).is_some_and(|p| p.id == id) {
                self.pending.remove(&key);
                gone += 1;
            }
        }
        self.trim();
        gone
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiry.front().map(|(at, _, _)| *at)
    }

    /// Drops leading entries whose request was answered, so that no timer runs for them.
    fn trim(&mut self) {
        while let Some((_, key, id)) = self.expiry.front()
            && self.pending.get(key).is_none_or(|p| p.id != *id)
        {
            self.expiry.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> FlowKey {
        let end = |port| SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, port, 0, 0);
        FlowKey::new(end(22), end(port))
    }

    #[test]
    fn answered_requests_take_no_room_behind_one_that_nobody_answers() {
        let (mut incoming, now) = (Incoming::default(), Instant::ZERO);
        assert!(matches!(incoming.offer(now, PeerIx(0), key(1), b"syn"), Offer::New(_)));
        for n in 0..10 * LIMIT {
            let port = u16::try_from(2 + n % 1_000).unwrap();
            let Offer::New(asked) = incoming.offer(now, PeerIx(0), key(port), b"syn") else { panic!("request {n} is ignored") };
            assert!(incoming.take(&asked).is_some());
            assert!(incoming.expiry.len() <= 4 * LIMIT, "{}", incoming.expiry.len());
        }
        assert_eq!(incoming.next_expiry(), Some(now + PATIENCE));
        assert_eq!((incoming.expire(now + PATIENCE), incoming.expiry.len()), (1, 0));
    }
}
