//! Sites behind access links and NATs, the hosts in them, datagrams and reliable byte pipes between hosts.
//!
//! A datagram passes its site's uplink and NAT, the core, and the other site's NAT and downlink; what the path does to
//! it is drawn from the world's generator, so a run repeats from its seed. A pipe stands for a kernel's TCP connection:
//! in order and complete, it turns loss into delay and holds a bounded number of bytes in flight.

use super::{
    link::{Conditions, Link, Lost},
    nat::{Nat, NatKind},
};
use crate::base::{Instant, Rng};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

/// A network with one access link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SiteIx(usize);

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostIx(usize);

/// A reliable connection between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PipeIx(usize);

/// The two ends of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Who opened it.
    Client,
    /// Who was dialled.
    Server,
}

impl End {
    const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }
}

/// Something that reached a host.
#[derive(Debug)]
pub(crate) enum Arrival {
    Datagram {
        host: HostIx,
        from: SocketAddr,
        port: u16,
        bytes: Vec<u8>,
    },
    /// The connection stands; both ends learn it at once.
    Opened {
        pipe: PipeIx,
    },
    Bytes {
        pipe: PipeIx,
        to: End,
        bytes: Vec<u8>,
    },
    Closed {
        pipe: PipeIx,
        to: End,
    },
}

/// Why datagrams did not arrive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Vanished on a link by chance.
    pub chance: u64,
    /// Longer than a link's MTU.
    pub too_long: u64,
    /// A limited link's queue was full.
    pub queue: u64,
    /// A NAT had no mapping or did not let them in.
    pub filtered: u64,
    /// Nobody has the address.
    pub unroutable: u64,
    /// The path was cut or UDP is blocked.
    pub cut: u64,
}

#[derive(Debug)]
struct Site {
    nat: Option<Nat>,
    up: Link,
    down: Link,
    udp_blocked: bool,
}

#[derive(Debug)]
struct Pipe {
    ends: [HostIx; 2],
    /// When the last bytes towards each end arrive: order is kept.
    last: [Instant; 2],
    in_flight: [usize; 2],
    open: bool,
    /// Nothing passes any more and neither end is told, as after the loss of an address.
    silent: bool,
}

#[derive(Debug)]
enum InFlight {
    AtSite { site: SiteIx, from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    AtHost(Arrival),
}

/// IPv4 and UDP headers.
const HEADERS: usize = 28;
/// The delay between two hosts of one site.
const LAN: Duration = Duration::from_micros(200);
/// Bytes that a pipe carries unacknowledged, like a kernel's socket buffers.
const PIPE_WINDOW: usize = 512 << 10;
/// Round trips before a pipe carries bytes: the connection and the HTTP upgrade.
const PIPE_ROUND_TRIPS: u32 = 2;

/// The network between hosts.
#[derive(Debug)]
pub(crate) struct Internet {
    sites: Vec<Site>,
    hosts: Vec<(SiteIx, Ipv4Addr)>,
    by_address: BTreeMap<Ipv4Addr, HostIx>,
    by_outside: BTreeMap<IpAddr, SiteIx>,
    pipes: Vec<Pipe>,
    cuts: BTreeSet<(SiteIx, SiteIx)>,
    events: BTreeMap<(Instant, u64), InFlight>,
    sequence: u64,
    losses: Losses,
    /// Datagrams that vanish on their way between sites.
    filter: Option<fn(&[u8]) -> bool>,
    rng: Rng,
}

impl Internet {
    pub(crate) const fn new(rng: Rng) -> Self {
        Self {
            sites: Vec::new(),
            hosts: Vec::new(),
            by_address: BTreeMap::new(),
            by_outside: BTreeMap::new(),
            pipes: Vec::new(),
            cuts: BTreeSet::new(),
            events: BTreeMap::new(),
            sequence: 0,
            losses: Losses { chance: 0, too_long: 0, queue: 0, filtered: 0, unroutable: 0, cut: 0 },
            filter: None,
            rng,
        }
    }

    pub(crate) const fn set_filter(&mut self, filter: Option<fn(&[u8]) -> bool>) {
        self.filter = filter;
    }

