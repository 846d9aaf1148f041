//! The client's side of one connection to a relay (`derp.md` §4–5).
//!
//! ```text
//! connected ──greeting──► sends login (and NotePreferred) = ready ──ServerInfo──► rate limit known
//!     └── 10 s ──► dead          └── 120 s without a frame, or an unanswered ping ──► dead
//! ```
//! The engine is ready before the server has answered the login: a client may send right behind it.

use super::inbox::{Inbox, Judgement};
use crate::{
    base::{Deadline, Instant, NodeKey, NodeSecret, Rng},
    wire::derp::{
        ClientInfo, Frame, GoneReason, HEADER, Header, LoginError, MAX_FRAME, MAX_GREETING, MAX_PACKET, ServerInfo, kind,
        write_send_packet,
    },
};
use std::time::Duration;

/// How long connecting and login may take in all.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a silent connection counts as alive. Servers send a keepalive at least every 65 s.
const SILENCE: Duration = Duration::from_secs(120);
/// How long the answer to a ping may take that asks whether the connection has outlived a change of the network.
pub const PING_LIMIT: Duration = Duration::from_secs(3);
/// How much of our own frames (pongs) may wait for the stream.
const MAX_OWN_OUTPUT: usize = 16 << 10;
/// In nanoseconds.
const SECOND: u128 = 1_000_000_000;
/// What a packet costs of the rate limit beside its own length.
const PACKET_COST: usize = HEADER + 32;

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received<'a> {
    /// A packet from a peer.
    Packet {
        /// Its sender, as the relay knows it.
        from: NodeKey,
        /// The bytes.
        packet: &'a [u8],
    },
    /// The relay cannot reach a peer any more. The peer may well be alive elsewhere.
    PeerGone {
        /// Whom it is about.
        peer: NodeKey,
        /// Why.
        reason: GoneReason,
    },
    /// The relay has a problem to show, or none any more.
    Health(&'a str),
    /// The relay announces its restart.
    Restarting {
        /// When to connect again.
        reconnect_in: Duration,
        /// How long to try.
        try_for: Duration,
    },
}

/// Why the connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// What greets us is no relay.
    #[error("the server does not greet as a relay")]
    Greeting,
    /// A frame beyond all bounds.
    #[error("the relay announced a frame of {0} bytes")]
    TooLong(usize),
    /// The server's answer to the login is not sealed by the key it greeted with.
    #[error("the relay's answer to the login is bad: {0}")]
    Login(#[from] LoginError),
    /// No greeting in time.
    #[error("the relay did not greet within {} s", LOGIN_TIMEOUT.as_secs())]
    LoginTimeout,
    /// No frame in time.
    #[error("the relay has fallen silent")]
    Silent,
}

/// A limit on what we may send, set by the server.
#[derive(Debug)]
struct Bucket {
    /// Never 0.
    per_second: u64,
    burst: u64,
    tokens: u64,
    filled: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, cost: u64) -> bool {
        let grown = u128::from(self.per_second) * (now - self.filled).as_nanos() / SECOND;
        let used = (grown * SECOND).div_ceil(u128::from(self.per_second));
        self.tokens = self.tokens.saturating_add(u64::try_from(grown).unwrap_or(u64::MAX)).min(self.burst);
        // The time that made no whole token yet counts next time.
        self.filled += Duration::from_nanos(u64::try_from(used).unwrap_or(u64::MAX));
        let enough = self.tokens >= cost;
        if enough {
            self.tokens -= cost;
        }
        enough
    }
}

/// The client's engine of one connection.
#[derive(Debug)]
pub struct RelayClient {
    secret: NodeSecret,
    rng: Rng,
    server: Option<NodeKey>,
    preferred: bool,
    limit: Option<Bucket>,
    info: Option<ServerInfo>,
    inbox: Inbox,
    out: Vec<u8>,
    opened: Instant,
    last_frame: Instant,
    /// A ping of ours must be followed by any frame before this.
    answer_by: Option<Instant>,
}

