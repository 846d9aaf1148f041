//! One turn's output: handshakes, disco and STUN first, then packets of flows.

use super::{Budget, Node, SendSpace, Turn};
use crate::{
    base::{Instant, Lane, PeerIx},
    proto::{netstack::Urgency, path::Choice},
    wire::pcap::Way,
};

/// WireGuard's header and tag around a packet.
const OVERHEAD: usize = 32;
/// The longest data message: a packet of the tunnel's MTU.
const LONGEST: usize = 1_280 + OVERHEAD;

impl Node {
    /// Writes what wants to leave into `out`, as long as there is room and budget. Control messages of a lane leave
    /// before its data; a packet is sealed once and a second lane gets a copy of the ciphertext.
    pub fn transmit(&mut self, now: Instant, out: &mut impl SendSpace, budget: &mut Budget) -> Turn {
        self.settle(now);
        let mut blocked = self.transmit_control(now, out, budget);
        let mut sent_to = None;
        while !budget.is_spent() {
            let mut full = false;
            if let Some(peer) = self.transmit_packet(now, out, &mut full) {
                budget.spend();
                if sent_to.replace(peer) != Some(peer) {
                    self.note_sent(now, peer);
                }
                continue;
            }
            blocked |= full;
            // A flow without a session has asked for one meanwhile.
            self.settle(now);
            blocked |= self.transmit_control(now, out, budget);
            return if blocked { Turn::Blocked } else { Turn::Idle };
        }
        Turn::More
    }

    fn transmit_control(&mut self, now: Instant, out: &mut impl SendSpace, budget: &mut Budget) -> bool {
        let relays = &mut self.relays;
        self.control.transmit(now, out, budget, |lane| {
            if let Lane::Relay { region, .. } = lane {
                relays.want(now, *region);
            }
        })
    }

    /// The peer is in use, and so is the tunnel: keepalives and STUN depend on it.
    fn note_sent(&mut self, now: Instant, peer: PeerIx) {
        self.last_sent = Some(now);
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.last_sent = Some(now);
        }
    }

    /// One packet of a flow and its peer. `full` tells that a lane had no room.
    fn transmit_packet(&mut self, now: Instant, out: &mut impl SendSpace, full: &mut bool) -> Option<PeerIx> {
        let Self { netstack, wg, paths, relays, incoming, outgoing, counters, capture, .. } = self;
        let mut chosen: Option<(PeerIx, Choice)> = None;
        let mut gate = |peer: PeerIx, _: Urgency| {
            if !wg.has_session(now, peer) {
                wg.want_session(now, peer);
                return false;
            }
            let choice = paths.choose(now, peer);
            let Some(first) = choice.first else { return false };
            if !out.room(&first, LONGEST) {
                // A relay that is not connected has no room either: ask for it.
                if let Lane::Relay { region, .. } = first {
                    relays.want(now, region);
                }
                *full = true;
                return false;
            }
            chosen = Some((peer, choice));
            true
        };
        let packet = netstack.poll_transmit(now, outgoing, &mut gate)?;
        let (peer, choice) = chosen?;
        let (first, plain) = (choice.first?, outgoing.get(..packet.len)?);
        let slot = out.slot(&first, sealed_len(packet.len));
        let Ok(used) = wg.seal(now, peer, plain, slot) else { return Some(peer) };
        if let (Some(_), Some(kept), Some(sealed)) = (choice.second, incoming.get_mut(..used), slot.get(..used)) {
            kept.copy_from_slice(sealed);
        }
        out.commit(&first, used);
        counters.data_sent.add(first.is_relay());
        counters.bytes_sent += packet.len as u64;
        if let Some(capture) = capture {
            capture.add(now, Way::FromLocal, plain);
        }
        let copy = choice.second.filter(|second| {
            let room = out.room(second, used);
            counters.drops.copy += u64::from(!room);
            room
        });
        if let (Some(second), Some(kept)) = (copy, incoming.get(..used))
            && let Some(slot) = out.slot(&second, used).get_mut(..used)
        {
            slot.copy_from_slice(kept);
            out.commit(&second, used);
            counters.data_sent.add(second.is_relay());
        }
        for lane in [Some(first), copy].into_iter().flatten() {
            if let Lane::Relay { region, .. } = lane {
                relays.want(now, region);
            }
        }
        let direct = [Some(first), copy].into_iter().flatten().any(|lane| !lane.is_relay());
        paths.handle_sent(now, peer, direct, packet.expects_answer);
        Some(peer)
    }
}

/// Length of a sealed packet: WireGuard pads to 16 bytes.
const fn sealed_len(plain: usize) -> usize {
    plain.next_multiple_of(16) + OVERHEAD
}
