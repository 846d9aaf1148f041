//! Test support: a virtual network with NATs, relays and its own clock.

mod coordinator;
pub mod fuzz;
mod host;
mod internet;
mod link;
mod nat;
mod relay;
mod stream;
mod world;

pub use internet::{End, HostIx, Losses, PipeIx, SiteIx};
pub use link::Conditions;
pub use nat::{Dependence, NatKind};
pub use stream::{Condition, StreamIx};
pub use world::{EMBEDDED, HostConfig, World};

#[cfg(test)]
mod tests {
    mod control;
    mod direct;
    mod moves;
    mod nats;
    mod relayed;

    use super::{Conditions, HostConfig, HostIx, StreamIx, World};
    use crate::{base::Rng, proto::node::Role};
    use std::time::Duration;

    /// How many seeds each claim is tried with.
    const SEEDS: u64 = 100;

    pub(super) const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    pub(super) const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// A world that tells its seed and time when a claim fails.
    struct Told(World);

    impl Drop for Told {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed with {}; again: TAILNET_SEED=<seed>", self.0.place());
            }
        }
    }

    /// Runs a claim with every seed, or with the one in `TAILNET_SEED`.
    pub(super) fn each_seed(claim: impl Fn(&mut World, &mut Rng)) {
        let one = std::env::var("TAILNET_SEED").ok().map(|s| s.parse().expect("TAILNET_SEED is a number"));
        for seed in one.map_or(0..SEEDS, |seed: u64| seed..seed + 1) {
            let mut told = Told(World::new(seed));
            claim(&mut told.0, &mut Rng::from_u64(!seed));
        }
    }

    /// A clean link of 2 to 40 ms.
    pub(super) fn some_link(rng: &mut Rng) -> Conditions {
        Conditions::with_latency(rng.between(ms(2), ms(40)))
    }

    /// A client and an agent with a tunnel wanted between them.
    pub(super) fn pair(world: &mut World, client: HostConfig, agent: HostConfig) -> (HostIx, HostIx) {
        let agent = world.add_host(agent);
        let client = world.add_host(client);
        world.add_tunnel(client, agent);
        (client, agent)
    }

    pub(super) fn client() -> HostConfig {
        HostConfig::new(Role::Client)
    }

    pub(super) fn agent() -> HostConfig {
        HostConfig::new(Role::Agent)
    }

    /// A connection from client to agent with its accepted end, open.
    pub(super) fn connect(world: &mut World, client: HostIx, agent: HostIx) -> (StreamIx, StreamIx) {
        let before = world.accepted(agent).len();
        let stream = world.dial(client, agent, 22);
        let open = world.run_until(secs(10), |w| w.opened_at(client, stream).is_some() && w.accepted(agent).len() > before);
        assert!(open, "no connection: {}", world.place());
        let accepted = world.accepted(agent).last().copied().expect("one was accepted");
        (stream, accepted)
    }
}
