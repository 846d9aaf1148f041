//! One peer: a boringtun tunnel and the timers around it.

use super::session::{Ring, Session};
use super::{Control, Counters, Event, Opened, Reject, SealError, What};
use crate::base::{Instant, NodeKey, NodeSecret, PeerIx, Rng};
use crate::wire::wg::{DATA_OVERHEAD, INITIATION_LEN, MAX_DATAGRAM, Message, padded_len};
use boringtun::noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter};
use boringtun::x25519;
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// Between two initiations, plus up to [`JITTER`].
const RETRY: Duration = Duration::from_secs(5);
const JITTER: Duration = Duration::from_millis(333);
/// The same between the first two of a handshake without a session before it. A peer that learns of us from the
/// coordinator may hear the first before it knows us, and somebody waits for a connection.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Between two initiations when the owner asks for a repetition because the path changed.
const REPEAT_GAP: Duration = Duration::from_millis(250);
/// Unanswered initiations after which a handshake is given up.
const TRIES: u32 = 20;
/// An initiator renews a session of this age when it sends.
const REKEY_ON_SEND: Duration = Duration::from_secs(120);
/// An initiator renews a session of this age when it receives.
const REKEY_ON_RECEIVE: Duration = Duration::from_secs(165);
/// Data received and nothing sent for this long: an empty packet is due.
const PASSIVE_KEEPALIVE: Duration = Duration::from_secs(10);
/// Data sent and nothing heard for this long, plus up to [`JITTER`]: the peer may have lost the session.
const NO_ANSWER: Duration = Duration::from_secs(15);
/// Keys are erased after this long without a handshake.
const ERASE: Duration = Duration::from_secs(540);
/// Initiations of one peer closer together than this are a flood.
const INITIATION_GAP: Duration = Duration::from_millis(50);

/// What all peers of a node share.
pub(super) struct Shared {
    pub(super) secret: NodeSecret,
    pub(super) limiter: Arc<RateLimiter>,
    pub(super) rng: Rng,
    pub(super) transmits: VecDeque<(PeerIx, Vec<u8>, Control)>,
    pub(super) events: VecDeque<Event>,
    pub(super) counters: Counters,
    /// A packet with its padding.
    pub(super) scratch: Vec<u8>,
}

impl Shared {
    fn tunnel(&self, peer: NodeKey, index: u32) -> Tunn {
        let secret = x25519::StaticSecret::from(*self.secret.expose());
        let limiter = Some(Arc::clone(&self.limiter));
        Tunn::new(secret, x25519::PublicKey::from(*peer.as_bytes()), None, None, index, limiter)
    }
}

/// A handshake of ours that is under way.
#[derive(Debug, Clone, Copy)]
struct Run {
    tries: u32,
    next: Instant,
}

pub(super) struct Peer {
    pub(super) ix: PeerIx,
    pub(super) key: NodeKey,
    /// The upper 24 bits of all receiver indices of this peer.
    pub(super) index: u32,
    /// The entry in the owner's timer queue: never later than [`Peer::due`].
    pub(super) scheduled: Option<Instant>,
    pub(super) last_handshake: Option<Instant>,
    tunn: Tunn,
    ring: Ring,
    run: Option<Run>,
    last_initiation: Option<Instant>,
    /// Local index of the newest initiation. Only its response counts: a Go responder forgets the sessions of all
    /// older ones, so that sending with such a session would be talking to nobody.
    awaited: Option<u32>,
    initiation_heard: Option<Instant>,
    passive_keepalive: Option<Instant>,
    another_keepalive: bool,
    no_answer: Option<Instant>,
    /// When the oldest data packet that nothing has followed was sent.
    unanswered_since: Option<Instant>,
    persistent: Option<Duration>,
    persistent_due: Option<Instant>,
    erase: Option<Instant>,
    /// The renewal on receipt happens once a session.
    renewed_on_receive: bool,
}

impl Peer {
    pub(super) fn new(shared: &Shared, ix: PeerIx, key: NodeKey, index: u32) -> Self {
        Self {
            ix,
            key,
            index,
            scheduled: None,
            last_handshake: None,
            tunn: shared.tunnel(key, index),
            ring: Ring::default(),
            run: None,
            last_initiation: None,
            awaited: None,
            initiation_heard: None,
            passive_keepalive: None,
            another_keepalive: false,
            no_answer: None,
            unanswered_since: None,
            persistent: None,
            persistent_due: None,
            erase: None,
            renewed_on_receive: false,
        }
    }

