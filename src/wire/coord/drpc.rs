//! Frames of storj dRPC (`coordination.md` §5).
//!
//! ```text
//! control byte | varint stream id | varint message id | varint data length | data
//! ```
//! The control byte holds `done` (bit 0: last frame of its packet), the kind (bits 1–6) and `control` (bit 7: a receiver
//! that does not know the kind ignores the packet). Consecutive frames of one id pair make a packet.

/// Most bytes in all frames of one packet.
pub const MAX_PACKET: usize = 4 * 1024 * 1024;
/// Most data bytes that a writer puts into one frame.
pub const MAX_FRAME: usize = 65_536;
/// The one error code with a meaning: the other side does not know the call.
pub const UNIMPLEMENTED: u64 = 12;
/// A 64-bit varint takes at most ten bytes.
const MAX_VARINT: usize = 10;

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Opens a call; the body is its path.
    Invoke,
    /// A message of the call.
    Message,
    /// Ends the call with a code and a text.
    Error,
    /// Ends the call: nobody waits for it any more.
    Cancel,
    /// Ends the call in both directions.
    Close,
    /// The sender has no further message.
    CloseSend,
    /// Key/value list before an invoke.
    InvokeMetadata,
    /// A kind of a newer peer.
    Other(u8),
}

impl Kind {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Invoke,
            2 => Self::Message,
            3 => Self::Error,
            4 => Self::Cancel,
            5 => Self::Close,
            6 => Self::CloseSend,
            7 => Self::InvokeMetadata,
            other => Self::Other(other),
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Invoke => 1,
            Self::Message => 2,
            Self::Error => 3,
            Self::Cancel => 4,
            Self::Close => 5,
            Self::CloseSend => 6,
            Self::InvokeMetadata => 7,
            Self::Other(bits) => bits & 0x3f,
        }
    }
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// More than ten bytes without an end.
    #[error("varint too long")]
    Varint,
    /// A frame longer than any packet may be.
    #[error("frame of {0} bytes")]
    Length(u64),
}

/// The head of one frame, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Kind of the packet.
    pub kind: Kind,
    /// Whether this frame is the last of its packet.
    pub done: bool,
    /// Whether a receiver that does not know the kind ignores the packet.
    pub control: bool,
    /// Stream id.
    pub stream: u64,
    /// Message id, counted per packet and direction.
    pub message: u64,
    /// Length of the data that follows, at most [`MAX_PACKET`].
    pub len: usize,
}

impl FrameHeader {
    /// Reads a head and says how many bytes it took; `None` while it is incomplete.
    ///
    /// # Errors
    /// When a varint does not end or the length exceeds [`MAX_PACKET`]. Either ends the stream below.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, ParseError> {
        let Some((&head, rest)) = bytes.split_first() else { return Ok(None) };
        let Some((stream, rest)) = read_varint(rest)? else { return Ok(None) };
        let Some((message, rest)) = read_varint(rest)? else { return Ok(None) };
        let Some((len, rest)) = read_varint(rest)? else { return Ok(None) };
        let fits = usize::try_from(len).ok().filter(|&len| len <= MAX_PACKET).ok_or(ParseError::Length(len))?;
        let header = Self {
            kind: Kind::from_bits((head >> 1) & 0x3f),
            done: head & 1 != 0,
            control: head & 0x80 != 0,
            stream,
            message,
            len: fits,
        };
        Ok(Some((header, bytes.len() - rest.len())))
    }

    /// Appends the head. The caller appends `len` bytes of data.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.control) << 7 | self.kind.bits() << 1 | u8::from(self.done));
        write_varint(self.stream, out);
        write_varint(self.message, out);
        write_varint(self.len as u64, out);
    }
}

/// Appends a whole packet, split into frames of at most [`MAX_FRAME`] data bytes.
///
/// A cancel is marked `control`, as the Go implementation does.
pub fn write_packet(kind: Kind, stream: u64, message: u64, data: &[u8], out: &mut Vec<u8>) {
    let mut rest = data;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_FRAME));
        let done = later.is_empty();
        FrameHeader { kind, done, control: kind == Kind::Cancel, stream, message, len: now.len() }.write(out);
        out.extend_from_slice(now);
        rest = later;
        if done {
            return;
        }
    }
}

/// Appends an unsigned LEB128 number.
pub fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads an unsigned LEB128 number and returns what follows it; `None` while it is incomplete. Bits beyond 64 are lost.
///
/// # Errors
/// When the tenth byte does not end the number.
pub fn read_varint(bytes: &[u8]) -> Result<Option<(u64, &[u8])>, ParseError> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(MAX_VARINT) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((value, bytes.get(at + 1..).unwrap_or_default())));
        }
    }
    if bytes.len() >= MAX_VARINT { Err(ParseError::Varint) } else { Ok(None) }
}

/// How a call failed on the other side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct RpcError {
    /// [`UNIMPLEMENTED`], or a number without meaning.
    pub code: u64,
    /// Text for people.
    pub text: String,
}

impl RpcError {
    /// The answer to a path that is not known. The text is what Go clients look for when there is no code.
    #[must_use]
    pub fn unimplemented(path: &str) -> Self {
        Self { code: UNIMPLEMENTED, text: format!("unknown rpc: {path:?}") }
    }

    /// A failure without code.
    #[must_use]
    pub fn plain(text: impl Into<String>) -> Self {
        Self { code: 0, text: text.into() }
    }

