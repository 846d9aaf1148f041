//! How much a flow may have in the engine: about two bandwidth-delay products.
//!
//! The engine's CUBIC starts with two segments, grows by one segment for an ACK no matter how much that acknowledges,
//! overshoots every queue, and takes each lost segment for congestion. Measured at 40 ms and 200 Mbit/s it reaches
//! 6 Mbit/s with 0.1 % random loss. So the engine runs without it, and this decides what it gets:
//!
//! - The limit starts with ten segments (RFC 6928) and grows by what is acknowledged, while the writer fills it.
//! - It never exceeds two products of measured rate and shortest round trip, so a queue of that size never overflows.
//! - Single losses change nothing. Many close together are congestion: the limit falls to 0.7 of what was in flight and
//!   grows back along the cubic curve (RFC 9438 §4.2). Only while everything is sent again does the engine's CUBIC
//!   pace it.
//!
//! There is no pacing by time: a bottleneck whose queue holds only a few segments loses more than it must.

use super::MSS;
use crate::base::Instant;
use std::time::Duration;

/// In flight at the beginning (RFC 6928), and the least at all times.
const INITIAL: usize = 10 * MSS;
/// The least bound until a new path is measured.
const BLIND: usize = 64 * 1024;
/// Added to the shortest round trip: what scheduling and batches on both hosts take.
const SLACK: Duration = Duration::from_millis(2);
/// Round trips over which the highest rate counts.
const ROUNDS: usize = 10;
/// After so long a shortest round trip is forgotten, since paths change.
const EPOCH: Duration = Duration::from_secs(5);

/// What remains of the window after congestion, and how steeply it grows again (RFC 9438 §4).
const BETA: f64 = 0.7;
const C: f64 = 0.4;

/// The limit of one flow.
#[derive(Debug)]
pub(super) struct Window {
    limit: usize,
    /// Two bandwidth-delay products, once they are known.
    bound: Option<usize>,
    /// When the path was found congested last, and with how much in flight.
    congested: Option<(Instant, usize)>,
    /// Where the current round ends, when it began, and what was acknowledged before it.
    round: Option<(u32, Instant, u64)>,
    /// Whether the writer found no room in this round.
    was_full: bool,
    /// Bytes a second of the last rounds.
    rates: [u64; ROUNDS],
    next_rate: usize,
    /// The shortest round trip of this epoch and of the last one.
    shortest: [Option<Duration>; 2],
    epoch: Option<Instant>,
}

impl Window {
    pub(super) const fn new() -> Self {
        Self {
            limit: INITIAL,
            bound: None,
            congested: None,
            round: None,
            was_full: false,
            rates: [0; ROUNDS],
            next_rate: 0,
            shortest: [None; 2],
            epoch: None,
        }
    }

    /// Bytes that the engine may hold.
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// The writer found no room.
    pub(super) const fn handle_full(&mut self) {
        self.was_full = true;
    }

    /// The path has changed: what was measured may no longer hold.
    pub(super) fn handle_path_change(&mut self) {
        self.shortest = [None; 2];
        self.round = None;
        self.bound = self.bound.map(|bound| bound.max(BLIND));
    }

    /// More was lost than by chance: the path is congested.
    pub(super) fn handle_congestion(&mut self, now: Instant, in_flight: usize) {
        self.congested = Some((now, in_flight));
        self.limit = ((in_flight as f64 * BETA) as usize).max(INITIAL);
    }

    /// What the limit may grow to after congestion: the cubic curve (RFC 9438 §4.2).
    fn ceiling(&self, now: Instant) -> usize {
        let Some((at, reached)) = self.congested else { return usize::MAX };
        let (mss, reached) = (MSS as f64, reached as f64);
        let plateau = (reached * (1.0 - BETA) / (C * mss)).cbrt();
        let since = (now - at).as_secs_f64() - plateau;
        ((C * mss).mul_add(since.powi(3), reached) as usize).max(INITIAL)
    }

    /// A measured round trip.
    pub(super) fn add_sample(&mut self, now: Instant, rtt: Duration) {
        if self.epoch.is_none_or(|began| now - began >= EPOCH) {
            self.epoch = Some(now);
            self.shortest = [None, self.shortest[0]];
        }
        let newest = self.shortest[0].map_or(rtt, |shortest| shortest.min(rtt));
        self.shortest[0] = Some(newest);
    }

