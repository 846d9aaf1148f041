//! WireGuard sessions of one node: boringtun for handshake and AEAD, everything in time of our own.
//!
//! Timers follow `path-selection.md` §9. The engine knows nothing of paths: it seals, opens, and says which datagrams it
//! wants sent to which peer. The owner picks the lane. Addresses prove nothing here: the peer of an initiation is found
//! by the static key inside, that of every other message by its receiver index.
//!
//! Invariants
//! - Nothing reaches boringtun's packet queue: without a session [`WireGuard::seal`] refuses, and the owner waits for
//!   [`Event::SessionUp`].
//! - No datagram beyond 2,048 bytes reaches boringtun, which would panic on it before authentication.
//! - boringtun's clock and random source are the one exception to sans-IO (DESIGN.md §3.5). Its clock decides nothing:
//!   ages and retries are counted here in injected time, which may run ahead of it by any amount.

mod peer;
mod session;
#[cfg(test)]
mod tests;

use crate::base::{Deadline, Instant, NodeKey, NodeSecret, PeerIx, Rng, Timers};
use crate::wire::wg::{COOKIE_LEN, MAX_DATAGRAM, Message};
use boringtun::noise::{Packet, handshake::parse_handshake_anon, rate_limiter::RateLimiter};
use boringtun::x25519;
use peer::{Peer, Shared};
use rustc_hash::FxHashMap;
use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

/// Initiations that are looked at in a burst; each costs a Diffie-Hellman exchange before its sender is known.
const INITIATION_BURST: u32 = 256;
/// How often one more becomes available: 1,000 a second.
const INITIATION_REFILL: Duration = Duration::from_millis(1);

/// What an authenticated datagram was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An IP packet; its length in the plain buffer.
    Data(usize),
    /// An empty data message.
    Keepalive,
    /// The peer begins a handshake; the response waits in [`WireGuard::poll_transmit`].
    Initiation,
    /// The peer completes our handshake; the confirming keepalive waits in [`WireGuard::poll_transmit`].
    Response,
    /// The peer is under load: the next initiation carries its cookie.
    Cookie,
}

/// An authenticated datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its sender.
    pub peer: PeerIx,
    /// Its content.
    pub what: What,
}

/// Why a datagram was dropped. All of these are normal traffic; duplicates arise whenever two paths carry copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// Longer than any tunnel of ours makes it, or than the buffer for its content.
    #[error("datagram too long")]
    TooLong,
    /// None of the four messages.
    #[error("not a WireGuard message")]
    Malformed,
    /// An initiation from a key that is no peer's.
    #[error("unknown peer")]
    UnknownPeer(NodeKey),
    /// No peer or session has this receiver index, or the session is too old.
    #[error("no such session")]
    NoSession,
    /// A counter or timestamp that was seen before.
    #[error("seen before")]
    Replay,
    /// MAC or tag does not fit.
    #[error("not authentic")]
    Forged,
    /// Authentic, but neither empty nor an IP packet.
    #[error("content is no IP packet")]
    Content,
    /// A response that no initiation awaits.
    #[error("unexpected message")]
    Unexpected,
    /// More initiations than are worth their cost.
    #[error("too many initiations")]
    Flood,
}

/// Why a packet was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no session: ask for one and wait for [`Event::SessionUp`].
    #[error("no session")]
    NoSession,
    /// The output is shorter than the padded packet and 32 bytes, or the packet is longer than a datagram may be.
    #[error("packet does not fit")]
    Buffer,
}

/// The kind of a datagram that the engine itself wants sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Begins a handshake; expects an answer.
    Initiation,
    /// Answers one.
    Response,
    /// Confirms a session or keeps it alive.
    Keepalive,
}

/// News for the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Packets can be sealed from now on, or again after the peer had been silent. A seamless renewal is no news.
    SessionUp {
        /// The peer.
        peer: PeerIx,
    },
    /// Twenty initiations in a row had no answer. The next [`WireGuard::want_session`] starts over.
    GaveUp {
        /// The peer.
        peer: PeerIx,
    },
}

/// What the engine has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Initiations sent, repetitions included.
    pub initiations_sent: u64,
    /// Responses sent.
    pub responses_sent: u64,
    /// Handshakes completed in either role.
    pub handshakes: u64,
    /// Empty packets sent.
    pub keepalives_sent: u64,
    /// Packets with content sealed.
    pub data_sent: u64,
    /// Packets with content opened.
    pub data_received: u64,
    /// Datagrams seen before: copies on a second path.
    pub replays: u64,
    /// Datagrams of a session that is gone or not yet known.
    pub without_session: u64,
    /// Datagrams dropped for every other reason.
    pub rejected: u64,
}

