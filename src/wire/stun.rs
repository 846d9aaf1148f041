//! STUN binding requests and replies (`stun-netcheck.md` §1, RFC 5389).
//!
//! The client's request has the fixed shape that Tailscale-family servers ask for: SOFTWARE "tailnode", then
//! FINGERPRINT. Our own server answers any well-formed binding request; a FINGERPRINT it finds must be right.
//!
//! The cheap test [`is_stun`] stands before the general decoder, and messages beyond [`MAX_LEN`] are refused unread.

use bytecodec::{DecodeExt as _, EncodeExt as _};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};
use stun_codec::{
    Message, MessageClass, MessageDecoder, MessageEncoder, TransactionId, define_attribute_enums,
    rfc5389::{
        attributes::{Fingerprint, MappedAddress, Software, XorMappedAddress, XorMappedAddress2},
        methods::BINDING,
    },
};

/// The longest message that is read. Real ones stay below 548 bytes (RFC 5389 §7.1).
pub const MAX_LEN: usize = 1_280;

const HEADER: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// What Tailscale-family servers demand as SOFTWARE.
const SOFTWARE: &str = "tailnode";

define_attribute_enums!(RequestAttribute, RequestDecoder, RequestEncoder, [Software, Fingerprint]);
// Without FINGERPRINT: a reply's is not checked.
define_attribute_enums!(ReplyAttribute, ReplyDecoder, ReplyEncoder, [XorMappedAddress, XorMappedAddress2, MappedAddress]);

/// Ties a reply to its request. Unguessable: replies are taken from any source address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub [u8; 12]);

impl fmt::Debug for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Why a datagram is no STUN message for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// It fails [`is_stun`].
    #[error("not a STUN message")]
    NotStun,
    /// Longer than [`MAX_LEN`], cut short, or with broken attributes.
    #[error("malformed STUN message")]
    Malformed,
    /// Another method or class than the one asked for.
    #[error("unexpected STUN message type")]
    Kind,
    /// A reply that names no address.
    #[error("STUN reply without an address")]
    NoAddress,
}

/// Whether a datagram is STUN: length, the two top bits and the magic cookie.
#[must_use]
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER && datagram.first().is_some_and(|b| b & 0xc0 == 0) && datagram.get(4..8) == Some(&COOKIE)
}

