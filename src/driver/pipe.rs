//! Where the owner of a stream and the data loop meet: two byte rings, two wakers and a dirty flag, no lock.
//!
//! The owner writes into one ring and reads from the other. Whatever the loop has to notice (bytes written, room made,
//! half-close, drop, abort) sets a flag and queues the stream's key once; the queue wakes the loop only if it sleeps.
//! Invariants: a byte accepted by a write reaches the flow unless the stream is aborted or breaks; the key is queued at
//! most once until the loop has looked; an owner that waits is woken when what it waits for is there, at the latest
//! when the loop's end is dropped.

use futures::task::AtomicWaker;
use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering, fence},
    },
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc::UnboundedSender,
};

/// Size of one ring. Its pages become resident when bytes pass through them.
pub const RING_BYTES: usize = 256 << 10;
/// Room that wakes a waiting writer, and room after which a reader tells the loop: small enough to keep both busy,
/// large enough that a bulk transfer wakes seldom.
const WAKE_ROOM: usize = RING_BYTES / 4;

/// The key is queued and the loop has not looked yet.
const DIRTY: u8 = 1;
/// Owner: nothing more will be written.
const CLOSE_WRITE: u8 = 1 << 1;
/// Owner: reset the connection.
const ABORT: u8 = 1 << 2;
/// Owner: dropped.
const GONE: u8 = 1 << 3;
/// Loop: received bytes wait for room in the ring.
const STALLED: u8 = 1 << 4;
/// Loop: the peer closed and its last byte is in the ring.
const FINISHED: u8 = 1 << 5;
/// Loop: the connection is broken or the loop is gone.
const BROKEN: u8 = 1 << 6;

/// Which stream of the loop is meant. Keys are never reused.
pub type Key = u64;

/// Why a stream broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// Both sides had closed it.
    #[error("the connection is over")]
    Over,
    /// The peer reset the connection.
    #[error("connection reset by the peer")]
    Reset,
    /// The peer did not acknowledge for too long.
    #[error("the peer stopped answering")]
    TimedOut,
    /// The peer came back as another process; it knows nothing of this connection.
    #[error("the peer was restarted")]
    PeerRestarted,
    /// The coordinator took the peer away.
    #[error("the peer is gone")]
    PeerGone,
    /// This node was closed.
    #[error("the tailnet is closed")]
    Closed,
}

impl From<Broken> for io::Error {
    fn from(why: Broken) -> Self {
        let kind = match why {
            Broken::Over => io::ErrorKind::BrokenPipe,
            Broken::Reset | Broken::PeerRestarted => io::ErrorKind::ConnectionReset,
            Broken::TimedOut => io::ErrorKind::TimedOut,
            Broken::PeerGone | Broken::Closed => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, why)
    }
}

#[derive(Default)]
struct Shared {
    flags: AtomicU8,
    reader: AtomicWaker,
    writer: AtomicWaker,
    why: OnceLock<Broken>,
}

impl Shared {
    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }
}

/// Makes the two ends of a new stream.
#[must_use]
pub fn pipe(key: Key, doorbell: UnboundedSender<Key>) -> (OwnerEnd, LoopEnd) {
    let shared = Arc::new(Shared::default());
    let (to_loop, from_owner) = rtrb::RingBuffer::new(RING_BYTES);
    let (to_owner, from_loop) = rtrb::RingBuffer::new(RING_BYTES);
    let owner = OwnerEnd { shared: Arc::clone(&shared), key, doorbell, to_loop, from_loop };
    (owner, LoopEnd { shared, from_owner, to_owner })
}

/// The owner's end.
pub struct OwnerEnd {
    shared: Arc<Shared>,
    key: Key,
    doorbell: UnboundedSender<Key>,
    to_loop: rtrb::Producer<u8>,
    from_loop: rtrb::Consumer<u8>,
}

impl OwnerEnd {
    /// Resets the connection: what was written and not yet sent is thrown away.
    pub fn abort(&self) {
        self.tell(ABORT);
    }

    /// Why the stream broke, if it did.
    #[must_use]
    pub fn broken(&self) -> Option<Broken> {
        self.shared.why.get().copied()
    }

