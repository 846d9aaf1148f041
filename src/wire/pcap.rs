//! Packet captures for Wireshark: the classic pcap format with Tailscale's link type (`cli.md` §2.9).
//!
//! Each record holds a small header in front of the IP packet: which way it went, and two lengths of address translation
//! that does not happen here.

use crate::base::WallTime;

/// What a file begins with: little-endian magic for microseconds, version 2.4, no time zone, snap length, link type.
pub const FILE_HEADER: [u8; 24] =
    [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, LINK_TYPE, 0, 0, 0];
/// Length of what stands in front of a packet.
pub const RECORD_HEADER: usize = 16 + WAY_HEADER;

/// `DLT_USER0`, which Tailscale's dissector takes for itself.
const LINK_TYPE: u8 = 147;
const WAY_HEADER: usize = 4;

/// Which way a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From this node to the peer.
    FromLocal,
    /// From the peer to this node.
    FromPeer,
}

/// Appends the record of a packet.
pub fn write_record(at: WallTime, way: Way, packet: &[u8], out: &mut Vec<u8>) {
    let since = at.since_unix();
    // The format's seconds end in 2106.
    let seconds = u32::try_from(since.as_secs()).unwrap_or(u32::MAX);
    let length = u32::try_from(packet.len() + WAY_HEADER).unwrap_or(u32::MAX);
    let way: u16 = match way {
        Way::FromLocal => 0,
        Way::FromPeer => 1,
    };
    for field in [seconds, since.subsec_micros(), length, length] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&way.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(packet);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_record_is_what_the_format_says() {
        let mut out = FILE_HEADER.to_vec();
        let at = WallTime::from_unix(Duration::new(0x6507_0809, 3_000));
        write_record(at, Way::FromPeer, &[0x60, 7, 8], &mut out);
        let mut want = b"\xd4\xc3\xb2\xa1\x02\x00\x04\x00\0\0\0\0\0\0\0\0\xff\xff\0\0\x93\0\0\0".to_vec();
        want.extend(b"\x09\x08\x07\x65\x03\0\0\0");
        want.extend(b"\x07\0\0\0\x07\0\0\0\x01\0\0\0\x60\x07\x08");
        assert_eq!(out, want);
        assert_eq!(out.len(), FILE_HEADER.len() + RECORD_HEADER + 3);
        write_record(at, Way::FromLocal, &[], &mut out);
        assert_eq!(out[want.len() + 8..], *b"\x04\0\0\0\x04\0\0\0\0\0\0\0");
    }
}
