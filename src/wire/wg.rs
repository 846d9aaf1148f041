//! WireGuard's four messages, as far as they are readable without keys (`path-selection.md` §9).
//!
//! The cryptographic parts belong to `proto::wg`; here are only kinds, lengths and indices.

/// Length of an initiation.
pub const INITIATION_LEN: usize = 148;
/// Length of a response.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply.
pub const COOKIE_LEN: usize = 64;
/// What a data message adds to its padded content: type, receiver, counter and tag. A keepalive is exactly this long.
pub const DATA_OVERHEAD: usize = 32;
/// No tunnel of ours makes a longer datagram; a longer one is dropped before any cryptography sees it.
pub const MAX_DATAGRAM: usize = 2_048;
/// The device MTU of the Go implementation: padding never grows a packet beyond it.
const DEVICE_MTU: usize = 1_500;

/// The readable part of a message.
///
/// | kind | 0..4 | 4..8 | 8..12 | 8..16 | length |
/// |---|---|---|---|---|---|
/// | initiation | 1 | sender | | | 148 |
/// | response | 2 | sender | receiver | | 92 |
/// | cookie | 3 | receiver | | | 64 |
/// | data | 4 | receiver | | counter | ≥ 32 |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Begins a handshake.
    Initiation {
        /// The index under which the initiator awaits the answer.
        sender: u32,
    },
    /// Answers an initiation.
    Response {
        /// The responder's index of the new session.
        sender: u32,
        /// The initiator's index.
        receiver: u32,
    },
    /// Asks the sender of a handshake message to prove its address.
    Cookie {
        /// The index of the message that it answers.
        receiver: u32,
    },
    /// Carries a packet, or nothing (keepalive).
    Data {
        /// The receiver's index of the session.
        receiver: u32,
        /// Nonce and replay counter.
        counter: u64,
    },
}

/// Not a WireGuard message: unknown type or wrong length for its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard message")]
pub struct NotWireGuard;

impl Message {
    /// Reads the head of a datagram.
    ///
    /// # Errors
    /// When type and length fit none of the four messages.
    pub fn parse(d: &[u8]) -> Result<Self, NotWireGuard> {
        let (kind, rest) = word(d).ok_or(NotWireGuard)?;
        let (first, rest) = word(rest).ok_or(NotWireGuard)?;
        match (kind, d.len()) {
            (1, INITIATION_LEN) => Ok(Self::Initiation { sender: first }),
            (2, RESPONSE_LEN) => {
                let (receiver, _) = word(rest).ok_or(NotWireGuard)?;
                Ok(Self::Response { sender: first, receiver })
            }
            (3, COOKIE_LEN) => Ok(Self::Cookie { receiver: first }),
            (4, DATA_OVERHEAD..) => {
                let (counter, _) = rest.split_first_chunk::<8>().ok_or(NotWireGuard)?;
                Ok(Self::Data { receiver: first, counter: u64::from_le_bytes(*counter) })
            }
            _ => Err(NotWireGuard),
        }
    }
}

fn word(d: &[u8]) -> Option<(u32, &[u8])> {
    d.split_first_chunk::<4>().map(|(word, rest)| (u32::from_le_bytes(*word), rest))
}

/// The length of a packet after zero padding: a multiple of 16, but never padded above the device MTU of 1,500.
#[must_use]
pub fn padded_len(inner: usize) -> usize {
    inner.next_multiple_of(16).min(inner.max(DEVICE_MTU))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../../tests/vectors/wire/wireguard.json")).unwrap()
    }

    fn index(fields: &serde_json::Value, name: &str) -> u32 {
        u32::from_le_bytes(hex::decode(fields[name].as_str().unwrap()).unwrap().try_into().unwrap())
    }

    #[test]
    fn the_messages_of_the_go_implementation_show_kind_and_indices() {
        let vectors = vectors();
        let messages = vectors["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 5);
        for row in messages {
            let packet = hex::decode(row["packet"].as_str().unwrap()).unwrap();
            let fields = &row["fields"];
            let expected = match row["name"].as_str().unwrap() {
                "initiation" => Message::Initiation { sender: index(fields, "sender") },
                "response" => Message::Response { sender: index(fields, "sender"), receiver: index(fields, "receiver") },
                _ => Message::Data {
                    receiver: index(fields, "receiver"),
                    counter: u64::from_le_bytes(hex::decode(fields["counter"].as_str().unwrap()).unwrap().try_into().unwrap()),
                },
            };
            assert_eq!(Message::parse(&packet), Ok(expected));
            assert_eq!(Message::parse(&packet[..packet.len().min(31)]), Err(NotWireGuard));
        }
    }

    #[test]
    fn padding_gives_the_datagram_sizes_of_the_go_implementation() {
        let vectors = vectors();
        for row in vectors["sizes"].as_array().unwrap() {
            let inner = usize::try_from(row["inner"].as_u64().unwrap()).unwrap();
            assert_eq!(Some((padded_len(inner) + DATA_OVERHEAD) as u64), row["udp_payload"].as_u64(), "inner {inner}");
        }
    }

    #[test]
    fn a_wrong_length_or_a_reserved_byte_is_no_message() {
        for (kind, len) in [(1, 147), (1, 149), (2, 91), (3, 65), (4, 31), (0, 148), (5, 148)] {
            let mut d = vec![0; len];
            d[0] = kind;
            assert_eq!(Message::parse(&d), Err(NotWireGuard), "{kind} {len}");
        }
        let mut d = vec![0; INITIATION_LEN];
        d[..4].copy_from_slice(&[1, 0, 0, 1]);
        assert_eq!(Message::parse(&d), Err(NotWireGuard));
    }
}
