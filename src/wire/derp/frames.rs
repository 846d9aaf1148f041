//! The frames themselves (`derp.md` §3).

use crate::base::NodeKey;
use std::{borrow::Cow, time::Duration};

/// Length of a frame's header.
pub const HEADER: usize = 5;
/// The largest packet in a send, receive or forward frame.
pub const MAX_PACKET: usize = 65_536;
/// The largest frame that a client reads; a longer one ends the connection.
pub const MAX_FRAME: usize = 1 << 20;
/// The largest greeting that a client reads.
pub const MAX_GREETING: usize = 1_024;
/// The largest login that a server reads.
pub const MAX_CLIENT_INFO: usize = 256 << 10;
/// The largest ping that a server answers.
pub const MAX_PING: usize = 1_000;

/// "DERP" and U+1F511, the first bytes of a greeting.
const GREETING: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];
/// Length of the nonce in front of a login box.
pub(super) const NONCE_LEN: usize = 24;

/// The types of frames.
pub mod kind {
    /// Server to client, first: the server's key.
    pub const SERVER_KEY: u8 = 0x01;
    /// Client to server, first: the client's key and a sealed description.
    pub const CLIENT_INFO: u8 = 0x02;
    /// Server to client, second: a sealed description of the server.
    pub const SERVER_INFO: u8 = 0x03;
    /// Client to server: a packet and whom it is for.
    pub const SEND_PACKET: u8 = 0x04;
    /// Server to client: a packet and whom it is from.
    pub const RECV_PACKET: u8 = 0x05;
    /// Server to client: nothing, so that the client sees a live connection.
    pub const KEEP_ALIVE: u8 = 0x06;
    /// Client to server: whether this is its home relay.
    pub const NOTE_PREFERRED: u8 = 0x07;
    /// Server to client: a peer left or is not here.
    pub const PEER_GONE: u8 = 0x08;
    /// Server to mesh peer: a client came.
    pub const PEER_PRESENT: u8 = 0x09;
    /// Mesh peer to server: a packet for one of its clients.
    pub const FORWARD_PACKET: u8 = 0x0a;
    /// Mesh peer to server: tell me who comes and goes.
    pub const WATCH_CONNS: u8 = 0x10;
    /// Mesh peer to server: end a client's connections.
    pub const CLOSE_PEER: u8 = 0x11;
    /// Both ways: answer with a pong.
    pub const PING: u8 = 0x12;
    /// Both ways: the answer.
    pub const PONG: u8 = 0x13;
    /// Server to client: a problem to show.
    pub const HEALTH: u8 = 0x14;
    /// Server to client: the server restarts.
    pub const RESTARTING: u8 = 0x15;
}

/// Type and length of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// One of [`kind`], or newer.
    pub kind: u8,
    /// Length of the payload. Up to 4 GiB: compare it before waiting for it.
    pub len: usize,
}

impl Header {
    /// Reads the header in front of `bytes`; `None` until five bytes are there.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [kind, len @ ..] = bytes.first_chunk::<HEADER>()?;
        Some(Self { kind: *kind, len: usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX) })
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        // Our own frames are bounded by MAX_FRAME.
        let [a, b, c, d] = u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes();
        [self.kind, a, b, c, d]
    }
}

/// Why a peer is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// It was connected to this relay and left.
    Disconnected,
    /// The relay does not know it.
    NotHere,
    /// A reason that we do not know.
    Other(u8),
}

