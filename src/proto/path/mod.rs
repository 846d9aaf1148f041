//! Path selection: candidates, probes, trust and suspicion (`path-selection.md` §1–7, 9–11; DESIGN.md §3.10).
//!
//! The engine speaks disco with every peer and tells the owner, for each packet, which lane to use. It sends nothing
//! but disco itself and never reads WireGuard: the owner reports what it sent ([`Paths::handle_sent`]) and what it has
//! authenticated ([`Paths::handle_authenticated`], [`Paths::handle_replay`]).
//!
//! Invariants
//! - Only a pong moves the send path. Data from elsewhere is at most a reason to ping there.
//! - A ping and its pong are as long as the largest data packet: a proven path carries everything.
//! - A peer to which nothing is sent costs nothing after 45 s: no timer, no packet.
//! - Everything that the network can make grow is bounded: candidates, bound addresses, waiting pings, output.
//!
//! Where this differs from the Go implementation, always compatible on the wire: a doubted address does not compete
//! with one that answers (trap 1); a call-me-maybe is sent to a peer without candidates, too (trap 2); authenticated
//! data extends trust; evidence against a path starts a doubt at once; a doubted path is probed in growing distances
//! and given up after 6 s for the relay alone; new candidates are pinged at once while packets flow; nothing is pinged
//! through a relay but for a person.

mod better;
mod candidates;
mod peer;
#[cfg(test)]
mod tests;
mod trust;

use crate::base::{Deadline, DiscoKey, DiscoSecret, Instant, Lane, NodeKey, PeerIx, RegionId, Rng, Timers, Via};
use crate::wire::disco::{self, Message, relay_addr};
use peer::{Peer, Shared};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::{collections::VecDeque, fmt, net::SocketAddr, time::Duration};

/// What the coordinator says of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddrs {
    /// Its node key, also its name at relays.
    pub node: NodeKey,
    /// Its disco key, new in each of its runs.
    pub disco: DiscoKey,
    /// Its home relay.
    pub home: Option<RegionId>,
    /// Where it may be reached.
    pub endpoints: Vec<SocketAddr>,
}

/// How packets for a peer leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathState {
    /// Not at all: neither a relay nor an address is known.
    None,
    /// Through a relay.
    Relay,
    /// Directly.
    Direct,
    /// Both ways, until the direct one is proven again or given up.
    Doubtful,
}

impl PathState {
    /// What logs call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Relay => "relay",
            Self::Direct => "direct",
            Self::Doubtful => "doubtful",
        }
    }
}

/// The lanes for one packet. The second one gets a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The way to go, if there is any.
    pub first: Option<Lane>,
    /// The relay while the direct way is in doubt.
    pub second: Option<Lane>,
}

/// News for the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Packets leave another way from now on.
    PathChanged {
        /// The peer.
        peer: PeerIx,
        /// Before.
        from: PathState,
        /// Now.
        to: PathState,
        /// The lane of the first copy.
        lane: Option<Lane>,
    },
    /// Something speaks against the path in use: what is unacknowledged may be lost, so let the flows repeat it now.
    Suspect {
        /// The peer.
        peer: PeerIx,
    },
    /// Find out our own addresses anew, then call [`Paths::set_own_endpoints`] even if nothing has changed.
    WantEndpoints,
    /// The answer to [`Paths::ping`]; the first pong of any kind from the peer counts.
    Pong {
        /// The peer.
        peer: PeerIx,
        /// As given.
        token: u64,
        /// From ping to pong.
        latency: Duration,
        /// The way that the ping went.
        lane: Lane,
    },
}

/// What the engine has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pings sent.
    pub pings_sent: u64,
    /// Pongs sent.
    pub pongs_sent: u64,
    /// Call-me-maybes sent.
    pub calls_sent: u64,
    /// Trusted paths that fell into doubt by evidence.
    pub suspicions: u64,
    /// Disco packets of nobody we know, or that do not open or fit.
    pub rejected: u64,
    /// Messages not sent because the output queue was full.
    pub overflow: u64,
}

