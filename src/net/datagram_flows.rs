//! Flows of datagrams: whoever forwards UDP keeps one for each source, and none for ever.
//!
//! UDP has no end of a connection, so a flow ends when nothing has gone through it for a while. There are so many at most;
//! the one that was used longest ago makes room for a new one.

use crate::{base::Instant, driver::clock};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::AbortHandle,
};

/// How long a flow may be quiet, and how long one to a name server, which rarely has a second question. Equal to those of
/// the Go agent (coordination.md §14).
const QUIET: Duration = Duration::from_secs(120);
const QUIET_DNS: Duration = Duration::from_secs(30);
const DNS: u16 = 53;
/// A table that is smaller is not looked through for flows that have ended.
const SMALL: usize = 16;
/// Flows of one table.
const MAX_FLOWS: usize = 1024;
/// Datagrams that may wait for one flow; beyond it they are dropped, as a network would.
const WAITING: usize = 128;

/// How long a flow to this port may be quiet.
pub(crate) const fn quiet_limit(port: u16) -> Duration {
    if port == DNS { QUIET_DNS } else { QUIET }
}

/// The flows of one forwarder by whatever tells them apart.
#[derive(Debug)]
pub(crate) struct Flows<K> {
    flows: HashMap<K, Flow>,
    /// At this size those that have ended are looked for.
    sweep_at: usize,
    max: usize,
    dropped: u64,
}

#[derive(Debug)]
struct Flow {
    datagrams: mpsc::Sender<Vec<u8>>,
    used: Used,
    task: AbortHandle,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// When something last went through a flow, in either direction.
#[derive(Debug, Clone)]
struct Used(Arc<AtomicU64>);

impl Used {
    fn now() -> Self {
        Self(Arc::new(AtomicU64::new(clock::now().as_nanos())))
    }

    fn touch(&self) {
        self.0.store(clock::now().as_nanos(), Relaxed);
    }

    fn last(&self) -> Instant {
        Instant::from_nanos(self.0.load(Relaxed))
    }
}

/// A flow's end of its table.
#[derive(Debug)]
pub(crate) struct Inbox {
    datagrams: mpsc::Receiver<Vec<u8>>,
    used: Used,
    quiet: Duration,
}

impl Inbox {
    /// The next datagram of the flow's source; `None` when the flow has been quiet for too long.
    ///
    /// # Cancel safety
    /// No datagram is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.used.last() + self.quiet;
            tokio::select! {
                datagram = self.datagrams.recv() => return datagram,
                () = clock::sleep_until(end) => {
                    // Something may have gone the other way meanwhile.
                    if self.used.last() + self.quiet <= clock::now() {
                        return None;
                    }
                }
            }
        }
    }

    /// Notes that something went the other way.
    pub(crate) fn touch(&self) {
        self.used.touch();
    }
}

impl<K: Eq + Hash + Clone> Flows<K> {
    pub(crate) fn new() -> Self {
        Self::with_room_for(MAX_FLOWS)
    }

    fn with_room_for(max: usize) -> Self {
        Self { flows: HashMap::new(), sweep_at: SMALL.min(max), max, dropped: 0 }
    }

    /// Gives a datagram to its flow. `open` starts one when there is none: what it returns runs as a task until it ends by
    /// itself, is pushed out or the table is dropped.
    pub(crate) fn pass<F>(&mut self, key: &K, quiet: Duration, datagram: Vec<u8>, open: impl FnOnce(Inbox) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let datagram = match self.flows.get(key) {
            Some(flow) => match flow.datagrams.try_send(datagram) {
                Ok(()) => return flow.used.touch(),
                Err(TrySendError::Full(_)) => {
                    self.dropped += 1;
                    return;
                }
                Err(TrySendError::Closed(datagram)) => datagram,
            },
            None => datagram,
        };
        self.make_room();
        let (sender, datagrams) = mpsc::channel(WAITING);
        let used = Used::now();
        // There is room for one.
        let _ = sender.try_send(datagram);
        let task = tokio::spawn(open(Inbox { datagrams, used: used.clone(), quiet })).abort_handle();
        self.flows.insert(key.clone(), Flow { datagrams: sender, used, task });
    }

