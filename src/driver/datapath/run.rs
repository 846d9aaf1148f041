//! The loop itself.

use super::{
    BACKLOG, Command, Config, Connected, Counters, Datagram, Outgoing, PingError, Pong, QueueDrops, Ticket, flows::Flows,
    lanes::Lanes,
};
use crate::{
    base::{Instant, Lane, RegionId, Rng, Via},
    driver::{
        clock,
        control::{Control, Update},
        dns, endpoints,
        pipe::Key,
        relay::{Incoming, Link, Relays, State},
        sockets::Sockets,
    },
    proto::{
        netcheck::Report,
        netstack::IncomingKey,
        node::{Budget, DialFailure, DialId, Node, PathInfo, PingId, Turn},
    },
    wire::{coord::tailnet, derp::RelayMap},
};
use rustc_hash::FxHashMap;
use std::{
    collections::BTreeMap,
    future::{Future as _, poll_fn},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Sleep,
};

/// Datagrams taken in by one turn.
const UDP_IN: usize = 256;
/// Packets of one relay taken in by one turn.
const RELAY_IN: usize = 64;
/// Packets sent by one turn.
const OUT: usize = 256;
/// Commands, dirty streams and updates looked at by one turn, each.
const ASKED: usize = 256;
/// How long the bytes of closing streams may take. The coordinator's good-bye comes on top.
const FLUSH_LIMIT: Duration = Duration::from_millis(700);

/// A fact that a helping task found out.
pub(super) enum Fact {
    Resolved { host: String, addresses: Vec<IpAddr> },
    Latency { region: RegionId, latency: Option<Duration> },
}

/// Good-bye: the streams first, then the coordinator.
struct Closing {
    replies: Vec<oneshot::Sender<()>>,
    flush_until: Instant,
    /// Runs when the streams are done.
    farewell: Option<tokio::task::JoinHandle<()>>,
}

/// One node with everything that belongs to it.
pub(super) struct DataLoop {
    pub(super) node: Node,
    pub(super) lanes: Lanes,
    pub(super) flows: Flows,
    pub(super) relays: Relays,
    /// Where each link stood when it was looked at last.
    pub(super) link_states: BTreeMap<RegionId, State>,
    pub(super) relay_map: Arc<RelayMap>,
    pub(super) rng: Rng,
    pub(super) control: Option<Control>,
    updates: Option<mpsc::Receiver<Update>>,
    commands: mpsc::UnboundedReceiver<Command>,
    outgoing: mpsc::Receiver<Outgoing>,
    facts: mpsc::UnboundedReceiver<Fact>,
    pub(super) facts_sender: mpsc::UnboundedSender<Fact>,
    pub(super) helpers: JoinSet<()>,
    pub(super) dials: BTreeMap<DialId, (Ticket, oneshot::Sender<Result<Connected, DialFailure>>)>,
    pub(super) pings: BTreeMap<PingId, (Ipv6Addr, oneshot::Sender<Result<Pong, PingError>>)>,
    pub(super) listeners: BTreeMap<Option<u16>, mpsc::Sender<IncomingKey>>,
    pub(super) udp_ports: FxHashMap<u16, mpsc::Sender<Datagram>>,
    pub(super) udp_rest: Option<mpsc::Sender<Datagram>>,
    pub(super) watched: BTreeMap<Ipv6Addr, watch::Sender<Option<PathInfo>>>,
    pub(super) own: watch::Sender<Option<Arc<tailnet::Node>>>,
    pub(super) report: watch::Sender<Option<Arc<Report>>>,
    capture: Option<mpsc::Sender<Vec<u8>>>,
    local: Vec<SocketAddr>,
    pub(super) drops: QueueDrops,
    turns: u64,
    sleeps: u64,
    closing: Option<Closing>,
    /// All handles are gone.
    abandoned: bool,
    /// Buffers for what the channels hold.
    keys: Vec<Key>,
    asked: Vec<Command>,
    told: Vec<Update>,
    sent: Vec<Outgoing>,
    found: Vec<Fact>,
}