    /// Whether the other side does not know the call. Go routers tell it by text alone.
    #[must_use]
    pub fn is_unimplemented(&self) -> bool {
        self.code == UNIMPLEMENTED || self.text.contains("unknown rpc: ")
    }

    /// Reads the body of an error packet; a body too short for a code is all text.
    #[must_use]
    pub fn parse(body: &[u8]) -> Self {
        match body.split_first_chunk::<8>() {
            Some((code, text)) => Self { code: u64::from_be_bytes(*code), text: String::from_utf8_lossy(text).into_owned() },
            None => Self { code: 0, text: String::from_utf8_lossy(body).into_owned() },
        }
    }

    /// The body of an error packet.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        [&self.code.to_be_bytes(), self.text.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/wire/drpc.json")).unwrap()
    }

    fn bytes(value: &Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap()).unwrap()
    }

    #[test]
    fn varints_are_written_and_read_as_in_go() {
        let vectors = vectors();
        for row in vectors["varints"].as_array().unwrap() {
            let mut out = Vec::new();
            write_varint(row["value"].as_u64().unwrap(), &mut out);
            assert_eq!(out, bytes(&row["bytes"]));
        }
        for row in vectors["varint_read"].as_array().unwrap() {
            let input = bytes(&row["bytes"]);
            let read = read_varint(&input).unwrap();
            assert_eq!(read.is_some(), row["complete"].as_bool().unwrap());
            if let Some((value, rest)) = read {
                assert_eq!(Some(value), row["value"].as_u64());
                assert_eq!(rest, bytes(&row["rest"]));
            }
        }
        assert_eq!(read_varint(&[0x80; 10]), Err(ParseError::Varint));
    }

    #[test]
    fn frames_are_written_and_read_as_in_go() {
        for row in vectors()["frames"].as_array().unwrap() {
            let frame = bytes(&row["frame"]);
            let (header, used) = FrameHeader::parse(&frame).unwrap().unwrap();
            let name = match header.kind {
                Kind::Other(bits) => bits.to_string(),
                known => format!("{known:?}"),
            };
            assert_eq!(name, row["kind"].as_str().unwrap());
            assert_eq!(Some(header.stream), row["stream_id"].as_u64());
            assert_eq!(Some(header.message), row["message_id"].as_u64());
            assert_eq!(Some(header.done), row["done"].as_bool());
            assert_eq!(Some(header.control), row["control"].as_bool());
            assert_eq!(&frame[used..], bytes(&row["data"]));
            let mut out = Vec::new();
            header.write(&mut out);
            assert_eq!(out, &frame[..used]);
            for cut in 0..used {
                assert_eq!(FrameHeader::parse(&frame[..cut]), Ok(None));
            }
        }
    }

    #[test]
    fn a_packet_is_split_as_in_go() {
        for row in vectors()["splitting"].as_array().unwrap() {
            let data = vec![7; row["packet_len"].as_u64().unwrap() as usize];
            let mut out = Vec::new();
            write_packet(Kind::Message, 1, 1, &data, &mut out);
            let mut lens = Vec::new();
            let mut rest = out.as_slice();
            while let Some((header, used)) = FrameHeader::parse(rest).unwrap() {
                lens.push(Value::from(header.len));
                rest = &rest[used + header.len..];
                assert_eq!(header.done, rest.is_empty());
            }
            assert_eq!(Value::from(lens), row["frame_lens"]);
        }
    }

    #[test]
    fn error_bodies_are_written_and_read_as_in_go() {
        let vectors = vectors();
        for row in vectors["errors"].as_array().unwrap() {
            let error = RpcError { code: row["code"].as_u64().unwrap(), text: row["text"].as_str().unwrap().into() };
            assert_eq!(error.to_body(), bytes(&row["body"]));
            assert_eq!(RpcError::parse(&error.to_body()), error);
        }
        for row in vectors["error_bodies_read"].as_array().unwrap() {
            let error = RpcError::parse(&bytes(&row["body"]));
            assert_eq!(Some(error.code), row["code"].as_u64());
            assert!(row["text"].as_str().unwrap().starts_with(&error.text));
        }
    }

    #[test]
    fn an_unknown_call_is_seen_by_code_or_text() {
        assert!(RpcError { code: 12, text: String::new() }.is_unimplemented());
        assert!(RpcError::plain("protocol error: unknown rpc: \"/coder.x\"").is_unimplemented());
        assert!(RpcError::unimplemented("/a/B").text.contains("unknown rpc: "));
        assert!(!RpcError::plain("nothing to do with it").is_unimplemented());
    }

    proptest::proptest! {
        #[test]
        fn any_frame_head_is_read_as_it_was_written(bits in 0_u8..64, done: bool, control: bool, stream: u64, message: u64, len in 0..=MAX_PACKET) {
            let header = FrameHeader { kind: Kind::from_bits(bits), done, control, stream, message, len };
            let mut out = Vec::new();
            header.write(&mut out);
            proptest::prop_assert_eq!(FrameHeader::parse(&out), Ok(Some((header, out.len()))));
        }

        #[test]
        fn any_varint_is_read_as_it_was_written(value: u64, rest: Vec<u8>) {
            let mut out = Vec::new();
            write_varint(value, &mut out);
            out.extend_from_slice(&rest);
            proptest::prop_assert_eq!(read_varint(&out), Ok(Some((value, rest.as_slice()))));
        }
    }
}
