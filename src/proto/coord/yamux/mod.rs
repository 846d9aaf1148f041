//! A yamux session (`coordination.md` §4): many streams over one ordered byte stream.
//!
//! Sans-IO: [`Session::handle_bytes`] takes what arrived, [`Session::poll_output`] gives what to send, and
//! [`Session::poll_ready`] names the streams that have news. Invariants:
//! - an inbound stream is acknowledged when its SYN arrives: a Go peer gives the whole session up without that;
//! - no second FIN ever leaves, and nothing is sent beyond the peer's credit;
//! - what the peer may make us keep is bounded: streams, unread bytes, unsent control frames and queued data.
//!
//! A stream serves one call, so [`Session::close`] means "done with both directions": queued bytes and a FIN go out, what
//! still comes in is dropped. There is no half-close towards the owner.

#[cfg(test)]
mod tests;

use crate::{
    base::{Deadline, Instant},
    wire::coord::yamux::{Flags, HEADER, Header, Kind, ParseError, WINDOW},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

/// Streams alive at once. A Go peer replies RST beyond 256 that nobody accepted yet.
const MAX_STREAMS: usize = 256;
/// Control bytes waiting to be sent. Only a peer that asks and never reads gets there.
const MAX_CONTROL: usize = 64 * 1024;
/// Data bytes waiting to be sent over all streams: four of the largest dRPC packets.
const MAX_QUEUED: usize = 16 * 1024 * 1024;
/// Largest data frame that we send, so that a ping's answer never waits behind a whole window.
const MAX_DATA_FRAME: usize = 32 * 1024;
/// A call of [`Session::poll_output`] stops soon after this many bytes.
const OUTPUT_STEP: usize = 256 * 1024;
/// How long a closed stream waits for the peer's FIN before it is reset, as in the Go implementation.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// A stream of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// Why a session is over. All of them are the peer's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a yamux header.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// More data than the credit allowed.
    #[error("stream {0} sent more than its window")]
    Overrun(u32),
    /// Credit beyond 32 bits.
    #[error("stream {0} was given too much credit")]
    Credit(u32),
    /// A second SYN for a stream, or one on stream 0.
    #[error("stream {0} was opened twice")]
    SecondSyn(u32),
    /// A second FIN of a stream.
    #[error("stream {0} was finished twice")]
    SecondFin(u32),
    /// A go-away with a code other than 0.
    #[error("the other side went away with code {0}")]
    GoAway(u32),
    /// Pings and opens without end while nothing is read.
    #[error("the other side asks without reading the answers")]
    Flood,
}

/// Why no stream was opened, or nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The peer takes no further streams.
    #[error("the other side takes no further calls")]
    GoneAway,
    /// `MAX_STREAMS` are alive, or the numbers are used up.
    #[error("too many calls at once")]
    TooMany,
    /// The stream is closed, or `MAX_QUEUED` bytes wait already.
    #[error("the stream takes no further bytes")]
    Full,
}

/// What the reader of a stream may still expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadState {
    /// More may come.
    Open,
    /// The peer wrote its last byte; what is readable is the rest.
    Finished,
    /// The stream is gone: reset, or never there.
    Reset,
}

#[derive(Default)]
struct Stream {
    /// Received and not consumed; the part before `read` is consumed.
    input: Vec<u8>,
    read: usize,
    /// What the peer may still send.
    receive_credit: u32,
    /// Consumed and not yet given back as credit.
    owed: u32,
    /// What we may still send.
    send_credit: u32,
    output: VecDeque<u8>,
    /// The owner is done.
    closed: bool,
    fin_sent: bool,
    fin_received: bool,
    reset: bool,
}

impl Stream {
    fn new() -> Self {
        Self { receive_credit: WINDOW, send_credit: WINDOW, ..Self::default() }
    }

    fn is_over(&self) -> bool {
        self.closed && (self.reset || (self.fin_sent && self.fin_received))
    }
}

/// Data of a frame that is still arriving.
#[derive(Debug)]
struct Body {
    stream: StreamId,
    left: usize,
    /// The stream ends behind it.
    fin: bool,
}