impl RelayClient {
    /// The engine of a stream that opens now: after the HTTP upgrade, or while it still runs.
    #[must_use]
    pub const fn new(now: Instant, secret: NodeSecret, rng: Rng) -> Self {
        Self {
            secret,
            rng,
            server: None,
            preferred: false,
            limit: None,
            info: None,
            inbox: Inbox::new(),
            out: Vec::new(),
            opened: now,
            last_frame: now,
            answer_by: None,
        }
    }

    /// What the server answered to the login; with it, others can reach us through it.
    #[must_use]
    pub const fn server_info(&self) -> Option<&ServerInfo> {
        self.info.as_ref()
    }

    /// Whether packets can be sent.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.server.is_some()
    }

    /// Tells the relay whether it is our home; said again by itself at login.
    pub fn set_preferred(&mut self, preferred: bool) {
        if self.preferred != preferred {
            self.preferred = preferred;
            if self.is_ready() {
                Frame::NotePreferred(preferred).write(&mut self.out);
            }
        }
    }

    /// Asks the relay for a sign of life within `wait`; without one the connection is dead.
    pub fn ping(&mut self, now: Instant, wait: Duration) {
        if self.is_ready() && self.answer_by.is_none() {
            self.answer_by = Some(now + wait);
            Frame::Ping(self.rng.bytes()).write(&mut self.out);
        }
    }

    /// Takes bytes off the stream, cut anywhere, and hands out what they bring.
    ///
    /// # Errors
    /// When the connection must be closed; see [`Fatal`].
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8], on: &mut impl FnMut(Received<'_>)) -> Result<(), Fatal> {
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut input = bytes;
        loop {
            let ready = self.is_ready();
            let Some((kind, payload)) = inbox.next(&mut input, |header| judge(ready, header))? else { break };
            self.last_frame = now;
            self.answer_by = None;
            match Frame::parse(kind, payload) {
                Ok(frame) => self.handle_frame(now, frame, on)?,
                // Clients pass over a frame that does not fit its type, but for the two of the login.
                Err(_) if !ready => return Err(Fatal::Greeting),
                Err(_) if kind == kind::SERVER_INFO => return Err(LoginError::Sealed.into()),
                Err(_) => {}
            }
        }
        self.inbox = inbox;
        Ok(())
    }

    /// Appends a packet for `to`. `false` when it was dropped: not ready, too long, or beyond the server's rate limit.
    pub fn write_packet(&mut self, now: Instant, to: &NodeKey, packet: &[u8], out: &mut Vec<u8>) -> bool {
        if !self.is_ready() || packet.len() > MAX_PACKET {
            return false;
        }
        let cost = u64::try_from(PACKET_COST + packet.len()).unwrap_or(u64::MAX);
        if self.limit.as_mut().is_some_and(|limit| !limit.take(now, cost)) {
            return false;
        }
        write_send_packet(to, packet, out);
        true
    }

    /// Whether the server has set a rate limit, so that packets must go through [`write_packet`](Self::write_packet).
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Moves the engine's own frames (login, pongs, NotePreferred) to `out`. They go before any packet.
    pub fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
    }

    /// Whether [`poll_output`](Self::poll_output) has something.
    #[must_use]
    pub const fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Looks at the clock.
    ///
    /// # Errors
    /// When the connection has been silent for too long.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Fatal> {
        match self.poll_timeout() {
            Some(deadline) if deadline.at <= now => Err(if self.is_ready() { Fatal::Silent } else { Fatal::LoginTimeout }),
            _ => Ok(()),
        }
    }

    /// When the connection counts as dead.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if !self.is_ready() {
            return Some(Deadline { at: self.opened + LOGIN_TIMEOUT, why: "relay login" });
        }
        let silence = Deadline { at: self.last_frame + SILENCE, why: "relay silence" };
        let ping = self.answer_by.map(|at| Deadline { at, why: "relay ping" });
        Deadline::earliest(Some(silence), ping)
    }

    fn handle_frame(&mut self, now: Instant, frame: Frame<'_>, on: &mut impl FnMut(Received<'_>)) -> Result<(), Fatal> {
        let Some(server) = self.server else {
            let Frame::ServerKey { key } = frame else { return Err(Fatal::Greeting) };
            self.server = Some(key);
            ClientInfo::of_node().write(&self.secret, &key, self.rng.bytes(), &mut self.out);
            if self.preferred {
                Frame::NotePreferred(true).write(&mut self.out);
            }
            return Ok(());
        };
        match frame {
            Frame::RecvPacket { from, packet } => on(Received::Packet { from, packet }),
            Frame::PeerGone { peer, reason } => on(Received::PeerGone { peer, reason }),
            Frame::Health(problem) => on(Received::Health(&problem)),
            Frame::Restarting { reconnect_in, try_for } => on(Received::Restarting { reconnect_in, try_for }),
            Frame::ServerInfo { nonce, sealed } => {
                let info = ServerInfo::open(&self.secret, &server, &nonce, sealed)?;
                let burst = info.bytes_burst;
                self.limit = (info.bytes_per_second > 0).then_some(Bucket {
                    per_second: info.bytes_per_second,
                    burst,
                    tokens: burst,
                    filled: now,
                });
                self.info = Some(info);
            }
            Frame::Ping(data) => {
                if self.out.len() < MAX_OWN_OUTPUT {
                    Frame::Pong(data).write(&mut self.out);
                }
            }
            // A second greeting is skipped; the rest is for servers and mesh peers.
            Frame::ServerKey { .. }
            | Frame::KeepAlive
            | Frame::Pong(_)
            | Frame::PeerPresent { .. }
            | Frame::ClientInfo { .. }
            | Frame::SendPacket { .. }
            | Frame::NotePreferred(_)
            | Frame::ForwardPacket { .. }
            | Frame::WatchConns
            | Frame::ClosePeer { .. }
            | Frame::Unknown { .. } => {}
        }
        Ok(())
    }
}

