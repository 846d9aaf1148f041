//! What the coordinator says of peers, carried out on the engines.

use super::{
    Event, Node, Role,
    facts::{Facts, Unusable},
    lost::Signs,
    peers::{Change, Gone},
};
use crate::{
    base::{Instant, PeerIx},
    proto::{netstack, netstack::CloseReason, path::PeerAddrs},
    wire::{
        coord::tailnet::{PEER_CLOSED, PeerUpdate, PeerUpdateKind},
        derp::RelayMap,
    },
};
use std::{net::SocketAddr, time::Duration};
use uuid::Uuid;

/// WireGuard's persistent keepalive where one is wanted. Equal to the Go client's.
const KEEPALIVE: Duration = Duration::from_secs(25);
/// A peer that we sent to within this time is active.
const ACTIVE: Duration = Duration::from_secs(45);

impl Node {
    /// Takes one update of a coordination response.
    pub fn handle_peer_update(&mut self, now: Instant, update: &PeerUpdate) {
        let Ok(id) = Uuid::from_slice(&update.id) else {
            self.counters.drops.update += 1;
            return;
        };
        match PeerUpdateKind::try_from(update.kind) {
            Ok(PeerUpdateKind::Node) => {
                let facts = update.node.as_ref().ok_or(Unusable::Malformed).and_then(Facts::parse);
                match facts {
                    Ok(facts) if facts.key != self.key => {
                        for change in self.peers.handle_node(now, id, facts).into_iter().flatten() {
                            self.apply(now, id, change);
                        }
                        if self.role == Role::Agent && self.peers.by_id(id).is_some() {
                            self.ready.insert(id);
                        }
                    }
                    Err(Unusable::NoHome) => {}
                    Ok(_) | Err(Unusable::Malformed) => self.counters.drops.update += 1,
                }
            }
            Ok(PeerUpdateKind::ReadyForHandshake) => {
                if let Some(change) = self.peers.handle_ready(now, id) {
                    self.apply(now, id, change);
                }
            }
            Ok(PeerUpdateKind::Lost) => {
                if self.peers.handle_lost(now, id, update.reason == PEER_CLOSED) {
                    self.events.push_back(Event::PeerLost { id });
                }
            }
            Ok(PeerUpdateKind::Disconnected) => {
                if let Some(change) = self.peers.handle_disconnected(id) {
                    self.apply(now, id, change);
                }
            }
            Ok(PeerUpdateKind::Unspecified) | Err(_) => self.counters.drops.update += 1,
        }
        self.settle(now);
    }

    /// The control connection is gone. Tunnels go on; what becomes of peers that are not announced again: `lost`. One that
    /// is killed meanwhile looks like one that sleeps, and is kept as long.
    pub fn handle_coordinator_lost(&mut self, now: Instant) {
        self.peers.handle_all_lost(now);
    }

    /// A peer that we ask a tunnel to: it gets handshakes only when it is ready for them.
    pub fn add_destination(&mut self, now: Instant, id: Uuid) {
        self.peers.add_destination(id);
        self.settle(now);
    }

    /// Takes a wish for a tunnel back. The coordinator's DISCONNECTED removes the peer.
    pub fn remove_destination(&mut self, id: Uuid) {
        self.peers.remove_destination(id);
    }

    /// Replaces the relay map. Embedded regions already carry this node's own way to the deployment.
    pub fn set_relay_map(&mut self, now: Instant, map: &RelayMap) {
        self.netcheck.set_relay_map(now, map);
        self.relays.set_relay_map(now, map);
        self.settle(now);
    }

    /// The addresses of our interfaces with the UDP sockets' ports.
    pub fn set_local_endpoints(&mut self, now: Instant, local: Vec<SocketAddr>) {
        self.endpoints.set_local(local);
        self.announce = true;
        self.settle(now);
    }

