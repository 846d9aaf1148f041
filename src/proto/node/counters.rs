//! What a node did, counted. Tests prove by these numbers which way data went.

/// Packets of one kind in one direction, by the way they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ByWay {
    /// Over UDP, direct to or from the peer.
    pub udp: u64,
    /// Through a relay.
    pub relay: u64,
}

impl ByWay {
    pub(super) const fn add(&mut self, relay: bool) {
        if relay {
            self.relay += 1;
        } else {
            self.udp += 1;
        }
    }
}

/// Datagrams and packets that ended here, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Drops {
    /// Neither STUN nor disco nor WireGuard.
    pub junk: u64,
    /// STUN that no request of ours asked for.
    pub stun: u64,
    /// WireGuard that did not open: no such session, or forged.
    pub wireguard: u64,
    /// WireGuard that had come before on another way.
    pub copies: u64,
    /// An inner packet whose source is not one of its peer's addresses.
    pub foreign_source: u64,
    /// The second copy of a packet found its lane full.
    pub copy: u64,
    /// A handshake, disco or STUN message found its lane full for too long.
    pub control: u64,
    /// Coordination updates that could not be read.
    pub update: u64,
}

/// Everything a node counts; a snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// WireGuard data packets sent. A packet sent both ways counts in both.
    pub data_sent: ByWay,
    /// Authenticated WireGuard data packets received.
    pub data_received: ByWay,
    /// Bytes that went into the tunnel: whole IP packets as they were before encryption. A packet sent both ways counts once.
    pub bytes_sent: u64,
    /// Bytes that came out of the tunnel: whole IP packets as they were after decryption.
    pub bytes_received: u64,
    /// Empty keepalives sent.
    pub keepalives_sent: u64,
    /// Handshake initiations made; one sent both ways counts once.
    pub initiations_sent: u64,
    /// Handshake responses made.
    pub responses_sent: u64,
    /// Sessions that came up.
    pub sessions: u64,
    /// TCP SYNs and SYN-ACKs sent, repeats included.
    pub syns_sent: u64,
    /// Flows dialled.
    pub dials: u64,
    /// Relay connections asked for.
    pub relay_dials: u64,
    /// How often a path changed its state.
    pub path_changes: u64,
    /// What was dropped.
    pub drops: Drops,
}
