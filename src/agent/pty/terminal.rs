//! One terminal: its process, its last output, and those who watch it.

use super::ring::{KEPT, Ring};
use crate::{
    agent::ssh::process::{Io, Process},
    driver::process::Group,
    wire::pty::Size,
};
use bytes::{Bytes, BytesMut};
use rustix::{
    process::Signal,
    termios::{Winsize, tcsetwinsize},
};
use std::{
    fmt, io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Child,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How long a terminal is kept that nobody watches.
const KEEP: Duration = Duration::from_secs(300);
/// How long a connection may hold up the process, and others who watch it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pieces of output that may wait for a connection, each of at most 4 KiB: what the kernel gives at once.
const QUEUE: usize = 64;
/// Pieces of input that may wait for the process.
const INPUT: usize = 16;
/// How long output is still looked for when the process has ended: the kernel may hold the last of it back for a moment.
const QUIET: Duration = Duration::from_millis(50);
/// What a process gets to end by itself when it is hung up.
const GRACE: Duration = Duration::from_secs(2);

/// A terminal. Clones are one.
#[derive(Clone)]
pub(super) struct Terminal(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    input: mpsc::Sender<Vec<u8>>,
    /// How many watch it.
    watchers: watch::Sender<usize>,
}

struct State {
    ring: Ring,
    next: u64,
    watching: Vec<Watcher>,
    /// Where the size is set; gone when the terminal has ended.
    control: Option<OwnedFd>,
}

#[derive(Debug, Clone)]
struct Watcher {
    number: u64,
    queue: mpsc::Sender<Bytes>,
    /// Cancelled when it is dropped for being slow.
    cut: CancellationToken,
    /// Since when its queue was not half empty.
    behind: Option<Instant>,
}

/// A terminal's process, to be served by one task.
pub(super) struct Running {
    terminal: Terminal,
    process: tokio::sync::Mutex<Parts>,
    group: Group,
}

struct Parts {
    child: Child,
    reader: pty_process::OwnedReadPty,
    writer: pty_process::OwnedWritePty,
    input: mpsc::Receiver<Vec<u8>>,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").field("watchers", &*self.0.watchers.borrow()).finish_non_exhaustive()
    }
}

impl Terminal {
    pub(super) fn new(process: Process) -> io::Result<(Self, Running)> {
        let Process { child, group, io } = process;
        let Io::Terminal { pty } = io else { return Err(io::Error::other("the process has no terminal")) };
        let (sender, input) = mpsc::channel(INPUT);
        let state = State { ring: Ring::default(), next: 0, watching: Vec::new(), control: Some(pty.control) };
        let inner = Inner { state: Mutex::new(state), input: sender, watchers: watch::Sender::new(0) };
        let terminal = Self(Arc::new(inner));
        let parts = Parts { child, reader: pty.reader, writer: pty.writer, input };
        Ok((terminal.clone(), Running { terminal, process: tokio::sync::Mutex::new(parts), group }))
    }

    /// Whether both are one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches it: what is kept comes first, then every byte. `None` when it has ended.
    pub(super) fn attach(&self) -> Option<Connection> {
        let (queue, output) = mpsc::channel(QUEUE);
        let mut state = self.state();
        state.control.as_ref()?;
        let replay = state.ring.replay();
        if !replay.is_empty() {
            // The queue is new and has room.
            let _ = queue.try_send(replay);
        }
        let number = state.next;
        state.next += 1;
        let cut = CancellationToken::new();
        state.watching.push(Watcher { number, queue, cut: cut.clone(), behind: None });
        self.0.watchers.send_replace(state.watching.len());
        drop(state);
        Some(Connection { terminal: self.clone(), number, output, cut })
    }

    /// How many watch it.
    #[cfg(test)]
    pub(super) fn watchers(&self) -> usize {
        *self.0.watchers.borrow()
    }

    /// Sets its size, where that is one.
    pub(super) fn resize(&self, size: Size) {
        if !size.is_real() {
            return;
        }
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        if let Some(control) = &self.state().control
            && let Err(error) = tcsetwinsize(control, size)
        {
            tracing::debug!(%error, "the terminal does not take its size");
        }
    }

    /// Types, and waits while the process does not read.
    pub(super) async fn input(&self, bytes: Vec<u8>) {
        // A terminal that has ended is typed at in vain.
        let _ = self.0.input.send(bytes).await;
    }

    /// Says something to all who watch it, but for those who are too far behind: nobody is waited for.
    pub(super) fn tell(&self, words: &str) {
        let words = Bytes::copy_from_slice(words.as_bytes());
        for watcher in &self.state().watching {
            // One that has left needs no words.
            let _ = watcher.queue.try_send(words.clone());
        }
    }

