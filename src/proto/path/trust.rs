//! How far the best address of a peer is believed in (`path-selection.md` §5, DESIGN.md §3.10).
//!
//! Only a pong makes an address the best one. From then on it is *trusted* as long as pongs or authenticated data come
//! from it, and *doubted* when neither has come for 6.5 s or when something speaks against it:
//!
//! - silence: a datagram that expects an answer went out on it and nothing came back in due time;
//! - mirror: the peer, who had been sending directly, sends by relay again, so for the peer the path is in doubt;
//! - move: the peer's data comes from an address that nobody knew;
//! - rebind: our own network has changed.
//!
//! While doubted, packets go both ways and the address is pinged in growing distances. Data that arrives on the path
//! ends a doubt, but it proves one direction only. So it does not end the last three kinds, nor a second silence without
//! a pong between: a path that is dead from here to there alone would swallow every other packet.

use super::better::{Measured, better};
use crate::base::Instant;
use std::{net::SocketAddr, time::Duration};

/// How long a pong or authenticated data is good for.
pub(super) const TRUST: Duration = Duration::from_millis(6_500);
/// Added to two round trips before silence counts: the peer may delay its acknowledgement.
const ANSWER_SLACK: Duration = Duration::from_millis(40);
/// Silence shorter than this never counts.
const ANSWER_FLOOR: Duration = Duration::from_millis(100);
/// The peer has been direct for this long before its relayed data counts: older data may still be under way.
const MIRROR_HOLD: Duration = Duration::from_millis(500);
/// Each mirror doubt that a pong refutes doubles the time, up to 8 s, …
const MIRROR_REFUTED_MAX: u32 = 4;
/// … until none has come for this long.
const MIRROR_FORGET: Duration = Duration::from_secs(60);
/// Copies by relay must come in for this long before they count: a peer in a short doubt sends some, too.
const COPIES: Duration = Duration::from_millis(150);
/// Copies further apart belong to different doubts.
const COPIES_GAP: Duration = Duration::from_secs(2);
/// Longest distance between two probes of a doubted address.
const PROBE_MAX: Duration = Duration::from_secs(3);
/// A doubted address is given up after this long …
const DOUBT_LIMIT: Duration = Duration::from_secs(6);
/// … and this many unanswered probes.
const DOUBT_PROBES: u32 = 3;
/// Silence is waited for up to 2⁵ times as long.
const UNHEARD_MAX: u32 = 5;
/// Below this round trip the data under way when a path dies is not worth telling from an answer.
const SHORT_TRIP: Duration = Duration::from_millis(4);

/// What was learned about the address in use.
#[derive(Debug, Clone, Copy)]
struct Best {
    addr: SocketAddr,
    /// Of the newest pong.
    latency: Duration,
    smoothed: Duration,
    shortest: Duration,
}

/// Why a path is doubted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// No pong and no data for 6.5 s.
    Expired,
    /// No answer in due time.
    Silence,
    /// The peer sends by relay again.
    Mirror,
    /// The peer sends from an address that nobody knew.
    Move,
    /// Our network changed.
    Rebind,
}

#[derive(Debug, Clone, Copy)]
struct Doubt {
    why: Why,
    since: Instant,
    /// Data on the path does not end it.
    needs_pong: bool,
    probes: u32,
    next_probe: Instant,
}

/// Datagrams on the trusted path that expect an answer and may not have got one.
#[derive(Debug, Clone, Copy)]
struct Awaited {
    first: Instant,
    last: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Trust {
    best: Option<Best>,
    until: Instant,
    since: Instant,
    doubt: Option<Doubt>,
    awaited: Option<Awaited>,
    /// Silences in a row without a word from the peer: where the path is fine and the session is not, pongs refute
    /// each of them, and the next takes twice as long.
    unheard: u32,
    /// A doubt was ended by data and no pong has come since.
    unproven: bool,
    /// When the peer's direct data began to come, for the path as trusted now.
    peer_direct: Option<Instant>,
    /// First and latest of the peer's copies by relay.
    copies: Option<(Instant, Instant)>,
    /// Mirror doubts in a row that a pong refuted.
    refuted: u32,
    refuted_at: Instant,
}

impl Trust {
    pub(super) fn addr(&self) -> Option<SocketAddr> {
        self.best.map(|b| b.addr)
    }

    pub(super) fn latency(&self) -> Option<Duration> {
        self.best.map(|b| b.latency)
    }

    /// Whether there is a best address and nothing speaks against it.
    pub(super) fn is_trusted(&self) -> bool {
        self.best.is_some() && self.doubt.is_none()
    }

