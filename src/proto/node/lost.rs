//! How long a peer is kept that the coordinator has lost (`coordination.md` §13).
//!
//! A lost peer may be a laptop that sleeps, a process behind a broken control connection, or a process that was killed.
//! The first two come back to their open flows, the last never does. What tells them apart: a peer that lives answers; the
//! coordinator says of a connection that was closed, other than of one that fell silent, that it was closed.

use crate::base::Instant;
use std::time::Duration;

/// How long a lost peer without flows is kept after its last sign of life. Equal to the Go client's.
const LOST_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How long what a peer sent before its connection was closed may be under way.
const UNDER_WAY: Duration = Duration::from_secs(3);
/// How long a peer that was asked for a sign of life may take: our packet may have to go through a new handshake.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an agent keeps the open flows of somebody who sleeps. Equal to the keep-alive time of the Go agent's streams.
const SLEEP_TIMEOUT: Duration = Duration::from_secs(72 * 3_600);

/// The state of one lost peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
    since: Instant,
    /// When to look again.
    pub(super) check: Instant,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is asked when it was silent for long.
    Waits,
    /// It is asked as soon as whatever it had sent before must have come.
    Doubted,
    /// It was asked for a sign of life.
    Asked(Instant),
}

/// What is known of a peer beside the coordinator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signs {
    /// When it last proved that it lives: an authenticated packet, or a finished handshake.
    pub(super) alive: Option<Instant>,
    /// Whether it has open flows.
    pub(super) busy: bool,
    /// Whether its flows are kept through its sleep: an agent waits, who dialled wants to know.
    pub(super) patient: bool,
}

/// What to do with a lost peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Send it something that it answers.
    Ask,
    Remove,
}

impl Lost {
    /// The coordinator has lost it; `closed` when it says that the peer's end closed its connection.
    pub(super) fn new(now: Instant, closed: bool) -> Self {
        let (wait, stage) = if closed { (UNDER_WAY, Stage::Doubted) } else { (LOST_TIMEOUT, Stage::Waits) };
        Self { since: now, check: now + wait, stage }
    }

    /// The coordinator adds that its end closed its connection.
    pub(super) fn doubt(&mut self, now: Instant) {
        if self.stage == Stage::Waits {
            *self = Self { since: self.since, ..Self::new(now, true) };
        }
    }

    /// Looks at it when `check` has come.
    pub(super) fn judge(&mut self, now: Instant, signs: Signs) -> Verdict {
        let stage = std::mem::replace(&mut self.stage, Stage::Waits);
        if let Stage::Asked(at) = stage
            && signs.alive.is_none_or(|alive| alive < at)
        {
            return Verdict::Remove;
        }
        if stage == Stage::Doubted && signs.busy {
            return self.ask(now);
        }
        let alive = signs.alive.map_or(self.since, |at| at.max(self.since));
        if now < alive + LOST_TIMEOUT {
            self.check = alive + LOST_TIMEOUT;
            return Verdict::Keep;
        }
        if !signs.busy || signs.patient && now >= alive + SLEEP_TIMEOUT {
            return Verdict::Remove;
        }
        if signs.patient {
            self.check = now + LOST_TIMEOUT;
            return Verdict::Keep;
        }
        self.ask(now)
    }

    fn ask(&mut self, now: Instant) -> Verdict {
        self.stage = Stage::Asked(now);
        self.check = now + ANSWER_TIMEOUT;
        Verdict::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(n)
    }

    fn signs(alive: u64, busy: bool, patient: bool) -> Signs {
        Signs { alive: Some(secs(alive)), busy, patient }
    }

    #[test]
    fn one_whose_connection_was_closed_goes_when_it_does_not_answer() {
        for patient in [true, false] {
            let mut lost = Lost::new(secs(100), true);
            assert_eq!(lost.check, secs(103));
            // What was under way then is no answer.
            assert_eq!(lost.judge(secs(103), signs(102, true, patient)), Verdict::Ask);
            assert_eq!(lost.check, secs(133));
            let asked = lost;
            assert_eq!(lost.judge(secs(133), signs(102, true, patient)), Verdict::Remove);
            let mut lost = asked;
            assert_eq!(lost.judge(secs(133), signs(104, true, patient)), Verdict::Keep);
            assert_eq!(lost.check, secs(104 + 900));
        }
        let mut lost = Lost::new(secs(100), true);
        assert_eq!(lost.judge(secs(103), signs(99, false, true)), Verdict::Keep, "nothing hangs on it");
        assert_eq!(lost.check, secs(1_000));
    }

    #[test]
    fn flows_outlive_a_sleep_at_an_agent_and_no_longer_than_three_days() {
        let mut lost = Lost::new(secs(100), false);
        let mut now = lost.check;
        while lost.judge(now, signs(50, true, true)) == Verdict::Keep {
            assert!(lost.check > now);
            now = lost.check;
        }
        assert_eq!(now, secs(100 + 72 * 3_600));
        let mut lost = Lost::new(secs(100), false);
        assert_eq!(lost.judge(secs(1_000), signs(50, false, true)), Verdict::Remove, "nothing is open");
    }

    #[test]
    fn who_dialled_asks_after_a_quarter_of_an_hour_and_stays_with_one_that_answers() {
        let mut lost = Lost::new(secs(100), false);
        for round in 0..5 {
            let now = lost.check;
            assert_eq!(lost.judge(now, signs(50, true, false)), Verdict::Ask, "{round}");
            let answered = now + Duration::from_secs(1);
            let heard = Signs { alive: Some(answered), busy: true, patient: false };
            let now = lost.check;
            assert_eq!(lost.judge(now, heard), Verdict::Keep);
            assert_eq!(lost.check, answered + LOST_TIMEOUT);
        }
        let now = lost.check;
        assert_eq!(lost.judge(now, signs(50, true, false)), Verdict::Ask);
        let now = lost.check;
        assert_eq!(lost.judge(now, signs(50, true, false)), Verdict::Remove);
    }
}
