//! The routing between engines: what one of them says is carried to the others and to the owner.

use super::{Event, Node, endpoints::Announcement};
use crate::{
    base::{Instant, Lane, NodeKey, PeerIx, RegionId},
    proto::{
        netcheck,
        path::{self, PathState},
        relay::routes,
        wg,
    },
};
use std::{net::IpAddr, time::Duration};

/// STUN goes on for this long after the last packet into a tunnel. Equal to the Go client's.
const TUNNEL_IDLE: Duration = Duration::from_secs(45);

impl Node {
    /// The answer to [`Event::Resolve`]; empty when the host is unknown.
    pub fn handle_resolved(&mut self, now: Instant, host: &str, addresses: &[IpAddr]) {
        self.netcheck.handle_resolved(now, host, addresses);
        self.settle(now);
    }

    /// The answer to [`Event::MeasureRelay`].
    pub fn handle_relay_latency(&mut self, now: Instant, region: RegionId, latency: Option<Duration>) {
        self.netcheck.handle_relay_latency(now, region, latency);
        self.settle(now);
    }

    /// The connection to a relay region carries packets.
    pub fn handle_relay_up(&mut self, now: Instant, region: RegionId) {
        self.relays.handle_up(now, region);
        self.update_routes();
        let through: Vec<PeerIx> = self
            .peers
            .iter()
            .map(|(ix, _)| ix)
            .filter(|ix| matches!(self.paths.state(*ix).1, Some(Lane::Relay { region: used, .. }) if used == region))
            .collect();
        for ix in through {
            self.netstack.kick_peer(now, ix);
            self.wg.retry_handshake(now, ix);
        }
        self.settle(now);
    }

    /// The connection to a relay region is gone.
    pub fn handle_relay_down(&mut self, now: Instant, region: RegionId) {
        self.relays.handle_down(now, region);
        self.peers.unhear_all(region);
        self.netcheck.start(now, "relay connection broke");
        self.update_routes();
        self.settle(now);
    }

    /// A relay says that a peer is not connected to it.
    pub fn handle_relay_gone(&mut self, now: Instant, region: RegionId, peer: NodeKey) {
        self.relays.handle_peer_gone(region, &peer);
        if let Some(ix) = self.peers.by_key(&peer) {
            self.peers.unhear(ix, region);
            self.update_route(ix);
        }
        self.settle(now);
    }

    /// A packet of a peer came through a region: it can be reached there.
    pub(super) fn learn_route(&mut self, region: RegionId, from: NodeKey) {
        if let Some(ix) = self.peers.by_key(&from)
            && self.relays.is_up(region)
            && self.peers.hear(ix, region)
            && self.relays.handle_packet(region, from)
        {
            self.update_route(ix);
        }
    }

    pub(super) fn update_route(&mut self, ix: PeerIx) {
        let Some(peer) = self.peers.get(ix) else { return };
        let route = self.relays.route(&peer.facts.key, Some(peer.facts.home));
        self.paths.set_relay_route(ix, route);
    }

    fn update_routes(&mut self) {
        let all: Vec<PeerIx> = self.peers.iter().filter(|(_, p)| p.programmed).map(|(ix, _)| ix).collect();
        for ix in all {
            self.update_route(ix);
        }
    }

    /// Carries everything that engines have to say, until none has anything more.
    pub(super) fn settle(&mut self, now: Instant) {
        loop {
            let mut quiet = true;
            while let Some(event) = self.wg.poll_event() {
                quiet = false;
                match event {
                    // The peer is back after a silence: what was sent into it is not worth waiting for.
                    wg::Event::SessionUp { peer } => self.netstack.kick_peer(now, peer),
                    wg::Event::GaveUp { .. } => {}
                }
            }
            while let Some((ix, bytes, kind)) = self.wg.poll_transmit() {
                quiet = false;
                self.send_control(now, ix, &bytes, kind);
            }
            while let Some(event) = self.paths.poll_event() {
                quiet = false;
                self.handle_path_event(now, event);
            }
            while let Some((lane, bytes)) = self.paths.poll_transmit() {
                quiet = false;
                self.want_relay(now, &lane);
                self.control.push(now, lane, bytes);
            }
            while let Some(event) = self.netcheck.poll_event() {
                quiet = false;
                self.handle_netcheck_event(now, event);
            }
            while let Some(action) = self.netcheck.poll_action() {
                quiet = false;
                self.events.push_back(match action {
                    netcheck::Action::Resolve { host } => Event::Resolve { host },
                    netcheck::Action::MeasureRelay { region } => Event::MeasureRelay { region },
                });
            }
            while let Some((lane, bytes)) = self.netcheck.poll_transmit() {
                quiet = false;
                self.control.push(now, lane, bytes);
            }
            while let Some(action) = self.relays.poll_action() {
                quiet = false;
                self.events.push_back(match action {
                    routes::Action::Open { region, preferred } => {
                        self.counters.relay_dials += 1;
                        Event::OpenRelay { region, preferred }
                    }
                    routes::Action::Close { region } => Event::CloseRelay { region },
                    routes::Action::NotePreferred { region, preferred } => Event::NotePreferred { region, preferred },
                    routes::Action::Ping { region } => Event::PingRelay { region },
                });
            }
            if self.announce {
                self.announce = false;
                self.announce(now);
            }
            if quiet {
                break;
            }
        }
        let active = !self.peers.is_empty() && self.last_sent.is_none_or(|at| now - at < TUNNEL_IDLE);
        self.netcheck.set_active(now, active);
    }