type Holders = SmallVec<[PeerIx; 1]>;

/// The paths of one node to all its peers.
pub struct Paths {
    peers: FxHashMap<PeerIx, Box<Peer>>,
    by_node: FxHashMap<NodeKey, PeerIx>,
    /// A disco key belongs to a process; several nodes may live in one.
    by_disco: FxHashMap<DiscoKey, Holders>,
    by_addr: FxHashMap<SocketAddr, PeerIx>,
    timers: Timers<PeerIx>,
    shared: Shared,
}

impl Paths {
    /// A node without peers.
    #[must_use]
    pub fn new(disco: DiscoSecret, node: NodeKey, rng: Rng) -> Self {
        Self {
            peers: FxHashMap::default(),
            by_node: FxHashMap::default(),
            by_disco: FxHashMap::default(),
            by_addr: FxHashMap::default(),
            timers: Timers::default(),
            shared: Shared {
                key: disco.public(),
                secret: disco,
                node,
                rng,
                direct: true,
                own: Vec::new(),
                own_at: None,
                asked_at: None,
                transmits: VecDeque::new(),
                events: VecDeque::new(),
                counters: Counters::default(),
            },
        }
    }

    /// Adds a peer or takes news of one. Returns whether a known peer has another disco key: it has restarted, its path
    /// is forgotten, and its WireGuard sessions must be, too.
    pub fn upsert_peer(&mut self, now: Instant, ix: PeerIx, addrs: PeerAddrs) -> bool {
        let (mut restarted, mut route) = (false, None);
        if let Some(known) = self.peers.get(&ix) {
            if known.node == addrs.node && known.disco == addrs.disco {
                self.with_peer(ix, |peer, shared| peer.update(now, shared, addrs));
                return false;
            }
            restarted = known.disco != addrs.disco;
            route = known.route().filter(|_| known.node == addrs.node);
        }
        self.remove_peer(ix);
        if let Some(&other) = self.by_node.get(&addrs.node) {
            self.remove_peer(other);
        }
        self.by_node.insert(addrs.node, ix);
        self.by_disco.entry(addrs.disco).or_default().push(ix);
        self.peers.insert(ix, Box::new(Peer::new(&self.shared, ix, addrs, now)));
        self.with_peer(ix, |peer, _| peer.set_route(route));
        restarted
    }

    /// Forgets a peer.
    pub fn remove_peer(&mut self, ix: PeerIx) {
        let Some(peer) = self.peers.remove(&ix) else { return };
        self.by_node.remove(&peer.node);
        if let Some(holders) = self.by_disco.get_mut(&peer.disco) {
            holders.retain(|holder| *holder != ix);
            if holders.is_empty() {
                self.by_disco.remove(&peer.disco);
            }
        }
        for addr in &peer.bound {
            self.by_addr.remove(addr);
        }
        self.timers.remove(ix, peer.scheduled);
    }

    /// Our own addresses, as just found out. Peers that wait for them are called.
    pub fn set_own_endpoints(&mut self, now: Instant, endpoints: Vec<SocketAddr>) {
        let changed = self.shared.own != endpoints;
        self.shared.own = endpoints;
        self.shared.own_at = Some(now);
        self.shared.asked_at = None;
        self.with_all(|peer, shared| peer.handle_own_endpoints(now, shared, changed));
    }

    /// Allows or forbids direct paths. Forbidding moves every peer to its relay and withdraws what calls had named.
    pub fn set_direct_allowed(&mut self, now: Instant, direct: bool) {
        if std::mem::replace(&mut self.shared.direct, direct) != direct {
            self.with_all(|peer, shared| peer.set_direct_allowed(now, shared));
        }
    }

    /// Where the peer was last seen at a relay; overrides its home. Changes no direct path.
    pub fn set_relay_route(&mut self, ix: PeerIx, route: Option<RegionId>) {
        self.with_peer(ix, |peer, _| peer.set_route(route));
    }