    pub(crate) fn add_site(&mut self, nat: Option<NatKind>, conditions: Conditions) -> SiteIx {
        let site = SiteIx(self.sites.len());
        let [high, low] = octets(site.0);
        let outside = IpAddr::V4(Ipv4Addr::new(9, high, low, 1));
        if nat.is_some() {
            self.by_outside.insert(outside, site);
        }
        let nat = nat.map(|kind| Nat::new(kind, outside));
        self.sites.push(Site { nat, up: Link::new(conditions), down: Link::new(conditions), udp_blocked: false });
        site
    }

    pub(crate) fn add_host(&mut self, site: SiteIx) -> HostIx {
        let host = HostIx(self.hosts.len());
        let [high, low] = octets(site.0);
        let number = self.hosts.iter().filter(|(s, _)| *s == site).count();
        let number = u8::try_from(number + 2).unwrap_or(u8::MAX);
        let network = if self.site(site).is_some_and(|s| s.nat.is_some()) { 10 } else { 9 };
        let address = Ipv4Addr::new(network, high, low, number);
        self.hosts.push((site, address));
        self.by_address.insert(address, host);
        host
    }

    /// Plugs a host in at another site. Its address is gone: the caller closes or silences its pipes.
    pub(crate) fn move_host(&mut self, host: HostIx, site: SiteIx) {
        let [high, low] = octets(site.0);
        let network = if self.site(site).is_some_and(|s| s.nat.is_some()) { 10 } else { 9 };
        let address = Ipv4Addr::new(network, high, low, 2);
        if let Some(entry) = self.hosts.get_mut(host.0) {
            self.by_address.remove(&entry.1);
            *entry = (site, address);
            self.by_address.insert(address, host);
        }
    }

    /// Lets every pipe of a host die without a word to either end.
    pub(crate) fn silence_pipes(&mut self, host: HostIx) {
        for pipe in self.pipes.iter_mut().filter(|p| p.open && p.ends.contains(&host)) {
            pipe.silent = true;
        }
    }

    /// Breaks every pipe of a host.
    pub(crate) fn close_pipes(&mut self, now: Instant, host: HostIx) {
        for n in 0..self.pipes.len() {
            if self.pipes.get(n).is_some_and(|p| p.open && p.ends.contains(&host)) {
                self.close(now, PipeIx(n));
            }
        }
    }

    pub(crate) fn address(&self, host: HostIx) -> Ipv4Addr {
        self.hosts.get(host.0).map_or(Ipv4Addr::UNSPECIFIED, |(_, address)| *address)
    }

    pub(crate) fn site_of(&self, host: HostIx) -> Option<SiteIx> {
        self.hosts.get(host.0).map(|(site, _)| *site)
    }

    pub(crate) const fn losses(&self) -> Losses {
        self.losses
    }

    pub(crate) fn set_conditions(&mut self, site: SiteIx, conditions: Conditions) {
        if let Some(site) = self.sites.get_mut(site.0) {
            site.up.conditions = conditions;
            site.down.conditions = conditions;
        }
    }

    /// Cuts or repairs UDP between two sites. What is already under way is lost too.
    pub(crate) fn set_cut(&mut self, a: SiteIx, b: SiteIx, cut: bool) {
        for pair in [(a, b), (b, a)] {
            if cut {
                self.cuts.insert(pair);
            } else {
                self.cuts.remove(&pair);
            }
        }
    }

    pub(crate) fn set_udp_blocked(&mut self, site: SiteIx, blocked: bool) {
        if let Some(site) = self.sites.get_mut(site.0) {
            site.udp_blocked = blocked;
        }
    }

    pub(crate) fn reset_nat(&mut self, site: SiteIx) {
        if let Some(nat) = self.sites.get_mut(site.0).and_then(|s| s.nat.as_mut()) {
            nat.reset();
        }
    }

