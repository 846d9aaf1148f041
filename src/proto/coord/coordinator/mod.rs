//! The coordinator: who is connected, which tunnels exist, and what each peer is still to be told (`coordination.md` §10, §11).
//!
//! A plain value without time or I/O. A connection is one Coordinate call; its peer id may move to a newer connection, which
//! overwrites the older one. Tunnels are directed, news flow both ways along them. Invariants:
//! - a peer is told LOST or DISCONNECTED of another only after it was sent its NODE, and never the same NODE twice in a row;
//! - at most [`MAX_QUEUE`] responses of [`MAX_WAITING`] bytes wait per connection; a peer that does not read them is removed;
//! - after [`Delivery::End`] a connection is forgotten and its id means nothing.

mod auth;
#[cfg(test)]
mod tests;

pub use auth::{Auth, AuthError};

use crate::wire::coord::tailnet::{CoordinateRequest, CoordinateResponse, Node, PEER_CLOSED, PeerUpdate, PeerUpdateKind};
use prost::Message as _;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};
use uuid::Uuid;

/// Responses that may wait for one connection, and their encoded bytes. What a new connection is told at once does not count.
const MAX_QUEUE: usize = 512;
const MAX_WAITING: usize = 4 * 1024 * 1024;
/// Updates in one response, and their encoded bytes: with one node more it is still a packet that peers read.
const MAX_BATCH: usize = 1024;
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// One Coordinate call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

/// What a connection is to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// Send this.
    Response(CoordinateResponse),
    /// End the call. The connection is forgotten.
    End,
}

#[derive(Debug)]
struct Conn {
    peer: Uuid,
    auth: Auth,
    /// Each with its weight in `waiting`.
    queue: VecDeque<(CoordinateResponse, usize)>,
    waiting: usize,
    /// The nodes that this connection was sent.
    sent: BTreeMap<Uuid, Arc<Node>>,
    /// Nothing more is taken or queued.
    ended: bool,
}

#[derive(Debug)]
struct Peer {
    conn: ConnId,
    node: Option<Arc<Node>>,
}

/// How a peer leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Lost,
    /// Its connection was closed at the other end.
    Closed,
    Graceful,
    /// It did not read what it was sent.
    Overflow,
}

/// Peers, tunnels and unsent news.
#[derive(Debug, Default)]
pub struct Coordinator {
    next: u64,
    conns: BTreeMap<ConnId, Conn>,
    peers: BTreeMap<Uuid, Peer>,
    /// Both directions of every tunnel: the peers that a peer opened one to, and those that opened one to it.
    outgoing: BTreeMap<Uuid, BTreeSet<Uuid>>,
    incoming: BTreeMap<Uuid, BTreeSet<Uuid>>,
    /// Connections with something new to send.
    ready: BTreeSet<ConnId>,
    /// Peers whose queue is full, removed before the present call returns.
    overflowed: BTreeSet<ConnId>,
    closed: bool,
}

impl Coordinator {
    /// A coordinator without peers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A Coordinate call of peer `id` begins. An older one of the same id ends.
    pub fn connect(&mut self, id: Uuid, auth: Auth) -> ConnId {
        let conn = ConnId(self.next);
        self.next += 1;
        let (queue, sent) = (VecDeque::new(), BTreeMap::new());
        self.conns.insert(conn, Conn { peer: id, auth, queue, waiting: 0, sent, ended: false });
        if self.closed {
            self.end(conn, Some("coordinator closed"));
            return conn;
        }
        if let Some(old) = self.peers.insert(id, Peer { conn, node: None }) {
            self.end(old.conn, Some("peer ID overwritten by new connection"));
        }
        let known = |other: &Uuid| self.peers.get(other).and_then(|p| p.node.clone()).map(|node| (*other, node));
        let nodes: Vec<_> = self.partners(id).iter().filter_map(known).collect();
        let (mut batch, mut bytes) = (CoordinateResponse::default(), 0);
        for (other, node) in nodes {
            let Some(update) = self.node_update(conn, other, &node, "init") else { continue };
            bytes += update.encoded_len();
            batch.peer_updates.push(update);
            if batch.peer_updates.len() >= MAX_BATCH || bytes >= MAX_BATCH_BYTES {
                self.push(conn, std::mem::take(&mut batch), 0);
                bytes = 0;
            }
        }
        if !batch.peer_updates.is_empty() {
            self.push(conn, batch, 0);
        }
        conn
    }

