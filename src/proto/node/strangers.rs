//! Handshakes that run ahead of their sender's announcement.
//!
//! The two sides of a tunnel hear of each other at different times, and the one that hears first may begin at once. Its
//! initiation is not repeated for five seconds (`path-selection.md` §9), so it is held until its key is a peer's.

use crate::base::{Instant, NodeKey, Via};
use std::{collections::VecDeque, time::Duration};

/// By then the sender has begun another handshake.
const LIFE: Duration = Duration::from_secs(5);
/// Anybody may send what looks like an initiation of anybody: a few are held, the newest ones.
const MAX_HELD: usize = 16;

#[derive(Debug)]
struct Initiation {
    at: Instant,
    via: Via,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Strangers(VecDeque<(NodeKey, Initiation)>);

impl Strangers {
    /// Holds an initiation of `key` in place of an older one.
    pub(super) fn hold(&mut self, now: Instant, key: NodeKey, via: Via, bytes: &[u8]) {
        self.0.retain(|(held, initiation)| *held != key && now - initiation.at < LIFE);
        if self.0.len() == MAX_HELD {
            self.0.pop_front();
        }
        self.0.push_back((key, Initiation { at: now, via, bytes: bytes.to_vec() }));
    }

    /// The initiation of a key that is a peer's now.
    pub(super) fn take(&mut self, now: Instant, key: &NodeKey) -> Option<(Via, Vec<u8>)> {
        let at = self.0.iter().position(|(held, _)| held == key)?;
        let (_, initiation) = self.0.remove(at)?;
        (now - initiation.at < LIFE).then_some((initiation.via, initiation.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn key(n: u8) -> NodeKey {
        NodeKey::from([n; 32])
    }

    fn via() -> Via {
        Via::Udp { socket: crate::base::SocketIx(0), from: SocketAddr::from(([192, 0, 2, 1], 7)) }
    }

    #[test]
    fn the_newest_of_a_key_is_held_once_and_not_for_long() {
        let mut strangers = Strangers::default();
        let at = |ms| Instant::ZERO + Duration::from_millis(ms);
        strangers.hold(at(0), key(1), via(), b"old");
        strangers.hold(at(10), key(1), via(), b"new");
        strangers.hold(at(10), key(2), via(), b"late");
        assert_eq!(strangers.take(at(20), &key(1)).unwrap().1, b"new");
        assert!(strangers.take(at(20), &key(1)).is_none());
        assert!(strangers.take(at(10) + LIFE, &key(2)).is_none());
    }

    #[test]
    fn a_flood_of_keys_holds_a_few() {
        let mut strangers = Strangers::default();
        for n in 0..200 {
            strangers.hold(Instant::ZERO, key(n), via(), b"x");
        }
        assert_eq!(strangers.0.len(), MAX_HELD);
        assert!(strangers.take(Instant::ZERO, &key(199)).is_some());
    }
}