impl From<u8> for GoneReason {
    fn from(code: u8) -> Self {
        match code {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }
}

impl From<GoneReason> for u8 {
    fn from(reason: GoneReason) -> Self {
        match reason {
            GoneReason::Disconnected => 0,
            GoneReason::NotHere => 1,
            GoneReason::Other(other) => other,
        }
    }
}

/// One frame, borrowed from the bytes it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The server's greeting.
    ServerKey {
        /// The server's public key.
        key: NodeKey,
    },
    /// The client's login, still sealed.
    ClientInfo {
        /// Who the client claims to be; the box proves it.
        key: NodeKey,
        /// Nonce of the box.
        nonce: [u8; NONCE_LEN],
        /// See [`ClientInfo`](super::ClientInfo).
        sealed: &'a [u8],
    },
    /// The server's answer to the login, still sealed.
    ServerInfo {
        /// Nonce of the box.
        nonce: [u8; NONCE_LEN],
        /// See [`ServerInfo`](super::ServerInfo).
        sealed: &'a [u8],
    },
    /// A packet on its way to the relay.
    SendPacket {
        /// Its receiver.
        to: NodeKey,
        /// At most [`MAX_PACKET`] bytes.
        packet: &'a [u8],
    },
    /// A packet on its way from the relay.
    RecvPacket {
        /// Its sender, as the relay knows it.
        from: NodeKey,
        /// The bytes.
        packet: &'a [u8],
    },
    /// A sign of life.
    KeepAlive,
    /// Whether this relay is the client's home.
    NotePreferred(bool),
    /// A peer left or is unknown.
    PeerGone {
        /// Whom it is about.
        peer: NodeKey,
        /// Which of both.
        reason: GoneReason,
    },
    /// A client came, told to mesh peers.
    PeerPresent {
        /// The client.
        peer: NodeKey,
    },
    /// A packet between mesh peers.
    ForwardPacket {
        /// Its sender.
        from: NodeKey,
        /// Its receiver.
        to: NodeKey,
        /// At most [`MAX_PACKET`] bytes.
        packet: &'a [u8],
    },
    /// Asks for [`Frame::PeerPresent`] and [`Frame::PeerGone`] of all clients.
    WatchConns,
    /// Asks to end a client's connections.
    ClosePeer {
        /// The client.
        peer: NodeKey,
    },
    /// Asks for a pong.
    Ping([u8; 8]),
    /// Answers a ping.
    Pong([u8; 8]),
    /// A problem to show the user; empty when it is over.
    Health(Cow<'a, str>),
    /// The server restarts.
    Restarting {
        /// When to connect again.
        reconnect_in: Duration,
        /// How long to try.
        try_for: Duration,
    },
    /// A frame of a type that we do not know: skipped.
    Unknown {
        /// Its type.
        kind: u8,
    },
}

/// A payload that does not fit its type. Clients skip such a frame, servers end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("relay frame of type {kind:#04x} with a bad payload of {len} bytes")]
pub struct Malformed {
    /// The frame's type.
    pub kind: u8,
    /// Its payload's length.
    pub len: usize,
}

/// Why no frame can be read from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The header announces more than [`MAX_FRAME`].
    #[error("relay frame of type {kind:#04x} announces {len} bytes")]
    TooLong {
        /// The frame's type.
        kind: u8,
        /// What it announces.
        len: usize,
    },
    /// See [`Malformed`].
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Reads the frame at the front of `bytes` and tells how many bytes it takes; `None` until it is complete.
///
/// # Errors
/// See [`ParseError`].
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, ParseError> {
    let Some(Header { kind, len }) = Header::parse(bytes) else { return Ok(None) };
    if len > MAX_FRAME {
        return Err(ParseError::TooLong { kind, len });
    }
    let end = HEADER + len;
    let Some(payload) = bytes.get(HEADER..end) else { return Ok(None) };
    Ok(Some((Frame::parse(kind, payload)?, end)))
}

/// Splits a node key off the front.
fn key(bytes: &[u8]) -> Option<(NodeKey, &[u8])> {
    bytes.split_first_chunk::<32>().map(|(key, rest)| (NodeKey::from(*key), rest))
}

fn millis(bytes: &[u8; 4]) -> Duration {
    Duration::from_millis(u32::from_be_bytes(*bytes).into())
}

impl<'a> Frame<'a> {
    /// Reads a payload of the given type.
    ///
    /// # Errors
    /// When the type is known and the payload does not fit it. Longer ones are mostly fine: they come from newer peers.
    pub fn parse(kind: u8, payload: &'a [u8]) -> Result<Self, Malformed> {
        Self::read(kind, payload).ok_or(Malformed { kind, len: payload.len() })
    }

