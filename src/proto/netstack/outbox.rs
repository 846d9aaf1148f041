//! Packets that no flow's engine makes at its turn: duplicate ACKs, resets, echo and TSMP answers, pings, datagrams.
//!
//! Bounded; buffers are kept and reused, so that a steady stream of them allocates nothing.

use crate::base::{FlowId, PeerIx};
use std::collections::VecDeque;

/// Packets of our own making that may wait. Beyond it the oldest goes: each is an answer that its asker repeats.
const DEPTH: usize = 1_024;
/// Buffers kept for reuse.
const SPARE: usize = 64;

/// A finished packet that waits for its lane.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) peer: PeerIx,
    pub(super) flow: Option<FlowId>,
    pub(super) expects_answer: bool,
    pub(super) bytes: Vec<u8>,
}

/// The queue of finished packets.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    ready: VecDeque<Waiting>,
    /// Packets whose peer had no room in this round.
    held: VecDeque<Waiting>,
    spare: Vec<Vec<u8>>,
}

impl Outbox {
    /// An empty buffer to build a packet in.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Queues a packet; an empty one is nothing. Returns whether another packet had to go for it.
    pub(super) fn push(&mut self, packet: Waiting) -> bool {
        if packet.bytes.is_empty() {
            self.recycle(packet.bytes);
            return false;
        }
        self.ready.push_back(packet);
        let full = self.len() > DEPTH;
        if full && let Some(oldest) = self.held.pop_front().or_else(|| self.ready.pop_front()) {
            self.recycle(oldest.bytes);
        }
        full
    }

    /// Takes the next packet whose peer `gate` lets pass.
    pub(super) fn pop(&mut self, mut gate: impl FnMut(PeerIx) -> bool) -> Option<Waiting> {
        while let Some(packet) = self.ready.pop_front() {
            if gate(packet.peer) {
                return Some(packet);
            }
            self.held.push_back(packet);
        }
        None
    }

    /// Makes held packets ready again, before newer ones.
    pub(super) fn release_held(&mut self) {
        while let Some(packet) = self.held.pop_back() {
            self.ready.push_front(packet);
        }
    }

    /// Gives a buffer back.
    pub(super) fn recycle(&mut self, mut bytes: Vec<u8>) {
        if self.spare.len() < SPARE {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Drops everything for `peer`.
    pub(super) fn forget_peer(&mut self, peer: PeerIx) {
        self.ready.retain(|p| p.peer != peer);
        self.held.retain(|p| p.peer != peer);
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.held.len()
    }
}
