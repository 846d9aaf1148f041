//! Claims about the control plane: restarts, departures, silence.

use super::{World, agent, client, connect, each_seed, ms, pair, secs, some_link};
use crate::{
    proto::node::{DialFailure, Gone, PingKind},
    sim::Condition,
};

#[test]
fn an_agent_that_comes_back_with_a_new_key_ends_its_old_flows_at_once() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
        let (stream, _) = connect(world, client, agent);
        world.write(client, stream, 10);
        world.run_for(rng.between(secs(1), secs(20)));
        world.restart(agent);
        let back = world.now();
        let ended = world.run_until(secs(20), |w| w.condition(client, stream) == Some(Condition::Closed));
        assert!(ended, "{}", world.place());
        assert!(world.now() - back <= secs(2), "{:?} {}", world.now() - back, world.place());
        assert!(world.gone(client).iter().any(|(_, why)| *why == Gone::Restarted), "{}", world.place());
        let (stream, accepted) = connect(world, client, agent);
        assert!(world.now() - back <= secs(8), "{:?} {}", world.now() - back, world.place());
        world.write(client, stream, 10);
        assert!(world.run_until(secs(2), |w| w.received(agent, accepted) == Some(10)), "{}", world.place());
    });
}

#[test]
fn tunnels_go_on_when_the_coordinator_is_gone() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
        let (stream, accepted) = connect(world, client, agent);
        world.stop_coordinator();
        for n in 1..=300 {
            world.write(client, stream, 1);
            world.run_for(secs(2));
            assert!(world.received(agent, accepted) >= Some(n - 1), "{}", world.place());
        }
        let (_, more) = connect(world, client, agent);
        assert_ne!(more, accepted);
        world.start_coordinator();
        world.run_for(secs(30));
        world.write(client, stream, 1);
        world.run_for(secs(2));
        assert_eq!(world.received(agent, accepted), Some(301), "{}", world.place());
        assert_eq!(world.gone(client), [], "{}", world.place());
    });
}

#[test]
fn a_client_that_says_goodbye_is_gone_at_once() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
        let (_, accepted) = connect(world, client, agent);
        world.run_for(secs(1));
        world.disconnect(client);
        assert!(world.run_until(secs(1), |w| !w.gone(agent).is_empty()), "{}", world.place());
        assert_eq!(world.condition(agent, accepted), Some(Condition::Closed), "{}", world.place());
    });
}

#[test]
fn a_killed_client_is_gone_within_half_a_minute_with_its_streams() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
        let (_, accepted) = connect(world, client, agent);
        world.run_for(rng.between(secs(1), secs(600)));
        world.kill(client);
        assert!(world.run_until(secs(35), |w| !w.gone(agent).is_empty()), "{}", world.place());
        assert_eq!(world.gone(agent)[0].1, Gone::Lost, "{}", world.place());
        assert_eq!(world.condition(agent, accepted), Some(Condition::Closed), "{}", world.place());
    });
}

#[test]
fn a_client_without_its_coordinator_and_long_idle_is_asked_and_stays() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
        let (stream, accepted) = connect(world, client, agent);
        world.stop_coordinator();
        world.run_for(rng.between(secs(1_000), secs(2_500)));
        world.write(client, stream, 1);
        assert!(world.run_until(secs(10), |w| w.received(agent, accepted) == Some(1)), "{}", world.place());
        assert_eq!((world.gone(client), world.gone(agent)), (&[][..], &[][..]), "{}", world.place());
    });
}

#[test]
fn a_broken_control_socket_changes_nothing_for_a_stream() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
        let (stream, accepted) = connect(world, client, agent);
        for n in 1..=20 {
            world.break_control(if rng.chance(0.5) { client } else { agent });
            world.write(client, stream, 1);
            world.run_for(secs(2));
            assert_eq!(world.received(agent, accepted), Some(n), "{}", world.place());
        }
        assert_eq!((world.gone(client), world.gone(agent)), (&[][..], &[][..]), "{}", world.place());
        let counters = world.counters(client);
        assert_eq!(counters.initiations_sent, 1, "{counters:?} {}", world.place());
    });
}

#[test]
fn every_kind_of_ping_is_answered() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
        let kinds = [PingKind::Disco, PingKind::Tsmp, PingKind::Icmp];
        for (n, kind) in kinds.into_iter().enumerate() {
            let ping = world.ping(client, agent, kind).expect("the agent has an address");
            assert!(world.run_until(secs(5), |w| w.pongs(client).len() > n), "{kind:?} {}", world.place());
            let (answered, latency, lane) = world.pongs(client)[n];
            assert_eq!(answered, ping);
            assert!(latency > ms(1) && latency < secs(2), "{latency:?}");
            assert_eq!(lane.is_some(), kind == PingKind::Disco);
        }
    });
}

#[test]
fn a_node_announces_itself_only_when_something_changed() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
        connect(world, client, agent);
        world.run_for(secs(10));
        let before = [client, agent].map(|host| world.announcements(host));
        assert!(before.iter().all(|n| *n <= 3), "{before:?} {}", world.place());
        world.run_for(secs(300));
        assert_eq!(before, [client, agent].map(|host| world.announcements(host)), "{}", world.place());
    });
}

#[test]
fn fifty_connects_in_a_row_repeat_no_handshake_no_syn_and_no_relay_dial() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(some_link(rng)), agent().on(some_link(rng)));
        for _ in 0..50 {
            connect(world, client, agent);
        }
        for host in [client, agent] {
            let counters = world.counters(host);
            assert_eq!((counters.syns_sent, counters.relay_dials), (50, 1), "{counters:?} {}", world.place());
        }
        assert_eq!(world.counters(client).initiations_sent, 1, "{}", world.place());
        assert_eq!(world.counters(agent).initiations_sent, 0, "{}", world.place());
    });
}

#[test]
fn an_agent_that_never_comes_fails_the_dial_with_its_reason() {
    let mut world = World::new(1);
    let agent = world.add_host(agent());
    let client = world.add_host(client());
    let stream = world.dial(client, agent, 22);
    world.run_for(secs(70));
    assert_eq!(world.condition(client, stream), Some(Condition::Failed(DialFailure::UnknownPeer)));
}
