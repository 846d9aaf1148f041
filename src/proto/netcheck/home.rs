//! The choice of the home relay (`stun-netcheck.md` §6).

use crate::{
    base::{Instant, RegionId},
    wire::derp::RelayMap,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Measurements count for this long.
pub(super) const HISTORY: Duration = Duration::from_secs(5 * 60);
/// A home that is slower by less than this stays.
const STICKY: Duration = Duration::from_millis(10);
/// Rounds of measurements that are kept at most.
const MAX_ROUNDS: usize = 64;

/// The home relay and the measurements behind it.
#[derive(Debug, Default)]
pub(super) struct HomeChoice {
    home: Option<RegionId>,
    rounds: VecDeque<(Instant, BTreeMap<RegionId, Duration>)>,
}

impl HomeChoice {
    pub(super) const fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// Takes a home without measurement: the embedded relay at the start, or any when nothing can be measured.
    pub(super) const fn set(&mut self, home: Option<RegionId>) {
        self.home = home;
    }

    /// Forgets all measurements: they were made on another network.
    pub(super) fn forget_rounds(&mut self) {
        self.rounds.clear();
    }

    /// Takes the latest round out and gives it back with a measurement that came too late for it. Alone, the slowest relay
    /// would look like the only one that answers.
    #[must_use]
    pub(super) fn with_late(&mut self, id: RegionId, latency: Duration) -> BTreeMap<RegionId, Duration> {
        let mut round = self.rounds.pop_back().map(|(_, round)| round).unwrap_or_default();
        round.insert(id, latency);
        round
    }

    /// Takes the round of measurements of one netcheck and chooses anew. Without any the home stays.
    pub(super) fn handle_round(&mut self, now: Instant, map: &RelayMap, round: &BTreeMap<RegionId, Duration>) {
        self.rounds.retain(|(at, _)| now - *at < HISTORY);
        if self.rounds.len() >= MAX_ROUNDS {
            self.rounds.pop_front();
        }
        self.rounds.push_back((now, round.clone()));
        let candidates = round.keys().filter(|id| map.regions.get(id).is_some_and(|r| r.relays().next().is_some()));
        let Some((best, new)) = candidates.map(|id| (self.best(map, *id), *id)).min() else { return };
        if let Some(old) = self.home
            && old != new
            && let Some(latency) = round.get(&old)
        {
            let latency = scaled(map, old, *latency);
            if latency.saturating_sub(best) < STICKY || best > latency / 3 * 2 {
                return;
            }
        }
        self.home = Some(new);
    }

    /// The latest measurement of every region within the history.
    pub(super) fn latest(&self, now: Instant) -> BTreeMap<RegionId, Duration> {
        let rounds = self.rounds.iter().filter(|(at, _)| now - *at < HISTORY);
        rounds.flat_map(|(_, round)| round).map(|(id, latency)| (*id, *latency)).collect()
    }

    fn best(&self, map: &RelayMap, id: RegionId) -> Duration {
        let best = self.rounds.iter().filter_map(|(_, round)| round.get(&id)).min();
        scaled(map, id, best.copied().unwrap_or(Duration::MAX))
    }
}

/// A latency times its region's factor, if the map has a sound one.
fn scaled(map: &RelayMap, id: RegionId, latency: Duration) -> Duration {
    match map.home_scores.get(&id) {
        Some(score) if *score > 0.0 => Duration::try_from_secs_f64(latency.as_secs_f64() * score).unwrap_or(Duration::MAX),
        _ => latency,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::derp::{Region, RelayNode};

    fn id(n: u16) -> RegionId {
        RegionId::new(n).unwrap()
    }

    fn map(stun_only: &[u16], scores: &[(u16, f64)]) -> RelayMap {
        let region = |n: u16| Region {
            nodes: vec![RelayNode { stun_only: stun_only.contains(&n), ..RelayNode::default() }],
            ..Region::default()
        };
        RelayMap {
            regions: (1..4).map(|n| (id(n), region(n))).collect(),
            home_scores: scores.iter().map(|(n, score)| (id(*n), *score)).collect(),
        }
    }

    /// The home after reports given as (second, [(region, milliseconds)]).
    fn home(map: &RelayMap, reports: &[(u64, &[(u16, u64)])]) -> Option<u16> {
        let mut choice = HomeChoice::default();
        for (second, round) in reports {
            let round = round.iter().map(|(n, ms)| (id(*n), Duration::from_millis(*ms))).collect();
            choice.handle_round(Instant::ZERO + Duration::from_secs(*second), map, &round);
        }
        choice.home().map(RegionId::get)
    }

    #[test]
    fn homes_are_chosen_as_by_go() {
        let plain = map(&[], &[]);
        let a: &[(u16, u64)] = &[(1, 2_000), (2, 3_000)];
        let b: &[(u16, u64)] = &[(1, 4_000), (2, 3_000)];
        assert_eq!(home(&plain, &[(0, a)]), Some(1));
        assert_eq!(home(&plain, &[(0, a), (1, b)]), Some(1));
        assert_eq!(home(&plain, &[(0, a), (1, b), (2, &[(2, 3_000)])]), Some(2));
        assert_eq!(home(&plain, &[(0, a), (1, b), (2, &[(2, 3_000)]), (3, b)]), Some(1));
        let c: &[(u16, u64)] = &[(1, 1_000), (2, 2_000)];
        assert_eq!(home(&plain, &[(0, c), (1, c), (2, c), (3, c), (600, &[(3, 3_000)])]), Some(3));
        assert_eq!(home(&plain, &[(0, &[(1, 4_000), (2, 5_000)]), (1, &[(1, 4_000), (2, 3_000)])]), Some(1));
        assert_eq!(home(&plain, &[(0, &[(1, 4), (2, 5)]), (1, &[(1, 4), (2, 1)])]), Some(1));
        assert_eq!(home(&plain, &[(0, &[(1, 4_000), (2, 5_000)]), (1, &[(1, 4_000), (2, 1_000)])]), Some(2));
        let scored = map(&[], &[(1, 2.0 / 3.0)]);
        assert_eq!(home(&scored, &[(0, &[(1, 10_000), (2, 8_000)])]), Some(1));
        assert_eq!(home(&scored, &[(0, &[(1, 100_000), (2, 10_000)])]), Some(2));
        assert_eq!(home(&map(&[], &[(1, 0.0), (2, -1.0)]), &[(0, &[(1, 4_000), (2, 5_000)])]), Some(1));
        assert_eq!(home(&map(&[2], &[]), &[(0, &[(1, 4_000), (2, 2_000)])]), Some(1));
    }

    #[test]
    fn a_latency_of_long_ago_holds_no_home() {
        let reports: &[(u64, &[(u16, u64)])] = &[(0, &[(1, 100), (2, 10)]), (600, &[(1, 20), (2, 100)])];
        assert_eq!(home(&map(&[], &[]), reports), Some(1));
    }

    #[test]
    fn a_round_without_measurements_leaves_the_home() {
        assert_eq!(home(&map(&[], &[]), &[(0, &[(2, 5)]), (400, &[])]), Some(2));
    }

    #[test]
    fn the_latest_measurement_of_each_region_is_told_until_it_is_old() {
        let mut choice = HomeChoice::default();
        let map = map(&[], &[]);
        let at = |s| Instant::ZERO + Duration::from_secs(s);
        choice.handle_round(at(0), &map, &[(id(1), Duration::from_millis(7)), (id(2), Duration::from_millis(9))].into());
        choice.handle_round(at(200), &map, &[(id(2), Duration::from_millis(3))].into());
        assert_eq!(choice.latest(at(200))[&id(1)], Duration::from_millis(7));
        assert_eq!(choice.latest(at(200))[&id(2)], Duration::from_millis(3));
        assert!(!choice.latest(at(300)).contains_key(&id(1)));
    }
}