    /// Waits for bytes; `false` is the end of them.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.from_loop.slots() > 0 {
            return Poll::Ready(Ok(true));
        }
        self.shared.reader.register(cx.waker());
        // The flags are read before the second look at the ring: bytes in front of the end are never skipped.
        let flags = self.shared.flags.load(Ordering::Acquire);
        if self.from_loop.slots() > 0 {
            Poll::Ready(Ok(true))
        } else if flags & FINISHED != 0 {
            Poll::Ready(Ok(false))
        } else if flags & BROKEN != 0 {
            Poll::Ready(Err(self.error()))
        } else {
            Poll::Pending
        }
    }

    /// Offers received bytes, as far as they lie in one piece, to `take`, which says how many it took.
    ///
    /// # Errors
    /// Those of `take`, which has taken nothing then.
    pub fn read_with(&mut self, take: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let slots = self.from_loop.slots();
        let Ok(chunk) = self.from_loop.read_chunk(slots) else { return Ok(0) };
        let (first, _) = chunk.as_slices();
        let taken = take(first)?.min(first.len());
        chunk.commit(taken);
        self.has_made_room(taken);
        Ok(taken)
    }

    /// Waits until a write would take something; how much.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        for registered in [false, true] {
            let flags = self.shared.flags.load(Ordering::Acquire);
            if flags & BROKEN != 0 {
                return Poll::Ready(Err(self.error()));
            }
            if flags & (CLOSE_WRITE | ABORT) != 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let room = self.to_loop.slots();
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            if !registered {
                self.shared.writer.register(cx.waker());
            }
        }
        Poll::Pending
    }

    fn tell(&self, flag: u8) {
        let before = self.shared.flags.fetch_or(flag | DIRTY, Ordering::AcqRel);
        if before & DIRTY == 0 {
            // Fails only when the loop is gone, which breaks the stream by itself.
            let _ = self.doorbell.send(self.key);
        }
    }

    fn error(&self) -> io::Error {
        self.broken().unwrap_or(Broken::Closed).into()
    }

    fn read(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let n = self.from_loop.slots().min(out.remaining());
        let Ok(chunk) = self.from_loop.read_chunk(n) else { return false };
        let (first, second) = chunk.as_slices();
        out.put_slice(first);
        out.put_slice(second);
        chunk.commit_all();
        self.has_made_room(n);
        n > 0
    }

    fn has_made_room(&self, bytes: usize) {
        // Room first, then the look at the flag: the loop does it the other way round.
        fence(Ordering::SeqCst);
        if bytes > 0 && self.shared.has(STALLED) && self.from_loop.slots() <= RING_BYTES - WAKE_ROOM {
            self.tell(0);
        }
    }
}

impl AsyncRead for OwnerEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if out.remaining() == 0 || this.read(out) {
            return Poll::Ready(Ok(()));
        }
        this.shared.reader.register(cx.waker());
        // The flags are read before the second look at the ring: bytes in front of the end are never skipped.
        let flags = this.shared.flags.load(Ordering::Acquire);
        if this.read(out) || flags & FINISHED != 0 {
            Poll::Ready(Ok(()))
        } else if flags & BROKEN != 0 {
            Poll::Ready(Err(this.error()))
        } else {
            Poll::Pending
        }
    }
}

impl AsyncWrite for OwnerEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        for registered in [false, true] {
            let flags = this.shared.flags.load(Ordering::Acquire);
            if flags & BROKEN != 0 {
                return Poll::Ready(Err(this.error()));
            }
            if flags & (CLOSE_WRITE | ABORT) != 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let (written, _) = this.to_loop.push_partial_slice(data);
            if !written.is_empty() || data.is_empty() {
                let n = written.len();
                this.tell(0);
                return Poll::Ready(Ok(n));
            }
            if !registered {
                this.shared.writer.register(cx.waker());
            }
        }
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The loop sends by itself; there is nothing to push.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shared.has(CLOSE_WRITE) {
            self.tell(CLOSE_WRITE);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for OwnerEnd {
    fn drop(&mut self) {
        self.tell(GONE);
    }
}

impl fmt::Debug for OwnerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerEnd").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What the owner wants beyond bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// No more will be written.
    pub close_write: bool,
    /// Reset at once.
    pub abort: bool,
    /// The owner is gone.
    pub gone: bool,
}

/// The data loop's end. Dropping it breaks the stream for its owner.
pub struct LoopEnd {
    shared: Arc<Shared>,
    from_owner: rtrb::Consumer<u8>,
    to_owner: rtrb::Producer<u8>,
}

impl LoopEnd {
    /// The loop looks now: whatever the owner does from here on queues the key again.
    pub fn look(&self) -> Wishes {
        let flags = self.shared.flags.fetch_and(!(DIRTY | STALLED), Ordering::AcqRel);
        Wishes { close_write: flags & CLOSE_WRITE != 0, abort: flags & ABORT != 0, gone: flags & GONE != 0 }
    }

