//! The control plane's two ends, fed by a peer that may send anything.

use crate::{
    base::Instant,
    proto::coord::{
        Auth, ClientEvent, ClientRole, ClientSession, ConnId, Coordinator, Delivery, ServerCall, ServerEvent, ServerRole,
        ServerSession,
        drpc::{Call, read_pieces},
        yamux::Session,
    },
    wire::coord::tailnet::{DerpMap, Node},
};
use std::{collections::BTreeMap, time::Duration};
use uuid::Uuid;

const AGENT: Uuid = Uuid::from_u128(0x2b1e_3346_53c0_4d1b_a0e5_3cbb_8f6e_d1a0);

/// The peer's input as steps: a length and that many bytes, or 0 for five seconds without any.
struct Steps<'a> {
    rest: &'a [u8],
    now: Instant,
}

impl<'a> Steps<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let (&len, rest) = self.rest.split_first()?;
        let (bytes, rest) = rest.split_at_checked(usize::from(len)).unwrap_or((rest, &[]));
        self.rest = rest;
        if len == 0 {
            self.now += Duration::from_secs(5);
        }
        Some(bytes)
    }
}

/// Runs a server or a client session (first byte) against a peer made of the rest.
///
/// # Panics
/// When a session spins, sends what a peer cannot read, or goes on after its end.
pub fn coord_stream(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let steps = Steps { rest, now: Instant::ZERO };
    match kind % 4 {
        0 => run_server(ServerRole::Client, Auth::Client { agent: AGENT }, steps),
        1 => run_server(ServerRole::Agent, Auth::Agent, steps),
        2 => run_client(ClientRole::Client, steps),
        _ => run_client(ClientRole::Agent, steps),
    }
}

/// Takes all output and lets a peer's session read it.
fn drain(mut poll: impl FnMut(&mut Vec<u8>), peer: &mut Session) {
    for _ in 0..1_000 {
        let mut out = Vec::new();
        poll(&mut out);
        if out.is_empty() {
            return;
        }
        assert_eq!(peer.handle_bytes(&out), Ok(()), "output that a peer cannot read");
        let mut answers = Vec::new();
        peer.poll_output(&mut answers);
    }
    panic!("output without end");
}

fn run_server(role: ServerRole, auth: Auth, mut steps: Steps<'_>) {
    let mut session = ServerSession::new(role, steps.now);
    let mut coordinator = Coordinator::new();
    let mut calls: BTreeMap<ServerCall, ConnId> = BTreeMap::new();
    let mut peer = Session::client();
    let mut dead = false;
    while let Some(bytes) = steps.next() {
        session.handle_bytes(steps.now, bytes);
        session.handle_timeout(steps.now);
        while let Some(event) = session.poll_event() {
            assert!(!dead, "an event after the last one");
            match event {
                ServerEvent::Call { call, body, .. } => session.reply(call, Ok(&body)),
                ServerEvent::CoordinateOpened { call } => {
                    assert!(calls.insert(call, coordinator.connect(AGENT, auth)).is_none(), "a call opened twice");
                }
                ServerEvent::Coordinate { call, request } => {
                    if let Some(conn) = calls.get(&call) {
                        // The coordinator tells a refusal itself.
                        let _ = coordinator.handle_request(*conn, &request);
                    }
                }
                ServerEvent::CoordinateClosed { call } => {
                    let conn = calls.remove(&call);
                    conn.into_iter().for_each(|conn| coordinator.lost(conn));
                }
                ServerEvent::DerpMapsWanted => session.send_relay_map(&DerpMap::default()),
                ServerEvent::Alive => {}
                ServerEvent::Dead(_) => dead = true,
            }
        }
        while let Some(conn) = coordinator.poll_ready() {
            while let Some(delivery) = coordinator.poll(conn) {
                let Some((&call, _)) = calls.iter().find(|(_, c)| **c == conn) else { continue };
                match delivery {
                    Delivery::Response(response) => session.send_coordinate(call, &response),
                    Delivery::End => session.close_coordinate(call),
                }
            }
        }
        drain(|out| session.poll_output(out), &mut peer);
        assert!(session.poll_timeout().is_none_or(|d| d.at > steps.now), "a timer that is due again at once");
        assert_eq!(dead, session.poll_timeout().is_none());
    }
}

fn run_client(role: ClientRole, mut steps: Steps<'_>) {
    let mut session = ClientSession::new(role, steps.now);
    session.open_coordination();
    session.add_tunnel(AGENT);
    session.set_self(Some(Node { preferred_derp: 1, ..Node::default() }));
    session.call(steps.now, "/coder.agent.v2.Agent/GetManifest", &[]);
    let mut peer = Session::server();
    let mut closed = false;
    while let Some(bytes) = steps.next() {
        session.handle_bytes(steps.now, bytes);
        session.handle_timeout(steps.now);
        while let Some(event) = session.poll_event() {
            assert!(!closed, "an event after the last one");
            match event {
                ClientEvent::PeerUpdate(update) => session.ready(Uuid::from_slice(&update.id).into_iter().collect()),
                ClientEvent::Closed(_) => closed = true,
                ClientEvent::RelayMap(_) | ClientEvent::Reply { .. } | ClientEvent::CoordinatorError(_) => {}
            }
        }
        drain(|out| session.poll_output(out), &mut peer);
        assert!(session.poll_timeout().is_none_or(|d| d.at > steps.now), "a timer that is due again at once");
        assert_eq!(closed, session.poll_timeout().is_none());
    }
}

/// Reads packets at once and cut into pieces of the first byte's length: both must give the same.
///
/// # Panics
/// When they differ.
pub fn drpc(input: &[u8]) {
    let Some((step, bytes)) = input.split_first() else { return };
    let whole = read_pieces(bytes, bytes.len());
    let pieces = read_pieces(bytes, usize::from(*step));
    assert_eq!(whole, pieces);
    let mut call = Call::server();
    let mut rest = bytes;
    while let Ok((used, Some(_))) = call.read(rest) {
        rest = rest.get(used..).unwrap_or_default();
    }
}