    /// Applies one request: checked whole, then update_self, add_tunnel, remove_tunnel, disconnect, ready_for_handshake.
    ///
    /// # Errors
    /// When the peer may not ask this. The text is queued for it and the connection ends.
    pub fn handle_request(&mut self, conn: ConnId, request: &CoordinateRequest) -> Result<(), AuthError> {
        let Some((id, auth)) = self.conns.get(&conn).filter(|c| !c.ended).map(|c| (c.peer, c.auth)) else { return Ok(()) };
        let applied = auth.check(id, request).and_then(|()| self.apply(conn, id, request));
        if let Err(error) = &applied {
            self.end(conn, Some(&error.to_string()));
            self.leave(conn, Leave::Lost);
        }
        self.remove_overflowed();
        applied
    }

    /// The call or its socket ended by itself: its other end fell silent, or we let it go. After a disconnect this changes
    /// nothing.
    pub fn lost(&mut self, conn: ConnId) {
        self.ended(conn, Leave::Lost);
    }

    /// The same, and it was the other end that closed it: a process that ended without a word, or whose connection something
    /// on the way cut. Its partners ask it for a sign of life.
    pub fn closed(&mut self, conn: ConnId) {
        self.ended(conn, Leave::Closed);
    }

    fn ended(&mut self, conn: ConnId, how: Leave) {
        self.leave(conn, how);
        self.remove_overflowed();
        self.conns.remove(&conn);
        self.ready.remove(&conn);
    }

    /// The server shuts down: everybody is told and every call ends, also those that still come.
    pub fn close(&mut self) {
        self.closed = true;
        let (ids, conns): (Vec<_>, Vec<_>) = self.peers.iter().map(|(id, p)| (*id, p.conn)).unzip();
        // All are told before any is taken out, else those who go first would not hear of the others.
        for id in ids {
            for partner in self.partners(id) {
                self.tell_gone(partner, id, PeerUpdateKind::Lost, "lost");
            }
        }
        for conn in conns {
            self.leave(conn, Leave::Lost);
            self.end(conn, Some("coordinator closed"));
        }
        self.overflowed.clear();
    }

    /// The next connection with something to send since it was last named here.
    pub fn poll_ready(&mut self) -> Option<ConnId> {
        self.ready.pop_first()
    }

    /// What a connection is to do next; `None` when there is nothing, or the connection is not known.
    pub fn poll(&mut self, conn: ConnId) -> Option<Delivery> {
        let entry = self.conns.get_mut(&conn)?;
        if let Some((response, weight)) = entry.queue.pop_front() {
            entry.waiting -= weight;
            return Some(Delivery::Response(response));
        }
        if entry.ended {
            self.conns.remove(&conn);
            self.ready.remove(&conn);
            return Some(Delivery::End);
        }
        None
    }