    /// Offers written bytes to `take`, which says how many it took, until it takes less than offered. Returns whether
    /// everything was taken.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8]) -> usize) -> bool {
        let mut moved = false;
        let empty = loop {
            let slots = self.from_owner.slots();
            let Ok(chunk) = self.from_owner.read_chunk(slots) else { break true };
            let (first, _) = chunk.as_slices();
            if first.is_empty() {
                break true;
            }
            let offered = first.len();
            let taken = take(first).min(offered);
            moved |= taken > 0;
            chunk.commit(taken);
            if taken < offered {
                break false;
            }
        };
        if moved && RING_BYTES - self.from_owner.slots() >= WAKE_ROOM {
            self.shared.writer.wake();
        }
        empty
    }

    /// Hands received bytes to the owner; returns how many found room. When not all did, the owner queues the key again
    /// once it has made some.
    pub fn fill(&mut self, mut bytes: &[u8]) -> usize {
        let offered = bytes.len();
        loop {
            let (written, rest) = self.to_owner.push_partial_slice(bytes);
            let moved = !written.is_empty();
            bytes = rest;
            if moved {
                self.shared.reader.wake();
            }
            if bytes.is_empty() {
                break;
            }
            self.shared.flags.fetch_or(STALLED, Ordering::AcqRel);
            // The flag first, then the look at the room: the owner does it the other way round.
            fence(Ordering::SeqCst);
            if self.to_owner.slots() < WAKE_ROOM {
                break;
            }
            self.shared.flags.fetch_and(!STALLED, Ordering::AcqRel);
        }
        offered - bytes.len()
    }

    /// The peer closed its side and all of it is in the ring.
    pub fn finish(&self) {
        if self.shared.flags.fetch_or(FINISHED, Ordering::AcqRel) & FINISHED == 0 {
            self.shared.reader.wake();
        }
    }

    /// The connection is broken. The first reason counts.
    pub fn fail(&self, why: Broken) {
        let _ = self.shared.why.set(why);
        self.shared.flags.fetch_or(BROKEN, Ordering::AcqRel);
        self.shared.reader.wake();
        self.shared.writer.wake();
    }
}

impl Drop for LoopEnd {
    fn drop(&mut self) {
        self.fail(Broken::Closed);
    }
}