    /// Forgets every session under a new index; only the persistent keepalive setting stays.
    pub(super) fn reset(&mut self, now: Instant, shared: &Shared, index: u32) {
        let (persistent, scheduled) = (self.persistent, self.scheduled);
        *self = Self { persistent, scheduled, ..Self::new(shared, self.ix, self.key, index) };
        self.persistent_due = persistent.map(|_| now);
    }

    pub(super) fn has_session(&self, now: Instant) -> bool {
        self.ring.sending(now).is_some()
    }

    /// The earliest moment at which [`Peer::handle_timeout`] has something to do.
    pub(super) fn due(&self) -> Option<(Instant, &'static str)> {
        [
            (self.run.map(|r| r.next), "handshake retry"),
            (self.passive_keepalive, "passive keepalive"),
            (self.no_answer, "no answer"),
            (self.persistent_due, "persistent keepalive"),
            (self.erase, "key erasure"),
        ]
        .into_iter()
        .filter_map(|(at, why)| at.map(|at| (at, why)))
        .min()
    }

    pub(super) fn set_persistent(&mut self, now: Instant, shared: &mut Shared, every: Option<Duration>) {
        let every = every.filter(|every| !every.is_zero());
        if every == self.persistent {
            return;
        }
        let was_off = self.persistent.is_none();
        self.persistent = every;
        self.persistent_due = every.map(|every| now + every);
        if was_off && every.is_some() {
            self.send_keepalive(now, shared);
        }
    }

    /// Starts a handshake unless one runs; not sooner than five seconds after the last initiation.
    pub(super) fn want_session(&mut self, now: Instant, shared: &mut Shared) {
        if self.run.is_some() {
            return;
        }
        let next = self.last_initiation.map_or(now, |last| last + RETRY);
        self.run = Some(Run { tries: 0, next });
        if next <= now {
            self.initiate(now, shared);
        }
    }

    /// Repeats the initiation of a running handshake at once, or as soon as the gap to the last one allows.
    pub(super) fn retry(&mut self, now: Instant, shared: &mut Shared) {
        let Some(run) = &mut self.run else { return };
        let soonest = self.last_initiation.map_or(now, |last| last + REPEAT_GAP);
        if soonest <= now {
            self.initiate(now, shared);
        } else {
            run.next = run.next.min(soonest);
        }
    }

    fn initiate(&mut self, now: Instant, shared: &mut Shared) {
        self.read_library_clock();
        let mut buf = vec![0; INITIATION_LEN];
        let tries = self.run.map_or(0, |r| r.tries) + 1;
        let pause = if tries == 1 && self.ring.sending(now).is_none() { FIRST_RETRY } else { RETRY };
        let next = now + pause + shared.rng.between(Duration::ZERO, JITTER);
        self.run = Some(Run { tries, next });
        self.last_initiation = Some(now);
        let TunnResult::WriteToNetwork(packet) = self.tunn.format_handshake_initiation(&mut buf, true) else { return };
        let Ok(Message::Initiation { sender }) = Message::parse(packet) else { return };
        self.awaited = Some(sender);
        shared.counters.initiations_sent += 1;
        shared.transmits.push_back((self.ix, buf, Control::Initiation));
        self.sent(now);
    }

    /// Makes the library read its clock, which it does nowhere else, and discards what it wants to do about it.
    ///
    /// Without a reading between two sessions both are equally old to it, and a late packet of the first would make it
    /// send with the first again. Side effects, from its source: the buffer is too short for an initiation, so that
    /// none can replace the one that is awaited, and long enough for a keepalive, which would panic otherwise; sessions
    /// beyond 180 s of real time go, as they do here; and after 90 s of unanswered initiations or 540 s without a
    /// handshake it drops everything and calls itself expired, from which the next handshake message recovers it.
    /// Therefore never before a response: the answer to a late try would be refused.
    fn read_library_clock(&mut self) {
        let mut scratch = [0; INITIATION_LEN - 1];
        let _ = self.tunn.update_timers(&mut scratch);
        self.ring.tick();
        if self.tunn.is_expired() {
            self.ring.clear();
        }
    }

