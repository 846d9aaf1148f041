//! Frame headers of yamux, protocol version 0 (`coordination.md` §4).
//!
//! | offset | size | field |
//! |-------:|-----:|-------|
//! | 0 | 1 | version, 0 |
//! | 1 | 1 | type |
//! | 2 | 2 | flags, big-endian as all fields |
//! | 4 | 4 | stream, 0 for ping and go-away |
//! | 8 | 4 | payload length, credit, ping value or go-away code |
//!
//! Only data frames are followed by a payload.

use std::ops::BitOr;

/// Length of a header.
pub const HEADER: usize = 12;
/// Credit of each direction of a stream at its start.
pub const WINDOW: u32 = 256 * 1024;

/// Type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Payload of a stream.
    Data,
    /// More credit for a stream, or only its flags.
    WindowUpdate,
    /// Liveness: SYN asks, ACK answers with the same value.
    Ping,
    /// No further streams; a value other than 0 ends the session.
    GoAway,
}

/// Flags of a frame. Unknown bits are kept and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Opens a stream, or asks in a ping.
    pub const SYN: Self = Self(1);
    /// Accepts a stream, or answers a ping.
    pub const ACK: Self = Self(2);
    /// The sender writes no more.
    pub const FIN: Self = Self(4);
    /// Ends the stream at once.
    pub const RST: Self = Self(8);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A version other than 0.
    #[error("yamux version {0}")]
    Version(u8),
    /// A type beyond go-away.
    #[error("yamux frame type {0}")]
    Kind(u8),
}

/// The header of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type.
    pub kind: Kind,
    /// Flags.
    pub flags: Flags,
    /// Stream id.
    pub stream: u32,
    /// Length, credit, ping value or code, by type.
    pub value: u32,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// For another version or an unknown type; either ends the session.
    pub const fn parse(bytes: &[u8; HEADER]) -> Result<Self, ParseError> {
        let &[version, kind, f0, f1, s0, s1, s2, s3, v0, v1, v2, v3] = bytes;
        if version != 0 {
            return Err(ParseError::Version(version));
        }
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::WindowUpdate,
            2 => Kind::Ping,
            3 => Kind::GoAway,
            other => return Err(ParseError::Kind(other)),
        };
        Ok(Self {
            kind,
            flags: Flags(u16::from_be_bytes([f0, f1])),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            value: u32::from_be_bytes([v0, v1, v2, v3]),
        })
    }

    /// Appends the twelve bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        let kind = match self.kind {
            Kind::Data => 0,
            Kind::WindowUpdate => 1,
            Kind::Ping => 2,
            Kind::GoAway => 3,
        };
        out.extend_from_slice(&[0, kind]);
        out.extend_from_slice(&self.flags.0.to_be_bytes());
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&self.value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recorded_header_survives_reading_and_writing() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/wire/coordination-session.json")).unwrap();
        let mut seen = 0;
        for step in vectors["steps"].as_array().unwrap() {
            for frame in step["frames"].as_array().unwrap() {
                let bytes: [u8; HEADER] = hex::decode(frame["header"].as_str().unwrap()).unwrap().try_into().unwrap();
                let header = Header::parse(&bytes).unwrap();
                let kind = match header.kind {
                    Kind::Data => "data",
                    Kind::WindowUpdate => "window update",
                    Kind::Ping => "ping",
                    Kind::GoAway => "go-away",
                };
                assert_eq!(frame["type"].as_str().unwrap(), kind);
                assert_eq!(frame["stream"].as_u64().unwrap(), u64::from(header.stream));
                let flags = frame["flags"].as_str().unwrap();
                for (flag, name) in [(Flags::SYN, "SYN"), (Flags::ACK, "ACK"), (Flags::FIN, "FIN"), (Flags::RST, "RST")] {
                    assert_eq!(header.flags.has(flag), flags.contains(name), "{flags}");
                }
                let mut out = Vec::new();
                header.write(&mut out);
                assert_eq!(out, bytes);
                seen += 1;
            }
        }
        assert!(seen > 50, "{seen}");
    }

    #[test]
    fn other_versions_and_types_are_refused() {
        let good = [0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0];
        assert!(Header::parse(&good).is_ok());
        let mut version = good;
        version[0] = 1;
        assert_eq!(Header::parse(&version), Err(ParseError::Version(1)));
        let mut kind = good;
        kind[1] = 4;
        assert_eq!(Header::parse(&kind), Err(ParseError::Kind(4)));
    }

    proptest::proptest! {
        #[test]
        fn any_header_that_is_read_is_written_the_same(bytes: [u8; HEADER]) {
            if let Ok(header) = Header::parse(&bytes) {
                let mut out = Vec::new();
                header.write(&mut out);
                proptest::prop_assert_eq!(out, bytes);
            }
        }
    }
}
