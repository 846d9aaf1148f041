//! One peer: discovery, heartbeat and the choice of a lane (`path-selection.md` §2–§5).

use super::candidates::{Candidates, PING_GAP};
use super::trust::Trust;
use super::{Choice, Counters, Event, PathState, PeerAddrs};
use crate::base::{DiscoKey, DiscoSecret, Instant, Lane, NodeKey, PeerIx, RegionId, Rng};
use crate::wire::disco::{Message, SharedKey, TxId};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

/// Nothing sent for this long: the session is idle, and disco is silent.
const ACTIVE: Duration = Duration::from_secs(45);
const HEARTBEAT: Duration = Duration::from_secs(3);
/// With a working path, how often a better one is looked for.
const UPGRADE: Duration = Duration::from_secs(60);
/// At or below this nothing better is looked for.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// An unanswered ping is forgotten.
const PING_LIFE: Duration = Duration::from_secs(5);
/// Our own addresses must be this young to be told to a peer.
const FRESH: Duration = Duration::from_secs(27);
/// How long a call-me-maybe waits for them before it goes out with what there is.
const REFRESH_LIMIT: Duration = Duration::from_secs(3);
/// A peer's calls reset the gap between pings at most this often.
const CALL_GAP: Duration = Duration::from_millis(500);
/// Addresses bound to one peer.
const MAX_BOUND: usize = 64;
/// Pings of people that wait for a pong.
const MAX_TOKENS: usize = 64;
const TOKEN_LIFE: Duration = Duration::from_secs(30);
/// Datagrams that wait for the owner; it drains them each turn.
const MAX_TRANSMITS: usize = 4_096;

/// What all peers of a node share.
pub(super) struct Shared {
    pub(super) secret: DiscoSecret,
    pub(super) key: DiscoKey,
    pub(super) node: NodeKey,
    pub(super) rng: Rng,
    pub(super) direct: bool,
    pub(super) own: Vec<SocketAddr>,
    pub(super) own_at: Option<Instant>,
    pub(super) asked_at: Option<Instant>,
    pub(super) transmits: VecDeque<(Lane, Vec<u8>)>,
    pub(super) events: VecDeque<Event>,
    pub(super) counters: Counters,
}

impl Shared {
    fn send(&mut self, key: &SharedKey, lane: Lane, message: &Message) {
        if self.transmits.len() >= MAX_TRANSMITS {
            self.counters.overflow += 1;
            return;
        }
        let mut packet = Vec::new();
        key.seal(self.key, self.rng.bytes(), message, &mut packet);
        self.transmits.push_back((lane, packet));
    }

    /// Whether our own addresses are young enough to be told; if not the owner is asked for them.
    fn has_fresh_endpoints(&mut self, now: Instant) -> bool {
        if self.own_at.is_some_and(|at| now - at <= FRESH) {
            return true;
        }
        if self.asked_at.is_none_or(|at| now - at >= REFRESH_LIMIT) {
            self.asked_at = Some(now);
            self.events.push_back(Event::WantEndpoints);
        }
        false
    }
}

/// A ping that waits for its pong.
#[derive(Debug, Clone, Copy)]
struct Outstanding {
    lane: Lane,
    at: Instant,
}

pub(super) struct Peer {
    pub(super) ix: PeerIx,
    pub(super) node: NodeKey,
    pub(super) disco: DiscoKey,
    pub(super) shared_key: SharedKey,
    pub(super) trust: Trust,
    pub(super) candidates: Candidates,
    /// Source addresses that disco has tied to this peer.
    pub(super) bound: BTreeSet<SocketAddr>,
    /// The entry in the owner's timer queue: never later than [`Peer::due`].
    pub(super) scheduled: Option<Instant>,
    home: Option<RegionId>,
    route: Option<RegionId>,
    endpoints: Vec<SocketAddr>,
    reported: (PathState, Option<SocketAddr>),
    pings: BTreeMap<TxId, Outstanding>,
    /// When the oldest of them is forgotten.
    pings_end: Option<Instant>,
    tokens: Vec<(u64, Instant)>,
    last_send: Option<Instant>,
    last_full_ping: Option<Instant>,
    heartbeat: Option<Instant>,
    /// When the next full ping would ping anybody.
    discovery: Instant,
    last_call: Option<Instant>,
    /// A call-me-maybe waits for our own addresses, at most until then.
    call_waits: Option<Instant>,
    last_called: Option<Instant>,
    last_relay_tx: Option<TxId>,
}