    fn apply(&mut self, conn: ConnId, id: Uuid, request: &CoordinateRequest) -> Result<(), AuthError> {
        if let Some(node) = request.update_self.as_ref().and_then(|u| u.node.clone()) {
            let node = Arc::new(node);
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.node = Some(Arc::clone(&node));
            }
            for partner in self.partners(id) {
                self.tell_node(partner, id, &node, "node update");
            }
        }
        if let Some(tunnel) = &request.add_tunnel {
            let to = auth::parse_id(&tunnel.id, "add tunnel")?;
            self.outgoing.entry(id).or_default().insert(to);
            self.incoming.entry(to).or_default().insert(id);
            for (told, about) in [(id, to), (to, id)] {
                if let Some(node) = self.peers.get(&about).and_then(|p| p.node.clone()) {
                    self.tell_node(told, about, &node, "add tunnel");
                }
            }
        }
        if let Some(tunnel) = &request.remove_tunnel {
            let to = auth::parse_id(&tunnel.id, "remove tunnel")?;
            if self.outgoing.get(&id).is_some_and(|set| set.contains(&to)) {
                for (told, about) in [(id, to), (to, id)] {
                    self.tell_gone(told, about, PeerUpdateKind::Disconnected, "remove tunnel");
                }
                self.drop_tunnel(id, to);
            }
        }
        if request.disconnect.is_some() {
            self.leave(conn, Leave::Graceful);
            self.end(conn, None);
        }
        let partners = if request.ready_for_handshake.is_empty() { BTreeSet::new() } else { self.partners(id) };
        for ready in &request.ready_for_handshake {
            let to = auth::parse_id(&ready.id, "ready for handshake")?;
            if partners.contains(&to) {
                let kind = PeerUpdateKind::ReadyForHandshake.into();
                let update = PeerUpdate { id: id.as_bytes().to_vec(), kind, ..Default::default() };
                self.tell(to, update);
            } else {
                let error = format!("ready for handshake error: you do not share a tunnel with \"{to}\"");
                self.queue(conn, CoordinateResponse { error, ..Default::default() });
            }
        }
        Ok(())
    }

    /// The peers at the other ends of all tunnels from or to `id`.
    fn partners(&self, id: Uuid) -> BTreeSet<Uuid> {
        let ends = [self.outgoing.get(&id), self.incoming.get(&id)];
        ends.into_iter().flatten().flatten().copied().collect()
    }

    fn drop_tunnel(&mut self, from: Uuid, to: Uuid) {
        for (map, key, value) in [(&mut self.outgoing, from, to), (&mut self.incoming, to, from)] {
            if let Some(set) = map.get_mut(&key) {
                set.remove(&value);
                if set.is_empty() {
                    map.remove(&key);
                }
            }
        }
    }

    /// Takes a peer out, if `conn` is still its connection, and tells its partners.
    fn leave(&mut self, conn: ConnId, how: Leave) {
        let Some(id) = self.conns.get(&conn).map(|c| c.peer) else { return };
        if self.peers.get(&id).is_none_or(|p| p.conn != conn) {
            return;
        }
        self.peers.remove(&id);
        let (kind, reason) = match how {
            Leave::Lost => (PeerUpdateKind::Lost, "lost"),
            Leave::Closed => (PeerUpdateKind::Lost, PEER_CLOSED),
            Leave::Graceful => (PeerUpdateKind::Disconnected, "graceful disconnect"),
            Leave::Overflow => (PeerUpdateKind::Disconnected, "does not read its updates"),
        };
        for partner in self.partners(id) {
            self.tell_gone(partner, id, kind, reason);
        }
        // Tunnels to the peer stay: it may come back, and the sources still want it.
        for to in self.outgoing.get(&id).cloned().unwrap_or_default() {
            self.drop_tunnel(id, to);
        }
    }

    fn tell_node(&mut self, to: Uuid, about: Uuid, node: &Arc<Node>, reason: &str) {
        let Some(conn) = self.peers.get(&to).map(|p| p.conn) else { return };
        if let Some(update) = self.node_update(conn, about, node, reason) {
            self.tell(to, update);
        }
    }

    /// A NODE update, unless the connection has this very node.
    fn node_update(&mut self, conn: ConnId, about: Uuid, node: &Arc<Node>, reason: &str) -> Option<PeerUpdate> {
        let conn = self.conns.get_mut(&conn)?;
        if conn.sent.get(&about).is_some_and(|sent| sent == node) {
            return None;
        }
        conn.sent.insert(about, Arc::clone(node));
        Some(PeerUpdate {
            id: about.as_bytes().to_vec(),
            node: Some(Node::clone(node)),
            kind: PeerUpdateKind::Node.into(),
            reason: reason.into(),
        })
    }

    /// Tells a peer that another is gone, if it was ever told of it.
    fn tell_gone(&mut self, to: Uuid, about: Uuid, kind: PeerUpdateKind, reason: &str) {
        let Some(conn) = self.peers.get(&to).map(|p| p.conn) else { return };
        let Some(conn) = self.conns.get_mut(&conn) else { return };
        if conn.sent.remove(&about).is_some() {
            let id = about.as_bytes().to_vec();
            self.tell(to, PeerUpdate { id, kind: kind.into(), reason: reason.into(), ..Default::default() });
        }
    }

    fn tell(&mut self, to: Uuid, update: PeerUpdate) {
        if let Some(conn) = self.peers.get(&to).map(|p| p.conn) {
            self.queue(conn, CoordinateResponse { peer_updates: vec![update], ..Default::default() });
        }
    }

    fn queue(&mut self, id: ConnId, response: CoordinateResponse) {
        let Some(conn) = self.conns.get(&id).filter(|c| !c.ended) else { return };
        if conn.queue.len() >= MAX_QUEUE || conn.waiting >= MAX_WAITING {
            self.overflowed.insert(id);
        } else {
            let weight = response.encoded_len();
            self.push(id, response, weight);
        }
    }

    fn push(&mut self, id: ConnId, response: CoordinateResponse, weight: usize) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.waiting += weight;
        conn.queue.push_back((response, weight));
        self.ready.insert(id);
    }

    /// Ends a connection after what is queued, with a last error.
    fn end(&mut self, id: ConnId, error: Option<&str>) {
        let Some(conn) = self.conns.get_mut(&id).filter(|c| !c.ended) else { return };
        conn.ended = true;
        self.ready.insert(id);
        if let Some(error) = error {
            self.push(id, CoordinateResponse { error: error.into(), ..Default::default() }, 0);
        }
    }

    /// Removes the peers that do not read; telling their partners may fill further queues.
    fn remove_overflowed(&mut self) {
        while let Some(conn) = self.overflowed.pop_first() {
            self.leave(conn, Leave::Overflow);
            if let Some(entry) = self.conns.get_mut(&conn).filter(|c| !c.ended) {
                entry.queue.clear();
                entry.waiting = 0;
                entry.ended = true;
                self.ready.insert(conn);
            }
        }
    }
}
