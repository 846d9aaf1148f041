//! What the network around a node is like: its public addresses by STUN, the way to the relays, the home relay
//! (`stun-netcheck.md` §2–4, §6, §8).
//!
//! One run asks one STUN server of each region and family, from the data sockets, three times if it must, and has the
//! owner time a request to each relay. Every answer is published at once; one that comes after its run still is (the
//! Go client drops it). The run ends when all is answered or the time is up, with a [`Report`] and perhaps a new home.
//!
//! Runs are asked for by the owner, and repeat every 20 to 26 s while a tunnel is in use. STUN latencies play no role
//! for the home: public STUN servers would win everywhere. There is no hairpin test and no ICMP.

mod home;
mod probe;
mod report;

#[cfg(test)]
mod tests;

pub use report::Report;

use crate::{
    base::{Deadline, Instant, Lane, RegionId, Rng, SocketIx},
    wire::{derp::RelayMap, stun},
};
use home::HomeChoice;
use probe::{Hosts, Probe, Target};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// How long a run waits for STUN.
const STUN_LIMIT: Duration = Duration::from_secs(2);
/// How long a run waits for the relays' latencies.
const RELAY_LIMIT: Duration = Duration::from_secs(3);
/// How long an answer that comes after its run is still believed.
const LATE: Duration = Duration::from_secs(10);
/// Below this age of the last full run, a run asks fewer servers.
const FULL_EVERY: Duration = Duration::from_secs(5 * 60);
/// Regions asked in a full run and in others.
const FULL_REGIONS: usize = 8;
const FEW_REGIONS: usize = 3;
/// The pause between runs while a tunnel is in use: shorter than the 30 s after which NATs forget.
const REPEAT: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(26));

/// What the owner is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Look a host up and answer by [`Netcheck::handle_resolved`].
    Resolve {
        /// Its name.
        host: String,
    },
    /// Time a `GET /derp/latency-check` and answer by [`Netcheck::handle_relay_latency`].
    MeasureRelay {
        /// The region.
        region: RegionId,
    },
}

/// News for the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A server sees us at this address.
    Public(SocketAddr),
    /// All servers of a run have answered or will not: what is known of our addresses is all there is.
    Gathered,
    /// The home relay is another one.
    Home(RegionId),
    /// A run has ended.
    Report(Report),
}

/// A request on its way.
#[derive(Debug)]
struct Sent {
    at: Instant,
    /// Of the run with this number.
    run: u64,
    region: RegionId,
    to: SocketAddr,
}

/// A run in progress.
#[derive(Debug)]
struct Run {
    number: u64,
    why: &'static str,
    started: Instant,
    probes: Vec<Probe>,
    gathered: bool,
    /// Regions whose latency is awaited, and those that have one.
    measuring: BTreeSet<RegionId>,
    measured: BTreeMap<RegionId, Duration>,
    /// What IPv4 servers answered, by server.
    answers_v4: Vec<(SocketAddr, SocketAddr)>,
    global_v6: Option<SocketAddr>,
    /// Regions in the order in which they answered.
    fastest: Vec<RegionId>,
}

/// The netcheck engine of one node.
#[derive(Debug)]
pub struct Netcheck {
    rng: Rng,
    map: RelayMap,
    hosts: Hosts,
    home: HomeChoice,
    run: Option<Run>,
    /// A run that was asked for during another.
    again: Option<&'static str>,
    runs: u64,
    last_full: Option<Instant>,
    /// Of the last run: the regions by the speed of their answer, and the families that work.
    fastest: Vec<RegionId>,
    had_udp: bool,
    had_v6: bool,
    active: bool,
    /// When the next run is due, if the node is active.
    next: Option<Instant>,
    sent: BTreeMap<stun::TxId, Sent>,
    transmits: VecDeque<(Lane, Vec<u8>)>,
    actions: VecDeque<Action>,
    events: VecDeque<Event>,
}

impl Netcheck {
    /// Without a map there is nothing to ask.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            map: RelayMap::default(),
            hosts: Hosts::default(),
            home: HomeChoice::default(),
            run: None,
            again: None,
            runs: 0,
            last_full: None,
            fastest: Vec::new(),
            had_udp: false,
            had_v6: false,
            active: false,
            next: None,
            sent: BTreeMap::new(),
            transmits: VecDeque::new(),
            actions: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes a new map and runs on it. The embedded relay is home at once, until measurements say otherwise.
    pub fn set_relay_map(&mut self, now: Instant, map: &RelayMap) {
        if self.map == *map {
            return;
        }
        self.map = map.clone();
        if self.home.home().is_none_or(|home| !has_relay(&self.map, home)) {
            let embedded = self.map.embedded().filter(|id| has_relay(&self.map, *id));
            self.set_home(embedded);
        }
        self.restart(now, "relay map");
    }

