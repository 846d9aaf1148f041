//! Handshakes, disco and STUN on their way out. They leave before any data.

use super::{Budget, SendSpace};
use crate::{
    base::{Instant, Lane},
    wire::wg,
};
use std::{collections::VecDeque, time::Duration};

/// Messages that wait for their lane; beyond it the oldest is dropped.
const MAX_HELD: usize = 512;
/// How long a message waits for a relay that connects or a full socket. After it the sender's own retry is due.
const HELD: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Message {
    since: Instant,
    lane: Lane,
    bytes: Vec<u8>,
}

/// The queue of control messages, in order for each lane.
#[derive(Debug, Default)]
pub(super) struct Control {
    held: VecDeque<Message>,
    dropped: u64,
}

impl Control {
    /// Queues a handshake initiation in place of an older one that still waits for the same lane: two of them back to
    /// back would cost the second its answer, and the first is void.
    pub(super) fn push_initiation(&mut self, now: Instant, lane: Lane, bytes: Vec<u8>) {
        self.held.retain(|held| held.lane != lane || !is_initiation(&held.bytes));
        self.push(now, lane, bytes);
    }

    pub(super) fn push(&mut self, now: Instant, lane: Lane, bytes: Vec<u8>) {
        if self.held.len() >= MAX_HELD {
            self.held.pop_front();
            self.dropped += 1;
        }
        self.held.push_back(Message { since: now, lane, bytes });
    }

    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes out what has room; returns whether something waits. `sent` hears of each lane used.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        out: &mut impl SendSpace,
        budget: &mut Budget,
        mut sent: impl FnMut(&Lane),
    ) -> bool {
        for _ in 0..self.held.len() {
            let Some(message) = self.held.pop_front() else { break };
            let len = message.bytes.len();
            if !budget.is_spent() && out.room(&message.lane, len) {
                if let Some(slot) = out.slot(&message.lane, len).get_mut(..len) {
                    slot.copy_from_slice(&message.bytes);
                    out.commit(&message.lane, len);
                    budget.spend();
                    sent(&message.lane);
                }
            } else if now - message.since < HELD {
                self.held.push_back(message);
            } else {
                self.dropped += 1;
            }
        }
        !self.held.is_empty()
    }
}

fn is_initiation(bytes: &[u8]) -> bool {
    matches!(wg::Message::parse(bytes), Ok(wg::Message::Initiation { .. }))
}