/// One end of a session. Its `Debug` shows no payload.
pub struct Session {
    streams: BTreeMap<StreamId, Stream>,
    next: Option<u32>,
    accepted: VecDeque<StreamId>,
    ready: BTreeSet<StreamId>,
    /// Streams with data or a FIN to send, in turn.
    sending: VecDeque<StreamId>,
    /// Closed streams in the order in which they are given up.
    closing: VecDeque<(Instant, StreamId)>,
    header: Vec<u8>,
    body: Option<Body>,
    control: Vec<u8>,
    queued: usize,
    gone_away: bool,
    next_ping: u32,
    /// Pings of ours without an answer.
    pings: BTreeSet<u32>,
    pongs: VecDeque<u32>,
}

impl Session {
    fn new(first: u32) -> Self {
        Self {
            streams: BTreeMap::new(),
            next: Some(first),
            accepted: VecDeque::new(),
            ready: BTreeSet::new(),
            sending: VecDeque::new(),
            closing: VecDeque::new(),
            header: Vec::with_capacity(HEADER),
            body: None,
            control: Vec::new(),
            queued: 0,
            gone_away: false,
            next_ping: 0,
            pings: BTreeSet::new(),
            pongs: VecDeque::new(),
        }
    }

    /// The end that dialled: opens 1, 3, 5, …
    #[must_use]
    pub fn client() -> Self {
        Self::new(1)
    }

    /// The end that was dialled: opens 2, 4, …
    #[must_use]
    pub fn server() -> Self {
        Self::new(2)
    }

