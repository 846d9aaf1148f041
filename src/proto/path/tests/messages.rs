//! Disco messages, one by one, and what the owner may tell.

use super::*;
use crate::wire::disco::{SharedKey, TxId};

/// A stranger's view: seals messages with a given secret.
struct Voice {
    secret: DiscoSecret,
    key: SharedKey,
    nonce: u8,
}

impl Voice {
    fn new(seed: u64, to: DiscoKey) -> Self {
        let secret = DiscoSecret::generate(&mut Rng::from_u64(seed));
        let key = SharedKey::new(&secret, &to);
        Self { secret, key, nonce: 0 }
    }

    fn seal(&mut self, message: &Message) -> Vec<u8> {
        self.nonce += 1;
        let mut d = Vec::new();
        self.key.seal(self.secret.public(), [self.nonce; 24], message, &mut d);
        d
    }
}

const NOW: Instant = Instant::from_nanos(1_000_000_000_000);

fn udp(from: &str) -> Via {
    Via::Udp { socket: SocketIx::V4, from: addr(from) }
}

/// One node with one peer, whose part the test speaks.
struct Lone {
    paths: Paths,
    voice: Voice,
    node: NodeKey,
}

impl Lone {
    fn new() -> Self {
        let mut rng = Rng::from_u64(1);
        let secret = DiscoSecret::generate(&mut rng);
        let voice = Voice::new(2, secret.public());
        let node = NodeKey::from([7; 32]);
        let mut paths = Paths::new(secret, NodeKey::from([8; 32]), rng);
        paths.upsert_peer(NOW, PEER, Self::addrs(&voice, node, &[]));
        Self { paths, voice, node }
    }

    fn addrs(voice: &Voice, node: NodeKey, endpoints: &[&str]) -> PeerAddrs {
        let endpoints = endpoints.iter().map(|e| addr(e)).collect();
        PeerAddrs { node, disco: voice.secret.public(), home: Some(region(5)), endpoints }
    }

    fn relay(&self) -> Via {
        Via::Relay { region: region(9), from: self.node }
    }

    fn hear(&mut self, via: &Via, message: &Message) -> Option<PeerIx> {
        let d = self.voice.seal(message);
        self.paths.handle_disco(NOW, via, &d)
    }

    /// What the node sends, opened.
    fn sent(&mut self) -> Vec<(Lane, Message)> {
        let mut sent = Vec::new();
        while let Some((lane, d)) = self.paths.poll_transmit() {
            let message = self.voice.key.open(&d).unwrap();
            let padded = !matches!(message, Message::CallMeMaybe { .. });
            assert!(!padded || d.len() == disco::PADDED);
            sent.push((lane, message));
        }
        sent
    }
}

const fn ping(tx: u8) -> Message {
    Message::Ping { tx: TxId([tx; 12]), node: None }
}

#[test]
fn a_ping_is_answered_by_its_own_way_once_for_each_id() {
    let mut lone = Lone::new();
    let (near, relay) = (udp("1.2.3.4:5"), lone.relay());
    assert_eq!(lone.hear(&near, &ping(1)), Some(PEER));
    assert_eq!(lone.hear(&near, &ping(1)), Some(PEER));
    assert_eq!(lone.hear(&relay, &ping(1)), Some(PEER));
    assert_eq!(lone.hear(&relay, &ping(1)), Some(PEER));
    let pong = |src| Message::Pong { tx: TxId([1; 12]), src };
    assert_eq!(
        lone.sent(),
        [(near.back(), pong(addr("1.2.3.4:5"))), (relay.back(), pong(addr("127.3.3.40:9")))],
        "a copy gets no second pong"
    );
    assert_eq!(lone.paths.peer_by_addr(&addr("1.2.3.4:5")), Some(PEER));
    assert_eq!(lone.paths.poll_timeout(), None, "being pinged is no activity");
}

