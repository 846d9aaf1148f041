//! ICMPv6 echo (RFC 4443 §4). No other ICMPv6 message is used in the tunnel.

use super::{Ipv6, ParseError, fill_checksum, protocol};
use std::net::Ipv6Addr;

const REQUEST: u8 = 128;
const REPLY: u8 = 129;
/// Type, code and checksum.
const HEADER_LEN: usize = 4;
/// Where the checksum lies in the header.
const CHECKSUM: usize = 2;

/// An echo request or reply.
///
/// | offset | len | field |
/// |-------:|----:|-------|
/// | 0 | 1+1 | type, code (0) |
/// | 2 | 2 | checksum |
/// | 4 | 2+2 | identifier, sequence number |
/// | 8 | n | data |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Whether this is the answer.
    pub is_reply: bool,
    /// Identifier, sequence number and data: the answer repeats them all.
    pub body: &'a [u8],
}

impl<'a> Echo<'a> {
    /// Reads an echo message from the payload of an IPv6 packet.
    ///
    /// # Errors
    /// When it is truncated or another ICMPv6 message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let have = bytes.len();
        let [kind, code, _, _, body @ ..] = bytes else { return Err(ParseError::Truncated { need: HEADER_LEN, have }) };
        let is_reply = match (*kind, *code) {
            (REQUEST, 0) => false,
            (REPLY, 0) => true,
            (kind, _) => return Err(ParseError::Kind(kind)),
        };
        if body.len() < 4 {
            return Err(ParseError::Truncated { need: HEADER_LEN + 4, have });
        }
        Ok(Self { is_reply, body })
    }

    /// Appends a whole packet; an answer carries the traffic class of its request.
    pub fn write(&self, src: Ipv6Addr, dst: Ipv6Addr, traffic_class: u8, out: &mut Vec<u8>) {
        let ip = Ipv6 { traffic_class, ..Ipv6::ours(protocol::ICMPV6, src, dst) };
        let at = out.len() + super::HEADER_LEN;
        out.extend_from_slice(&ip.header(HEADER_LEN + self.body.len()));
        out.extend_from_slice(&[if self.is_reply { REPLY } else { REQUEST }, 0, 0, 0]);
        out.extend_from_slice(self.body);
        fill_checksum(out, at, CHECKSUM, &ip);
    }
}
