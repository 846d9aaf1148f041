//! A machine with one [`Node`]: its relay connections, its control socket, its programs. What the driver is in reality.

use super::{
    internet::{End, HostIx, Internet, PipeIx},
    stream::{Condition, Stream, StreamIx},
};
use crate::{
    base::{
        Deadline, DiscoSecret, Instant, Lane, NodeKey, NodeSecret, RegionId, Rng, SocketIx, Via, agent_addresses, client_address,
        node_id,
    },
    proto::{
        coord::{self, Backoff, ClientEvent, ClientSession},
        netstack,
        node::{Budget, Config, DialFailure, Event, Gone, Node, PathInfo, PingId, Role, SendSpace, Turn},
        relay::client::{PING_LIMIT, Received, RelayClient},
    },
    wire::derp::RelayMap,
};
use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use uuid::Uuid;

/// The UDP port of every node.
pub(crate) const PORT: u16 = 41_641;
/// Packets a turn.
const BUDGET: usize = 256;

/// What the world decides for a host.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// Relay connections to open.
    pub(crate) relays: Vec<RegionId>,
    /// Whether the control socket is wanted.
    pub(crate) control: bool,
    /// Names to look up.
    pub(crate) resolve: Vec<String>,
    /// Regions to time.
    pub(crate) measure: Vec<RegionId>,
}

impl Wishes {
    pub(crate) const fn is_empty(&self) -> bool {
        self.relays.is_empty() && !self.control && self.resolve.is_empty() && self.measure.is_empty()
    }
}

#[derive(Debug)]
struct RelayLink {
    /// Once the world has dialled.
    pipe: Option<PipeIx>,
    client: Option<RelayClient>,
    told_up: bool,
    preferred: bool,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) ix: HostIx,
    pub(crate) id: Uuid,
    pub(crate) role: Role,
    pub(crate) node: Node,
    secret: NodeSecret,
    address: Ipv4Addr,
    rng: Rng,
    relays: BTreeMap<RegionId, RelayLink>,
    session: ClientSession,
    control: Option<PipeIx>,
    control_open: bool,
    backoff: Backoff,
    control_at: Option<Instant>,
    pub(crate) streams: BTreeMap<StreamIx, Stream>,
    /// Whether accepted connections write back what they read.
    pub(crate) echo: bool,
    pub(crate) pongs: Vec<(PingId, Duration, Option<Lane>)>,
    pub(crate) paths: Vec<(Instant, PathInfo)>,
    pub(crate) gone: Vec<(Instant, Gone)>,
    pub(crate) announcements: usize,
    /// When it was first told of a peer.
    pub(crate) told: Option<Instant>,
    inbox: VecDeque<(Via, Vec<u8>)>,
    scratch: Vec<u8>,
}

fn make_node(id: Uuid, role: Role, direct: bool, rng: &mut Rng) -> (Node, NodeSecret) {
    let secret = NodeSecret::generate(rng);
    let addresses = match role {
        Role::Agent => agent_addresses(id).to_vec(),
        Role::Client => vec![client_address(id)],
    };
    let config = Config {
        secret: secret.clone(),
        disco: DiscoSecret::generate(rng),
        node_id: node_id(id),
        addresses,
        role,
        direct,
        buffer_bytes: 64 << 20,
    };
    (Node::new(config, rng), secret)
}

impl Host {
    pub(crate) fn new(now: Instant, ix: HostIx, address: Ipv4Addr, role: Role, direct: bool, mut rng: Rng) -> Self {
        let id = Uuid::from_bytes(rng.bytes());
        let (mut node, secret) = make_node(id, role, direct, &mut rng);
        node.listen_rest(true);
        Self {
            ix,
            id,
            role,
            node,
            secret,
            address,
            relays: BTreeMap::new(),
            session: new_session(now, role),
            control: None,
            control_open: false,
            backoff: Backoff::control(),
            control_at: Some(now),
            streams: BTreeMap::new(),
            echo: false,
            pongs: Vec::new(),
            paths: Vec::new(),
            gone: Vec::new(),
            announcements: 0,
            told: None,
            inbox: VecDeque::new(),
            scratch: Vec::new(),
            rng,
        }
    }

    /// Tells the node what a driver learns at its start.
    pub(crate) fn start(&mut self, now: Instant, map: &RelayMap) {
        self.node.set_relay_map(now, map);
        self.node.set_local_endpoints(now, vec![SocketAddr::new(self.address.into(), PORT)]);
    }

