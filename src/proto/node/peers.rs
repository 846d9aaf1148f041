//! Which peers there are and from when to when WireGuard knows them (`coordination.md` §13).
//!
//! A peer appears with its NODE. One that we asked a tunnel to (a *destination*) is programmed when it is ready for a
//! handshake or five seconds after its NODE; one that came to us at once. LOST keeps it for a time (`lost`), DISCONNECTED
//! ends it, another node key makes it another peer at the same addresses.

use super::{
    facts::Facts,
    lost::{Lost, Signs, Verdict},
};
use crate::base::{Deadline, Instant, NodeKey, PeerIx, RegionId, Timers, Via};
use rustc_hash::FxHashMap;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
    time::Duration,
};
use uuid::Uuid;

/// How long a destination may stay silent before we start the handshake unasked. Equal to the Go client's.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// Peers of one node; more are ignored. Bounds what a coordinator can make us hold.
pub(super) const MAX_PEERS: usize = 16_384;
/// Ready notices remembered for peers that have no NODE yet.
const MAX_EARLY: usize = 1_024;

/// One peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: Uuid,
    pub(super) facts: Facts,
    pub(super) programmed: bool,
    /// The way its last handshake initiation came: the answer goes back that way too.
    pub(super) initiated_via: Option<Via>,
    /// The region through which it was heard last, as long as that route holds.
    heard: Option<RegionId>,
    /// Whether an initiation was made that no lane could take.
    pub(super) unsent_handshake: bool,
    /// When a packet last went to it.
    pub(super) last_sent: Option<Instant>,
    gate: Option<Instant>,
    lost: Option<Lost>,
    /// Its place in the queue of timers.
    scheduled: Option<Instant>,
}

impl Peer {
    fn due(&self) -> Option<Deadline> {
        let gate = self.gate.map(|at| Deadline { at, why: "ready for handshake" });
        Deadline::earliest(gate, self.lost.map(|lost| Deadline { at: lost.check, why: "lost peer" }))
    }
}

/// What follows from an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Tell the engines of this peer for the first time.
    Program(PeerIx),
    /// Its endpoints, home or disco key may be others.
    Update(PeerIx),
    /// It is known and waits for its gate.
    Wait(PeerIx),
    /// It is to give a sign of life.
    Ask(PeerIx),
    /// Take it out of every engine.
    Remove(PeerIx, NodeKey, Gone),
}

/// Why a peer is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It said goodbye or the tunnel was taken back.
    Disconnected,
    /// It is lost for long and silent.
    Lost,
    /// Another node key announced itself under the same id: the process is another one.
    Restarted,
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    slots: BTreeMap<PeerIx, Peer>,
    by_id: BTreeMap<Uuid, PeerIx>,
    by_address: FxHashMap<Ipv6Addr, PeerIx>,
    by_key: FxHashMap<NodeKey, PeerIx>,
    destinations: BTreeSet<Uuid>,
    /// When each peer last said that it is ready.
    ready: BTreeMap<Uuid, Instant>,
    timers: Timers<PeerIx>,
    next: u32,
}

impl Peers {
    pub(super) fn get(&self, ix: PeerIx) -> Option<&Peer> {
        self.slots.get(&ix)
    }

