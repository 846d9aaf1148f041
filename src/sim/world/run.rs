//! The clock that jumps from deadline to deadline, and what happens at each.

use super::World;
use crate::{
    base::Instant,
    proto::{coord::ServerRole, node::Role},
    sim::{
        coordinator::CoordinatorHost,
        host::Wishes,
        internet::{Arrival, End, HostIx},
    },
};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

/// Steps without time going on after which the world calls it a spin.
const SPIN: u32 = 10_000;

impl World {
    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Lets time pass until `done` or for `limit`; returns whether it came true. Looks at it after every step.
    ///
    /// # Panics
    /// When time stands still: some deadline is always due.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        let mut still = 0;
        loop {
            if done(self) {
                return true;
            }
            let Some(at) = self.next().filter(|at| *at <= end) else {
                self.now = end;
                return done(self);
            };
            still = if at > self.now { 0 } else { still + 1 };
            assert!(still < SPIN, "time stands still because of {:?}: {}", self.why, self.place());
            self.now = self.now.max(at);
            self.step();
        }
    }

    /// The time of the next thing that happens.
    fn next(&mut self) -> Option<Instant> {
        let awake = self.hosts.iter().filter(|(ix, _)| self.asleep != Some(**ix));
        let hosts = awake.filter_map(|(_, (h, _))| h.wake()).map(|d| (d.at, d.why));
        let relays = self.relays.values().filter_map(|(_, r)| r.wake());
        let coordinator = self.coordinator.as_ref().and_then(CoordinatorHost::wake);
        let net = self.net.next_event().map(|at| (at, "network"));
        let latency = self.latencies.keys().next().map(|(at, _)| (*at, "latency check"));
        let (at, why) = hosts.chain(relays).chain(coordinator).chain(net).chain(latency).min()?;
        self.why = why;
        Some(at)
    }

    fn step(&mut self) {
        self.steps += 1;
        let now = self.now;
        let mut touched: BTreeSet<HostIx> =
            self.hosts.iter().filter(|(_, (h, _))| h.wake().is_some_and(|d| d.at <= now)).map(|(ix, _)| *ix).collect();
        while let Some(entry) = self.latencies.first_entry().filter(|e| e.key().0 <= now) {
            let (host, region, latency) = entry.remove();
            self.host_mut(host).node.handle_relay_latency(now, region, Some(latency));
            touched.insert(host);
        }
        while let Some(arrival) = self.net.poll_arrival(now) {
            self.deliver(arrival, &mut touched);
        }
        for (_, relay) in self.relays.values_mut() {
            relay.service(now, &mut self.net);
        }
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.service(now, &mut self.net);
        }
        for host in touched {
            if self.asleep != Some(host) {
                self.service(host);
            }
        }
    }

    fn deliver(&mut self, arrival: Arrival, touched: &mut BTreeSet<HostIx>) {
        let now = self.now;
        let to = match &arrival {
            Arrival::Datagram { host, .. } => Some(*host),
            Arrival::Bytes { pipe, to, .. } | Arrival::Closed { pipe, to } => self.net.host_at(*pipe, *to),
            Arrival::Opened { pipe } => self.net.host_at(*pipe, End::Client),
        };
        if to.is_some() && to == self.asleep {
            return;
        }
        match arrival {
            Arrival::Datagram { host, from, port, bytes } => {
                if let Some((host, _)) = self.hosts.get_mut(&host) {
                    host.handle_datagram(from, bytes);
                } else if let Some((_, relay)) = self.relays.values().find(|(ix, _)| *ix == host) {
                    relay.handle_datagram(now, &mut self.net, from, port, &bytes);
                }
                touched.insert(host);
            }
            Arrival::Opened { pipe } => {
                let Some(server) = self.net.host_at(pipe, End::Server) else { return };
                if server == self.coordinator_host {
                    match &mut self.coordinator {
                        Some(coordinator) => coordinator.handle_opened(now, pipe),
                        // Nobody listens: the connection is refused.
                        None => return self.net.close(now, pipe),
                    }
                } else if let Some((_, relay)) = self.relays.values_mut().find(|(ix, _)| *ix == server) {
                    relay.handle_opened(now, pipe);
                }
                if let Some(client) = self.net.host_at(pipe, End::Client)
                    && let Some((host, _)) = self.hosts.get_mut(&client)
                {
                    host.handle_opened(now, pipe);
                    touched.insert(client);
                }
            }
            Arrival::Bytes { pipe, to, bytes } => {
                // The other end has room again.
                touched.extend(self.net.host_at(pipe, End::Client));
                match to {
                    End::Client => {
                        if let Some(client) = self.net.host_at(pipe, End::Client)
                            && let Some((host, _)) = self.hosts.get_mut(&client)
                        {
                            host.handle_bytes(now, &mut self.net, pipe, &bytes);
                        }
                    }
                    End::Server => match self.net.host_at(pipe, End::Server) {
                        Some(server) if server == self.coordinator_host => {
                            if let Some(coordinator) = &mut self.coordinator {
                                coordinator.handle_bytes(now, pipe, &bytes);
                            }
                        }
                        Some(server) => {
                            if let Some((_, relay)) = self.relays.values_mut().find(|(ix, _)| *ix == server) {
                                relay.handle_bytes(now, &mut self.net, pipe, &bytes);
                            }
                        }
                        None => {}
                    },
                }
            }
            Arrival::Closed { pipe, to } => {
                let Some(ix) = self.net.host_at(pipe, to) else { return };
                if let Some((host, _)) = self.hosts.get_mut(&ix) {
                    host.handle_closed(now, pipe);
                    touched.insert(ix);
                } else if ix == self.coordinator_host {
                    if let Some(coordinator) = &mut self.coordinator {
                        coordinator.handle_closed(pipe);
                    }
                } else if let Some((_, relay)) = self.relays.values_mut().find(|(host, _)| *host == ix) {
                    relay.handle_closed(pipe);
                }
            }
        }
    }

    /// Runs one host until it is quiet and grants its wishes.
    pub(super) fn service(&mut self, ix: HostIx) {
        let now = self.now;
        loop {
            let mut wishes = Wishes::default();
            let Some((host, _)) = self.hosts.get_mut(&ix) else { return };
            host.service(now, &mut self.net, &mut self.next_stream, &mut wishes);
            if wishes.is_empty() {
                return;
            }
            self.grant(ix, wishes);
        }
    }

    fn grant(&mut self, ix: HostIx, wishes: Wishes) {
        let now = self.now;
        for region in wishes.relays {
            if let Some((server, _)) = self.relays.get(&region) {
                let pipe = self.net.open(now, ix, *server);
                self.host_mut(ix).relay_dialled(region, pipe);
            }
        }
        if wishes.control {
            let pipe = self.net.open(now, ix, self.coordinator_host);
            let host = self.host_mut(ix);
            host.control_dialled(pipe);
            let (id, role) = (host.id, host.role);
            let role = match role {
                Role::Client => ServerRole::Client,
                Role::Agent => ServerRole::Agent,
            };
            if let Some(coordinator) = &mut self.coordinator {
                coordinator.expect(pipe, id, role);
            }
        }
        for name in wishes.resolve {
            let relay = self.map.regions.iter().find(|(_, r)| r.nodes.iter().any(|n| n.host == name));
            let address = relay.and_then(|(region, _)| self.relays.get(region)).map(|(host, _)| self.net.address(*host));
            let addresses: Vec<IpAddr> = address.into_iter().map(IpAddr::V4).collect();
            self.host_mut(ix).node.handle_resolved(now, &name, &addresses);
        }
        for region in wishes.measure {
            let Some((server, _)) = self.relays.get(&region) else { continue };
            let latency = self.net.round_trip(ix, *server);
            self.steps += 1;
            self.latencies.insert((now + latency, self.steps), (ix, region, latency));
        }
    }
}
