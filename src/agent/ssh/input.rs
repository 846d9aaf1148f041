//! The queue between a channel's incoming data and whatever reads it.
//!
//! russh gives window back to the client on receipt, before anybody has read the bytes, and hands them to a callback
//! inside the one task of the connection. So the callback must take them at once, and the window is governed here: while
//! more than [`LOW`] bytes wait, the next window granted is [`TRICKLE`] bytes, which stops the client within the window
//! it still has; each of those few bytes asks again. The target that russh grants is one for all channels of a
//! connection, so a busy neighbour can leak a window to a stopped channel; for that case only, above [`HIGH`] the callback
//! waits a moment for each message ([`WAIT`], counted): never for long, because the reader may itself be waiting for this
//! task to carry its output away.

use bytes::{Bytes, BytesMut};
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::timeout};

/// The window a channel starts with and gets back while its reader keeps up: 200 Mbit/s at 160 ms.
pub(super) const WINDOW: u32 = 4 << 20;
/// Waiting bytes from which on the client is slowed down.
pub(super) const LOW: usize = 4 << 20;
/// Waiting bytes from which on the connection's task waits.
pub(super) const HIGH: usize = 16 << 20;
/// The window while more than [`LOW`] bytes wait. russh grants it when less than its half is left, so 2 is the least
/// that is ever granted.
const TRICKLE: u32 = 2;
/// How long one message waits above [`HIGH`].
const WAIT: Duration = Duration::from_secs(1);
/// A message is appended to the newest chunk as long as that stays below this size.
const CHUNK: usize = 32 << 10;

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<BytesMut>,
    len: usize,
    finished: bool,
    discarding: bool,
}

/// Bytes of one channel on their way to a process or a socket.
#[derive(Debug, Default)]
pub(crate) struct Input {
    state: Mutex<State>,
    readable: Notify,
    room: Notify,
}

impl Input {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the client sent; returns how much waits now.
    pub(crate) fn push(&self, data: &[u8]) -> usize {
        let mut state = self.state();
        if state.discarding || state.finished || data.is_empty() {
            return state.len;
        }
        state.len += data.len();
        match state.chunks.back_mut() {
            Some(last) if last.len() + data.len() <= CHUNK => last.extend_from_slice(data),
            _ => state.chunks.push_back(data.into()),
        }
        let len = state.len;
        drop(state);
        self.readable.notify_one();
        len
    }

    /// The client sends no more.
    pub(crate) fn finish(&self) {
        self.state().finished = true;
        self.readable.notify_one();
    }

    /// Nobody reads any more: what waits and what follows is thrown away, so that the client is not stopped by it.
    pub(crate) fn discard(&self) {
        let mut state = self.state();
        state.discarding = true;
        state.len = 0;
        state.chunks = VecDeque::new();
        drop(state);
        self.room.notify_one();
    }

    /// The next bytes, or `None` once the client is finished and all was taken.
    ///
    /// # Cancel safety
    /// A cancelled call takes nothing.
    pub(crate) async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.state();
                if let Some(chunk) = state.chunks.pop_front() {
                    state.len -= chunk.len();
                    drop(state);
                    self.room.notify_one();
                    return Some(chunk.freeze());
                }
                if state.finished {
                    return None;
                }
            }
            self.readable.notified().await;
        }
    }

    /// The window that russh grants next.
    pub(super) fn window(&self) -> u32 {
        if self.state().len < LOW { WINDOW } else { TRICKLE }
    }

    /// Waits a moment for the queue to fall to [`HIGH`]; false if it did not.
    pub(crate) async fn wait_for_room(&self) -> bool {
        let falls = async {
            while self.state().len > HIGH {
                self.room.notified().await;
            }
        };
        timeout(WAIT, falls).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn drain(input: &Input) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(chunk) = input.next().await {
            out.extend_from_slice(&chunk);
        }
        out
    }

    #[tokio::test]
    async fn bytes_come_out_in_order_and_end_with_the_client() {
        let input = Input::default();
        let sent: Vec<u8> = (0..200_000u32).map(|i| i.to_le_bytes()[0]).collect();
        for part in sent.chunks(777) {
            input.push(part);
        }
        input.finish();
        assert_eq!(input.push(b"late"), sent.len());
        assert!(drain(&input).await == sent);
    }

    #[tokio::test]
    async fn the_window_shrinks_while_nobody_reads_and_comes_back() {
        let input = Input::default();
        assert_eq!(input.window(), WINDOW);
        input.push(&vec![0; LOW]);
        assert_eq!(input.window(), TRICKLE);
        input.next().await.unwrap();
        assert_eq!(input.window(), WINDOW);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_stops_nobody() {
        let input = Input::default();
        input.push(&vec![0; HIGH + 1]);
        input.discard();
        assert!(input.wait_for_room().await);
        assert_eq!((input.push(b"more"), input.window()), (0, WINDOW));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_room_ends_with_room_and_else_after_a_moment() {
        let input = Input::default();
        for _ in 0..=(HIGH / CHUNK) {
            input.push(&[0; CHUNK]);
        }
        assert!(!input.wait_for_room().await, "nothing was read");
        let (waited, read) = tokio::join!(input.wait_for_room(), input.next());
        assert!(waited && read.is_some());
    }
}