    pub(super) fn get_mut(&mut self, ix: PeerIx) -> Option<&mut Peer> {
        self.slots.get_mut(&ix)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerIx, &Peer)> {
        self.slots.iter().map(|(ix, peer)| (*ix, peer))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The programmed peer that owns an overlay address.
    pub(super) fn at(&self, address: &Ipv6Addr) -> Option<PeerIx> {
        self.by_address.get(address).copied()
    }

    pub(super) fn by_id(&self, id: Uuid) -> Option<PeerIx> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn by_key(&self, key: &NodeKey) -> Option<PeerIx> {
        self.by_key.get(key).copied()
    }

    pub(super) fn add_destination(&mut self, id: Uuid) {
        self.destinations.insert(id);
    }

    pub(super) fn remove_destination(&mut self, id: Uuid) {
        self.destinations.remove(&id);
    }

    /// Whether a peer that we asked for has said that it takes handshakes.
    pub(super) fn is_ready_destination(&self, id: Uuid) -> bool {
        self.destinations.contains(&id) && self.ready.contains_key(&id)
    }

    /// A NODE came. The changes are carried out in order; a restart is a removal and then an addition.
    pub(super) fn handle_node(&mut self, now: Instant, id: Uuid, facts: Facts) -> [Option<Change>; 2] {
        let mut removed = None;
        if let Some(ix) = self.by_id(id) {
            let Some(key) = self.get(ix).map(|peer| peer.facts.key) else { return [None, None] };
            if key == facts.key {
                return [Some(self.refresh(now, ix, facts)), None];
            }
            removed = Some(Change::Remove(ix, key, Gone::Restarted));
            // What the old process said does not count for the new one, unless the notice ran ahead of the NODE.
            if self.ready.get(&id).is_some_and(|at| now - *at > READY_TIMEOUT) {
                self.ready.remove(&id);
            }
            self.forget(ix);
        }
        if let Some(ix) = self.by_key(&facts.key) {
            // The same process under a new id: its control connection broke and the coordinator gave it another one.
            let Some(peer) = self.slots.get_mut(&ix) else { return [removed, None] };
            if peer.lost.is_none() && peer.facts.addresses != facts.addresses {
                return [removed, None];
            }
            let old = std::mem::replace(&mut peer.id, id);
            self.by_id.remove(&old);
            self.by_id.insert(id, ix);
            return [removed, Some(self.refresh(now, ix, facts))];
        }
        if self.slots.len() >= MAX_PEERS {
            return [removed, None];
        }
        let ix = self.free_slot();
        let waits = self.destinations.contains(&id) && !self.ready.contains_key(&id);
        self.by_id.insert(id, ix);
        self.by_key.insert(facts.key, ix);
        let gate = waits.then(|| now + READY_TIMEOUT);
        let peer = Peer {
            id,
            facts,
            programmed: false,
            initiated_via: None,
            heard: None,
            last_sent: None,
            unsent_handshake: false,
            gate,
            lost: None,
            scheduled: None,
        };
        self.slots.insert(ix, peer);
        self.schedule(ix);
        let added = if waits { Change::Wait(ix) } else { self.program(ix) };
        [removed, Some(added)]
    }

    fn refresh(&mut self, now: Instant, ix: PeerIx, facts: Facts) -> Change {
        let Some(peer) = self.slots.get_mut(&ix) else { return Change::Wait(ix) };
        peer.lost = None;
        let old = std::mem::replace(&mut peer.facts, facts);
        let (waits, same) = (!peer.programmed, old.addresses == peer.facts.addresses);
        if waits {
            peer.gate = Some(now + READY_TIMEOUT);
        }
        self.schedule(ix);
        if waits {
            return Change::Wait(ix);
        }
        if !same {
            self.disown(ix, &old.addresses);
            self.own(ix);
        }
        Change::Update(ix)
    }

    /// The peer says that it takes handshakes; may come before its NODE.
    pub(super) fn handle_ready(&mut self, now: Instant, id: Uuid) -> Option<Change> {
        if self.by_id.contains_key(&id) || self.destinations.contains(&id) || self.ready.len() < MAX_EARLY {
            self.ready.insert(id, now);
        }
        let ix = self.by_id(id)?;
        let waits = self.get(ix).is_some_and(|peer| !peer.programmed);
        Some(if waits { self.program(ix) } else { Change::Update(ix) })
    }

    /// The coordinator has lost it, and says whether its connection was closed. Returns whether that is news.
    pub(super) fn handle_lost(&mut self, now: Instant, id: Uuid, closed: bool) -> bool {
        let Some(ix) = self.by_id(id) else { return false };
        let Some(peer) = self.slots.get_mut(&ix) else { return false };
        if let Some(lost) = &mut peer.lost {
            if closed {
                lost.doubt(now);
                self.schedule(ix);
            }
            return false;
        }
        peer.lost = Some(Lost::new(now, closed));
        self.schedule(ix);
        // The next process under this id speaks for itself.
        self.ready.remove(&id);
        true
    }

    /// The coordinator is gone: every peer goes on working and is lost until it is announced again.
    pub(super) fn handle_all_lost(&mut self, now: Instant) {
        let ids: Vec<Uuid> = self.by_id.keys().copied().collect();
        for id in ids {
            self.handle_lost(now, id, false);
        }
    }

    pub(super) fn handle_disconnected(&mut self, id: Uuid) -> Option<Change> {
        self.ready.remove(&id);
        let ix = self.by_id(id)?;
        let key = self.get(ix)?.facts.key;
        self.forget(ix);
        Some(Change::Remove(ix, key, Gone::Disconnected))
    }

    /// Notes through which region a peer speaks; returns whether that is news.
    pub(super) fn hear(&mut self, ix: PeerIx, region: RegionId) -> bool {
        self.slots.get_mut(&ix).is_some_and(|peer| peer.heard.replace(region) != Some(region))
    }

    /// The route through `region` to a peer no longer holds.
    pub(super) fn unhear(&mut self, ix: PeerIx, region: RegionId) {
        if let Some(peer) = self.slots.get_mut(&ix).filter(|peer| peer.heard == Some(region)) {
            peer.heard = None;
        }
    }

    pub(super) fn unhear_all(&mut self, region: RegionId) {
        for peer in self.slots.values_mut().filter(|peer| peer.heard == Some(region)) {
            peer.heard = None;
        }
    }

    /// Gates that opened by themselves and lost peers whose time has come.
    pub(super) fn handle_timeout(&mut self, now: Instant, signs: impl Fn(PeerIx) -> Signs, changes: &mut Vec<(Uuid, Change)>) {
        while let Some(ix) = self.timers.pop(now) {
            if let Some(peer) = self.slots.get_mut(&ix) {
                peer.scheduled = None;
            }
            if self.get(ix).is_some_and(|p| p.gate.is_some_and(|at| at <= now)) {
                let change = self.program(ix);
                let Some(peer) = self.get(ix) else { continue };
                changes.push((peer.id, change));
            }
            let Some(peer) = self.slots.get_mut(&ix) else { continue };
            if let Some(lost) = peer.lost.as_mut().filter(|lost| lost.check <= now) {
                match lost.judge(now, signs(ix)) {
                    Verdict::Keep => {}
                    Verdict::Ask => changes.push((peer.id, Change::Ask(ix))),
                    Verdict::Remove => {
                        let (id, key) = (peer.id, peer.facts.key);
                        self.forget(ix);
                        changes.push((id, Change::Remove(ix, key, Gone::Lost)));
                        continue;
                    }
                }
            }
            self.schedule(ix);
        }
    }

    /// Asked with every packet: costs the same with one peer and with thousands.
    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let (_, ix) = self.timers.first()?;
        self.get(ix)?.due()
    }

