//! Whether the other end of a control socket still answers.

use super::yamux::Session;
use crate::base::{Deadline, Instant};
use std::time::Duration;

/// Pings at regular times and gives up when one stays unanswered.
///
/// Silence counts from an unanswered ping, not from the last answer: a machine that slept asks once before it gives up.
#[derive(Debug)]
pub(super) struct Liveness {
    every: Duration,
    grace: Duration,
    next: Instant,
    asked: Option<Instant>,
}

impl Liveness {
    /// The monitor of agents: every 15 s, and none for 30 s is the end (`coordination.md` §2.3).
    pub(super) fn agent(now: Instant) -> Self {
        Self::new(now, Duration::from_secs(15), Duration::from_secs(15))
    }

    /// The keepalive of yamux: every 30 s, 10 s for the answer (`coordination.md` §4).
    pub(super) fn keepalive(now: Instant) -> Self {
        Self::new(now, Duration::from_secs(30), Duration::from_secs(10))
    }

    fn new(now: Instant, every: Duration, grace: Duration) -> Self {
        Self { every, grace, next: now + every, asked: None }
    }

    /// Takes the answers that came; says whether there was one.
    pub(super) fn handle_answers(&mut self, yamux: &mut Session) -> bool {
        let mut alive = false;
        while yamux.poll_pong().is_some() {
            self.asked = None;
            alive = true;
        }
        alive
    }

    /// Asks when it is time. False when the other end is to be given up.
    #[must_use]
    pub(super) fn handle_timeout(&mut self, now: Instant, yamux: &mut Session) -> bool {
        if self.asked.is_some_and(|asked| now >= asked + self.grace) {
            return false;
        }
        if self.asked.is_none() && now >= self.next {
            yamux.ping();
            self.asked = Some(now);
            self.next = now + self.every;
        }
        true
    }

    pub(super) fn poll_timeout(&self) -> Deadline {
        match self.asked {
            Some(asked) => Deadline { at: asked + self.grace, why: "silent control socket" },
            None => Deadline { at: self.next, why: "control ping" },
        }
    }
}
