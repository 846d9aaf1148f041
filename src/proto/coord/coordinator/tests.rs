//! One test per row of the tables in `coordination.md` §10 and §11.

use super::*;
use crate::{
    base::{agent_addresses, client_address},
    wire::coord::tailnet::{Disconnect, ReadyForHandshake, Tunnel, UpdateSelf},
};
use PeerUpdateKind::{Disconnected, Lost, ReadyForHandshake as Ready};

const AGENT: Uuid = Uuid::from_u128(0xa1 << 64 | 0xa1);
const OTHER_AGENT: Uuid = Uuid::from_u128(0xa2 << 64 | 0xa2);
const CLIENT: Uuid = Uuid::from_u128(0xc1 << 64 | 0xc1);
const SECOND_CLIENT: Uuid = Uuid::from_u128(0xc2 << 64 | 0xc2);
const AS_CLIENT: Auth = Auth::Client { agent: AGENT };

/// A node that shows whose it is and which version.
fn node(id: Uuid, version: i32) -> Node {
    let address = format!("{}/128", client_address(id));
    Node { preferred_derp: version, addresses: vec![address.clone()], allowed_ips: vec![address], ..Default::default() }
}

fn update(node: Node) -> CoordinateRequest {
    CoordinateRequest { update_self: Some(UpdateSelf { node: Some(node) }), ..Default::default() }
}

fn tunnel(to: Uuid) -> Option<Tunnel> {
    Some(Tunnel { id: to.as_bytes().to_vec() })
}

fn add_tunnel(to: Uuid) -> CoordinateRequest {
    CoordinateRequest { add_tunnel: tunnel(to), ..Default::default() }
}

fn remove_tunnel(to: Uuid) -> CoordinateRequest {
    CoordinateRequest { remove_tunnel: tunnel(to), ..Default::default() }
}

fn ready(to: Uuid) -> CoordinateRequest {
    let entry = ReadyForHandshake { id: to.as_bytes().to_vec() };
    CoordinateRequest { ready_for_handshake: vec![entry], ..Default::default() }
}

fn disconnect() -> CoordinateRequest {
    CoordinateRequest { disconnect: Some(Disconnect {}), ..Default::default() }
}

