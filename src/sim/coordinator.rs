//! The coordinator: the real engine and real control bytes on virtual connections.

use super::internet::{End, Internet, PipeIx};
use crate::{
    base::Instant,
    proto::coord::{Auth, ConnId, Coordinator, Delivery, ServerCall, ServerEvent, ServerRole, ServerSession},
    wire::coord::tailnet::DerpMap,
};
use std::collections::BTreeMap;
use uuid::Uuid;

#[derive(Debug)]
struct Connection {
    id: Uuid,
    auth: Auth,
    session: ServerSession,
    calls: BTreeMap<ConnId, ServerCall>,
}

#[derive(Debug)]
pub(crate) struct CoordinatorHost {
    coordinator: Coordinator,
    connections: BTreeMap<PipeIx, Connection>,
    /// Who is behind a pipe that is being opened: in reality the HTTP request says so.
    expected: BTreeMap<PipeIx, (Uuid, ServerRole)>,
    relay_map: DerpMap,
}

impl CoordinatorHost {
    pub(crate) fn new(relay_map: DerpMap) -> Self {
        Self { coordinator: Coordinator::new(), connections: BTreeMap::new(), expected: BTreeMap::new(), relay_map }
    }

    pub(crate) fn expect(&mut self, pipe: PipeIx, id: Uuid, role: ServerRole) {
        self.expected.insert(pipe, (id, role));
    }

    pub(crate) fn set_relay_map(&mut self, map: DerpMap) {
        for connection in self.connections.values_mut() {
            connection.session.send_relay_map(&map);
        }
        self.relay_map = map;
    }

    pub(crate) fn handle_opened(&mut self, now: Instant, pipe: PipeIx) {
        let Some((id, role)) = self.expected.remove(&pipe) else { return };
        let auth = match role {
            ServerRole::Agent => Auth::Agent,
            // Clients of the simulator may ask for any number of agents.
            ServerRole::Client => Auth::All,
        };
        let mut session = ServerSession::new(role, now);
        session.send_relay_map(&self.relay_map);
        self.connections.insert(pipe, Connection { id, auth, session, calls: BTreeMap::new() });
    }

    pub(crate) fn handle_bytes(&mut self, now: Instant, pipe: PipeIx, bytes: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&pipe) {
            connection.session.handle_bytes(now, bytes);
        }
    }

    /// The other end of a connection closed it.
    pub(crate) fn handle_closed(&mut self, pipe: PipeIx) {
        for conn in self.calls_of(pipe) {
            self.coordinator.closed(conn);
        }
    }

    /// Nobody answers on a connection any more.
    pub(crate) fn handle_silent(&mut self, pipe: PipeIx) {
        for conn in self.calls_of(pipe) {
            self.coordinator.lost(conn);
        }
    }

    fn calls_of(&mut self, pipe: PipeIx) -> Vec<ConnId> {
        self.connections.remove(&pipe).into_iter().flat_map(|connection| connection.calls.into_keys()).collect()
    }

    /// Ends without a word: every connection breaks and everything is forgotten.
    pub(crate) fn kill(&mut self, now: Instant, net: &mut Internet) {
        for pipe in std::mem::take(&mut self.connections).into_keys() {
            net.close(now, pipe);
        }
        self.expected.clear();
        self.coordinator = Coordinator::new();
    }

    pub(crate) fn service(&mut self, now: Instant, net: &mut Internet) {
        let mut dead = Vec::new();
        let pipes: Vec<PipeIx> = self.connections.keys().copied().collect();
        for pipe in &pipes {
            let Some(connection) = self.connections.get_mut(pipe) else { continue };
            if connection.session.poll_timeout().is_some_and(|d| d.at <= now) {
                connection.session.handle_timeout(now);
            }
            while let Some(event) = connection.session.poll_event() {
                match event {
                    ServerEvent::CoordinateOpened { call } => {
                        let conn = self.coordinator.connect(connection.id, connection.auth);
                        connection.calls.insert(conn, call);
                    }
                    ServerEvent::Coordinate { call, request } => {
                        let conn = connection.calls.iter().find(|(_, c)| **c == call).map(|(conn, _)| *conn);
                        if let Some(conn) = conn {
                            // A refusal ends the call: the coordinator queues that by itself.
                            let _ = self.coordinator.handle_request(conn, &request);
                        }
                    }
                    ServerEvent::CoordinateClosed { call } => {
                        let conn = connection.calls.iter().find(|(_, c)| **c == call).map(|(conn, _)| *conn);
                        if let Some(conn) = conn {
                            connection.calls.remove(&conn);
                            self.coordinator.lost(conn);
                        }
                    }
                    ServerEvent::Dead(_) => dead.push(*pipe),
                    ServerEvent::Call { .. } | ServerEvent::DerpMapsWanted | ServerEvent::Alive => {}
                }
            }
        }
        for pipe in dead {
            net.close(now, pipe);
            self.handle_silent(pipe);
        }
        for pipe in pipes {
            let Some(connection) = self.connections.get_mut(&pipe) else { continue };
            for (conn, call) in &connection.calls {
                while connection.session.coordinate_has_room(*call) {
                    match self.coordinator.poll(*conn) {
                        Some(Delivery::Response(response)) => connection.session.send_coordinate(*call, &response),
                        Some(Delivery::End) => connection.session.close_coordinate(*call),
                        None => break,
                    }
                }
            }
            loop {
                let mut out = Vec::new();
                connection.session.poll_output(&mut out);
                if out.is_empty() {
                    break;
                }
                net.write(now, pipe, End::Server, out);
            }
        }
    }

    pub(crate) fn wake(&self) -> Option<(Instant, &'static str)> {
        self.connections.values().filter_map(|c| c.session.poll_timeout()).min().map(|d| (d.at, d.why))
    }
}