impl Peer {
    pub(super) fn new(shared: &Shared, ix: PeerIx, addrs: PeerAddrs, now: Instant) -> Self {
        let mut peer = Self {
            ix,
            node: addrs.node,
            disco: addrs.disco,
            shared_key: SharedKey::new(&shared.secret, &addrs.disco),
            trust: Trust::default(),
            candidates: Candidates::default(),
            bound: BTreeSet::new(),
            scheduled: None,
            home: addrs.home,
            route: None,
            endpoints: addrs.endpoints,
            reported: (PathState::None, None),
            pings: BTreeMap::new(),
            pings_end: None,
            tokens: Vec::new(),
            last_send: None,
            last_full_ping: None,
            heartbeat: None,
            discovery: now,
            last_call: None,
            call_waits: None,
            last_called: None,
            last_relay_tx: None,
        };
        if shared.direct {
            peer.candidates.set_map(now, &peer.endpoints, None);
        }
        peer
    }

    /// Takes what the coordinator now says of the same peer.
    pub(super) fn update(&mut self, now: Instant, shared: &mut Shared, addrs: PeerAddrs) {
        self.home = addrs.home;
        self.endpoints = addrs.endpoints;
        if shared.direct && self.candidates.set_map(now, &self.endpoints, self.trust.addr()) {
            self.discover_soon(now, shared);
        }
    }

    pub(super) fn set_route(&mut self, route: Option<RegionId>) {
        self.route = route;
    }

    pub(super) fn route(&self) -> Option<RegionId> {
        self.route
    }

    fn relay(&self) -> Option<Lane> {
        self.route.or(self.home).map(|region| Lane::Relay { region, to: self.node })
    }

    fn is_active(&self) -> bool {
        self.heartbeat.is_some()
    }

    // --- choosing -----------------------------------------------------------------------------------------------

    pub(super) fn choose(&mut self, now: Instant, shared: &mut Shared) -> Choice {
        self.trust.settle(now);
        self.report(shared);
        let direct = self.trust.addr().map(Lane::udp);
        match (direct, self.trust.is_trusted()) {
            (Some(direct), true) => Choice { first: Some(direct), second: None },
            (Some(direct), false) => Choice { first: Some(direct), second: self.relay() },
            (None, _) => Choice { first: self.relay(), second: None },
        }
    }

    pub(super) fn state(&self) -> (PathState, Option<Lane>) {
        let lane = match self.reported.0 {
            PathState::None => None,
            PathState::Relay => self.relay(),
            PathState::Direct | PathState::Doubtful => self.trust.addr().map(Lane::udp),
        };
        (self.reported.0, lane)
    }

    pub(super) fn report(&mut self, shared: &mut Shared) {
        let addr = self.trust.addr();
        let state = match (addr, self.trust.is_trusted()) {
            (Some(_), true) => PathState::Direct,
            (Some(_), false) => PathState::Doubtful,
            (None, _) if self.relay().is_some() => PathState::Relay,
            (None, _) => PathState::None,
        };
        let from = self.reported.0;
        if std::mem::replace(&mut self.reported, (state, addr)) != (state, addr) {
            let (_, lane) = self.state();
            tracing::trace!(node = %self.node, disco = %self.disco, ?from, to = ?state, ?lane, "another path");
            shared.events.push_back(Event::PathChanged { peer: self.ix, from, to: state, lane });
        }
    }

    // --- traffic ------------------------------------------------------------------------------------------------

    pub(super) fn handle_sent(&mut self, now: Instant, shared: &mut Shared, via_direct: bool, expects_answer: bool) {
        self.note_activity(now, shared);
        if via_direct && expects_answer {
            self.trust.sent(now);
        }
    }

