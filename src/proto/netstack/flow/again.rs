//! How a flow makes its engine send again: fed ACKs, and time turned forward to the engine's own timer.

use super::{Again, CloseReason, Flight, Flow, HEADERS, Port, REPLY, USER_TIMEOUT, USER_TIMEOUT_TRIES, before, smol};
use crate::{
    base::Instant,
    wire::ip::{Tcp, TcpFlags, TcpOptions},
};
use smoltcp::{socket::tcp::CongestionControl, time};
use std::net::Ipv6Addr;

impl Flow {
    /// Has the engine repair losses that it would leave to its timer.
    pub(super) fn watch_acks(&mut self, now: Instant, tcp: &Tcp<'_>, una_before: u32) {
        if self.end.is_some() || self.is_opening() || !tcp.flags.has(TcpFlags::ACK) {
            return;
        }
        let una = self.una();
        if before(self.snd_max, una) {
            // The byte of a probe, which was not counted when it left. What we send next bears the number behind it, or
            // the peer takes our ACKs for old segments.
            self.snd_max = una;
        }
        let flight = self.flight();
        let is_duplicate = tcp.payload.is_empty() && tcp.ack == flight.una;
        if is_duplicate
            && let Some(block) = TcpOptions::parse(tcp.options).sack[0]
            && !before(block.0, flight.una)
            && !before(flight.max, block.1)
        {
            self.repair.handle_sack(block);
        }
        let again = self.repair.handle_ack(now, una_before, flight, is_duplicate);
        if let Some(rtt) = self.repair.measured() {
            self.window.add_sample(now, rtt);
        }
        if before(una_before, flight.una) {
            let acked = flight.una.wrapping_sub(una_before) as usize;
            let total = self.stats.written - self.view().send_queue() as u64;
            self.window.handle_ack(now, flight.una, flight.max, acked, total);
        }
        if self.starts_over && !self.repair.is_starting_over() {
            self.starts_over = false;
            self.tcp().set_congestion_control(CongestionControl::None);
        }
        self.send_again(now, again);
    }

    pub(super) fn flight(&self) -> Flight {
        Flight { una: self.una(), max: self.snd_max }
    }

    fn send_again(&mut self, now: Instant, again: Option<Again>) {
        if again == Some(Again::All) && !self.starts_over {
            self.starts_over = true;
            self.tcp().set_congestion_control(CongestionControl::Cubic);
            let in_flight = self.in_flight() as usize;
            self.window.handle_congestion(now, in_flight);
        }
        if again != Some(Again::First) {
            // To start over, the engine gets its next turn at the time of its own timer, see `engine_time`.
            return;
        }
        if self.view().send_queue() > 0 {
            self.send_first_again(now);
        } else {
            // A lone FIN is sent again by the engine's timer only.
            self.repair.start_over();
        }
    }

    /// Whether the peer's window is closed to bytes of ours.
    pub(super) fn waits_for_a_window(&self) -> bool {
        self.peer_window == Some(0) && self.view().send_queue() > 0 && !self.is_opening()
    }

    /// Has the engine go on that has bytes to send and no timer. A retransmission timer that ends at a closed window stops it,
    /// and so does a window that opens behind a closed one while nothing but what is in flight is left to send: if what the
    /// peer said last is lost then, both sides are silent for good.
    pub(super) fn wake_engine(&mut self, now: Instant) {
        if self.waits_for_a_window() {
            // Told again that the window is closed, it begins to probe it.
            self.tell_engine(now, 0);
        } else if self.view().send_queue() > 0 && self.iface.poll_at(smol(now), &self.sockets).is_none() {
            self.repair.first_again();
            self.send_first_again(now);
        }
    }

    /// Makes the engine send the first unacknowledged segment at its next turn, by telling it three times more what
    /// the peer has acknowledged last. An ACK with another window first ends whatever it has counted so far.
    fn send_first_again(&mut self, now: Instant) {
        let Some(window) = self.peer_window else { return };
        let steps: &[u16] = match window {
            // A closed window is probed: the peer's answer tells its real one.
            0 => &[1],
            1 => &[2, 1, 1, 1, 1],
            _ => &[window - 1, window, window, window, window],
        };
        steps.iter().for_each(|window| self.tell_engine(now, *window));
    }

    /// Gives the engine an ACK as the peer would send it: what it has acknowledged last, with this window.
    fn tell_engine(&mut self, now: Instant, window: u16) {
        let (mut packet, mut scratch) = (Vec::with_capacity(HEADERS), [0; REPLY]);
        let tcp = Tcp {
            src_port: self.key.remote_port,
            dst_port: self.key.local_port,
            seq: self.rcv_nxt(),
            ack: self.una(),
            flags: TcpFlags::ACK,
            window,
            options: &[],
            payload: &[],
        };
        tcp.write(Ipv6Addr::from_bits(self.key.remote), Ipv6Addr::from_bits(self.key.local), &mut packet);
        let mut port = Port::new(Some(&packet), &mut scratch);
        self.iface.poll_ingress_single(smol(now), &mut port, &mut self.sockets);
    }

    /// Sends at once again what is unacknowledged: the path has changed, and what was in flight may be lost. Segments
    /// with data follow at the flow's next turn; the SYN, which the engine leaves to its timer, goes to `out`.
    pub(in crate::proto::netstack) fn kick(&mut self, now: Instant, out: &mut Vec<u8>) {
        if self.end.is_some() {
            return;
        }
        if self.is_opening() {
            out.extend_from_slice(&self.syn);
            self.stats.syns += u32::from(!self.syn.is_empty());
            self.stats.kicks += u32::from(!self.syn.is_empty());
            self.syn_sent = None;
            return;
        }
        self.window.handle_path_change();
        let again = self.repair.handle_path_change(now, self.flight());
        self.send_again(now, again);
        let closed = self.peer_window == Some(0) && self.view().send_queue() > 0;
        if again.is_none() && closed {
            self.send_first_again(now);
        }
        self.stats.kicks += u32::from(again.is_some() || closed);
    }

    /// Lets time pass.
    pub(in crate::proto::netstack) fn handle_timeout(&mut self, now: Instant) {
        if self.end.is_some() {
            return;
        }
        if !self.is_opening() {
            let (again, is_timeout) = self.repair.handle_timeout(now, self.flight());
            self.stats.timeouts += u32::from(is_timeout);
            self.stats.probes += u32::from(again.is_some() && !is_timeout);
            self.send_again(now, again);
        }
        if self.repair.is_silent(now, USER_TIMEOUT, USER_TIMEOUT_TRIES) {
            self.end = Some(CloseReason::TimedOut);
        }
    }

    /// The time that the engine is told at its turn: when everything must be sent again, that of its own timer.
    pub(super) fn engine_time(&mut self, now: Instant) -> time::Instant {
        let now = smol(now);
        if self.repair.asked() != Some(Again::All) {
            return now;
        }
        self.iface.poll_at(now, &self.sockets).map_or(now, |at| at.max(now))
    }
}
