//! The world: hosts, services and the clock that jumps from deadline to deadline.

use super::{
    coordinator::CoordinatorHost,
    host::{Host, Wishes},
    internet::{Arrival, End, HostIx, Internet, Losses, PipeIx, SiteIx},
    link::Conditions,
    nat::NatKind,
    relay::{RelayHost, STUN_PORT},
    stream::{Condition, Stream, StreamIx},
};
use crate::{
    base::{Instant, Lane, RegionId, Rng, agent_addresses},
    proto::{
        coord::ServerRole,
        netstack::FlowStats,
        node::{Counters, Gone, PathInfo, PingId, PingKind, Role},
        path::PathState,
    },
    wire::{
        coord::tailnet::DerpMap,
        derp::{HostIp, Region, RelayMap, RelayNode},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddrV6},
    time::Duration,
};

/// The first relay region, embedded in the deployment as the real one is.
pub const EMBEDDED: u16 = 999;
/// Steps without time going on after which the world calls it a spin.
const SPIN: u32 = 10_000;
/// How long a dial may take.
const DIAL: Duration = Duration::from_secs(60);

/// How a host is made.
#[derive(Debug, Clone, Copy)]
pub struct HostConfig {
    /// Client or agent.
    pub role: Role,
    /// The NAT in front of it, if any.
    pub nat: Option<NatKind>,
    /// Its access link.
    pub link: Conditions,
    /// Whether it allows direct paths.
    pub direct: bool,
}

impl HostConfig {
    /// A host with a public address and a clean link of 10 ms.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { role, nat: None, link: Conditions::with_latency(Duration::from_millis(10)), direct: true }
    }

    /// The same behind a NAT.
    #[must_use]
    pub const fn behind(mut self, nat: NatKind) -> Self {
        self.nat = Some(nat);
        self
    }

    /// The same with another link.
    #[must_use]
    pub const fn on(mut self, link: Conditions) -> Self {
        self.link = link;
        self
    }

    /// The same with direct paths forbidden.
    #[must_use]
    pub const fn relayed(mut self) -> Self {
        self.direct = false;
        self
    }
}

/// A network of nodes, a coordinator and relays, in virtual time. The same seed gives the same run, but for the keys
/// that WireGuard draws by itself.
#[derive(Debug)]
pub struct World {
    seed: u64,
    now: Instant,
    rng: Rng,
    net: Internet,
    hosts: BTreeMap<HostIx, (Host, bool)>,
    relays: BTreeMap<RegionId, (HostIx, RelayHost)>,
    coordinator: Option<CoordinatorHost>,
    coordinator_host: HostIx,
    map: RelayMap,
    next_stream: usize,
    latencies: BTreeMap<(Instant, u64), (HostIx, RegionId, Duration)>,
    steps: u64,
    /// A host that is suspended.
    asleep: Option<HostIx>,
    why: &'static str,
}

