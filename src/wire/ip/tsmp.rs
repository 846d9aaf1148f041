//! TSMP, the tunnel's own ping: IP protocol 99 (`path-selection.md` §11).
//!
//! A pong's flow label is the bitwise NOT of its ping's.

use super::{Ipv6, ParseError, be16, protocol};
use std::net::Ipv6Addr;

const PING: u8 = b'p';
const PONG: u8 = b'o';

/// A TSMP message.
///
/// | offset | len | field |
/// |-------:|----:|-------|
/// | 0 | 1 | `p` or `o` |
/// | 1 | 8 | data that the pong repeats |
/// | 9 | 2 | pong only: a port, 0 in practice |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tsmp {
    /// Asks for a pong.
    Ping {
        /// Repeated by the pong.
        data: [u8; 8],
    },
    /// Answers a ping.
    Pong {
        /// The ping's data.
        data: [u8; 8],
        /// The answering node's peer API port, 0 when it has none.
        port: u16,
    },
}

impl Tsmp {
    /// Reads a message from the payload of an IPv6 packet. Bytes behind the known fields are ignored.
    ///
    /// # Errors
    /// When it is truncated or of another type.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let truncated = ParseError::Truncated { need: 9, have: bytes.len() };
        let (kind, rest) = bytes.split_first().ok_or(truncated)?;
        if *kind != PING && *kind != PONG {
            return Err(ParseError::Kind(*kind));
        }
        let (data, rest) = rest.split_first_chunk::<8>().ok_or(truncated)?;
        if *kind == PING { Ok(Self::Ping { data: *data }) } else { Ok(Self::Pong { data: *data, port: be16(rest, 0) }) }
    }

    /// Appends a whole packet.
    pub fn write(&self, src: Ipv6Addr, dst: Ipv6Addr, flow_label: u32, out: &mut Vec<u8>) {
        let mut payload = [0; 11];
        let (kind, data, port, len) = match self {
            Self::Ping { data } => (PING, data, 0, 9),
            Self::Pong { data, port } => (PONG, data, *port, 11),
        };
        let fields = [kind].into_iter().chain(*data).chain(port.to_be_bytes());
        for (to, from) in payload.iter_mut().zip(fields) {
            *to = from;
        }
        let payload = payload.get(..len).unwrap_or_default();
        Ipv6 { flow_label, payload, ..Ipv6::ours(protocol::TSMP, src, dst) }.write(out);
    }
}
