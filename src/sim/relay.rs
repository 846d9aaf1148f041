//! A relay with a STUN responder beside it: the real server engine on virtual connections.

use super::internet::{End, HostIx, Internet, PipeIx};
use crate::{
    base::{Instant, Rng},
    proto::relay::server::{ConnId, Registry, RelayConn},
    wire::{derp::RelaySecret, stun},
};
use std::{collections::BTreeMap, net::SocketAddr};

/// STUN's port on a relay host.
pub(crate) const STUN_PORT: u16 = 3_478;
/// How much is written to a connection at once.
const CHUNK: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct RelayHost {
    host: HostIx,
    registry: Registry,
    conns: BTreeMap<PipeIx, RelayConn>,
    pipes: BTreeMap<ConnId, PipeIx>,
    /// Connections whose pipe was full when they had output.
    waiting: Vec<ConnId>,
    /// Whether STUN is answered.
    pub(crate) stun: bool,
}

impl RelayHost {
    pub(crate) fn new(host: HostIx, rng: &mut Rng) -> Self {
        let secret = RelaySecret::generate(rng);
        Self {
            host,
            registry: Registry::new(secret, rng.split()),
            conns: BTreeMap::new(),
            pipes: BTreeMap::new(),
            waiting: Vec::new(),
            stun: true,
        }
    }

    pub(crate) fn handle_datagram(&self, now: Instant, net: &mut Internet, from: SocketAddr, port: u16, bytes: &[u8]) {
        if self.stun
            && port == STUN_PORT
            && let Ok(tx) = stun::parse_request(bytes)
        {
            net.send(now, self.host, port, from, stun::write_response(tx, from));
        }
    }

    pub(crate) fn handle_opened(&mut self, now: Instant, pipe: PipeIx) {
        let conn = self.registry.open(now);
        self.pipes.insert(conn.id(), pipe);
        self.conns.insert(pipe, conn);
    }

    pub(crate) fn handle_bytes(&mut self, now: Instant, net: &mut Internet, pipe: PipeIx, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&pipe) else { return };
        if conn.handle_bytes(now, bytes, &mut self.registry).is_err() {
            net.close(now, pipe);
            self.handle_closed(pipe);
        }
    }

    pub(crate) fn handle_closed(&mut self, pipe: PipeIx) {
        if let Some(conn) = self.conns.remove(&pipe) {
            self.pipes.remove(&conn.id());
            self.registry.close(conn);
        }
    }

    /// Breaks every connection, as a restart does.
    pub(crate) fn restart(&mut self, now: Instant, net: &mut Internet) {
        for pipe in std::mem::take(&mut self.conns).into_keys() {
            net.close(now, pipe);
        }
        self.pipes.clear();
        self.waiting.clear();
        let secret = RelaySecret::from_random([7; 32]);
        self.registry = Registry::new(secret, Rng::from_u64(now.as_nanos()));
    }

    pub(crate) fn service(&mut self, now: Instant, net: &mut Internet) {
        for (pipe, conn) in &mut self.conns {
            if conn.poll_timeout().at <= now && conn.handle_timeout(now, &mut self.registry).is_err() {
                net.close(now, *pipe);
            }
        }
        let mut ready = std::mem::take(&mut self.waiting);
        while let Some(conn) = self.registry.poll_ready() {
            ready.push(conn);
        }
        for conn in ready {
            let Some(&pipe) = self.pipes.get(&conn) else { continue };
            loop {
                if net.room(pipe, End::Server) < CHUNK {
                    self.waiting.push(conn);
                    break;
                }
                let mut out = Vec::new();
                let more = self.registry.poll_output(conn, &mut out, CHUNK / 2);
                net.write(now, pipe, End::Server, out);
                if !more {
                    break;
                }
            }
        }
    }

    pub(crate) fn wake(&self) -> Option<(Instant, &'static str)> {
        self.conns.values().map(|c| c.poll_timeout()).min().map(|d| (d.at, d.why))
    }
}
