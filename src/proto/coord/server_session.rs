//! The server's end of one control socket: takes calls, streams news, watches liveness (`coordination.md` §2.3, §5).
//!
//! Unary calls come out as [`ServerEvent::Call`] and are answered with [`ServerSession::reply`]. The two streaming calls are
//! handled here: each Coordinate gives its requests one by one and takes responses, each StreamDERPMaps gets the newest relay
//! map at once and again when it changes. Reading pauses while [`MAX_REQUESTS`] events wait, so that a peer that asks faster
//! than it is served fills its own window.

use super::{
    drpc::{Call, Received},
    liveness::Liveness,
    yamux::{Fault, ReadState, Session, StreamId},
};
use crate::{
    base::{Deadline, Instant},
    wire::coord::{
        agent,
        drpc::RpcError,
        tailnet::{COORDINATE, CoordinateRequest, CoordinateResponse, DerpMap, STREAM_DERP_MAPS},
    },
};
use prost::Message as _;
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

/// Events that may wait before reading pauses: the request queue of the Go implementation.
const MAX_REQUESTS: usize = 32;
/// Bytes of unfinished packets over all calls.
const MAX_PARTIAL: usize = 16 * 1024 * 1024;
/// Coordinate calls at once; more than one is a reconnect that overlaps.
const MAX_COORDINATES: usize = 4;
/// A Coordinate stream with this much unsent takes no further response.
const RESPONSE_ROOM: usize = 256 * 1024;

/// Whose socket this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A client: the tailnet service only.
    Client,
    /// An agent: the tailnet and the agent service.
    Agent,
}

/// A call of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerCall(StreamId);

/// What the peer wants.
#[derive(Debug, PartialEq)]
pub enum ServerEvent {
    /// A unary call, to be answered with [`ServerSession::reply`].
    Call {
        /// The call.
        call: ServerCall,
        /// Its path.
        path: String,
        /// Its encoded request.
        body: Vec<u8>,
    },
    /// A Coordinate call begins.
    CoordinateOpened {
        /// The call.
        call: ServerCall,
    },
    /// A request on a Coordinate call.
    Coordinate {
        /// The call.
        call: ServerCall,
        /// The request.
        request: Box<CoordinateRequest>,
    },
    /// A Coordinate call ended by the peer, or with the session. A disconnect request came before, if there was one.
    CoordinateClosed {
        /// The call.
        call: ServerCall,
    },
    /// Somebody waits for a relay map and none was given yet: [`ServerSession::send_relay_map`].
    DerpMapsWanted,
    /// The peer answered a ping.
    Alive,
    /// The session is over: close the socket. The last event.
    Dead(Death),
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Death {
    /// The peer broke the protocol.
    #[error(transparent)]
    Protocol(#[from] Fault),
    /// No answer to a ping for too long.
    #[error("liveness probe failed")]
    Silent,
    /// More than `MAX_PARTIAL` bytes of unfinished packets.
    #[error("too much unfinished data")]
    Hoard,
    /// The socket ended.
    #[error("the connection ended")]
    Ended,
}

#[derive(Debug)]
enum Kind {
    /// No invoke yet.
    New,
    Unary {
        path: String,
        asked: bool,
    },
    Coordinate,
    /// With the number of the map that was sent last.
    Maps {
        sent: u64,
    },
}

#[derive(Debug)]
struct Served {
    call: Call,
    kind: Kind,
}

/// The server's end of one control socket. Its `Debug` shows no payload.
pub struct ServerSession {
    yamux: Session,
    role: Role,
    calls: BTreeMap<StreamId, Served>,
    /// Streams whose bytes wait until events were taken.
    stalled: VecDeque<StreamId>,
    events: VecDeque<ServerEvent>,
    /// The newest encoded relay map and its number; 0 is none.
    relay_map: (u64, Vec<u8>),
    liveness: Liveness,
    /// The latest time that was handed in.
    now: Instant,
    dead: bool,
}

impl ServerSession {
    /// A session on a socket that was just accepted.
    #[must_use]
    pub fn new(role: Role, now: Instant) -> Self {
        Self {
            yamux: Session::server(),
            role,
            calls: BTreeMap::new(),
            stalled: VecDeque::new(),
            events: VecDeque::new(),
            relay_map: (0, Vec::new()),
            liveness: match role {
                Role::Agent => Liveness::agent(now),
                Role::Client => Liveness::keepalive(now),
            },
            now,
            dead: false,
        }
    }

    /// Feeds bytes of the socket; message boundaries mean nothing.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.now = now;
        if self.dead {
            return;
        }
        if let Err(fault) = self.yamux.handle_bytes(bytes) {
            self.die(Death::Protocol(fault));
            return;
        }
        if self.liveness.handle_answers(&mut self.yamux) {
            self.events.push_back(ServerEvent::Alive);
        }
        self.read();
    }

    /// The socket ended or failed.
    pub fn handle_closed(&mut self) {
        self.die(Death::Ended);
    }

    /// Sends pings and gives up a silent peer.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if self.dead {
            return;
        }
        self.yamux.handle_timeout(now);
        if !self.liveness.handle_timeout(now, &mut self.yamux) {
            self.die(Death::Silent);
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if self.dead {
            return None;
        }
        Deadline::earliest(Some(self.liveness.poll_timeout()), self.yamux.poll_timeout())
    }

