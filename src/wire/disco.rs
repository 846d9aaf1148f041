//! Disco: sealed pings, pongs and call-me-maybes between peers, by UDP or through a relay (`disco.md`).
//!
//! | offset | len  | field                                                  |
//! |-------:|-----:|--------------------------------------------------------|
//! | 0      | 6    | [`MAGIC`]                                              |
//! | 6      | 32   | the sender's disco key                                 |
//! | 38     | 24   | nonce                                                  |
//! | 62     | 16+n | NaCl box: Poly1305 tag, then n bytes of inner message  |
//!
//! The inner message is a type byte, a version byte and a payload; unknown types are refused, trailing bytes ignored.
//! Pings and pongs are padded with zeros so that the packet has [`PADDED`] bytes.

use crate::base::{DiscoKey, DiscoSecret, NodeKey, RegionId};
use crypto_box::{PublicKey, SalsaBox, SecretKey, aead::AeadInPlace as _};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The first bytes of every disco packet: "TS" and U+1F4AC.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];

/// The size of a packet that holds a ping or a pong.
///
/// A path proves with it that it carries the largest WireGuard datagram: a tunnel packet of 1,280 bytes and 32 bytes of
/// overhead. The Go implementation pads to 1,310, two bytes short; every parser takes longer ones.
pub const PADDED: usize = 1_312;

const KEY_END: usize = 38;
const NONCE_LEN: usize = 24;
const HEADER: usize = KEY_END + NONCE_LEN;
const TAG: usize = 16;

const PING: u8 = 1;
const PONG: u8 = 2;
const CALL_ME_MAYBE: u8 = 3;
/// The version that pings and pongs carry; readers do not look at it.
const PADDED_VERSION: u8 = 1;
/// An address on the wire: 16 bytes of IP, IPv4 mapped, and the port.
const ENDPOINT: usize = 18;

/// The IPv4 address that stands for "through a relay"; the port is the region.
const RELAY_IP: Ipv4Addr = Ipv4Addr::new(127, 3, 3, 40);

/// Whether a datagram starts as a disco packet and so belongs to no other protocol.
#[must_use]
pub fn has_magic(packet: &[u8]) -> bool {
    packet.len() >= KEY_END && packet.starts_with(&MAGIC)
}

/// Whether a relay counts a packet as disco: magic, key and nonce are complete.
#[must_use]
pub fn looks_like(packet: &[u8]) -> bool {
    packet.len() >= HEADER && packet.starts_with(&MAGIC)
}

/// The disco key a packet claims to come from. Proven only by [`SharedKey::open`].
#[must_use]
pub fn sender(packet: &[u8]) -> Option<DiscoKey> {
    if !looks_like(packet) {
        return None;
    }
    packet.get(MAGIC.len()..)?.first_chunk::<32>().map(|key| DiscoKey::from(*key))
}

/// The address that stands for a relay region in a pong.
#[must_use]
pub const fn relay_addr(region: RegionId) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(RELAY_IP), region.get())
}

/// The region that [`relay_addr`] wrote into an address, `None` for a real one.
#[must_use]
pub fn relay_region(addr: &SocketAddr) -> Option<RegionId> {
    if addr.ip() == IpAddr::V4(RELAY_IP) { RegionId::new(addr.port()) } else { None }
}

/// Ties a pong to its ping. Random, and never used twice towards one address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub [u8; 12]);

impl fmt::Debug for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What a disco packet says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Asks the receiver to prove that this path works.
    Ping {
        /// Comes back in the pong.
        tx: TxId,
        /// The sender's node key: a hint, absent in some senders.
        node: Option<NodeKey>,
    },
    /// The answer to a ping, by the same way.
    Pong {
        /// Of the ping.
        tx: TxId,
        /// Where the ping came from, as its receiver saw it.
        src: SocketAddr,
    },
    /// "Ping me at these addresses", only through a relay. An empty list withdraws earlier ones.
    CallMeMaybe {
        /// The sender's addresses.
        endpoints: Vec<SocketAddr>,
    },
}