    /// Ends the process and starts another one under the same id: new keys, no connection, no flow.
    pub(crate) fn restart(&mut self, now: Instant, net: &mut Internet, map: &RelayMap, direct: bool) {
        self.kill(now, net);
        let (mut node, secret) = make_node(self.id, self.role, direct, &mut self.rng);
        node.listen_rest(true);
        self.node = node;
        self.secret = secret;
        self.session = new_session(now, self.role);
        self.control_at = Some(now);
        self.start(now, map);
    }

    /// Ends the process without a word.
    pub(crate) fn kill(&mut self, now: Instant, net: &mut Internet) {
        for link in std::mem::take(&mut self.relays).into_values() {
            link.pipe.into_iter().for_each(|pipe| net.close(now, pipe));
        }
        if let Some(pipe) = self.control.take() {
            net.close(now, pipe);
        }
        self.control_open = false;
        self.control_at = None;
        self.streams.clear();
        self.inbox.clear();
    }

    /// The interface has another address.
    pub(crate) fn moved(&mut self, now: Instant, address: Ipv4Addr) {
        self.address = address;
        self.node.set_local_endpoints(now, vec![SocketAddr::new(address.into(), PORT)]);
        self.node.handle_link_change(now);
    }

    pub(crate) fn add_tunnel(&mut self, now: Instant, agent: Uuid) {
        self.node.add_destination(now, agent);
        self.session.add_tunnel(agent);
    }

    pub(crate) fn disconnect(&mut self, now: Instant) {
        self.session.disconnect(now);
    }

    /// Every pipe it holds.
    pub(crate) fn pipes(&self) -> Vec<PipeIx> {
        self.relays.values().filter_map(|l| l.pipe).chain(self.control).collect()
    }

    pub(crate) const fn control_pipe(&self) -> Option<PipeIx> {
        self.control
    }

    pub(crate) const fn is_controlled(&self) -> bool {
        self.control_open
    }

    pub(crate) fn relay_dialled(&mut self, region: RegionId, pipe: PipeIx) {
        if let Some(link) = self.relays.get_mut(&region) {
            link.pipe = Some(pipe);
        }
    }

    pub(crate) fn control_dialled(&mut self, pipe: PipeIx) {
        self.control = Some(pipe);
        self.control_at = None;
    }

    pub(crate) fn handle_datagram(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        self.inbox.push_back((Via::Udp { socket: SocketIx::for_address(&from), from }, bytes));
    }

    pub(crate) fn handle_opened(&mut self, now: Instant, pipe: PipeIx) {
        if self.control == Some(pipe) {
            self.control_open = true;
            self.backoff.reset();
            self.session.restart(now);
            self.session.open_coordination();
            return;
        }
        let Self { relays, secret, rng, .. } = self;
        if let Some(link) = relays.values_mut().find(|l| l.pipe == Some(pipe)) {
            let mut client = RelayClient::new(now, secret.clone(), rng.split());
            client.set_preferred(link.preferred);
            link.client = Some(client);
        }
    }

    pub(crate) fn handle_bytes(&mut self, now: Instant, net: &mut Internet, pipe: PipeIx, bytes: &[u8]) {
        if self.control == Some(pipe) {
            self.session.handle_bytes(now, bytes);
            return;
        }
        let Self { relays, inbox, .. } = self;
        let Some((&region, link)) = relays.iter_mut().find(|(_, l)| l.pipe == Some(pipe)) else { return };
        let Some(client) = &mut link.client else { return };
        let mut gone: Vec<NodeKey> = Vec::new();
        let taken = client.handle_bytes(now, bytes, &mut |received| match received {
            Received::Packet { from, packet } => inbox.push_back((Via::Relay { region, from }, packet.to_vec())),
            Received::PeerGone { peer, .. } => gone.push(peer),
            Received::Health(_) | Received::Restarting { .. } => {}
        });
        for peer in gone {
            self.node.handle_relay_gone(now, region, peer);
        }
        if taken.is_err() {
            net.close(now, pipe);
            self.drop_relay(now, region);
        }
    }

    pub(crate) fn handle_closed(&mut self, now: Instant, pipe: PipeIx) {
        if self.control == Some(pipe) {
            self.lose_control(now);
            return;
        }
        let region = self.relays.iter().find(|(_, l)| l.pipe == Some(pipe)).map(|(region, _)| *region);
        if let Some(region) = region {
            self.drop_relay(now, region);
        }
    }

    fn lose_control(&mut self, now: Instant) {
        self.control = None;
        self.control_open = false;
        self.session.handle_closed();
        self.node.handle_coordinator_lost(now);
        self.control_at = Some(now + self.backoff.next(&mut self.rng));
    }

    fn drop_relay(&mut self, now: Instant, region: RegionId) {
        self.relays.remove(&region);
        self.node.handle_relay_down(now, region);
    }

