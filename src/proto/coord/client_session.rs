//! The client's end of the control plane: CLI and agent (`coordination.md` §9, §12, §16).
//!
//! One value outlives its sockets: the announced node, the tunnels and the resume token are kept, and
//! [`ClientSession::restart`] begins anew on the next socket and tells the coordinator all of it again. The order on a socket
//! is Coordinate, StreamDERPMaps, RefreshResumeToken, each on a stream of its own. When Coordinate or StreamDERPMaps ends,
//! or the server stops answering, [`ClientEvent::Closed`] says so: close the socket, wait [`super::Backoff`], dial again.

use super::{
    drpc::{Call, End, Received},
    liveness::Liveness,
    yamux::{Fault, ReadState, Session, StreamId},
};
use crate::{
    base::{Deadline, Instant, WallTime},
    wire::coord::{
        drpc::RpcError,
        tailnet::{
            COORDINATE, CoordinateRequest, CoordinateResponse, DerpMap, Disconnect, Node, PeerUpdate, REFRESH_RESUME_TOKEN,
            ReadyForHandshake, RefreshResumeTokenResponse, STREAM_DERP_MAPS, Tunnel, UpdateSelf,
        },
    },
};
use prost::Message as _;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};
use uuid::Uuid;

/// How long a unary call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a disconnect waits for the server to end the stream.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// When a token is asked for again where the server gives no time, or failed.
const REFRESH_DEFAULT: Duration = Duration::from_secs(30 * 60);
/// The soonest that a server may have a token asked for again.
const REFRESH_LEAST: Duration = Duration::from_secs(1);
/// Events that may wait before reading pauses.
const MAX_EVENTS: usize = 1024;
/// With this much unsent on the Coordinate stream a newer node replaces the one that waits.
const NODE_ROOM: usize = 64 * 1024;

/// Who we are to the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A client: opens tunnels, keeps a resume token, coordinates from the start.
    Client,
    /// An agent: announces when it is ready for a peer, coordinates when told to.
    Agent,
}

/// A unary call of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u64);

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server answered with an error.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// No answer in 30 s.
    #[error("no answer in time")]
    Timeout,
    /// The socket is gone, or takes no further call.
    #[error("the control connection is closed")]
    Closed,
}

impl CallError {
    /// Whether the server does not know the call.
    #[must_use]
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Rpc(error) if error.is_unimplemented())
    }
}

/// Why a socket is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// We disconnected. Do not dial again.
    #[error("disconnected")]
    Disconnected,
    /// Coordinate ended; with what the server said last.
    #[error("coordination ended: {0}")]
    Coordinate(String),
    /// The stream of relay maps ended.
    #[error("the stream of relay maps ended: {0}")]
    RelayMaps(String),
    /// The server broke the protocol.
    #[error(transparent)]
    Protocol(#[from] Fault),
    /// A ping stayed without answer.
    #[error("the server does not answer")]
    Silent,
    /// The server takes no further calls.
    #[error("the server is going away")]
    GoingAway,
    /// The socket ended or failed.
    #[error("the connection ended")]
    Ended,
}

/// News for the owner.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientEvent {
    /// News of a peer, as it came.
    PeerUpdate(Box<PeerUpdate>),
    /// A relay map, not yet rewritten to our access URL.
    RelayMap(Box<DerpMap>),
    /// The answer to a call.
    Reply {
        /// The call.
        call: CallId,
        /// The encoded response.
        result: Result<Vec<u8>, CallError>,
    },
    /// A text of the coordinator, for the log. What counts is whether the stream ends.
    CoordinatorError(String),
    /// The socket is to be closed, once what [`ClientSession::poll_output`] still gives was sent. All peers are lost but go on
    /// working. Nothing follows until a restart.
    Closed(CloseReason),
}

#[derive(Debug)]
enum What {
    Unary(CallId),
    Token,
    Coordinate,
    RelayMaps,
}

#[derive(Debug)]
struct Pending {
    call: Call,
    what: What,
    /// For unary calls.
    until: Option<Instant>,
}

