//! Claims about nodes that move, sleep, or live in several regions.

use super::{Conditions, agent, client, connect, each_seed, ms, pair, secs, some_link};
use crate::{proto::path::PathState, sim::NatKind};

#[test]
fn a_client_that_moves_to_another_network_is_silent_for_a_second_at_most() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().behind(NatKind::EASY).on(some_link(rng)), agent().on(some_link(rng)));
        let (stream, accepted) = connect(world, client, agent);
        world.run_for(rng.between(secs(1), secs(10)));
        world.roam(client, Some(NatKind::EASY), some_link(rng));
        let moved = world.now();
        world.write(client, stream, 1);
        world.write(agent, accepted, 1);
        let arrived =
            world.run_until(secs(5), |w| w.received(agent, accepted) == Some(1) && w.received(client, stream) == Some(1));
        assert!(arrived && world.now() - moved <= secs(1), "{:?} {}", world.now() - moved, world.place());
        for _ in 0..100 {
            world.write(client, stream, 1);
            world.run_for(ms(100));
        }
        assert!(world.is_direct(client, agent), "{}", world.place());
    });
}

#[test]
fn a_relay_connection_that_died_with_the_network_is_replaced_within_four_seconds() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().relayed().on(some_link(rng)), agent().relayed().on(some_link(rng)));
        let (stream, accepted) = connect(world, client, agent);
        world.run_for(rng.between(secs(1), secs(100)));
        let dials = world.counters(client).relay_dials;
        world.roam_silently(client, None, some_link(rng));
        let moved = world.now();
        world.write(client, stream, 1);
        world.write(agent, accepted, 1);
        let arrived =
            world.run_until(secs(60), |w| w.received(agent, accepted) == Some(1) && w.received(client, stream) == Some(1));
        assert!(arrived && world.now() - moved <= secs(4), "{:?} {}", world.now() - moved, world.place());
        assert_eq!(world.counters(client).relay_dials, dials + 1, "{}", world.place());
    });
}

#[test]
fn nodes_with_different_homes_meet_through_either_region() {
    each_seed(|world, rng| {
        // The second region lies next to the agent, so that it becomes its home.
        world.add_relay(2, Conditions::with_latency(ms(1)));
        let far = Conditions::with_latency(ms(60));
        world.set_relay_link(super::super::EMBEDDED, far);
        let agent = world.add_host(agent().relayed().on(some_link(rng)));
        world.run_for(secs(5));
        assert_eq!(world.home(agent), Some(2), "{}", world.place());
        let client = world.add_host(client().relayed().on(some_link(rng)));
        world.add_tunnel(client, agent);
        let (stream, accepted) = connect(world, client, agent);
        for n in 1..=90 {
            world.write(client, stream, 1);
            world.write(agent, accepted, 1);
            world.run_for(secs(1));
            assert_eq!((world.received(agent, accepted), world.received(client, stream)), (Some(n), Some(n)));
        }
        assert_eq!(world.path(client, agent).state, PathState::Relay);
    });
}

#[test]
fn a_host_that_slept_goes_on_where_it_stopped() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().behind(NatKind::EASY).on(some_link(rng)), agent().on(some_link(rng)));
        let (stream, accepted) = connect(world, client, agent);
        world.run_for(secs(2));
        world.sleep(client, rng.between(secs(5), secs(12 * 3_600)));
        world.write(client, stream, 1);
        assert!(world.run_until(secs(10), |w| w.received(agent, accepted) == Some(1)), "{}", world.place());
    });
}

#[test]
fn a_rough_network_breaks_no_byte() {
    each_seed(|world, rng| {
        let rough = Conditions { loss: 0.02, reorder: 0.05, jitter: ms(10), ..some_link(rng) };
        let (client, agent) = pair(world, client().behind(NatKind::EASY).on(rough), agent().on(some_link(rng)));
        world.set_echo(agent);
        let (stream, _) = connect(world, client, agent);
        for step in 0..40_u64 {
            world.write(client, stream, 10_000);
            world.run_for(ms(200));
            match step % 10 {
                3 => world.set_cut(client, agent, true),
                7 => world.set_cut(client, agent, false),
                9 => world.reset_nat(client),
                _ => {}
            }
        }
        world.set_cut(client, agent, false);

        let done = world.run_until(secs(60), |w| w.received(client, stream) == Some(400_000));
        assert!(done, "{:?} {}", world.received(client, stream), world.place());
    });
}
