//! When to send again: round-trip times, duplicate ACKs, a probe after two silent round trips, a timeout of our own.
//!
//! The engine's retransmission timer has a floor of one second, and after a fast retransmission it leaves the next
//! hole to that timer. Both are too slow here. This watches what is sent and acknowledged and says when the engine
//! must act before its own timer: send the first unacknowledged segment again, or everything (RFC 6298, RFC 6582, and
//! the idea of RFC 8985 §7). It holds no data and knows no engine.

use crate::base::Instant;
use std::time::Duration;

/// Two segments: an ACK that moves by no more tells of one retransmission only.
const STEP: u32 = 2 * super::MSS as u32;
/// Holes filled one in a round trip before, if they lie side by side, it is quicker to start over.
const MANY: u32 = 4;
/// How many holes are no chance if they lie close.
const SOME: u32 = 8;
/// A distance of holes beyond which chance explains them: one segment in 25.
const SPARSE: u32 = 25 * super::MSS as u32;
/// What a peer may wait before it acknowledges, and some room for the scheduler.
const PEER_DELAY: Duration = Duration::from_millis(15);
/// Before the first sample (RFC 6298 §2).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// The least that the variance counts, as in Linux and Go: on the variance and not on the sum, or a steady path of
/// 200 ms would time out for nothing.
const LEAST_MARGIN: Duration = Duration::from_millis(200);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A timer that fires so late tells of a host that slept.
const SUSPENDED: Duration = Duration::from_secs(5);

/// Whether `a` comes before `b` in sequence space.
pub(super) const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b).cast_signed()) < 0
}

/// What the engine must do at its next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Send the first unacknowledged segment.
    First,
    /// Start over from the first unacknowledged byte, slowly.
    All,
}

/// A loss that is being repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Recovery {
    /// Everything below was sent before the loss was noticed.
    until: u32,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// One hole after another: the peer has later data.
    Holes,
    /// The first segment was sent on suspicion; its ACK tells whether the rest was lost too.
    Suspicion,
    /// Everything from the first hole on.
    All,
}

/// A flow's view of what is in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    /// The first sequence number that is not acknowledged.
    pub(super) una: u32,
    /// The end of what was ever sent.
    pub(super) max: u32,
}

impl Flight {
    pub(super) const fn is_empty(self) -> bool {
        !before(self.una, self.max)
    }
}

/// Retransmission state of one flow.
#[derive(Debug, Default)]
pub(super) struct Repair {
    srtt: Option<Duration>,
    rttvar: Duration,
    /// The round trip that the newest ACK measured.
    measured: Option<Duration>,
    /// A range sent once, and when.
    sample: Option<(u32, Instant)>,
    duplicates: u8,
    /// Holes of this recovery that were filled one by one.
    repaired: u32,
    /// What the ACKs moved by while they were filled.
    spanned: u32,
    /// Holes that selective acknowledgements have shown, the left edge of the last, and the right edge of all.
    holes: u32,
    left: u32,
    right: u32,
    /// The right edge of what the peer has behind a hole: while it lies ahead, what is not acknowledged has a hole at its
    /// beginning.
    shown: Option<u32>,
    recovery: Option<Recovery>,
    /// What was asked of the engine and has not left yet.
    asked: Option<Again>,
    /// When the first segment was last sent again at our wish.
    resent: Option<Instant>,
    due: Option<Instant>,
    /// Whether the silence was probed already.
    probed: bool,
    backoff: u32,
    /// Transmissions of the same thing since the peer was heard.
    unanswered: u32,
    /// Since when something is in flight and nothing was heard.
    silent_since: Option<Instant>,
}

/// Why a segment was sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It is no repetition.
    No,
    /// Part of a repair.
    Repair,
    /// The engine's own timer.
    EngineTimeout,
}

impl Repair {
    /// The round trip that the newest ACK measured, if it did.
    pub(super) const fn measured(&self) -> Option<Duration> {
        self.measured
    }

