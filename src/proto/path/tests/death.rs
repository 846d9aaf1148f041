//! Paths that die, wholly or in one direction, and come back.

use super::*;

const BOTH: &[Side] = &[A, B];

#[test]
fn a_byte_typed_at_the_instant_of_death_is_read_within_half_a_second() {
    for (direct, relay) in [(1, 2), (20, 30), (20, 100), (60, 60)] {
        for phase in 0..20 {
            let mut world = World::direct();
            (world.direct, world.relay) = (ms(direct), ms(relay));
            for _ in 0..100 {
                world.say(A);
                world.run(ms(50));
                world.say(B);
                world.run(ms(50));
            }
            world.run(ms(phase * 5));
            world.forget();
            world.cut(BOTH);
            let start = world.now;
            let mut bytes = Vec::new();
            for side in BOTH {
                let byte = world.say(*side);
                bytes.push((side.other(), byte));
            }
            world.run(secs(3));
            for (reader, byte) in bytes {
                let read = world.host(reader).read[&byte] - start;
                assert!(read <= ms(500), "direct {direct} relay {relay} phase {phase}: {read:?}");
            }
        }
    }
}

#[test]
fn a_stream_is_silent_for_less_than_half_a_second_and_goes_on_by_relay() {
    for talker in BOTH {
        let mut world = World::direct();
        let mut bytes = Vec::new();
        for tick in 0..300 {
            if tick == 50 {
                world.cut(BOTH);
            }
            bytes.push((world.now, world.say(*talker)));
            world.run(ms(100));
        }
        let read = &world.hosts[talker.other() as usize].read;
        let slowest = bytes.iter().take(299).map(|(sent, byte)| read[byte] - *sent).max().unwrap();
        assert!(slowest <= ms(400), "{slowest:?}");
        assert_eq!(world.state(*talker), PathState::Relay, "after some seconds the dead path is given up");
        world.forget();
        world.say(*talker);
        world.run(secs(1));
        assert!(world.relayed_data(*talker) > 0);
    }
}

#[test]
fn the_path_is_direct_again_within_ten_seconds_of_its_repair() {
    for outage in [0, 1, 3, 6, 7, 20, 61] {
        for talkers in [&[A][..], &[B], BOTH] {
            let mut world = World::direct();
            world.firewall = true;
            world.cut(BOTH);
            for _ in 0..outage * 10 {
                talkers.iter().for_each(|side| _ = world.say(*side));
                world.run(ms(100));
            }
            world.repair();
            let mut tick = 0_u32;
            let took = world.run_until_direct(secs(10), |world| {
                tick += 1;
                if tick.is_multiple_of(10) {
                    talkers.iter().for_each(|side| _ = world.say(*side));
                }
            });
            assert!(took <= secs(6), "outage {outage} s, {talkers:?}: {took:?}");
        }
    }
}

#[test]
fn the_receiver_of_a_stream_answers_by_relay_as_soon_as_the_sender_does() {
    let mut world = World::direct();
    for _ in 0..20 {
        world.say(A);
        world.run(ms(100));
    }
    world.cut(BOTH);
    let start = world.now;
    world.say(A);
    world.run(ms(300));
    assert_eq!(world.suspects(A), [start + ms(120)]);
    assert_eq!(world.suspects(B), [start + ms(150)], "relayed data on a trusted path makes it suspect");
    assert!(world.host(A).open.is_empty(), "the acknowledgement came by relay");
}

#[test]
fn a_path_that_is_dead_in_one_direction_does_not_swallow_every_other_byte() {
    for dead in [&[A][..], &[B]] {
        for talkers in [&[A][..], &[B], BOTH] {
            let mut world = World::direct();
            let mut bytes = Vec::new();
            for tick in 0..200 {
                if tick == 30 {
                    world.cut(if dead == [A] { &[A] } else { &[B] });
                }
                talkers.iter().for_each(|side| bytes.push((*side, world.now, world.say(*side))));
                world.run(ms(100));
            }
            world.run(secs(2));
            let late =
                bytes.iter().filter(|(side, sent, byte)| world.hosts[side.other() as usize].read[byte] - *sent > ms(60)).count();
            let slowest =
                bytes.iter().map(|(side, sent, byte)| world.hosts[side.other() as usize].read[byte] - *sent).max().unwrap();
            assert!(slowest <= ms(500), "dead {dead:?} talkers {talkers:?}: {slowest:?}");
            assert!(late <= 12, "dead {dead:?} talkers {talkers:?}: {late} late bytes");
        }
    }
}