    /// One turn of the data loop, repeated until nothing moves.
    pub(crate) fn service(&mut self, now: Instant, net: &mut Internet, next_stream: &mut usize, wishes: &mut Wishes) {
        if self.control_at.is_some_and(|at| at <= now) {
            self.control_at = None;
            wishes.control = true;
        }
        loop {
            let mut quiet = true;
            while let Some((via, bytes)) = self.inbox.pop_front() {
                self.node.handle_datagram(now, via, &bytes);
                quiet = false;
            }
            if self.node.poll_timeout().is_some_and(|d| d.at <= now) {
                self.node.handle_timeout(now);
                quiet = false;
            }
            for stream in self.streams.values_mut() {
                quiet &= !stream.pump(now, &mut self.node);
            }
            quiet &= !self.transmit(now, net);
            while let Some(event) = self.node.poll_event() {
                self.handle_event(now, net, event, next_stream, wishes);
                quiet = false;
            }
            quiet &= !self.service_relays(now, net);
            quiet &= !self.service_control(now, net);
            if quiet {
                break;
            }
        }
    }

    /// Returns whether anything left.
    fn transmit(&mut self, now: Instant, net: &mut Internet) -> bool {
        let mut moved = false;
        loop {
            let Self { ix, node, relays, scratch, .. } = self;
            let mut out = Outbox { host: *ix, now, net, relays, scratch, committed: 0 };
            let mut budget = Budget::new(BUDGET);
            let turn = node.transmit(now, &mut out, &mut budget);
            moved |= out.committed > 0;
            if turn != Turn::More {
                return moved;
            }
        }
    }

    fn service_relays(&mut self, now: Instant, net: &mut Internet) -> bool {
        let mut moved = false;
        let mut broken = Vec::new();
        for (&region, link) in &mut self.relays {
            let (Some(client), Some(pipe)) = (&mut link.client, link.pipe) else { continue };
            let mut out = Vec::new();
            client.poll_output(&mut out);
            if !out.is_empty() {
                net.write(now, pipe, End::Client, out);
                moved = true;
            }
            if client.handle_timeout(now).is_err() {
                broken.push((region, pipe));
            } else if client.is_ready() && !link.told_up {
                link.told_up = true;
                self.node.handle_relay_up(now, region);
                moved = true;
            }
        }
        for (region, pipe) in broken {
            net.close(now, pipe);
            self.drop_relay(now, region);
            moved = true;
        }
        moved
    }

    fn service_control(&mut self, now: Instant, net: &mut Internet) -> bool {
        let mut moved = false;
        if self.control_open && self.session.poll_timeout().is_some_and(|d| d.at <= now) {
            self.session.handle_timeout(now);
            moved = true;
        }
        while let Some(event) = self.session.poll_event() {
            moved = true;
            match event {
                ClientEvent::PeerUpdate(update) => {
                    self.told.get_or_insert(now);
                    self.node.handle_peer_update(now, &update);
                }
                ClientEvent::RelayMap(map) => {
                    if let Ok(map) = RelayMap::try_from(&*map) {
                        self.node.set_relay_map(now, &map);
                    }
                }
                ClientEvent::Closed(coord::CloseReason::Disconnected) => {
                    if let Some(pipe) = self.control.take() {
                        net.close(now, pipe);
                    }
                    self.control_open = false;
                }
                ClientEvent::Closed(_) => {
                    if let Some(pipe) = self.control.take() {
                        net.close(now, pipe);
                        self.lose_control(now);
                    }
                }
                ClientEvent::Reply { .. } | ClientEvent::CoordinatorError(_) => {}
            }
        }
        if let Some(pipe) = self.control.filter(|_| self.control_open) {
            let mut out = Vec::new();
            self.session.poll_output(&mut out);
            if !out.is_empty() {
                net.write(now, pipe, End::Client, out);
                moved = true;
            }
        }
        moved
    }