/// Unknown frames are taken too: any frame is a sign of life.
const fn judge(ready: bool, header: Header) -> Result<Judgement, Fatal> {
    if !ready && (header.kind != kind::SERVER_KEY || header.len > MAX_GREETING) {
        Err(Fatal::Greeting)
    } else if header.len > MAX_FRAME {
        Err(Fatal::TooLong(header.len))
    } else {
        Ok(Judgement::Take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/wire/derp.json")).unwrap()
    }

    fn bytes(v: &Value) -> Vec<u8> {
        hex::decode(v.as_str().unwrap()).unwrap()
    }

    fn secret(name: &str) -> NodeSecret {
        NodeSecret::from_random(bytes(&vectors()["keys"][name]["private"]).try_into().unwrap())
    }

    fn secs(s: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(s)
    }

    fn client() -> RelayClient {
        RelayClient::new(secs(0), secret("A"), Rng::from_u64(1))
    }

    /// A client of party A that server S has greeted; its login has been drained.
    fn ready() -> RelayClient {
        let mut c = client();
        c.handle_bytes(secs(0), &greeting(), &mut |r| panic!("{r:?}")).unwrap();
        c.poll_output(&mut Vec::new());
        c
    }

    fn greeting() -> Vec<u8> {
        let mut out = Vec::new();
        Frame::ServerKey { key: secret("S").public() }.write(&mut out);
        out
    }

    fn limit(per_second: u64, burst: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let info = ServerInfo { version: 2, bytes_per_second: per_second, bytes_burst: burst };
        info.write(&secret("S"), &secret("A").public(), [5; 24], &mut out);
        out
    }

    fn show(r: &Received<'_>) -> String {
        match r {
            Received::Packet { from, packet } => format!("RecvPacket {from} {}", hex::encode(packet)),
            Received::PeerGone { peer, reason } => format!("PeerGone {peer} {}", u8::from(*reason)),
            Received::Health(problem) => format!("Health {problem}"),
            Received::Restarting { reconnect_in, try_for } => {
                format!("Restarting {} {}", reconnect_in.as_millis(), try_for.as_millis())
            }
        }
    }

    /// What a message of the vector file is to the owner, `None` for what stays inside the engine.
    fn expected(m: &Value) -> Option<String> {
        let key = |name: &str| NodeKey::from_hex(m[name].as_str().unwrap()).unwrap();
        Some(match m["msg"].as_str().unwrap() {
            "RecvPacket" => format!("RecvPacket {} {}", key("from"), m["packet"].as_str().unwrap()),
            "PeerGone" => format!("PeerGone {} {}", key("peer"), m["reason"]),
            "Health" => format!("Health {}", m["problem"].as_str().unwrap()),
            "Restarting" => format!("Restarting {} {}", m["reconnect_in_ms"], m["try_for_ms"]),
            _ => return None,
        })
    }

    #[test]
    fn every_frame_of_the_vectors_does_what_it_does_in_go() {
        for row in vectors()["client_parses"].as_array().unwrap() {
            let mut c = ready();
            let mut got = Vec::new();
            let result = c.handle_bytes(secs(1), &bytes(&row["frames"]), &mut |r| got.push(show(&r)));
            let expect: Vec<_> = row["messages"].as_array().unwrap().iter().filter_map(expected).collect();
            assert_eq!(got, expect, "{}", row["name"]);
            assert_eq!(result.is_err(), row.get("go_error").is_some(), "{}: {result:?}", row["name"]);
            let mut out = Vec::new();
            c.poll_output(&mut out);
            let pinged = row["messages"].as_array().unwrap().iter().find(|m| m["msg"] == "Ping");
            let pong = pinged.map(|m| hex::encode([&[0x13, 0, 0, 0, 8], bytes(&m["data"]).as_slice()].concat()));
            assert_eq!(hex::encode(out), pong.unwrap_or_default(), "{}", row["name"]);
        }
    }

    #[test]
    fn only_a_greeting_of_go_makes_the_client_ready() {
        for row in vectors()["client_greeting"].as_array().unwrap() {
            let frame = match row.get("frame").filter(|f| !f.is_null()) {
                Some(frame) => bytes(frame),
                None => {
                    let len = row["len"].as_u64().unwrap() - 5;
                    let mut frame = greeting();
                    frame.resize(usize::try_from(len).unwrap() + HEADER, 0);
                    frame[1..5].copy_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
                    frame
                }
            };
            let mut c = client();
            let result = c.handle_bytes(secs(0), &frame, &mut |r| panic!("{r:?}"));
            assert_eq!(Some(result.is_ok()), row["ok"].as_bool(), "{}: {result:?}", row["name"]);
            assert_eq!(Some(c.is_ready()), row["ok"].as_bool(), "{}", row["name"]);
        }
    }

    #[test]
    fn the_login_and_the_home_note_follow_the_greeting_at_once() {
        let mut c = client();
        c.set_preferred(true);
        assert!(!c.write_packet(secs(0), &secret("C").public(), b"early", &mut Vec::new()));
        let greeting = greeting();
        for byte in &greeting {
            assert!(!c.is_ready() && !c.has_output());
            c.handle_bytes(secs(0), &[*byte], &mut |r| panic!("{r:?}")).unwrap();
        }
        let mut out = Vec::new();
        c.poll_output(&mut out);
        let (Frame::ClientInfo { key, nonce, sealed }, used) = crate::wire::derp::parse(&out).unwrap().unwrap() else {
            panic!("no login first")
        };
        assert_eq!(ClientInfo::open(&secret("S"), &key, &nonce, sealed), Ok(ClientInfo::of_node()));
        assert_eq!(hex::encode(&out[used..]), "070000000101");
        c.set_preferred(true);
        assert!(!c.has_output());
        c.set_preferred(false);
        let mut out = Vec::new();
        c.poll_output(&mut out);
        assert_eq!(hex::encode(out), "070000000100");
    }

    #[test]
    fn a_packet_is_framed_as_by_go() {
        let mut out = Vec::new();
        assert!(ready().write_packet(secs(0), &secret("C").public(), &[0xde, 0xad, 0xbe, 0xef], &mut out));
        let step =
            vectors()["session"].as_array().unwrap().iter().find(|s| s["meaning"]["packet"] == "deadbeef").unwrap().clone();
        assert_eq!(out, bytes(&step["frame"]));
        assert!(!ready().write_packet(secs(0), &secret("C").public(), &[0; MAX_PACKET + 1], &mut out));
    }

    #[test]
    fn packets_beyond_the_servers_limit_are_dropped_until_tokens_grow() {
        let mut c = ready();
        c.handle_bytes(secs(0), &limit(100, 150), &mut |r| panic!("{r:?}")).unwrap();
        let (to, mut out) = (secret("C").public(), Vec::new());
        // 37 bytes of framing and 63 of packet: a cost of 100.
        assert!(c.write_packet(secs(0), &to, &[0; 63], &mut out));
        assert!(!c.write_packet(secs(0), &to, &[0; 63], &mut out));
        assert!(c.write_packet(secs(1), &to, &[0; 63], &mut out));
        assert!(c.write_packet(secs(100), &to, &[0; 63], &mut out));
        assert!(!c.write_packet(secs(100), &to, &[0; 63], &mut out));
    }

    #[test]
    fn asking_often_does_not_slow_the_growth_of_tokens() {
        let mut c = ready();
        c.handle_bytes(secs(0), &limit(100, 100), &mut |r| panic!("{r:?}")).unwrap();
        let (to, mut out) = (secret("C").public(), Vec::new());
        // 100 bytes at once, then 100 in each second, asked for 67 times a second.
        let sent = (0..=4_005).step_by(15).filter(|ms| {
            let now = Instant::ZERO + Duration::from_millis(*ms);
            c.write_packet(now, &to, &[0; 13], &mut out)
        });
        assert_eq!(sent.count(), 2 + 8);
    }

    #[test]
    fn silence_and_a_late_greeting_end_the_connection() {
        let mut c = client();
        assert_eq!(c.poll_timeout().unwrap().at, secs(10));
        assert_eq!(c.handle_timeout(secs(9)), Ok(()));
        assert_eq!(c.handle_timeout(secs(10)), Err(Fatal::LoginTimeout));
        let mut c = ready();
        c.handle_bytes(secs(50), &[6, 0, 0, 0, 0], &mut |r| panic!("{r:?}")).unwrap();
        assert_eq!(c.handle_timeout(secs(169)), Ok(()));
        assert_eq!(c.handle_timeout(secs(170)), Err(Fatal::Silent));
    }

    #[test]
    fn an_unanswered_ping_ends_the_connection_and_any_frame_answers_it() {
        let mut c = ready();
        c.ping(secs(1), Duration::from_secs(3));
        assert!(c.has_output());
        c.handle_bytes(secs(2), &[6, 0, 0, 0, 0], &mut |r| panic!("{r:?}")).unwrap();
        assert_eq!(c.handle_timeout(secs(5)), Ok(()));
        c.ping(secs(6), Duration::from_secs(3));
        assert_eq!(c.handle_timeout(secs(9)), Err(Fatal::Silent));
    }

    #[test]
    fn a_flood_of_pings_does_not_grow_the_output_without_end() {
        let mut c = ready();
        let pings: Vec<u8> = [0x12, 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8].repeat(10_000);
        c.handle_bytes(secs(1), &pings, &mut |r| panic!("{r:?}")).unwrap();
        let mut out = Vec::new();
        c.poll_output(&mut out);
        assert!(out.len() < MAX_OWN_OUTPUT + 13);
    }
}
