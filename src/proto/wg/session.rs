//! What the cryptographic library knows about its sessions, kept beside it in injected time.
//!
//! boringtun stores sessions in a ring of eight, by local index, and sends with the one it calls current. Its own ages
//! run on the system's clock and nothing of them can be asked for. This mirror follows the same rules (crates.md,
//! pitfalls), so that age, role and confirmation of the session in use are known here.

use crate::base::Instant;
use std::time::Duration;

const RING: usize = 8;
/// A session older than this neither sends nor receives.
pub(super) const REJECT_AFTER: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) local: u32,
    pub(super) remote: u32,
    pub(super) at: Instant,
    pub(super) initiator: bool,
    /// Nothing is sent with a responder's session before the initiator has used it.
    pub(super) confirmed: bool,
    stamp: u64,
}

impl Session {
    pub(super) fn age(&self, now: Instant) -> Duration {
        now - self.at
    }

    fn is_alive(&self, now: Instant) -> bool {
        self.age(now) < REJECT_AFTER
    }
}

#[derive(Debug, Default)]
pub(super) struct Ring {
    slots: [Option<Session>; RING],
    current: Option<u32>,
    /// How often the library has read its clock: sessions made between two readings are equally old to it.
    stamp: u64,
}

impl Ring {
    /// The library has read its clock.
    pub(super) fn tick(&mut self) {
        self.stamp += 1;
    }

    /// The library has dropped all sessions.
    pub(super) fn clear(&mut self) {
        self.slots = [None; RING];
        self.current = None;
    }

    pub(super) fn add_initiated(&mut self, now: Instant, local: u32, remote: u32) {
        self.store(Session { local, remote, at: now, initiator: true, confirmed: true, stamp: self.stamp });
        self.current = Some(local);
    }

    pub(super) fn add_answered(&mut self, now: Instant, local: u32, remote: u32) {
        self.store(Session { local, remote, at: now, initiator: false, confirmed: false, stamp: self.stamp });
    }

    fn store(&mut self, session: Session) {
        if let Some(slot) = self.slots.get_mut(session.local as usize % RING) {
            *slot = Some(session);
        }
    }

    fn slot(&self, local: u32) -> Option<&Session> {
        self.slots.get(local as usize % RING)?.as_ref().filter(|s| s.local == local)
    }

    /// The session of a receiver index, unless it is too old.
    pub(super) fn receiving(&self, now: Instant, local: u32) -> Option<Session> {
        self.slot(local).filter(|s| s.is_alive(now)).copied()
    }

    /// The session that the next packet is sent with.
    pub(super) fn sending(&self, now: Instant) -> Option<Session> {
        self.current.and_then(|local| self.slot(local)).filter(|s| s.confirmed && s.is_alive(now)).copied()
    }

    /// A packet of the session `local` was authenticated. Returns whether that confirmed the session.
    pub(super) fn received(&mut self, local: u32) -> bool {
        let Some(session) = self.slots.get_mut(local as usize % RING).and_then(|s| s.as_mut().filter(|s| s.local == local))
        else {
            return false;
        };
        let confirms = !session.confirmed;
        session.confirmed = true;
        let stamp = session.stamp;
        // The library's rule: a session at least as young as the current one replaces it when it is used.
        if self.current.and_then(|current| self.slot(current)).is_none_or(|current| stamp >= current.stamp) {
            self.current = Some(local);
        }
        confirms
    }

    /// The library has sent with the session whose receiver is `remote`: its choice is what counts.
    pub(super) fn sent_with(&mut self, remote: u32) {
        let by = |s: &&Session| s.remote == remote;
        if self.current.and_then(|local| self.slot(local)).as_ref().is_some_and(by) {
            return;
        }
        if let Some(local) = self.slots.iter().flatten().find(by).map(|s| s.local) {
            self.current = Some(local);
        }
    }

    /// Whether a session of any age is held.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Instant = Instant::ZERO;

    #[test]
    fn an_answered_session_sends_only_after_its_first_packet() {
        let mut ring = Ring::default();
        ring.tick();
        ring.add_answered(T0, 0x101, 7);
        assert_eq!(ring.sending(T0), None);
        assert!(ring.received(0x101));
        assert_eq!(ring.sending(T0).map(|s| s.remote), Some(7));
        assert!(!ring.received(0x101), "it is confirmed once");
    }

    #[test]
    fn a_late_packet_of_the_older_session_does_not_bring_it_back() {
        let mut ring = Ring::default();
        ring.tick();
        ring.add_initiated(T0, 0x101, 7);
        ring.tick();
        ring.add_initiated(T0, 0x102, 8);
        ring.received(0x101);
        assert_eq!(ring.sending(T0).map(|s| s.remote), Some(8));
    }

    #[test]
    fn a_session_ends_after_180_seconds() {
        let mut ring = Ring::default();
        ring.add_initiated(T0, 0x101, 7);
        let (before, after) = (T0 + Duration::from_nanos(179_999_999_999), T0 + REJECT_AFTER);
        assert!(ring.sending(before).is_some() && ring.receiving(before, 0x101).is_some());
        assert!(ring.sending(after).is_none() && ring.receiving(after, 0x101).is_none());
    }

    #[test]
    fn the_ninth_session_takes_the_place_of_the_first() {
        let mut ring = Ring::default();
        for local in 1..=9 {
            ring.tick();
            ring.add_answered(T0, local, local + 100);
        }
        assert!(ring.receiving(T0, 1).is_none());
        assert!(ring.receiving(T0, 2).is_some());
        assert!(ring.receiving(T0, 9).is_some());
    }
}
