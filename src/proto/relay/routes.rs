//! Which regions a node is connected to, and through which one a peer is reached (`path-selection.md` §7).
//!
//! ```text
//! absent ──want / home──► opening ──up──► up ──60 s without a write, not home──► absent (Close)
//!                            ▲  └─down─┐   └─down─┐
//!                            └─ back-off ◄────────┘   (not wanted any more: absent)
//! ```
//! The home relay is opened as soon as it is known and kept; it is where peers look for us. A peer is reached through
//! its own home relay, or, while that is not up, through the one on which it spoke last. Nothing here carries packets:
//! the owner opens and closes connections as [`Action`]s say and reports what became of them. A connection closed
//! because of [`Action::Close`] is not reported down.

use crate::{
    base::{Deadline, Instant, NodeKey, RegionId, Rng},
    wire::derp::{Region, RelayMap},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// How long a region that is not home stays open without a write.
const IDLE: Duration = Duration::from_secs(60);
/// The n-th attempt after a failure waits n² times this, at most [`BACKOFF_MAX`], times 0.5 to 1.5.
const BACKOFF_UNIT: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A connection that lived so long ends a series of failures. One that dies at once must not be redialled without pause.
const STABLE: Duration = Duration::from_secs(10);
/// How many routes are learned at most; beyond it peers are reached through their home relays.
const MAX_ROUTES: usize = 16_384;

/// What the owner is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Connect to a region and log in; tell it whether it is our home.
    Open {
        /// The region.
        region: RegionId,
        /// Whether it is home.
        preferred: bool,
    },
    /// Close the connection, or stop opening it. Nothing is to be reported of it any more.
    Close {
        /// The region.
        region: RegionId,
    },
    /// Tell an open connection whether it is our home.
    NotePreferred {
        /// The region.
        region: RegionId,
        /// Whether it is home.
        preferred: bool,
    },
    /// Ask an open connection for a sign of life within [`PING_LIMIT`](super::client::PING_LIMIT); it is down without one.
    Ping {
        /// The region.
        region: RegionId,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Up { since: Instant },
    BackOff { until: Instant },
}

#[derive(Debug)]
struct Connection {
    state: State,
    /// Failures in a row.
    failures: u32,
    last_write: Instant,
}

/// The relay connections of one node.
#[derive(Debug)]
pub struct Relays {
    rng: Rng,
    /// The regions that have a relay, as the last map defined them.
    regions: BTreeMap<RegionId, Region>,
    home: Option<RegionId>,
    connections: BTreeMap<RegionId, Connection>,
    /// Through which open connection a peer spoke last.
    routes: BTreeMap<NodeKey, RegionId>,
    actions: VecDeque<Action>,
}

impl Relays {
    /// Without map and home: nothing is opened.
    #[must_use]
    pub const fn new(rng: Rng) -> Self {
        Self {
            rng,
            regions: BTreeMap::new(),
            home: None,
            connections: BTreeMap::new(),
            routes: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Takes a new map over. Connections to regions that it defines otherwise are closed and, where wanted, opened anew.
    pub fn set_relay_map(&mut self, now: Instant, map: &RelayMap) {
        let regions: BTreeMap<_, _> = map
            .regions
            .iter()
            .filter(|(_, region)| region.relays().next().is_some())
            .map(|(id, region)| (*id, region.clone()))
            .collect();
        let changed: Vec<_> = self.connections.keys().copied().filter(|id| regions.get(id) != self.regions.get(id)).collect();
        self.regions = regions;
        for id in changed {
            let wanted = self.is_wanted(now, id);
            self.close(id);
            if wanted {
                self.open(now, id);
            }
        }
        if let Some(home) = self.home {
            self.open(now, home);
        }
    }

    /// Sets the home relay and opens it. The old one stays for a while: peers still look for us there.
    pub fn set_home(&mut self, now: Instant, home: RegionId) {
        let old = self.home.replace(home);
        if old == Some(home) {
            return;
        }
        for region in old.into_iter().chain([home]) {
            self.handle_sent(now, region);
            if self.is_up(region) {
                self.actions.push_back(Action::NotePreferred { region, preferred: home == region });
            }
        }
        self.open(now, home);
    }

    /// The home relay.
    #[must_use]
    pub const fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// Asks for a connection to `region`, or notes that it is still of use.
    pub fn want(&mut self, now: Instant, region: RegionId) {
        match self.connections.get_mut(&region) {
            Some(connection) => connection.last_write = now,
            None => self.open(now, region),
        }
    }

    /// A packet has gone out through `region`.
    pub fn handle_sent(&mut self, now: Instant, region: RegionId) {
        if let Some(connection) = self.connections.get_mut(&region) {
            connection.last_write = now;
        }
    }

    /// The connection to `region` is ready for packets.
    pub fn handle_up(&mut self, now: Instant, region: RegionId) {
        let preferred = self.home == Some(region);
        if let Some(connection) = self.connections.get_mut(&region)
            && connection.state == State::Opening
        {
            connection.state = State::Up { since: now };
            // The home may have changed while it was opened.
            self.actions.push_back(Action::NotePreferred { region, preferred });
        }
    }

    /// The connection to `region` broke or could not be made.
    pub fn handle_down(&mut self, now: Instant, region: RegionId) {
        self.forget_routes(region);
        let wanted = self.is_wanted(now, region);
        let Some(connection) = self.connections.get_mut(&region) else { return };
        if !wanted {
            self.connections.remove(&region);
            return;
        }
        if let State::Up { since } = connection.state
            && now - since >= STABLE
        {
            connection.failures = 0;
        }
        connection.failures = connection.failures.saturating_add(1);
        let wait = BACKOFF_UNIT.saturating_mul(connection.failures.saturating_pow(2)).min(BACKOFF_MAX);
        let wait = self.rng.between(wait / 2, wait + wait / 2);
        connection.state = State::BackOff { until: now + wait };
    }

    /// A packet of a known peer came through `region`: it can be reached there. Tells whether that is new.
    pub fn handle_packet(&mut self, region: RegionId, from: NodeKey) -> bool {
        match self.routes.get(&from) {
            Some(route) if *route == region => false,
            _ if !self.is_up(region) => false,
            None if self.routes.len() >= MAX_ROUTES => false,
            _ => {
                self.routes.insert(from, region);
                true
            }
        }
    }

    /// The relay of `region` cannot reach a peer any more.
    pub fn handle_peer_gone(&mut self, region: RegionId, peer: &NodeKey) {
        if self.routes.get(peer) == Some(&region) {
            self.routes.remove(peer);
        }
    }

    /// Forgets a peer.
    pub fn remove_peer(&mut self, peer: &NodeKey) {
        self.routes.remove(peer);
    }

    /// The region through which to reach `peer`, whose home relay is `home`. [`want`](Self::want) it before use.
    #[must_use]
    pub fn route(&self, peer: &NodeKey, home: Option<RegionId>) -> Option<RegionId> {
        let home = home.filter(|id| self.regions.contains_key(id));
        match home {
            Some(home) if self.is_up(home) => Some(home),
            _ => self.routes.get(peer).copied().or(home),
        }
    }

    /// Whether packets can go through `region` now.
    #[must_use]
    pub fn is_up(&self, region: RegionId) -> bool {
        self.connections.get(&region).is_some_and(|c| matches!(c.state, State::Up { .. }))
    }

    /// The network changed: what waits after failures is tried at once, what is up must prove that it still is. A
    /// connection from an address that is gone breaks without a word.
    pub fn handle_link_change(&mut self, now: Instant) {
        for (&region, connection) in &mut self.connections {
            connection.failures = 0;
            match &mut connection.state {
                State::BackOff { until } => *until = now,
                State::Up { .. } => self.actions.push_back(Action::Ping { region }),
                // A dial has a limit of its own.
                State::Opening => {}
            }
        }
        self.handle_timeout(now);
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Looks at the clock: opens what has waited, closes what is idle.
    pub fn handle_timeout(&mut self, now: Instant) {
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            let wanted = self.is_wanted(now, id);
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if !wanted {
                self.close(id);
            } else if let State::BackOff { until } = connection.state
                && until <= now
            {
                connection.state = State::Opening;
                self.actions.push_back(Action::Open { region: id, preferred: self.home == Some(id) });
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let connections = || self.connections.iter();
        let idle = connections()
            .filter(|(id, _)| self.home != Some(**id))
            .map(|(_, c)| Deadline { at: c.last_write + IDLE, why: "relay idle" });
        let back_off = connections().filter_map(|(_, c)| match c.state {
            State::BackOff { until } => Some(Deadline { at: until, why: "relay back-off" }),
            State::Opening | State::Up { .. } => None,
        });
        idle.chain(back_off).min()
    }

    fn is_wanted(&self, now: Instant, id: RegionId) -> bool {
        self.home == Some(id) || self.connections.get(&id).is_some_and(|c| c.last_write + IDLE > now)
    }

    fn open(&mut self, now: Instant, id: RegionId) {
        if !self.regions.contains_key(&id) || self.connections.contains_key(&id) {
            return;
        }
        self.connections.insert(id, Connection { state: State::Opening, failures: 0, last_write: now });
        self.actions.push_back(Action::Open { region: id, preferred: self.home == Some(id) });
    }

    fn close(&mut self, id: RegionId) {
        self.forget_routes(id);
        if let Some(connection) = self.connections.remove(&id)
            && !matches!(connection.state, State::BackOff { .. })
        {
            self.actions.push_back(Action::Close { region: id });
        }
    }

    fn forget_routes(&mut self, id: RegionId) {
        self.routes.retain(|_, region| *region != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::derp::RelayNode;

    fn ms(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn secs(s: u64) -> Instant {
        ms(s * 1_000)
    }

    fn id(n: u16) -> RegionId {
        RegionId::new(n).unwrap()
    }

    fn map(hosts: &[(u16, &str)]) -> RelayMap {
        let region = |host: &str| Region {
            nodes: vec![RelayNode { host: host.to_owned(), stun_only: host == "stun", ..RelayNode::default() }],
            ..Region::default()
        };
        RelayMap { regions: hosts.iter().map(|(n, host)| (id(*n), region(host))).collect(), ..RelayMap::default() }
    }

    fn relays() -> Relays {
        let mut r = Relays::new(Rng::from_u64(1));
        r.set_relay_map(secs(0), &map(&[(1, "a"), (2, "b"), (3, "stun")]));
        r
    }

    fn actions(r: &mut Relays) -> Vec<Action> {
        std::iter::from_fn(|| r.poll_action()).collect()
    }

    fn open(n: u16, preferred: bool) -> Action {
        Action::Open { region: id(n), preferred }
    }

    fn note(n: u16, preferred: bool) -> Action {
        Action::NotePreferred { region: id(n), preferred }
    }

    const PEER: [u8; 32] = [9; 32];

    #[test]
    fn the_home_relay_is_opened_at_once_and_never_idle() {
        let mut r = relays();
        assert!(actions(&mut r).is_empty());
        r.set_home(secs(0), id(1));
        assert_eq!(actions(&mut r), [open(1, true)]);
        r.handle_up(secs(1), id(1));
        assert_eq!(actions(&mut r), [note(1, true)]);
        assert_eq!(r.poll_timeout(), None);
        r.handle_timeout(secs(10_000));
        assert!(r.is_up(id(1)) && actions(&mut r).is_empty());
    }

    #[test]
    fn another_relay_closes_sixty_seconds_after_its_last_write() {
        let mut r = relays();
        r.want(secs(0), id(2));
        assert_eq!(actions(&mut r), [open(2, false)]);
        r.handle_up(secs(1), id(2));
        actions(&mut r);
        r.handle_sent(secs(30), id(2));
        assert_eq!(r.poll_timeout().unwrap().at, secs(90));
        r.handle_timeout(secs(89));
        assert!(actions(&mut r).is_empty());
        r.handle_timeout(secs(90));
        assert_eq!(actions(&mut r), [Action::Close { region: id(2) }]);
        assert_eq!(r.poll_timeout(), None);
    }

    #[test]
    fn a_region_without_a_relay_is_never_opened_nor_a_route() {
        let mut r = relays();
        for n in [3, 77] {
            r.want(secs(0), id(n));
            r.set_home(secs(0), id(n));
            assert_eq!(r.route(&PEER.into(), Some(id(n))), None);
        }
        assert!(actions(&mut r).is_empty());
    }

    #[test]
    fn failures_wait_longer_and_longer_up_to_the_limit() {
        let mut r = relays();
        r.set_home(secs(0), id(1));
        actions(&mut r);
        let (mut now, mut waits) = (secs(0), Vec::new());
        for _ in 0..40 {
            r.handle_down(now, id(1));
            let due = r.poll_timeout().unwrap().at;
            waits.push(due - now);
            r.handle_timeout(due);
            assert_eq!(actions(&mut r), [open(1, true)]);
            now = due;
        }
        for (n, wait) in (1u32..).zip(&waits) {
            let base = (BACKOFF_UNIT * n * n).min(BACKOFF_MAX);
            assert!((base / 2..=base * 3 / 2).contains(wait), "{n}: {wait:?}");
        }
    }

    #[test]
    fn a_connection_that_lived_ends_the_series_of_failures_and_one_that_died_at_once_does_not() {
        for (lived, most) in [(1, 240), (10, 15)] {
            let mut r = relays();
            r.set_home(secs(0), id(1));
            for _ in 0..3 {
                r.handle_down(secs(1), id(1));
                r.handle_timeout(secs(2));
            }
            r.handle_up(secs(2), id(1));
            r.handle_down(secs(2 + lived), id(1));
            let wait = r.poll_timeout().unwrap().at - secs(2 + lived);
            assert!(wait <= Duration::from_millis(most) && (lived == 10) == (wait < Duration::from_millis(80)), "{wait:?}");
        }
    }

    #[test]
    fn a_lost_relay_that_nobody_wants_is_not_opened_again() {
        let mut r = relays();
        r.want(secs(0), id(2));
        r.handle_up(secs(0), id(2));
        actions(&mut r);
        r.handle_down(secs(61), id(2));
        assert_eq!(r.poll_timeout(), None);
        assert!(actions(&mut r).is_empty());
    }

    #[test]
    fn a_peer_is_reached_by_its_home_relay_or_where_it_spoke_last() {
        let mut r = relays();
        let peer = NodeKey::from(PEER);
        assert_eq!(r.route(&peer, None), None);
        assert_eq!(r.route(&peer, Some(id(2))), Some(id(2)));
        r.set_home(secs(0), id(1));
        r.handle_up(secs(0), id(1));
        assert!(r.handle_packet(id(1), peer));
        assert!(!r.handle_packet(id(1), peer));
        assert_eq!(r.route(&peer, Some(id(2))), Some(id(1)));
        r.want(secs(0), id(2));
        assert_eq!(r.route(&peer, Some(id(2))), Some(id(1)));
        r.handle_up(secs(0), id(2));
        assert_eq!(r.route(&peer, Some(id(2))), Some(id(2)));
        r.handle_down(secs(0), id(2));
        assert_eq!(r.route(&peer, Some(id(2))), Some(id(1)));
    }

    #[test]
    fn no_more_routes_are_learned_than_fit() {
        let mut r = relays();
        r.set_home(secs(0), id(1));
        r.handle_up(secs(0), id(1));
        let peer = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            NodeKey::from(key)
        };
        assert!((0..MAX_ROUTES).all(|n| r.handle_packet(id(1), peer(n))));
        assert!(!r.handle_packet(id(1), peer(MAX_ROUTES)));
        r.remove_peer(&peer(0));
        assert!(r.handle_packet(id(1), peer(MAX_ROUTES)));
    }

    #[test]
    fn a_learned_route_goes_with_its_connection_or_when_the_relay_says_so() {
        let mut r = relays();
        let peer = NodeKey::from(PEER);
        r.set_home(secs(0), id(1));
        r.handle_up(secs(0), id(1));
        r.handle_packet(id(1), peer);
        r.handle_peer_gone(id(2), &peer);
        assert_eq!(r.route(&peer, None), Some(id(1)));
        r.handle_peer_gone(id(1), &peer);
        assert_eq!(r.route(&peer, None), None);
        r.handle_packet(id(1), peer);
        r.handle_down(secs(1), id(1));
        assert_eq!(r.route(&peer, None), None);
        // What still comes out of the broken connection teaches nothing.
        r.handle_packet(id(1), peer);
        assert_eq!(r.route(&peer, None), None);
    }

    #[test]
    fn a_change_of_home_is_told_to_both_and_the_old_one_stays_for_a_minute() {
        let mut r = relays();
        r.set_home(secs(0), id(1));
        r.handle_up(secs(0), id(1));
        actions(&mut r);
        r.set_home(secs(1_000), id(2));
        assert_eq!(actions(&mut r), [note(1, false), open(2, true)]);
        r.handle_timeout(secs(1_059));
        assert!(actions(&mut r).is_empty());
        r.handle_timeout(secs(1_060));
        assert_eq!(actions(&mut r), [Action::Close { region: id(1) }]);
    }

    #[test]
    fn a_region_defined_anew_is_closed_and_opened_again_and_a_vanished_one_closed() {
        let mut r = relays();
        r.set_home(secs(0), id(1));
        r.want(secs(0), id(2));
        actions(&mut r);
        r.set_relay_map(secs(1), &map(&[(1, "a"), (2, "b")]));
        assert!(actions(&mut r).is_empty());
        r.set_relay_map(secs(1), &map(&[(1, "other"), (2, "b")]));
        assert_eq!(actions(&mut r), [Action::Close { region: id(1) }, open(1, true)]);
        r.set_relay_map(secs(1), &map(&[(1, "other")]));
        assert_eq!(actions(&mut r), [Action::Close { region: id(2) }]);
    }

    #[test]
    fn a_link_change_ends_all_waiting() {
        let mut r = relays();
        r.set_home(secs(0), id(1));
        actions(&mut r);
        for _ in 0..9 {
            r.handle_down(secs(0), id(1));
        }
        r.handle_link_change(secs(0));
        assert_eq!(actions(&mut r), [open(1, true)]);
        r.handle_down(secs(0), id(1));
        assert!(r.poll_timeout().unwrap().at - secs(0) <= BACKOFF_UNIT * 3 / 2, "the series of failures is over too");
    }

    #[test]
    fn a_link_change_asks_every_connection_that_is_up_for_a_sign_of_life() {
        let mut r = relays();
        r.set_home(secs(0), id(1));
        r.want(secs(0), id(2));
        r.handle_up(secs(0), id(1));
        actions(&mut r);
        r.handle_link_change(secs(1));
        assert_eq!(actions(&mut r), [Action::Ping { region: id(1) }]);
    }
}