    pub(crate) fn send(&mut self, now: Instant, host: HostIx, port: u16, to: SocketAddr, bytes: Vec<u8>) {
        let Some(&(here, address)) = self.hosts.get(host.0) else { return };
        let inside = SocketAddr::new(address.into(), port);
        if let IpAddr::V4(ip) = to.ip()
            && let Some(&neighbour) = self.by_address.get(&ip)
            && self.site_of(neighbour) == Some(here)
        {
            let arrival = Arrival::Datagram { host: neighbour, from: inside, port: to.port(), bytes };
            self.schedule(now + LAN, InFlight::AtHost(arrival));
            return;
        }
        let target = self.site_at(to.ip());
        let Some(site) = self.sites.get_mut(here.0) else { return };
        if site.udp_blocked {
            self.losses.cut += 1;
            return;
        }
        let from = match &mut site.nat {
            Some(nat) => nat.translate_out(now, inside, to, &mut self.rng),
            None => inside,
        };
        let Some(target) = target else {
            self.losses.unroutable += 1;
            return;
        };
        if target == here {
            let hairpin = site.nat.as_ref().is_some_and(|nat| nat.kind().hairpin);
            if hairpin {
                self.schedule(now + LAN, InFlight::AtSite { site: here, from, to, bytes });
            } else {
                self.losses.filtered += 1;
            }
            return;
        }
        match site.up.carry(now, bytes.len() + HEADERS, &mut self.rng) {
            Ok(at) => self.schedule(at, InFlight::AtSite { site: target, from, to, bytes }),
            Err(lost) => self.count(lost),
        }
    }

    /// Opens a pipe; both ends get [`Arrival::Opened`] after two round trips.
    pub(crate) fn open(&mut self, now: Instant, client: HostIx, server: HostIx) -> PipeIx {
        let pipe = PipeIx(self.pipes.len());
        self.pipes.push(Pipe { ends: [client, server], last: [now; 2], in_flight: [0; 2], open: true, silent: false });
        let mut at = now;
        for _ in 0..PIPE_ROUND_TRIPS {
            at = self.carry_stream(at, client, server, 60);
            at = self.carry_stream(at, server, client, 60);
        }
        self.schedule(at, InFlight::AtHost(Arrival::Opened { pipe }));
        if let Some(p) = self.pipes.get_mut(pipe.0) {
            p.last = [at; 2];
        }
        pipe
    }

    /// The host at one end.
    pub(crate) fn host_at(&self, pipe: PipeIx, end: End) -> Option<HostIx> {
        self.pipes.get(pipe.0).and_then(|p| p.ends.get(end.index()).copied())
    }

    /// Bytes that may be written from this end now.
    pub(crate) fn room(&self, pipe: PipeIx, from: End) -> usize {
        let Some(p) = self.pipes.get(pipe.0).filter(|p| p.open) else { return 0 };
        PIPE_WINDOW.saturating_sub(p.in_flight.get(from.index()).copied().unwrap_or(PIPE_WINDOW))
    }

    pub(crate) fn write(&mut self, now: Instant, pipe: PipeIx, from: End, bytes: Vec<u8>) {
        let to = from.other();
        let (Some(source), Some(target)) = (self.host_at(pipe, from), self.host_at(pipe, to)) else { return };
        if bytes.is_empty() || !self.pipes.get(pipe.0).is_some_and(|p| p.open) {
            return;
        }
        if let Some(p) = self.pipes.get_mut(pipe.0).filter(|p| p.silent) {
            // Unacknowledged for ever: it fills the sender's buffer.
            if let Some(in_flight) = p.in_flight.get_mut(from.index()) {
                *in_flight += bytes.len();
            }
            return;
        }
        let at = self.carry_stream(now, source, target, bytes.len() + 40);
        let Some(p) = self.pipes.get_mut(pipe.0) else { return };
        let (Some(last), Some(in_flight)) = (p.last.get_mut(to.index()), p.in_flight.get_mut(from.index())) else { return };
        *last = (*last).max(at);
        *in_flight += bytes.len();
        let at = *last;
        self.schedule(at, InFlight::AtHost(Arrival::Bytes { pipe, to, bytes }));
    }

    /// Breaks a pipe: what is under way still arrives, then each end learns it.
    pub(crate) fn close(&mut self, now: Instant, pipe: PipeIx) {
        let Some(p) = self.pipes.get_mut(pipe.0).filter(|p| p.open) else { return };
        p.open = false;
        if p.silent {
            return;
        }
        let last = p.last;
        for end in [End::Client, End::Server] {
            let at = last.get(end.index()).copied().unwrap_or(now).max(now);
            self.schedule(at, InFlight::AtHost(Arrival::Closed { pipe, to: end }));
        }
    }

