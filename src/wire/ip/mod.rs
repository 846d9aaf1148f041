//! Packets inside the tunnel: IPv6 with TCP, UDP, ICMPv6 echo and TSMP (`netstack.md` §2–6, RFC 8200).
//!
//! Coder nodes have IPv6 addresses only and send neither extension headers nor fragments, so the upper layer starts
//! right behind the fixed header or the packet is somebody else's. WireGuard pads plaintext to 16 bytes: bytes behind
//! the stated payload length are padding and cut off.
//!
//! Parsing borrows from the packet and checks no checksums: WireGuard has authenticated every byte. Writing always
//! fills them in, because Go peers verify.

mod icmp;
mod tcp;
mod tsmp;
mod udp;

pub use icmp::Echo;
pub use tcp::{SackBlock, Tcp, TcpFlags, TcpOptions};
pub use tsmp::Tsmp;
pub use udp::Udp;

use std::net::{Ipv6Addr, SocketAddrV6};

/// The largest packet in the tunnel, in both directions. Larger ones would pass a relay but vanish on a direct path.
pub const MTU: usize = 1_280;
/// Length of the fixed IPv6 header.
pub const HEADER_LEN: usize = 40;
/// The hop limit of every packet we send, as Go peers set it.
pub const HOP_LIMIT: u8 = 64;

/// Upper-layer protocol numbers.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// The tunnel's own ping (`path-selection.md` §11).
    pub const TSMP: u8 = 99;
}

/// Why some bytes are no packet that we can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Shorter than the header or than the length that the header states.
    #[error("packet is truncated: {have} of {need} bytes")]
    Truncated {
        /// Bytes that must be there.
        need: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// Not IP version 6.
    #[error("not IPv6 but version {0}")]
    Version(u8),
    /// A length or offset inside a header contradicts the packet.
    #[error("a header's length field is wrong")]
    Length,
    /// A type that this parser does not know.
    #[error("message type {0} is not known")]
    Kind(u8),
}

/// An IPv6 packet, header fields by value.
///
/// | offset | len | field |
/// |-------:|----:|-------|
/// | 0 | 4 | version (6), traffic class, flow label |
/// | 4 | 2 | payload length |
/// | 6 | 1 | next header |
/// | 7 | 1 | hop limit |
/// | 8 | 16 | source |
/// | 24 | 16 | destination |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6<'a> {
    /// Differentiated services and ECN.
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    /// The upper-layer protocol, see [`protocol`].
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
    /// Everything behind the fixed header, without padding.
    pub payload: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// Reads a packet.
    ///
    /// # Errors
    /// When it is truncated or not IPv6.
    pub fn parse(packet: &'a [u8]) -> Result<Self, ParseError> {
        let (head, rest) =
            packet.split_first_chunk::<HEADER_LEN>().ok_or(ParseError::Truncated { need: HEADER_LEN, have: packet.len() })?;
        let [w0, w1, w2, w3, l0, l1, next_header, hop_limit, addresses @ ..] = head;
        let word = u32::from_be_bytes([*w0, *w1, *w2, *w3]);
        let version = w0 >> 4;
        if version != 6 {
            return Err(ParseError::Version(version));
        }
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        let payload = rest.get(..len).ok_or(ParseError::Truncated { need: HEADER_LEN + len, have: packet.len() })?;
        let (src, dst) = addresses.split_at(16);
        Ok(Self {
            traffic_class: (word >> 20) as u8,
            flow_label: word & 0xf_ffff,
            next_header: *next_header,
            hop_limit: *hop_limit,
            src: address(src),
            dst: address(dst),
            payload,
        })
    }

    /// The header alone, stating `payload_len`.
    fn header(&self, payload_len: usize) -> [u8; HEADER_LEN] {
        let mut head = [0; HEADER_LEN];
        let word = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        let len = u16::try_from(payload_len).unwrap_or(u16::MAX);
        let fields = word
            .to_be_bytes()
            .into_iter()
            .chain(len.to_be_bytes())
            .chain([self.next_header, self.hop_limit])
            .chain(self.src.octets())
            .chain(self.dst.octets());
        for (to, from) in head.iter_mut().zip(fields) {
            *to = from;
        }
        head
    }

    /// Appends the packet. The payload must hold no more than 65,535 bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.header(self.payload.len()));
        out.extend_from_slice(self.payload);
    }

    /// A header for a packet of ours, without payload.
    const fn ours(next_header: u8, src: Ipv6Addr, dst: Ipv6Addr) -> Self {
        Self { traffic_class: 0, flow_label: 0, next_header, hop_limit: HOP_LIMIT, src, dst, payload: &[] }
    }
}