    /// Asks for a run; one that goes on is followed by another.
    pub fn start(&mut self, now: Instant, why: &'static str) {
        if self.run.is_some() {
            self.again = Some(why);
        } else {
            self.begin(now, why);
        }
    }

    /// Asks for a run on another network: what goes on is given up, what was learned is forgotten.
    pub fn restart(&mut self, now: Instant, why: &'static str) {
        self.run = None;
        self.again = None;
        self.last_full = None;
        self.sent.clear();
        self.transmits.clear();
        self.hosts.clear();
        self.home.forget_rounds();
        self.fastest.clear();
        self.begin(now, why);
    }

    /// Says whether a tunnel is in use, so that runs repeat.
    pub fn set_active(&mut self, now: Instant, active: bool) {
        self.active = active;
        self.handle_timeout(now);
    }

    /// The home relay.
    #[must_use]
    pub const fn home(&self) -> Option<RegionId> {
        self.home.home()
    }

    /// Takes a STUN message off a data socket. Its source does not matter: the transaction id is the proof.
    pub fn handle_stun(&mut self, now: Instant, _socket: SocketIx, _from: SocketAddr, datagram: &[u8]) {
        let Ok((tx, public)) = stun::parse_response(datagram) else { return };
        let Some(sent) = self.sent.remove(&tx) else { return };
        if now - sent.at >= LATE {
            return;
        }
        if let Some(run) = self.run.as_mut().filter(|run| run.number == sent.run) {
            run.handle_answer(&sent, public);
        }
        self.events.push_back(Event::Public(public));
        self.advance(now);
    }

    /// Takes the addresses of a host, none when it has none.
    pub fn handle_resolved(&mut self, now: Instant, host: &str, addresses: &[IpAddr]) {
        self.hosts.handle_resolved(now, host, addresses);
        self.advance(now);
    }