    /// Allows or forbids direct paths, for us and for our peers.
    pub fn set_direct(&mut self, now: Instant, direct: bool) {
        self.direct = direct;
        self.paths.set_direct_allowed(now, direct);
        self.announce = true;
        self.netcheck.start(now, "direct paths");
        self.settle(now);
    }

    /// The network under us has changed: every path is doubtful and our endpoints are others.
    pub fn handle_link_change(&mut self, now: Instant) {
        self.paths.rebind(now);
        self.relays.handle_link_change(now);
        self.netcheck.restart(now, "link change");
        self.settle(now);
    }

    pub(super) fn expire_peers(&mut self, now: Instant) {
        let mut changes = Vec::new();
        let signs = |ix| Signs {
            alive: self.wg.last_handshake(ix).max(self.heard.get(&ix).copied()),
            busy: self.netstack.has_flows(ix),
            patient: self.role == Role::Agent,
        };
        self.peers.handle_timeout(now, signs, &mut changes);
        for (id, change) in changes {
            self.apply(now, id, change);
        }
    }

    fn apply(&mut self, now: Instant, id: Uuid, change: Change) {
        match change {
            Change::Program(ix) => {
                let first = self.peers.iter().filter(|(_, p)| p.programmed).count() == 1;
                let Some(peer) = self.peers.get(ix) else { return };
                let key = peer.facts.key;
                self.wg.add_peer(ix, key);
                self.paths.upsert_peer(now, ix, addrs(&peer.facts));
                let addresses = peer.facts.addresses.clone();
                self.update_route(ix);
                self.update_keepalive(now, ix, id);
                if first {
                    self.netcheck.start(now, "first peer");
                }
                self.events.push_back(Event::PeerUp { id });
                self.start_waiting(now, &addresses);
                if let Some((via, initiation)) = self.strangers.take(now, &key) {
                    self.handle_datagram(now, via, &initiation);
                }
            }
            Change::Update(ix) => {
                let Some(peer) = self.peers.get(ix) else { return };
                // Another disco key is another process: what the old one agreed on is void.
                if self.paths.upsert_peer(now, ix, addrs(&peer.facts)) {
                    self.wg.reset_peer(now, ix);
                }
                let addresses = peer.facts.addresses.clone();
                self.update_route(ix);
                self.update_keepalive(now, ix, id);
                self.start_waiting(now, &addresses);
            }
            Change::Wait(_) => {}
            Change::Ask(ix) => {
                let Some(to) = self.peers.get(ix).and_then(|peer| peer.facts.addresses.first().copied()) else { return };
                let from = self.source_for(&to);
                // Whatever comes back is the sign; a session that nobody answers in is made anew.
                self.netstack.ping(now, ix, from, to, netstack::PingKind::Tsmp);
            }
            Change::Remove(ix, key, why) => {
                let reason = match why {
                    Gone::Restarted => CloseReason::PeerRestarted,
                    Gone::Disconnected | Gone::Lost => CloseReason::PeerLost,
                };
                self.netstack.reset_peer(now, ix, reason);
                self.heard.remove(&ix);
                self.wg.remove_peer(ix);
                self.relays.remove_peer(&key);
                self.paths.remove_peer(ix);
                self.events.push_back(Event::PeerGone { id, why });
            }
        }
    }

    /// The keepalive is on for a ready destination and for a peer that is in use when it is announced.
    fn update_keepalive(&mut self, now: Instant, ix: PeerIx, id: Uuid) {
        let active = self.peers.get(ix).and_then(|p| p.last_sent).is_some_and(|at| now - at < ACTIVE);
        let wanted = active || self.peers.is_ready_destination(id);
        self.wg.set_keepalive(now, ix, wanted.then_some(KEEPALIVE));
    }
}

fn addrs(facts: &Facts) -> PeerAddrs {
    PeerAddrs { node: facts.key, disco: facts.disco, home: Some(facts.home), endpoints: facts.endpoints.clone() }
}
