//! TCP segments (RFC 9293) and the options that peers use (RFC 7323, RFC 2018).

use super::{Ipv6, ParseError, be16, be32, checksum, fill_checksum, protocol};
use std::net::Ipv6Addr;

/// Length of the fixed TCP header.
const HEADER_LEN: usize = 20;
/// Where the checksum lies in the header.
const CHECKSUM: usize = 16;

/// The control bits that matter to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// End of data.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement field counts.
    pub const ACK: Self = Self(0x10);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A range of sequence numbers, end exclusive.
pub type SackBlock = (u32, u32);

/// The known options of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpOptions {
    /// Maximum segment size, only on SYN.
    pub mss: Option<u16>,
    /// Window scale, only on SYN.
    pub window_scale: Option<u8>,
    /// SACK permitted, only on SYN.
    pub sack_permitted: bool,
    /// Timestamp value and echo.
    pub timestamps: Option<(u32, u32)>,
    /// Up to four SACK blocks, in the order on the wire.
    pub sack: [Option<SackBlock>; 4],
}

impl TcpOptions {
    /// Reads options; whatever is unknown is skipped, and the first broken one ends the list (as Go and Linux do).
    #[must_use]
    pub fn parse(mut bytes: &[u8]) -> Self {
        let mut found = Self::default();
        while let [kind, rest @ ..] = bytes {
            bytes = match kind {
                0 => break,
                1 => rest,
                _ => {
                    let Some(body_len) = rest.first().and_then(|len| usize::from(*len).checked_sub(2)) else { break };
                    let Some((body, next)) = rest.get(1..).and_then(|r| r.split_at_checked(body_len)) else { break };
                    found.take(*kind, body);
                    next
                }
            };
        }
        found
    }

    fn take(&mut self, kind: u8, body: &[u8]) {
        match (kind, body.len()) {
            (2, 2) => self.mss = Some(be16(body, 0)),
            (3, 1) => self.window_scale = body.first().map(|s| (*s).min(14)),
            (4, 0) => self.sack_permitted = true,
            (5, _) => {
                for (to, block) in self.sack.iter_mut().zip(body.as_chunks::<8>().0) {
                    *to = Some((be32(block, 0), be32(block, 4)));
                }
            }
            (8, 8) => self.timestamps = Some((be32(body, 0), be32(body, 4))),
            _ => {}
        }
    }
}

/// A TCP segment.
///
/// | offset | len | field |
/// |-------:|----:|-------|
/// | 0 | 2+2 | source and destination port |
/// | 4 | 4+4 | sequence and acknowledgement number |
/// | 12 | 1 | header length in words, upper four bits |
/// | 13 | 1 | flags |
/// | 14 | 2 | window |
/// | 16 | 2+2 | checksum, urgent pointer |
/// | 20 | n | options |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp<'a> {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number of the first byte (or of the SYN).
    pub seq: u32,
    /// The next byte that the sender expects, when ACK is set.
    pub ack: u32,
    /// Control bits.
    pub flags: TcpFlags,
    /// The window field as it is on the wire, unscaled.
    pub window: u16,
    /// Raw options. On writing a multiple of four bytes, at most 40.
    pub options: &'a [u8],
    /// Data.
    pub payload: &'a [u8],
}

impl<'a> Tcp<'a> {
    /// Reads a segment from the payload of an IPv6 packet.
    ///
    /// # Errors
    /// When it is truncated or its header length is impossible.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        if bytes.len() < HEADER_LEN {
            return Err(ParseError::Truncated { need: HEADER_LEN, have: bytes.len() });
        }
        let word = be16(bytes, 12);
        let header_len = usize::from(word >> 12) * 4;
        if header_len < HEADER_LEN {
            return Err(ParseError::Length);
        }
        let (head, payload) = bytes.split_at_checked(header_len).ok_or(ParseError::Length)?;
        Ok(Self {
            src_port: be16(head, 0),
            dst_port: be16(head, 2),
            seq: be32(head, 4),
            ack: be32(head, 8),
            flags: TcpFlags((word & 0x3f) as u8),
            window: be16(head, 14),
            options: head.get(HEADER_LEN..).unwrap_or_default(),
            payload,
        })
    }

    /// How much sequence space the segment takes: data, SYN and FIN.
    #[must_use]
    pub fn seq_len(&self) -> u32 {
        let data = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        data + u32::from(self.flags.has(TcpFlags::SYN)) + u32::from(self.flags.has(TcpFlags::FIN))
    }

    /// Appends a whole packet from `src` to `dst`.
    pub fn write(&self, src: Ipv6Addr, dst: Ipv6Addr, out: &mut Vec<u8>) {
        let ip = Ipv6::ours(protocol::TCP, src, dst);
        let options = self.options.get(..self.options.len().min(40)).unwrap_or_default();
        let header_len = HEADER_LEN + options.len().next_multiple_of(4);
        let at = out.len() + super::HEADER_LEN;
        out.extend_from_slice(&ip.header(header_len + self.payload.len()));
        out.extend_from_slice(&self.src_port.to_be_bytes());
        out.extend_from_slice(&self.dst_port.to_be_bytes());
        out.extend_from_slice(&self.seq.to_be_bytes());
        out.extend_from_slice(&self.ack.to_be_bytes());
        out.extend_from_slice(&[((header_len / 4) << 4) as u8, self.flags.0]);
        out.extend_from_slice(&self.window.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(options);
        out.resize(at + header_len, 0);
        out.extend_from_slice(self.payload);
        fill_checksum(out, at, CHECKSUM, &ip);
    }

    /// The reset that answers this segment when nobody wants it (RFC 9293 §3.10.7.1), appended as a whole packet.
    /// Nothing when the segment is itself a reset.
    pub fn write_reset(&self, ip: &Ipv6<'_>, out: &mut Vec<u8>) {
        if self.flags.has(TcpFlags::RST) {
            return;
        }
        let (seq, ack, flags) = if self.flags.has(TcpFlags::ACK) {
            (self.ack, 0, TcpFlags::RST)
        } else {
            (0, self.seq.wrapping_add(self.seq_len()), TcpFlags::RST.with(TcpFlags::ACK))
        };
        let reset =
            Tcp { src_port: self.dst_port, dst_port: self.src_port, seq, ack, flags, window: 0, options: &[], payload: &[] };
        reset.write(ip.dst, ip.src, out);
    }

    /// Puts another sequence number into a whole TCP packet, whose checksum is then to be filled in again.
    pub fn set_seq(packet: &mut [u8], seq: u32) {
        if let Some(field) = packet.get_mut(super::HEADER_LEN + 4..super::HEADER_LEN + 8) {
            field.copy_from_slice(&seq.to_be_bytes());
        }
    }

    /// Fills in the checksum of a whole TCP packet that has none yet.
    pub fn seal(packet: &mut [u8]) {
        let Some((head, message)) = packet.split_at_mut_checked(super::HEADER_LEN) else { return };
        let (src, dst) =
            (super::address(head.get(8..24).unwrap_or_default()), super::address(head.get(24..).unwrap_or_default()));
        if let Some(field) = message.get_mut(CHECKSUM..CHECKSUM + 2) {
            field.fill(0);
        }
        let sum = checksum(src, dst, protocol::TCP, message);
        if let Some(field) = message.get_mut(CHECKSUM..CHECKSUM + 2) {
            field.copy_from_slice(&sum);
        }
    }
}