    /// Notices that trust has run out. Not done by the clock while nothing is sent: nobody would care.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.is_trusted() && now > self.until {
            self.start_doubt(now, Why::Expired);
        }
    }

    /// A pong for a ping to `addr`. Returns whether another address is the best one now.
    pub(super) fn pong(&mut self, now: Instant, addr: SocketAddr, latency: Duration) -> bool {
        self.settle(now);
        if let Some(best) = self.best.as_mut().filter(|best| best.addr == addr) {
            best.latency = latency;
            best.smoothed = (best.smoothed * 3 + latency) / 4;
            best.shortest = best.shortest.min(latency);
            self.prove(now);
            return false;
        }
        // A doubted address does not compete: its latency is that of a path which may be gone.
        let rival = self.best.filter(|_| self.is_trusted()).map(|b| Measured { addr: b.addr, latency: b.latency });
        if !better(Some(Measured { addr, latency }), rival) {
            return false;
        }
        self.best = Some(Best { addr, latency, smoothed: latency, shortest: latency });
        self.awaited = None;
        self.peer_direct = None;
        self.since = now;
        self.prove(now);
        true
    }

    fn prove(&mut self, now: Instant) {
        if let Some(doubt) = self.doubt.take() {
            self.since = now;
            self.copies = None;
            // What the peer relayed meanwhile is still coming in. It counts again only after the peer has been direct.
            self.peer_direct = None;
            if doubt.why == Why::Mirror {
                self.refuted = (self.refuted + 1).min(MIRROR_REFUTED_MAX);
                self.refuted_at = now;
            }
        }
        self.unproven = false;
        self.until = now + TRUST;
    }

    /// Authenticated data came from the best address.
    pub(super) fn heard_on_path(&mut self, now: Instant) {
        self.heard(now);
        if let Some(doubt) = self.doubt {
            if doubt.needs_pong {
                return;
            }
            self.doubt = None;
            self.unproven = true;
            self.since = now;
            self.peer_direct = None;
        }
        self.peer_direct.get_or_insert(now);
        self.until = self.until.max(now + TRUST);
    }

    /// Something authenticated came from the peer, by whatever way: it may answer what was sent long enough ago.
    pub(super) fn heard(&mut self, now: Instant) {
        self.unheard = 0;
        let Some(Awaited { first, last }) = self.awaited else { return };
        // What was under way when the path died still arrives for half a round trip and answers nothing sent after.
        let shortest = self.best.map_or(Duration::ZERO, |b| b.shortest);
        let flight = if shortest < SHORT_TRIP { Duration::ZERO } else { shortest / 2 };
        let open = |sent: Instant| now < sent + flight;
        self.awaited = match (open(first), open(last)) {
            (true, _) => self.awaited,
            (false, true) => Some(Awaited { first: last, last }),
            (false, false) => None,
        };
    }

    /// Authenticated data came by relay. Returns whether that starts a doubt.
    pub(super) fn heard_by_relay(&mut self, now: Instant) -> bool {
        let Some(best) = self.best.filter(|_| self.is_trusted()) else { return false };
        if now - self.refuted_at > MIRROR_FORGET {
            self.refuted = 0;
        }
        let hold = (MIRROR_HOLD * (1 << self.refuted)).max(best.smoothed * 2);
        let was_direct = self.peer_direct.is_some_and(|since| now - since > hold);
        if was_direct && now - self.since > best.smoothed * 2 {
            self.start_doubt(now, Why::Mirror);
            return true;
        }
        false
    }

    /// A copy came by relay of what the direct path had brought already. Returns whether that starts a doubt.
    pub(super) fn copy_by_relay(&mut self, now: Instant) -> bool {
        let first = match self.copies {
            Some((first, last)) if now - last < COPIES_GAP => first,
            _ => now,
        };
        self.copies = Some((first, now));
        let Some(best) = self.best else { return false };
        now - first > COPIES.max(best.smoothed * 2) && self.heard_by_relay(now)
    }

    /// Data came from an address that nobody knew. Returns whether that starts a doubt.
    pub(super) fn heard_from_stranger(&mut self, now: Instant) -> bool {
        let starts = self.is_trusted();
        if starts {
            self.start_doubt(now, Why::Move);
        }
        starts
    }

    /// Data came from an address that is known but not in use. Returns whether that starts a doubt: it does when the
    /// peer's data used to come on the path, for then the peer has moved. A path that never brought any is one of two
    /// that differ by direction, and nothing speaks against it.
    pub(super) fn heard_elsewhere(&mut self, now: Instant) -> bool {
        let starts = self.is_trusted() && self.peer_direct.is_some();
        if starts {
            self.start_doubt(now, Why::Move);
        }
        starts
    }

    /// Our own network changed. Returns whether that starts a doubt.
    pub(super) fn rebind(&mut self, now: Instant) -> bool {
        let starts = self.is_trusted();
        if starts {
            self.start_doubt(now, Why::Rebind);
        }
        starts
    }

    /// A datagram has left on the path.
    pub(super) fn sent(&mut self, now: Instant) {
        if self.is_trusted() {
            let first = self.awaited.map_or(now, |a| a.first);
            self.awaited = Some(Awaited { first, last: now });
        }
    }

    fn patience(&self) -> Duration {
        let trip = self.best.map_or(Duration::ZERO, |b| b.smoothed.max(b.latency));
        (trip * 2 + ANSWER_SLACK).max(ANSWER_FLOOR)
    }

    fn start_doubt(&mut self, now: Instant, why: Why) {
        let needs_pong = match why {
            Why::Expired => false,
            Why::Silence => self.unproven,
            Why::Mirror | Why::Move | Why::Rebind => true,
        };
        self.awaited = None;
        self.doubt = Some(Doubt { why, since: now, needs_pong, probes: 0, next_probe: now });
    }

    /// When silence turns into doubt.
    pub(super) fn silence_at(&self) -> Option<Instant> {
        self.awaited.map(|a| a.first + self.patience() * (1 << self.unheard))
    }

    /// When trust runs out by itself.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.is_trusted().then(|| self.until + Duration::from_nanos(1))
    }

    /// When the doubted address is to be probed again.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.doubt.map(|d| d.next_probe)
    }

    /// Whether the silence is long enough to doubt the path; if so it is doubted from now on.
    pub(super) fn is_too_silent(&mut self, now: Instant) -> bool {
        let silent = self.silence_at().is_some_and(|at| at <= now);
        if silent {
            self.start_doubt(now, Why::Silence);
            self.unheard = (self.unheard + 1).min(UNHEARD_MAX);
        }
        silent
    }

    /// The doubted address to ping now, if it is time for it.
    pub(super) fn take_probe(&mut self, now: Instant) -> Option<SocketAddr> {
        let patience = self.patience();
        let doubt = self.doubt.as_mut().filter(|d| d.next_probe <= now)?;
        let pause = patience * (1 << doubt.probes.min(5));
        doubt.next_probe = now + pause.min(PROBE_MAX);
        doubt.probes += 1;
        self.addr()
    }

    /// Whether the doubt has lasted long enough to give the address up.
    pub(super) fn is_hopeless(&self, now: Instant) -> bool {
        self.doubt.is_some_and(|d| now - d.since >= DOUBT_LIMIT && d.probes >= DOUBT_PROBES)
    }

    /// Forgets the best address and all about it.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4)), 5);
    const B: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4)), 6);
    const RTT: Duration = ms(40);

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn at(n: u64) -> Instant {
        Instant::ZERO + ms(n)
    }

    /// Proven at 0 and used in both directions ever since.
    fn proven() -> Trust {
        let mut trust = Trust::default();
        assert!(trust.pong(at(0), A, RTT));
        trust.heard_on_path(at(0));
        trust
    }

    #[test]
    fn silence_counts_after_two_round_trips_and_slack() {
        let mut trust = proven();
        trust.sent(at(1_000));
        trust.sent(at(1_050));
        assert_eq!(trust.silence_at(), Some(at(1_120)));
        assert!(!trust.is_too_silent(at(1_119)));
        assert!(trust.is_trusted());
        assert!(trust.is_too_silent(at(1_120)));
        assert!(!trust.is_trusted());
        let mut near = Trust::default();
        near.pong(at(0), A, ms(1));
        near.sent(at(10));
        assert_eq!(near.silence_at(), Some(at(110)), "never sooner than 100 ms");
    }

    #[test]
    fn what_was_under_way_when_the_path_died_is_no_answer() {
        let mut trust = proven();
        trust.sent(at(1_000));
        trust.heard(at(1_019));
        assert_eq!(trust.silence_at(), Some(at(1_120)));
        trust.heard(at(1_040));
        assert_eq!(trust.silence_at(), None);
        trust.sent(at(2_000));
        trust.sent(at(2_035));
        trust.heard(at(2_041));
        assert_eq!(trust.silence_at(), Some(at(2_155)), "the answer to the first is none to the second");
    }

    #[test]
    fn a_peer_that_answers_pings_only_is_suspected_less_and_less_often() {
        let mut trust = proven();
        let mut suspected = Vec::new();
        for n in 100..1_000 {
            let now = at(n * 10);
            trust.sent(now);
            if trust.is_too_silent(now) {
                suspected.push(n * 10 - 1_000);
                trust.pong(now, A, RTT);
            }
        }
        assert_eq!(suspected, [120, 370, 860, 1_830, 3_760, 7_610]);
        trust.heard(at(10_100));
        trust.sent(at(11_000));
        assert_eq!(trust.silence_at(), Some(at(11_120)));
    }

    #[test]
    fn data_ends_a_silence_once_and_the_next_one_needs_a_pong() {
        let mut trust = proven();
        for round in [1_000, 2_000] {
            trust.sent(at(round));
            assert!(trust.is_too_silent(at(round + 200)));
            trust.heard_on_path(at(round + 300));
            assert_eq!(trust.is_trusted(), round == 1_000);
        }
        trust.pong(at(2_400), A, RTT);
        assert!(trust.is_trusted());
    }

    #[test]
    fn data_extends_trust_and_no_pong_is_needed() {
        let mut trust = proven();
        for second in 1..600 {
            trust.heard_on_path(at(second * 1_000));
            trust.settle(at(second * 1_000));
            assert!(trust.is_trusted());
        }
        trust.settle(at(599_000 + 6_500));
        assert!(trust.is_trusted());
        trust.settle(at(599_000 + 6_501));
        assert!(!trust.is_trusted());
    }

    #[test]
    fn data_from_elsewhere_counts_only_from_a_peer_whose_data_came_on_the_path() {
        let mut trust = Trust::default();
        trust.pong(at(0), A, RTT);
        assert!(!trust.heard_elsewhere(at(1)), "two ways that differ by direction");
        trust.heard_on_path(at(2));
        assert!(trust.heard_elsewhere(at(3)));
        trust.heard_on_path(at(4));
        assert!(!trust.is_trusted(), "late data proves nothing");
        trust.pong(at(5), A, RTT);
        assert!(trust.is_trusted() && !trust.heard_elsewhere(at(6)), "told once");
    }

    #[test]
    fn relayed_data_counts_only_from_a_peer_that_was_direct_before() {
        let mut trust = Trust::default();
        trust.pong(at(0), A, RTT);
        assert!(!trust.heard_by_relay(at(5_000)), "it never was");
        trust.heard_on_path(at(5_001));
        assert!(!trust.heard_by_relay(at(5_400)), "under way since before");
        assert!(trust.heard_by_relay(at(5_502)));
        trust.heard_on_path(at(5_510));
        assert!(!trust.is_trusted(), "data proves one direction only");
        trust.pong(at(5_540), A, RTT);
        assert!(trust.is_trusted());
        assert!(!trust.heard_by_relay(at(9_000)), "a pong has refuted it");
        trust.heard_on_path(at(9_000));
        assert!(!trust.heard_by_relay(at(9_900)), "and a second time it takes longer");
        assert!(trust.heard_by_relay(at(10_001)));
    }

    #[test]
    fn copies_by_relay_count_when_they_last() {
        let mut trust = proven();
        assert!(!trust.copy_by_relay(at(1_000)));
        assert!(!trust.copy_by_relay(at(1_150)));
        assert!(trust.copy_by_relay(at(1_151)));
        let mut trust = proven();
        for far in 1..9 {
            assert!(!trust.copy_by_relay(at(far * 2_001)), "each belongs to a doubt of its own");
        }
    }

    #[test]
    fn a_doubted_address_does_not_compete_with_a_slower_one_that_answers() {
        let mut trust = proven();
        assert!(!trust.pong(at(100), B, RTT * 4));
        trust.settle(at(6_600));
        assert!(trust.pong(at(6_700), B, RTT * 4));
        assert_eq!((trust.addr(), trust.is_trusted()), (Some(B), true));
    }

    #[test]
    fn probes_of_a_doubted_address_grow_apart_and_end_in_giving_up() {
        let mut trust = proven();
        trust.rebind(at(1_000));
        let mut probes = Vec::new();
        for n in 0..700 {
            let now = at(1_000 + n * 10);
            if trust.take_probe(now).is_some() {
                probes.push(n * 10);
            }
            assert_eq!(trust.is_hopeless(now), n >= 600, "{n}");
        }
        assert_eq!(probes, [0, 120, 360, 840, 1_800, 3_720, 6_720]);
    }
}
