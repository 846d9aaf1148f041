//! One dRPC call on one yamux stream (`coordination.md` §5.2).
//!
//! [`Reader`] joins frames to packets, [`Call`] is the state machine of either end. Neither knows the stream below: bytes to
//! send are appended to a buffer, bytes that came are handed in, and what is not consumed stays with the stream.

use crate::wire::coord::drpc::{FrameHeader, Kind, MAX_PACKET, ParseError, RpcError, write_packet};
use std::fmt;

/// Coder opens one stream per call, so this is the id of all of them.
const STREAM: u64 = 1;
/// Longest path that a server reads.
const MAX_PATH: usize = 256;

/// Why a call cannot be read on: its stream must be closed, the session lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a frame.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// An id below one that was seen already.
    #[error("message ids go backwards")]
    Order,
    /// Frames of different kinds in one packet.
    #[error("the kind changes inside a packet")]
    KindChange,
    /// More than [`MAX_PACKET`] bytes in one packet.
    #[error("packet too long")]
    TooLong,
    /// A packet that has no place here.
    #[error("unexpected packet: {0:?}")]
    Unexpected(Kind),
}

/// A whole packet. Its `Debug` shows no data.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    /// Kind.
    pub kind: Kind,
    /// Stream id.
    pub stream: u64,
    /// Message id.
    pub message: u64,
    /// Whether one of its frames had the control bit.
    pub control: bool,
    /// Data of all frames.
    pub data: Vec<u8>,
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({}/{}, {} bytes)", self.kind, self.stream, self.message, self.data.len())
    }
}

/// Joins frames to packets.
#[derive(Debug)]
pub struct Reader {
    /// The lowest ids that may come.
    next: (u64, u64),
    packet: Option<Packet>,
    /// Data of the present frame that has not come yet, and whether the frame ends its packet.
    frame: Option<(usize, bool)>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { next: (1, 1), packet: None, frame: None }
    }
}

impl Reader {
    /// Takes bytes up to the end of the next packet. Returns how many were taken; the rest must be offered again.
    ///
    /// # Errors
    /// When the peer broke a rule; nothing can be read after that.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Packet>), Fault> {
        let mut rest = bytes;
        loop {
            let (left, done) = match self.frame.take() {
                Some(frame) => frame,
                None => {
                    let Some((header, used)) = FrameHeader::parse(rest)? else { break };
                    rest = rest.get(used..).unwrap_or_default();
                    self.begin(&header)?;
                    (header.len, header.done)
                }
            };
            let (now, later) = rest.split_at(rest.len().min(left));
            rest = later;
            if let Some(packet) = &mut self.packet {
                packet.data.extend_from_slice(now);
            }
            if now.len() < left {
                self.frame = Some((left - now.len(), done));
                break;
            }
            if let Some(packet) = self.packet.take_if(|_| done) {
                self.next.1 = self.next.1.saturating_add(1);
                return Ok((bytes.len() - rest.len(), Some(packet)));
            }
        }
        Ok((bytes.len() - rest.len(), None))
    }

    /// Bytes of an unfinished packet, for the owner's limits.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.packet.as_ref().map_or(0, |p| p.data.len())
    }

    fn begin(&mut self, header: &FrameHeader) -> Result<(), Fault> {
        let ids = (header.stream, header.message);
        if ids < self.next {
            return Err(Fault::Order);
        }
        let new = Packet {
            kind: header.kind,
            stream: header.stream,
            message: header.message,
            control: header.control,
            data: Vec::new(),
        };
        match &mut self.packet {
            Some(packet) if ids == self.next => {
                if packet.kind != header.kind {
                    return Err(Fault::KindChange);
                }
                packet.control |= header.control;
                if packet.data.len() + header.len > MAX_PACKET {
                    return Err(Fault::TooLong);
                }
            }
            // An unfinished packet ends when another id comes.
            other => *other = Some(new),
        }
        self.next = ids;
        Ok(())
    }
}

/// What a call's other end did.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A call of this path begins (server only).
    Invoke(String),
    /// A message.
    Message(Vec<u8>),
    /// No further messages will come.
    SendClosed,
    /// The call is over.
    End(End),
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Done,
    /// With an error.
    Failed(RpcError),
    /// The other end gave it up, or its stream ended too early.
    Cancelled,
}