#[test]
fn packets_of_strangers_and_broken_ones_are_swallowed() {
    let mut lone = Lone::new();
    let near = udp("1.2.3.4:5");
    let mut stranger = Voice::new(3, lone.paths.shared.key);
    let d = stranger.seal(&ping(1));
    assert_eq!(lone.paths.handle_disco(NOW, &near, &d), None);
    let mut d = lone.voice.seal(&ping(1));
    d[100] ^= 1;
    assert_eq!(lone.paths.handle_disco(NOW, &near, &d), None);
    assert_eq!(lone.paths.handle_disco(NOW, &near, &d[..50]), None);
    let foreign = Via::Relay { region: region(9), from: NodeKey::from([9; 32]) };
    assert_eq!(lone.hear(&foreign, &ping(2)), None, "a relay says that another node sent it");
    assert_eq!(lone.hear(&near, &Message::Pong { tx: TxId([3; 12]), src: addr("1.1.1.1:1") }), None, "nobody asked");
    assert_eq!(lone.sent(), []);
    assert_eq!(lone.paths.counters().rejected, 5);
}

#[test]
fn a_call_is_heard_by_relay_only_and_its_addresses_are_pinged() {
    let mut lone = Lone::new();
    let call = Message::CallMeMaybe { endpoints: vec![addr("1.1.1.1:1"), addr("[fe80::1]:1"), addr("2.2.2.2:2")] };
    assert_eq!(lone.hear(&udp("1.2.3.4:5"), &call), None);
    assert_eq!(lone.sent(), []);
    assert_eq!(lone.hear(&lone.relay(), &call), Some(PEER));
    let lanes: Vec<Lane> = lone.sent().into_iter().map(|(lane, _)| lane).collect();
    assert_eq!(lanes, [Lane::udp(addr("1.1.1.1:1")), Lane::udp(addr("2.2.2.2:2"))]);
    let next = Message::CallMeMaybe { endpoints: vec![addr("2.2.2.2:2"), addr("3.3.3.3:3")] };
    lone.hear(&lone.relay(), &next);
    let lanes: Vec<Lane> = lone.sent().into_iter().map(|(lane, _)| lane).collect();
    assert_eq!(lanes, [Lane::udp(addr("3.3.3.3:3"))], "the rest was pinged a moment ago");
}

#[test]
fn a_pong_from_another_address_proves_the_one_that_was_pinged() {
    let mut lone = Lone::new();
    lone.hear(&lone.relay(), &Message::CallMeMaybe { endpoints: vec![addr("1.1.1.1:1")] });
    let [(_, Message::Ping { tx, node: Some(node) })] = lone.sent()[..] else { panic!("one ping with our node key") };
    assert_eq!(node, NodeKey::from([8; 32]));
    let pong = Message::Pong { tx, src: addr("9.9.9.9:9") };
    assert_eq!(lone.hear(&udp("4.4.4.4:4"), &pong), Some(PEER));
    assert_eq!(lone.hear(&udp("4.4.4.4:4"), &pong), None, "each ping has one pong");
    assert_eq!(lone.paths.state(PEER), (PathState::Direct, Some(Lane::udp(addr("1.1.1.1:1")))));
    assert_eq!(lone.paths.peer_by_addr(&addr("4.4.4.4:4")), Some(PEER));
}

#[test]
fn a_pong_by_relay_or_after_the_address_was_withdrawn_proves_nothing() {
    let mut lone = Lone::new();
    let call = Message::CallMeMaybe { endpoints: vec![addr("1.1.1.1:1"), addr("2.2.2.2:2")] };
    lone.hear(&lone.relay(), &call);
    let txs: Vec<TxId> = lone
        .sent()
        .into_iter()
        .map(|(_, m)| match m {
            Message::Ping { tx, .. } => tx,
            other => panic!("{other:?}"),
        })
        .collect();
    let pong = |tx| Message::Pong { tx, src: addr("9.9.9.9:9") };
    assert_eq!(lone.hear(&lone.relay(), &pong(txs[0])), Some(PEER));
    lone.hear(&lone.relay(), &Message::CallMeMaybe { endpoints: Vec::new() });
    assert_eq!(lone.hear(&udp("2.2.2.2:2"), &pong(txs[1])), Some(PEER));
    assert_eq!(lone.paths.state(PEER).0, PathState::Relay);
}