    /// Feeds bytes of the peer, split anywhere.
    ///
    /// # Errors
    /// When the peer broke the protocol: the session is over and its transport must be closed.
    pub fn handle_bytes(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            if let Some(body) = self.body.take() {
                let (now, later) = bytes.split_at(bytes.len().min(body.left));
                self.take_data(body.stream, now);
                if body.left > now.len() {
                    self.body = Some(Body { left: body.left - now.len(), ..body });
                } else if body.fin {
                    self.finish(body.stream);
                }
                bytes = later;
                continue;
            }
            let missing = HEADER.saturating_sub(self.header.len());
            let (now, later) = bytes.split_at(bytes.len().min(missing));
            self.header.extend_from_slice(now);
            bytes = later;
            if let Some(header) = self.header.first_chunk::<HEADER>() {
                let header = Header::parse(header)?;
                self.header.clear();
                self.handle_frame(&header)?;
            }
        }
        Ok(())
    }

    /// Appends what is to be sent. Call it again until it appends nothing.
    pub fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.control);
        let start = out.len();
        while out.len() - start < OUTPUT_STEP {
            let Some(id) = self.sending.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let len = stream.output.len().min(MAX_DATA_FRAME).min(stream.send_credit as usize);
            if len > 0 {
                Header { kind: Kind::Data, flags: Flags::NONE, stream: id.0, value: len as u32 }.write(out);
                let (front, back) = stream.output.as_slices();
                let in_front = len.min(front.len());
                out.extend_from_slice(front.get(..in_front).unwrap_or_default());
                out.extend_from_slice(back.get(..len - in_front).unwrap_or_default());
                stream.output.drain(..len);
                stream.send_credit -= len as u32;
                self.queued -= len;
            }
            if stream.output.is_empty() {
                if stream.closed && !stream.fin_sent {
                    stream.fin_sent = true;
                    Header { kind: Kind::WindowUpdate, flags: Flags::FIN, stream: id.0, value: 0 }.write(out);
                }
                if stream.is_over() {
                    self.forget(id);
                }
            } else if stream.send_credit > 0 {
                self.sending.push_back(id);
            }
        }
    }

    /// Opens a stream. Data may be written at once.
    ///
    /// # Errors
    /// When the peer went away or too many streams are alive.
    pub fn open(&mut self) -> Result<StreamId, Refused> {
        if self.gone_away {
            return Err(Refused::GoneAway);
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(Refused::TooMany);
        }
        let id = loop {
            let id = self.next.ok_or(Refused::TooMany)?;
            self.next = id.checked_add(2);
            // Go lets the peer open ids of our parity, so one may be taken.
            if !self.streams.contains_key(&StreamId(id)) {
                break StreamId(id);
            }
        };
        self.streams.insert(id, Stream::new());
        self.control(Kind::WindowUpdate, Flags::SYN, id.0, 0);
        Ok(id)
    }

    /// The next stream that the peer opened. It is acknowledged already.
    pub fn accept(&mut self) -> Option<StreamId> {
        self.accepted.pop_front()
    }

    /// The next stream with new bytes or an end; each is named once.
    pub fn poll_ready(&mut self) -> Option<StreamId> {
        self.ready.pop_first()
    }

    /// The bytes that wait for the reader.
    #[must_use]
    pub fn readable(&self, id: StreamId) -> &[u8] {
        self.streams.get(&id).and_then(|s| s.input.get(s.read..)).unwrap_or_default()
    }

    /// Marks `len` readable bytes as read and gives credit back when half a window was.
    pub fn consume(&mut self, id: StreamId, len: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let len = len.min(stream.input.len() - stream.read);
        stream.read += len;
        stream.owed += len as u32;
        if stream.read == stream.input.len() {
            stream.input.clear();
            stream.read = 0;
        } else if stream.read > stream.input.len() / 2 {
            stream.input.drain(..stream.read);
            stream.read = 0;
        }
        if stream.owed >= WINDOW / 2 && !stream.fin_received {
            let credit = std::mem::take(&mut stream.owed);
            stream.receive_credit += credit;
            self.control(Kind::WindowUpdate, Flags::NONE, id.0, credit);
        }
    }

    /// Whether more can be read.
    #[must_use]
    pub fn read_state(&self, id: StreamId) -> ReadState {
        match self.streams.get(&id) {
            Some(stream) if stream.reset => ReadState::Reset,
            Some(stream) if stream.fin_received => ReadState::Finished,
            Some(_) => ReadState::Open,
            None => ReadState::Reset,
        }
    }

    /// Queues all of `bytes` or nothing.
    ///
    /// # Errors
    /// When the stream is closed or too much waits already.
    pub fn write(&mut self, id: StreamId, bytes: &[u8]) -> Result<(), Refused> {
        let stream = self.streams.get_mut(&id).filter(|s| !s.closed && !s.reset).ok_or(Refused::Full)?;
        if self.queued + bytes.len() > MAX_QUEUED {
            return Err(Refused::Full);
        }
        if stream.output.is_empty() && stream.send_credit > 0 {
            self.sending.push_back(id);
        }
        stream.output.extend(bytes);
        self.queued += bytes.len();
        Ok(())
    }

    /// How many bytes of a stream are not sent yet: the owner's measure for back-pressure.
    #[must_use]
    pub fn queued(&self, id: StreamId) -> usize {
        self.streams.get(&id).map_or(0, |s| s.output.len())
    }

    /// Ends a stream: what is queued and one FIN are sent, what still arrives is dropped. A second call does nothing.
    pub fn close(&mut self, now: Instant, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.closed {
            return;
        }
        stream.closed = true;
        stream.input = Vec::new();
        stream.read = 0;
        self.ready.remove(&id);
        if stream.reset {
            self.forget(id);
            return;
        }
        if stream.output.is_empty() {
            self.sending.push_back(id);
        }
        self.closing.push_back((now + CLOSE_TIMEOUT, id));
    }

    /// Resets the closed streams whose peer never finished.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, id)) = self.closing.front().copied().filter(|(at, _)| *at <= now) {
            self.reset(id);
        }
    }

    /// When [`Session::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        self.closing.front().map(|(at, _)| Deadline { at: *at, why: "unfinished stream" })
    }

    /// Ends a stream at once in both directions.
    pub fn reset(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(|s| !s.reset) {
            self.control(Kind::WindowUpdate, Flags::RST, id.0, 0);
        }
        self.forget(id);
    }

    /// Whether the peer takes no further streams: time to dial again.
    #[must_use]
    pub const fn is_going_away(&self) -> bool {
        self.gone_away
    }

    /// Asks for a sign of life and returns the value that [`Session::poll_pong`] will give.
    pub fn ping(&mut self) -> u32 {
        let value = self.next_ping;
        self.next_ping = value.wrapping_add(1);
        // A peer that never answers is given up long before this.
        while self.pings.len() >= 16 {
            self.pings.pop_first();
        }
        self.pings.insert(value);
        self.control(Kind::Ping, Flags::SYN, 0, value);
        value
    }

    /// The value of the next answered ping.
    pub fn poll_pong(&mut self) -> Option<u32> {
        self.pongs.pop_front()
    }

    fn handle_frame(&mut self, header: &Header) -> Result<(), Fault> {
        match header.kind {
            Kind::Data | Kind::WindowUpdate => self.handle_stream_frame(header)?,
            Kind::Ping if header.flags.has(Flags::SYN) => self.control(Kind::Ping, Flags::ACK, 0, header.value),
            Kind::Ping => {
                if self.pings.remove(&header.value) {
                    self.pongs.push_back(header.value);
                }
            }
            Kind::GoAway if header.value == 0 => self.gone_away = true,
            Kind::GoAway => return Err(Fault::GoAway(header.value)),
        }
        if self.control.len() > MAX_CONTROL { Err(Fault::Flood) } else { Ok(()) }
    }

    fn handle_stream_frame(&mut self, header: &Header) -> Result<(), Fault> {
        let id = StreamId(header.stream);
        if header.flags.has(Flags::SYN) {
            self.handle_syn(id)?;
        }
        let data = if header.kind == Kind::Data { header.value } else { 0 };
        if data > 0 {
            self.body = Some(Body { stream: id, left: data as usize, fin: header.flags.has(Flags::FIN) });
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if header.flags.has(Flags::FIN) {
            if stream.fin_received {
                return Err(Fault::SecondFin(id.0));
            }
            // With a body the end comes behind the body's last byte.
            if data == 0 {
                stream.fin_received = true;
                self.ready.insert(id);
            }
        }
        if header.flags.has(Flags::RST) {
            stream.reset = true;
            self.queued -= stream.output.len();
            stream.output.clear();
            self.ready.insert(id);
        }
        if header.kind == Kind::WindowUpdate {
            stream.send_credit = stream.send_credit.checked_add(header.value).ok_or(Fault::Credit(id.0))?;
            if header.value > 0 && !stream.output.is_empty() && !self.sending.contains(&id) {
                self.sending.push_back(id);
            }
        }
        stream.receive_credit = stream.receive_credit.checked_sub(data).ok_or(Fault::Overrun(id.0))?;
        if stream.is_over() {
            self.forget(id);
        }
        Ok(())
    }

    fn handle_syn(&mut self, id: StreamId) -> Result<(), Fault> {
        if id.0 == 0 || self.streams.contains_key(&id) {
            return Err(Fault::SecondSyn(id.0));
        }
        if self.streams.len() >= MAX_STREAMS {
            self.control(Kind::WindowUpdate, Flags::RST, id.0, 0);
            return Ok(());
        }
        self.streams.insert(id, Stream::new());
        self.accepted.push_back(id);
        self.control(Kind::WindowUpdate, Flags::ACK, id.0, 0);
        Ok(())
    }

    fn take_data(&mut self, id: StreamId, bytes: &[u8]) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.closed && !stream.reset {
            stream.input.extend_from_slice(bytes);
            self.ready.insert(id);
        }
    }

    /// The peer has sent all that it will send on a stream.
    fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.fin_received = true;
        self.ready.insert(id);
        if stream.is_over() {
            self.forget(id);
        }
    }

    fn control(&mut self, kind: Kind, flags: Flags, stream: u32, value: u32) {
        Header { kind, flags, stream, value }.write(&mut self.control);
    }

    fn forget(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.queued -= stream.output.len();
        }
        self.ready.remove(&id);
        self.accepted.retain(|a| *a != id);
        self.closing.retain(|(_, closing)| *closing != id);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("streams", &self.streams.keys())
            .field("queued", &self.queued)
            .field("gone_away", &self.gone_away)
            .finish_non_exhaustive()
    }
}