impl DataLoop {
    pub(super) fn new(
        config: Config,
        sockets: Sockets,
        commands: mpsc::UnboundedReceiver<Command>,
        outgoing: mpsc::Receiver<Outgoing>,
        own: watch::Sender<Option<Arc<tailnet::Node>>>,
        report: watch::Sender<Option<Arc<Report>>>,
    ) -> Self {
        let Config { node, relay_map, http, websocket_only, port: _, control, capture, mut rng } = config;
        let relays = Relays::new(http, node.secret.clone(), websocket_only);
        let node = Node::new(node, &mut rng);
        let updates = control.as_ref().and_then(Control::take_updates);
        let (facts_sender, facts) = mpsc::unbounded_channel();
        let mut this = Self {
            node,
            lanes: Lanes::new(sockets),
            flows: Flows::new(),
            relays,
            link_states: BTreeMap::new(),
            relay_map: Arc::default(),
            rng,
            control,
            updates,
            commands,
            outgoing,
            facts,
            facts_sender,
            helpers: JoinSet::new(),
            dials: BTreeMap::new(),
            pings: BTreeMap::new(),
            listeners: BTreeMap::new(),
            udp_ports: FxHashMap::default(),
            udp_rest: None,
            watched: BTreeMap::new(),
            own,
            report,
            capture,
            local: Vec::new(),
            drops: QueueDrops::default(),
            turns: 0,
            sleeps: 0,
            closing: None,
            abandoned: false,
            keys: Vec::new(),
            asked: Vec::new(),
            told: Vec::new(),
            sent: Vec::new(),
            found: Vec::new(),
        };
        let now = clock::now();
        if this.capture.is_some() {
            this.node.start_capture(now, clock::wall());
        }
        this.refresh_local(now);
        if let Some(map) = relay_map {
            this.set_relay_map(now, map);
        }
        this
    }

    pub(super) async fn run(mut self) {
        let mut timer = pin!(tokio::time::sleep_until(tokio::time::Instant::now()));
        let mut armed: Option<Instant> = None;
        loop {
            let now = clock::now();
            let more = self.turn(now);
            if self.is_done(now) {
                break;
            }
            if more {
                // The other tasks of the thread get a look in between.
                tokio::task::yield_now().await;
                continue;
            }
            let deadline = [self.node.poll_timeout().map(|d| d.at), self.flush_deadline()].into_iter().flatten().min();
            // An early timer only costs one idle turn; setting it anew for every packet would cost more.
            if let Some(at) = deadline
                && armed.is_none_or(|armed| at < armed || armed <= now)
            {
                timer.as_mut().reset(clock::timer(now, at));
                armed = Some(at);
            }
            self.sleeps += 1;
            poll_fn(|cx| self.poll_wake(cx, timer.as_mut(), armed.is_some())).await;
            if armed.is_some_and(|armed| armed <= clock::now()) {
                armed = None;
            }
        }
    }

    /// One turn; whether another one should follow without sleep.
    fn turn(&mut self, now: Instant) -> bool {
        self.turns += 1;
        let mut more = self.take_datagrams(now);
        more |= self.take_relays(now);
        more |= self.take_asked(now);
        if self.node.poll_timeout().is_some_and(|d| d.at <= now) {
            self.node.handle_timeout(now);
        }
        self.take_events(now);
        let mut budget = Budget::new(OUT);
        more |= self.node.transmit(now, &mut self.lanes, &mut budget) == Turn::More;
        self.lanes.flush();
        self.hand_over_capture();
        // Events of this turn's sending may move bytes that want to leave too.
        more | self.take_events(now)
    }

    /// Passes captured packets on. While their owner does not keep up they wait in the node, up to its limit.
    fn hand_over_capture(&mut self) {
        let Some(owner) = &self.capture else { return };
        if owner.is_closed() {
            self.node.stop_capture();
            self.capture = None;
        } else if let Ok(place) = owner.try_reserve()
            && let Some((records, lost)) = self.node.take_capture()
        {
            if lost > 0 {
                tracing::debug!(lost, "the packet capture has gaps: its file is written too slowly");
            }
            place.send(records);
        }
    }

    fn take_datagrams(&mut self, now: Instant) -> bool {
        let Self { node, lanes, .. } = self;
        let taken = lanes.sockets.receive(UDP_IN, |socket, from, d| node.handle_datagram(now, Via::Udp { socket, from }, d));
        taken >= UDP_IN / 2
    }

