//! Handshakes, disco and STUN on their way out. They leave before any data.

use super::{Budget, SendSpace};
use crate::{
    base::{Instant, Lane, RegionId, SocketIx},
    wire::wg,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Messages that wait for one socket or relay; beyond it the oldest is dropped. One that is dead takes nothing from others.
const MAX_HELD: usize = 256;
/// How long a message waits for a relay that connects or a full socket. After it the sender's own retry is due.
const HELD: Duration = Duration::from_secs(5);
/// Empty queues that are kept.
const MAX_IDLE: usize = 8;

/// What is full or free as a whole: all lanes through it have room or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outlet {
    Udp(SocketIx),
    Relay(RegionId),
}

impl From<&Lane> for Outlet {
    fn from(lane: &Lane) -> Self {
        match lane {
            Lane::Udp { socket, .. } => Self::Udp(*socket),
            Lane::Relay { region, .. } => Self::Relay(*region),
        }
    }
}

#[derive(Debug)]
struct Message {
    since: Instant,
    lane: Lane,
    bytes: Vec<u8>,
}

/// The queues of control messages, in order for each lane.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Few: the sockets and the relays in use.
    held: BTreeMap<Outlet, VecDeque<Message>>,
    dropped: u64,
}

impl Control {
    /// Queues a handshake initiation in place of an older one that still waits for the same lane: two of them back to
    /// back would cost the second its answer, and the first is void.
    pub(super) fn push_initiation(&mut self, now: Instant, lane: Lane, bytes: Vec<u8>) {
        self.queue(&lane).retain(|held| held.lane != lane || !is_initiation(&held.bytes));
        self.push(now, lane, bytes);
    }

    pub(super) fn push(&mut self, now: Instant, lane: Lane, bytes: Vec<u8>) {
        let queue = self.queue(&lane);
        let full = queue.len() >= MAX_HELD;
        if full {
            queue.pop_front();
        }
        queue.push_back(Message { since: now, lane, bytes });
        self.dropped += u64::from(full);
    }

    fn queue(&mut self, lane: &Lane) -> &mut VecDeque<Message> {
        self.held.entry(Outlet::from(lane)).or_default()
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
        for queue in self.held.values_mut() {
            for _ in 0..queue.len() {
                let Some(message) = queue.pop_front() else { break };
                let len = message.bytes.len();
                if !budget.is_spent() && out.room(&message.lane, len) {
                    if let Some(slot) = out.slot(&message.lane, len).get_mut(..len) {
                        slot.copy_from_slice(&message.bytes);
                        out.commit(&message.lane, len);
                        budget.spend();
                        sent(&message.lane);
                    }
                } else if now - message.since < HELD {
                    queue.push_back(message);
                } else {
                    self.dropped += 1;
                }
            }
        }
        // Regions that are no longer used leave nothing behind.
        if self.held.len() > MAX_IDLE {
            self.held.retain(|_, queue| !queue.is_empty());
        }
        !self.held.values().all(VecDeque::is_empty)
    }
}

fn is_initiation(bytes: &[u8]) -> bool {
    matches!(wg::Message::parse(bytes), Ok(wg::Message::Initiation { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeKey;

    /// Records what leaves; only the lanes of one region are blocked.
    struct Out {
        blocked: Option<RegionId>,
        slot: Vec<u8>,
        sent: Vec<(Lane, Vec<u8>)>,
    }

    impl SendSpace for Out {
        fn room(&self, lane: &Lane, _: usize) -> bool {
            !matches!(lane, Lane::Relay { region, .. } if Some(*region) == self.blocked)
        }

        fn slot(&mut self, _: &Lane, len: usize) -> &mut [u8] {
            self.slot.resize(len, 0);
            &mut self.slot
        }

        fn commit(&mut self, lane: &Lane, used: usize) {
            self.sent.push((*lane, self.slot[..used].to_vec()));
        }
    }

    fn relay(region: u16, peer: u16) -> Lane {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&peer.to_be_bytes());
        Lane::Relay { region: RegionId::new(region).unwrap(), to: NodeKey::from(key) }
    }

    #[test]
    fn a_dead_relay_costs_the_messages_of_other_lanes_nothing() {
        let mut control = Control::default();
        let to = "192.0.2.1:1".parse().unwrap();
        let udp = Lane::Udp { socket: SocketIx::for_address(&to), to };
        for n in 0..3 {
            control.push(Instant::ZERO, udp, vec![n]);
            control.push(Instant::ZERO, relay(2, 0), vec![n]);
        }
        for peer in 0..2_000 {
            control.push(Instant::ZERO, relay(1, peer), vec![9]);
        }
        assert_eq!(control.dropped(), 2_000 - MAX_HELD as u64);
        let mut out = Out { blocked: RegionId::new(1), slot: Vec::new(), sent: Vec::new() };
        assert!(control.transmit(Instant::ZERO, &mut out, &mut Budget::new(1_000), |_| ()));
        for lane in [udp, relay(2, 0)] {
            let sent: Vec<_> = out.sent.iter().filter(|(l, _)| *l == lane).map(|(_, bytes)| bytes[0]).collect();
            assert_eq!(sent, [0, 1, 2], "{lane:?}");
        }
        assert_eq!(out.sent.len(), 6);
        // What waited too long goes, and nothing is left behind.
        assert!(!control.transmit(Instant::ZERO + HELD, &mut out, &mut Budget::new(1_000), |_| ()));
        assert_eq!((control.dropped(), out.sent.len()), (2_000, 6));
    }
}
