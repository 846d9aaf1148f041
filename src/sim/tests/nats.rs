//! Claims about pairs of NATs.

use super::{Conditions, HostIx, StreamIx, World, agent, client, connect, each_seed, ms, pair, secs, some_link};
use crate::{
    base::Rng,
    proto::path::PathState,
    sim::{Dependence, NatKind},
};

const KINDS: [Dependence; 3] = [Dependence::EndpointIndependent, Dependence::Address, Dependence::AddressAndPort];

/// Two hosts behind NATs with bytes flowing for 20 s.
fn behind(world: &mut World, rng: &mut Rng, a: NatKind, b: NatKind) -> (HostIx, HostIx, StreamIx, StreamIx) {
    let (client, agent) = pair(world, client().behind(a).on(some_link(rng)), agent().behind(b).on(some_link(rng)));
    world.set_echo(agent);
    let (stream, accepted) = connect(world, client, agent);
    for _ in 0..100 {
        world.write(client, stream, 2_000);
        world.run_for(ms(200));
    }
    world.run_for(secs(2));
    assert_eq!(world.received(client, stream), Some(200_000), "{a:?} x {b:?} {}", world.place());
    assert_eq!(world.received(agent, accepted), Some(200_000), "{a:?} x {b:?} {}", world.place());
    (client, agent, stream, accepted)
}

#[test]
fn easy_nats_become_direct() {
    each_seed(|world, rng| {
        let (client, agent, ..) = behind(world, rng, NatKind::EASY, NatKind::EASY);
        assert!(world.is_direct(client, agent), "{}", world.place());
    });
}

#[test]
fn hard_nats_stay_relayed_and_every_byte_arrives() {
    each_seed(|world, rng| {
        let (client, agent, ..) = behind(world, rng, NatKind::HARD, NatKind::HARD);
        for (from, to) in [(client, agent), (agent, client)] {
            assert_eq!(world.path(from, to).state, PathState::Relay, "{}", world.place());
            assert_eq!(world.counters(from).data_sent.udp, 0, "{}", world.place());
        }
    });
}

#[test]
fn every_pair_of_nats_reaches_what_the_rfc_allows() {
    let mut seed = 0;
    let kinds = || KINDS.iter().flat_map(|m| KINDS.iter().map(|f| NatKind { mapping: *m, filtering: *f, hairpin: false }));
    for a in kinds() {
        for b in kinds() {
            seed += 1;
            let mut world = World::new(seed);
            let mut rng = Rng::from_u64(seed);
            let (client, agent, ..) = behind(&mut world, &mut rng, a, b);
            assert_eq!(world.is_direct(client, agent), can_be_direct(a, b), "{a:?} x {b:?} {}", world.place());
        }
    }
}

/// Whether two nodes that know each other's STUN address, and answer to wherever a ping came from, can meet.
///
/// The side with a mapping for each destination is seen from a port that nobody was told. Its ping passes the other
/// NAT only when that one does not ask for the port; the answer then finds its way back. When both have such mappings,
/// one must let in strangers, and the other must not mind that the answer comes from a port it never wrote to.
fn can_be_direct(a: NatKind, b: NatKind) -> bool {
    let steady = |n: NatKind| n.mapping == Dependence::EndpointIndependent;
    let by_port = |n: NatKind| n.filtering == Dependence::AddressAndPort;
    let open = |n: NatKind| n.filtering == Dependence::EndpointIndependent;
    match (steady(a), steady(b)) {
        (true, true) => true,
        (true, false) => !by_port(a),
        (false, true) => !by_port(b),
        (false, false) => (open(a) && !by_port(b)) || (open(b) && !by_port(a)),
    }
}

#[test]
fn neighbours_behind_one_nat_meet_on_their_own_network() {
    each_seed(|world, rng| {
        let agent_host = world.add_host(agent().behind(NatKind::HARD).on(some_link(rng)));
        let client_host = world.add_neighbour(agent_host, client());
        world.add_tunnel(client_host, agent_host);
        connect(world, client_host, agent_host);
        assert!(world.run_until(secs(10), |w| w.is_direct(client_host, agent_host)), "{}", world.place());
    });
}

#[test]
fn a_router_that_forgets_its_mappings_breaks_no_stream() {
    each_seed(|world, rng| {
        let (client, agent, stream, accepted) = behind(world, rng, NatKind::EASY, NatKind::EASY);
        world.reset_nat(client);
        let reset = world.now();
        for n in 1..=150 {
            world.write(client, stream, 1);
            world.run_for(ms(100));
            if n == 10 {
                assert_eq!(world.received(agent, accepted), Some(200_010), "silent for a second: {}", world.place());
            }
        }
        assert!(world.is_direct(client, agent), "after {:?}: {}", world.now() - reset, world.place());
    });
}

#[test]
fn blocked_udp_stays_relayed_without_a_pause() {
    each_seed(|world, rng| {
        let (client, agent) = pair(world, client().on(Conditions { jitter: ms(5), ..some_link(rng) }), agent());
        world.set_udp_blocked(client, true);
        let (stream, accepted) = connect(world, client, agent);
        for n in 1..100 {
            world.write(client, stream, 1);
            world.run_for(ms(250));
            assert_eq!(world.received(agent, accepted), Some(n), "{}", world.place());
        }
    });
}