/// The message up to its declared length: trailing bytes are ignored.
fn trim(datagram: &[u8]) -> Result<&[u8], Reject> {
    if !is_stun(datagram) {
        return Err(Reject::NotStun);
    }
    let length = match datagram {
        [_, _, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => return Err(Reject::NotStun),
    };
    datagram.get(..HEADER + length).filter(|m| m.len() <= MAX_LEN).ok_or(Reject::Malformed)
}

/// Writes the 40-byte binding request.
#[must_use]
pub fn write_request(tx: TxId) -> Vec<u8> {
    let mut message = Message::<RequestAttribute>::new(MessageClass::Request, BINDING, TransactionId::new(tx.0));
    if let Ok(software) = Software::new(SOFTWARE.to_owned()) {
        message.add_attribute(software);
    }
    if let Ok(fingerprint) = Fingerprint::new(&message) {
        message.add_attribute(fingerprint);
    }
    // Encoding into memory fails only for a message beyond 64 KiB.
    MessageEncoder::new().encode_into_bytes(message).unwrap_or_default()
}

/// Reads a binding request and gives its transaction id.
///
/// # Errors
/// When it is anything else, is broken, or carries a wrong FINGERPRINT.
pub fn parse_request(datagram: &[u8]) -> Result<TxId, Reject> {
    let message = trim(datagram)?;
    if !message.starts_with(&[0x00, 0x01]) {
        return Err(Reject::Kind);
    }
    let message = MessageDecoder::<RequestAttribute>::new()
        .decode_from_bytes(message)
        .map_err(|_| Reject::Malformed)?
        .map_err(|_| Reject::Malformed)?;
    Ok(TxId(*message.transaction_id().as_bytes()))
}

/// Writes a reply that tells the asker its address.
#[must_use]
pub fn write_response(tx: TxId, seen: SocketAddr) -> Vec<u8> {
    let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
    let mut message = Message::<ReplyAttribute>::new(MessageClass::SuccessResponse, BINDING, TransactionId::new(tx.0));
    message.add_attribute(XorMappedAddress::new(seen));
    MessageEncoder::new().encode_into_bytes(message).unwrap_or_default()
}

/// Reads a reply: its transaction id and the address it tells us.
///
/// Of several XOR-MAPPED-ADDRESSes the last one counts; MAPPED-ADDRESS only without any.
///
/// # Errors
/// When it is anything but a success response with an address.
pub fn parse_response(datagram: &[u8]) -> Result<(TxId, SocketAddr), Reject> {
    let message = trim(datagram)?;
    if !message.starts_with(&[0x01, 0x01]) {
        return Err(Reject::Kind);
    }
    let message = MessageDecoder::<ReplyAttribute>::new()
        .decode_from_bytes(message)
        .map_err(|_| Reject::Malformed)?
        .map_err(|_| Reject::Malformed)?;
    let (mut xored, mut plain) = (None, None);
    for attribute in message.attributes() {
        match attribute {
            ReplyAttribute::XorMappedAddress(a) => xored = Some(a.address()),
            ReplyAttribute::XorMappedAddress2(a) => xored = Some(a.address()),
            ReplyAttribute::MappedAddress(a) => plain = Some(a.address()),
        }
    }
    let addr = xored.or(plain).ok_or(Reject::NoAddress)?;
    let ip: IpAddr = addr.ip().to_canonical();
    Ok((TxId(*message.transaction_id().as_bytes()), SocketAddr::new(ip, addr.port())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/wire/stun.json")).unwrap()
    }

    fn rows(v: &Value, name: &str) -> Vec<Value> {
        let rows = v[name].as_array().unwrap().clone();
        assert!(!rows.is_empty());
        rows
    }

    fn bytes(v: &Value) -> Vec<u8> {
        hex::decode(v.as_str().unwrap()).unwrap()
    }

    fn tx(v: &Value) -> TxId {
        TxId(bytes(v).try_into().unwrap())
    }

    fn addr(v: &Value) -> SocketAddr {
        v.as_str().unwrap().parse().unwrap()
    }

    #[test]
    fn requests_are_the_bytes_of_go() {
        for row in rows(&vectors(), "requests") {
            assert_eq!(write_request(tx(&row["txid"])), bytes(&row["packet"]));
            assert_eq!(parse_request(&bytes(&row["packet"])), Ok(tx(&row["txid"])));
        }
    }

    #[test]
    fn replies_are_the_bytes_of_go_but_mapped_addresses_are_unmapped_first() {
        for row in rows(&vectors(), "replies") {
            let (tx, addr, packet) = (tx(&row["txid"]), addr(&row["addr"]), bytes(&row["packet"]));
            match row.get("parses_as") {
                None => assert_eq!(write_response(tx, addr), packet),
                Some(plain) => {
                    assert_eq!(parse_response(&packet), Ok((tx, self::addr(plain))));
                    assert_eq!(parse_response(&write_response(tx, addr)), Ok((tx, self::addr(plain))));
                }
            }
        }
    }

    #[test]
    fn replies_are_read_as_go_reads_them_or_refused() {
        for row in rows(&vectors(), "parse_reply") {
            let parsed = parse_response(&bytes(&row["packet"]));
            if row["ok"].as_bool().unwrap() {
                assert_eq!(parsed, Ok((tx(&row["txid"]), addr(&row["addr"]))), "{}", row["name"]);
            } else {
                assert!(parsed.is_err(), "{}: {parsed:?}", row["name"]);
            }
        }
    }

    #[test]
    fn our_server_answers_any_well_formed_request_and_refuses_the_broken_ones() {
        // Go answers its own software only; these two are valid STUN.
        let ours_alone = ["no attributes", "software only"];
        for row in rows(&vectors(), "parse_request") {
            let name = row["name"].as_str().unwrap();
            let expect = row["ok"].as_bool().unwrap() || ours_alone.contains(&name);
            assert_eq!(parse_request(&bytes(&row["packet"])).is_ok(), expect, "{name}");
        }
    }

    #[test]
    fn the_cheap_test_agrees_with_go() {
        for row in rows(&vectors(), "is_stun") {
            assert_eq!(Some(is_stun(&bytes(&row["packet"]))), row["is_stun"].as_bool(), "{row}");
        }
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_unread() {
        let mut packet = write_request(TxId([1; 12]));
        packet.resize(HEADER + 0xfffc, 0);
        packet[2..4].copy_from_slice(&[0xff, 0xfc]);
        assert_eq!(parse_request(&packet), Err(Reject::Malformed));
    }

    proptest! {
        #[test]
        fn written_messages_read_back(id in any::<[u8; 12]>(), ip in any::<IpAddr>(), port in any::<u16>()) {
            let tx = TxId(id);
            prop_assert_eq!(parse_request(&write_request(tx)), Ok(tx));
            let addr = SocketAddr::new(ip.to_canonical(), port);
            prop_assert_eq!(parse_response(&write_response(tx, addr)), Ok((tx, addr)));
        }

        #[test]
        fn any_attributes_are_refused_or_settle(reply in any::<bool>(), body in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..6) {
            let mut packet = vec![u8::from(reply), 1, 0, u8::try_from(body.len()).unwrap()];
            packet.extend_from_slice(&COOKIE);
            packet.extend_from_slice(&[9; 12]);
            packet.extend_from_slice(&body);
            if let Some(at) = packet.get_mut(HEADER..HEADER + 2) {
                at.copy_from_slice(&[[0, 1], [0, 0x20], [0x80, 0x20], [0x80, 0x22], [0x80, 0x28], [7, 7]][kind]);
            }
            let _ = parse_request(&packet);
            if let Ok((tx, addr)) = parse_response(&packet) {
                prop_assert_eq!(parse_response(&write_response(tx, addr)), Ok((tx, addr)));
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_request(&bytes);
            let _ = parse_response(&bytes);
        }
    }
}
