//! Tells whoever sits at a terminal that the other end has fallen silent, and that it is back.
//!
//! An answer is expected to what was typed, and more output to output that came. Where a few seconds bring nothing, the
//! peer is pinged through the tunnel: one that answers is well, however long its program says nothing, and no timer runs
//! until something is typed or comes again.

use crate::{base::Instant, net::PingError};
use std::{cell::Cell, future::pending, time::Duration};
use tokio::{sync::Notify, time::sleep};

/// How long what was typed, or came last, may be the last of it before the peer is asked.
const CALM: Duration = Duration::from_secs(4);
/// How long one ping waits.
const WAIT: Duration = Duration::from_secs(2);
/// After this time without an answer a person is told.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause after a failed ping: some errors come at once.
const PAUSE: Duration = Duration::from_millis(200);

/// Whether the other end is silent now.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Since when it is, once the person was told.
    on: Cell<Option<Instant>>,
    /// Since when an answer is expected, if one is.
    expected: Cell<Option<Instant>>,
    expects: Notify,
}

impl Silence {
    pub(super) const fn is_on(&self) -> bool {
        self.on.get().is_some()
    }

    /// The person typed something. What was typed before it and had no answer is what counts.
    pub(super) fn typed(&self, now: Instant) {
        if self.expected.get().is_none() {
            self.expected.set(Some(now));
            self.expects.notify_one();
        }
    }

    /// Output came, and more may be on its way.
    pub(super) fn heard(&self, now: Instant) {
        self.expected.set(None);
        self.typed(now);
    }

    /// Watches a session of `name` for as long as it lasts: asks its peer with `ping` and tells the person with `tell`.
    pub(super) async fn watch(
        &self,
        name: &str,
        now: impl Fn() -> Instant,
        ping: impl AsyncFn(Duration) -> Result<(), PingError>,
        tell: impl Fn(&str),
    ) -> super::network_info::Never {
        loop {
            let Some(since) = self.expected.get() else {
                self.expects.notified().await;
                continue;
            };
            let silent = now() - since;
            if silent < CALM && !self.is_on() {
                sleep(CALM - silent).await;
                continue;
            }
            let left = PATIENCE.saturating_sub(silent);
            let wait = if self.is_on() || left.is_zero() { WAIT } else { left.min(WAIT) };
            match ping(wait).await {
                Ok(()) => {
                    if let Some(on) = self.on.take() {
                        tell(&format!("\r\n[{name} answers again after {} s]\r", (now() - on).as_secs()));
                    }
                    // What came meanwhile begins a wait of its own.
                    if self.expected.get() == Some(since) {
                        self.expected.set(None);
                    }
                }
                Err(PingError::Closed) => return pending().await,
                Err(_) => {
                    let since = self.expected.get().unwrap_or(since);
                    let silent = now() - since;
                    if silent >= PATIENCE && !self.is_on() {
                        self.on.set(Some(since));
                        let text = "the session goes on when it answers; Ctrl-C twice, or Enter and ~. leave it";
                        tell(&format!("\r\n[{name} has been silent for {} s: {text}]\r", silent.as_secs()));
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A session in virtual time, whose other end can be cut off.
    struct Session {
        began: tokio::time::Instant,
        silence: Silence,
        is_cut: Cell<bool>,
        pings: Cell<usize>,
        told: RefCell<Vec<String>>,
    }

    impl Session {
        fn new() -> Self {
            let (silence, told) = (Silence::default(), RefCell::default());
            Self { began: tokio::time::Instant::now(), silence, is_cut: Cell::new(false), pings: Cell::new(0), told }
        }

        fn now(&self) -> Instant {
            Instant::from_nanos(1_000_000_000) + self.began.elapsed()
        }

        async fn ping(&self, wait: Duration) -> Result<(), PingError> {
            self.pings.set(self.pings.get() + 1);
            if self.is_cut.get() {
                sleep(wait).await;
                return Err(PingError::Timeout);
            }
            Ok(())
        }

        /// Lets so much time pass for who watches.
        async fn pass(&self, time: Duration) {
            let tell = |text: &str| self.told.borrow_mut().push(text.trim().to_owned());
            let watch = self.silence.watch("dev", || self.now(), async |wait| self.ping(wait).await, tell);
            let _ = tokio::time::timeout(time, watch).await;
        }

        fn told(&self) -> Vec<String> {
            self.told.take()
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_session_in_which_nothing_is_expected_asks_nothing_and_wakes_never() {
        let session = Session::new();
        session.pass(HOUR).await;
        assert_eq!(session.pings.get(), 0);
        // One look after the last output; its answer is enough for as long as nothing is typed.
        session.silence.heard(session.now());
        session.pass(HOUR).await;
        session.is_cut.set(true);
        session.pass(HOUR).await;
        assert_eq!((session.pings.get(), session.told()), (1, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_typed_into_a_silent_session_is_told_to_have_no_answer_after_ten_seconds_and_then_its_return() {
        let session = Session::new();
        session.is_cut.set(true);
        session.pass(HOUR).await;
        for _ in 0..9 {
            session.silence.typed(session.now());
            session.pass(Duration::from_secs(1)).await;
        }
        assert!(!session.silence.is_on() && session.told().is_empty());
        // The first of what was typed counts.
        session.pass(Duration::from_secs(2)).await;
        assert!(session.silence.is_on());
        session.pass(HOUR).await;
        let told = session.told();
        assert!(matches!(told.as_slice(), [one] if one.starts_with("[dev has been silent for 1")), "{told:?}");
        session.is_cut.set(false);
        session.pass(HOUR).await;
        let (told, pings) = (session.told(), session.pings.get());
        assert!(matches!(told.as_slice(), [one] if one.starts_with("[dev answers again after 3")), "{told:?}");
        assert!(!session.silence.is_on());
        session.pass(HOUR).await;
        assert_eq!(session.pings.get(), pings, "it goes on asking");
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_goes_on_needs_no_ping_and_its_sudden_end_is_told() {
        let session = Session::new();
        session.silence.typed(session.now());
        for _ in 0..60 {
            session.pass(Duration::from_secs(1)).await;
            session.silence.heard(session.now());
        }
        assert_eq!(session.pings.get(), 0);
        session.is_cut.set(true);
        session.pass(PATIENCE + WAIT).await;
        assert!(session.silence.is_on() && session.told().len() == 1);
        // What comes on is as good an answer.
        session.silence.heard(session.now());
        session.is_cut.set(false);
        session.pass(Duration::from_secs(1)).await;
        assert!(!session.silence.is_on());
    }
}