/// Why a packet is no disco message for us. Normal traffic: counted and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// Without magic, key and nonce.
    #[error("not a disco packet")]
    Frame,
    /// The box does not open: damaged, or for a key of an earlier run.
    #[error("disco box does not open")]
    Sealed,
    /// An inner message that ends too early.
    #[error("disco message is too short")]
    Short,
    /// An inner message of a type that we do not know.
    #[error("unknown disco message type {0}")]
    Kind(u8),
}

impl Message {
    /// Reads an opened inner message.
    ///
    /// # Errors
    /// [`Reject::Short`] or [`Reject::Kind`].
    pub fn parse(inner: &[u8]) -> Result<Self, Reject> {
        let ([kind, version], payload) = inner.split_first_chunk::<2>().ok_or(Reject::Short)?;
        let tx = || payload.split_first_chunk::<12>().map(|(tx, rest)| (TxId(*tx), rest)).ok_or(Reject::Short);
        match *kind {
            PING => {
                let (tx, rest) = tx()?;
                let node = rest.first_chunk::<32>().map(|key| NodeKey::from(*key)).filter(|key| !key.is_zero());
                Ok(Self::Ping { tx, node })
            }
            PONG => {
                let (tx, rest) = tx()?;
                Ok(Self::Pong { tx, src: parse_endpoint(rest.first_chunk().ok_or(Reject::Short)?) })
            }
            CALL_ME_MAYBE => {
                // A call-me-maybe of another version or an odd length counts as an empty one.
                let (chunks, odd) = payload.as_chunks::<ENDPOINT>();
                let known = *version == 0 && odd.is_empty();
                let endpoints = if known { chunks.iter().map(parse_endpoint).collect() } else { Vec::new() };
                Ok(Self::CallMeMaybe { endpoints })
            }
            kind => Err(Reject::Kind(kind)),
        }
    }

    /// Appends the inner message; pings and pongs are filled up with zeros to `padded` bytes.
    fn write(&self, padded: usize, out: &mut Vec<u8>) {
        let start = out.len();
        match self {
            Self::Ping { tx, node } => {
                out.extend_from_slice(&[PING, PADDED_VERSION]);
                out.extend_from_slice(&tx.0);
                if let Some(node) = node {
                    out.extend_from_slice(node.as_bytes());
                }
            }
            Self::Pong { tx, src } => {
                out.extend_from_slice(&[PONG, PADDED_VERSION]);
                out.extend_from_slice(&tx.0);
                write_endpoint(src, out);
            }
            Self::CallMeMaybe { endpoints } => {
                out.extend_from_slice(&[CALL_ME_MAYBE, 0]);
                endpoints.iter().for_each(|e| write_endpoint(e, out));
                return;
            }
        }
        out.resize(out.len().max(start + padded), 0);
    }
}

fn parse_endpoint(bytes: &[u8; ENDPOINT]) -> SocketAddr {
    let [ip @ .., p0, p1] = bytes;
    SocketAddr::new(Ipv6Addr::from(*ip).to_canonical(), u16::from_be_bytes([*p0, *p1]))
}

fn write_endpoint(addr: &SocketAddr, out: &mut Vec<u8>) {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&addr.port().to_be_bytes());
}

/// What two disco keys agree on. Costs a curve multiplication, so it is kept for each peer.
pub struct SharedKey(SalsaBox);

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

impl SharedKey {
    /// The key between our secret and a peer's public key.
    #[must_use]
    pub fn new(own: &DiscoSecret, peer: &DiscoKey) -> Self {
        Self(SalsaBox::new(&PublicKey::from(*peer.as_bytes()), &SecretKey::from(*own.expose())))
    }

    /// Appends a whole packet from `sender` (our own public key). `nonce` is random and fresh.
    pub fn seal(&self, sender: DiscoKey, nonce: [u8; NONCE_LEN], message: &Message, out: &mut Vec<u8>) {
        self.seal_padded(sender, nonce, message, PADDED, out);
    }