    /// Starts the heartbeat and, where the path is not direct, discovery.
    fn note_activity(&mut self, now: Instant, shared: &mut Shared) {
        self.last_send = Some(now);
        if self.heartbeat.is_none() {
            self.heartbeat = Some(now + HEARTBEAT);
        }
        self.trust.settle(now);
        self.seek(now, shared);
    }

    /// Without a trusted path: probes the doubted one and pings the candidates whose turn it is.
    fn seek(&mut self, now: Instant, shared: &mut Shared) {
        if self.trust.is_trusted() {
            return;
        }
        self.probe(now, shared);
        if now >= self.discovery {
            self.full_ping(now, shared, true);
        }
    }

    /// WireGuard has authenticated a datagram from the peer.
    pub(super) fn handle_heard(&mut self, now: Instant, shared: &mut Shared, direct: Option<SocketAddr>, data: bool) {
        self.trust.heard(now);
        let starts_doubt = match direct {
            _ if !data => false,
            None => self.trust.heard_by_relay(now),
            Some(from) if self.trust.addr() == Some(from) => {
                self.trust.heard_on_path(now);
                false
            }
            Some(from) => self.handle_foreign(now, shared, from),
        };
        if starts_doubt {
            self.suspect(now, shared);
        }
    }

    /// Data from an address that is not the one in use. It moves nothing; a ping will tell whether it could.
    fn handle_foreign(&mut self, now: Instant, shared: &mut Shared, from: SocketAddr) -> bool {
        if !shared.direct {
            return false;
        }
        let is_new = self.candidates.heard_data(now, from, self.trust.addr());
        let starts = if is_new { self.trust.heard_from_stranger(now) } else { self.trust.heard_elsewhere(now) };
        if is_new || starts {
            self.ping(now, shared, Lane::udp(from));
        }
        starts
    }

    /// A copy of an earlier datagram came by relay.
    pub(super) fn handle_copy(&mut self, now: Instant, shared: &mut Shared) {
        if self.trust.copy_by_relay(now) {
            self.suspect(now, shared);
        }
    }

    pub(super) fn rebind(&mut self, now: Instant, shared: &mut Shared) {
        self.candidates.forget_pings();
        self.discovery = now;
        if self.trust.rebind(now) && self.is_active() {
            self.suspect(now, shared);
        } else if self.is_active() {
            self.full_ping(now, shared, true);
        }
    }

    /// The path has just fallen into doubt by evidence: probe it and let the flows repeat what may be lost.
    fn suspect(&mut self, now: Instant, shared: &mut Shared) {
        shared.events.push_back(Event::Suspect { peer: self.ix });
        shared.counters.suspicions += 1;
        self.discovery = self.candidates.next_due(now);
        if self.heartbeat.is_none() {
            self.last_send = Some(now);
            self.heartbeat = Some(now + HEARTBEAT);
        }
        self.seek(now, shared);
    }

    // --- discovery ----------------------------------------------------------------------------------------------

    fn ping(&mut self, now: Instant, shared: &mut Shared, lane: Lane) {
        let tx = TxId(shared.rng.bytes());
        if let Lane::Udp { to, .. } = lane {
            self.candidates.note_ping(now, &to);
        }
        self.pings.insert(tx, Outstanding { lane, at: now });
        self.pings_end.get_or_insert(now + PING_LIFE);
        shared.counters.pings_sent += 1;
        shared.send(&self.shared_key, lane, &Message::Ping { tx, node: Some(shared.node) });
    }

    /// Pings the doubted address if it is time for it.
    fn probe(&mut self, now: Instant, shared: &mut Shared) {
        if let Some(addr) = self.trust.take_probe(now) {
            self.ping(now, shared, Lane::udp(addr));
        }
    }

    /// Pings every candidate that has not been pinged lately.
    pub(super) fn full_ping(&mut self, now: Instant, shared: &mut Shared, call: bool) {
        self.last_full_ping = Some(now);
        self.candidates.prune(now, self.trust.addr());
        let due = self.candidates.due(now);
        for addr in &due {
            self.ping(now, shared, Lane::udp(*addr));
        }
        self.discovery = self.candidates.next_due(now);
        // Without a candidate of the peer there is all the more reason to tell it ours.
        if call && (!due.is_empty() || self.candidates.is_empty()) {
            self.call(now, shared);
        }
    }