/// Either end of one call.
#[derive(Debug)]
pub struct Call {
    reader: Reader,
    next_message: u64,
    invoked: bool,
    sent_close: bool,
    got_close: bool,
    over: bool,
}

impl Call {
    const fn new(reader: Reader, invoked: bool) -> Self {
        Self { reader, next_message: 1, invoked, sent_close: false, got_close: false, over: false }
    }

    /// The caller's end; appends the invoke.
    #[must_use]
    pub fn client(path: &str, out: &mut Vec<u8>) -> Self {
        let mut call = Self::new(Reader::default(), true);
        call.packet(Kind::Invoke, path.as_bytes(), out);
        call
    }

    /// The answering end, waiting for the invoke.
    #[must_use]
    pub fn server() -> Self {
        Self::new(Reader::default(), false)
    }

    /// Whether nothing more will be sent or taken.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over
    }

    /// Bytes of an unfinished packet, for the owner's limits.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.reader.buffered()
    }

    /// Appends a message.
    pub fn write_message(&mut self, body: &[u8], out: &mut Vec<u8>) {
        self.packet(Kind::Message, body, out);
    }

    /// Appends the note that no further message follows.
    pub fn write_close_send(&mut self, out: &mut Vec<u8>) {
        self.packet(Kind::CloseSend, &[], out);
        self.sent_close = true;
        self.over |= self.got_close;
    }

    /// Appends the end of the call.
    pub fn write_close(&mut self, out: &mut Vec<u8>) {
        self.packet(Kind::Close, &[], out);
        self.over = true;
    }

    /// Appends the end of the call with an error.
    pub fn write_error(&mut self, error: &RpcError, out: &mut Vec<u8>) {
        self.packet(Kind::Error, &error.to_body(), out);
        self.over = true;
    }

    /// Takes bytes up to the next thing worth telling. Returns how many were taken; the rest must be offered again.
    ///
    /// # Errors
    /// When the other end broke a rule: close the stream.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Received>), Fault> {
        let mut taken = 0;
        loop {
            let (used, packet) = self.reader.read(bytes.get(taken..).unwrap_or_default())?;
            taken += used;
            let Some(packet) = packet else { return Ok((taken, None)) };
            if let Some(received) = self.take(packet)? {
                return Ok((taken, Some(received)));
            }
        }
    }

    fn take(&mut self, packet: Packet) -> Result<Option<Received>, Fault> {
        if packet.kind == Kind::Invoke {
            // A second call on the same stream is legal dRPC, but no Coder peer makes one.
            if self.invoked || packet.data.len() > MAX_PATH {
                return Err(Fault::Unexpected(Kind::Invoke));
            }
            self.invoked = true;
            return Ok(Some(Received::Invoke(String::from_utf8_lossy(&packet.data).into_owned())));
        }
        if self.over {
            return Ok(None);
        }
        let received = match packet.kind {
            Kind::InvokeMetadata if !self.invoked => return Ok(None),
            kind if !self.invoked => return Err(Fault::Unexpected(kind)),
            Kind::Message => return Ok(Some(Received::Message(packet.data))),
            Kind::CloseSend => {
                self.got_close = true;
                if !self.sent_close {
                    return Ok(Some(Received::SendClosed));
                }
                Received::End(End::Done)
            }
            Kind::Close => Received::End(End::Done),
            Kind::Error => Received::End(End::Failed(RpcError::parse(&packet.data))),
            Kind::Cancel => Received::End(End::Cancelled),
            _ if packet.control => return Ok(None),
            kind @ (Kind::Invoke | Kind::InvokeMetadata | Kind::Other(_)) => return Err(Fault::Unexpected(kind)),
        };
        self.over = true;
        Ok(Some(received))
    }

    fn packet(&mut self, kind: Kind, data: &[u8], out: &mut Vec<u8>) {
        if !self.over {
            write_packet(kind, STREAM, self.next_message, data, out);
            self.next_message += 1;
        }
    }
}

