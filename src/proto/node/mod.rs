//! L3: one node. The only place where engines meet.
//!
//! ```text
//! datagram ─ classify ┬ STUN ──────► netcheck
//!                     ├ disco ─────► path
//!                     └ WireGuard ─► wg ─ source is the peer's? ─► netstack ─► flow
//! flow ─► netstack ─► gate: session, lane with room ─► wg seals into the lane's slot (a copy to the second lane)
//! ```
//!
//! Engines return values; this module routes them. A turn of the owner is: datagrams in, [`Node::handle_timeout`] when
//! it is due, [`Node::transmit`] until it is [`Turn::Idle`] or [`Turn::Blocked`], [`Node::poll_event`] until `None`,
//! then sleep until [`Node::poll_timeout`] or the next input.
//!
//! Invariants
//! - What a peer sends is taken only when its inner source is one of the addresses that it announced.
//! - Nothing is sealed without a session and a lane with room: flows wait, nothing is dropped inside.
//! - The data plane asks the coordinator for nothing: without it every tunnel goes on.
//! - In steady state a packet costs no allocation, and no look at all peers, dials or pings: their timers are ordered.

mod capture;
mod control;
mod coordination;
mod counters;
mod dials;
mod endpoints;
mod event;
mod facts;
mod flows;
mod lost;
mod peers;
mod send;
mod settle;
mod strangers;
mod transmit;

#[cfg(test)]
mod tests;

pub use counters::{ByWay, Counters, Drops};
pub use event::{DialFailure, DialId, Event, PathInfo, PeerInfo, PingId, PingKind};
pub use peers::Gone;
pub use send::{Budget, SendSpace, Turn};

use crate::{
    base::{Deadline, DiscoSecret, Instant, Lane, NodeKey, NodeSecret, PeerIx, RegionId, Rng, Via},
    proto::{netcheck::Netcheck, netstack, netstack::Netstack, path::Paths, relay::routes::Relays, wg, wg::WireGuard},
    wire::{Kind, classify, ip::MTU, pcap::Way, wg::MAX_DATAGRAM},
};
use capture::Capture;
use control::Control;
use dials::{Dials, Pings};
use endpoints::{Announcement, Endpoints};
use peers::Peers;
use rustc_hash::FxHashMap;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::Ipv6Addr,
    time::Duration,
};
use strangers::Strangers;
use uuid::Uuid;

/// What kind of node this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Asks for tunnels and dials.
    Client,
    /// Is asked: answers every announcement with a ready notice.
    Agent,
}

/// What a node is made of.
#[derive(Debug)]
pub struct Config {
    /// WireGuard and relay identity.
    pub secret: NodeSecret,
    /// Disco identity of this run.
    pub disco: DiscoSecret,
    /// The numeric id in the announcement (`coordination.md` §8).
    pub node_id: i64,
    /// Overlay addresses, the first one is the source of what we dial.
    pub addresses: Vec<Ipv6Addr>,
    /// Client or agent.
    pub role: Role,
    /// Whether direct paths are allowed.
    pub direct: bool,
    /// Bytes of all TCP buffers together; flows beyond it get small ones.
    pub buffer_bytes: usize,
}

/// A peer that says something after so long is back from an outage or from sleep. Longer than any round trip, shorter
/// than the back-off that its flows have reached meanwhile.
const SILENCE: Duration = Duration::from_secs(3);

/// One node; see the module's text.
pub struct Node {
    role: Role,
    node_id: i64,
    addresses: Vec<Ipv6Addr>,
    direct: bool,
    key: NodeKey,
    disco: DiscoSecret,
    wg: WireGuard,
    paths: Paths,
    netcheck: Netcheck,
    relays: Relays,
    netstack: Netstack,
    peers: Peers,
    strangers: Strangers,
    dials: Dials,
    pings: Pings,
    control: Control,
    endpoints: Endpoints,
    home: Option<RegionId>,
    latency: BTreeMap<String, f64>,
    announced: Option<Announcement>,
    /// Whether [`Announcement`] must be looked at again.
    announce: bool,
    /// Peers whose ready notice waits to be told.
    ready: BTreeSet<Uuid>,
    events: VecDeque<Event>,
    counters: Counters,
    /// Only when somebody wants to look.
    capture: Option<Box<Capture>>,
    /// When something last went into the tunnel; STUN goes on only for a while after it.
    last_sent: Option<Instant>,
    /// When each peer was last heard.
    heard: FxHashMap<PeerIx, Instant>,
    incoming: Box<[u8; MAX_DATAGRAM]>,
    outgoing: Box<[u8; MTU]>,
}

impl Node {
    /// A node that knows nobody yet.
    #[must_use]
    pub fn new(config: Config, rng: &mut Rng) -> Self {
        let Config { secret, disco, node_id, addresses, role, direct, buffer_bytes } = config;
        let key = secret.public();
        let mut paths = Paths::new(disco.clone(), key, rng.split());
        paths.set_direct_allowed(Instant::ZERO, direct);
        let mut netstack = Netstack::new(netstack::Config { budget_bytes: buffer_bytes }, rng.split());
        netstack.set_addresses(addresses.clone());
        Self {
            role,
            node_id,
            addresses,
            direct,
            key,
            wg: WireGuard::new(&secret, rng.split()),
            paths,
            netcheck: Netcheck::new(rng.split()),
            relays: Relays::new(rng.split()),
            netstack,
            disco,
            peers: Peers::default(),
            strangers: Strangers::default(),
            dials: Dials::default(),
            pings: Pings::default(),
            control: Control::default(),
            endpoints: Endpoints::default(),
            home: None,
            latency: BTreeMap::new(),
            announced: None,
            announce: false,
            ready: BTreeSet::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            capture: None,
            last_sent: None,
            heard: FxHashMap::default(),
            incoming: Box::new([0; MAX_DATAGRAM]),
            outgoing: Box::new([0; MTU]),
        }
    }