/// All sessions of one node.
pub struct WireGuard {
    peers: FxHashMap<PeerIx, Box<Peer>>,
    by_key: FxHashMap<NodeKey, PeerIx>,
    /// Upper 24 bits of a receiver index. A random number for each life of a session table, so that packets for a
    /// wiped session find nobody.
    by_index: FxHashMap<u32, PeerIx>,
    timers: Timers<PeerIx>,
    bucket: Bucket,
    public: x25519::PublicKey,
    shared: Shared,
}

impl WireGuard {
    /// A node without peers.
    #[must_use]
    pub fn new(secret: &NodeSecret, rng: Rng) -> Self {
        let public = x25519::PublicKey::from(*secret.public().as_bytes());
        Self {
            peers: FxHashMap::default(),
            by_key: FxHashMap::default(),
            by_index: FxHashMap::default(),
            timers: Timers::default(),
            bucket: Bucket { tokens: INITIATION_BURST, at: Instant::ZERO },
            public,
            shared: Shared {
                secret: secret.clone(),
                // Never under load: its own limit answers the eleventh handshake with a cookie.
                limiter: Arc::new(RateLimiter::new(&public, u64::MAX)),
                rng,
                transmits: VecDeque::new(),
                events: VecDeque::new(),
                counters: Counters::default(),
                scratch: Vec::with_capacity(MAX_DATAGRAM),
            },
        }
    }

    /// Makes `key` known as peer `ix`. A peer under that number or key is replaced if it differs and left alone if not.
    pub fn add_peer(&mut self, ix: PeerIx, key: NodeKey) {
        if self.peers.get(&ix).is_some_and(|p| p.key == key) {
            return;
        }
        self.remove_peer(ix);
        if let Some(&other) = self.by_key.get(&key) {
            self.remove_peer(other);
        }
        let index = self.free_index();
        self.by_index.insert(index, ix);
        self.by_key.insert(key, ix);
        self.peers.insert(ix, Box::new(Peer::new(&self.shared, ix, key, index)));
    }

    /// Forgets a peer and its sessions.
    pub fn remove_peer(&mut self, ix: PeerIx) {
        let Some(peer) = self.peers.remove(&ix) else { return };
        self.by_index.remove(&peer.index);
        self.by_key.remove(&peer.key);
        self.timers.remove(ix, peer.scheduled);
        self.shared.transmits.retain(|(to, ..)| *to != ix);
    }

    /// Wipes the sessions of a peer that has restarted: nothing it sent or will send with them counts any more.
    pub fn reset_peer(&mut self, now: Instant, ix: PeerIx) {
        let index = self.free_index();
        let Some(peer) = self.peers.get_mut(&ix) else { return };
        self.by_index.remove(&peer.index);
        self.by_index.insert(index, ix);
        peer.reset(now, &self.shared, index);
        self.shared.transmits.retain(|(to, ..)| *to != ix);
        self.reschedule(ix);
    }