    /// Takes a disco packet. Returns the peer it proved to come from.
    pub fn handle_disco(&mut self, now: Instant, via: &Via, d: &[u8]) -> Option<PeerIx> {
        let taken = self.take_disco(now, via, d);
        match taken {
            Some(ix) => self.reschedule(ix),
            None => self.shared.counters.rejected += 1,
        }
        taken
    }

    fn take_disco(&mut self, now: Instant, via: &Via, d: &[u8]) -> Option<PeerIx> {
        if !via.is_relay() && !self.shared.direct {
            return None;
        }
        let holders = self.by_disco.get(&disco::sender(d)?)?.clone();
        let message = self.peers.get(holders.first()?)?.shared_key.open(d).ok()?;
        let back = via.back();
        let holder_at_relay = |node: &NodeKey| self.by_node.get(node).copied().filter(|ix| holders.contains(ix));
        match (message, via) {
            (Message::Ping { tx, .. }, Via::Relay { region, from }) => {
                let ix = holder_at_relay(from)?;
                self.act(ix, |peer, shared| {
                    if peer.handle_ping(now, shared, back, tx) {
                        peer.send_pong(shared, back, tx, relay_addr(*region));
                    }
                })?;
                Some(ix)
            }
            (Message::Ping { tx, node }, Via::Udp { from, .. }) => {
                let hinted = node.and_then(|node| holder_at_relay(&node));
                let single = if let [single] = holders.as_slice() { Some(*single) } else { None };
                if let Some(ix) = hinted.or(single) {
                    self.bind(ix, *from);
                }
                // Every node of the process may be reached there, and one pong answers for all.
                let mut fresh = false;
                for ix in &holders {
                    fresh |= self.act(*ix, |peer, shared| peer.handle_ping(now, shared, back, tx))?;
                    self.reschedule(*ix);
                }
                let ix = hinted.or_else(|| holders.first().copied())?;
                if fresh {
                    self.act(ix, |peer, shared| peer.send_pong(shared, back, tx, *from))?;
                }
                Some(ix)
            }
            (Message::Pong { tx, .. }, _) => {
                let ix = *holders.iter().find(|ix| self.peers.get(ix).is_some_and(|peer| peer.awaits(tx)))?;
                if let Via::Udp { from, .. } = via {
                    self.bind(ix, *from);
                }
                self.act(ix, |peer, shared| peer.handle_pong(now, shared, back, tx))?;
                Some(ix)
            }
            (Message::CallMeMaybe { endpoints }, Via::Relay { from, .. }) if self.shared.direct => {
                let ix = holder_at_relay(from)?;
                self.act(ix, |peer, shared| peer.handle_called(now, shared, &endpoints))?;
                Some(ix)
            }
            (Message::CallMeMaybe { .. }, _) => None,
        }
    }

    fn act<T>(&mut self, ix: PeerIx, act: impl FnOnce(&mut Peer, &mut Shared) -> T) -> Option<T> {
        let peer = self.peers.get_mut(&ix)?;
        let result = act(peer, &mut self.shared);
        peer.report(&mut self.shared);
        Some(result)
    }

    fn bind(&mut self, ix: PeerIx, addr: SocketAddr) {
        let Some(peer) = self.peers.get_mut(&ix) else { return };
        if let Some(surplus) = peer.bind(addr) {
            self.by_addr.remove(&surplus);
        }
        let before = self.by_addr.insert(addr, ix).filter(|before| *before != ix);
        if let Some(before) = before.and_then(|before| self.peers.get_mut(&before)) {
            before.bound.remove(&addr);
        }
    }

    /// The peer that disco has tied to a source address.
    #[must_use]
    pub fn peer_by_addr(&self, addr: &SocketAddr) -> Option<PeerIx> {
        self.by_addr.get(addr).copied()
    }

