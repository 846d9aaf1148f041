//! The relay server's side of connections: one task each around one shared registry (`derp.md` §6).
//!
//! A task reads and writes at once. A login is opened and answered before the lock is taken; what follows goes under the
//! lock straight into the receivers' queues, then their tasks are woken. What waits for its own client a task takes out
//! in portions. A client that takes nothing for [`WRITE_TIMEOUT`] is given up.

use crate::{
    base::{NodeKey, Rng},
    driver::clock,
    proto::relay::server::{ConnId, Counters, DRAIN_TIMEOUT, Registry, RelayConn, WRITE_TIMEOUT},
    wire::derp::RelaySecret,
};
use futures::task::AtomicWaker;
use std::{
    collections::BTreeMap,
    fmt,
    future::{Future as _, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;
/// Bytes fetched from the queues for one write.
const WRITE_BYTES: usize = 128 << 10;
/// Reads and writes of one turn.
const STEPS: usize = 4;

/// A relay: clones serve the same clients.
#[derive(Clone)]
pub struct RelayServer {
    shared: Arc<Mutex<Shared>>,
    key: NodeKey,
}

struct Shared {
    registry: Registry,
    /// Whom to wake when a connection has something to write.
    wakers: BTreeMap<ConnId, Arc<AtomicWaker>>,
}

impl Shared {
    fn wake_ready(&mut self) {
        while let Some(id) = self.registry.poll_ready() {
            if let Some(waker) = self.wakers.get(&id) {
                waker.wake();
            }
        }
    }
}

impl RelayServer {
    /// An empty relay with this identity.
    #[must_use]
    pub fn new(secret: RelaySecret, rng: Rng) -> Self {
        let registry = Registry::new(secret, rng);
        let key = registry.public_key();
        Self { shared: Arc::new(Mutex::new(Shared { registry, wakers: BTreeMap::new() })), key }
    }

    /// The relay's public key, for the header of the HTTP answer.
    #[must_use]
    pub const fn public_key(&self) -> NodeKey {
        self.key
    }

    /// What the relay has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().registry.counters()
    }

    /// How many keys are connected.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.lock().registry.clients()
    }

    /// Serves one connection after the upgrade, until it ends.
    ///
    /// # Errors
    /// When the client broke the protocol, took nothing for too long, or the transport failed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the connection; those who heard from the client are told.
    pub async fn serve(&self, io: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let waker = Arc::new(AtomicWaker::new());
        let conn = {
            let mut shared = self.lock();
            let conn = shared.registry.open(clock::now());
            shared.wakers.insert(conn.id(), Arc::clone(&waker));
            conn
        };
        let (timer, stall) = (pin!(tokio::time::sleep_until(Instant::now())), pin!(tokio::time::sleep_until(Instant::now())));
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        let (out, written) = (Vec::new(), 0);
        let mut task = Task {
            server: self,
            conn: Some(conn),
            io,
            waker,
            buffer,
            out,
            written,
            drain_by: Instant::now() + DRAIN_TIMEOUT,
            more: true,
            unflushed: false,
            stalled: false,
        };
        let (mut timer, mut stall) = (timer, stall);
        poll_fn(|cx| task.poll(cx, timer.as_mut(), stall.as_mut())).await
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RelayServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayServer").field("key", &self.key).finish_non_exhaustive()
    }
}

struct Task<'a, T> {
    server: &'a RelayServer,
    /// Taken out when the task ends.
    conn: Option<RelayConn>,
    io: T,
    waker: Arc<AtomicWaker>,
    buffer: Box<[u8]>,
    out: Vec<u8>,
    written: usize,
    /// When `out` must be written.
    drain_by: Instant,
    /// The registry has or may have more for us.
    more: bool,
    unflushed: bool,
    /// A write waits for the client.
    stalled: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Task<'_, T> {
    fn poll(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>, stall: Pin<&mut Sleep>) -> Poll<io::Result<()>> {
        self.waker.register(cx.waker());
        // Woken for whatever reason: one look at the queues is cheap.
        self.more = true;
        let Poll::Ready(reading) = self.poll_read(cx)? else { return Poll::Ready(Ok(())) };
        let writing = self.poll_write(cx, stall)?;
        self.poll_timer(cx, timer)?;
        if reading || writing {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// `Ready(true)`: there may be more to read. `Pending` stands for the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<bool>> {
        for _ in 0..STEPS {
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(Poll::Ready(false)),
                Poll::Ready(done) => done?,
            }
            if buffer.filled().is_empty() {
                return Ok(Poll::Pending);
            }
            let Some(conn) = &mut self.conn else { return Ok(Poll::Pending) };
            let (now, mut input) = (clock::now(), buffer.filled());
            // Before the lock: no login of one client holds the packets of all others up.
            conn.handle_login(now, &mut input).map_err(io::Error::other)?;
            let mut shared = self.server.lock();
            conn.handle_bytes(now, input, &mut shared.registry).map_err(io::Error::other)?;
            shared.wake_ready();
        }
        Ok(Poll::Ready(true))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, mut stall: Pin<&mut Sleep>) -> io::Result<bool> {
        for _ in 0..STEPS {
            if self.written >= self.out.len() {
                self.out.clear();
                self.written = 0;
                if self.more
                    && let Some(conn) = &self.conn
                {
                    self.more = self.server.lock().registry.poll_output(conn.id(), &mut self.out, WRITE_BYTES);
                    self.drain_by = Instant::now() + DRAIN_TIMEOUT;
                }
                if self.out.is_empty() {
                    if self.unflushed && Pin::new(&mut self.io).poll_flush(cx)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Ok(false);
                }
            }
            let rest = self.out.get(self.written..).unwrap_or_default();
            match Pin::new(&mut self.io).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => {
                    self.written += n;
                    self.unflushed = true;
                    self.stalled = false;
                }
                Poll::Pending => {
                    if !std::mem::replace(&mut self.stalled, true) {
                        stall.as_mut().reset((Instant::now() + WRITE_TIMEOUT).min(self.drain_by));
                    }
                    if stall.as_mut().poll(cx).is_ready() {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
                    }
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> io::Result<()> {
        while timer.as_mut().poll(cx).is_ready() {
            let Some(conn) = &mut self.conn else { break };
            let now = clock::now();
            let mut shared = self.server.lock();
            conn.handle_timeout(now, &mut shared.registry).map_err(io::Error::other)?;
            timer.as_mut().reset(clock::timer(now, conn.poll_timeout().at));
            // A keepalive may wait for us now.
            shared.wake_ready();
        }
        Ok(())
    }
}

impl<T> Drop for Task<'_, T> {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            let mut shared = self.server.lock();
            shared.wakers.remove(&conn.id());
            shared.registry.close(conn);
            shared.wake_ready();
        }
    }
}
