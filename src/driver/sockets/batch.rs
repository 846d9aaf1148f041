//! Datagrams waiting to leave a UDP socket, laid out so that the kernel can cut them itself (GSO).
//!
//! A batch holds datagrams for one receiver, all of one length but the last, which may be shorter and seals it. Only
//! the newest batch of a receiver may grow: order among a receiver's datagrams is kept. Ciphertext is written straight
//! into the batch.

use std::{collections::VecDeque, net::SocketAddr};

/// Size of a batch: what the kernel takes in one call (an IPv4 datagram's payload ends at 65,507 bytes).
const BATCH_BYTES: usize = 65_000;
/// Batches of one socket that may wait: together the send buffer asked for. Beyond it the socket's lanes pause.
const MAX_BATCHES: usize = 16;
/// Idle buffers kept for the next turn; the rest goes back to the allocator.
const KEPT: usize = 2;

/// Datagrams for one receiver.
pub(super) struct Batch {
    to: SocketAddr,
    buffer: Box<[u8]>,
    used: usize,
    segment: usize,
    count: usize,
    sealed: bool,
}

impl Batch {
    pub(super) const fn to(&self) -> SocketAddr {
        self.to
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.used).unwrap_or_default()
    }

    /// The length of all datagrams but the last.
    pub(super) const fn segment(&self) -> usize {
        self.segment
    }

    /// How many datagrams it holds.
    pub(super) const fn count(&self) -> usize {
        self.count
    }
}

/// The queue of one socket.
#[derive(Default)]
pub(super) struct Batches {
    queue: VecDeque<Batch>,
    free: Vec<Box<[u8]>>,
    /// Where the last slot lies: its batch and whether it may join what is there.
    slot: Option<usize>,
    /// How many datagrams the kernel cuts out of one batch.
    max_segments: usize,
}

impl Batches {
    pub(super) fn new(max_segments: usize) -> Self {
        Self { max_segments: max_segments.max(1), ..Self::default() }
    }