    /// `acked` bytes were acknowledged, which makes `total`; the flight now ends at `max`.
    pub(super) fn handle_ack(&mut self, now: Instant, una: u32, max: u32, acked: usize, total: u64) {
        if self.was_full {
            // Without a bound it doubles in the first round trip; from then on twice the measured rate allows as much.
            self.limit = (self.limit + acked).min(self.bound.unwrap_or(2 * INITIAL)).min(self.ceiling(now));
        }
        let Some((end, began, before)) = self.round else {
            self.round = Some((max, now, total));
            return;
        };
        let took = (now - began).max(Duration::from_micros(10));
        // ACKs that come in a bunch would make short rounds of a high rate.
        if super::before(una, end) || self.shortest().is_some_and(|rtt| took < rtt / 2) {
            return;
        }
        let rate = u128::from(total - before) * 1_000_000_000 / took.as_nanos();
        // A round without full use says little of the path, unless it was faster than any.
        if self.was_full || rate > u128::from(self.highest_rate()) {
            if let Some(slot) = self.rates.get_mut(self.next_rate) {
                *slot = u64::try_from(rate).unwrap_or(u64::MAX);
            }
            self.next_rate = (self.next_rate + 1) % ROUNDS;
        }
        self.was_full = false;
        self.round = Some((max, now, total));
        self.bound = self.measured_bound();
        self.limit = self.limit.min(self.bound.unwrap_or(usize::MAX));
    }

    fn highest_rate(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or_default()
    }

    fn shortest(&self) -> Option<Duration> {
        self.shortest.iter().flatten().min().copied()
    }

    /// Two products of the highest rate and the shortest round trip.
    fn measured_bound(&self) -> Option<usize> {
        if self.highest_rate() == 0 {
            return None;
        }
        let product = u128::from(self.highest_rate()) * (self.shortest()? + SLACK).as_nanos() / 1_000_000_000;
        Some(usize::try_from(2 * product).unwrap_or(usize::MAX).max(INITIAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    /// Plays `rounds` round trips over a path that carries `rate` bytes a second, the writer always having more.
    fn play(window: &mut Window, now: &mut Instant, total: &mut u64, rounds: usize, rate: u64) {
        for _ in 0..rounds {
            let sent = window.limit() as u64;
            let took = RTT.max(Duration::from_nanos(sent * 1_000_000_000 / rate));
            // Ten ACKs spread over the round.
            for n in 1..=10 {
                window.handle_full();
                let at = *now + took * n / 10;
                window.add_sample(at, if n == 1 { RTT } else { took });
                let before = *total;
                *total += sent / 10;
                window.handle_ack(at, *total as u32, *total as u32 + sent as u32, (*total - before) as usize, *total);
            }
            *now += took;
        }
    }

    #[test]
    fn the_limit_doubles_until_it_holds_two_products_of_rate_and_round_trip() {
        let (mut window, mut now, mut total) = (Window::new(), Instant::ZERO, 0);
        assert_eq!(window.limit(), 12_200);
        let mut last = window.limit();
        for _ in 0..6 {
            play(&mut window, &mut now, &mut total, 1, 25_000_000);
            assert!((last..=last * 5 / 2).contains(&window.limit()), "{last} → {}", window.limit());
            last = window.limit();
        }
        assert!(last > 100_000, "{last}");
        play(&mut window, &mut now, &mut total, 20, 25_000_000);
        let product = 25_000_000 * 42 / 1_000;
        assert!((product * 3 / 2..=product * 5 / 2).contains(&window.limit()), "{} of {product}", window.limit());
    }

    #[test]
    fn a_writer_who_does_not_fill_the_limit_does_not_raise_it() {
        let mut window = Window::new();
        let mut total = 0;
        for n in 1..200 {
            total += 1_000;
            let now = Instant::from_nanos(n * 50_000_000);
            window.add_sample(now, RTT);
            window.handle_ack(now, total as u32, total as u32, 1_000, total);
        }
        assert_eq!(window.limit(), INITIAL);
    }

    #[test]
    fn congestion_cuts_the_limit_and_the_cubic_curve_gives_it_back() {
        let (mut window, mut now, mut total) = (Window::new(), Instant::ZERO, 0);
        play(&mut window, &mut now, &mut total, 20, 25_000_000);
        let before = window.limit();
        window.handle_congestion(now, before);
        assert_eq!(window.limit(), (before as f64 * 0.7) as usize);
        play(&mut window, &mut now, &mut total, 25, 25_000_000);
        assert!(window.limit() < before, "after a second it is not there yet");
        play(&mut window, &mut now, &mut total, 400, 25_000_000);
        assert!(window.limit() > before * 9 / 10);
    }

    #[test]
    fn a_slower_path_is_not_throttled_by_the_round_trips_of_the_old_one() {
        let (mut window, mut now, mut total) = (Window::new(), Instant::ZERO, 0);
        for _ in 0..200 {
            window.add_sample(now, Duration::from_micros(200));
            window.handle_full();
            total += 20_000;
            now += Duration::from_micros(200);
            window.handle_ack(now, total as u32, total as u32 + 20_000, 20_000, total);
        }
        window.handle_path_change();
        play(&mut window, &mut now, &mut total, 100, 25_000_000);
        assert!(window.limit() > 1_500_000, "{}", window.limit());
    }
}