    pub(super) fn seal(&mut self, now: Instant, shared: &mut Shared, plain: &[u8], out: &mut [u8]) -> Result<usize, SealError> {
        let padded = padded_len(plain.len());
        if padded + DATA_OVERHEAD > out.len().min(MAX_DATAGRAM) {
            return Err(SealError::Buffer);
        }
        let session = self.ring.sending(now).ok_or(SealError::NoSession)?;
        let content = if padded == plain.len() {
            plain
        } else {
            shared.scratch.clear();
            shared.scratch.extend_from_slice(plain);
            shared.scratch.resize(padded, 0);
            &shared.scratch
        };
        let len = match self.tunn.encapsulate(content, out) {
            TunnResult::WriteToNetwork(packet) => match Message::parse(packet) {
                Ok(Message::Data { receiver, .. }) => {
                    self.ring.sent_with(receiver);
                    Some(packet.len())
                }
                _ => None,
            },
            _ => None,
        };
        let Some(len) = len else {
            // The library has dropped a session that is young in injected time: the two clocks disagree.
            self.ring.clear();
            return Err(SealError::NoSession);
        };
        self.sent(now);
        if !plain.is_empty() {
            shared.counters.data_sent += 1;
            self.unanswered_since.get_or_insert(now);
            if self.no_answer.is_none() {
                self.no_answer = Some(now + NO_ANSWER + shared.rng.between(Duration::ZERO, JITTER));
            }
        }
        if session.initiator && session.age(now) > REKEY_ON_SEND {
            self.want_session(now, shared);
        }
        Ok(len)
    }

    /// Sends an empty packet, or starts a handshake where there is no session to send it with.
    fn send_keepalive(&mut self, now: Instant, shared: &mut Shared) {
        let mut buf = vec![0; DATA_OVERHEAD];
        match self.seal(now, shared, &[], &mut buf) {
            Ok(_) => {
                shared.counters.keepalives_sent += 1;
                shared.transmits.push_back((self.ix, buf, Control::Keepalive));
            }
            Err(_) => self.want_session(now, shared),
        }
    }