/// Reads packets out of bytes that arrive in pieces of `step`, for tests and fuzzing.
#[cfg(any(test, feature = "sim"))]
#[must_use]
pub fn read_pieces(bytes: &[u8], step: usize) -> (Vec<Packet>, Option<Fault>) {
    let (mut reader, mut packets, mut kept) = (Reader::default(), Vec::new(), Vec::new());
    for piece in bytes.chunks(step.max(1)) {
        kept.extend_from_slice(piece);
        loop {
            match reader.read(&kept) {
                Ok((used, packet)) => {
                    kept.drain(..used);
                    let Some(packet) = packet else { break };
                    packets.push(packet);
                }
                Err(fault) => return (packets, Some(fault)),
            }
        }
    }
    (packets, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn vectors(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    /// The bytes of a row; two rows are only described, by their names.
    fn row_bytes(row: &Value) -> Vec<u8> {
        let text = row["bytes"].as_str().unwrap();
        let Some(head) = text.split("...").next().filter(|_| text.contains("...")) else { return hex::decode(text).unwrap() };
        let head = hex::decode(head).unwrap();
        let mut bytes = Vec::new();
        if row["name"].as_str().unwrap().contains("two frames") {
            FrameHeader { kind: Kind::Message, done: false, control: false, stream: 1, message: 1, len: MAX_PACKET }
                .write(&mut bytes);
            bytes.resize(bytes.len() + MAX_PACKET, b'x');
            bytes.extend_from_slice(&[0x05, 1, 1, 1, b'x']);
        } else {
            let header_len = head.iter().position(|b| *b == b'x').unwrap();
            bytes.extend_from_slice(&head[..header_len]);
            bytes.resize(row["len"].as_u64().unwrap() as usize, b'x');
        }
        assert!(bytes.starts_with(&head));
        assert_eq!(bytes.len() as u64, row["len"].as_u64().unwrap());
        bytes
    }

    #[test]
    fn packets_are_read_as_by_the_go_reader_however_they_are_cut() {
        let vectors = vectors(include_str!("../../../tests/vectors/wire/drpc.json"));
        for row in vectors["reader"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            let bytes = row_bytes(row);
            let steps: &[usize] = if bytes.len() > 10_000 { &[60_000, usize::MAX] } else { &[1, 2, 3, usize::MAX] };
            for &step in steps {
                let (packets, fault) = read_pieces(&bytes, step);
                assert_eq!(fault.is_none(), row["ends_with"].as_str() == Some("EOF"), "{name}: {fault:?}");
                let expected = row["packets"].as_array().unwrap();
                assert_eq!(packets.len(), expected.len(), "{name}");
                for (packet, expected) in packets.iter().zip(expected) {
                    assert_eq!(format!("{:?}", packet.kind), expected["kind"].as_str().unwrap());
                    assert_eq!(Some(packet.stream), expected["stream_id"].as_u64());
                    assert_eq!(Some(packet.message), expected["message_id"].as_u64());
                    assert_eq!(Some(packet.control), expected["control"].as_bool(), "{name}");
                    assert_eq!(Some(packet.data.len() as u64), expected["len"].as_u64());
                    if let Some(data) = expected["data"].as_str() {
                        assert_eq!(hex::encode(&packet.data), data);
                    }
                }
            }
        }
    }

    #[test]
    fn the_caller_writes_the_bytes_of_go_and_the_server_answers_them() {
        let vectors = vectors(include_str!("../../../tests/vectors/wire/agent-calls.json"));
        let mut seen = 0;
        for row in vectors["calls"].as_array().unwrap() {
            let name = row["call"].as_str().unwrap();
            let path = row["request"][0]["path"].as_str().unwrap();
            let part = |list: &Value, kind: &str| {
                let list = list.as_array().unwrap().iter();
                list.filter(|p| p["kind"].as_str() == Some(kind))
                    .map(|p| p["data"].as_str().unwrap_or_default().to_owned())
                    .next()
            };
            // One row only names its length; frames of long messages have a test of their own.
            let Some(wire) = row["request_wire"].as_str() else { continue };
            let request = part(&row["request"], "Message").unwrap();
            let request = hex::decode(request).unwrap();
            let mut out = Vec::new();
            let mut caller = Call::client(path, &mut out);
            caller.write_message(&request, &mut out);
            caller.write_close_send(&mut out);
            if wire.ends_with("0b010400") {
                let mut close = out.clone();
                Call { next_message: 4, ..Call::new(Reader::default(), true) }.write_close(&mut close);
                assert_eq!(hex::encode(close), wire, "{name}");
            } else {
                assert_eq!(hex::encode(&out), wire, "{name}");
            }

            let mut server = Call::server();
            let mut rest = out.as_slice();
            let mut got = Vec::new();
            while let (used, Some(received)) = server.read(rest).unwrap() {
                rest = &rest[used..];
                got.push(received);
            }
            assert_eq!(got, [Received::Invoke(path.into()), Received::Message(request), Received::SendClosed]);
            let mut answer = Vec::new();
            let expected = if let Some(reply) = part(&row["reply"], "Message") {
                let reply = hex::decode(reply).unwrap();
                server.write_message(&reply, &mut answer);
                server.write_close_send(&mut answer);
                Received::Message(reply)
            } else {
                let error = RpcError::parse(&hex::decode(part(&row["reply"], "Error").unwrap()).unwrap());
                server.write_error(&error, &mut answer);
                Received::End(End::Failed(error))
            };
            assert!(server.is_over());
            assert_eq!(hex::encode(&answer), row["reply_wire"].as_str().unwrap(), "{name}");
            assert_eq!(caller.read(&answer).unwrap().1, Some(expected));
            seen += 1;
        }
        assert!(seen > 15, "{seen}");
    }

    #[test]
    fn packets_out_of_place_end_the_call() {
        let mut out = Vec::new();
        let mut caller = Call::client("/a", &mut out);
        let invoke = out.clone();
        assert_eq!(caller.read(&invoke), Err(Fault::Unexpected(Kind::Invoke)));
        assert_eq!(Call::server().read(&[0x05, 1, 1, 0]), Err(Fault::Unexpected(Kind::Message)));
        let mut server = Call::server();
        assert_eq!(server.read(&invoke).unwrap().1, Some(Received::Invoke("/a".into())));
        assert_eq!(server.read(&[0x3f, 1, 2, 0]), Err(Fault::Unexpected(Kind::Other(31))));
        let second = [0x03, 2, 1, 2, b'/', b'b'];
        let mut server = Call::server();
        server.read(&invoke).unwrap();
        server.write_close(&mut out);
        assert_eq!(server.read(&second), Err(Fault::Unexpected(Kind::Invoke)));
    }

    #[test]
    fn a_path_of_endless_length_is_refused() {
        for (len, taken) in [(MAX_PATH, true), (MAX_PATH + 1, false)] {
            let mut out = Vec::new();
            let _caller = Call::client(&"/".repeat(len), &mut out);
            assert_eq!(Call::server().read(&out).is_ok(), taken, "{len}");
        }
    }

    #[test]
    fn what_need_not_be_known_is_passed_over() {
        let mut server = Call::server();
        let metadata_then_invoke = [0x0f, 1, 1, 2, 0x0a, 0, 0x03, 1, 2, 2, b'/', b'a'];
        assert_eq!(server.read(&metadata_then_invoke).unwrap().1, Some(Received::Invoke("/a".into())));
        let unknown_control = [0xbf, 1, 3, 0, 0x89, 1, 4, 0];
        assert_eq!(server.read(&unknown_control).unwrap(), (8, Some(Received::End(End::Cancelled))));
        assert_eq!(server.read(&[0x05, 1, 5, 1, 7]).unwrap(), (5, None), "after the end nothing counts");
    }

    #[test]
    fn a_message_split_into_frames_is_joined() {
        let body: Vec<u8> = (0..200_000_u32).map(|i| i as u8).collect();
        let mut out = Vec::new();
        let mut caller = Call::client("/a", &mut out);
        caller.write_message(&body, &mut out);
        let mut server = Call::server();
        let (used, _) = server.read(&out).unwrap();
        let (used_now, got) = server.read(&out[used..out.len() - 1]).unwrap();
        assert_eq!((got, server.buffered()), (None, 199_999));
        assert_eq!(server.read(&out[used + used_now..]).unwrap().1, Some(Received::Message(body)));
        assert_eq!(server.buffered(), 0);
    }
}
