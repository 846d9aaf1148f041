//! Where a datagram came from, where it goes, and the small handles that engines share.

use super::{NodeKey, RegionId};
use std::net::SocketAddr;

/// A peer's slot in one node. 24 bits wide: it is also the upper part of a WireGuard receiver index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIx(pub u32);

/// One of the node's UDP sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketIx(pub u8);

impl SocketIx {
    /// The IPv4 socket.
    pub const V4: Self = Self(0);
    /// The IPv6 socket.
    pub const V6: Self = Self(1);

    /// The socket that can reach `to`.
    #[must_use]
    pub const fn for_address(to: &SocketAddr) -> Self {
        match to {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }
}

/// One TCP connection of the embedded stack. The generation tells a reused slot from its predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    /// Place in the flow table.
    pub slot: u32,
    /// How often the place has been used before.
    pub generation: u32,
}

/// How a datagram arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// On a UDP socket.
    Udp {
        /// The receiving socket.
        socket: SocketIx,
        /// Its sender.
        from: SocketAddr,
    },
    /// Through a relay.
    Relay {
        /// The region whose connection delivered it.
        region: RegionId,
        /// The sender's node key, as the relay states it.
        from: NodeKey,
    },
}

/// How a datagram leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// On a UDP socket.
    Udp {
        /// The sending socket.
        socket: SocketIx,
        /// Its receiver.
        to: SocketAddr,
    },
    /// Through a relay.
    Relay {
        /// The region whose connection carries it.
        region: RegionId,
        /// The receiver.
        to: NodeKey,
    },
}

impl Lane {
    /// The direct lane to `to`, on the socket of its family.
    #[must_use]
    pub const fn udp(to: SocketAddr) -> Self {
        Self::Udp { socket: SocketIx::for_address(&to), to }
    }

    /// Whether the lane leads through a relay.
    #[must_use]
    pub const fn is_relay(&self) -> bool {
        matches!(self, Self::Relay { .. })
    }
}

impl Via {
    /// Whether the datagram came through a relay.
    #[must_use]
    pub const fn is_relay(&self) -> bool {
        matches!(self, Self::Relay { .. })
    }

    /// The lane that leads back to the sender.
    #[must_use]
    pub const fn back(&self) -> Lane {
        match *self {
            Self::Udp { socket, from } => Lane::Udp { socket, to: from },
            Self::Relay { region, from } => Lane::Relay { region, to: from },
        }
    }
}
