//! The open channels of one connection, as its callbacks and the tasks behind its channels see them.

use super::input::Input;
use russh::ChannelId;
use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Most channels open at the same time on one connection.
pub(super) const MAX_CHANNELS: usize = 4096;

/// How long what a client sent may take to reach its reader once the client has closed the channel.
const LINGER: Duration = Duration::from_secs(10);

/// The channels. Shared by the connection and by the tasks that wait for the client to take a channel of theirs.
#[derive(Debug, Default)]
pub(super) struct Channels {
    state: Mutex<State>,
    confirmed: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<ChannelId, Entry>,
    /// Channels that this side opened and the client took, until their task fetches them.
    fresh: HashMap<ChannelId, Lane>,
    ended: bool,
}

/// What a channel's task needs of it.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    pub(super) input: Arc<Input>,
    /// Set when the client closed the channel or is gone; the task sets it when it is done.
    pub(super) gone: CancellationToken,
}

impl Lane {
    /// Returns when there is no use in going on: the client closed the channel, and what it had sent found no reader for
    /// a while. A client sends its last bytes, their end and the close at once, so that the close finds bytes waiting.
    pub(super) async fn given_up(&self) {
        self.gone.cancelled().await;
        self.input.finish();
        sleep(LINGER).await;
    }
}

#[derive(Debug)]
struct Entry {
    lane: Lane,
    _ends: DropGuard,
}

impl Entry {
    fn new() -> Self {
        let gone = CancellationToken::new();
        Self { lane: Lane { input: Arc::default(), gone: gone.clone() }, _ends: gone.drop_guard() }
    }
}

impl Channels {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a channel that the client opens, unless there are too many.
    pub(super) fn keep(&self, id: ChannelId) -> Option<Lane> {
        let mut state = self.state();
        // A channel that this side closed first is not reported back by russh.
        state.open.retain(|_, entry| !entry.lane.gone.is_cancelled());
        if state.ended || state.open.len() >= MAX_CHANNELS {
            return None;
        }
        Some(state.open.entry(id).insert_entry(Entry::new()).get().lane.clone())
    }

    /// The client took a channel that this side opened; its bytes may come from now on.
    pub(super) fn confirm(&self, id: ChannelId) {
        let mut state = self.state();
        // A client may also confirm what it opened itself, which means nothing.
        if state.ended || state.open.get(&id).is_some_and(|entry| !entry.lane.gone.is_cancelled()) {
            return;
        }
        let entry = Entry::new();
        state.fresh.insert(id, entry.lane.clone());
        state.open.insert(id, entry);
        drop(state);
        self.confirmed.notify_waiters();
    }

    /// Fetches a channel that the client took; `None` when the connection has ended.
    pub(super) async fn taken(&self, id: ChannelId) -> Option<Lane> {
        loop {
            let mut confirmed = pin!(self.confirmed.notified());
            confirmed.as_mut().enable();
            {
                let mut state = self.state();
                if state.ended {
                    return None;
                }
                if let Some(lane) = state.fresh.remove(&id) {
                    return Some(lane);
                }
            }
            confirmed.await;
        }
    }

    pub(super) fn get(&self, id: ChannelId) -> Option<Lane> {
        self.state().open.get(&id).map(|entry| entry.lane.clone())
    }

    pub(super) fn input(&self, id: ChannelId) -> Option<Arc<Input>> {
        self.state().open.get(&id).map(|entry| Arc::clone(&entry.lane.input))
    }

    /// The client closed it.
    pub(super) fn remove(&self, id: ChannelId) {
        self.state().open.remove(&id);
    }

    /// The connection has ended, and all its channels with it.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.open.clear();
        state.fresh.clear();
        drop(state);
        self.confirmed.notify_waiters();
    }
}