#[test]
fn an_unanswered_ping_is_forgotten_after_five_seconds() {
    let mut lone = Lone::new();
    lone.hear(&lone.relay(), &Message::CallMeMaybe { endpoints: vec![addr("1.1.1.1:1")] });
    let [(_, Message::Ping { tx, .. })] = lone.sent()[..] else { panic!("one ping") };
    assert_eq!(lone.paths.poll_timeout(), Some(Deadline { at: NOW + secs(5), why: "ping expiry" }));
    lone.paths.handle_timeout(NOW + secs(5));
    assert_eq!(lone.hear(&udp("1.1.1.1:1"), &Message::Pong { tx, src: addr("9.9.9.9:9") }), None);
    assert_eq!(lone.paths.poll_timeout(), None);
}

#[test]
fn a_call_waits_for_fresh_addresses_but_not_for_ever() {
    let mut lone = Lone::new();
    let calls = |lone: &mut Lone| -> Vec<Message> { lone.sent().into_iter().map(|(_, m)| m).collect() };
    lone.paths.handle_sent(NOW, PEER, false, true);
    assert_eq!(calls(&mut lone), [], "a peer without candidates is called, but first come our addresses");
    let wants = |lone: &mut Lone| std::iter::from_fn(|| lone.paths.poll_event()).filter(|e| *e == Event::WantEndpoints).count();
    assert_eq!(wants(&mut lone), 1);
    lone.paths.set_own_endpoints(NOW + secs(1), vec![addr("5.5.5.5:5")]);
    assert_eq!(calls(&mut lone), [Message::CallMeMaybe { endpoints: vec![addr("5.5.5.5:5")] }]);
    // Fresh for 27 s: the next calls go out at once.
    for second in [7, 13, 19, 25] {
        lone.paths.handle_sent(NOW + secs(second), PEER, false, true);
        assert_eq!(calls(&mut lone).len(), 1, "{second}");
    }
    assert_eq!(wants(&mut lone), 0);
    lone.paths.handle_sent(NOW + secs(31), PEER, false, true);
    assert_eq!((calls(&mut lone).len(), wants(&mut lone)), (0, 1));
    lone.paths.handle_timeout(NOW + secs(34));
    assert_eq!(calls(&mut lone).len(), 1, "nobody answered");
}

#[test]
fn forbidding_direct_paths_withdraws_and_ignores_them() {
    let mut world = World::direct();
    let now = world.now;
    let calls = world.host(A).paths.counters().calls_sent;
    world.host(A).paths.set_direct_allowed(now, false);
    assert_eq!(world.state(A), PathState::Relay);
    let withdrawn = world.host(A).paths.counters().calls_sent - calls;
    assert_eq!(withdrawn, 1, "an empty call");
    for _ in 0..100 {
        world.say(A);
        world.say(B);
        world.run(ms(100));
    }
    assert_eq!((world.state(A), world.state(B)), (PathState::Relay, PathState::Relay));
    assert_eq!(world.host(A).paths.counters().calls_sent - calls, 1, "and no further one");
    let now = world.now;
    world.host(A).paths.set_direct_allowed(now, true);
    world.run_until_direct(secs(6), |world| _ = world.say(A));
}

#[test]
fn a_restarted_peer_is_a_new_one() {
    let mut world = World::direct();
    let mut addrs = world.addrs(B, true);
    addrs.disco = DiscoSecret::generate(&mut Rng::from_u64(77)).public();
    assert!(world.upsert(A, addrs.clone()));
    assert!(!world.upsert(A, addrs), "the same again is no news");
    assert_eq!(world.state(A), PathState::Relay);
    let now = world.now;
    let choice = world.host(A).paths.choose(now, PEER);
    assert!(choice.first.is_some_and(|lane| lane.is_relay()) && choice.second.is_none());
}

