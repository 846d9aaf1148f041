//! Between the data loop and one relay connection: four rings of buffers, no lock, no allocation in steady state.
//!
//! Outbound buffers hold finished `SendPacket` frames, sealed in place by the loop. Inbound ones hold records of
//! [`Incoming`]. Every ring is bounded: a full outbound ring pauses the region's lanes, a full inbound one pauses
//! reading from the relay. Emptied buffers go back the other way.

use crate::{
    base::NodeKey,
    wire::derp::{HEADER, kind},
};
use futures::task::AtomicWaker;
use std::{
    cell::Cell,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering, fence},
    },
};

/// Buffers of one direction that may wait.
const BUFFERS: usize = 4;
/// Bytes after which a buffer is handed over.
pub(super) const BUFFER_BYTES: usize = 64 << 10;
/// What stands in front of a packet in either kind of buffer.
const PREFIX: usize = HEADER + 32;

/// Wakes the data loop for all of its relays.
#[derive(Debug, Default)]
pub struct Bell(AtomicWaker);

impl Bell {
    /// Registers who is to be woken; the caller looks at the rings again afterwards.
    pub fn register(&self, waker: &std::task::Waker) {
        self.0.register(waker);
    }

    pub(super) fn ring(&self) {
        self.0.wake();
    }
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Being dialled.
    Dialing,
    /// Carries packets.
    Up,
    /// Ended; see [`LoopSide::why`].
    Down,
}

struct Shared {
    state: AtomicU8,
    why: OnceLock<String>,
    preferred: AtomicBool,
    /// The loop doubts the connection.
    ping: AtomicBool,
    /// The loop found no room and waits for a buffer.
    starved: AtomicBool,
    task: AtomicWaker,
    bell: Arc<Bell>,
}

impl Shared {
    fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
        self.bell.ring();
    }

    fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Dialing,
            1 => State::Up,
            _ => State::Down,
        }
    }
}

/// Makes both sides of a connection's rings.
pub(super) fn lane(bell: Arc<Bell>, preferred: bool) -> (LoopSide, TaskSide) {
    let shared = Arc::new(Shared {
        state: AtomicU8::new(State::Dialing as u8),
        why: OnceLock::new(),
        preferred: AtomicBool::new(preferred),
        ping: AtomicBool::new(false),
        starved: AtomicBool::new(false),
        task: AtomicWaker::new(),
        bell,
    });
    let (out_full, out_task) = rtrb::RingBuffer::new(BUFFERS);
    let (out_back, out_free) = rtrb::RingBuffer::new(BUFFERS);
    let (in_full, in_loop) = rtrb::RingBuffer::new(BUFFERS);
    let (in_back, in_free) = rtrb::RingBuffer::new(BUFFERS);
    let loop_side = LoopSide {
        shared: Arc::clone(&shared),
        batch: Vec::new(),
        slot: 0,
        queue: out_full,
        free: out_free,
        inbox: in_loop,
        back: in_back,
        reading: Vec::new(),
        read: 0,
        full: Cell::new(false),
    };
    (loop_side, TaskSide { shared, queue: out_task, back: out_back, inbox: in_full, free: in_free, batch: Vec::new() })
}

/// What a relay delivered.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A packet from a peer.
    Packet(NodeKey, &'a [u8]),
    /// The relay does not have this peer.
    Gone(NodeKey),
}

/// The data loop's side.
pub struct LoopSide {
    shared: Arc<Shared>,
    /// Frames of this turn.
    batch: Vec<u8>,
    /// Where the last slot's frame begins.
    slot: usize,
    queue: rtrb::Producer<Vec<u8>>,
    free: rtrb::Consumer<Vec<u8>>,
    inbox: rtrb::Consumer<Vec<u8>>,
    back: rtrb::Producer<Vec<u8>>,
    reading: Vec<u8>,
    read: usize,
    /// A packet found no room.
    full: Cell<bool>,
}

impl LoopSide {
    /// Where the connection stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Why it ended.
    #[must_use]
    pub fn why(&self) -> &str {
        self.shared.why.get().map_or("", String::as_str)
    }

    /// Tells the relay whether it is our home.
    pub fn set_preferred(&self, preferred: bool) {
        self.shared.preferred.store(preferred, Ordering::Release);
        self.shared.task.wake();
    }

    /// Asks the relay for a sign of life; the connection ends when none comes in time.
    pub fn ping(&self) {
        self.shared.ping.store(true, Ordering::Release);
        self.shared.task.wake();
    }

    /// Whether a packet of `len` bytes can be taken.
    #[must_use]
    pub fn room(&self, len: usize) -> bool {
        if self.state() != State::Up {
            return false;
        }
        let fits = |used: usize| used + PREFIX + len <= BUFFER_BYTES || used == 0;
        // The batch needs a place in the ring when it is handed over, and so does the one behind it.
        let needed = if fits(self.batch.len()) { 1 } else { 2 };
        let room = || self.queue.slots() >= needed;
        if room() {
            return true;
        }
        self.full.set(true);
        self.shared.starved.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        room()
    }

