//! From the relay to the direct path, and quiet.

use super::*;

#[test]
fn the_first_packet_goes_by_relay_and_the_path_is_direct_one_round_trip_later() {
    let mut world = World::new();
    let start = world.now;
    assert_eq!(world.state(A), PathState::Relay);
    let byte = world.say(A);
    world.run(secs(1));
    assert_eq!(world.host(B).read[&byte], start + ms(30));
    assert_eq!(world.changes(A), [(start, PathState::Relay), (start + ms(40), PathState::Direct)]);
    assert_eq!(world.state(B), PathState::Direct);
    let (_, lane) = world.host(A).paths.state(PEER);
    assert_eq!(lane, Some(Lane::udp(addr("10.0.0.2:4002"))));
    assert_eq!(world.host(A).paths.peer_by_addr(&addr("10.0.0.2:4002")), Some(PEER));
    world.forget();
    world.say(A);
    world.run(secs(1));
    assert_eq!((world.relayed_data(A), world.relayed_data(B)), (0, 0));
}

#[test]
fn peers_that_know_no_address_of_each_other_meet_by_calls() {
    for firewall in [false, true] {
        let mut world = World::with_endpoints(false);
        world.firewall = firewall;
        world.say(A);
        let took = world.run_until_direct(secs(7), |_| {});
        assert!(took < secs(6), "firewall {firewall}: {took:?}");
        assert!(world.host(A).paths.counters().calls_sent >= 1);
    }
}

#[test]
fn firewalls_on_both_sides_are_opened_by_pings_from_both_sides() {
    let mut world = World::new();
    world.firewall = true;
    world.say(A);
    world.run_until_direct(secs(1), |_| {});
}

#[test]
fn an_endpoint_learned_later_is_pinged_at_once_while_packets_flow() {
    let mut world = World::with_endpoints(false);
    for side in [A, B] {
        world.host(side).own.clear();
    }
    world.say(A);
    world.run(secs(1));
    assert_eq!(world.state(A), PathState::Relay);
    let mut addrs = world.addrs(B, false);
    addrs.endpoints = vec![addr("10.0.0.2:4002")];
    world.upsert(A, addrs);
    world.run(ms(41));
    assert_eq!(world.state(A), PathState::Direct);
}

#[test]
fn nothing_is_pinged_before_the_first_packet() {
    let mut world = World::new();
    world.run(secs(60));
    assert_eq!(world.host(A).sent, []);
    assert_eq!(world.host(A).paths.poll_timeout(), None);
}

#[test]
fn an_idle_pair_goes_quiet_after_45_seconds() {
    let mut world = World::direct();
    let start = world.now;
    world.run(secs(300));
    for side in [A, B] {
        let last = world.host(side).sent.last().map(|(at, ..)| *at).unwrap();
        assert!((secs(40)..secs(55)).contains(&(last - start)), "{side:?} {:?}", last - start);
        assert_eq!(world.host(side).paths.poll_timeout(), None);
        assert_eq!(world.changes(side), [], "falling asleep is no change");
    }
    world.forget();
    let byte = world.say(A);
    world.run(secs(1));
    assert!(world.host(B).read.contains_key(&byte));
    assert_eq!(world.relayed_data(A), 1, "after the sleep the first packet goes both ways");
    assert_eq!(world.state(A), PathState::Direct);
    assert_eq!((world.suspects(A), world.suspects(B)), (vec![], vec![]));
}

#[test]
fn the_upgrade_of_a_stream_over_a_slow_relay_raises_no_suspicion() {
    for relay in [1, 20, 100, 200] {
        let mut world = World::with_endpoints(false);
        world.relay = ms(relay);
        for _ in 0..1_000 {
            world.say(A);
            world.say(B);
            world.run(ms(5));
        }
        assert_eq!(world.state(A), PathState::Direct, "relay {relay}");
        assert_eq!((world.suspects(A), world.suspects(B)), (vec![], vec![]), "relay {relay}");
        let ups = |side| world.changes(side).len();
        assert_eq!((ups(A), ups(B)), (2, 2), "relay {relay}");
    }
}

#[test]
fn a_path_that_drops_full_size_packets_is_never_used() {
    let mut world = World::new();
    world.lose = Box::new(|_, frame| frame.len() > 1_311);
    for _ in 0..30 {
        world.say(A);
        world.run(secs(1));
    }
    assert_eq!(world.state(A), PathState::Relay);
    assert!(world.host(A).paths.counters().pings_sent > 3);
}

#[test]
fn a_direct_path_stays_direct_for_ten_minutes_without_a_pong() {
    let mut world = World::direct();
    world.lose = Box::new(|_, frame| frame.is_disco());
    for tick in 0..6_000_u64 {
        world.say(if tick % 3 == 0 { A } else { B });
        world.run(ms(100));
    }
    for side in [A, B] {
        assert_eq!(world.changes(side), []);
        assert_eq!(world.suspects(side), []);
        assert_eq!(world.relayed_data(side), 0);
    }
}

#[test]
fn a_better_address_is_taken_and_a_worse_one_is_not() {
    let (worse, better) = (addr("10.0.0.8:8"), addr("10.0.0.9:9"));
    let mut world = World::new();
    world.aliases.insert(worse, (B, ms(35)));
    let mut addrs = world.addrs(B, true);
    addrs.endpoints.push(worse);
    world.upsert(A, addrs.clone());
    let talk = |world: &mut World, seconds: u32| {
        for _ in 0..seconds {
            world.say(A);
            world.run(secs(1));
        }
    };
    talk(&mut world, 70);
    assert_eq!(world.host(A).paths.state(PEER), (PathState::Direct, Some(Lane::udp(addr("10.0.0.2:4002")))));
    world.aliases.insert(better, (B, ms(3)));
    addrs.endpoints.push(better);
    world.upsert(A, addrs);
    world.forget();
    talk(&mut world, 61);
    assert_eq!(world.host(A).paths.state(PEER), (PathState::Direct, Some(Lane::udp(better))));
    assert_eq!((world.relayed_data(A), world.suspects(A)), (0, vec![]), "and nobody noticed");
}

#[test]
fn a_slow_path_looks_for_a_better_one_every_minute() {
    let mut world = World::direct();
    let mut addrs = world.addrs(B, true);
    addrs.endpoints.push(addr("203.0.113.1:1"));
    world.upsert(A, addrs);
    for _ in 0..61 {
        world.say(A);
        world.run(secs(1));
    }
    let calls = world.host(A).paths.counters().calls_sent;
    for _ in 0..125 {
        world.say(A);
        world.run(secs(1));
    }
    let made = world.host(A).paths.counters().calls_sent - calls;
    assert!((2..=3).contains(&made), "{made} calls in 125 s");
    world.direct = ms(1);
    world.run(ms(100));
    let calls = world.host(A).paths.counters().calls_sent;
    for _ in 0..125 {
        world.say(A);
        world.run(secs(1));
    }
    assert_eq!(world.host(A).paths.counters().calls_sent - calls, 0, "2 ms are good enough");
}
