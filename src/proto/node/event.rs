//! What a node tells its owner.

use super::peers::Gone;
use crate::{
    base::{FlowId, Lane, NodeKey, RegionId},
    proto::{netcheck, netstack, path::PathState},
    wire::coord::tailnet,
};
use std::{
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};
use uuid::Uuid;

/// One call of [`super::Node::dial`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

/// One call of [`super::Node::ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PingId(pub u64);

/// What a ping passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PingKind {
    /// The path engine: tells which way is used. Needs no session.
    Disco,
    /// The tunnel, answered in front of the peer's stack.
    Tsmp,
    /// The tunnel and the peer's stack.
    Icmp,
}

/// Why a dial failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFailure {
    /// The peer did not appear at the coordinator in time.
    UnknownPeer,
    /// The peer is known but no tunnel to it came up in time.
    NoSession,
    /// The tunnel stands, the port did not answer in time.
    NoAnswer,
    /// The peer refused the connection.
    Refused,
    /// The peer went away or became another process meanwhile.
    PeerGone,
    /// As many dials wait as a node holds.
    TooMany,
}

/// How a peer is reached now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathInfo {
    /// State of the path.
    pub state: PathState,
    /// Where new packets go first.
    pub lane: Option<Lane>,
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its node key.
    pub key: NodeKey,
    /// Its home relay.
    pub home: RegionId,
    /// Where it says that it may be reached.
    pub endpoints: Vec<SocketAddr>,
    /// How long ago the last handshake was.
    pub handshake_age: Option<Duration>,
}

/// News for the owner of a [`super::Node`].
#[derive(Debug)]
pub enum Event {
    /// The dialled connection stands.
    Dialed {
        /// The call.
        dial: DialId,
        /// Its flow.
        flow: FlowId,
    },
    /// The dial ended without a connection.
    DialFailed {
        /// The call.
        dial: DialId,
        /// What was missing.
        why: DialFailure,
    },
    /// News of a flow, a listener or a UDP port.
    Netstack(netstack::Event),
    /// An answer to a ping.
    Pong {
        /// The call.
        ping: PingId,
        /// Round-trip time.
        latency: Duration,
        /// The way it took, for disco pings.
        lane: Option<Lane>,
    },
    /// No answer came in time.
    PingExpired {
        /// The call.
        ping: PingId,
        /// Whether the peer was known at all.
        known: bool,
    },
    /// Packets to a peer go another way now.
    PathChanged {
        /// The peer's id at the coordinator.
        id: Uuid,
        /// Its first overlay address.
        address: Option<Ipv6Addr>,
        /// The state before.
        from: PathState,
        /// The way now.
        to: PathInfo,
    },
    /// A peer is programmed: it can be dialled from now on.
    PeerUp {
        /// Its id.
        id: Uuid,
    },
    /// A peer was taken out with all its flows.
    PeerGone {
        /// Its id.
        id: Uuid,
        /// Why.
        why: Gone,
    },
    /// The coordinator no longer sees a peer; its tunnel goes on.
    PeerLost {
        /// Its id.
        id: Uuid,
    },
    /// Send this to the coordinator as our own node. The owner fills in `as_of`. Replaces any earlier one.
    Announce(Box<tailnet::Node>),
    /// Tell the coordinator that these peers may start a handshake.
    Ready(Vec<Uuid>),
    /// Open a connection to a relay region.
    OpenRelay {
        /// The region.
        region: RegionId,
        /// Whether it is our home.
        preferred: bool,
    },
    /// Close the connection to a region.
    CloseRelay {
        /// The region.
        region: RegionId,
    },
    /// Tell a connected region whether it is our home.
    NotePreferred {
        /// The region.
        region: RegionId,
        /// Whether it is our home.
        preferred: bool,
    },
    /// Ask a connected region for a sign of life within [`PING_LIMIT`](crate::proto::relay::client::PING_LIMIT); report it
    /// down without one.
    PingRelay {
        /// The region.
        region: RegionId,
    },
    /// Look a STUN host up and answer by [`super::Node::handle_resolved`].
    Resolve {
        /// Its name.
        host: String,
    },
    /// Time a request to a region and answer by [`super::Node::handle_relay_latency`].
    MeasureRelay {
        /// The region.
        region: RegionId,
    },
    /// A netcheck has ended.
    Report(Box<netcheck::Report>),
}