impl World {
    /// A world with a coordinator and one relay region, embedded, with STUN.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::from_u64(seed);
        let mut net = Internet::new(rng.split());
        let site = net.add_site(None, Conditions::with_latency(Duration::from_millis(2)));
        let coordinator_host = net.add_host(site);
        let mut world = Self {
            seed,
            now: Instant::ZERO + Duration::from_secs(1),
            rng,
            net,
            hosts: BTreeMap::new(),
            relays: BTreeMap::new(),
            coordinator: None,
            coordinator_host,
            map: RelayMap::default(),
            next_stream: 0,
            latencies: BTreeMap::new(),
            steps: 0,
            asleep: None,
            why: "start",
        };
        world.add_relay(EMBEDDED, Conditions::with_latency(Duration::from_millis(5)));
        world.coordinator = Some(CoordinatorHost::new(DerpMap::from(&world.map)));
        world
    }

    /// Adds a relay region with a STUN responder. Hosts that already run learn it from the coordinator.
    pub fn add_relay(&mut self, region: u16, link: Conditions) {
        let Some(region) = RegionId::new(region) else { return };
        let site = self.net.add_site(None, link);
        let host = self.net.add_host(site);
        let name = format!("relay{region}.sim");
        let node = RelayNode {
            name: format!("{region}a"),
            host: name.clone(),
            ipv4: HostIp::Resolve,
            ipv6: HostIp::Off,
            stun_port: Some(STUN_PORT),
            ..RelayNode::default()
        };
        let embedded = region.get() == EMBEDDED;
        let entry = Region { code: name.clone(), name, embedded, nodes: vec![node], ..Region::default() };
        self.map.regions.insert(region, entry);
        self.relays.insert(region, (host, RelayHost::new(host, &mut self.rng)));
        let map = DerpMap::from(&self.map);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.set_relay_map(map);
        }
    }

    /// Adds a host and starts its node.
    pub fn add_host(&mut self, config: HostConfig) -> HostIx {
        let site = self.net.add_site(config.nat, config.link);
        self.add_host_at(site, config)
    }

    /// Adds a host to the site of another one: they share NAT and link.
    pub fn add_neighbour(&mut self, of: HostIx, config: HostConfig) -> HostIx {
        match self.net.site_of(of) {
            Some(site) => self.add_host_at(site, config),
            None => self.add_host(config),
        }
    }

    fn add_host_at(&mut self, site: SiteIx, config: HostConfig) -> HostIx {
        let ix = self.net.add_host(site);
        let address = self.net.address(ix);
        let mut host = Host::new(self.now, ix, address, config.role, config.direct, self.rng.split());
        host.start(self.now, &self.map);
        self.hosts.insert(ix, (host, config.direct));
        self.service(ix);
        ix
    }

    /// Makes a client ask for a tunnel to an agent.
    pub fn add_tunnel(&mut self, client: HostIx, agent: HostIx) {
        let id = self.host(agent).id;
        let now = self.now;
        self.host_mut(client).add_tunnel(now, id);
        self.service(client);
    }

    /// Connects to a port of an agent.
    pub fn dial(&mut self, client: HostIx, agent: HostIx, port: u16) -> StreamIx {
        let [address, _] = agent_addresses(self.host(agent).id);
        let stream = StreamIx(self.next_stream);
        self.next_stream += 1;
        let now = self.now;
        let host = self.host_mut(client);
        let dial = host.node.dial(now, SocketAddrV6::new(address, port, 0, 0), now + DIAL);
        host.streams.insert(stream, Stream::dialling(dial));
        self.service(client);
        stream
    }

    /// Makes a host write back whatever it reads on connections that it accepts from now on.
    pub fn set_echo(&mut self, host: HostIx) {
        self.host_mut(host).echo = true;
    }

    /// Writes `n` more bytes of the pattern on one end.
    pub fn write(&mut self, host: HostIx, stream: StreamIx, n: u64) {
        if let Some(stream) = self.host_mut(host).streams.get_mut(&stream) {
            stream.wanted += n;
        }
        self.service(host);
    }

    /// The connections that a host has accepted, oldest first.
    #[must_use]
    pub fn accepted(&self, host: HostIx) -> Vec<StreamIx> {
        self.host(host).streams.iter().filter(|(_, s)| s.dial.is_none()).map(|(ix, _)| *ix).collect()
    }

    /// What one end has read, if every byte was right.
    #[must_use]
    pub fn received(&self, host: HostIx, stream: StreamIx) -> Option<u64> {
        let stream = self.host(host).streams.get(&stream)?;
        stream.intact.then_some(stream.received)
    }

    /// How much one end wants written in all.
    #[must_use]
    pub fn written(&self, host: HostIx, stream: StreamIx) -> u64 {
        self.host(host).streams.get(&stream).map_or(0, |s| s.wanted)
    }

    /// When a host was first told of another one.
    #[must_use]
    pub fn told_at(&self, host: HostIx) -> Option<Instant> {
        self.host(host).told
    }

    /// The round trip between two hosts through the embedded relay, on idle links.
    #[must_use]
    pub fn relayed_round_trip(&self, a: HostIx, b: HostIx) -> Duration {
        let relay = RegionId::new(EMBEDDED).and_then(|region| self.relays.get(&region)).map(|(host, _)| *host);
        relay.map_or(Duration::ZERO, |relay| self.net.round_trip(a, relay) + self.net.round_trip(relay, b))
    }

    /// When one end had read `n` bytes.
    #[must_use]
    pub fn read_at(&self, host: HostIx, stream: StreamIx, n: u64) -> Option<Instant> {
        self.host(host).streams.get(&stream)?.read_at(n)
    }

    /// What became of one end.
    #[must_use]
    pub fn condition(&self, host: HostIx, stream: StreamIx) -> Option<Condition> {
        self.host(host).streams.get(&stream).map(|s| s.condition)
    }

    /// When one end ended for a reason not its own.
    #[must_use]
    pub fn closed_at(&self, host: HostIx, stream: StreamIx) -> Option<Instant> {
        self.host(host).streams.get(&stream)?.closed_at
    }

    /// When one end's connection stood.
    #[must_use]
    pub fn opened_at(&self, host: HostIx, stream: StreamIx) -> Option<Instant> {
        self.host(host).streams.get(&stream)?.opened
    }

    /// Counters of one end's flow.
    #[must_use]
    pub fn flow_stats(&self, host: HostIx, stream: StreamIx) -> Option<FlowStats> {
        let host = self.host(host);
        host.node.flow_stats(host.streams.get(&stream)?.flow?)
    }

    /// How a host reaches another one now.
    #[must_use]
    pub fn path(&self, from: HostIx, to: HostIx) -> PathInfo {
        let address = self.host(to).node.addresses().first().copied();
        let unknown = PathInfo { state: PathState::None, lane: None };
        address.and_then(|address| self.host(from).node.path_info(&address)).unwrap_or(unknown)
    }

    /// Whether two hosts send to each other directly, both ways.
    #[must_use]
    pub fn is_direct(&self, a: HostIx, b: HostIx) -> bool {
        [(a, b), (b, a)].into_iter().all(|(x, y)| self.path(x, y).state == PathState::Direct)
    }

    /// Every change of a path that a host saw.
    #[must_use]
    pub fn path_changes(&self, host: HostIx) -> &[(Instant, PathInfo)] {
        &self.host(host).paths
    }

    /// Peers that left a host, with time and reason.
    #[must_use]
    pub fn gone(&self, host: HostIx) -> &[(Instant, Gone)] {
        &self.host(host).gone
    }

    /// How often a host announced itself.
    #[must_use]
    pub fn announcements(&self, host: HostIx) -> usize {
        self.host(host).announcements
    }

    /// A host's counters.
    #[must_use]
    pub fn counters(&self, host: HostIx) -> Counters {
        self.host(host).node.counters()
    }

    /// Sends a ping from one host to another; its answer appears in [`World::pongs`].
    pub fn ping(&mut self, from: HostIx, to: HostIx, kind: PingKind) -> Option<PingId> {
        let to = self.host(to).node.addresses().first().copied()?;
        let now = self.now;
        let ping = self.host_mut(from).node.ping(now, to, kind, now + Duration::from_secs(10));
        self.service(from);
        Some(ping)
    }

    /// Answers to pings that a host has got.
    #[must_use]
    pub fn pongs(&self, host: HostIx) -> &[(PingId, Duration, Option<Lane>)] {
        &self.host(host).pongs
    }

    /// What the network lost so far.
    #[must_use]
    pub const fn losses(&self) -> Losses {
        self.net.losses()
    }

    /// Cuts or repairs UDP between two hosts' sites; relays stay reachable.
    pub fn set_cut(&mut self, a: HostIx, b: HostIx, cut: bool) {
        if let (Some(a), Some(b)) = (self.net.site_of(a), self.net.site_of(b)) {
            self.net.set_cut(a, b, cut);
        }
    }

    /// Blocks or allows all UDP of a host's site.
    pub fn set_udp_blocked(&mut self, host: HostIx, blocked: bool) {
        if let Some(site) = self.net.site_of(host) {
            self.net.set_udp_blocked(site, blocked);
        }
    }

    /// Changes a host's access link.
    pub fn set_link(&mut self, host: HostIx, link: Conditions) {
        if let Some(site) = self.net.site_of(host) {
            self.net.set_conditions(site, link);
        }
    }

    /// Makes a host's NAT forget all mappings.
    pub fn reset_nat(&mut self, host: HostIx) {
        if let Some(site) = self.net.site_of(host) {
            self.net.reset_nat(site);
        }
    }

    /// Sets a rule for UDP datagrams between nodes: those for which it returns true vanish.
    pub fn set_filter(&mut self, filter: Option<fn(&[u8]) -> bool>) {
        self.net.set_filter(filter);
    }

    /// Moves a host to a network of its own: other address, NAT and link.
    pub fn roam(&mut self, host: HostIx, nat: Option<NatKind>, link: Conditions) {
        let now = self.now;
        let site = self.net.add_site(nat, link);
        self.net.move_host(now, host, site);
        let address = self.net.address(host);
        self.host_mut(host).moved(now, address);
        self.service(host);
    }

    /// Suspends a host: for so long it neither runs nor gets anything, and its connections to servers break.
    pub fn sleep(&mut self, host: HostIx, time: Duration) {
        let now = self.now;
        self.asleep = Some(host);
        self.net.close_pipes(now, host);
        self.run_for(time);
        self.asleep = None;
        let now = self.now;
        for pipe in self.host(host).pipes() {
            self.host_mut(host).handle_closed(now, pipe);
        }
        self.service(host);
    }

    /// Changes a relay's access link.
    pub fn set_relay_link(&mut self, region: u16, link: Conditions) {
        let relay = RegionId::new(region).and_then(|region| self.relays.get(&region)).map(|(host, _)| *host);
        if let Some(relay) = relay {
            self.set_link(relay, link);
        }
    }

    /// A host's home region.
    #[must_use]
    pub fn home(&self, host: HostIx) -> Option<u16> {
        self.host(host).node.home().map(RegionId::get)
    }

    /// Ends a host's process and starts another one under the same id.
    pub fn restart(&mut self, host: HostIx) {
        let now = self.now;
        if let Some((host, direct)) = self.hosts.get_mut(&host) {
            let direct = *direct;
            host.restart(now, &mut self.net, &self.map, direct);
        }
        self.service(host);
    }

    /// Makes a host say goodbye to the coordinator.
    pub fn disconnect(&mut self, host: HostIx) {
        let now = self.now;
        self.host_mut(host).disconnect(now);
        self.service(host);
    }

    /// Ends the coordinator without a word; hosts dial it in vain from now on.
    pub fn stop_coordinator(&mut self) {
        if let Some(mut coordinator) = self.coordinator.take() {
            coordinator.kill(self.now, &mut self.net);
        }
    }

    /// Starts a coordinator that knows nobody.
    pub fn start_coordinator(&mut self) {
        self.coordinator = Some(CoordinatorHost::new(DerpMap::from(&self.map)));
    }

    /// Breaks all connections of a relay.
    pub fn restart_relay(&mut self, region: u16) {
        if let Some((_, relay)) = RegionId::new(region).and_then(|region| self.relays.get_mut(&region)) {
            relay.restart(self.now, &mut self.net);
        }
    }

    /// The virtual time.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// What a failed claim must print: enough to run it again.
    #[must_use]
    pub fn place(&self) -> String {
        format!("seed {} at {:?} (step {}, last woken by {})", self.seed, self.now, self.steps, self.why)
    }

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
    fn service(&mut self, ix: HostIx) {
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

    /// # Panics
    /// When there is no such host: an error in the scenario.
    fn host(&self, ix: HostIx) -> &Host {
        match self.hosts.get(&ix) {
            Some((host, _)) => host,
            None => panic!("{ix:?} is no host of this world"),
        }
    }

    fn host_mut(&mut self, ix: HostIx) -> &mut Host {
        match self.hosts.get_mut(&ix) {
            Some((host, _)) => host,
            None => panic!("{ix:?} is no host of this world"),
        }
    }

    /// The pipe of a host's control socket, to break it.
    pub fn break_control(&mut self, host: HostIx) {
        let pipe: Option<PipeIx> = self.host(host).control_pipe();
        if let Some(pipe) = pipe {
            self.net.close(self.now, pipe);
        }
    }
}