    fn detach(&self, number: u64) {
        let mut state = self.state();
        state.watching.retain(|w| w.number != number);
        self.0.watchers.send_replace(state.watching.len());
    }

    /// Keeps what the process wrote and hands it to all who watch, waiting for the slow ones in turn.
    async fn deliver(&self, bytes: Bytes) {
        let watching = {
            let mut state = self.state();
            state.ring.push(&bytes);
            for watcher in &mut state.watching {
                if watcher.queue.capacity() >= QUEUE / 2 {
                    watcher.behind = None;
                }
            }
            state.watching.clone()
        };
        let others = watching.len() > 1;
        let mut full = Vec::new();
        for watcher in watching {
            match watcher.queue.try_send(bytes.clone()) {
                // It will detach by itself.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                Err(mpsc::error::TrySendError::Full(_)) => full.push(watcher),
            }
        }
        for watcher in full {
            let now = Instant::now();
            let since = self.note_behind(watcher.number, now);
            let until = if others { since } else { now } + PATIENCE;
            if timeout_at(until, watcher.queue.send(bytes.clone())).await.is_err() {
                tracing::info!("a terminal's client reads too slowly and is dropped");
                watcher.cut.cancel();
                self.detach(watcher.number);
            }
        }
    }

    /// Since when a watcher is behind: since `now`, where it was not yet.
    fn note_behind(&self, number: u64, now: Instant) -> Instant {
        let mut state = self.state();
        let watcher = state.watching.iter_mut().find(|w| w.number == number);
        watcher.map_or(now, |w| *w.behind.get_or_insert(now))
    }
}

impl Running {
    /// Serves the process to its end and says why it ended: a stop of the agent, or nobody's watching it, end it too.
    pub(super) async fn serve(&self, stop: &CancellationToken) -> &'static str {
        let mut parts = self.process.lock().await;
        let Parts { child, reader, writer, input } = &mut *parts;
        let feed = async {
            while let Some(bytes) = input.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // A terminal that takes no input may still show something.
            std::future::pending().await
        };
        tokio::select! {
            () = self.carry(reader, child) => "its process ended",
            never = feed => never,
            () = self.unwatched() => "nobody came back to it",
            () = stop.cancelled() => "the agent stops",
        }
    }

    /// Carries the output until the process has ended and all it wrote was read.
    async fn carry(&self, reader: &mut pty_process::OwnedReadPty, child: &mut Child) {
        let mut buffer = BytesMut::new();
        let mut ended = false;
        // Processes in the background may write for ever.
        let mut left = KEPT;
        while left > 0 {
            if buffer.capacity() < 4 << 10 {
                buffer.reserve(64 << 10);
            }
            let read = tokio::select! {
                biased;
                read = reader.read_buf(&mut buffer) => read,
                _ = child.wait(), if !ended => {
                    ended = true;
                    continue;
                }
                () = sleep(QUIET), if ended => return,
            };
            match read {
                Ok(n) if n > 0 => {
                    if ended {
                        left = left.saturating_sub(n);
                    }
                    self.terminal.deliver(buffer.split().freeze()).await;
                }
                // A terminal without a process answers EIO.
                _ => return,
            }
        }
    }

    /// Waits until nobody has watched for [`KEEP`].
    async fn unwatched(&self) {
        let mut watchers = self.terminal.0.watchers.subscribe();
        loop {
            // The sender is ours: it cannot be gone.
            let _ = watchers.wait_for(|n| *n == 0).await;
            if timeout(KEEP, watchers.wait_for(|n| *n > 0)).await.is_err() {
                return;
            }
        }
    }

    /// Lets go of all who watch, hangs the terminal up, and waits until the process is gone.
    pub(super) async fn end(self) {
        {
            let mut state = self.terminal.state();
            state.watching.clear();
            state.control = None;
        }
        let Parts { mut child, reader, writer, input } = self.process.into_inner();
        drop((reader, writer, input));
        if matches!(child.try_wait(), Ok(None)) {
            self.group.end(&mut child, Signal::HUP, GRACE).await;
        }
    }
}

/// Somebody who watches a terminal, until this is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    terminal: Terminal,
    number: u64,
    output: mpsc::Receiver<Bytes>,
    cut: CancellationToken,
}

impl Connection {
    /// Cancelled when we were too slow for it.
    pub(super) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    pub(super) const fn terminal(&self) -> &Terminal {
        &self.terminal
    }

    /// The next bytes; `None` when the terminal has ended, or we were too slow for it.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.output.recv().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.terminal.detach(self.number);
    }
}