/// What a connection was told: an update's peer, kind, node version and reason, or an error, or the end.
#[derive(Debug, PartialEq)]
enum Told {
    Of(Uuid, PeerUpdateKind, i32, &'static str),
    Error(String),
    End,
}

fn is_connected(coordinator: &Coordinator, id: Uuid) -> bool {
    coordinator.peers.contains_key(&id)
}

const REASONS: [&str; 9] = [
    "init",
    "node update",
    "add tunnel",
    "remove tunnel",
    "graceful disconnect",
    "lost",
    PEER_CLOSED,
    "does not read its updates",
    "",
];

fn told(coordinator: &mut Coordinator, conn: ConnId) -> Vec<Told> {
    let mut told = Vec::new();
    while let Some(delivery) = coordinator.poll(conn) {
        let Delivery::Response(response) = delivery else {
            told.push(Told::End);
            continue;
        };
        for update in response.peer_updates {
            let reason = REASONS.iter().find(|r| **r == update.reason).unwrap();
            let id = Uuid::from_slice(&update.id).unwrap();
            assert_eq!(update.node.is_some(), update.kind() == PeerUpdateKind::Node);
            told.push(Told::Of(id, update.kind(), update.node.as_ref().map_or(0, |n| n.preferred_derp), reason));
        }
        if !response.error.is_empty() {
            told.push(Told::Error(response.error));
        }
    }
    told
}

const fn is_node(id: Uuid, version: i32, reason: &'static str) -> Told {
    Told::Of(id, PeerUpdateKind::Node, version, reason)
}

const fn is(id: Uuid, kind: PeerUpdateKind, reason: &'static str) -> Told {
    Told::Of(id, kind, 0, reason)
}

/// An agent and a client with a tunnel to it, both announced and both told of each other.
fn joined() -> (Coordinator, ConnId, ConnId) {
    let mut c = Coordinator::new();
    let agent = c.connect(AGENT, Auth::Agent);
    let client = c.connect(CLIENT, AS_CLIENT);
    c.handle_request(agent, &update(node(AGENT, 1))).unwrap();
    c.handle_request(client, &add_tunnel(AGENT)).unwrap();
    c.handle_request(client, &update(node(CLIENT, 1))).unwrap();
    assert_eq!(told(&mut c, agent), [is_node(CLIENT, 1, "node update")]);
    assert_eq!(told(&mut c, client), [is_node(AGENT, 1, "add tunnel")]);
    while c.poll_ready().is_some() {}
    (c, agent, client)
}

#[test]
fn a_tunnel_before_the_nodes_delivers_each_when_it_comes() {
    let mut c = Coordinator::new();
    let client = c.connect(CLIENT, AS_CLIENT);
    c.handle_request(client, &add_tunnel(AGENT)).unwrap();
    let agent = c.connect(AGENT, Auth::Agent);
    assert_eq!((told(&mut c, client), told(&mut c, agent)), (vec![], vec![]));
    c.handle_request(client, &update(node(CLIENT, 1))).unwrap();
    c.handle_request(agent, &update(node(AGENT, 1))).unwrap();
    assert_eq!(told(&mut c, agent), [is_node(CLIENT, 1, "node update")]);
    assert_eq!(told(&mut c, client), [is_node(AGENT, 1, "node update")]);
}

#[test]
fn a_peer_without_tunnel_is_told_nothing() {
    let (mut c, agent, _client) = joined();
    let second = c.connect(SECOND_CLIENT, AS_CLIENT);
    c.handle_request(second, &update(node(SECOND_CLIENT, 1))).unwrap();
    c.handle_request(agent, &update(node(AGENT, 2))).unwrap();
    assert_eq!(told(&mut c, second), []);
    assert_eq!(told(&mut c, agent), []);
}

#[test]
fn an_equal_node_is_not_repeated_and_a_changed_one_is() {
    let (mut c, agent, client) = joined();
    c.handle_request(agent, &update(node(AGENT, 1))).unwrap();
    assert_eq!(told(&mut c, client), []);
    c.handle_request(agent, &update(node(AGENT, 2))).unwrap();
    assert_eq!(told(&mut c, client), [is_node(AGENT, 2, "node update")]);
}

#[test]
fn removing_a_tunnel_disconnects_both_and_adding_it_again_tells_both_again() {
    let (mut c, agent, client) = joined();
    c.handle_request(client, &remove_tunnel(AGENT)).unwrap();
    assert_eq!(told(&mut c, agent), [is(CLIENT, Disconnected, "remove tunnel")]);
    assert_eq!(told(&mut c, client), [is(AGENT, Disconnected, "remove tunnel")]);
    c.handle_request(agent, &update(node(AGENT, 2))).unwrap();
    assert_eq!(told(&mut c, client), []);
    c.handle_request(client, &add_tunnel(AGENT)).unwrap();
    assert_eq!(told(&mut c, agent), [is_node(CLIENT, 1, "add tunnel")]);
    assert_eq!(told(&mut c, client), [is_node(AGENT, 2, "add tunnel")]);
    c.handle_request(client, &remove_tunnel(OTHER_AGENT)).unwrap();
    assert_eq!(told(&mut c, client), [], "a tunnel that is not there");
}

#[test]
fn a_graceful_disconnect_tells_the_partners_and_ends_the_stream() {
    let (mut c, agent, client) = joined();
    c.handle_request(client, &disconnect()).unwrap();
    assert_eq!(told(&mut c, agent), [is(CLIENT, Disconnected, "graceful disconnect")]);
    assert_eq!(told(&mut c, client), [Told::End]);
    assert!(!is_connected(&c, CLIENT));
    c.lost(client);
    assert_eq!(told(&mut c, agent), [], "the end of the socket is no second news");
    let client = c.connect(CLIENT, AS_CLIENT);
    assert_eq!(told(&mut c, client), [], "its tunnel went with it");
}

#[test]
fn a_lost_agent_comes_back_to_the_tunnel_that_its_client_kept() {
    let (mut c, agent, client) = joined();
    c.lost(agent);
    assert_eq!(told(&mut c, client), [is(AGENT, Lost, "lost")]);
    let agent = c.connect(AGENT, Auth::Agent);
    assert_eq!(told(&mut c, agent), [is_node(CLIENT, 1, "init")]);
    c.handle_request(agent, &update(node(AGENT, 1))).unwrap();
    assert_eq!(told(&mut c, client), [is_node(AGENT, 1, "node update")], "LOST forgets what was sent");
}

#[test]
fn partners_are_told_that_a_lost_peers_connection_was_closed() {
    let (mut c, agent, client) = joined();
    c.closed(client);
    assert_eq!(told(&mut c, agent), [is(CLIENT, Lost, PEER_CLOSED)]);
}

#[test]
fn a_lost_clients_tunnels_are_forgotten() {
    let (mut c, agent, client) = joined();
    c.lost(client);
    assert_eq!(told(&mut c, agent), [is(CLIENT, Lost, "lost")]);
    let client = c.connect(CLIENT, AS_CLIENT);
    c.handle_request(client, &update(node(CLIENT, 2))).unwrap();
    assert_eq!(told(&mut c, agent), []);
    c.handle_request(client, &add_tunnel(AGENT)).unwrap();
    assert_eq!(told(&mut c, agent), [is_node(CLIENT, 2, "add tunnel")]);
}

#[test]
fn nobody_is_told_that_a_peer_left_of_which_he_was_told_nothing() {
    let mut c = Coordinator::new();
    let client = c.connect(CLIENT, AS_CLIENT);
    c.handle_request(client, &add_tunnel(AGENT)).unwrap();
    let agent = c.connect(AGENT, Auth::Agent);
    c.lost(agent);
    let agent = c.connect(AGENT, Auth::Agent);
    c.handle_request(agent, &disconnect()).unwrap();
    assert_eq!(told(&mut c, client), []);
}

#[test]
fn ready_for_handshake_goes_along_a_tunnel_in_either_direction() {
    let (mut c, agent, client) = joined();
    c.handle_request(agent, &ready(CLIENT)).unwrap();
    assert_eq!(told(&mut c, client), [is(AGENT, Ready, "")]);
    let server = c.connect(OTHER_AGENT, Auth::All);
    c.handle_request(server, &add_tunnel(AGENT)).unwrap();
    told(&mut c, server);
    c.handle_request(server, &ready(AGENT)).unwrap();
    assert_eq!(told(&mut c, agent), [is(OTHER_AGENT, Ready, "")]);
}

#[test]
fn ready_for_handshake_without_a_tunnel_is_an_error_that_keeps_the_stream() {
    let (mut c, agent, client) = joined();
    c.handle_request(agent, &ready(SECOND_CLIENT)).unwrap();
    let text = format!("ready for handshake error: you do not share a tunnel with \"{SECOND_CLIENT}\"");
    assert_eq!(told(&mut c, agent), [Told::Error(text)]);
    c.handle_request(agent, &update(node(AGENT, 2))).unwrap();
    assert_eq!(told(&mut c, client), [is_node(AGENT, 2, "node update")]);
}

#[test]
fn a_new_connection_overwrites_the_old_one_of_its_id() {
    let (mut c, agent, client) = joined();
    let newer = c.connect(AGENT, Auth::Agent);
    assert_eq!(told(&mut c, agent), [Told::Error("peer ID overwritten by new connection".into()), Told::End]);
    assert_eq!(told(&mut c, newer), [is_node(CLIENT, 1, "init")]);
    c.lost(agent);
    assert!(is_connected(&c, AGENT));
    assert_eq!(told(&mut c, client), [], "the peer itself never left");
    c.handle_request(agent, &update(node(AGENT, 7))).unwrap();
    assert_eq!(told(&mut c, client), [], "the old connection has no say");
    c.handle_request(newer, &update(node(AGENT, 2))).unwrap();
    assert_eq!(told(&mut c, client), [is_node(AGENT, 2, "node update")]);
}

#[test]
fn a_new_connection_is_told_of_its_partners_in_batches() {
    let mut c = Coordinator::new();
    let partners: Vec<Uuid> = (10_001..=11_500).map(|n| Uuid::from_u128(n << 64 | n)).collect();
    for id in &partners {
        let conn = c.connect(*id, AS_CLIENT);
        c.handle_request(conn, &update(node(*id, 1))).unwrap();
        c.handle_request(conn, &add_tunnel(AGENT)).unwrap();
    }
    let agent = c.connect(AGENT, Auth::Agent);
    let mut sizes = Vec::new();
    while let Some(Delivery::Response(response)) = c.poll(agent) {
        sizes.push(response.peer_updates.len());
    }
    assert_eq!(sizes, [1024, 476]);
}

#[test]
fn large_nodes_make_more_batches_that_a_peer_can_still_read() {
    let mut c = Coordinator::new();
    for n in 10_001..=10_100 {
        let id = Uuid::from_u128(n << 64 | n);
        let conn = c.connect(id, AS_CLIENT);
        let large = Node { endpoints: vec!["192.0.2.1:1".into(); 4_900], ..node(id, 1) };
        c.handle_request(conn, &update(large)).unwrap();
        c.handle_request(conn, &add_tunnel(AGENT)).unwrap();
    }
    let agent = c.connect(AGENT, Auth::Agent);
    let late = c.connect(CLIENT, AS_CLIENT);
    c.handle_request(late, &CoordinateRequest { add_tunnel: tunnel(AGENT), ..update(node(CLIENT, 1)) }).unwrap();
    assert!(is_connected(&c, AGENT), "what it is told at first is no reason to give it up");
    let (mut nodes, mut batches) = (0, 0);
    while let Some(Delivery::Response(response)) = c.poll(agent) {
        assert!(response.encoded_len() < crate::wire::coord::drpc::MAX_PACKET);
        nodes += response.peer_updates.len();
        batches += 1;
    }
    assert_eq!((nodes, batches), (101, 7));
}

#[test]
fn a_peer_is_also_removed_for_the_bytes_that_it_does_not_read() {
    let (mut c, agent, client) = joined();
    let large = |version| Node { endpoints: vec!["192.0.2.1:1".into(); 4_900], ..node(AGENT, version) };
    for version in 2..200 {
        c.handle_request(agent, &update(large(version))).unwrap();
        if version < 60 {
            assert!(is_connected(&c, CLIENT), "{version}");
        }
    }
    assert!(!is_connected(&c, CLIENT));
    assert_eq!(told(&mut c, client), [Told::End]);
    // Read in time, the same news do no harm.
    let (mut c, agent, client) = joined();
    for version in 2..200 {
        c.handle_request(agent, &update(large(version))).unwrap();
        assert_eq!(told(&mut c, client).len(), 1);
    }
    assert!(is_connected(&c, CLIENT));
}

#[test]
fn a_peer_that_reads_nothing_is_removed_and_its_partners_know() {
    let (mut c, agent, client) = joined();
    for version in 2..2 + 512 {
        c.handle_request(agent, &update(node(AGENT, version))).unwrap();
    }
    assert!(is_connected(&c, CLIENT));
    assert_eq!(told(&mut c, agent), []);
    c.handle_request(agent, &update(node(AGENT, 1000))).unwrap();
    assert!(!is_connected(&c, CLIENT));
    assert_eq!(told(&mut c, agent), [is(CLIENT, Disconnected, "does not read its updates")]);
    assert_eq!(told(&mut c, client), [Told::End]);
    c.handle_request(client, &update(node(CLIENT, 5))).unwrap();
    assert_eq!(told(&mut c, agent), []);
}

#[test]
fn closing_ends_everybody_and_whoever_comes_later() {
    let (mut c, agent, client) = joined();
    c.close();
    let closed = || Told::Error("coordinator closed".into());
    assert_eq!(told(&mut c, agent), [is(CLIENT, Lost, "lost"), closed(), Told::End]);
    assert_eq!(told(&mut c, client), [is(AGENT, Lost, "lost"), closed(), Told::End]);
    let late = c.connect(SECOND_CLIENT, AS_CLIENT);
    assert_eq!(told(&mut c, late), [closed(), Told::End]);
    assert!(c.peers.is_empty());
}

#[test]
fn connections_with_news_are_named_once() {
    let (mut c, agent, client) = joined();
    assert_eq!(c.poll_ready(), None);
    c.handle_request(agent, &update(node(AGENT, 2))).unwrap();
    c.handle_request(agent, &update(node(AGENT, 3))).unwrap();
    assert_eq!((c.poll_ready(), c.poll_ready()), (Some(client), None));
    c.handle_request(client, &disconnect()).unwrap();
    assert_eq!((c.poll_ready(), c.poll_ready(), c.poll_ready()), (Some(agent), Some(client), None));
}

#[test]
fn several_fields_are_applied_in_order() {
    let (mut c, agent, _client) = joined();
    let second = c.connect(SECOND_CLIENT, AS_CLIENT);
    let all = CoordinateRequest { add_tunnel: tunnel(AGENT), ..update(node(SECOND_CLIENT, 1)) };
    c.handle_request(second, &CoordinateRequest { disconnect: Some(Disconnect {}), ..all }).unwrap();
    assert_eq!(
        told(&mut c, agent),
        [is_node(SECOND_CLIENT, 1, "add tunnel"), is(SECOND_CLIENT, Disconnected, "graceful disconnect")]
    );
    assert_eq!(told(&mut c, second), [is_node(AGENT, 1, "add tunnel"), Told::End]);
}

/// Sends one request that must be refused; nothing of it may be applied and the stream ends.
fn assert_refused(id: Uuid, auth: Auth, request: &CoordinateRequest, why: &str) {
    let (mut c, agent, _client) = joined();
    let conn = c.connect(id, auth);
    told(&mut c, conn);
    told(&mut c, agent);
    let error = c.handle_request(conn, request).unwrap_err().to_string();
    assert_eq!(error, format!("authorization: {why}"));
    assert_eq!(told(&mut c, conn), [Told::Error(error), Told::End]);
    if id != AGENT {
        assert_eq!(told(&mut c, agent), [], "nothing of the request was applied");
    }
    assert!(!is_connected(&c, id));
}

fn node_with(prefix: &str) -> Node {
    Node { addresses: vec![prefix.into()], allowed_ips: vec![prefix.into()], ..Default::default() }
}

#[test]
fn a_client_may_only_ask_for_the_agent_of_its_url() {
    let why = format!("invalid agent id, expected {AGENT}, got {OTHER_AGENT}");
    assert_refused(SECOND_CLIENT, AS_CLIENT, &add_tunnel(OTHER_AGENT), &why);
    let with_node = CoordinateRequest { add_tunnel: tunnel(OTHER_AGENT), ..update(node(SECOND_CLIENT, 1)) };
    assert_refused(SECOND_CLIENT, AS_CLIENT, &with_node, &why);
}

#[test]
fn a_client_may_not_say_that_it_is_ready() {
    assert_refused(SECOND_CLIENT, AS_CLIENT, &ready(AGENT), "clients may not send ready_for_handshake");
}

#[test]
fn a_client_announces_single_addresses_of_its_prefix_that_are_not_the_agents() {
    let refused = |node: Node, why: &str| assert_refused(SECOND_CLIENT, AS_CLIENT, &update(node), why);
    refused(node_with("fd7a:115c:a1e0::1/64"), "invalid address bits, expected 128, got 64");
    refused(node_with("::/0"), "invalid address bits, expected 128, got 0");
    refused(node_with("2001:db8::1/128"), "invalid node address, got 2001:db8::1");
    refused(node_with("10.0.0.1/32"), "parse node address: \"10.0.0.1/32\" is no IPv6 prefix");
    refused(node_with("not an address"), "parse node address: \"not an address\" is no IPv6 prefix");
    for own in agent_addresses(AGENT) {
        refused(node_with(&format!("{own}/128")), &format!("invalid node address, got {own}"));
    }
    let route = Node { allowed_ips: vec!["::/0".into()], ..node(SECOND_CLIENT, 1) };
    refused(route, "invalid address bits, expected 128, got 0");
}

#[test]
fn an_agent_opens_no_tunnel_and_announces_its_own_addresses_only() {
    assert_refused(OTHER_AGENT, Auth::Agent, &add_tunnel(AGENT), "agents cannot open tunnels");
    let foreign = client_address(CLIENT);
    assert_refused(OTHER_AGENT, Auth::Agent, &update(node(CLIENT, 1)), &format!("invalid node address, got {foreign}"));
    let route = Node { allowed_ips: vec!["::/0".into()], ..node(OTHER_AGENT, 1) };
    assert_refused(OTHER_AGENT, Auth::Agent, &update(route), "invalid address bits, expected 128, got 0");

    let (mut c, agent, _client) = joined();
    for own in agent_addresses(AGENT) {
        c.handle_request(agent, &update(node_with(&format!("{own}/128")))).unwrap();
    }
    c.handle_request(agent, &update(node_with("fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4/128"))).unwrap();
}

#[test]
fn malformed_ids_and_missing_or_huge_nodes_end_the_stream() {
    let short = || Tunnel { id: vec![1, 2, 3] };
    let add = CoordinateRequest { add_tunnel: Some(short()), ..Default::default() };
    assert_refused(SECOND_CLIENT, AS_CLIENT, &add, "parse add tunnel id: invalid UUID (got 3 bytes)");
    let remove = CoordinateRequest { remove_tunnel: Some(short()), ..Default::default() };
    assert_refused(SECOND_CLIENT, AS_CLIENT, &remove, "parse remove tunnel id: invalid UUID (got 3 bytes)");
    let entry = ReadyForHandshake { id: vec![] };
    let ready = CoordinateRequest { ready_for_handshake: vec![entry], ..Default::default() };
    assert_refused(AGENT, Auth::Agent, &ready, "parse ready for handshake id: invalid UUID (got 0 bytes)");
    let missing = CoordinateRequest { update_self: Some(UpdateSelf { node: None }), ..Default::default() };
    assert_refused(SECOND_CLIENT, AS_CLIENT, &missing, "node missing");
    let huge = Node { endpoints: vec!["192.0.2.1:1".into(); 6_000], ..node(SECOND_CLIENT, 1) };
    assert_refused(SECOND_CLIENT, AS_CLIENT, &update(huge), "node too large");
}

#[test]
fn the_servers_own_node_may_do_anything() {
    let (mut c, agent, client) = joined();
    let server = c.connect(OTHER_AGENT, Auth::All);
    c.handle_request(server, &update(node_with("2001:db8::/32"))).unwrap();
    c.handle_request(server, &add_tunnel(AGENT)).unwrap();
    c.handle_request(server, &add_tunnel(CLIENT)).unwrap();
    assert_eq!(told(&mut c, agent), [is_node(OTHER_AGENT, 0, "add tunnel")]);
    assert_eq!(told(&mut c, client), [is_node(OTHER_AGENT, 0, "add tunnel")]);
}