    fn read(kind: u8, payload: &'a [u8]) -> Option<Self> {
        Some(match kind {
            kind::SERVER_KEY => Self::ServerKey { key: key(payload.strip_prefix(&GREETING)?)?.0 },
            kind::CLIENT_INFO => {
                let (key, rest) = key(payload)?;
                let (nonce, sealed) = rest.split_first_chunk()?;
                Self::ClientInfo { key, nonce: *nonce, sealed }
            }
            kind::SERVER_INFO => {
                let (nonce, sealed) = payload.split_first_chunk()?;
                Self::ServerInfo { nonce: *nonce, sealed }
            }
            kind::SEND_PACKET => {
                let (to, packet) = key(payload).filter(|(_, packet)| packet.len() <= MAX_PACKET)?;
                Self::SendPacket { to, packet }
            }
            kind::RECV_PACKET => {
                let (from, packet) = key(payload)?;
                Self::RecvPacket { from, packet }
            }
            kind::KEEP_ALIVE => Self::KeepAlive,
            kind::NOTE_PREFERRED => match payload {
                [home] => Self::NotePreferred(*home != 0),
                _ => return None,
            },
            kind::PEER_GONE => {
                let (peer, rest) = key(payload)?;
                // Very old servers give no reason.
                Self::PeerGone { peer, reason: rest.first().copied().unwrap_or(0).into() }
            }
            kind::PEER_PRESENT => Self::PeerPresent { peer: key(payload)?.0 },
            kind::FORWARD_PACKET => {
                let (from, rest) = key(payload)?;
                let (to, packet) = key(rest).filter(|(_, packet)| packet.len() <= MAX_PACKET)?;
                Self::ForwardPacket { from, to, packet }
            }
            kind::WATCH_CONNS => payload.is_empty().then_some(Self::WatchConns)?,
            kind::CLOSE_PEER => match key(payload)? {
                (peer, []) => Self::ClosePeer { peer },
                _ => return None,
            },
            kind::PING => Self::Ping(*payload.first_chunk()?),
            kind::PONG => Self::Pong(*payload.first_chunk()?),
            kind::HEALTH => Self::Health(String::from_utf8_lossy(payload)),
            kind::RESTARTING => {
                let (reconnect_in, rest) = payload.split_first_chunk()?;
                Self::Restarting { reconnect_in: millis(reconnect_in), try_for: millis(rest.first_chunk()?) }
            }
            kind => Self::Unknown { kind },
        })
    }

    /// Appends the frame. [`Frame::Unknown`] is written without payload.
    pub fn write(&self, out: &mut Vec<u8>) {
        let ms = |d: &Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX).to_be_bytes();
        match self {
            Self::ServerKey { key } => write(kind::SERVER_KEY, &[&GREETING, key.as_bytes()], out),
            Self::ClientInfo { key, nonce, sealed } => write(kind::CLIENT_INFO, &[key.as_bytes(), nonce, sealed], out),
            Self::ServerInfo { nonce, sealed } => write(kind::SERVER_INFO, &[nonce, sealed], out),
            Self::SendPacket { to, packet } => write_send_packet(to, packet, out),
            Self::RecvPacket { from, packet } => write(kind::RECV_PACKET, &[from.as_bytes(), packet], out),
            Self::KeepAlive => write(kind::KEEP_ALIVE, &[], out),
            Self::NotePreferred(home) => write(kind::NOTE_PREFERRED, &[&[u8::from(*home)]], out),
            Self::PeerGone { peer, reason } => write(kind::PEER_GONE, &[peer.as_bytes(), &[(*reason).into()]], out),
            Self::PeerPresent { peer } => write(kind::PEER_PRESENT, &[peer.as_bytes()], out),
            Self::ForwardPacket { from, to, packet } => {
                write(kind::FORWARD_PACKET, &[from.as_bytes(), to.as_bytes(), packet], out);
            }
            Self::WatchConns => write(kind::WATCH_CONNS, &[], out),
            Self::ClosePeer { peer } => write(kind::CLOSE_PEER, &[peer.as_bytes()], out),
            Self::Ping(data) => write(kind::PING, &[data], out),
            Self::Pong(data) => write(kind::PONG, &[data], out),
            Self::Health(problem) => write(kind::HEALTH, &[problem.as_bytes()], out),
            Self::Restarting { reconnect_in, try_for } => {
                write(kind::RESTARTING, &[&ms(reconnect_in), &ms(try_for)], out);
            }
            Self::Unknown { kind } => write(*kind, &[], out),
        }
    }
}