    fn take_relays(&mut self, now: Instant) -> bool {
        let Self { node, lanes, link_states, .. } = self;
        let mut more = false;
        let mut ended = Vec::new();
        for (&region, link) in &mut lanes.relays {
            // The state first: what was delivered before the end is still taken in.
            let state = link.lane.state();
            if state == State::Up && link_states.insert(region, state) != Some(State::Up) {
                node.handle_relay_up(now, region);
            }
            let taken = link.lane.receive(RELAY_IN, |incoming| match incoming {
                Incoming::Packet(from, d) => node.handle_datagram(now, Via::Relay { region, from }, d),
                Incoming::Gone(peer) => node.handle_relay_gone(now, region, peer),
            });
            more |= taken >= RELAY_IN;
            if state == State::Down && taken == 0 {
                ended.push(region);
            }
        }
        for region in ended {
            lanes.relays.remove(&region);
            link_states.remove(&region);
            node.handle_relay_down(now, region);
            more = true;
        }
        more
    }

    /// Takes in what owners, the coordinator and helping tasks have for the loop.
    fn take_asked(&mut self, now: Instant) -> bool {
        let mut more = false;
        while self.keys.len() < ASKED
            && let Ok(key) = self.flows.dirty.try_recv()
        {
            self.keys.push(key);
        }
        more |= self.keys.len() >= ASKED;
        let mut keys = std::mem::take(&mut self.keys);
        for key in keys.drain(..) {
            self.flows.service(now, &mut self.node, key);
        }
        self.keys = keys;
        while self.asked.len() < ASKED
            && let Ok(command) = self.commands.try_recv()
        {
            self.asked.push(command);
        }
        more |= self.asked.len() >= ASKED;
        for command in std::mem::take(&mut self.asked) {
            self.handle_command(now, command);
        }
        for outgoing in std::mem::take(&mut self.sent) {
            self.send_datagram(outgoing);
        }
        for _ in 0..ASKED {
            let Ok(outgoing) = self.outgoing.try_recv() else { break };
            self.send_datagram(outgoing);
        }
        for update in std::mem::take(&mut self.told) {
            self.handle_update(now, update);
        }
        for fact in std::mem::take(&mut self.found) {
            match fact {
                Fact::Resolved { host, addresses } => self.node.handle_resolved(now, &host, &addresses),
                Fact::Latency { region, latency } => self.node.handle_relay_latency(now, region, latency),
            }
        }
        while self.helpers.try_join_next().is_some() {}
        more
    }

    fn handle_update(&mut self, now: Instant, update: Update) {
        match update {
            Update::Peer(update) => self.node.handle_peer_update(now, &update),
            Update::RelayMap(map) => self.set_relay_map(now, map),
            Update::Lost => self.node.handle_coordinator_lost(now),
        }
    }