struct Token {
    text: String,
    expires_at: WallTime,
}

/// The client's end of the control plane. Its `Debug` shows neither token nor payload.
pub struct ClientSession {
    role: Role,
    yamux: Session,
    calls: BTreeMap<StreamId, Pending>,
    stalled: VecDeque<StreamId>,
    events: VecDeque<ClientEvent>,
    liveness: Liveness,
    now: Instant,
    closed: bool,
    next_call: u64,
    /// Whether sockets coordinate.
    coordinating: bool,
    coordinate: Option<StreamId>,
    last_error: String,
    node: Option<Node>,
    /// The present node has not been sent on this socket.
    node_due: bool,
    /// Wanted tunnels, and whether this socket's coordinator was told.
    tunnels: BTreeMap<Uuid, bool>,
    removed: BTreeSet<Uuid>,
    token: Option<Token>,
    next_refresh: Option<Instant>,
    disconnect_by: Option<Instant>,
}

impl ClientSession {
    /// A session on a fresh socket. A client's coordination begins at once.
    #[must_use]
    pub fn new(role: Role, now: Instant) -> Self {
        let mut session = Self {
            role,
            yamux: Session::client(),
            calls: BTreeMap::new(),
            stalled: VecDeque::new(),
            events: VecDeque::new(),
            liveness: Liveness::keepalive(now),
            now,
            closed: false,
            next_call: 0,
            coordinating: role == Role::Client,
            coordinate: None,
            last_error: String::new(),
            node: None,
            node_due: false,
            tunnels: BTreeMap::new(),
            removed: BTreeSet::new(),
            token: None,
            next_refresh: None,
            disconnect_by: None,
        };
        session.begin();
        session
    }

    /// Begins anew on a fresh socket: node and tunnels are told again, calls of the old socket fail. A
    /// [`ClientEvent::Closed`] that was not taken yet is dropped, so that every later one is about this socket.
    pub fn restart(&mut self, now: Instant) {
        self.now = now;
        self.close(CloseReason::Ended);
        self.events.retain(|event| !matches!(event, ClientEvent::Closed(_)));
        self.yamux = Session::client();
        self.liveness = Liveness::keepalive(now);
        self.closed = false;
        self.coordinate = None;
        self.last_error.clear();
        self.node_due = self.node.is_some();
        self.tunnels.values_mut().for_each(|told| *told = false);
        self.removed.clear();
        self.next_refresh = None;
        self.disconnect_by = None;
        self.begin();
    }

    fn begin(&mut self) {
        if self.coordinating {
            self.open_coordination();
        }
        if self.role == Role::Client {
            self.refresh_token();
        }
    }

    /// Opens Coordinate and StreamDERPMaps on this and every later socket: at once for clients, after the first manifest
    /// for agents. A second call does nothing.
    pub fn open_coordination(&mut self) {
        self.coordinating = true;
        if self.closed || self.coordinate.is_some() {
            return;
        }
        self.coordinate = self.open(COORDINATE, None, What::Coordinate);
        self.write_coordinate();
        self.open(STREAM_DERP_MAPS, Some(&[]), What::RelayMaps);
    }