    /// Our node key.
    #[must_use]
    pub const fn key(&self) -> NodeKey {
        self.key
    }

    /// Our home relay.
    #[must_use]
    pub const fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// Takes one datagram, from a UDP socket or a relay.
    pub fn handle_datagram(&mut self, now: Instant, via: Via, d: &[u8]) {
        if let Via::Relay { region, from } = via {
            self.learn_route(region, from);
        }
        match classify(d) {
            Kind::WireGuard => self.handle_wireguard(now, &via, d),
            Kind::Disco => {
                self.paths.handle_disco(now, &via, d);
                self.settle(now);
            }
            Kind::Stun => {
                if let Via::Udp { socket, from } = via {
                    self.netcheck.handle_stun(now, socket, from, d);
                    self.settle(now);
                }
            }
            Kind::Junk => self.counters.drops.junk += 1,
        }
    }

    fn handle_wireguard(&mut self, now: Instant, via: &Via, d: &[u8]) {
        let opened = match self.wg.open(now, d, self.incoming.as_mut_slice()) {
            Ok(opened) => opened,
            Err(reject) => {
                if reject == wg::Reject::Replay {
                    self.counters.drops.copies += 1;
                    self.paths.handle_replay(now, via);
                } else {
                    self.counters.drops.wireguard += 1;
                }
                if let wg::Reject::UnknownPeer(key) = reject {
                    self.strangers.hold(now, key, *via, d);
                }
                return;
            }
        };
        let peer = opened.peer;
        self.paths.handle_authenticated(now, peer, via, matches!(opened.what, wg::What::Data(_) | wg::What::Keepalive));
        match opened.what {
            wg::What::Data(len) => {
                self.counters.data_received.add(via.is_relay());
                self.counters.bytes_received += len as u64;
                // Only the peer that announced an address speaks for it.
                match self.incoming.get(..len) {
                    Some(ip) if source(ip).and_then(|source| self.peers.at(&source)) == Some(peer) => {
                        if let Some(capture) = &mut self.capture {
                            capture.add(now, Way::FromPeer, ip);
                        }
                        self.netstack.handle_packet(now, peer, ip);
                    }
                    _ => self.counters.drops.foreign_source += 1,
                }
            }
            wg::What::Initiation => {
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.initiated_via = Some(*via);
                }
                self.settle(now);
            }
            wg::What::Response | wg::What::Cookie => self.settle(now),
            wg::What::Keepalive => {}
        }
        let before = self.heard.insert(peer, now);
        if before.is_some_and(|before| now - before >= SILENCE) {
            // The peer is back. What was sent into its silence is not worth a backed-off timer.
            self.netstack.kick_peer(now, peer);
        }
    }

    /// Runs what is due. Early calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.wg.handle_timeout(now);
        self.paths.handle_timeout(now);
        self.netcheck.handle_timeout(now);
        self.relays.handle_timeout(now);
        self.netstack.handle_timeout(now);
        self.expire_peers(now);
        self.expire_dials(now);
        self.settle(now);
    }

    /// When [`Node::handle_timeout`] is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        [
            self.wg.poll_timeout(),
            self.paths.poll_timeout(),
            self.netcheck.poll_timeout(),
            self.relays.poll_timeout(),
            self.netstack.poll_timeout(),
            self.peers.poll_timeout(),
            self.dials.poll_timeout(),
            self.pings.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next piece of news.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        while let Some(event) = self.netstack.poll_event() {
            if let Some(event) = self.translate(event) {
                return Some(event);
            }
        }
        if self.ready.is_empty() { None } else { Some(Event::Ready(std::mem::take(&mut self.ready).into_iter().collect())) }
    }

    /// What the node has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let wg = self.wg.counters();
        let mut counters = self.counters;
        counters.initiations_sent = wg.initiations_sent;
        counters.responses_sent = wg.responses_sent;
        counters.keepalives_sent = wg.keepalives_sent;
        counters.sessions = wg.handshakes;
        counters.syns_sent = self.netstack.counters().syns;
        counters.drops.control = self.control.dropped();
        counters
    }

    /// How a peer is reached now.
    #[must_use]
    pub fn path_info(&self, address: &Ipv6Addr) -> Option<PathInfo> {
        self.peers.at(address).map(|ix| self.path_of(ix))
    }

    /// What is known of the peer at an overlay address.
    #[must_use]
    pub fn peer_info(&self, now: Instant, address: &Ipv6Addr) -> Option<PeerInfo> {
        let ix = self.peers.at(address)?;
        let facts = &self.peers.get(ix)?.facts;
        let handshake_age = self.wg.last_handshake(ix).map(|at| now - at);
        Some(PeerInfo { key: facts.key, home: facts.home, endpoints: facts.endpoints.clone(), handshake_age })
    }

    fn path_of(&self, ix: PeerIx) -> PathInfo {
        let (state, lane): (_, Option<Lane>) = self.paths.state(ix);
        PathInfo { state, lane }
    }
}

/// The source address of an IPv6 packet.
fn source(ip: &[u8]) -> Option<Ipv6Addr> {
    let (head, rest) = ip.split_first_chunk::<8>()?;
    let (source, _) = rest.split_first_chunk::<16>()?;
    (head[0] >> 4 == 6).then(|| Ipv6Addr::from(*source))
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("key", &self.key).field("role", &self.role).finish_non_exhaustive()
    }
}