#[test]
fn a_new_home_relay_changes_no_direct_path() {
    let mut world = World::direct();
    let mut addrs = world.addrs(B, true);
    addrs.home = Some(region(77));
    assert!(!world.upsert(A, addrs));
    assert_eq!((world.state(A), world.changes(A)), (PathState::Direct, vec![]));
    world.cut(&[A, B]);
    let now = world.now;
    world.host(A).paths.rebind(now);
    let relay = world.host(A).paths.choose(now, PEER).second;
    assert!(matches!(relay, Some(Lane::Relay { region: r, .. }) if r == region(77)));
    world.host(A).paths.set_relay_route(PEER, Some(region(2)));
    let relay = world.host(A).paths.choose(now, PEER).second;
    assert!(matches!(relay, Some(Lane::Relay { region: r, .. }) if r == region(2)), "where it was seen last");
}

#[test]
fn a_ping_by_a_person_takes_the_way_of_the_packets() {
    let pong = |world: &mut World| {
        world.host(A).events.iter().find_map(|(_, e)| match *e {
            Event::Pong { token, latency, lane, .. } => Some((token, latency, lane.is_relay())),
            _ => None,
        })
    };
    let mut world = World::direct();
    let now = world.now;
    world.host(A).paths.ping(now, PEER, 1);
    world.run(secs(1));
    assert_eq!(pong(&mut world), Some((1, ms(40), false)));

    let mut world = World::new();
    world.cut(&[A, B]);
    let now = world.now;
    world.host(A).paths.ping(now, PEER, 2);
    world.run(secs(1));
    assert_eq!(pong(&mut world), Some((2, ms(60), true)));

    let mut world = World::new();
    world.relay = ms(500);
    let now = world.now;
    world.host(A).paths.ping(now, PEER, 3);
    world.run(secs(4));
    assert_eq!(pong(&mut world), Some((3, ms(40), false)), "the first pong of any kind counts");
    assert_eq!(world.state(A), PathState::Direct, "a ping counts as activity");
}

#[test]
fn a_removed_peer_leaves_nothing_behind() {
    let mut world = World::direct();
    world.host(A).paths.remove_peer(PEER);
    let now = world.now;
    assert_eq!(world.host(A).paths.poll_timeout(), None);
    assert_eq!(world.host(A).paths.peer_by_addr(&addr("10.0.0.2:4002")), None);
    assert_eq!(world.host(A).paths.choose(now, PEER), Choice { first: None, second: None });
    assert_eq!(world.host(A).paths.state(PEER), (PathState::None, None));
}

#[test]
fn two_nodes_of_one_process_share_a_disco_key() {
    let mut lone = Lone::new();
    let twin = NodeKey::from([6; 32]);
    let twin_ix = PeerIx(4);
    lone.paths.upsert_peer(NOW, twin_ix, Lone::addrs(&lone.voice, twin, &["1.1.1.1:1"]));
    assert_eq!(lone.hear(&udp("1.2.3.4:5"), &Message::Ping { tx: TxId([1; 12]), node: Some(twin) }), Some(twin_ix));
    assert_eq!(lone.paths.peer_by_addr(&addr("1.2.3.4:5")), Some(twin_ix));
    lone.hear(&udp("1.2.3.4:6"), &ping(2));
    assert_eq!(lone.paths.peer_by_addr(&addr("1.2.3.4:6")), None, "it could be either");
    assert_eq!(lone.sent().len(), 2);
    lone.paths.handle_sent(NOW, twin_ix, false, true);
    let tx = lone
        .sent()
        .into_iter()
        .find_map(|(lane, m)| match m {
            Message::Ping { tx, .. } if lane == Lane::udp(addr("1.1.1.1:1")) => Some(tx),
            _ => None,
        })
        .unwrap();
    let pong = Message::Pong { tx, src: addr("9.9.9.9:9") };
    assert_eq!(lone.hear(&udp("1.1.1.1:1"), &pong), Some(twin_ix), "pongs are matched by id, not by key");
    lone.paths.remove_peer(PEER);
    assert_eq!(lone.hear(&udp("1.2.3.4:7"), &ping(3)), Some(twin_ix));
}