fn address(bytes: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default())
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// The 4-tuple by which a TCP packet finds its flow, seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Our address.
    pub local: u128,
    /// The peer's address.
    pub remote: u128,
    /// Our port.
    pub local_port: u16,
    /// The peer's port.
    pub remote_port: u16,
}

impl FlowKey {
    /// The key of the connection between two sockets.
    #[must_use]
    pub const fn new(local: SocketAddrV6, remote: SocketAddrV6) -> Self {
        Self { local: local.ip().to_bits(), remote: remote.ip().to_bits(), local_port: local.port(), remote_port: remote.port() }
    }

    /// The key of a packet that arrived.
    #[must_use]
    pub const fn of(ip: &Ipv6<'_>, tcp: &Tcp<'_>) -> Self {
        Self { local: ip.dst.to_bits(), remote: ip.src.to_bits(), local_port: tcp.dst_port, remote_port: tcp.src_port }
    }

    /// Our end.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddrV6 {
        SocketAddrV6::new(Ipv6Addr::from_bits(self.local), self.local_port, 0, 0)
    }

    /// The peer's end.
    #[must_use]
    pub const fn remote_addr(&self) -> SocketAddrV6 {
        SocketAddrV6::new(Ipv6Addr::from_bits(self.remote), self.remote_port, 0, 0)
    }
}

/// The ones' complement sum (RFC 1071), in the machine's byte order until [`Sum::finish`].
///
/// Every part but the last must have an even length.
#[derive(Clone, Copy, Default)]
struct Sum(u64);

impl Sum {
    fn add(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        // 32-bit words into 64 bits cannot overflow below 2^32 words, and the compiler makes vector code of it.
        let sum: u64 = words.iter().map(|w| u64::from(u32::from_ne_bytes(*w))).sum();
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        Self(self.0 + sum + u64::from(u32::from_ne_bytes(last)))
    }

    fn finish(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let [a, b, ..] = (!sum).to_le_bytes();
        if cfg!(target_endian = "little") { [a, b] } else { [b, a] }
    }
}

/// The checksum of an upper-layer message, whose checksum field must be zero or left in for checking (then a right
/// one gives zero).
fn checksum(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, message: &[u8]) -> [u8; 2] {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    Sum::default()
        .add(&src.octets())
        .add(&dst.octets())
        .add(&len.to_be_bytes())
        .add(&[0, 0, 0, next_header])
        .add(message)
        .finish()
}

/// Whether an upper-layer checksum is right. Not needed on packets from the tunnel.
#[must_use]
pub fn checksum_is_right(ip: &Ipv6<'_>) -> bool {
    checksum(ip.src, ip.dst, ip.next_header, ip.payload) == [0, 0]
}

/// Writes the checksum of `message`, which starts at `at` in `out` and has its field at `field` within.
fn fill_checksum(out: &mut [u8], at: usize, field: usize, ip: &Ipv6<'_>) {
    let Some(message) = out.get_mut(at..) else { return };
    let sum = checksum(ip.src, ip.dst, ip.next_header, message);
    if let Some(slot) = message.get_mut(field..field + 2) {
        slot.copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests;