    pub(super) fn is_starting_over(&self) -> bool {
        matches!(self.recovery, Some(Recovery { how: How::All, .. }))
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What the engine has been asked to do and has not done yet.
    pub(super) const fn asked(&self) -> Option<Again> {
        self.asked
    }

    /// The engine had its turn and could not do what was asked.
    pub(super) const fn forget_asked(&mut self) {
        self.asked = None;
    }

    /// The first segment is sent again.
    pub(super) const fn first_again(&mut self) {
        self.asked = Some(Again::First);
    }

    /// The engine cannot send the first segment alone: it shall start over.
    pub(super) const fn start_over(&mut self) {
        self.asked = Some(Again::All);
    }

    /// Whether the peer was silent for `time` and `tries` transmissions.
    pub(super) fn is_silent(&self, now: Instant, time: Duration, tries: u32) -> bool {
        self.unanswered >= tries && self.silent_since.is_some_and(|since| now - since >= time)
    }

    /// Any segment of the peer arrived.
    pub(super) const fn handle_heard(&mut self) {
        self.unanswered = 0;
        self.silent_since = None;
    }

    /// A measured round trip.
    pub(super) fn add_sample(&mut self, rtt: Duration) {
        match self.srtt {
            None => (self.srtt, self.rttvar) = (Some(rtt), rtt / 2),
            Some(srtt) => {
                self.rttvar = (self.rttvar * 3 + srtt.abs_diff(rtt)) / 4;
                self.srtt = Some((srtt * 7 + rtt) / 8);
            }
        }
    }

    fn timeout(&self) -> Duration {
        let base = self.srtt.map_or(FIRST_TIMEOUT, |srtt| srtt + (self.rttvar * 4).max(LEAST_MARGIN));
        (base * (1 << self.backoff.min(8))).min(LONGEST_TIMEOUT)
    }

    /// How long silence may last before it is probed.
    fn patience(&self) -> Duration {
        self.srtt.map_or(FIRST_TIMEOUT, |srtt| (srtt * 2).max(srtt + self.rttvar * 4) + PEER_DELAY)
    }

    /// A segment that takes sequence space from `seq` to `end` left. `flight` is as it was before.
    pub(super) fn handle_sent(&mut self, now: Instant, seq: u32, end: u32, flight: Flight) -> Repeat {
        self.silent_since.get_or_insert(now);
        let repeat = if before(seq, flight.max) { self.note_repeat(now, seq, flight) } else { Repeat::No };
        if repeat == Repeat::No && self.sample.is_none() {
            self.sample = Some((end, now));
        }
        if self.due.is_none() {
            let wait = if self.recovery.is_some() { self.timeout() } else { self.patience() };
            self.due = Some(now + wait);
        }
        repeat
    }

    /// A probe of a closed window, a repeated SYN: something that the engine repeats by itself.
    pub(super) fn handle_engine_repeat(&mut self, now: Instant) {
        self.unanswered += 1;
        self.silent_since.get_or_insert(now);
    }

    fn note_repeat(&mut self, now: Instant, seq: u32, flight: Flight) -> Repeat {
        self.sample = None;
        if seq != flight.una {
            return Repeat::Repair;
        }
        self.unanswered += 1;
        // The repetition gets its own round trip.
        self.due = Some(now + self.timeout());
        match self.asked.take() {
            Some(Again::First) => self.resent = Some(now),
            Some(Again::All) => {}
            None if matches!(self.recovery, Some(Recovery { how: How::All, .. })) => {}
            None => {
                self.recovery = Some(Recovery { until: flight.max, how: How::All });
                return Repeat::EngineTimeout;
            }
        }
        Repeat::Repair
    }

    /// An ACK was taken in. `before_una` is where the flight began before it, `is_duplicate` whether it is a bare
    /// repetition.
    pub(super) fn handle_ack(&mut self, now: Instant, before_una: u32, flight: Flight, is_duplicate: bool) -> Option<Again> {
        self.measured = None;
        if !before(before_una, flight.una) {
            return self.handle_duplicate(is_duplicate, flight);
        }
        let step = flight.una.wrapping_sub(before_una);
        self.shown = self.shown.filter(|right| before(flight.una, *right));
        (self.duplicates, self.backoff, self.probed, self.asked) = (0, 0, false, None);
        if let Some((end, sent)) = self.sample
            && !before(flight.una, end)
        {
            self.sample = None;
            self.measured = Some(now - sent);
            self.add_sample(now - sent);
        }
        let again = self.next_repair(now, step, flight);
        let wait = if self.recovery.is_some() { self.timeout() } else { self.patience() };
        self.due = (!flight.is_empty()).then_some(now + wait);
        self.asked = again;
        again
    }

    fn handle_duplicate(&mut self, is_duplicate: bool, flight: Flight) -> Option<Again> {
        if is_duplicate && !flight.is_empty() {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == 3 && self.recovery.is_none() {
                // The engine counts them too, but not those that also open the window.
                self.recovery = Some(Recovery { until: flight.max, how: How::Holes });
                (self.repaired, self.spanned, self.holes, self.resent) = (0, 0, 0, None);
                self.asked = Some(Again::First);
                return self.asked;
            }
        }
        None
    }

    /// An ACK tells of a range that has arrived, all of it within the flight.
    pub(super) fn handle_sack(&mut self, (left, right): (u32, u32)) {
        if self.shown.is_none_or(|shown| before(shown, right)) {
            self.shown = Some(right);
        }
        if self.recovery.is_none() {
            return;
        }
        if self.holes == 0 || before(self.left, left) {
            self.left = left;
            self.holes += 1;
        }
        if self.holes == 1 || before(self.right, right) {
            self.right = right;
        }
    }

    /// After an ACK that moved by `step`: whether it shows the next hole.
    fn next_repair(&mut self, now: Instant, step: u32, flight: Flight) -> Option<Again> {
        let recovery = self.recovery?;
        if !before(flight.una, recovery.until) {
            self.recovery = None;
            return None;
        }
        if recovery.how == How::All {
            return None;
        }
        // An ACK that is back sooner than a round trip answers the first transmission: nothing was lost. But a queue that the
        // flow itself had filled makes the round trip too long, and once it has drained, every answer comes sooner.
        let answered = self.resent.take().is_some_and(|at| now - at >= self.srtt.unwrap_or_default() * 3 / 4);
        if !answered && self.shown.is_none() {
            self.recovery = None;
            return None;
        }
        self.repaired += 1;
        self.spanned += step;
        let all = if recovery.how == How::Suspicion { step <= STEP } else { self.is_dense(step, flight.una) };
        if all {
            self.recovery = Some(Recovery { how: How::All, until: flight.max });
            return Some(Again::All);
        }
        self.recovery = Some(Recovery { how: How::Holes, ..recovery });
        Some(Again::First)
    }

    /// Whether the holes lie so close together that filling one in a round trip takes too long.
    const fn is_dense(&mut self, step: u32, una: u32) -> bool {
        if self.holes >= MANY && before(una, self.right) && self.right.wrapping_sub(una) < self.holes * SPARSE {
            return true;
        }
        let lost_much = self.repaired == SOME && self.spanned < SOME * SPARSE;
        if self.repaired == SOME {
            (self.repaired, self.spanned) = (0, 0);
        }
        lost_much || (self.repaired >= MANY && step <= STEP)
    }

    /// The path has changed: what is in flight may be lost.
    pub(super) fn handle_path_change(&mut self, now: Instant, flight: Flight) -> Option<Again> {
        // Another path has other round trips.
        (self.sample, self.backoff) = (None, 0);
        if flight.is_empty() {
            return None;
        }
        self.suspect(now, flight)
    }

    fn suspect(&mut self, now: Instant, flight: Flight) -> Option<Again> {
        (self.probed, self.resent, self.repaired, self.spanned, self.holes) = (true, None, 0, 0, 0);
        self.recovery = Some(Recovery { until: flight.max, how: How::Suspicion });
        self.asked = Some(Again::First);
        self.due = Some(now + self.timeout());
        self.asked
    }

    /// Nothing was acknowledged for too long. What to do, and whether that was a timeout.
    pub(super) fn handle_timeout(&mut self, now: Instant, flight: Flight) -> (Option<Again>, bool) {
        let Some(due) = self.due.filter(|due| *due <= now) else { return (None, false) };
        if now - due > SUSPENDED {
            // Nobody could have answered: the peer's time begins now.
            (self.backoff, self.unanswered, self.silent_since) = (0, 0, Some(now));
        }
        if flight.is_empty() {
            self.due = None;
            return (None, false);
        }
        if self.asked.is_some() {
            // The last repair still waits for its lane.
            self.due = Some(now + self.timeout());
            return (None, false);
        }
        if !self.probed && self.recovery.is_none() && self.srtt.is_some() {
            return (self.suspect(now, flight), false);
        }
        self.backoff += 1;
        self.recovery = Some(Recovery { until: flight.max, how: How::All });
        self.asked = Some(Again::All);
        self.due = Some(now + self.timeout());
        (self.asked, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// A flow with a round trip of 40 ms that has just sent `segments` of 1,000 bytes from sequence number 0.
    fn sent(segments: u32) -> (Repair, Flight) {
        let mut repair = Repair::default();
        for _ in 0..20 {
            repair.add_sample(Duration::from_millis(40));
        }
        let mut flight = Flight { una: 0, max: 0 };
        for n in 0..segments {
            assert_eq!(repair.handle_sent(at(0), n * 1_000, (n + 1) * 1_000, flight), Repeat::No);
            flight.max = (n + 1) * 1_000;
        }
        (repair, flight)
    }

    #[test]
    fn silence_is_probed_after_two_round_trips_and_then_times_out_with_back_off() {
        let (mut repair, flight) = sent(1);
        let probe = repair.due().unwrap();
        assert_eq!(probe, at(95));
        assert_eq!(repair.handle_timeout(at(94), flight), (None, false));
        assert_eq!(repair.handle_timeout(probe, flight), (Some(Again::First), false));
        assert_eq!(repair.handle_sent(probe, 0, 1_000, flight), Repeat::Repair);
        let mut last = probe;
        for wait in [240, 480, 960] {
            let due = repair.due().unwrap();
            assert!((due - last).abs_diff(Duration::from_millis(wait)) < Duration::from_millis(5), "{:?}", due - last);
            assert_eq!(repair.handle_timeout(due, flight), (Some(Again::All), true));
            repair.handle_sent(due, 0, 1_000, flight);
            last = due;
        }
    }

    #[test]
    fn an_acknowledged_flight_has_no_deadline() {
        let (mut repair, flight) = sent(3);
        assert_eq!(repair.handle_ack(at(40), 0, Flight { una: 3_000, ..flight }, false), None);
        assert_eq!(repair.due(), None);
    }

    #[test]
    fn a_partial_ack_in_recovery_shows_the_next_hole() {
        let (mut repair, flight) = sent(20);
        for again in [None, None, Some(Again::First), None] {
            assert_eq!(repair.handle_ack(at(41), 0, flight, true), again);
        }
        assert_eq!(repair.handle_sent(at(41), 0, 1_000, flight), Repeat::Repair);
        assert_eq!(repair.handle_ack(at(81), 0, Flight { una: 5_000, ..flight }, false), Some(Again::First));
        repair.handle_sent(at(81), 5_000, 6_000, Flight { una: 5_000, ..flight });
        assert_eq!(repair.handle_ack(at(121), 5_000, Flight { una: 20_000, ..flight }, false), None);
        assert_eq!(repair.handle_ack(at(130), 20_000, Flight { una: 20_500, max: 21_000 }, false), None);
    }

    #[test]
    fn a_hole_that_the_peer_shows_is_repaired_however_soon_the_answers_come() {
        let (mut repair, flight) = sent(20);
        repair.handle_sack((10_000, 12_000));
        for again in [None, None, Some(Again::First)] {
            assert_eq!(repair.handle_ack(at(41), 0, flight, true), again);
        }
        // The queue has drained meanwhile: a round trip takes 1 ms instead of 40.
        for n in 0..3 {
            let una = n * 1_000;
            repair.handle_sent(at(41 + u64::from(n)), una, una + 1_000, Flight { una, ..flight });
            let next = Flight { una: una + 1_000, ..flight };
            assert_eq!(repair.handle_ack(at(42 + u64::from(n)), una, next, false), Some(Again::First), "{n}");
        }
        repair.handle_sent(at(44), 3_000, 4_000, Flight { una: 3_000, ..flight });
        assert_eq!(repair.handle_ack(at(45), 3_000, Flight { una: 12_000, ..flight }, false), None, "no hole is left");
    }

    #[test]
    fn an_ack_that_comes_too_soon_ends_the_suspicion() {
        let (mut repair, flight) = sent(20);
        assert_eq!(repair.handle_path_change(at(50), flight), Some(Again::First));
        repair.handle_sent(at(50), 0, 1_000, flight);
        assert_eq!(repair.handle_ack(at(55), 0, Flight { una: 2_000, ..flight }, false), None);
        assert_eq!(repair.handle_ack(at(90), 2_000, Flight { una: 4_000, ..flight }, false), None);
    }

    #[test]
    fn a_suspicion_that_proves_true_starts_over() {
        let (mut repair, flight) = sent(20);
        repair.handle_path_change(at(50), flight);
        repair.handle_sent(at(50), 0, 1_000, flight);
        assert_eq!(repair.handle_ack(at(90), 0, Flight { una: 1_000, ..flight }, false), Some(Again::All));
        assert_eq!(repair.handle_sent(at(90), 1_000, 2_000, Flight { una: 1_000, ..flight }), Repeat::Repair);
        assert_eq!(repair.handle_ack(at(130), 1_000, Flight { una: 2_000, ..flight }, false), None);
    }

    #[test]
    fn a_path_change_with_nothing_in_flight_asks_for_nothing() {
        let (mut repair, flight) = sent(1);
        let empty = Flight { una: 1_000, ..flight };
        repair.handle_ack(at(40), 0, empty, false);
        assert_eq!(repair.handle_path_change(at(50), empty), None);
        assert_eq!(repair.due(), None);
    }
}
