//! The packets that wait for one client: a ring of written frames that drops its oldest.

use crate::{
    base::NodeKey,
    wire::derp::{HEADER, Header, MAX_PACKET, kind},
};
use std::collections::VecDeque;

/// How many packets wait at most; Go's number.
pub(super) const PACKETS: usize = 512;
/// How many bytes wait at most: 512 packets of WireGuard's size, thrice over.
pub(super) const BYTES: usize = 2 << 20;
const _: () = assert!(BYTES > HEADER + 32 + MAX_PACKET, "one packet of any size must fit");
/// What an idle ring keeps.
const KEEP: usize = 8 << 10;

/// A bounded first-in first-out queue of receive frames.
#[derive(Debug, Default)]
pub(super) struct PacketQueue {
    bytes: VecDeque<u8>,
    lens: VecDeque<usize>,
}

impl PacketQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// The memory that it holds.
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends a packet from `from`, so that at most `limit` bytes wait, and tells how many packets had to go for it: old
    /// ones, or this one when it alone is too long.
    pub(super) fn push(&mut self, from: &NodeKey, packet: &[u8], limit: usize) -> u64 {
        let payload = from.as_bytes().len() + packet.len();
        let len = HEADER + payload;
        if len > limit {
            return 1;
        }
        let mut dropped = 0;
        while self.lens.len() >= PACKETS || self.bytes.len() + len > limit {
            let Some(oldest) = self.lens.pop_front() else { break };
            self.bytes.drain(..oldest);
            dropped += 1;
        }
        // The limit may have fallen far below what is held.
        if self.bytes.capacity() > 2 * limit {
            self.bytes.shrink_to(limit);
        }
        let needed = self.bytes.len() + len;
        if needed > self.bytes.capacity() {
            let grown = (2 * self.bytes.capacity()).clamp(needed, limit);
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        self.bytes.extend(&Header { kind: kind::RECV_PACKET, len: payload }.to_bytes());
        self.bytes.extend(from.as_bytes());
        self.bytes.extend(packet);
        self.lens.push_back(len);
        dropped
    }

    /// Moves whole frames to `out` until it holds `max` bytes; the first one goes into an empty `out` whatever its size.
    pub(super) fn take(&mut self, out: &mut Vec<u8>, max: usize) {
        let mut end = 0;
        while let Some(len) = self.lens.front() {
            let held = out.len() + end;
            if held > 0 && held + len > max {
                break;
            }
            end += len;
            self.lens.pop_front();
        }
        let (front, back) = self.bytes.as_slices();
        let (front, back) = (front.get(..end).unwrap_or(front), back.get(..end.saturating_sub(front.len())).unwrap_or_default());
        out.extend_from_slice(front);
        out.extend_from_slice(back);
        self.bytes.drain(..end);
    }

    /// Gives the memory of a past burst back.
    pub(super) fn relax(&mut self) {
        if self.is_empty() {
            self.bytes.shrink_to(KEEP);
            self.lens.shrink_to(PACKETS / 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::derp::{Frame, parse};
    use proptest::prelude::*;

    fn key(n: u8) -> NodeKey {
        NodeKey::from([n; 32])
    }

    fn drain(queue: &mut PacketQueue, max: usize) -> Vec<(NodeKey, Vec<u8>)> {
        let mut got = Vec::new();
        loop {
            let mut out = Vec::new();
            queue.take(&mut out, max);
            if out.is_empty() {
                return got;
            }
            let mut rest = out.as_slice();
            while !rest.is_empty() {
                let (Frame::RecvPacket { from, packet }, used) = parse(rest).unwrap().unwrap() else { panic!("other frame") };
                got.push((from, packet.to_vec()));
                rest = &rest[used..];
            }
        }
    }

    #[test]
    fn the_oldest_packets_make_room_for_the_newest() {
        let mut queue = PacketQueue::default();
        let dropped: u64 = (0..600u32).map(|n| queue.push(&key(1), &n.to_be_bytes(), BYTES)).sum();
        assert_eq!(dropped, 88);
        let got = drain(&mut queue, 4_096);
        assert_eq!(got.len(), PACKETS);
        assert_eq!(got.first().unwrap().1, 88u32.to_be_bytes());
        assert_eq!(got.last().unwrap().1, 599u32.to_be_bytes());
    }

    #[test]
    fn a_queue_of_the_largest_packets_stays_within_its_bytes() {
        let mut queue = PacketQueue::default();
        let dropped: u64 = (0..100).map(|_| queue.push(&key(1), &[0; MAX_PACKET], BYTES)).sum();
        assert!(queue.bytes.len() <= BYTES && queue.held() <= BYTES, "{}", queue.held());
        assert_eq!(drain(&mut queue, 1).len() as u64, 100 - dropped);
        queue.relax();
        assert!(queue.bytes.capacity() <= 2 * KEEP);
    }

    #[test]
    fn a_queue_whose_limit_falls_lets_go_of_packets_and_of_memory() {
        let mut queue = PacketQueue::default();
        for _ in 0..500 {
            assert_eq!(queue.push(&key(1), &[0; 1_400], BYTES), 0);
        }
        let held = queue.held();
        assert!(held >= 500 * 1_400, "{held}");
        let dropped = queue.push(&key(2), &[1; 1_400], 8 << 10);
        assert_eq!(drain(&mut queue, 4_096).len() as u64, 501 - dropped);
        assert!(dropped >= 495 && queue.held() <= 16 << 10, "{dropped} {}", queue.held());
        assert_eq!(queue.push(&key(2), &[1; 9_000], 8 << 10), 1);
        assert!(queue.is_empty());
    }

    proptest! {
        #[test]
        fn packets_come_out_whole_and_in_order(
            sizes in proptest::collection::vec(0usize..3_000, 0..60), max in 1usize..9_000, between in 1usize..20,
        ) {
            let (mut queue, mut got, mut sent) = (PacketQueue::default(), Vec::new(), Vec::new());
            for (at, size) in sizes.into_iter().enumerate() {
                let n = u8::try_from(at).unwrap();
                queue.push(&key(n), &vec![n; size], BYTES);
                sent.push((key(n), vec![n; size]));
                if at % between == 0 {
                    got.extend(drain(&mut queue, max));
                }
            }
            got.extend(drain(&mut queue, max));
            prop_assert_eq!(got, sent);
        }
    }
}
