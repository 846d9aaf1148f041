//! What a connection may ask of the coordinator (`coordination.md` §10).

use crate::{
    base::{TAILSCALE_PREFIX, agent_addresses},
    wire::coord::tailnet::{CoordinateRequest, Node},
};
use prost::Message as _;
use std::net::Ipv6Addr;
use uuid::Uuid;

/// The one address that agents had when a client knew a single tunnel. Nobody listens on it, old agents announce it.
const LEGACY_AGENT: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0x49d6, 0xb259, 0xb7ac, 0xb1b2, 0x48f4);
/// Longest encoded node that is kept and passed on; a node with a hundred endpoints takes a twentieth of it.
const MAX_NODE: usize = 64 * 1024;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// A client whose socket named one agent: a tunnel to that agent only.
    Client {
        /// The agent of the URL.
        agent: Uuid,
    },
    /// The agent itself: no tunnels, its own addresses only.
    Agent,
    /// The server's own node, or a proxy: anything.
    All,
}

/// Why a request was refused. Ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("authorization: {0}")]
pub struct AuthError(String);

fn refuse<T>(text: impl Into<String>) -> Result<T, AuthError> {
    Err(AuthError(text.into()))
}

/// Reads 16 raw bytes.
pub(super) fn parse_id(bytes: &[u8], what: &str) -> Result<Uuid, AuthError> {
    Uuid::from_slice(bytes).or_else(|_| refuse(format!("parse {what} id: invalid UUID (got {} bytes)", bytes.len())))
}

impl Auth {
    /// Checks a whole request before any of it is applied.
    pub(super) fn check(&self, id: Uuid, request: &CoordinateRequest) -> Result<(), AuthError> {
        if let Some(update) = &request.update_self {
            match &update.node {
                Some(node) => self.check_node(id, node)?,
                None => refuse("node missing")?,
            }
        }
        if let Some(tunnel) = &request.add_tunnel {
            let to = parse_id(&tunnel.id, "add tunnel")?;
            match self {
                Self::Client { agent } if *agent != to => refuse(format!("invalid agent id, expected {agent}, got {to}"))?,
                Self::Agent => refuse("agents cannot open tunnels")?,
                Self::Client { .. } | Self::All => {}
            }
        }
        if let Some(tunnel) = &request.remove_tunnel {
            parse_id(&tunnel.id, "remove tunnel")?;
        }
        if matches!(self, Self::Client { .. }) && !request.ready_for_handshake.is_empty() {
            refuse("clients may not send ready_for_handshake")?;
        }
        for ready in &request.ready_for_handshake {
            parse_id(&ready.id, "ready for handshake")?;
        }
        Ok(())
    }

    fn check_node(&self, id: Uuid, node: &Node) -> Result<(), AuthError> {
        if node.encoded_len() > MAX_NODE {
            return refuse("node too large");
        }
        let may_have = |ip: &Ipv6Addr| match self {
            Self::All => true,
            Self::Agent => *ip == LEGACY_AGENT || agent_addresses(id).contains(ip),
            // Stricter than the Go server: else a user could take an address of the agent, or any route, at that agent.
            Self::Client { agent } => ip.octets().starts_with(&TAILSCALE_PREFIX) && !agent_addresses(*agent).contains(ip),
        };
        if *self == Self::All {
            return Ok(());
        }
        for prefix in node.addresses.iter().chain(&node.allowed_ips) {
            let ip = parse_host_prefix(prefix)?;
            if !may_have(&ip) {
                return refuse(format!("invalid node address, got {ip}"));
            }
        }
        Ok(())
    }
}

fn parse_host_prefix(text: &str) -> Result<Ipv6Addr, AuthError> {
    let (ip, bits) = text.split_once('/').unwrap_or((text, ""));
    let (Ok(ip), Ok(bits)) = (ip.parse(), bits.parse::<u8>()) else {
        return refuse(format!("parse node address: {text:?} is no IPv6 prefix"));
    };
    if bits != 128 {
        return refuse(format!("invalid address bits, expected 128, got {bits}"));
    }
    Ok(ip)
}