    /// The way for the next packet to a peer. Cheap enough to be asked for each.
    pub fn choose(&mut self, now: Instant, ix: PeerIx) -> Choice {
        match self.peers.get_mut(&ix) {
            Some(peer) => peer.choose(now, &mut self.shared),
            None => Choice { first: None, second: None },
        }
    }

    /// How packets for the peer left last, or would leave.
    #[must_use]
    pub fn state(&self, ix: PeerIx) -> (PathState, Option<Lane>) {
        self.peers.get(&ix).map_or((PathState::None, None), |peer| peer.state())
    }

    /// A WireGuard datagram of any kind has been sent to the peer. `expects_answer`: TCP with data, SYN or FIN, TSMP,
    /// an initiation; never a pure acknowledgement or UDP.
    pub fn handle_sent(&mut self, now: Instant, ix: PeerIx, via_direct: bool, expects_answer: bool) {
        self.with_peer(ix, |peer, shared| peer.handle_sent(now, shared, via_direct, expects_answer));
    }

    /// WireGuard has authenticated a datagram of the peer. `data`: of an established session, empty or not.
    pub fn handle_authenticated(&mut self, now: Instant, ix: PeerIx, via: &Via, data: bool) {
        let direct = match via {
            Via::Udp { from, .. } => Some(*from),
            Via::Relay { .. } => None,
        };
        self.with_peer(ix, |peer, shared| peer.handle_heard(now, shared, direct, data));
    }

    /// WireGuard has refused a datagram as seen before. Copies by relay tell that the peer doubts the direct path.
    pub fn handle_replay(&mut self, now: Instant, via: &Via) {
        let Via::Relay { from, .. } = via else { return };
        if let Some(&ix) = self.by_node.get(from) {
            self.with_peer(ix, |peer, shared| peer.handle_copy(now, shared));
        }
    }

    /// Pings the peer for a person, on the way that packets go now. Counts as activity.
    pub fn ping(&mut self, now: Instant, ix: PeerIx, token: u64) {
        self.with_peer(ix, |peer, shared| peer.handle_ask(now, shared, token));
    }

    /// The network below has changed: nothing proven before counts.
    pub fn rebind(&mut self, now: Instant) {
        self.shared.own_at = None;
        self.with_all(|peer, shared| peer.rebind(now, shared));
    }

    /// The next disco packet to send.
    pub fn poll_transmit(&mut self) -> Option<(Lane, Vec<u8>)> {
        self.shared.transmits.pop_front()
    }

    /// The next piece of news.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.shared.events.pop_front()
    }

    /// Runs what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(ix) = self.timers.pop(now) {
            self.with_peer(ix, |peer, shared| {
                peer.scheduled = None;
                peer.handle_timeout(now, shared);
            });
        }
    }

    /// When [`Paths::handle_timeout`] is due; sometimes earlier than anything happens, never later.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let (at, ix) = self.timers.first()?;
        let why = self.peers.get(&ix).and_then(|peer| peer.due()).map_or("path", |(_, why)| why);
        Some(Deadline { at, why })
    }

    /// What the engine has done so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.shared.counters
    }

    fn with_peer(&mut self, ix: PeerIx, act: impl FnOnce(&mut Peer, &mut Shared)) {
        self.act(ix, act);
        self.reschedule(ix);
    }

    /// In the order of their numbers: the order of messages is part of the behaviour.
    fn with_all(&mut self, mut act: impl FnMut(&mut Peer, &mut Shared)) {
        let mut all: Vec<PeerIx> = self.peers.keys().copied().collect();
        all.sort_unstable();
        for ix in all {
            self.with_peer(ix, &mut act);
        }
    }

    fn reschedule(&mut self, ix: PeerIx) {
        if let Some(peer) = self.peers.get_mut(&ix) {
            let due = peer.due().map(|(at, _)| at);
            self.timers.schedule(ix, &mut peer.scheduled, due);
        }
    }
}

impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paths").field("peers", &self.peers.len()).field("counters", &self.shared.counters).finish()
    }
}