    /// A handshake goes every way that may help; a keepalive goes as data does.
    fn send_control(&mut self, now: Instant, ix: PeerIx, bytes: &[u8], kind: wg::Control) {
        let choice = self.paths.choose(now, ix);
        let mut lanes: Vec<Lane> = [choice.first, choice.second].into_iter().flatten().collect();
        match kind {
            // The first one of a session takes every way at once; a renewal takes the way of data.
            wg::Control::Initiation if !self.wg.has_session(now, ix) => lanes.extend(self.relay_lane(ix)),
            wg::Control::Response => {
                lanes.extend(self.peers.get_mut(ix).and_then(|p| p.initiated_via.take()).map(|via| via.back()));
            }
            wg::Control::Initiation | wg::Control::Keepalive => {}
        }
        if let Some(peer) = self.peers.get_mut(ix) {
            peer.unsent_handshake |= kind == wg::Control::Initiation && lanes.is_empty();
        }
        let direct = lanes.iter().any(|lane| !lane.is_relay());
        let mut used: Vec<Lane> = Vec::new();
        for lane in lanes {
            if !used.contains(&lane) {
                used.push(lane);
                self.want_relay(now, &lane);
                match kind {
                    wg::Control::Initiation => self.control.push_initiation(now, lane, bytes.to_vec()),
                    wg::Control::Response | wg::Control::Keepalive => self.control.push(now, lane, bytes.to_vec()),
                }
            }
        }
        self.paths.handle_sent(now, ix, direct, kind == wg::Control::Initiation);
    }

    fn relay_lane(&self, ix: PeerIx) -> Option<Lane> {
        let facts = &self.peers.get(ix)?.facts;
        let region = self.relays.route(&facts.key, Some(facts.home))?;
        Some(Lane::Relay { region, to: facts.key })
    }

    fn want_relay(&mut self, now: Instant, lane: &Lane) {
        if let Lane::Relay { region, .. } = lane {
            self.relays.want(now, *region);
        }
    }

    fn handle_path_event(&mut self, now: Instant, event: path::Event) {
        match event {
            path::Event::PathChanged { peer, from, to, lane } => {
                self.counters.path_changes += 1;
                // Whatever was sent on a way that was given up is gone: do not wait for a timeout to find out.
                if to == PathState::Relay && matches!(from, PathState::Direct | PathState::Doubtful) {
                    self.netstack.kick_peer(now, peer);
                }
                // A handshake that goes on has not seen the new way; one that found no way at all begins there.
                let unsent = self.peers.get_mut(peer).is_some_and(|p| std::mem::take(&mut p.unsent_handshake));
                if unsent || from != PathState::None {
                    self.wg.retry_handshake(now, peer);
                }
                if let Some(known) = self.peers.get(peer) {
                    let to = super::PathInfo { state: to, lane };
                    let (id, address) = (known.id, known.facts.addresses.first().copied());
                    self.events.push_back(Event::PathChanged { id, address, from, to });
                }
            }
            path::Event::Suspect { peer } => {
                self.netstack.kick_peer(now, peer);
                self.wg.retry_handshake(now, peer);
            }
            path::Event::WantEndpoints => self.netcheck.start(now, "endpoints for a peer"),
            path::Event::Pong { token, latency, lane, .. } => self.handle_disco_pong(token, latency, lane),
        }
    }

    fn handle_netcheck_event(&mut self, now: Instant, event: netcheck::Event) {
        match event {
            netcheck::Event::Public(address) => {
                self.endpoints.handle_public(now, address);
                self.announce = true;
            }
            netcheck::Event::Home(region) => {
                self.home = Some(region);
                self.relays.set_home(now, region);
                self.update_routes();
                self.announce = true;
            }
            netcheck::Event::Gathered => {
                // Callers of peers wait for this even when nothing has changed.
                let endpoints = if self.direct { self.endpoints.list(now) } else { Vec::new() };
                self.paths.set_own_endpoints(now, endpoints);
            }
            netcheck::Event::Report(report) => {
                self.latency = report.latency_by_name();
                self.announce = true;
                self.events.push_back(Event::Report(Box::new(report)));
            }
        }
    }

    /// Tells the path engine our endpoints, and the owner our node if it has changed. New values of latencies are no change
    /// (`stun-netcheck.md` §6); that one more relay has one is: the first home is announced before any was measured.
    fn announce(&mut self, now: Instant) {
        let endpoints = if self.direct { self.endpoints.list(now) } else { Vec::new() };
        let Some(home) = self.home else { return };
        let measured = self.latency.keys().cloned().collect();
        let announcement = Announcement { home, endpoints, addresses: self.addresses.clone(), measured };
        if self.announced.as_ref().is_some_and(|before| !announcement.tells_more_than(before)) {
            return;
        }
        let node = announcement.to_node(self.node_id, self.key, self.disco.public(), &self.latency);
        self.announced = Some(announcement);
        self.events.retain(|event| !matches!(event, Event::Announce(_)));
        self.events.push_back(Event::Announce(Box::new(node)));
    }
}