    /// Takes how long a region's relay took to answer, `None` when it did not.
    pub fn handle_relay_latency(&mut self, now: Instant, region: RegionId, latency: Option<Duration>) {
        let Some(run) = &mut self.run else {
            if let Some(latency) = latency {
                let round = self.home.with_late(region, latency);
                self.choose_home(now, &round);
            }
            return;
        };
        run.measuring.remove(&region);
        if let Some(latency) = latency {
            run.measured.insert(region, latency);
        }
        self.advance(now);
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<(Lane, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next piece of news.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Looks at the clock.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.sent.retain(|_, sent| now - sent.at < LATE);
        if self.run.is_some() {
            self.advance(now);
        } else if self.active && self.next.is_some_and(|at| at <= now) {
            self.begin(now, "periodic");
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        match &self.run {
            Some(run) => run.poll_timeout(),
            None => self.next.filter(|_| self.active).map(|at| Deadline { at, why: "periodic netcheck" }),
        }
    }

    fn begin(&mut self, now: Instant, why: &'static str) {
        let full = !self.had_udp || self.last_full.is_none_or(|at| now - at >= FULL_EVERY);
        if full {
            self.last_full = Some(now);
        }
        self.runs += 1;
        self.next = None;
        let relays: BTreeSet<_> = self.map.regions.keys().copied().filter(|id| has_relay(&self.map, *id)).collect();
        // With one relay there is no choice, and its latency is only for show.
        let measuring = if full || relays.len() > 1 { relays } else { BTreeSet::new() };
        self.actions.extend(measuring.iter().map(|region| Action::MeasureRelay { region: *region }));
        self.run = Some(Run {
            number: self.runs,
            why,
            started: now,
            probes: self.plan(now, full),
            gathered: false,
            measuring,
            measured: BTreeMap::new(),
            answers_v4: Vec::new(),
            global_v6: None,
            fastest: Vec::new(),
        });
        self.advance(now);
    }

    /// Whom to ask: all regions with STUN, or a few, those first that answered first.
    fn plan(&self, now: Instant, full: bool) -> Vec<Probe> {
        let mut regions: Vec<_> = self
            .map
            .regions
            .iter()
            .filter(|(_, region)| region.nodes.iter().any(|node| node.stun_port.is_some()) && (full || !region.avoid))
            .map(|(id, _)| *id)
            .collect();
        regions.sort_by_key(|id| (self.fastest.iter().position(|f| f == id).unwrap_or(usize::MAX), *id));
        regions.truncate(if full { FULL_REGIONS } else { FEW_REGIONS });
        let families: &[SocketIx] = if full || self.had_v6 { &[SocketIx::V4, SocketIx::V6] } else { &[SocketIx::V4] };
        regions.iter().flat_map(|id| families.iter().map(|family| Probe::new(now, *id, *family))).collect()
    }

    /// Does what is due in a run, and ends it when all is done.
    fn advance(&mut self, now: Instant) {
        let Some(run) = &mut self.run else { return };
        for probe in &mut run.probes {
            while let Some(number) = probe.due(now) {
                let region = self.map.regions.get(&probe.region);
                match region.map_or(Target::None, |region| self.hosts.target(now, region, probe.family, number)) {
                    Target::Address(to) => {
                        let tx = stun::TxId(self.rng.bytes());
                        self.sent.insert(tx, Sent { at: now, run: run.number, region: probe.region, to });
                        self.transmits.push_back((Lane::udp(to), stun::write_request(tx)));
                        probe.handle_sent(now);
                    }
                    Target::Unknown { ask } => {
                        probe.handle_waiting();
                        self.actions.extend(ask.map(|host| Action::Resolve { host }));
                        break;
                    }
                    Target::None => probe.handle_unsendable(now),
                }
            }
            probe.handle_timeout(now);
        }
        if !run.gathered && (run.probes.iter().all(Probe::is_done) || now - run.started >= STUN_LIMIT) {
            run.gathered = true;
            self.events.push_back(Event::Gathered);
        }
        if run.gathered && (run.measuring.is_empty() || now - run.started >= RELAY_LIMIT) {
            self.finish(now);
        }
    }

    fn finish(&mut self, now: Instant) {
        let Some(run) = self.run.take() else { return };
        self.choose_home(now, &run.measured);
        let global_v4 = run.answers_v4.first().map(|(_, public)| *public);
        let report = Report {
            why: run.why,
            took: now - run.started,
            global_v4,
            global_v6: run.global_v6,
            mapping_varies: run.mapping_varies(),
            relay_latency: self.home.latest(now),
            home: self.home.home(),
        };
        self.had_udp = report.udp();
        self.had_v6 = report.global_v6.is_some();
        self.fastest = run.fastest;
        self.next = Some(now + self.rng.between(REPEAT.0, REPEAT.1));
        self.events.push_back(Event::Report(report));
        if let Some(why) = self.again.take() {
            self.begin(now, why);
        }
    }

    /// By measurement, or, when there is no home and nothing could be measured, any: peers must find us somewhere.
    fn choose_home(&mut self, now: Instant, round: &BTreeMap<RegionId, Duration>) {
        let old = self.home.home();
        if !round.is_empty() {
            self.home.handle_round(now, &self.map, round);
        }
        if self.home.home().is_none() {
            let relays: Vec<_> = self.map.regions.keys().copied().filter(|id| has_relay(&self.map, *id)).collect();
            let count = u64::try_from(relays.len()).unwrap_or(0);
            let at = usize::try_from(self.rng.below(count)).unwrap_or(0);
            self.home.set(relays.get(at).copied());
        }
        if let Some(home) = self.home.home().filter(|_| self.home.home() != old) {
            self.events.push_back(Event::Home(home));
        }
    }

    fn set_home(&mut self, home: Option<RegionId>) {
        self.home.set(home);
        self.events.extend(home.map(Event::Home));
    }
}

impl Run {
    fn handle_answer(&mut self, sent: &Sent, public: SocketAddr) {
        let family = SocketIx::for_address(&sent.to);
        for probe in self.probes.iter_mut().filter(|p| p.region == sent.region && p.family == family) {
            probe.handle_answer();
        }
        if !self.fastest.contains(&sent.region) {
            self.fastest.push(sent.region);
        }
        match public {
            SocketAddr::V4(_) => {
                if self.answers_v4.iter().all(|(server, _)| *server != sent.to) {
                    self.answers_v4.push((sent.to, public));
                }
            }
            SocketAddr::V6(_) => self.global_v6 = Some(public),
        }
    }

    fn mapping_varies(&self) -> Option<bool> {
        match self.answers_v4.as_slice() {
            [] | [_] => None,
            [(_, first), rest @ ..] => Some(rest.iter().any(|(_, public)| public != first)),
        }
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        if self.gathered {
            return Some(Deadline { at: self.started + RELAY_LIMIT, why: "relay latency" });
        }
        let limit = Deadline { at: self.started + STUN_LIMIT, why: "STUN limit" };
        self.probes.iter().filter_map(Probe::poll_timeout).chain([limit]).min()
    }
}

fn has_relay(map: &RelayMap, id: RegionId) -> bool {
    map.regions.get(&id).is_some_and(|region| region.relays().next().is_some())
}
