//! Own pings through the tunnel: TSMP and ICMPv6 echo, each waiting for its answer.

use crate::base::{Instant, PeerIx};
use std::{collections::VecDeque, time::Duration};

/// How long an answer is waited for (`path-selection.md` §11). The caller's own timeout is usually shorter.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pings that may wait at a time; the oldest is forgotten beyond.
const LIMIT: usize = 1_024;

/// What kind of ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PingKind {
    /// Answered by the peer's engine in front of its stack.
    Tsmp,
    /// ICMPv6 echo, answered by the peer's stack.
    Icmp,
}

#[derive(Debug)]
struct Waiting {
    token: u64,
    peer: PeerIx,
    kind: PingKind,
    data: [u8; 8],
    sent: Instant,
}

/// The pings that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Pings {
    waiting: VecDeque<Waiting>,
    last_token: u64,
}

impl Pings {
    /// Notes a ping that carries `data` (ICMP: its first four bytes, the rest zero) and names it.
    pub(super) fn sent(&mut self, now: Instant, peer: PeerIx, kind: PingKind, data: [u8; 8]) -> u64 {
        self.last_token += 1;
        if self.waiting.len() >= LIMIT {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Waiting { token: self.last_token, peer, kind, data, sent: now });
        self.last_token
    }

    /// The ping that an answer belongs to, and how long it took.
    pub(super) fn answered(&mut self, now: Instant, peer: PeerIx, kind: PingKind, data: [u8; 8]) -> Option<(u64, Duration)> {
        let at = self.waiting.iter().position(|w| w.peer == peer && w.kind == kind && w.data == data)?;
        let waiting = self.waiting.remove(at)?;
        let took = now - waiting.sent;
        (took < PATIENCE).then_some((waiting.token, took))
    }

    /// When the oldest is given up.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.waiting.front().map(|w| w.sent + PATIENCE)
    }

    /// Forgets pings that nobody answered.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|w| now - w.sent >= PATIENCE) {
            self.waiting.pop_front();
        }
    }
}
