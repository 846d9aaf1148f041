//! Claims about tunnels through a relay.

use super::{agent, client, connect, each_seed, ms, pair, secs, some_link};

#[test]
fn two_nodes_carry_one_tcp_byte_over_a_relay() {
    each_seed(|world, _| {
        let (client, agent) = pair(world, client().relayed(), agent().relayed());
        let (stream, accepted) = connect(world, client, agent);
        world.write(client, stream, 1);
        assert!(world.run_until(secs(1), |w| w.received(agent, accepted) == Some(1)), "{}", world.place());
        for host in [client, agent] {
            let counters = world.counters(host);
            assert_eq!(counters.data_sent.udp + counters.data_received.udp, 0, "{}", world.place());
            assert!(counters.data_sent.relay > 0 && counters.data_received.relay > 0);
        }
    });
}

#[test]
fn data_flows_by_relay_within_two_round_trips_of_being_told_of_each_other() {
    each_seed(|world, rng| {
        let agent = world.add_host(agent().on(some_link(rng)));
        let client = world.add_host(client().on(some_link(rng)));
        world.set_udp_blocked(client, true);
        world.run_for(secs(2));
        world.dial(client, agent, 22);
        world.add_tunnel(client, agent);
        let round_trip = world.relayed_round_trip(client, agent);
        assert!(world.run_until(secs(2), |w| w.told_at(client).is_some() && w.told_at(agent).is_some()));
        let told = world.told_at(client).max(world.told_at(agent)).expect("both were told");
        let limit = told + 2 * round_trip + ms(1);
        assert!(world.run_until(secs(10), |w| w.counters(agent).data_received.relay > 0));
        assert!(world.now() <= limit, "{:?} instead of {limit:?}, {}", world.now(), world.place());
        let counters = world.counters(client);
        assert_eq!((counters.initiations_sent, counters.syns_sent), (1, 1), "{}", world.place());
    });
}

#[test]
fn bulk_through_a_relay_arrives_whole_in_both_directions() {
    each_seed(|world, rng| {
        let lossy = super::Conditions { loss: 0.01, jitter: ms(3), ..some_link(rng) };
        let (client, agent) = pair(world, client().relayed().on(lossy), agent().relayed());
        world.set_echo(agent);
        let (stream, accepted) = connect(world, client, agent);
        world.write(client, stream, 2_000_000);
        assert!(world.run_until(secs(120), |w| w.received(client, stream) == Some(2_000_000)), "{}", world.place());
        assert_eq!(world.received(agent, accepted), Some(2_000_000));
    });
}

#[test]
fn a_relay_that_restarts_breaks_no_stream() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().relayed().on(some_link(rng)), agent().relayed());
        let (stream, accepted) = connect(world, client, agent);
        world.write(client, stream, 1);
        world.run_for(rng.between(secs(1), secs(30)));
        world.restart_relay(super::super::EMBEDDED);
        world.run_for(ms(1));
        world.write(client, stream, 100_000);
        assert!(world.run_until(secs(15), |w| w.received(agent, accepted) == Some(100_001)), "{}", world.place());
    });
}