    fn seal_padded(&self, sender: DiscoKey, nonce: [u8; NONCE_LEN], message: &Message, padded: usize, out: &mut Vec<u8>) {
        let mut inner = Vec::with_capacity(padded);
        message.write(padded.saturating_sub(HEADER + TAG), &mut inner);
        let Ok(tag) = self.0.encrypt_in_place_detached(&nonce.into(), b"", &mut inner) else {
            // Only a message of 256 GiB is too long for this cipher.
            return;
        };
        out.reserve(HEADER + TAG + inner.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(sender.as_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&tag);
        out.extend_from_slice(&inner);
    }

    /// Opens a packet and reads its message.
    ///
    /// # Errors
    /// See [`Reject`].
    pub fn open(&self, packet: &[u8]) -> Result<Message, Reject> {
        if !looks_like(packet) {
            return Err(Reject::Frame);
        }
        let (nonce, sealed) =
            packet.get(KEY_END..).and_then(|rest| rest.split_first_chunk::<NONCE_LEN>()).ok_or(Reject::Frame)?;
        let (tag, inner) = sealed.split_first_chunk::<TAG>().ok_or(Reject::Sealed)?;
        let mut inner = inner.to_vec();
        self.0.decrypt_in_place_detached(nonce.into(), b"", &mut inner, tag.into()).map_err(|_| Reject::Sealed)?;
        Message::parse(&inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use sha2::{Digest as _, Sha256};

    /// What the Go implementation pads to.
    const GO_PADDED: usize = 1_310;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/wire/disco.json")).unwrap()
    }

    fn bytes(v: &Value) -> Vec<u8> {
        hex::decode(v.as_str().unwrap()).unwrap()
    }

    fn array<const N: usize>(v: &Value) -> [u8; N] {
        bytes(v).try_into().unwrap()
    }

    fn message(v: &Value) -> Message {
        let tx = || TxId(array(&v["txid"]));
        match v["type"].as_str().unwrap() {
            "ping" => Message::Ping { tx: tx(), node: (!v["node_key"].is_null()).then(|| NodeKey::from(array(&v["node_key"]))) },
            "pong" => Message::Pong { tx: tx(), src: v["src"].as_str().unwrap().parse().unwrap() },
            "call-me-maybe" => Message::CallMeMaybe {
                endpoints: v["endpoints"].as_array().unwrap().iter().map(|e| e.as_str().unwrap().parse().unwrap()).collect(),
            },
            other => panic!("unknown type {other}"),
        }
    }

    fn keys(v: &Value) -> (SharedKey, SharedKey, DiscoKey, [u8; 24]) {
        let keys = &v["keys"];
        let secret = |name: &str| DiscoSecret::from_random(array(&keys[name]));
        let (a, b) = (secret("a_private"), secret("b_private"));
        assert_eq!(a.public().as_bytes(), &array(&keys["a_public"]));
        (SharedKey::new(&a, &b.public()), SharedKey::new(&b, &a.public()), a.public(), array(&keys["nonce"]))
    }

    fn sha256(bytes: &[u8]) -> String {
        hex::encode(Sha256::digest(bytes))
    }

    #[test]
    fn inner_messages_are_the_bytes_of_go() {
        let rows = vectors()["inner"].as_array().unwrap().clone();
        assert!(rows.len() >= 11);
        for row in rows {
            let mut inner = Vec::new();
            message(&row["message"]).write(GO_PADDED - HEADER - TAG, &mut inner);
            assert_eq!(sha256(&inner), row["inner"]["sha256"].as_str().unwrap(), "{}", row["name"]);
            assert_eq!(Message::parse(&inner), Ok(message(&row["parsed"])), "{}", row["name"]);
        }
    }

    #[test]
    fn sealed_packets_are_the_bytes_of_go_and_open_again() {
        let v = vectors();
        let (ours, theirs, sender_key, nonce) = keys(&v);
        for (row, inner) in v["sealed"].as_array().unwrap().iter().zip(v["inner"].as_array().unwrap()) {
            assert_eq!(row["name"], inner["name"]);
            let mut packet = Vec::new();
            ours.seal_padded(sender_key, nonce, &message(&inner["message"]), GO_PADDED, &mut packet);
            assert_eq!(Some(packet.len() as u64), row["len"].as_u64());
            assert_eq!(sha256(&packet), row["sha256"].as_str().unwrap(), "{}", row["name"]);
            assert_eq!(sender(&packet), Some(sender_key));
            assert_eq!(theirs.open(&packet), Ok(message(&inner["parsed"])), "{}", row["name"]);
        }
    }

    #[test]
    fn odd_inner_messages_are_read_as_go_reads_them() {
        for row in vectors()["parse_inner"].as_array().unwrap() {
            let parsed = Message::parse(&bytes(&row["inner"]));
            if row["ok"].as_bool().unwrap() {
                assert_eq!(parsed, Ok(message(&row["parsed"])), "{}", row["name"]);
            } else {
                assert!(parsed.is_err(), "{}", row["name"]);
            }
        }
    }

    #[test]
    fn broken_packets_are_refused_where_go_refuses_them() {
        let v = vectors();
        let own = DiscoSecret::from_random(array(&v["keys"]["b_private"]));
        for row in v["parse_outer"].as_array().unwrap() {
            let packet = bytes(&row["packet"]);
            assert_eq!(Some(looks_like(&packet)), row["looks_like_disco"].as_bool(), "{}", row["name"]);
            assert_eq!(sender(&packet), row.get("source_key").map(|k| DiscoKey::from(array(k))), "{}", row["name"]);
            // As a node does it: with the key shared with whom the packet claims to come from.
            let claimed = sender(&packet).unwrap_or_else(|| DiscoKey::from([9; 32]));
            let opened = SharedKey::new(&own, &claimed).open(&packet);
            let opens = row["opens"].as_bool().unwrap_or(false);
            assert_eq!(!matches!(opened, Err(Reject::Sealed | Reject::Frame)), opens, "{}", row["name"]);
            assert_eq!(opened.is_ok(), opens && row["parses"].as_bool().unwrap_or(false), "{}", row["name"]);
        }
    }

    #[test]
    fn our_pings_and_pongs_are_as_large_as_the_largest_wireguard_datagram() {
        let v = vectors();
        let (ours, theirs, sender_key, nonce) = keys(&v);
        let src = "[2001:db8::1]:41641".parse().unwrap();
        for message in [Message::Ping { tx: TxId([1; 12]), node: None }, Message::Pong { tx: TxId([1; 12]), src }] {
            let mut packet = Vec::new();
            ours.seal(sender_key, nonce, &message, &mut packet);
            assert_eq!(packet.len(), 1_280 + 32);
            assert_eq!(theirs.open(&packet), Ok(message));
        }
    }

    #[test]
    fn a_relay_address_leads_back_to_its_region() {
        let region = RegionId::new(999).unwrap();
        assert_eq!(relay_addr(region).to_string(), "127.3.3.40:999");
        assert_eq!(relay_region(&relay_addr(region)), Some(region));
        assert_eq!(relay_region(&"127.3.3.41:999".parse().unwrap()), None);
        assert_eq!(relay_region(&"127.3.3.40:0".parse().unwrap()), None);
    }

    #[test]
    fn a_shared_key_never_shows_in_debug_output() {
        let (ours, ..) = keys(&vectors());
        assert_eq!(format!("{ours:?}"), "SharedKey(..)");
    }

    fn any_addr() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let tx = any::<[u8; 12]>().prop_map(TxId);
        let node = any::<Option<[u8; 32]>>().prop_map(|k| k.map(NodeKey::from).filter(|k| !k.is_zero()));
        prop_oneof![
            (tx.clone(), node).prop_map(|(tx, node)| Message::Ping { tx, node }),
            (tx, any_addr()).prop_map(|(tx, src)| Message::Pong { tx, src }),
            proptest::collection::vec(any_addr(), 0..40).prop_map(|endpoints| Message::CallMeMaybe { endpoints }),
        ]
    }

    proptest! {
        #[test]
        fn a_written_message_reads_back(message in any_message(), nonce in any::<[u8; 24]>(), padded in 0usize..1_400) {
            let (ours, theirs, sender_key, _) = keys(&vectors());
            let mut packet = Vec::new();
            ours.seal_padded(sender_key, nonce, &message, padded, &mut packet);
            prop_assert_eq!(theirs.open(&packet), Ok(message));
        }

        #[test]
        fn any_inner_bytes_are_refused_or_settle(bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0u8..5) {
            let mut inner = bytes;
            if let Some(first) = inner.first_mut() { *first = kind; }
            if let Ok(message) = Message::parse(&inner) {
                let mut again = Vec::new();
                message.write(0, &mut again);
                prop_assert_eq!(Message::parse(&again), Ok(message));
            }
        }
    }
}