impl fmt::Debug for LoopEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopEnd").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::mpsc::{UnboundedReceiver, unbounded_channel},
    };

    fn pair() -> (OwnerEnd, LoopEnd, UnboundedReceiver<Key>) {
        let (send, recv) = unbounded_channel();
        let (owner, end) = pipe(7, send);
        (owner, end, recv)
    }

    #[tokio::test]
    async fn many_writes_ring_once_until_the_loop_looks() {
        let (mut owner, mut end, mut bell) = pair();
        owner.write_all(b"ab").await.unwrap();
        owner.write_all(b"cd").await.unwrap();
        assert_eq!(bell.try_recv(), Ok(7));
        assert!(bell.try_recv().is_err());
        assert_eq!(end.look(), Wishes { close_write: false, abort: false, gone: false });
        let mut got = Vec::new();
        assert!(end.drain(|d| {
            got.extend_from_slice(d);
            d.len()
        }));
        assert_eq!(got, b"abcd");
        owner.shutdown().await.unwrap();
        assert_eq!(bell.try_recv(), Ok(7));
        assert!(end.look().close_write);
        assert_eq!(owner.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(owner);
        assert_eq!(bell.try_recv(), Ok(7));
        assert!(end.look().gone);
    }

    #[tokio::test]
    async fn the_last_bytes_are_read_before_the_end_and_before_a_break() {
        let (mut owner, mut end, _bell) = pair();
        assert_eq!(end.fill(b"tail"), 4);
        end.finish();
        let mut all = Vec::new();
        owner.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"tail");

        let (mut owner, mut end, _bell) = pair();
        end.fill(b"tail");
        end.fail(Broken::PeerRestarted);
        end.fail(Broken::Closed);
        let error = owner.read_to_end(&mut all).await.unwrap_err();
        assert_eq!(all, b"tailtail");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(error.to_string(), "the peer was restarted");
        assert_eq!(owner.write(b"x").await.unwrap_err().to_string(), "the peer was restarted");
    }

    #[tokio::test]
    async fn bytes_are_taken_where_they_lie_and_the_end_comes_behind_them() {
        let (mut owner, mut end, mut bell) = pair();
        let readable = async |owner: &mut OwnerEnd| poll_fn(|cx| owner.poll_readable(cx)).await;
        assert_eq!(end.fill(&vec![1; RING_BYTES + 1]), RING_BYTES);
        assert!(readable(&mut owner).await.unwrap());
        assert_eq!(owner.read_with(|_| Err(io::ErrorKind::WouldBlock.into())).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(owner.read_with(|bytes| Ok(bytes.len().min(WAKE_ROOM - 1))).unwrap(), WAKE_ROOM - 1);
        assert!(bell.try_recv().is_err(), "too little room to be worth a call");
        assert_eq!(owner.read_with(|_| Ok(1)).unwrap(), 1);
        assert_eq!(bell.try_recv(), Ok(7));
        end.look();
        end.finish();
        while readable(&mut owner).await.unwrap() {
            owner.read_with(|bytes| Ok(bytes.len())).unwrap();
        }
        let room = poll_fn(|cx| owner.poll_room(cx)).await.unwrap();
        owner.write_all(&vec![2; room]).await.unwrap();
        let full = poll_fn(|cx| Poll::Ready(owner.poll_room(cx).is_pending())).await;
        assert!(room == RING_BYTES && full);
        end.drain(|bytes| bytes.len());
        assert_eq!(poll_fn(|cx| owner.poll_room(cx)).await.unwrap(), RING_BYTES);
        end.fail(Broken::Reset);
        assert_eq!(poll_fn(|cx| owner.poll_room(cx)).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_waiting_reader_and_writer_learn_that_the_loop_is_gone() {
        let (owner, end, _bell) = pair();
        let (mut read, mut write) = tokio::io::split(owner);
        let reader = tokio::spawn(async move { read.read_u8().await.unwrap_err().to_string() });
        let writer = tokio::spawn(async move { write.write_all(&vec![0; RING_BYTES + 1]).await.unwrap_err().to_string() });
        tokio::task::yield_now().await;
        drop(end);
        assert_eq!(reader.await.unwrap(), "the tailnet is closed");
        assert_eq!(writer.await.unwrap(), "the tailnet is closed");
    }

    #[tokio::test]
    async fn a_reader_that_makes_room_calls_the_loop_back() {
        let (mut owner, mut end, mut bell) = pair();
        let bytes = vec![1; RING_BYTES + 100];
        assert_eq!(end.fill(&bytes), RING_BYTES);
        let mut some = vec![0; WAKE_ROOM - 1];
        owner.read_exact(&mut some).await.unwrap();
        assert!(bell.try_recv().is_err(), "too little room to be worth a call");
        owner.read_u8().await.unwrap();
        assert_eq!(bell.try_recv(), Ok(7));
        end.look();
        assert_eq!(end.fill(&bytes[RING_BYTES..]), 100);
    }

    /// Bytes through both rings between two threads, the loop side woken by the doorbell alone: a lost wake-up hangs.
    #[test]
    fn nothing_is_lost_or_forgotten_between_two_threads() {
        const TOTAL: usize = 8 << 20;
        let (owner, mut end, mut bell) = pair();
        let echo = std::thread::spawn(move || {
            // What the flow would hold: at most this many bytes between the two rings.
            let mut held: Vec<u8> = Vec::new();
            let mut closed = false;
            while bell.blocking_recv().is_some() {
                let wishes = end.look();
                loop {
                    let n = end.fill(&held);
                    held.drain(..n);
                    let before = held.len();
                    let empty = end.drain(|d| {
                        let n = d.len().min(100_000 - held.len().min(100_000));
                        held.extend_from_slice(&d[..n]);
                        n
                    });
                    if empty && wishes.close_write && held.is_empty() && !closed {
                        closed = true;
                        end.finish();
                    }
                    if n == 0 && held.len() == before {
                        break;
                    }
                }
                if wishes.gone {
                    break;
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let limit = std::time::Duration::from_secs(60);
        runtime.block_on(async move {
            let (mut read, mut write) = tokio::io::split(owner);
            let writer = tokio::spawn(async move {
                let mut sent = 0u32;
                while (sent as usize) < TOTAL {
                    let chunk: Vec<u8> = (0..4096).map(|i| ((sent + i) >> 8) as u8 ^ (sent + i) as u8).collect();
                    write.write_all(&chunk).await.unwrap();
                    sent += 4096;
                }
                write.shutdown().await.unwrap();
            });
            let mut got = Vec::with_capacity(TOTAL);
            tokio::time::timeout(limit, read.read_to_end(&mut got)).await.expect("a wake-up was lost").unwrap();
            assert_eq!(got.len(), TOTAL);
            assert!(got.iter().enumerate().all(|(i, b)| *b == (i >> 8) as u8 ^ i as u8));
            writer.await.unwrap();
        });
        echo.join().unwrap();
    }
}
