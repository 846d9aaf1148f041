//! Whole networks: what happens is read from bytes, what must hold is checked after every step.

use crate::{
    base::Instant,
    proto::node::Role,
    sim::{Condition, Conditions, EMBEDDED, HostConfig, HostIx, NatKind, StreamIx, World},
};
use std::time::Duration;

/// Steps of one run; the virtual time of each is bounded too.
const STEPS: usize = 40;
/// How long one may be silent whose control connection was closed: longer, and it is taken for killed (`proto::node::lost`).
const SILENT: Duration = Duration::from_secs(30);
/// Within this time after its control connection broke a host that is awake is known to the coordinator again.
const BACK: Duration = Duration::from_secs(5);

/// A client and an agent with one stream, through whatever the bytes do to their network. Every byte read is the right
/// one, time never stands still, and once the network is whole again the stream delivers all that was written, unless a
/// process of it ended, or fell asleep at the moment when its control connection was closed, as if it had been killed.
///
/// The first byte picks NATs and links, each further pair of bytes is one step.
///
/// # Panics
/// When a claim does not hold.
pub fn node_steps(data: &[u8]) {
    let Some((first, steps)) = data.split_first() else { return };
    let mut run = Run::new(*first);
    for step in steps.chunks_exact(2).take(STEPS) {
        if let [what, how] = *step {
            run.step(what, how);
        }
    }
    run.finish(data);
}

struct Run {
    world: World,
    client: HostIx,
    agent: HostIx,
    stream: StreamIx,
    accepted: StreamIx,
    /// When a control connection was closed for the last time.
    closed: Instant,
    /// Whether the stream may have ended.
    may_end: bool,
}

impl Run {
    fn new(first: u8) -> Self {
        let mut world = World::new(u64::from(first));
        let nat = |bits: u8| match bits & 3 {
            0 => None,
            1 => Some(NatKind::EASY),
            _ => Some(NatKind::HARD),
        };
        let link = |bits: u8| Conditions {
            loss: if bits & 1 == 0 { 0.0 } else { 0.01 },
            reorder: if bits & 2 == 0 { 0.0 } else { 0.02 },
            ..Conditions::with_latency(Duration::from_millis(1 + u64::from(bits)))
        };
        let config = |role, bits: u8| HostConfig { nat: nat(bits), ..HostConfig::new(role).on(link(bits >> 2)) };
        let agent = world.add_host(config(Role::Agent, first & 0xf));
        let client = world.add_host(config(Role::Client, first >> 4));
        world.add_tunnel(client, agent);
        let stream = world.dial(client, agent, 22);
        let open = world.run_until(Duration::from_secs(30), |w| w.opened_at(client, stream).is_some());
        let accepted = world.accepted(agent).first().copied();
        let Some(accepted) = accepted.filter(|_| open) else { panic!("no connection: {}", world.place()) };
        Self { closed: Instant::ZERO, world, client, agent, stream, accepted, may_end: false }
    }

    fn step(&mut self, what: u8, how: u8) {
        let Self { world, client, agent, .. } = self;
        let (client, agent) = (*client, *agent);
        let host = if how & 1 == 0 { client } else { agent };
        let long = Duration::from_millis(u64::from(how) * 40);
        match what % 16 {
            0..=3 => world.write(client, self.stream, u64::from(how) * 97),
            4..=6 => world.run_for(long),
            7 => world.set_cut(client, agent, how & 1 == 0),
            8 => world.set_udp_blocked(host, how & 2 == 0),
            9 => world.reset_nat(host),
            10 => world.restart_relay(EMBEDDED),
            11 => {
                self.closed = world.now();
                world.break_control(host);
            }
            12 => {
                self.closed = world.now();
                world.roam(client, Some(NatKind::EASY), Conditions::with_latency(Duration::from_millis(u64::from(how))));
            }
            13 => {
                // Shorter than the minute after which a flow gives a silent peer up, and then awake for a while.
                let known = world.is_controlled(host) && world.now() - self.closed >= BACK;
                self.may_end |= !known && long * 4 >= SILENT;
                world.sleep(host, long * 4);
                world.run_for(Duration::from_secs(15));
            }
            14 => world.run_for(long * 20),
            _ if how < 32 => {
                world.restart(agent);
                self.may_end = true;
            }
            _ if how < 64 => {
                world.disconnect(client);
                self.may_end = true;
            }
            _ => world.run_for(long),
        }
        self.check();
    }

    fn check(&mut self) {
        let Self { world, client, agent, stream, accepted, .. } = self;
        if self.may_end {
            return;
        }
        let place = world.place();
        assert!(world.received(*agent, *accepted).is_some(), "a wrong byte: {place}");
        let (wanted, read) = (world.written(*client, *stream), world.received(*agent, *accepted).unwrap_or(0));
        assert!(read <= wanted, "{read} of {wanted} bytes: {place}");
        assert_eq!(world.condition(*client, *stream), Some(Condition::Open), "{place}");
    }

    fn finish(&mut self, input: &[u8]) {
        self.world.set_cut(self.client, self.agent, false);
        for host in [self.client, self.agent] {
            self.world.set_udp_blocked(host, false);
        }
        let Self { world, client, agent, stream, accepted, .. } = self;
        world.write(*client, *stream, 1);
        let wanted = world.written(*client, *stream);
        let done = world.run_until(Duration::from_secs(120), |w| w.received(*agent, *accepted) == Some(wanted));
        let read = world.received(*agent, *accepted);
        assert!(done || self.may_end, "{read:?} of {wanted} bytes: {} with {}", world.place(), hex::encode(input));
    }
}