    /// Full ping at once if anything is being sent, else with the next packet.
    fn discover_soon(&mut self, now: Instant, shared: &mut Shared) {
        self.discovery = now;
        if self.is_active() && !self.trust.is_trusted() {
            self.full_ping(now, shared, true);
        }
    }

    /// Sends a call-me-maybe, or has it wait for our own addresses.
    fn call(&mut self, now: Instant, shared: &mut Shared) {
        if !shared.direct || self.call_waits.is_some() || self.last_call.is_some_and(|at| now - at < PING_GAP) {
            return;
        }
        if shared.has_fresh_endpoints(now) {
            self.send_call(now, shared);
        } else {
            self.call_waits = Some(now + REFRESH_LIMIT);
        }
    }

    fn send_call(&mut self, now: Instant, shared: &mut Shared) {
        self.call_waits = None;
        let Some(relay) = self.relay() else { return };
        self.last_call = Some(now);
        shared.counters.calls_sent += 1;
        let endpoints = if shared.direct { shared.own.clone() } else { Vec::new() };
        shared.send(&self.shared_key, relay, &Message::CallMeMaybe { endpoints });
    }

    /// Our own addresses were found out anew.
    pub(super) fn handle_own_endpoints(&mut self, now: Instant, shared: &mut Shared, changed: bool) {
        if self.call_waits.is_some() || (changed && self.is_active() && !self.trust.is_trusted()) {
            self.send_call(now, shared);
        }
    }

    pub(super) fn set_direct_allowed(&mut self, now: Instant, shared: &mut Shared) {
        if shared.direct {
            self.candidates.set_map(now, &self.endpoints, None);
            self.discover_soon(now, shared);
            return;
        }
        self.candidates.clear();
        self.trust.clear();
        self.pings.retain(|_, ping| ping.lane.is_relay());
        self.call_waits = None;
        // Withdraws what earlier calls named.
        if self.last_call.take().is_some() {
            self.send_call(now, shared);
            self.last_call = None;
        }
    }

    // --- disco messages -----------------------------------------------------------------------------------------

    /// A ping of the peer; `false` for a copy, which is not answered.
    pub(super) fn handle_ping(&mut self, now: Instant, shared: &mut Shared, back: Lane, tx: TxId) -> bool {
        let Lane::Udp { to: from, .. } = back else { return self.last_relay_tx.replace(tx) != Some(tx) };
        let Some(is_news) = self.candidates.heard_ping(now, from, tx, self.trust.addr()) else { return false };
        if is_news {
            self.discovery = now;
            if self.is_active() && !self.trust.is_trusted() {
                self.ping(now, shared, back);
            }
        }
        true
    }

    pub(super) fn send_pong(&self, shared: &mut Shared, back: Lane, tx: TxId, src: SocketAddr) {
        shared.counters.pongs_sent += 1;
        shared.send(&self.shared_key, back, &Message::Pong { tx, src });
    }

    /// Whether a pong with this id answers one of our pings to the peer.
    pub(super) fn awaits(&self, tx: TxId) -> bool {
        self.pings.contains_key(&tx)
    }

    pub(super) fn handle_pong(&mut self, now: Instant, shared: &mut Shared, back: Lane, tx: TxId) {
        let Some(ping) = self.pings.remove(&tx) else { return };
        let latency = now - ping.at;
        for (token, _) in self.tokens.drain(..) {
            shared.events.push_back(Event::Pong { peer: self.ix, token, latency, lane: ping.lane });
        }
        let (Lane::Udp { to, .. }, false) = (ping.lane, back.is_relay()) else { return };
        if self.candidates.contains(&to) && self.trust.pong(now, to, latency) {
            tracing::debug!(node = %self.node, disco = %self.disco, addr = %to, ?latency, "now using");
        }
    }

