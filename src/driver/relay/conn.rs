//! One connection to a relay: a task that runs the relay client's engine between a byte stream and the data loop.
//!
//! It always reads while it writes, so that a relay that waits for us is never waited for. Frames of the loop are
//! written as they are; the engine's own (login, pongs) go in front of them. No periodic wake-up: one timer for the
//! engine's deadline, armed again only when it fires.

use super::lane::{BUFFER_BYTES, Incoming, TaskSide};
use crate::{
    base::{Instant, NodeSecret, Rng},
    driver::{clock, http::Io},
    proto::relay::client::{Fatal, PING_LIMIT, Received, RelayClient},
    wire::derp::{Frame, parse},
};
use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};
use tokio::{io::ReadBuf, time::Sleep};

/// Read calls of one turn, so that a busy relay does not keep the other tasks of the thread waiting.
const READS: usize = 4;
/// Space for a read call: what a relay writes at once.
const READ_BYTES: usize = BUFFER_BYTES;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the relay closed the connection")]
    Closed,
    #[error("the connection to the relay broke: {0}")]
    Broken(#[from] io::Error),
    #[error(transparent)]
    Engine(#[from] Fatal),
}

struct Conn {
    io: Box<dyn Io>,
    engine: RelayClient,
    lane: TaskSide,
    up: bool,
    buffer: Box<[u8]>,
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
}

/// Runs a connection until it ends. `first` are the bytes read already.
pub(super) async fn run(io: Box<dyn Io>, first: &[u8], secret: NodeSecret, rng: Rng, lane: TaskSide) -> (Ended, TaskSide) {
    let engine = RelayClient::new(clock::now(), secret, rng);
    // Zeroed pages cost nothing until bytes arrive.
    let buffer = vec![0; READ_BYTES].into_boxed_slice();
    let mut conn = Conn { io, engine, lane, up: false, buffer, out: Vec::new(), written: 0, unflushed: false };
    let ended = match conn.take(clock::now(), first) {
        Ok(()) => {
            let mut timer = pin!(tokio::time::sleep_until(tokio::time::Instant::now()));
            poll_fn(|cx| conn.poll(cx, timer.as_mut())).await
        }
        Err(ended) => ended,
    };
    (ended, conn.lane)
}

impl Conn {
    fn poll(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Poll<Ended> {
        match self.poll_inner(cx, timer) {
            Ok(()) => Poll::Pending,
            Err(ended) => Poll::Ready(ended),
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Result<(), Ended> {
        self.lane.register(cx.waker());
        self.engine.set_preferred(self.lane.preferred());
        let reading = self.poll_read(cx)?;
        // What came before the network changed is no answer: all of it is read first.
        if !reading && self.up && self.lane.take_ping() {
            let now = clock::now();
            self.engine.ping(now, PING_LIMIT);
            if let Some(deadline) = self.engine.poll_timeout() {
                timer.as_mut().reset(clock::timer(now, deadline.at));
            }
        }
        let writing = self.poll_write(cx)?;
        self.poll_timer(cx, timer)?;
        if reading || writing {
            // More is there than one turn takes: come back after the others.
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    /// Reads what is there; `true` when there may be more.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        for _ in 0..READS {
            // Without room the loop's next look at its inbox wakes this task.
            if !self.lane.has_room() {
                return Ok(false);
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *self.io).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(Ended::Closed),
                Poll::Ready(Ok(())) => {
                    let n = buffer.filled().len();
                    let bytes = std::mem::take(&mut self.buffer);
                    let done = self.take(clock::now(), bytes.get(..n).unwrap_or_default());
                    self.buffer = bytes;
                    done?;
                }
            }
        }
        Ok(true)
    }

    fn take(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Ended> {
        let Self { engine, lane, .. } = self;
        engine.handle_bytes(now, bytes, &mut |received| match received {
            Received::Packet { from, packet } => lane.push(&Incoming::Packet(from, packet)),
            Received::PeerGone { peer, .. } => lane.push(&Incoming::Gone(peer)),
            Received::Health("") => tracing::info!("the relay is well again"),
            Received::Health(problem) => tracing::warn!(problem, "the relay has a problem"),
            Received::Restarting { .. } => tracing::debug!("the relay announces its restart"),
        })?;
        lane.deliver();
        if engine.is_ready() && !self.up {
            self.up = true;
            lane.up();
        }
        Ok(())
    }

    /// Writes what waits; `true` when the turn ended before the work did.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        for _ in 0..READS {
            if self.written >= self.out.len() && !self.next_out() {
                if self.unflushed && Pin::new(&mut *self.io).poll_flush(cx)?.is_ready() {
                    self.unflushed = false;
                }
                return Ok(false);
            }
            match self.poll_write_out(cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => return Ok(false),
            }
        }
        Ok(true)
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            let n = ready!(Pin::new(&mut *self.io).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Fetches what is to be written next. Whole frames only: the engine's own never fall into another frame.
    fn next_out(&mut self) -> bool {
        self.written = 0;
        if self.engine.has_output() {
            self.out.clear();
            self.engine.poll_output(&mut self.out);
            return true;
        }
        let Some(batch) = self.lane.next_out() else {
            self.out.clear();
            return false;
        };
        let spent = std::mem::replace(&mut self.out, batch);
        self.lane.recycle(spent);
        if self.engine.is_limited() {
            self.limit();
        }
        true
    }

    /// The relay has set a limit: packets beyond it are dropped, as its own clients do.
    fn limit(&mut self) {
        let all = std::mem::take(&mut self.out);
        let mut rest = all.as_slice();
        while let Ok(Some((frame, used))) = parse(rest) {
            if let Frame::SendPacket { to, packet } = frame {
                self.engine.write_packet(clock::now(), &to, packet, &mut self.out);
            }
            rest = rest.get(used..).unwrap_or_default();
        }
        self.lane.recycle(all);
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Result<(), Ended> {
        while timer.as_mut().poll(cx).is_ready() {
            let now = clock::now();
            self.engine.handle_timeout(now)?;
            let Some(deadline) = self.engine.poll_timeout() else { break };
            timer.as_mut().reset(clock::timer(now, deadline.at));
        }
        Ok(())
    }
}