    fn handle_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Dial { ticket, to, deadline, reply } => {
                if self.closing.is_none() {
                    let dial = self.node.dial(now, to, deadline);
                    self.dials.insert(dial, (ticket, reply));
                }
            }
            Command::CancelDial(ticket) => {
                let found = self.dials.iter().find(|(_, (t, _))| *t == ticket).map(|(dial, _)| *dial);
                if let Some(dial) = found {
                    self.dials.remove(&dial);
                    self.node.cancel_dial(now, dial);
                }
            }
            Command::Listen { port, reply } => {
                let _ = reply.send(self.listen(port));
            }
            Command::Unlisten(port) => {
                // A new listener may have taken the port meanwhile.
                if self.listeners.get(&port).is_some_and(mpsc::Sender::is_closed) {
                    self.listeners.remove(&port);
                    match port {
                        Some(port) => self.node.unlisten(port),
                        None => self.node.listen_rest(false),
                    }
                }
            }
            Command::Accept { key, reply } => {
                let end = self.node.accept(now, key).map(|flow| self.flows.open(flow));
                // An owner that is gone drops its end, which closes the stream.
                let _ = reply.send(end);
            }
            Command::Refuse(key) => self.node.refuse(key),
            Command::BindUdp { port, reply } => self.bind_udp(port, reply),
            Command::UnbindUdp(port) => self.unbind_udp(port),
            Command::BindUdpRest(reply) => self.bind_udp_rest(reply),
            Command::UnbindUdpRest => self.unbind_udp_rest(),
            Command::Ping { to, kind, deadline, reply } => {
                let ping = self.node.ping(now, to, kind, deadline);
                self.pings.insert(ping, (to, reply));
            }
            Command::WatchPath { address, reply } => {
                let node = &self.node;
                let sender = self.watched.entry(address).or_insert_with(|| watch::Sender::new(node.path_info(&address)));
                let _ = reply.send(sender.subscribe());
            }
            Command::PeerInfo { address, reply } => {
                let _ = reply.send(self.node.peer_info(now, &address));
            }
            Command::AddDestination(id) => {
                self.node.add_destination(now, id);
                if let Some(control) = &self.control {
                    control.add_tunnel(id);
                }
            }
            Command::RemoveDestination(id) => {
                self.node.remove_destination(id);
                if let Some(control) = &self.control {
                    control.remove_tunnel(id);
                }
            }
            Command::PeerUpdate(update) => self.node.handle_peer_update(now, &update),
            Command::SetRelayMap(map) => self.set_relay_map(now, *map),
            Command::SetDirect(direct) => self.node.set_direct(now, direct),
            Command::SetWebsocketOnly(on) => self.relays.set_websocket_only(on),
            Command::Counters(reply) => {
                let counters = Counters {
                    node: self.node.counters(),
                    udp: self.lanes.sockets.counters(),
                    relays: self.relays.counters(),
                    drops: self.drops,
                    turns: self.turns,
                    sleeps: self.sleeps,
                };
                let _ = reply.send(counters);
            }
            Command::Close(reply) => self.close(now).push(reply),
        }
    }

    fn listen(&mut self, port: Option<u16>) -> io::Result<mpsc::Receiver<IncomingKey>> {
        if self.listeners.get(&port).is_some_and(|l| !l.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        self.listeners.insert(port, sender);
        match port {
            Some(port) => self.node.listen(port),
            None => self.node.listen_rest(true),
        }
        Ok(receiver)
    }

    /// Takes a new relay map. Connections to regions that changed are ended; the node asks for new ones.
    fn set_relay_map(&mut self, now: Instant, map: RelayMap) {
        if *self.relay_map == map {
            return;
        }
        let old = std::mem::replace(&mut self.relay_map, Arc::new(map));
        let changed = |id: &RegionId| old.regions.get(id) != self.relay_map.regions.get(id);
        let gone: Vec<RegionId> = self.lanes.relays.keys().copied().filter(changed).collect();
        self.node.set_relay_map(now, &self.relay_map);
        for region in gone {
            self.lanes.relays.remove(&region);
            self.link_states.remove(&region);
            self.node.handle_relay_down(now, region);
        }
    }

    /// The node wants a connection to a region.
    pub(super) fn open_relay(&mut self, now: Instant, region: RegionId, preferred: bool) {
        let Some(known) = self.relay_map.regions.get(&region).cloned() else {
            return self.node.handle_relay_down(now, region);
        };
        let link: Link = self.relays.open(region, known, preferred, self.rng.split());
        self.link_states.insert(region, State::Dialing);
        self.lanes.relays.insert(region, link);
    }

    /// Looks at the interfaces again; another set of addresses means another network.
    pub(super) fn refresh_local(&mut self, now: Instant) {
        let (v4, v6) = self.lanes.sockets.ports();
        let local = endpoints::local(v4, v6);
        if local != self.local {
            let first = self.local.is_empty();
            self.local.clone_from(&local);
            self.node.set_local_endpoints(now, local);
            if !first {
                tracing::debug!("the addresses of this host have changed");
                self.relays.handle_link_change();
                self.node.handle_link_change(now);
            }
        }
    }

    /// Looks a host up beside the loop.
    pub(super) fn resolve(&mut self, host: String) {
        let facts = self.facts_sender.clone();
        self.helpers.spawn(async move {
            let addresses = dns::resolve(&host).await.unwrap_or_default();
            let _ = facts.send(Fact::Resolved { host, addresses });
        });
    }

    /// Times a request to a region beside the loop.
    pub(super) fn measure(&mut self, region: RegionId) {
        let (facts, relays, map) = (self.facts_sender.clone(), self.relays.clone(), Arc::clone(&self.relay_map));
        self.helpers.spawn(async move {
            let latency = match map.regions.get(&region) {
                Some(known) => relays.measure(known).await,
                None => None,
            };
            let _ = facts.send(Fact::Latency { region, latency });
        });
    }

    /// The way of packets to a peer, as it was told last.
    pub(super) fn path_of(&self, lane: Option<Lane>, to: &Ipv6Addr) -> Option<PathInfo> {
        let info = self.node.path_info(to)?;
        Some(PathInfo { lane: lane.or(info.lane), ..info })
    }

    /// Begins the good-bye, if it has not begun; returns whom to tell of its end.
    fn close(&mut self, now: Instant) -> &mut Vec<oneshot::Sender<()>> {
        if self.closing.is_none() {
            self.stop(now);
        }
        let closing = Closing { replies: Vec::new(), flush_until: now + FLUSH_LIMIT, farewell: None };
        &mut self.closing.get_or_insert(closing).replies
    }

    /// Takes nothing new, and has everything sent that was written.
    fn stop(&mut self, now: Instant) {
        for port in std::mem::take(&mut self.listeners).into_keys() {
            match port {
                Some(port) => self.node.unlisten(port),
                None => self.node.listen_rest(false),
            }
        }
        for (dial, _) in std::mem::take(&mut self.dials) {
            self.node.cancel_dial(now, dial);
        }
        self.flows.close_all(now, &mut self.node);
    }

    fn flush_deadline(&self) -> Option<Instant> {
        self.closing.as_ref().filter(|c| c.farewell.is_none()).map(|c| c.flush_until)
    }

    /// Whether the loop has nothing left to do. Starts the good-bye when the streams are through.
    fn is_done(&mut self, now: Instant) -> bool {
        if self.abandoned {
            self.close(now);
        }
        let Some(closing) = &mut self.closing else { return false };
        let flushed = now >= closing.flush_until || self.flows.are_drained() && !self.node.undelivered();
        if closing.farewell.is_none() && !flushed {
            return false;
        }
        let control = self.control.clone();
        let farewell = closing.farewell.get_or_insert_with(|| {
            tokio::spawn(async move {
                if let Some(control) = control {
                    control.close().await;
                }
            })
        });
        farewell.is_finished()
    }

    /// Ready when there is something to do.
    fn poll_wake(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>, armed: bool) -> Poll<()> {
        let mut awake = armed && timer.poll(cx).is_ready();
        awake |= self.lanes.sockets.poll_ready(cx).is_ready() || self.lanes.sockets.has_recovered();
        self.relays.bell().register(cx.waker());
        let states = &self.link_states;
        let changed = |id: &RegionId, link: &Link| states.get(id) != Some(&link.lane.state());
        awake |=
            self.lanes.relays.iter().any(|(id, link)| link.lane.has_incoming() || link.lane.has_recovered() || changed(id, link));
        awake |= self.flows.dirty.poll_recv_many(cx, &mut self.keys, ASKED).is_ready();
        match self.commands.poll_recv_many(cx, &mut self.asked, ASKED) {
            Poll::Ready(0) => {
                awake |= !std::mem::replace(&mut self.abandoned, true);
            }
            Poll::Ready(_) => awake = true,
            Poll::Pending => {}
        }
        if let Poll::Ready(n) = self.outgoing.poll_recv_many(cx, &mut self.sent, ASKED) {
            awake |= n > 0;
        }
        if let Some(updates) = &mut self.updates {
            match updates.poll_recv_many(cx, &mut self.told, ASKED) {
                Poll::Ready(0) => self.updates = None,
                Poll::Ready(_) => awake = true,
                Poll::Pending => {}
            }
        }
        awake |= self.facts.poll_recv_many(cx, &mut self.found, ASKED).is_ready();
        if let Some(farewell) = self.closing.as_mut().and_then(|c| c.farewell.as_mut()) {
            awake |= Pin::new(farewell).poll(cx).is_ready();
        }
        if awake { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for DataLoop {
    fn drop(&mut self) {
        if let Some(closing) = self.closing.take() {
            for reply in closing.replies {
                let _ = reply.send(());
            }
        }
    }
}