    /// The round trip between two hosts on idle links.
    pub(crate) fn round_trip(&self, a: HostIx, b: HostIx) -> Duration {
        let latency = |host| self.site_of(host).and_then(|s| self.site(s)).map_or(Duration::ZERO, |s| s.up.conditions.latency);
        2 * (latency(a) + latency(b))
    }

    pub(crate) fn next_event(&self) -> Option<Instant> {
        self.events.keys().next().map(|(at, _)| *at)
    }

    /// The next thing that reaches a host at or before `now`.
    pub(crate) fn poll_arrival(&mut self, now: Instant) -> Option<Arrival> {
        while let Some(entry) = self.events.first_entry().filter(|e| e.key().0 <= now) {
            let ((at, _), event) = entry.remove_entry();
            match event {
                InFlight::AtHost(arrival) => {
                    if self.is_silenced(&arrival) {
                        continue;
                    }
                    if let Arrival::Bytes { pipe, to, bytes } = &arrival
                        && let Some(n) = self.pipes.get_mut(pipe.0).and_then(|p| p.in_flight.get_mut(to.other().index()))
                    {
                        *n = n.saturating_sub(bytes.len());
                    }
                    return Some(arrival);
                }
                InFlight::AtSite { site, from, to, bytes } => self.enter_site(at, site, from, to, bytes),
            }
        }
        None
    }

    fn is_silenced(&self, arrival: &Arrival) -> bool {
        match arrival {
            Arrival::Datagram { .. } => false,
            Arrival::Opened { pipe } | Arrival::Bytes { pipe, .. } | Arrival::Closed { pipe, .. } => {
                self.pipes.get(pipe.0).is_some_and(|p| p.silent)
            }
        }
    }

    fn enter_site(&mut self, now: Instant, here: SiteIx, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let source = self.site_at(from.ip());
        let cut = source.is_some_and(|source| self.cuts.contains(&(source, here)));
        if cut || self.filter.is_some_and(|filter| filter(&bytes)) {
            self.losses.cut += 1;
            return;
        }
        let Some(site) = self.sites.get_mut(here.0) else { return };
        if site.udp_blocked {
            self.losses.cut += 1;
            return;
        }
        let inside = match &mut site.nat {
            Some(nat) => nat.translate_in(now, from, to.port()),
            None => Some(to),
        };
        let Some(inside) = inside else {
            self.losses.filtered += 1;
            return;
        };
        let IpAddr::V4(ip) = inside.ip() else { return };
        let Some(&host) = self.by_address.get(&ip) else {
            self.losses.unroutable += 1;
            return;
        };
        match site.down.carry(now, bytes.len() + HEADERS, &mut self.rng) {
            Ok(at) => {
                let arrival = Arrival::Datagram { host, from, port: inside.port(), bytes };
                self.schedule(at, InFlight::AtHost(arrival));
            }
            Err(lost) => self.count(lost),
        }
    }

    fn carry_stream(&mut self, now: Instant, from: HostIx, to: HostIx, len: usize) -> Instant {
        let (Some(here), Some(there)) = (self.site_of(from), self.site_of(to)) else { return now };
        if here == there {
            return now + LAN;
        }
        let Self { sites, rng, .. } = self;
        let at = sites.get_mut(here.0).map_or(now, |s| s.up.carry_stream(now, len, rng));
        sites.get_mut(there.0).map_or(at, |s| s.down.carry_stream(at, len, rng))
    }

    /// The site that a packet to `ip` from elsewhere goes to.
    fn site_at(&self, ip: IpAddr) -> Option<SiteIx> {
        if let Some(site) = self.by_outside.get(&ip) {
            return Some(*site);
        }
        let IpAddr::V4(ip) = ip else { return None };
        let site = self.site_of(*self.by_address.get(&ip)?)?;
        self.site(site).filter(|s| s.nat.is_none()).map(|_| site)
    }

    fn site(&self, site: SiteIx) -> Option<&Site> {
        self.sites.get(site.0)
    }

    fn schedule(&mut self, at: Instant, event: InFlight) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    const fn count(&mut self, lost: Lost) {
        match lost {
            Lost::Chance => self.losses.chance += 1,
            Lost::TooLong => self.losses.too_long += 1,
            Lost::QueueFull => self.losses.queue += 1,
        }
    }
}

fn octets(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes()
}