    /// Keeps a peer's place in the queue of timers exact; its deadlines move rarely.
    fn schedule(&mut self, ix: PeerIx) {
        let Some(peer) = self.slots.get_mut(&ix) else { return };
        let due = peer.due().map(|deadline| deadline.at);
        if peer.scheduled != due {
            self.timers.remove(ix, peer.scheduled.take());
            self.timers.schedule(ix, &mut peer.scheduled, due);
        }
    }

    fn program(&mut self, ix: PeerIx) -> Change {
        if let Some(peer) = self.slots.get_mut(&ix) {
            peer.gate = None;
            peer.programmed = true;
        }
        self.schedule(ix);
        self.own(ix);
        Change::Program(ix)
    }

    /// Takes the peer's addresses, but for those of another peer that is not lost: nobody speaks for a live peer.
    fn own(&mut self, ix: PeerIx) {
        let Some(peer) = self.slots.get(&ix) else { return };
        for address in &peer.facts.addresses {
            let owner = self.by_address.get(address).and_then(|owner| self.slots.get(owner));
            if owner.is_none_or(|owner| owner.lost.is_some()) {
                self.by_address.insert(*address, ix);
            }
        }
    }

    /// Gives addresses up, to another peer that lists them if there is one.
    fn disown(&mut self, ix: PeerIx, addresses: &[Ipv6Addr]) {
        for address in addresses {
            if self.by_address.get(address) != Some(&ix) {
                continue;
            }
            self.by_address.remove(address);
            let heir = self.slots.iter().find(|(_, p)| p.programmed && p.facts.addresses.contains(address));
            if let Some((heir, _)) = heir {
                self.by_address.insert(*address, *heir);
            }
        }
    }