    /// Forgets the flows that have ended whenever the table has doubled, and if it is full then, the one that was used
    /// longest ago.
    fn make_room(&mut self) {
        if self.flows.len() < self.sweep_at {
            return;
        }
        self.flows.retain(|_, flow| !flow.datagrams.is_closed());
        self.sweep_at = (2 * self.flows.len()).clamp(SMALL.min(self.max), self.max);
        if self.flows.len() < self.max {
            return;
        }
        let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.used.last()).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.flows.remove(&key);
        }
    }

    /// Datagrams that a flow did not take in time.
    pub(crate) const fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow that reports each datagram under its number.
    fn report(number: u32, to: &mpsc::UnboundedSender<(u32, Vec<u8>)>) -> impl FnOnce(Inbox) -> BoxFuture + use<> {
        let to = to.clone();
        move |mut inbox| {
            Box::pin(async move {
                while let Some(datagram) = inbox.next().await {
                    drop(to.send((number, datagram)));
                }
                drop(to.send((number, b"quiet".to_vec())));
            })
        }
    }

    type BoxFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

    #[tokio::test]
    async fn each_source_has_one_flow_that_ends_when_it_is_quiet() {
        let (sender, mut reports) = mpsc::unbounded_channel();
        let mut flows = Flows::new();
        let quiet = Duration::from_millis(50);
        flows.pass(&"a", quiet, b"1".to_vec(), report(1, &sender));
        flows.pass(&"a", quiet, b"2".to_vec(), report(2, &sender));
        assert_eq!(reports.recv().await, Some((1, b"1".to_vec())));
        assert_eq!(reports.recv().await, Some((1, b"2".to_vec())));
        assert_eq!(reports.recv().await, Some((1, b"quiet".to_vec())));
        flows.pass(&"a", quiet, b"3".to_vec(), report(3, &sender));
        assert_eq!(reports.recv().await, Some((3, b"3".to_vec())));
        drop(flows);
        drop(sender);
        assert_eq!(reports.recv().await, None, "the last flow ended with its table");
    }

    #[tokio::test]
    async fn the_flow_that_was_used_longest_ago_makes_room() {
        let (sender, mut reports) = mpsc::unbounded_channel();
        let mut flows = Flows::with_room_for(2);
        for (key, number) in [("a", 1), ("b", 2), ("a", 9), ("c", 3)] {
            flows.pass(&key, QUIET, b"x".to_vec(), report(number, &sender));
            assert!(reports.recv().await.is_some());
        }
        let mut keys: Vec<_> = flows.flows.keys().copied().collect();
        keys.sort_unstable();
        assert_eq!(keys, ["a", "c"]);
    }

    #[tokio::test]
    async fn flows_that_have_ended_are_forgotten_long_before_the_table_is_full() {
        let (ended, mut ends) = mpsc::unbounded_channel();
        let mut flows = Flows::new();
        for key in 0..MAX_FLOWS {
            let ended = ended.clone();
            flows.pass(&key, QUIET, Vec::new(), |inbox| async move {
                drop(inbox);
                let _ = ended.send(());
            });
            ends.recv().await;
            assert!(flows.flows.len() <= SMALL, "{} flows at {key}", flows.flows.len());
        }
    }

    #[tokio::test]
    async fn a_flow_that_does_not_keep_up_loses_what_is_too_much_for_it() {
        let mut flows = Flows::new();
        for _ in 0..WAITING + 3 {
            flows.pass(&(), QUIET, Vec::new(), |inbox| async move {
                let _unread = inbox;
                std::future::pending().await
            });
        }
        assert_eq!(flows.dropped(), 3);
    }

    #[test]
    fn a_name_server_is_given_less_time() {
        assert_eq!((quiet_limit(53), quiet_limit(5353)), (Duration::from_secs(30), Duration::from_secs(120)));
    }
}
