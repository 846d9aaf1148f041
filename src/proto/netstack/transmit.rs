//! The order of sending: answers, then flows with little to say, then the others in turns.

use super::{
    Netstack,
    flow::{MSS, Queued, Turn},
};
use crate::{
    base::{FlowId, Instant, PeerIx},
    wire::ip::MTU,
};
use std::{collections::VecDeque, time::Duration};

/// Segments that a flow may send in one turn while others wait.
const SEGMENTS: u32 = 16;
/// After so many packets a peer that had no room is asked again, although the round goes on.
const ASK_AGAIN: u32 = 64;

/// Until a flow that wanted a turn and sent nothing gets the next one.
const PAUSE: Duration = Duration::from_millis(10);

/// How much a packet minds waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// An answer, an ACK, a keystroke.
    Interactive,
    /// One of many segments.
    Bulk,
}

/// A packet that [`Netstack::poll_transmit`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Whom it goes to.
    pub peer: PeerIx,
    /// Its length in the buffer.
    pub len: usize,
    /// Whether a living peer answers it: a segment with data, SYN or FIN, or a ping. Never a bare ACK or a datagram.
    pub expects_answer: bool,
    /// The flow that it belongs to.
    pub flow: Option<FlowId>,
}

/// The lines in which flows wait to send.
#[derive(Debug, Default)]
pub(super) struct Order {
    urgent: VecDeque<u32>,
    bulk: VecDeque<u32>,
    /// Flows whose peer had no room in this round.
    blocked: Vec<u32>,
    /// Segments that the first bulk flow may still send in its turn.
    credit: u32,
    /// Packets since blocked flows were last asked.
    since_asked: u32,
}

impl Order {
    /// Puts a flow with `unsent` waiting bytes in line.
    pub(super) fn push(&mut self, slot: u32, unsent: usize) -> Queued {
        if unsent <= MSS {
            self.urgent.push_back(slot);
            Queued::Urgent
        } else {
            self.bulk.push_back(slot);
            Queued::Bulk
        }
    }
}

impl Netstack {
    /// Writes the next packet into `buf`. `None` ends the round: nothing waits, or no peer with waiting packets has
    /// room.
    ///
    /// `gate` says whether a packet to the peer can leave now. Where it says no, the peer's flows keep what they have
    /// and are asked about in the next round (or after 64 packets of this one).
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        buf: &mut [u8; MTU],
        gate: &mut dyn FnMut(PeerIx, Urgency) -> bool,
    ) -> Option<Packet> {
        self.order.since_asked += 1;
        if self.order.since_asked >= ASK_AGAIN {
            self.ask_blocked_again();
        }
        let packet = self.next_packet(now, buf, gate);
        if packet.is_none() {
            self.ask_blocked_again();
        }
        packet
    }

    /// Whether packets wait, for room if the last round has ended.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.outbox.len() > 0 || !self.order.urgent.is_empty() || !self.order.bulk.is_empty() || !self.order.blocked.is_empty()
    }

    fn next_packet(
        &mut self,
        now: Instant,
        buf: &mut [u8; MTU],
        gate: &mut dyn FnMut(PeerIx, Urgency) -> bool,
    ) -> Option<Packet> {
        if let Some(waiting) = self.outbox.pop(|peer| gate(peer, Urgency::Interactive)) {
            let len = waiting.bytes.len().min(buf.len());
            for (to, from) in buf.iter_mut().zip(&waiting.bytes) {
                *to = *from;
            }
            self.outbox.recycle(waiting.bytes);
            let (peer, expects_answer, flow) = (waiting.peer, waiting.expects_answer, waiting.flow);
            return Some(Packet { peer, len, expects_answer, flow });
        }
        while let Some(slot) = self.order.urgent.pop_front() {
            if let Some(packet) = self.turn(now, slot, Queued::Urgent, buf, gate) {
                return Some(packet);
            }
        }
        while let Some(slot) = self.order.bulk.pop_front() {
            if self.order.credit == 0 {
                self.order.credit = SEGMENTS;
            }
            let packet = self.turn(now, slot, Queued::Bulk, buf, gate);
            if packet.is_some() {
                self.order.credit -= 1;
                // Still at it, and its turn is not over: it goes on before the others.
                if self.order.credit > 0 && self.order.bulk.back() == Some(&slot) {
                    self.order.bulk.pop_back();
                    self.order.bulk.push_front(slot);
                } else {
                    self.order.credit = 0;
                }
                return packet;
            }
            self.order.credit = 0;
        }
        None
    }

    /// One flow's turn. Afterwards it stands in line again, is blocked, or waits for its timer.
    fn turn(
        &mut self,
        now: Instant,
        slot: u32,
        line: Queued,
        buf: &mut [u8; MTU],
        gate: &mut dyn FnMut(PeerIx, Urgency) -> bool,
    ) -> Option<Packet> {
        let flow = self.flows.get_mut(slot as usize)?;
        // A slot may stand here for a flow that is gone.
        if flow.queued != line {
            return None;
        }
        let urgency = if line == Queued::Urgent { Urgency::Interactive } else { Urgency::Bulk };
        if !gate(flow.peer, urgency) {
            flow.queued = Queued::Blocked;
            self.order.blocked.push(slot);
            return None;
        }
        flow.queued = Queued::No;
        let before = flow.stats;
        let emitted = flow.output(now, buf);
        let packet =
            emitted.map(|e| Packet { peer: flow.peer, len: e.len, expects_answer: e.expects_answer, flow: Some(flow.id) });
        self.counters.syns += u64::from(flow.stats.syns - before.syns);
        self.counters.retransmits += u64::from(flow.stats.retransmits - before.retransmits);
        self.counters.timeouts += u64::from(flow.stats.timeouts - before.timeouts);
        // An engine that wants a turn and then says nothing must not be asked without end.
        let turn = match flow.next_turn(now) {
            Turn::Now if packet.is_none() => Turn::At(now + PAUSE),
            turn => turn,
        };
        self.apply(now, slot, turn);
        self.tell(slot);
        packet
    }

    fn ask_blocked_again(&mut self) {
        self.order.since_asked = 0;
        self.outbox.release_held();
        let mut blocked = std::mem::take(&mut self.order.blocked);
        for slot in blocked.drain(..) {
            if let Some(flow) = self.flows.get_mut(slot as usize)
                && flow.queued == Queued::Blocked
            {
                flow.queued = self.order.push(slot, flow.unsent());
            }
        }
        self.order.blocked = blocked;
    }
}
