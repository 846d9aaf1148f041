//! The world: hosts, services and the clock that jumps from deadline to deadline.

mod observe;
mod run;

use super::{
    coordinator::CoordinatorHost,
    host::Host,
    internet::{HostIx, Internet, PipeIx, SiteIx},
    link::Conditions,
    nat::NatKind,
    relay::{RelayHost, STUN_PORT},
    stream::{Stream, StreamIx},
};
use crate::{
    base::{Instant, RegionId, Rng, agent_addresses},
    proto::node::{PingId, PingKind, Role},
    wire::{
        coord::tailnet::DerpMap,
        derp::{HostIp, Region, RelayMap, RelayNode},
    },
};
use std::{collections::BTreeMap, net::SocketAddrV6, time::Duration};

/// The first relay region, embedded in the deployment as the real one is.
pub const EMBEDDED: u16 = 999;
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

    /// Sends a ping from one host to another; its answer appears in [`World::pongs`].
    pub fn ping(&mut self, from: HostIx, to: HostIx, kind: PingKind) -> Option<PingId> {
        let to = self.host(to).node.addresses().first().copied()?;
        let now = self.now;
        let ping = self.host_mut(from).node.ping(now, to, kind, now + Duration::from_secs(10));
        self.service(from);
        Some(ping)
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

    /// Moves a host to a network of its own: other address, NAT and link. Its connections to servers break.
    pub fn roam(&mut self, host: HostIx, nat: Option<NatKind>, link: Conditions) {
        self.net.close_pipes(self.now, host);
        self.plug(host, nat, link);
    }

    /// The same, but nobody tells the ends of its connections to servers that those are dead.
    pub fn roam_silently(&mut self, host: HostIx, nat: Option<NatKind>, link: Conditions) {
        self.net.silence_pipes(host);
        self.plug(host, nat, link);
    }

    fn plug(&mut self, host: HostIx, nat: Option<NatKind>, link: Conditions) {
        let now = self.now;
        let site = self.net.add_site(nat, link);
        self.net.move_host(host, site);
        let address = self.net.address(host);
        self.host_mut(host).moved(now, address);
        self.service(host);
    }

    /// Suspends a host: for so long it neither runs nor gets anything. Its connections to servers die without a word; the
    /// coordinator notices that by its pings.
    pub fn sleep(&mut self, host: HostIx, time: Duration) {
        const NOTICED: Duration = Duration::from_secs(30);
        self.asleep = Some(host);
        self.net.silence_pipes(host);
        let control = self.host(host).control_pipe();
        self.run_for(time.min(NOTICED));
        if let Some(rest) = time.checked_sub(NOTICED) {
            if let (Some(coordinator), Some(pipe)) = (&mut self.coordinator, control) {
                coordinator.handle_silent(pipe);
            }
            self.run_for(rest);
        }
        self.asleep = None;
        let now = self.now;
        for pipe in self.host(host).pipes() {
            self.net.close(now, pipe);
            self.host_mut(host).handle_closed(now, pipe);
        }
        self.service(host);
    }

    /// Ends a host's process without a word; its system closes its connections.
    pub fn kill(&mut self, host: HostIx) {
        let now = self.now;
        self.net.close_pipes(now, host);
        self.asleep = Some(host);
    }

    /// Changes a relay's access link.
    pub fn set_relay_link(&mut self, region: u16, link: Conditions) {
        let relay = RegionId::new(region).and_then(|region| self.relays.get(&region)).map(|(host, _)| *host);
        if let Some(relay) = relay {
            self.set_link(relay, link);
        }
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

    /// The pipe of a host's control socket, to break it.
    pub fn break_control(&mut self, host: HostIx) {
        let pipe: Option<PipeIx> = self.host(host).control_pipe();
        if let Some(pipe) = pipe {
            self.net.close(self.now, pipe);
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
}