fn write(kind: u8, parts: &[&[u8]], out: &mut Vec<u8>) {
    let len = parts.iter().map(|p| p.len()).sum();
    out.reserve(HEADER + len);
    out.extend_from_slice(&Header { kind, len }.to_bytes());
    parts.iter().for_each(|p| out.extend_from_slice(p));
}

/// Appends a packet for the relay to deliver.
pub fn write_send_packet(to: &NodeKey, packet: &[u8], out: &mut Vec<u8>) {
    write(kind::SEND_PACKET, &[to.as_bytes(), packet], out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/wire/derp.json")).unwrap()
    }

    fn bytes(v: &Value) -> Vec<u8> {
        hex::decode(v.as_str().unwrap()).unwrap()
    }

    fn array<const N: usize>(v: &Value) -> [u8; N] {
        bytes(v).try_into().unwrap()
    }

    /// A key given as hex digits or as the letter of one of the file's parties.
    fn node(vectors: &Value, v: &Value) -> NodeKey {
        let text = v.as_str().unwrap();
        NodeKey::from_hex(vectors["keys"][text]["public"].as_str().unwrap_or(text)).unwrap()
    }

    fn meaning<'a>(vectors: &Value, v: &Value, held: &'a [u8]) -> Frame<'a> {
        let key = |name: &str| node(vectors, &v[name]);
        match v.get("type").or_else(|| v.get("msg")).unwrap().as_str().unwrap() {
            "ServerKey" => Frame::ServerKey { key: key("server_key") },
            "ClientInfo" => Frame::ClientInfo { key: key("client_key"), nonce: array(&v["nonce"]), sealed: held },
            "ServerInfo" => Frame::ServerInfo { nonce: array(&v["nonce"]), sealed: held },
            "NotePreferred" => Frame::NotePreferred(v["home"].as_bool().unwrap()),
            "SendPacket" => Frame::SendPacket { to: key("to"), packet: held },
            "RecvPacket" => Frame::RecvPacket { from: key("from"), packet: held },
            "ForwardPacket" => Frame::ForwardPacket { from: key("from"), to: key("to"), packet: held },
            "Ping" => Frame::Ping(array(&v["data"])),
            "Pong" => Frame::Pong(array(&v["data"])),
            "PeerGone" => {
                let reason = u8::try_from(v["reason"].as_u64().unwrap()).unwrap();
                Frame::PeerGone { peer: key("peer"), reason: reason.into() }
            }
            "PeerPresent" => Frame::PeerPresent { peer: key("peer") },
            "WatchConns" => Frame::WatchConns,
            "ClosePeer" => Frame::ClosePeer { peer: key("peer") },
            "KeepAlive" => Frame::KeepAlive,
            "Health" => Frame::Health(v["problem"].as_str().unwrap().to_owned().into()),
            "Restarting" => Frame::Restarting {
                reconnect_in: Duration::from_millis(v["reconnect_in_ms"].as_u64().unwrap()),
                try_for: Duration::from_millis(v["try_for_ms"].as_u64().unwrap()),
            },
            other => panic!("unknown message {other}"),
        }
    }

    #[test]
    fn a_session_of_go_is_read_and_written_byte_for_byte() {
        let v = vectors();
        let steps = v["session"].as_array().unwrap();
        assert!(steps.len() >= 33);
        for step in steps {
            let frame = bytes(&step["frame"]);
            let m = &step["meaning"];
            let held = m.get("packet").or_else(|| m.get("box")).map(bytes).unwrap_or_default();
            let expect = meaning(&v, m, &held);
            assert_eq!(parse(&frame), Ok(Some((expect.clone(), frame.len()))), "{}", step["step"]);
            let mut out = Vec::new();
            expect.write(&mut out);
            assert_eq!(out, frame, "{}", step["step"]);
            for cut in 0..frame.len() {
                assert_eq!(parse(&frame[..cut]), Ok(None), "{} cut to {cut}", step["step"]);
            }
        }
    }

    #[test]
    fn odd_frames_to_a_client_are_read_as_go_reads_them() {
        let v = vectors();
        for row in v["client_parses"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            // What happens to a sealed server info and to a second greeting is the client's matter.
            if name.starts_with("server info") || name.starts_with("second ServerKey") {
                continue;
            }
            let all = bytes(&row["frames"]);
            let (mut rest, mut got, mut error) = (all.as_slice(), Vec::new(), None);
            loop {
                match parse(rest) {
                    Ok(None) => break,
                    Ok(Some((frame, used))) => {
                        rest = &rest[used..];
                        if !matches!(frame, Frame::Unknown { .. }) {
                            got.push(frame);
                        }
                    }
                    Err(ParseError::Malformed(bad)) => rest = &rest[HEADER + bad.len..],
                    Err(fatal) => {
                        error = Some(fatal);
                        break;
                    }
                }
            }
            let messages = row["messages"].as_array().unwrap();
            let held: Vec<_> = messages.iter().map(|m| m.get("packet").map(bytes).unwrap_or_default()).collect();
            let expect: Vec<_> = messages.iter().zip(&held).map(|(m, held)| meaning(&v, m, held)).collect();
            assert_eq!(got, expect, "{name}");
            assert_eq!(error.is_some(), row.get("go_error").is_some(), "{name}");
        }
    }

    #[test]
    fn a_greeting_needs_its_magic_and_a_whole_key() {
        for row in vectors()["client_greeting"].as_array().unwrap() {
            let Some(frame) = row.get("frame").filter(|f| !f.is_null()).map(bytes) else { continue };
            let good = matches!(parse(&frame), Ok(Some((Frame::ServerKey { .. }, _))));
            assert_eq!(Some(good), row["ok"].as_bool(), "{}", row["name"]);
        }
    }

    fn any_key() -> impl Strategy<Value = NodeKey> {
        any::<[u8; 32]>().prop_map(NodeKey::from)
    }

    fn any_frame(held: &'static [u8]) -> impl Strategy<Value = Frame<'static>> {
        let ms = || any::<u32>().prop_map(|ms| Duration::from_millis(ms.into()));
        prop_oneof![
            any_key().prop_map(|key| Frame::ServerKey { key }),
            (any_key(), any::<[u8; 24]>()).prop_map(|(key, nonce)| Frame::ClientInfo { key, nonce, sealed: held }),
            any::<[u8; 24]>().prop_map(|nonce| Frame::ServerInfo { nonce, sealed: held }),
            any_key().prop_map(|to| Frame::SendPacket { to, packet: held }),
            any_key().prop_map(|from| Frame::RecvPacket { from, packet: held }),
            Just(Frame::KeepAlive),
            any::<bool>().prop_map(Frame::NotePreferred),
            (any_key(), any::<u8>()).prop_map(|(peer, r)| Frame::PeerGone { peer, reason: r.into() }),
            any_key().prop_map(|peer| Frame::PeerPresent { peer }),
            (any_key(), any_key()).prop_map(|(from, to)| Frame::ForwardPacket { from, to, packet: held }),
            Just(Frame::WatchConns),
            any_key().prop_map(|peer| Frame::ClosePeer { peer }),
            any::<[u8; 8]>().prop_map(Frame::Ping),
            any::<[u8; 8]>().prop_map(Frame::Pong),
            ".{0,20}".prop_map(|s| Frame::Health(s.into())),
            (ms(), ms()).prop_map(|(reconnect_in, try_for)| Frame::Restarting { reconnect_in, try_for }),
            (0x20u8..).prop_map(|kind| Frame::Unknown { kind }),
        ]
    }

    const HELD: &[u8] = &[7; 100];

    proptest! {
        #[test]
        fn a_written_frame_reads_back(frame in any_frame(HELD), tail in proptest::collection::vec(any::<u8>(), 0..9)) {
            let mut out = Vec::new();
            frame.write(&mut out);
            let len = out.len();
            out.extend_from_slice(&tail);
            prop_assert_eq!(parse(&out), Ok(Some((frame, len))));
        }

        #[test]
        fn any_payload_is_refused_or_settles(kind in 0u8..0x18, payload in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(frame) = Frame::parse(kind, &payload) {
                let mut out = Vec::new();
                frame.write(&mut out);
                prop_assert_eq!(parse(&out), Ok(Some((frame, out.len()))));
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
