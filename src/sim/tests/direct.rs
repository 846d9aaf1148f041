//! Claims about the way from the relay to a direct path and back.

use super::{Conditions, HostIx, StreamIx, World, agent, client, connect, each_seed, ms, pair, secs, some_link};
use crate::{base::Rng, proto::path::PathState, wire::disco};
use std::time::Duration;

/// A client and an agent on some links, connected, direct for a while.
fn direct_pair(world: &mut World, rng: &mut Rng) -> (HostIx, HostIx, StreamIx, StreamIx) {
    let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
    let (stream, accepted) = connect(world, client, agent);
    assert!(world.run_until(secs(10), |w| w.is_direct(client, agent)), "never direct: {}", world.place());
    (client, agent, stream, accepted)
}

/// Writes a byte at one end every `every` for `time`.
fn tick(world: &mut World, host: HostIx, stream: StreamIx, every: Duration, time: Duration) {
    let end = world.now() + time;
    while world.now() < end {
        world.write(host, stream, 1);
        world.run_for(every);
    }
}

#[test]
fn the_upgrade_to_direct_costs_no_timeout_and_at_most_three_segments() {
    each_seed(|world, rng| {
        let link = |rng: &mut Rng| Conditions { rate: Some(2_500_000), ..some_link(rng) };
        let (client, agent) = pair(world, client().on(link(rng)), agent().on(link(rng)));
        let (stream, accepted) = connect(world, client, agent);
        let rate = Duration::from_millis(20);
        for _ in 0..250 {
            world.write(client, stream, 10_000);
            world.write(agent, accepted, 10_000);
            world.run_for(rate);
        }
        assert!(world.is_direct(client, agent), "{}", world.place());
        for (host, stream) in [(client, stream), (agent, accepted)] {
            let stats = world.flow_stats(host, stream).expect("the flow lives");
            assert_eq!(stats.timeouts, 0, "{stats:?} {}", world.place());
            assert!(stats.retransmits <= 3, "{stats:?} {}", world.place());
            assert!(world.received(host, stream).is_some_and(|n| n > 2_000_000), "{}", world.place());
        }
        let relayed = world.counters(client).data_sent.relay;
        world.write(client, stream, 100_000);
        world.run_for(secs(1));
        assert_eq!(world.counters(client).data_sent.relay, relayed, "data by relay after the upgrade: {}", world.place());
    });
}

#[test]
fn a_byte_typed_when_the_direct_path_dies_is_read_half_a_second_later() {
    each_seed(|world, rng| {
        let (client, agent, stream, accepted) = direct_pair(world, rng);
        let (writer, end, reader, other) =
            if rng.chance(0.5) { (client, stream, agent, accepted) } else { (agent, accepted, client, stream) };
        tick(world, writer, end, rng.between(ms(50), ms(900)), rng.between(secs(3), secs(20)));
        let before = world.received(reader, other).expect("intact");
        world.run_for(rng.between(ms(300), secs(2)));
        world.set_cut(client, agent, true);
        let typed = world.now();
        world.write(writer, end, 1);
        let all = before + 1;
        assert!(world.run_until(secs(5), |w| w.received(reader, other) >= Some(all)), "{}", world.place());
        let silence = world.now() - typed;
        assert!(silence <= ms(500), "{silence:?} {}", world.place());
    });
}

#[test]
fn the_pair_is_direct_again_ten_seconds_after_the_repair() {
    each_seed(|world, rng| {
        let (client, agent, stream, accepted) = direct_pair(world, rng);
        tick(world, client, stream, ms(100), secs(2));
        world.set_cut(client, agent, true);
        tick(world, client, stream, ms(100), rng.between(secs(1), secs(40)));
        assert!(!world.is_direct(client, agent), "{}", world.place());
        world.set_cut(client, agent, false);
        let repaired = world.now();
        while !world.is_direct(client, agent) {
            tick(world, client, stream, ms(100), ms(100));
            assert!(world.now() - repaired <= secs(10), "{}", world.place());
        }
        world.run_for(secs(1));
        assert_eq!(world.received(agent, accepted), Some(world.written(client, stream)), "{}", world.place());
    });
}

#[test]
fn no_pong_for_ten_minutes_changes_no_path_while_data_arrives() {
    each_seed(|world, rng| {
        let (client, agent, stream, accepted) = direct_pair(world, rng);
        world.set_echo(agent);
        world.run_for(secs(1));
        world.set_filter(Some(disco::looks_like));
        let changes = [client, agent].map(|host| world.path_changes(host).len());
        let end = world.now() + secs(600);
        while world.now() < end {
            world.write(client, stream, 1);
            world.write(agent, accepted, 1);
            world.run_for(rng.between(ms(50), secs(4)));
        }
        let after = [client, agent].map(|host| world.path_changes(host).len());
        assert_eq!(changes, after, "{:?} {}", world.path_changes(client), world.place());
        assert!(world.is_direct(client, agent));
    });
}

#[test]
fn an_idle_pair_is_direct_again_with_the_next_bytes() {
    each_seed(|world, rng| {
        let (client, agent, stream, accepted) = direct_pair(world, rng);
        world.run_for(rng.between(secs(60), secs(600)));
        world.write(client, stream, 1);
        let sent = world.now();
        assert!(world.run_until(secs(2), |w| w.received(agent, accepted) == Some(1)), "{}", world.place());
        assert!(world.now() - sent <= ms(500), "{}", world.place());
        assert!(world.run_until(secs(10), |w| w.is_direct(client, agent)), "{}", world.place());
    });
}

#[test]
fn an_idle_pair_wakes_rarely() {
    each_seed(|world, rng| {
        let (client, agent, stream, accepted) = direct_pair(world, rng);
        // What belongs to the start ends.
        world.run_for(secs(60));
        let mut steps = 0_u32;
        let minutes = 10_u32;
        // Looked at once a step: a deadline of one of the nodes, the relay or the coordinator, or something that arrives.
        world.run_until(secs(u64::from(60 * minutes)), |_| {
            steps += 1;
            false
        });
        let rate = f64::from(steps) / f64::from(minutes * 60);
        assert!(rate < 4.0, "{rate} steps a second in an idle world: {}", world.place());
        assert!(world.condition(client, stream) == world.condition(agent, accepted), "{}", world.place());
    });
}

#[test]
fn a_path_too_narrow_for_full_packets_is_never_used() {
    each_seed(|world, rng| {
        // Holds everything but a WireGuard packet of full size.
        let narrow = Conditions { mtu: 1_339, ..some_link(rng) };
        let (client, agent) = pair(world, client().on(narrow), agent().on(some_link(rng)));
        let (stream, accepted) = connect(world, client, agent);
        world.write(client, stream, 200_000);
        assert!(world.run_until(secs(60), |w| w.received(agent, accepted) == Some(200_000)), "{}", world.place());
        assert_eq!(world.path(client, agent).state, PathState::Relay, "{}", world.place());
        assert_eq!(world.path(agent, client).state, PathState::Relay, "{}", world.place());
    });
}