    pub(super) fn open_initiation(&mut self, now: Instant, shared: &mut Shared, d: &[u8], remote: u32) -> Result<Opened, Reject> {
        if self.initiation_heard.is_some_and(|last| now - last < INITIATION_GAP) {
            return Err(Reject::Flood);
        }
        self.read_library_clock();
        let mut buf = [0; INITIATION_LEN];
        let response = match self.tunn.decapsulate(None, d, &mut buf) {
            TunnResult::WriteToNetwork(response) => response,
            TunnResult::Err(e) => return Err(reject(&e)),
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                return Err(Reject::Unexpected);
            }
        };
        let Ok(Message::Response { sender, .. }) = Message::parse(response) else { return Err(Reject::Unexpected) };
        shared.transmits.push_back((self.ix, response.to_vec(), Control::Response));
        shared.counters.responses_sent += 1;
        self.ring.add_answered(now, sender, remote);
        self.initiation_heard = Some(now);
        self.erase = Some(now + ERASE);
        self.heard(now);
        self.sent(now);
        Ok(Opened { peer: self.ix, what: What::Initiation })
    }

    pub(super) fn open_response(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        d: &[u8],
        local: u32,
        remote: u32,
    ) -> Result<Opened, Reject> {
        if self.awaited != Some(local) {
            return Err(Reject::Unexpected);
        }
        let mut buf = [0; INITIATION_LEN];
        let keepalive = match self.tunn.decapsulate(None, d, &mut buf) {
            TunnResult::WriteToNetwork(keepalive) => keepalive.to_vec(),
            TunnResult::Err(e) => return Err(reject(&e)),
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                return Err(Reject::Unexpected);
            }
        };
        let was_usable = self.has_session(now);
        let silent = self.is_silent(now);
        self.awaited = None;
        self.ring.add_initiated(now, local, remote);
        self.heard(now);
        self.handshake_complete(now, shared, was_usable && !silent);
        // The confirmation: until it arrives the responder may not send.
        shared.counters.keepalives_sent += 1;
        shared.transmits.push_back((self.ix, keepalive, Control::Keepalive));
        // Nothing is ever queued inside the library; what it might hold all the same is not ours to send.
        while matches!(self.tunn.decapsulate(None, &[], &mut buf), TunnResult::WriteToNetwork(_)) {}
        self.sent(now);
        Ok(Opened { peer: self.ix, what: What::Response })
    }

    pub(super) fn open_cookie(&mut self, d: &[u8]) -> Result<Opened, Reject> {
        match self.tunn.decapsulate(None, d, &mut []) {
            TunnResult::Done => Ok(Opened { peer: self.ix, what: What::Cookie }),
            TunnResult::Err(e) => Err(reject(&e)),
            TunnResult::WriteToNetwork(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                Err(Reject::Unexpected)
            }
        }
    }

    pub(super) fn open_data(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        d: &[u8],
        local: u32,
        plain: &mut [u8],
    ) -> Result<Opened, Reject> {
        let session = self.ring.receiving(now, local).ok_or(Reject::NoSession)?;
        if plain.len() < d.len() {
            return Err(Reject::TooLong);
        }
        let content = match self.tunn.decapsulate(None, d, plain) {
            TunnResult::Done => Ok(0),
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => Ok(packet.len()),
            // The head was read before, so this is about the decrypted content: the packet itself is genuine.
            TunnResult::Err(WireGuardError::InvalidPacket) => Err(Reject::Content),
            TunnResult::Err(WireGuardError::NoCurrentSession | WireGuardError::WrongIndex) => {
                self.ring.clear();
                return Err(Reject::NoSession);
            }
            TunnResult::Err(e) => return Err(reject(&e)),
            TunnResult::WriteToNetwork(_) => return Err(Reject::Unexpected),
        };
        let was_usable = self.has_session(now);
        let silent = self.is_silent(now);
        let confirms = self.ring.received(local);
        if confirms {
            self.handshake_complete(now, shared, was_usable && !silent);
        }
        self.heard(now);
        self.renew_on_receive(now, shared, session);
        if content != Ok(0) {
            shared.counters.data_received += 1;
            if self.passive_keepalive.is_none() {
                self.passive_keepalive = Some(now + PASSIVE_KEEPALIVE);
            } else {
                self.another_keepalive = true;
            }
        }
        let what = match content? {
            0 => What::Keepalive,
            len => What::Data(len),
        };
        Ok(Opened { peer: self.ix, what })
    }

    fn renew_on_receive(&mut self, now: Instant, shared: &mut Shared, session: Session) {
        if session.initiator && session.age(now) > REKEY_ON_RECEIVE && !self.renewed_on_receive {
            self.renewed_on_receive = true;
            self.want_session(now, shared);
        }
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.unanswered_since.is_some_and(|since| now - since >= NO_ANSWER)
    }

    fn handshake_complete(&mut self, now: Instant, shared: &mut Shared, seamless: bool) {
        self.run = None;
        self.renewed_on_receive = false;
        self.last_handshake = Some(now);
        self.erase = Some(now + ERASE);
        shared.counters.handshakes += 1;
        if !seamless {
            shared.events.push_back(Event::SessionUp { peer: self.ix });
        }
    }

    /// An authenticated packet has come in.
    fn heard(&mut self, now: Instant) {
        self.no_answer = None;
        self.unanswered_since = None;
        self.persistent_due = self.persistent.map(|every| now + every);
    }

    /// A packet has gone out.
    fn sent(&mut self, now: Instant) {
        self.passive_keepalive = None;
        self.another_keepalive = false;
        self.persistent_due = self.persistent.map(|every| now + every);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, shared: &mut Shared) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(run) = self.run.filter(|run| run.next <= now) {
            if run.tries < TRIES {
                self.initiate(now, shared);
            } else {
                self.give_up(now, shared);
            }
        }
        if is_due(self.no_answer) {
            self.no_answer = None;
            self.want_session(now, shared);
        }
        if is_due(self.passive_keepalive) {
            self.passive_keepalive = self.another_keepalive.then_some(now + PASSIVE_KEEPALIVE);
            self.another_keepalive = false;
            let again = self.passive_keepalive;
            self.send_keepalive(now, shared);
            self.passive_keepalive = again;
        }
        if is_due(self.persistent_due) {
            self.persistent_due = self.persistent.map(|every| now + every);
            self.send_keepalive(now, shared);
        }
        if is_due(self.erase) {
            self.erase = None;
            self.erase_keys(shared);
        }
    }

    fn give_up(&mut self, now: Instant, shared: &mut Shared) {
        self.run = None;
        self.passive_keepalive = None;
        self.another_keepalive = false;
        if self.erase.is_none() && !self.ring.is_empty() {
            self.erase = Some(now + ERASE);
        }
        shared.events.push_back(Event::GaveUp { peer: self.ix });
    }

    /// Drops all keys but keeps the tunnel: its timestamps run on a monotonic clock, and a new tunnel's could lie before
    /// those the peer has seen.
    fn erase_keys(&mut self, shared: &Shared) {
        self.ring.clear();
        let secret = x25519::StaticSecret::from(*shared.secret.expose());
        let public = x25519::PublicKey::from(&secret);
        self.tunn.set_static_private(secret, public, Some(Arc::clone(&shared.limiter)));
    }
}

fn reject(e: &WireGuardError) -> Reject {
    match e {
        WireGuardError::WrongTai64nTimestamp | WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => {
            Reject::Replay
        }
        WireGuardError::InvalidMac | WireGuardError::InvalidAeadTag | WireGuardError::WrongKey => Reject::Forged,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => Reject::NoSession,
        WireGuardError::UnexpectedPacket
        | WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::InvalidPacket
        | WireGuardError::LockFailed
        | WireGuardError::ConnectionExpired
        | WireGuardError::UnderLoad => Reject::Unexpected,
    }
}