    /// A call-me-maybe of the peer.
    pub(super) fn handle_called(&mut self, now: Instant, shared: &mut Shared, endpoints: &[SocketAddr]) {
        self.candidates.set_called(now, endpoints, self.trust.addr());
        if self.last_called.is_none_or(|at| now - at >= CALL_GAP) {
            self.last_called = Some(now);
            self.candidates.forget_pings();
        }
        self.full_ping(now, shared, false);
    }

    /// Ties a source address to the peer. Returns the address to untie where there are too many.
    pub(super) fn bind(&mut self, addr: SocketAddr) -> Option<SocketAddr> {
        let surplus = (self.bound.len() >= MAX_BOUND && !self.bound.contains(&addr)).then(|| self.bound.pop_first());
        self.bound.insert(addr);
        surplus.flatten()
    }

    /// A person's ping.
    pub(super) fn handle_ask(&mut self, now: Instant, shared: &mut Shared, token: u64) {
        self.trust.settle(now);
        self.tokens.retain(|(_, at)| now - *at < TOKEN_LIFE);
        if self.tokens.len() < MAX_TOKENS {
            self.tokens.push((token, now));
        }
        let direct = self.trust.addr().filter(|_| self.trust.is_trusted());
        if let Some(direct) = direct {
            self.ping(now, shared, Lane::udp(direct));
        } else {
            if let Some(relay) = self.relay() {
                self.ping(now, shared, relay);
            }
            for addr in self.candidates.all() {
                self.ping(now, shared, Lane::udp(addr));
            }
        }
        self.note_activity(now, shared);
    }

    // --- time ---------------------------------------------------------------------------------------------------

    /// The earliest moment at which [`Peer::handle_timeout`] has something to do.
    pub(super) fn due(&self) -> Option<(Instant, &'static str)> {
        let active = |at: Option<Instant>| at.filter(|_| self.is_active());
        let untrusted = |at: Instant| (self.is_active() && !self.trust.is_trusted()).then_some(at);
        [
            (self.heartbeat, "heartbeat"),
            (self.trust.silence_at(), "silence on the path"),
            (active(self.trust.expires_at()), "trust runs out"),
            (active(self.trust.probe_at()), "probe of a doubted path"),
            (untrusted(self.discovery), "discovery"),
            (self.call_waits, "call-me-maybe waits for endpoints"),
            (self.pings_end, "ping expiry"),
        ]
        .into_iter()
        .filter_map(|(at, why)| at.map(|at| (at, why)))
        .min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, shared: &mut Shared) {
        if self.pings_end.is_some_and(|at| at <= now) {
            self.pings.retain(|_, ping| now - ping.at < PING_LIFE);
            self.pings_end = self.pings.values().map(|ping| ping.at + PING_LIFE).min();
        }
        if self.call_waits.is_some_and(|at| at <= now) {
            self.send_call(now, shared);
        }
        if self.trust.is_too_silent(now) {
            self.suspect(now, shared);
        }
        if self.heartbeat.is_some_and(|at| at <= now) {
            self.beat(now, shared);
        }
        if !self.is_active() {
            return;
        }
        self.trust.settle(now);
        self.seek(now, shared);
        // Without a relay the doubted address is still the best guess.
        if self.relay().is_some() && self.trust.is_hopeless(now) {
            tracing::info!(node = %self.node, disco = %self.disco, "now using a relay only");
            self.trust.clear();
        }
    }

    fn beat(&mut self, now: Instant, shared: &mut Shared) {
        if self.last_send.is_none_or(|at| now - at > ACTIVE) {
            self.heartbeat = None;
            return;
        }
        self.heartbeat = Some(now + HEARTBEAT);
        let Some(addr) = self.trust.addr().filter(|_| self.trust.is_trusted()) else { return };
        let improvable = self.trust.latency().is_some_and(|latency| latency > GOOD_ENOUGH);
        if improvable && self.last_full_ping.is_none_or(|at| now - at >= UPGRADE) {
            self.full_ping(now, shared, true);
        }
        if !self.pings.values().any(|ping| ping.at == now && ping.lane == Lane::udp(addr)) {
            self.ping(now, shared, Lane::udp(addr));
        }
    }
}
