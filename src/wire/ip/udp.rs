//! UDP datagrams (RFC 768, RFC 8200 §8.1).

use super::{Ipv6, ParseError, be16, fill_checksum, protocol};
use std::net::SocketAddrV6;

const HEADER_LEN: usize = 8;
/// Where the checksum lies in the header.
const CHECKSUM: usize = 6;

/// A UDP datagram.
///
/// | offset | len | field |
/// |-------:|----:|-------|
/// | 0 | 2+2 | source and destination port |
/// | 4 | 2 | length with header |
/// | 6 | 2 | checksum |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp<'a> {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Data.
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// The most data that fits into one packet.
    pub const MAX_PAYLOAD: usize = super::MTU - super::HEADER_LEN - HEADER_LEN;

    /// Reads a datagram from the payload of an IPv6 packet.
    ///
    /// # Errors
    /// When it is truncated or its length is impossible.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        if bytes.len() < HEADER_LEN {
            return Err(ParseError::Truncated { need: HEADER_LEN, have: bytes.len() });
        }
        let payload = bytes.get(HEADER_LEN..usize::from(be16(bytes, 4))).ok_or(ParseError::Length)?;
        Ok(Self { src_port: be16(bytes, 0), dst_port: be16(bytes, 2), payload })
    }

    /// Appends a whole packet that carries `payload`, of which at most [`Self::MAX_PAYLOAD`] bytes are taken.
    pub fn write(src: SocketAddrV6, dst: SocketAddrV6, payload: &[u8], out: &mut Vec<u8>) {
        let payload = payload.get(..payload.len().min(Self::MAX_PAYLOAD)).unwrap_or_default();
        let ip = Ipv6::ours(protocol::UDP, *src.ip(), *dst.ip());
        let len = HEADER_LEN + payload.len();
        let at = out.len() + super::HEADER_LEN;
        out.extend_from_slice(&ip.header(len));
        out.extend_from_slice(&src.port().to_be_bytes());
        out.extend_from_slice(&dst.port().to_be_bytes());
        out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(payload);
        fill_checksum(out, at, CHECKSUM, &ip);
        // Zero means "no checksum", which IPv6 forbids.
        if let Some(field) = out.get_mut(at + CHECKSUM..at + CHECKSUM + 2)
            && field == [0, 0]
        {
            field.fill(0xff);
        }
    }
}