    /// The kernel cuts out at most `n` from now on: 1 once it refused.
    pub(super) fn limit_segments(&mut self, n: usize) {
        self.max_segments = self.max_segments.min(n.max(1));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues one datagram of any length, even one that no slot holds.
    #[cfg(test)]
    pub(super) fn push_any(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        let used = bytes.len();
        let buffer = bytes.into_boxed_slice();
        self.queue.push_back(Batch { to, buffer, used, segment: used, count: 1, sealed: true });
    }

    /// Whether a datagram of `len` bytes can be taken.
    pub(super) fn room(&self, len: usize) -> bool {
        len <= BATCH_BYTES && self.queue.len() < MAX_BATCHES
    }

    /// Space for a datagram of up to `len` bytes to `to`.
    pub(super) fn slot(&mut self, to: SocketAddr, len: usize) -> &mut [u8] {
        let len = len.min(BATCH_BYTES);
        let newest = self.queue.iter().rposition(|b| b.to == to);
        let max = self.max_segments;
        let fits = |b: &Batch| !b.sealed && b.count < max && b.used + len <= BATCH_BYTES;
        let at = match newest {
            Some(at) if self.queue.get(at).is_some_and(fits) => at,
            _ => self.open(to),
        };
        self.slot = Some(at);
        self.queue.get_mut(at).and_then(|b| b.buffer.get_mut(b.used..b.used + len)).unwrap_or_default()
    }

    /// Queues the first `used` bytes of the last slot.
    pub(super) fn commit(&mut self, used: usize) {
        let Some(at) = self.slot.take() else { return };
        let Some(batch) = self.queue.get_mut(at) else { return };
        if batch.count == 0 {
            batch.segment = used;
        } else if used > batch.segment {
            // Longer than the batch's datagrams: it starts a batch of its own.
            batch.sealed = true;
            let (to, begin) = (batch.to, batch.used);
            let new = self.open(to);
            let (Some(from), Some(into)) = get_two(&mut self.queue, at, new) else { return };
            if let (Some(into), Some(from)) = (into.buffer.get_mut(..used), from.buffer.get(begin..begin + used)) {
                into.copy_from_slice(from);
            }
            if let Some(batch) = self.queue.get_mut(new) {
                (batch.segment, batch.used, batch.count) = (used, used, 1);
            }
            return;
        }
        batch.sealed = used < batch.segment;
        batch.used += used;
        batch.count += 1;
    }

    /// The oldest batch. One that got nothing committed is dropped on the way.
    pub(super) fn front(&mut self) -> Option<&Batch> {
        while self.queue.front().is_some_and(|b| b.count == 0) {
            self.pop();
        }
        self.queue.front()
    }

    /// Forgets the oldest batch.
    pub(super) fn pop(&mut self) {
        self.slot = None;
        if let Some(batch) = self.queue.pop_front()
            && self.free.len() < if self.queue.is_empty() { KEPT } else { MAX_BATCHES }
        {
            self.free.push(batch.buffer);
        }
        if self.queue.is_empty() {
            self.free.truncate(KEPT);
        }
    }

    fn open(&mut self, to: SocketAddr) -> usize {
        let buffer = self.free.pop().unwrap_or_else(|| vec![0; BATCH_BYTES].into_boxed_slice());
        self.queue.push_back(Batch { to, buffer, used: 0, segment: 0, count: 0, sealed: false });
        self.queue.len() - 1
    }
}

fn get_two(queue: &mut VecDeque<Batch>, first: usize, second: usize) -> (Option<&mut Batch>, Option<&mut Batch>) {
    let mut both = queue.iter_mut().enumerate().filter(|(i, _)| *i == first || *i == second).map(|(_, b)| b);
    (both.next(), both.next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn put(batches: &mut Batches, port: u16, len: usize, fill: u8) {
        batches.slot(to(port), len + 7)[..len].fill(fill);
        batches.commit(len);
    }

    fn drain(batches: &mut Batches) -> Vec<(u16, usize, usize, Vec<u8>)> {
        let mut out = Vec::new();
        while let Some(b) = batches.front() {
            out.push((b.to().port(), b.segment(), b.count(), b.bytes().to_vec()));
            batches.pop();
        }
        out
    }

    #[test]
    fn equal_datagrams_share_a_batch_and_a_shorter_one_seals_it() {
        let mut b = Batches::new(64);
        for fill in 1..=3 {
            put(&mut b, 1, 100, fill);
        }
        put(&mut b, 1, 40, 4);
        put(&mut b, 1, 40, 5);
        let out = drain(&mut b);
        assert_eq!(out.len(), 2);
        assert_eq!((out[0].1, out[0].2, out[0].3.len()), (100, 4, 340));
        assert_eq!(out[0].3[300], 4);
        assert_eq!((out[1].1, out[1].2, out[1].3.clone()), (40, 1, vec![5; 40]));
    }

    #[test]
    fn a_longer_datagram_starts_a_batch_of_its_own_with_its_bytes_intact() {
        let mut b = Batches::new(64);
        put(&mut b, 1, 40, 1);
        put(&mut b, 1, 100, 2);
        put(&mut b, 1, 100, 3);
        let out = drain(&mut b);
        assert_eq!(out.iter().map(|o| (o.1, o.2)).collect::<Vec<_>>(), [(40, 1), (100, 2)]);
        assert_eq!(out[1].3, [vec![2; 100], vec![3; 100]].concat());
    }

    #[test]
    fn receivers_do_not_mix_and_order_is_kept_for_each() {
        let mut b = Batches::new(64);
        for (port, fill) in [(1, 1), (2, 2), (1, 3), (2, 4)] {
            put(&mut b, port, 50, fill);
        }
        let out = drain(&mut b);
        assert_eq!(out.len(), 2);
        assert_eq!(out[0].3, [vec![1; 50], vec![3; 50]].concat());
        assert_eq!(out[1].3, [vec![2; 50], vec![4; 50]].concat());
    }

    #[test]
    fn without_offload_every_datagram_is_a_batch() {
        let mut b = Batches::new(1);
        put(&mut b, 1, 50, 1);
        put(&mut b, 1, 50, 2);
        assert_eq!(drain(&mut b).len(), 2);
    }

    #[test]
    fn a_full_queue_has_no_room_and_an_uncommitted_slot_counts_for_nothing() {
        let mut b = Batches::new(1);
        for _ in 0..MAX_BATCHES {
            assert!(b.room(1300));
            put(&mut b, 1, 1300, 0);
        }
        assert!(!b.room(1300));
        assert_eq!(drain(&mut b).len(), MAX_BATCHES);
        b.slot(to(1), 10);
        assert!(b.front().is_none());
        assert!(b.is_empty() && b.free.len() <= KEPT);
    }

    #[test]
    fn a_batch_ends_at_the_segment_count_and_at_its_size() {
        let mut b = Batches::new(4);
        for _ in 0..5 {
            put(&mut b, 1, 10, 0);
        }
        assert_eq!(drain(&mut b).iter().map(|o| o.2).collect::<Vec<_>>(), [4, 1]);
        let mut b = Batches::new(64);
        for _ in 0..50 {
            put(&mut b, 1, 1344, 0);
        }
        assert_eq!(drain(&mut b).iter().map(|o| o.2).collect::<Vec<_>>(), [48, 2]);
    }
}