    /// Appends what is to be sent. Call it again until it appends nothing.
    pub fn poll_output(&mut self, out: &mut Vec<u8>) {
        self.write_relay_maps();
        self.yamux.poll_output(out);
    }

    /// What the peer wants.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        let event = self.events.pop_front();
        if !self.stalled.is_empty() && self.events.len() < MAX_REQUESTS {
            self.read();
        }
        event
    }

    /// Answers a unary call. A call that is gone is passed over.
    pub fn reply(&mut self, call: ServerCall, result: Result<&[u8], &RpcError>) {
        self.write(call.0, |call, out| match result {
            Ok(body) => {
                call.write_message(body, out);
                call.write_close_send(out);
            }
            Err(error) => call.write_error(error, out),
        });
    }

    /// Whether a Coordinate call takes another response now.
    #[must_use]
    pub fn coordinate_has_room(&self, call: ServerCall) -> bool {
        self.is_coordinating(call) && self.yamux.queued(call.0) < RESPONSE_ROOM
    }

    /// Sends one response. Ask [`Self::coordinate_has_room`] first.
    pub fn send_coordinate(&mut self, call: ServerCall, response: &CoordinateResponse) {
        if self.is_coordinating(call) {
            self.write(call.0, |call, out| call.write_message(&response.encode_to_vec(), out));
        }
    }

    /// Ends a Coordinate call from this side. No [`ServerEvent::CoordinateClosed`] follows.
    pub fn close_coordinate(&mut self, call: ServerCall) {
        if self.is_coordinating(call) {
            self.write(call.0, Call::write_close);
        }
    }

    /// Gives every stream of relay maps a new map.
    pub fn send_relay_map(&mut self, map: &DerpMap) {
        self.relay_map = (self.relay_map.0 + 1, map.encode_to_vec());
    }

    fn is_coordinating(&self, call: ServerCall) -> bool {
        self.calls.get(&call.0).is_some_and(|s| matches!(s.kind, Kind::Coordinate) && !s.call.is_over())
    }

    fn write(&mut self, id: StreamId, write: impl FnOnce(&mut Call, &mut Vec<u8>)) {
        let Some(served) = self.calls.get_mut(&id) else { return };
        let mut out = Vec::new();
        write(&mut served.call, &mut out);
        if self.yamux.write(id, &out).is_err() {
            self.drop_call(id);
        }
    }

    fn write_relay_maps(&mut self) {
        let (number, body) = &self.relay_map;
        for (id, served) in &mut self.calls {
            let Kind::Maps { sent } = &mut served.kind else { continue };
            // A slow reader gets the newest map when it has read the last one.
            if *sent < *number && !served.call.is_over() && self.yamux.queued(*id) == 0 {
                let mut out = Vec::new();
                served.call.write_message(body, &mut out);
                *sent = *number;
                // A full session is dying; its calls end with it.
                let _ = self.yamux.write(*id, &out);
            }
        }
    }

    /// Reads all streams with news as long as their events find room.
    fn read(&mut self) {
        while let Some(id) = self.yamux.accept() {
            self.calls.insert(id, Served { call: Call::server(), kind: Kind::New });
        }
        while let Some(id) = self.yamux.poll_ready() {
            if !self.stalled.contains(&id) {
                self.stalled.push_back(id);
            }
        }
        while self.events.len() < MAX_REQUESTS {
            let Some(id) = self.stalled.pop_front() else { break };
            if !self.read_stream(id) {
                self.stalled.push_back(id);
            }
        }
        if self.calls.values().map(|s| s.call.buffered()).sum::<usize>() > MAX_PARTIAL {
            self.die(Death::Hoard);
        }
    }

    /// Reads one stream until it has nothing more (true) or the events are full (false).
    fn read_stream(&mut self, id: StreamId) -> bool {
        while self.events.len() < MAX_REQUESTS {
            let Some(served) = self.calls.get_mut(&id) else { return true };
            match served.call.read(self.yamux.readable(id)) {
                Ok((used, received)) => {
                    self.yamux.consume(id, used);
                    let Some(received) = received else {
                        if self.yamux.read_state(id) != ReadState::Open {
                            self.drop_call(id);
                        }
                        return true;
                    };
                    self.take(id, received);
                }
                Err(fault) => {
                    tracing::debug!(%fault, "call ended");
                    self.drop_call(id);
                    return true;
                }
            }
        }
        false
    }

    fn begin(&mut self, id: StreamId, path: String) {
        let kind = match path.as_str() {
            COORDINATE => {
                let coordinates = self.calls.values().filter(|s| matches!(s.kind, Kind::Coordinate)).count();
                if coordinates >= MAX_COORDINATES {
                    return self.write(id, |c, out| c.write_error(&RpcError::plain("too many calls"), out));
                }
                self.events.push_back(ServerEvent::CoordinateOpened { call: ServerCall(id) });
                Kind::Coordinate
            }
            STREAM_DERP_MAPS => {
                if self.relay_map.0 == 0 {
                    self.events.push_back(ServerEvent::DerpMapsWanted);
                }
                Kind::Maps { sent: 0 }
            }
            path if self.role == Role::Client && path.starts_with(agent::SERVICE) => {
                let error = RpcError::unimplemented(path);
                return self.write(id, |c, out| c.write_error(&error, out));
            }
            _ => Kind::Unary { path, asked: false },
        };
        if let Some(served) = self.calls.get_mut(&id) {
            served.kind = kind;
        }
    }

    fn take(&mut self, id: StreamId, received: Received) {
        let Some(served) = self.calls.get_mut(&id) else { return };
        match (received, &mut served.kind) {
            (Received::Invoke(path), _) => self.begin(id, path),
            (Received::Message(body), Kind::Unary { path, asked }) => {
                if !std::mem::replace(asked, true) {
                    let path = path.clone();
                    self.events.push_back(ServerEvent::Call { call: ServerCall(id), path, body });
                }
            }
            (Received::Message(body), Kind::Coordinate) => match CoordinateRequest::decode(body.as_slice()) {
                Ok(request) => {
                    let request = Box::new(request);
                    self.events.push_back(ServerEvent::Coordinate { call: ServerCall(id), request });
                }
                Err(error) => {
                    let error = RpcError::plain(format!("unreadable request: {error}"));
                    self.write(id, |c, out| c.write_error(&error, out));
                    self.events.push_back(ServerEvent::CoordinateClosed { call: ServerCall(id) });
                }
            },
            (Received::SendClosed, Kind::Coordinate) => {
                self.write(id, Call::write_close);
                self.events.push_back(ServerEvent::CoordinateClosed { call: ServerCall(id) });
            }
            (Received::End(_), Kind::Coordinate) => {
                self.events.push_back(ServerEvent::CoordinateClosed { call: ServerCall(id) });
            }
            (Received::Message(_), Kind::New | Kind::Maps { .. }) | (Received::SendClosed | Received::End(_), _) => {}
        }
    }

    /// Lets a stream go: the peer finished, or cannot be understood.
    fn drop_call(&mut self, id: StreamId) {
        let Some(served) = self.calls.remove(&id) else { return };
        if matches!(served.kind, Kind::Coordinate) && !served.call.is_over() {
            self.events.push_back(ServerEvent::CoordinateClosed { call: ServerCall(id) });
        }
        self.yamux.close(self.now, id);
    }

    fn die(&mut self, why: Death) {
        if self.dead {
            return;
        }
        self.dead = true;
        self.stalled.clear();
        for (id, served) in std::mem::take(&mut self.calls) {
            if matches!(served.kind, Kind::Coordinate) && !served.call.is_over() {
                self.events.push_back(ServerEvent::CoordinateClosed { call: ServerCall(id) });
            }
        }
        self.events.push_back(ServerEvent::Dead(why));
    }
}

impl fmt::Debug for ServerSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSession")
            .field("role", &self.role)
            .field("calls", &self.calls.len())
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}