    /// Whether there is room again after [`LoopSide::room`] found none. Told once.
    #[must_use]
    pub fn has_recovered(&self) -> bool {
        let recovered = self.full.get() && self.queue.slots() >= 2;
        self.full.set(self.full.get() && !recovered);
        recovered
    }

    /// Space for a packet of up to `len` bytes to `to`.
    pub fn slot(&mut self, to: &NodeKey, len: usize) -> &mut [u8] {
        if !self.batch.is_empty() && self.batch.len() + PREFIX + len > BUFFER_BYTES {
            self.flush();
        }
        if self.batch.capacity() == 0 {
            self.batch = self.free.pop().unwrap_or_default();
        }
        self.slot = self.batch.len();
        self.batch.push(kind::SEND_PACKET);
        self.batch.extend_from_slice(&[0; 4]);
        self.batch.extend_from_slice(to.as_bytes());
        let begin = self.batch.len();
        self.batch.resize(begin + len, 0);
        self.batch.get_mut(begin..).unwrap_or_default()
    }

    /// Completes the frame of the last slot with its first `used` bytes.
    pub fn commit(&mut self, used: usize) {
        self.batch.truncate(self.slot + PREFIX + used);
        let payload = u32::try_from(32 + used).unwrap_or(u32::MAX);
        if let Some(length) = self.batch.get_mut(self.slot + 1..self.slot + HEADER) {
            length.copy_from_slice(&payload.to_be_bytes());
        }
        self.slot = self.batch.len();
    }

    /// Hands the frames of this turn to the connection.
    pub fn flush(&mut self) {
        // A slot that was never committed counts for nothing.
        self.batch.truncate(self.slot);
        if self.batch.is_empty() {
            return;
        }
        // `room` kept a place free.
        if self.queue.push(std::mem::take(&mut self.batch)).is_ok() {
            self.shared.task.wake();
        }
        self.slot = 0;
    }

    /// Whether something waits to be read.
    #[must_use]
    pub fn has_incoming(&self) -> bool {
        self.read < self.reading.len() || !self.inbox.is_empty()
    }

    /// Hands out up to `max` records; returns how many there were.
    pub fn receive(&mut self, max: usize, mut on: impl FnMut(Incoming<'_>)) -> usize {
        let mut taken = 0;
        while taken < max {
            if self.read >= self.reading.len() {
                if self.reading.capacity() > 0 {
                    let mut done = std::mem::take(&mut self.reading);
                    done.clear();
                    // A ring that is full of spare buffers needs no further one.
                    let _ = self.back.push(done);
                    self.shared.task.wake();
                }
                let Ok(next) = self.inbox.pop() else { break };
                (self.reading, self.read) = (next, 0);
            }
            let rest = self.reading.get(self.read..).unwrap_or_default();
            let Some((record, used)) = parse(rest) else {
                self.read = self.reading.len();
                continue;
            };
            on(record);
            self.read += used;
            taken += 1;
        }
        taken
    }
}

impl std::fmt::Debug for LoopSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopSide").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// The connection's side. Dropping it tells the loop that the connection has ended.
pub(super) struct TaskSide {
    shared: Arc<Shared>,
    queue: rtrb::Consumer<Vec<u8>>,
    back: rtrb::Producer<Vec<u8>>,
    inbox: rtrb::Producer<Vec<u8>>,
    free: rtrb::Consumer<Vec<u8>>,
    batch: Vec<u8>,
}

impl TaskSide {
    pub(super) fn register(&self, waker: &std::task::Waker) {
        self.shared.task.register(waker);
    }

    pub(super) fn preferred(&self) -> bool {
        self.shared.preferred.load(Ordering::Acquire)
    }

    /// Whether the loop has asked for a sign of life since the last look.
    pub(super) fn take_ping(&self) -> bool {
        self.shared.ping.swap(false, Ordering::AcqRel)
    }

    pub(super) fn up(&self) {
        self.shared.set_state(State::Up);
    }

    pub(super) fn down(&self, why: String) {
        let _ = self.shared.why.set(why);
        self.shared.set_state(State::Down);
    }

    /// The next frames to send.
    pub(super) fn next_out(&mut self) -> Option<Vec<u8>> {
        let next = self.queue.pop().ok()?;
        // The place first, then the look at the flag: the loop does it the other way round.
        fence(Ordering::SeqCst);
        if self.shared.starved.swap(false, Ordering::AcqRel) {
            self.shared.bell.ring();
        }
        Some(next)
    }

    /// Gives a sent buffer back.
    pub(super) fn recycle(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        let _ = self.back.push(buffer);
    }

    /// Whether received bytes find room.
    pub(super) fn has_room(&self) -> bool {
        !self.inbox.is_full()
    }

    /// Takes in one record; handed over by [`TaskSide::deliver`].
    pub(super) fn push(&mut self, record: &Incoming<'_>) {
        if self.batch.capacity() == 0 {
            self.batch = self.free.pop().unwrap_or_default();
        }
        let (tag, key, bytes) = match record {
            Incoming::Packet(from, packet) => (kind::RECV_PACKET, from, *packet),
            Incoming::Gone(peer) => (kind::PEER_GONE, peer, &[][..]),
        };
        self.batch.push(tag);
        self.batch.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
        self.batch.extend_from_slice(key.as_bytes());
        self.batch.extend_from_slice(bytes);
    }

