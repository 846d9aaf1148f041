//! Who is to be told of which change. Each workspace and each build has watchers of its own: a build with much to say
//! wakes nobody who watches something else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What is watched now.
#[derive(Debug, Default)]
pub(crate) struct Changed(Mutex<HashMap<Uuid, watch::Sender<()>>>);

impl Changed {
    fn table(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who watch it.
    pub(crate) fn announce(&self, what: Uuid) {
        // Nobody watches: nobody to tell.
        if let Some(watchers) = self.table().get(&what) {
            watchers.send_replace(());
        }
    }
}

/// The changes of one workspace or build. Those that come while nobody waits count as one.
#[derive(Debug)]
pub(crate) struct Changes {
    of: Uuid,
    news: watch::Receiver<()>,
    from: Arc<Changed>,
    stop: CancellationToken,
}

impl Changes {
    /// From now on, until `stop`.
    pub(crate) fn of(from: &Arc<Changed>, of: Uuid, stop: CancellationToken) -> Self {
        let news = from.table().entry(of).or_default().subscribe();
        Self { of, news, from: Arc::clone(from), stop }
    }

    /// Waits for the next change; false when the server shuts down.
    ///
    /// # Cancel safety
    /// No change is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            // The table keeps the sender as long as we watch.
            changed = self.news.changed() => changed.is_ok(),
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let mut table = self.from.table();
        // Ours is still counted.
        if table.get(&self.of).is_some_and(|watchers| watchers.receiver_count() <= 1) {
            table.remove(&self.of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn a_change_wakes_those_who_watch_that_and_what_nobody_watches_is_forgotten() {
        let (changed, stop) = (Arc::new(Changed::default()), CancellationToken::new());
        let watch = |of| Changes::of(&changed, of, stop.clone());
        let (mut one, mut same, mut other) = (watch(Uuid::nil()), watch(Uuid::nil()), watch(Uuid::max()));
        changed.announce(Uuid::nil());
        changed.announce(Uuid::nil());
        assert_eq!(
            [one.next().now_or_never(), same.next().now_or_never(), other.next().now_or_never()],
            [Some(true), Some(true), None]
        );
        assert_eq!(one.next().now_or_never(), None, "both were one");
        drop(one);
        changed.announce(Uuid::nil());
        assert_eq!(same.next().now_or_never(), Some(true), "who still watches is told");
        drop((same, other));
        assert!(changed.table().is_empty());
        stop.cancel();
        assert_eq!(watch(Uuid::nil()).next().now_or_never(), Some(false));
    }
}