    fn handle_event(&mut self, now: Instant, net: &mut Internet, event: Event, next_stream: &mut usize, wishes: &mut Wishes) {
        match event {
            Event::Dialed { dial, flow } => {
                if let Some(stream) = self.streams.values_mut().find(|s| s.dial == Some(dial)) {
                    stream.flow = Some(flow);
                    stream.opened = Some(now);
                    stream.condition = Condition::Open;
                }
            }
            Event::DialFailed { dial, why } => self.fail_dial(dial, why),
            Event::Netstack(netstack::Event::Incoming { key, .. }) => {
                if let Some(flow) = self.node.accept(now, key) {
                    self.streams.insert(StreamIx(*next_stream), Stream::accepted(now, flow, self.echo));
                    *next_stream += 1;
                }
            }
            Event::Netstack(netstack::Event::Closed { flow, .. }) => {
                if let Some(stream) = self.streams.values_mut().find(|s| s.flow == Some(flow)) {
                    stream.pump(now, &mut self.node);
                    stream.condition = Condition::Closed;
                    stream.closed_at = Some(now);
                }
                self.node.release(now, flow);
            }
            Event::Netstack(_) | Event::PeerUp { .. } | Event::PeerLost { .. } | Event::Report(_) => {}
            Event::Pong { ping, latency, lane } => self.pongs.push((ping, latency, lane)),
            Event::PingExpired { .. } => {}
            Event::PathChanged { to, .. } => self.paths.push((now, to)),
            Event::PeerGone { why, .. } => self.gone.push((now, why)),
            Event::Announce(node) => {
                self.announcements += 1;
                self.session.set_self(Some(*node));
            }
            Event::Ready(ids) => self.session.ready(ids),
            Event::OpenRelay { region, preferred } => {
                if let Entry::Vacant(vacant) = self.relays.entry(region) {
                    vacant.insert(RelayLink { pipe: None, client: None, told_up: false, preferred });
                    wishes.relays.push(region);
                }
            }
            Event::CloseRelay { region } => {
                if let Some(link) = self.relays.remove(&region) {
                    link.pipe.into_iter().for_each(|pipe| net.close(now, pipe));
                }
            }
            Event::NotePreferred { region, preferred } => {
                if let Some(link) = self.relays.get_mut(&region) {
                    link.preferred = preferred;
                    if let Some(client) = &mut link.client {
                        client.set_preferred(preferred);
                    }
                }
            }
            Event::PingRelay { region } => {
                if let Some(client) = self.relays.get_mut(&region).and_then(|link| link.client.as_mut()) {
                    client.ping(now, PING_LIMIT);
                }
            }
            Event::Resolve { host } => wishes.resolve.push(host),
            Event::MeasureRelay { region } => wishes.measure.push(region),
        }
    }

    fn fail_dial(&mut self, dial: crate::proto::node::DialId, why: DialFailure) {
        if let Some(stream) = self.streams.values_mut().find(|s| s.dial == Some(dial)) {
            stream.condition = Condition::Failed(why);
        }
    }

    /// When the host wants its next turn.
    pub(crate) fn wake(&self) -> Option<Deadline> {
        let relays = self.relays.values().filter_map(|l| l.client.as_ref()?.poll_timeout());
        let control = self.control_at.map(|at| Deadline { at, why: "control back-off" });
        let session = self.session.poll_timeout().filter(|_| self.control_open);
        relays.chain(control).chain(session).chain(self.node.poll_timeout()).min()
    }
}

fn new_session(now: Instant, role: Role) -> ClientSession {
    let role = match role {
        Role::Client => coord::ClientRole::Client,
        Role::Agent => coord::ClientRole::Agent,
    };
    ClientSession::new(role, now)
}

/// The lanes of one host.
struct Outbox<'a> {
    host: HostIx,
    now: Instant,
    net: &'a mut Internet,
    relays: &'a mut BTreeMap<RegionId, RelayLink>,
    scratch: &'a mut Vec<u8>,
    committed: usize,
}

impl SendSpace for Outbox<'_> {
    fn room(&self, lane: &Lane, len: usize) -> bool {
        match lane {
            Lane::Udp { .. } => true,
            Lane::Relay { region, .. } => {
                let link = self.relays.get(region).filter(|l| l.client.as_ref().is_some_and(RelayClient::is_ready));
                link.and_then(|l| l.pipe).is_some_and(|pipe| self.net.room(pipe, End::Client) >= len + 64)
            }
        }
    }

    fn slot(&mut self, _: &Lane, len: usize) -> &mut [u8] {
        self.scratch.clear();
        self.scratch.resize(len, 0);
        self.scratch
    }

    fn commit(&mut self, lane: &Lane, used: usize) {
        let Some(bytes) = self.scratch.get(..used) else { return };
        self.committed += 1;
        match lane {
            Lane::Udp { to, .. } => self.net.send(self.now, self.host, PORT, *to, bytes.to_vec()),
            Lane::Relay { region, to } => {
                let Some(link) = self.relays.get_mut(region) else { return };
                let (Some(client), Some(pipe)) = (&mut link.client, link.pipe) else { return };
                let mut out = Vec::new();
                client.poll_output(&mut out);
                client.write_packet(self.now, to, bytes, &mut out);
                self.net.write(self.now, pipe, End::Client, out);
            }
        }
    }
}