    fn free_index(&mut self) -> u32 {
        loop {
            let index = self.shared.rng.u32() >> 8;
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }

    /// Sets the persistent keepalive. Turning it on sends one at once, which starts a handshake where none has been.
    pub fn set_keepalive(&mut self, now: Instant, ix: PeerIx, every: Option<Duration>) {
        self.with_peer(ix, |peer, shared| peer.set_persistent(now, shared, every));
    }

    /// Whether packets for the peer can be sealed now.
    #[must_use]
    pub fn has_session(&self, now: Instant, ix: PeerIx) -> bool {
        self.peers.get(&ix).is_some_and(|p| p.has_session(now))
    }

    /// Starts a handshake unless one runs; never sooner than five seconds after the last initiation.
    pub fn want_session(&mut self, now: Instant, ix: PeerIx) {
        self.with_peer(ix, |peer, shared| peer.want_session(now, shared));
    }

    /// Repeats the initiation of a running handshake at once, because a path has come up or is in doubt; at most every
    /// 250 ms. Does nothing when no handshake runs.
    pub fn retry_handshake(&mut self, now: Instant, ix: PeerIx) {
        self.with_peer(ix, |peer, shared| peer.retry(now, shared));
    }

    /// When the newest session was confirmed.
    #[must_use]
    pub fn last_handshake(&self, ix: PeerIx) -> Option<Instant> {
        self.peers.get(&ix)?.last_handshake
    }

    /// Opens one datagram; the content of a data message goes to the front of `plain`, which must be at least as long
    /// as the datagram.
    ///
    /// # Errors
    /// Every reason to drop it; none concerns the caller.
    pub fn open(&mut self, now: Instant, d: &[u8], plain: &mut [u8]) -> Result<Opened, Reject> {
        let opened = self.dispatch(now, d, plain);
        let counters = &mut self.shared.counters;
        match opened {
            Ok(_) => {}
            Err(Reject::Replay) => counters.replays += 1,
            Err(Reject::NoSession) => counters.without_session += 1,
            Err(_) => counters.rejected += 1,
        }
        opened
    }

    fn dispatch(&mut self, now: Instant, d: &[u8], plain: &mut [u8]) -> Result<Opened, Reject> {
        if d.len() > MAX_DATAGRAM {
            return Err(Reject::TooLong);
        }
        let message = Message::parse(d).map_err(|_| Reject::Malformed)?;
        let ix = match message {
            Message::Initiation { .. } => self.initiator(now, d)?,
            Message::Response { receiver, .. } | Message::Cookie { receiver } | Message::Data { receiver, .. } => {
                *self.by_index.get(&(receiver >> 8)).ok_or(Reject::NoSession)?
            }
        };
        let peer = self.peers.get_mut(&ix).ok_or(Reject::NoSession)?;
        let shared = &mut self.shared;
        let opened = match message {
            Message::Initiation { sender } => peer.open_initiation(now, shared, d, sender),
            Message::Response { sender, receiver } => peer.open_response(now, shared, d, receiver, sender),
            Message::Cookie { .. } => peer.open_cookie(d),
            Message::Data { receiver, .. } => peer.open_data(now, shared, d, receiver, plain),
        };
        self.reschedule(ix);
        opened
    }

    /// The peer whose static key an initiation carries.
    fn initiator(&mut self, now: Instant, d: &[u8]) -> Result<PeerIx, Reject> {
        let mut cookie = [0; COOKIE_LEN];
        let Ok(Packet::HandshakeInit(initiation)) = self.shared.limiter.verify_packet(None, d, &mut cookie) else {
            return Err(Reject::Forged);
        };
        if !self.bucket.take(now) {
            return Err(Reject::Flood);
        }
        let secret = x25519::StaticSecret::from(*self.shared.secret.expose());
        let half = parse_handshake_anon(&secret, &self.public, &initiation).map_err(|_| Reject::Forged)?;
        let key = NodeKey::from(half.peer_static_public);
        self.by_key.get(&key).copied().ok_or(Reject::UnknownPeer(key))
    }

    /// Seals an IP packet into `out`, which must hold the packet padded to 16 bytes and 32 more. Returns the length.
    ///
    /// # Errors
    /// [`SealError::NoSession`] until a handshake is complete.
    pub fn seal(&mut self, now: Instant, ix: PeerIx, plain: &[u8], out: &mut [u8]) -> Result<usize, SealError> {
        let peer = self.peers.get_mut(&ix).ok_or(SealError::NoSession)?;
        let sealed = peer.seal(now, &mut self.shared, plain, out);
        self.reschedule(ix);
        sealed
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<(PeerIx, Vec<u8>, Control)> {
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

    /// When [`WireGuard::handle_timeout`] is due; sometimes earlier than anything happens, never later.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let (at, ix) = self.timers.first()?;
        let why = self.peers.get(&ix).and_then(|p| p.due()).map_or("wireguard", |(_, why)| why);
        Some(Deadline { at, why })
    }

    /// What the engine has done so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.shared.counters
    }

    fn with_peer(&mut self, ix: PeerIx, act: impl FnOnce(&mut Peer, &mut Shared)) {
        if let Some(peer) = self.peers.get_mut(&ix) {
            act(peer, &mut self.shared);
            self.reschedule(ix);
        }
    }

    fn reschedule(&mut self, ix: PeerIx) {
        if let Some(peer) = self.peers.get_mut(&ix) {
            let due = peer.due().map(|(at, _)| at);
            self.timers.schedule(ix, &mut peer.scheduled, due);
        }
    }
}

impl fmt::Debug for WireGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireGuard").field("peers", &self.peers.len()).field("counters", &self.shared.counters).finish()
    }
}

/// A budget of initiations that fills up with time.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let earned = (now - self.at).as_nanos() / INITIATION_REFILL.as_nanos();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(INITIATION_BURST);
            self.at = now;
        }
        let Some(left) = self.tokens.checked_sub(1) else { return false };
        self.tokens = left;
        true
    }
}