#[test]
fn a_receiver_whose_acknowledgements_are_lost_learns_it_from_the_copies() {
    let mut world = World::direct();
    world.cut(&[B]);
    for _ in 0..30 {
        world.say(A);
        world.run(ms(100));
    }
    assert_ne!(world.state(B), PathState::Direct, "data keeps coming directly, and yet");
    world.forget();
    world.say(A);
    world.run(ms(200));
    assert!(world.host(A).open.is_empty(), "acknowledged by relay");
}

#[test]
fn one_lost_packet_costs_a_moment_of_copies_and_nothing_else() {
    for loser in BOTH {
        let mut world = World::direct();
        let mut left = 1;
        let loser = *loser;
        world.lose = Box::new(move |from, frame| {
            let hit = from == loser && !frame.is_disco() && left > 0;
            left -= i32::from(hit);
            hit
        });
        let byte = world.say(A);
        world.run(ms(250));
        assert!(world.host(B).read.contains_key(&byte));
        world.run(secs(1));
        assert_eq!((world.state(A), world.state(B)), (PathState::Direct, PathState::Direct));
        world.forget();
        for _ in 0..200 {
            world.say(A);
            world.say(B);
            world.run(ms(100));
        }
        assert_eq!((world.relayed_data(A), world.relayed_data(B)), (0, 0), "no echo of the suspicion");
    }
}

#[test]
fn random_loss_never_takes_a_busy_path_down() {
    let mut world = World::direct();
    let mut rng = Rng::from_u64(99);
    world.lose = Box::new(move |_, _| rng.chance(0.02));
    let mut relayed = 0;
    for _ in 0..6_000 {
        world.say(A);
        world.say(B);
        world.run(ms(20));
        relayed += usize::from(world.state(A) != PathState::Direct);
    }
    assert!(relayed < 300, "{relayed} of 6000 ticks in doubt");
    assert!(world.changes(A).iter().all(|(_, to)| *to != PathState::Relay));
}

#[test]
fn a_peer_that_moves_is_followed() {
    let mut world = World::direct();
    let new = addr("192.0.2.7:700");
    world.host(A).addr = new;
    let start = world.now;
    let mut bytes = Vec::new();
    for _ in 0..20 {
        for side in BOTH {
            bytes.push((*side, world.now, world.say(*side)));
        }
        world.run(ms(100));
    }
    world.run(secs(2));
    for (side, sent, byte) in bytes {
        let took = world.host(side.other()).read[&byte] - sent;
        assert!(took <= ms(300), "{side:?} {took:?}");
    }
    assert_eq!(world.host(B).paths.state(PEER), (PathState::Direct, Some(Lane::udp(new))));
    assert!(world.suspects(B)[0] - start <= ms(25), "unknown source, known peer");
}

#[test]
fn data_from_elsewhere_moves_nothing_without_a_pong() {
    let mut world = World::direct();
    let now = world.now;
    let elsewhere = Via::Udp { socket: SocketIx::V4, from: addr("203.0.113.9:9") };
    world.host(A).paths.handle_authenticated(now, PEER, &elsewhere, true);
    world.run(ms(100));
    let (state, lane) = world.host(A).paths.state(PEER);
    assert_eq!((state, lane), (PathState::Direct, Some(Lane::udp(addr("10.0.0.2:4002")))));
    assert_eq!(world.host(A).paths.peer_by_addr(&addr("203.0.113.9:9")), None);
}

#[test]
fn a_change_of_our_network_sends_both_ways_at_once() {
    let mut world = World::direct();
    world.say(A);
    world.run(ms(10));
    let now = world.now;
    world.host(A).paths.rebind(now);
    assert_eq!(world.state(A), PathState::Doubtful);
    world.flush();
    assert_eq!(world.suspects(A), [now]);
    world.run(ms(41));
    assert_eq!(world.state(A), PathState::Direct);
}

#[test]
fn a_dead_best_address_gives_way_to_a_slower_one_that_answers() {
    let mut world = World::new();
    let second = addr("10.9.9.9:900");
    let mut addrs = world.addrs(B, true);
    addrs.endpoints.push(second);
    world.upsert(A, addrs);
    for _ in 0..10 {
        world.say(A);
        world.run(ms(100));
    }
    assert_eq!(world.host(A).paths.state(PEER).1, Some(Lane::udp(addr("10.0.0.2:4002"))));
    world.host(B).addr = second;
    world.direct = ms(90);
    for _ in 0..60 {
        world.say(A);
        world.run(ms(100));
    }
    assert_eq!(world.host(A).paths.state(PEER), (PathState::Direct, Some(Lane::udp(second))));
}