    fn forget(&mut self, ix: PeerIx) {
        let Some(peer) = self.slots.remove(&ix) else { return };
        self.timers.remove(ix, peer.scheduled);
        self.by_id.remove(&peer.id);
        self.by_key.remove(&peer.facts.key);
        self.disown(ix, &peer.facts.addresses);
    }

    /// The next slot number that is free. Numbers are reused late, so that late packets of a removed peer miss.
    fn free_slot(&mut self) -> PeerIx {
        loop {
            let ix = PeerIx(self.next);
            self.next = (self.next + 1) % SLOTS;
            if !self.slots.contains_key(&ix) {
                return ix;
            }
        }
    }
}

/// A peer's slot number has 24 bits; a quarter of them is never in use at once.
const SLOTS: u32 = 1 << 24;
const _: () = assert!(MAX_PEERS < (SLOTS as usize) / 4);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{Rng, agent_addresses},
        proto::node::facts::tests::facts,
    };

    const fn secs(n: u64) -> Instant {
        Instant::from_nanos(n * 1_000_000_000)
    }

    const ID: Uuid = Uuid::from_u128(1);
    const NO_SIGNS: Signs = Signs { alive: None, busy: false, patient: false };

    #[test]
    fn a_peer_that_came_to_us_is_programmed_at_once() {
        let mut peers = Peers::default();
        let [_, change] = peers.handle_node(secs(0), ID, facts(1));
        let Some(Change::Program(ix)) = change else { panic!("{change:?}") };
        assert_eq!(peers.at(&agent_addresses(ID)[1]), Some(ix));
    }

    #[test]
    fn a_destination_waits_for_ready_or_five_seconds_after_its_last_node() {
        let mut peers = Peers::default();
        peers.add_destination(ID);
        assert!(matches!(peers.handle_node(secs(0), ID, facts(1))[1], Some(Change::Wait(_))));
        assert_eq!(peers.at(&agent_addresses(ID)[0]), None);
        peers.handle_node(secs(3), ID, facts(1));
        assert_eq!(peers.poll_timeout().map(|d| d.at), Some(secs(8)));
        let mut changes = Vec::new();
        peers.handle_timeout(secs(7), |_| NO_SIGNS, &mut changes);
        assert!(changes.is_empty());
        peers.handle_timeout(secs(8), |_| NO_SIGNS, &mut changes);
        assert!(matches!(changes[..], [(ID, Change::Program(_))]));
        assert_eq!(peers.poll_timeout(), None);
    }

    #[test]
    fn ready_may_come_before_the_node_and_opens_the_gate() {
        let mut peers = Peers::default();
        peers.add_destination(ID);
        assert_eq!(peers.handle_ready(secs(0), ID), None);
        assert!(matches!(peers.handle_node(secs(1), ID, facts(1))[1], Some(Change::Program(_))));
    }

    #[test]
    fn another_key_is_another_peer_that_must_be_ready_itself() {
        let mut peers = Peers::default();
        peers.add_destination(ID);
        peers.handle_ready(secs(0), ID);
        peers.handle_node(secs(0), ID, facts(1));
        let old = peers.by_id(ID).unwrap();
        let [removed, added] = peers.handle_node(secs(60), ID, facts(2));
        assert!(matches!(removed, Some(Change::Remove(ix, _, Gone::Restarted)) if ix == old));
        assert!(matches!(added, Some(Change::Wait(new)) if new != old));
        assert_eq!(peers.at(&agent_addresses(ID)[0]), None);
    }

    #[test]
    fn equal_news_resets_nothing() {
        let mut peers = Peers::default();
        peers.handle_node(secs(0), ID, facts(1));
        let ix = peers.by_id(ID).unwrap();
        assert_eq!(peers.handle_node(secs(1), ID, facts(1)), [Some(Change::Update(ix)), None]);
    }

    #[test]
    fn a_lost_peer_lives_fifteen_minutes_after_its_last_sign() {
        let mut peers = Peers::default();
        peers.handle_node(secs(0), ID, facts(1));
        assert!(peers.handle_lost(secs(10), ID, false));
        assert!(!peers.handle_lost(secs(11), ID, false), "it is known already");
        let mut changes = Vec::new();
        let signs = |_| Signs { alive: Some(secs(600)), ..NO_SIGNS };
        peers.handle_timeout(secs(910), signs, &mut changes);
        assert!(changes.is_empty());
        assert_eq!(peers.poll_timeout().map(|d| d.at), Some(secs(1_500)));
        peers.handle_timeout(secs(1_500), signs, &mut changes);
        assert!(matches!(changes[..], [(ID, Change::Remove(_, _, Gone::Lost))]));
        assert!(peers.is_empty());
    }

    #[test]
    fn a_peer_that_is_lost_already_is_doubted_once_its_connection_was_closed() {
        let mut peers = Peers::default();
        peers.handle_node(secs(0), ID, facts(1));
        peers.handle_all_lost(secs(10));
        assert!(!peers.handle_lost(secs(20), ID, true));
        let signs = |_| Signs { alive: Some(secs(9)), busy: true, patient: true };
        let mut changes = Vec::new();
        peers.handle_timeout(secs(23), signs, &mut changes);
        assert!(matches!(changes[..], [(ID, Change::Ask(_))]));
        peers.handle_lost(secs(30), ID, true);
        peers.handle_timeout(secs(53), signs, &mut changes);
        assert!(matches!(changes[1..], [(ID, Change::Remove(_, _, Gone::Lost))]), "who was asked is not asked anew");
    }

    #[test]
    fn a_lost_peer_that_is_announced_again_stays() {
        let mut peers = Peers::default();
        peers.handle_node(secs(0), ID, facts(1));
        peers.handle_lost(secs(10), ID, true);
        peers.handle_node(secs(20), ID, facts(1));
        assert_eq!(peers.poll_timeout(), None);
    }

    #[test]
    fn the_next_timer_is_the_earliest_of_all_peers_whatever_happens() {
        let mut rng = Rng::from_u64(5);
        let mut peers = Peers::default();
        let known: Vec<(Uuid, Facts)> = (0..20).map(|n| (Uuid::from_u128(n), facts(n as u64 + 1))).collect();
        known.iter().step_by(2).for_each(|(id, _)| peers.add_destination(*id));
        for step in 0..5_000 {
            let (id, facts) = &known[usize::try_from(rng.below(20)).unwrap()];
            let now = secs(step);
            match rng.below(12) {
                0..4 => _ = peers.handle_node(now, *id, facts.clone()),
                4..8 => _ = peers.handle_lost(now, *id, rng.chance(0.5)),
                8 => _ = peers.handle_ready(now, *id),
                9 => _ = peers.handle_disconnected(*id),
                _ => {
                    let signs = Signs { alive: rng.chance(0.5).then_some(now), busy: rng.chance(0.5), patient: rng.chance(0.5) };
                    peers.handle_timeout(now, |_| signs, &mut Vec::new());
                }
            }
            let model = peers.slots.values().filter_map(Peer::due).map(|due| due.at).min();
            assert_eq!(peers.poll_timeout().map(|d| d.at), model, "step {step}");
        }
    }

    #[test]
    fn nobody_takes_the_address_of_a_live_peer() {
        let mut peers = Peers::default();
        let address = agent_addresses(ID)[0];
        peers.handle_node(secs(0), ID, facts(1));
        let first = peers.by_id(ID).unwrap();
        let other = Uuid::from_u128(2);
        peers.handle_node(secs(1), other, facts(2));
        assert_eq!(peers.at(&address), Some(first));
        peers.handle_disconnected(ID);
        assert_eq!(peers.at(&address), peers.by_id(other));
    }

    #[test]
    fn the_same_process_under_a_new_id_stays_the_same_peer() {
        let mut peers = Peers::default();
        peers.handle_node(secs(0), ID, facts(1));
        let ix = peers.by_id(ID).unwrap();
        let other = Uuid::from_u128(2);
        assert_eq!(peers.handle_node(secs(1), other, facts(1)), [None, Some(Change::Update(ix))]);
        assert_eq!(peers.handle_disconnected(ID), None);
        assert_eq!(peers.by_id(other), Some(ix));
    }
}