    /// Feeds bytes of the socket; message boundaries mean nothing.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.now = now;
        if self.closed {
            return;
        }
        if let Err(fault) = self.yamux.handle_bytes(bytes) {
            return self.close(CloseReason::Protocol(fault));
        }
        self.liveness.handle_answers(&mut self.yamux);
        self.read();
        if self.yamux.is_going_away() {
            self.close(CloseReason::GoingAway);
        }
    }

    /// The socket ended or failed.
    pub fn handle_closed(&mut self) {
        self.close(CloseReason::Ended);
    }

    /// Appends what is to be sent. Call it again until it appends nothing.
    pub fn poll_output(&mut self, out: &mut Vec<u8>) {
        self.write_coordinate();
        self.yamux.poll_output(out);
    }

    /// News for the owner.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        let event = self.events.pop_front();
        if !self.stalled.is_empty() && self.events.len() < MAX_EVENTS {
            self.read();
        }
        event
    }

    /// Starts a unary call; calls run side by side. The answer is a [`ClientEvent::Reply`].
    pub fn call(&mut self, now: Instant, path: &str, body: &[u8]) -> CallId {
        self.now = now;
        let call = CallId(self.next_call);
        self.next_call += 1;
        if self.closed || self.open(path, Some(body), What::Unary(call)).is_none() {
            self.events.push_back(ClientEvent::Reply { call, result: Err(CallError::Closed) });
        }
        call
    }

    /// Announces a node now and on every later socket. Nodes without a home relay must not be given. The newest one wins.
    pub fn set_self(&mut self, node: Option<Node>) {
        self.node_due = node.is_some();
        self.node = node;
        self.write_coordinate();
    }

    /// Asks for a tunnel to an agent now and on every later socket.
    pub fn add_tunnel(&mut self, agent: Uuid) {
        self.removed.remove(&agent);
        self.tunnels.entry(agent).or_insert(false);
        self.write_coordinate();
    }

    /// Gives a tunnel up.
    pub fn remove_tunnel(&mut self, agent: Uuid) {
        if self.tunnels.remove(&agent) == Some(true) {
            self.removed.insert(agent);
        }
        self.write_coordinate();
    }

    /// Tells these peers that they are programmed. Only agents may; a client's call is passed over.
    pub fn ready(&mut self, peers: Vec<Uuid>) {
        if self.role == Role::Agent && !peers.is_empty() {
            let entry = |id: Uuid| ReadyForHandshake { id: id.as_bytes().to_vec() };
            let ready_for_handshake = peers.into_iter().map(entry).collect();
            self.request(&CoordinateRequest { ready_for_handshake, ..Default::default() });
        }
    }

    /// Says good-bye. [`ClientEvent::Closed`] follows when the server ended the stream, after 1 s at the latest.
    pub fn disconnect(&mut self, now: Instant) {
        self.now = now;
        if self.closed || self.disconnect_by.is_some() {
            return;
        }
        if self.coordinate.is_none() {
            return self.close(CloseReason::Disconnected);
        }
        self.disconnect_by = Some(now + DISCONNECT_TIMEOUT);
        self.request(&CoordinateRequest { disconnect: Some(Disconnect {}), ..Default::default() });
    }

    /// The resume token for the next dial, while it is valid.
    #[must_use]
    pub fn resume_token(&self, wall: WallTime) -> Option<&str> {
        self.token.as_ref().filter(|t| t.expires_at > wall).map(|t| t.text.as_str())
    }

    /// Forgets the token: the server refused it.
    pub fn forget_resume_token(&mut self) {
        self.token = None;
    }

    /// Pings, refreshes the token and ends what takes too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if self.closed {
            return;
        }
        self.yamux.handle_timeout(now);
        if self.disconnect_by.is_some_and(|by| now >= by) {
            return self.close(CloseReason::Disconnected);
        }
        if !self.liveness.handle_timeout(now, &mut self.yamux) {
            return self.close(CloseReason::Silent);
        }
        let late = |p: &Pending| p.until.is_some_and(|until| now >= until);
        let late: Vec<StreamId> = self.calls.iter().filter(|(_, p)| late(p)).map(|(id, _)| *id).collect();
        for id in late {
            self.finish(id, Err(CallError::Timeout));
        }
        if self.next_refresh.is_some_and(|at| now >= at) {
            self.refresh_token();
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if self.closed {
            return None;
        }
        let calls = self.calls.values().filter_map(|p| p.until).map(|at| Deadline { at, why: "call timeout" });
        let refresh = self.next_refresh.map(|at| Deadline { at, why: "resume token" });
        let disconnect = self.disconnect_by.map(|at| Deadline { at, why: "disconnect" });
        calls.chain(refresh).chain(disconnect).chain(self.yamux.poll_timeout()).chain([self.liveness.poll_timeout()]).min()
    }

    /// Opens a stream and a call on it, with its only request when there is one.
    fn open(&mut self, path: &str, body: Option<&[u8]>, what: What) -> Option<StreamId> {
        let id = self.yamux.open().ok()?;
        let mut out = Vec::new();
        let mut call = Call::client(path, &mut out);
        if let Some(body) = body {
            call.write_message(body, &mut out);
            call.write_close_send(&mut out);
        }
        if self.yamux.write(id, &out).is_err() {
            self.yamux.reset(id);
            return None;
        }
        let until = matches!(what, What::Unary(_) | What::Token).then(|| self.now + CALL_TIMEOUT);
        self.calls.insert(id, Pending { call, what, until });
        Some(id)
    }

    fn refresh_token(&mut self) {
        let asked = self.open(REFRESH_RESUME_TOKEN, Some(&[]), What::Token).is_some();
        // When it was asked, the answer or its failure sets the next time.
        self.next_refresh = (!asked).then(|| self.now + REFRESH_DEFAULT);
    }

    /// Sends one request on the Coordinate stream, if it is open.
    fn request(&mut self, request: &CoordinateRequest) -> bool {
        let Some(id) = self.coordinate.filter(|_| !self.closed) else { return false };
        let Some(pending) = self.calls.get_mut(&id) else { return false };
        let mut out = Vec::new();
        pending.call.write_message(&request.encode_to_vec(), &mut out);
        self.yamux.write(id, &out).is_ok()
    }

    /// Tells the coordinator what it does not know yet: tunnels first, then the node.
    fn write_coordinate(&mut self) {
        let Some(id) = self.coordinate.filter(|_| !self.closed && self.disconnect_by.is_none()) else { return };
        let tunnel = |id: &Uuid| Some(Tunnel { id: id.as_bytes().to_vec() });
        while let Some(agent) = self.removed.pop_first() {
            self.request(&CoordinateRequest { remove_tunnel: tunnel(&agent), ..Default::default() });
        }
        let untold: Vec<Uuid> = self.tunnels.iter().filter(|(_, told)| !**told).map(|(agent, _)| *agent).collect();
        for agent in untold {
            let told = self.request(&CoordinateRequest { add_tunnel: tunnel(&agent), ..Default::default() });
            self.tunnels.insert(agent, told);
        }
        if self.node_due && self.yamux.queued(id) < NODE_ROOM {
            let update_self = Some(UpdateSelf { node: self.node.clone() });
            self.node_due = !self.request(&CoordinateRequest { update_self, ..Default::default() });
        }
    }

    fn read(&mut self) {
        while let Some(id) = self.yamux.accept() {
            // No Coder server opens streams.
            self.yamux.reset(id);
        }
        while let Some(id) = self.yamux.poll_ready() {
            if !self.stalled.contains(&id) {
                self.stalled.push_back(id);
            }
        }
        while self.events.len() < MAX_EVENTS {
            let Some(id) = self.stalled.pop_front() else { break };
            if !self.read_stream(id) {
                self.stalled.push_back(id);
            }
        }
    }

    /// Reads one stream until it has nothing more (true) or the events are full (false).
    fn read_stream(&mut self, id: StreamId) -> bool {
        while self.events.len() < MAX_EVENTS {
            let Some(pending) = self.calls.get_mut(&id) else { return true };
            let received = match pending.call.read(self.yamux.readable(id)) {
                Ok((used, received)) => {
                    self.yamux.consume(id, used);
                    received
                }
                Err(fault) => Some(Received::End(End::Failed(RpcError::plain(fault.to_string())))),
            };
            match received {
                Some(received) => self.take(id, received),
                None if self.yamux.read_state(id) == ReadState::Open => return true,
                None => self.take(id, Received::End(End::Cancelled)),
            }
        }
        false
    }

    fn take(&mut self, id: StreamId, received: Received) {
        let Some(pending) = self.calls.get(&id) else { return };
        match (received, &pending.what) {
            (Received::Message(body), What::Unary(_) | What::Token) => self.finish(id, Ok(body)),
            (Received::Message(body), What::Coordinate) => self.take_response(&body),
            (Received::Message(body), What::RelayMaps) => match DerpMap::decode(body.as_slice()) {
                Ok(map) => self.events.push_back(ClientEvent::RelayMap(Box::new(map))),
                Err(error) => tracing::warn!(%error, "unreadable relay map"),
            },
            (Received::Invoke(_) | Received::SendClosed, _) => {}
            (Received::End(end), _) => {
                let error = match end {
                    End::Failed(error) => error,
                    End::Done => RpcError::plain("the server closed the call"),
                    End::Cancelled => RpcError::plain("the server dropped the call"),
                };
                self.finish(id, Err(CallError::Rpc(error)));
            }
        }
    }

    fn take_response(&mut self, body: &[u8]) {
        match CoordinateResponse::decode(body) {
            Ok(response) => {
                if !response.error.is_empty() {
                    self.last_error.clone_from(&response.error);
                    self.events.push_back(ClientEvent::CoordinatorError(response.error));
                }
                let updates = response.peer_updates.into_iter();
                self.events.extend(updates.map(|update| ClientEvent::PeerUpdate(Box::new(update))));
            }
            Err(error) => tracing::warn!(%error, "unreadable response of the coordinator"),
        }
    }

    /// Ends a call of ours; for the streaming ones that is the end of the socket.
    fn finish(&mut self, id: StreamId, result: Result<Vec<u8>, CallError>) {
        let Some(mut pending) = self.calls.remove(&id) else { return };
        let mut out = Vec::new();
        if !pending.call.is_over() && result.is_ok() {
            pending.call.write_close(&mut out);
            // A stream that takes no more bytes is closed next anyway.
            let _ = self.yamux.write(id, &out);
        }
        self.yamux.close(self.now, id);
        let why = |result: Result<_, CallError>| result.err().map(|e| e.to_string()).unwrap_or_default();
        match pending.what {
            What::Unary(call) => self.events.push_back(ClientEvent::Reply { call, result }),
            What::Token => self.take_token(result),
            What::Coordinate if self.disconnect_by.is_some() => self.close(CloseReason::Disconnected),
            What::Coordinate => {
                let last = std::mem::take(&mut self.last_error);
                self.close(CloseReason::Coordinate(if last.is_empty() { why(result) } else { last }));
            }
            What::RelayMaps => self.close(CloseReason::RelayMaps(why(result))),
        }
    }

    fn take_token(&mut self, result: Result<Vec<u8>, CallError>) {
        let mut after = REFRESH_DEFAULT;
        match result.map(|body| RefreshResumeTokenResponse::decode(body.as_slice())) {
            Ok(Ok(response)) => {
                let given = response.refresh_in.and_then(|d| Duration::try_from(d).ok());
                after = given.filter(|d| !d.is_zero()).unwrap_or(REFRESH_DEFAULT).max(REFRESH_LEAST);
                let at = response.expires_at.unwrap_or_default();
                let expires_at = WallTime::from_unix(Duration::from_secs(u64::try_from(at.seconds).unwrap_or(0)));
                self.token = Some(Token { text: response.token, expires_at });
            }
            Ok(Err(error)) => tracing::debug!(%error, "unreadable resume token"),
            Err(error) if error.is_unimplemented() => return,
            Err(error) => tracing::debug!(%error, "no resume token"),
        }
        self.next_refresh = Some(self.now + after);
    }

    fn close(&mut self, why: CloseReason) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.stalled.clear();
        for (id, pending) in std::mem::take(&mut self.calls) {
            if let What::Unary(call) = pending.what {
                self.events.push_back(ClientEvent::Reply { call, result: Err(CallError::Closed) });
            }
            self.yamux.close(self.now, id);
        }
        let why = if self.disconnect_by.is_some() { CloseReason::Disconnected } else { why };
        self.events.push_back(ClientEvent::Closed(why));
    }
}

impl fmt::Debug for ClientSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSession")
            .field("role", &self.role)
            .field("calls", &self.calls.len())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
