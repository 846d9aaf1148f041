//! What can go wrong, told apart by what a program does about it.

use crate::proto::node::DialFailure;
use std::{io, net::SocketAddrV6, time::Duration};

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The coordinator has not announced the peer in time.
    #[error("the peer at {to} did not appear within {after:?}")]
    UnknownPeer {
        /// Where to.
        to: SocketAddrV6,
        /// How long was waited.
        after: Duration,
    },
    /// The peer is announced, but no tunnel to it came up in time.
    #[error("no tunnel to the peer at {to} within {after:?}: it may have lost its network")]
    Unreachable {
        /// Where to.
        to: SocketAddrV6,
        /// How long was waited.
        after: Duration,
    },
    /// The tunnel stands, but the port did not answer in time.
    #[error("the peer is reached, but its port {port} did not answer within {after:?}")]
    NoAnswer {
        /// The port.
        port: u16,
        /// How long was waited.
        after: Duration,
    },
    /// The peer refused.
    #[error("the peer refused the connection to port {0}")]
    Refused(u16),
    /// The peer went away meanwhile.
    #[error("the peer went away while it was dialled")]
    PeerGone,
    /// So many dials wait already.
    #[error("too many connections are being dialled")]
    TooMany,
    /// This node is closed.
    #[error("the tailnet is closed")]
    Closed,
}

impl DialError {
    pub(super) const fn new(why: DialFailure, to: SocketAddrV6, after: Duration) -> Self {
        match why {
            DialFailure::UnknownPeer => Self::UnknownPeer { to, after },
            DialFailure::NoSession => Self::Unreachable { to, after },
            DialFailure::NoAnswer => Self::NoAnswer { port: to.port(), after },
            DialFailure::Refused => Self::Refused(to.port()),
            DialFailure::PeerGone => Self::PeerGone,
            DialFailure::TooMany => Self::TooMany,
        }
    }
}

impl From<DialError> for io::Error {
    fn from(error: DialError) -> Self {
        let kind = match error {
            DialError::UnknownPeer { .. } | DialError::Unreachable { .. } => io::ErrorKind::HostUnreachable,
            DialError::NoAnswer { .. } => io::ErrorKind::TimedOut,
            DialError::Refused(_) => io::ErrorKind::ConnectionRefused,
            DialError::PeerGone => io::ErrorKind::ConnectionReset,
            DialError::TooMany => io::ErrorKind::ResourceBusy,
            DialError::Closed => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

/// Why a port cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Somebody has it.
    #[error("the port is taken")]
    Taken,
    /// This node is closed.
    #[error("the tailnet is closed")]
    Closed,
}

/// This node is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tailnet is closed")]
pub struct ClosedError;

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        let kind = match error {
            BindError::Taken => io::ErrorKind::AddrInUse,
            BindError::Closed => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

impl From<ClosedError> for io::Error {
    fn from(error: ClosedError) -> Self {
        Self::new(io::ErrorKind::NotConnected, error)
    }
}