    /// Hands received records to the loop. Called only while there is room.
    pub(super) fn deliver(&mut self) {
        if !self.batch.is_empty() && self.inbox.push(std::mem::take(&mut self.batch)).is_ok() {
            self.shared.bell.ring();
        }
    }
}

impl Drop for TaskSide {
    fn drop(&mut self) {
        self.shared.set_state(State::Down);
    }
}

fn parse(bytes: &[u8]) -> Option<(Incoming<'_>, usize)> {
    let (&tag, rest) = bytes.split_first()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_first_chunk::<32>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    let packet = rest.get(..len)?;
    let key = NodeKey::from(*key);
    let record = if tag == kind::PEER_GONE { Incoming::Gone(key) } else { Incoming::Packet(key, packet) };
    Some((record, PREFIX + len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::derp::{self, Frame};

    fn key(n: u8) -> NodeKey {
        NodeKey::from([n; 32])
    }

    fn pair() -> (LoopSide, TaskSide) {
        let (l, t) = lane(Arc::default(), false);
        assert!(!l.room(100), "nothing can be sent before the connection stands");
        t.up();
        (l, t)
    }

    fn put(l: &mut LoopSide, to: u8, packet: &[u8]) {
        l.slot(&key(to), packet.len() + 9)[..packet.len()].copy_from_slice(packet);
        l.commit(packet.len());
    }

    #[test]
    fn slots_become_the_frames_that_the_codec_writes() {
        let (mut l, mut t) = pair();
        put(&mut l, 1, b"one");
        put(&mut l, 2, &[7; 1312]);
        l.slot(&key(3), 50);
        l.flush();
        let out = t.next_out().unwrap();
        let mut expected = Vec::new();
        derp::write_send_packet(&key(1), b"one", &mut expected);
        derp::write_send_packet(&key(2), &[7; 1312], &mut expected);
        assert_eq!(out, expected);
        assert!(matches!(derp::parse(&out).unwrap().unwrap().0, Frame::SendPacket { .. }));
        assert!(t.next_out().is_none());
    }

    #[test]
    fn a_full_ring_has_no_room_until_the_connection_takes_a_buffer() {
        let (mut l, mut t) = pair();
        let mut packets = 0;
        while l.room(1312) {
            put(&mut l, 1, &[0; 1312]);
            packets += 1;
        }
        l.flush();
        let per_buffer = BUFFER_BYTES / (PREFIX + 1312);
        assert!(packets >= (BUFFERS - 1) * per_buffer, "{packets}");
        assert!(!l.room(1312) && l.shared.starved.load(Ordering::Acquire));
        let mut got = 0;
        while let Some(buffer) = t.next_out() {
            let mut rest = buffer.as_slice();
            while let Some((_, used)) = derp::parse(rest).unwrap() {
                rest = &rest[used..];
                got += 1;
            }
            t.recycle(buffer);
        }
        assert_eq!(got, packets, "no packet is lost");
        assert!(l.room(1312) && !l.shared.starved.load(Ordering::Acquire));
        put(&mut l, 1, b"again");
        assert!(l.batch.capacity() > 1000, "a spent buffer is used again");
    }

    #[test]
    fn records_arrive_in_order_and_in_portions() {
        let (mut l, mut t) = pair();
        for n in 0..100u8 {
            t.push(&Incoming::Packet(key(n), &vec![n; usize::from(n)]));
        }
        t.push(&Incoming::Gone(key(9)));
        t.deliver();
        let mut seen = Vec::new();
        let mut take = |l: &mut LoopSide, max| {
            l.receive(max, |r| match r {
                Incoming::Packet(from, d) => seen.push((from, d.to_vec())),
                Incoming::Gone(peer) => assert_eq!(peer, key(9)),
            })
        };
        assert_eq!(take(&mut l, 64), 64);
        assert!(l.has_incoming());
        assert_eq!(take(&mut l, 64), 37);
        assert!(!l.has_incoming());
        assert!(seen.iter().enumerate().all(|(n, (from, d))| *from == key(n as u8) && *d == vec![n as u8; n]));
    }

    #[test]
    fn an_unread_inbox_pauses_the_connection() {
        let (mut l, mut t) = pair();
        let mut delivered = 0;
        while t.has_room() {
            t.push(&Incoming::Packet(key(1), b"x"));
            t.deliver();
            delivered += 1;
        }
        assert_eq!(delivered, BUFFERS);
        assert_eq!(l.receive(1, |_| ()), 1);
        assert!(t.has_room());
    }

    #[test]
    fn a_dropped_connection_is_down() {
        let (l, t) = pair();
        t.down("the reason".into());
        drop(t);
        assert_eq!((l.state(), l.why()), (State::Down, "the reason"));
        assert!(!l.room(1));
    }
}
