//! What the node says, carried out.

use super::{Connected, Datagram, PingError, Pong, run::DataLoop};
use crate::{
    base::Instant,
    proto::{
        netstack,
        node::{Event, PathInfo},
    },
};
use std::sync::Arc;
use tokio::sync::mpsc;

impl DataLoop {
    /// Handles everything the node has to say; whether there was anything.
    pub(super) fn take_events(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(event) = self.node.poll_event() {
            any = true;
            self.handle_event(now, event);
        }
        any
    }

    fn handle_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Netstack(event) => self.handle_netstack_event(now, event),
            Event::Dialed { dial, flow } => {
                let end = self.flows.open(flow);
                match (self.dials.remove(&dial), self.node.flow_ends(flow)) {
                    (Some((_, reply)), Some((local, remote))) => {
                        // A dialler that is gone drops its end, which closes the stream.
                        let _ = reply.send(Ok(Connected { end, local, remote }));
                    }
                    _ => end.abort(),
                }
            }
            Event::DialFailed { dial, why } => {
                if let Some((_, reply)) = self.dials.remove(&dial) {
                    let _ = reply.send(Err(why));
                }
            }
            Event::Pong { ping, latency, lane } => {
                if let Some((to, reply)) = self.pings.remove(&ping) {
                    let _ = reply.send(Ok(Pong { latency, path: self.path_of(lane, &to) }));
                }
            }
            Event::PingExpired { ping, known } => {
                if let Some((_, reply)) = self.pings.remove(&ping) {
                    let _ = reply.send(Err(if known { PingError::Timeout } else { PingError::UnknownPeer }));
                }
            }
            Event::PathChanged { id, from, to, .. } => {
                let PathInfo { state, lane } = to;
                tracing::info!(peer = %id, from = %from.name(), to = %state.name(), "path changed");
                tracing::debug!(peer = %id, ?lane, "the lane of the new path");
                if tracing::enabled!(tracing::Level::DEBUG)
                    && let Ok(json) = serde_json::to_string(&self.node.counters())
                {
                    tracing::debug!("counters {json}");
                }
                self.tell_watchers();
            }
            Event::PeerUp { .. } | Event::PeerGone { .. } => self.tell_watchers(),
            Event::PeerLost { id } => tracing::debug!(peer = %id, "the coordinator has lost a peer; its tunnel goes on"),
            Event::Announce(node) => {
                if let Some(control) = &self.control {
                    control.announce(node.clone());
                }
                self.own.send_replace(Some(Arc::new(*node)));
            }
            Event::Ready(peers) => {
                if let Some(control) = &self.control {
                    control.ready(peers);
                }
            }
            Event::OpenRelay { region, preferred } => self.open_relay(now, region, preferred),
            Event::CloseRelay { region } => {
                self.lanes.relays.remove(&region);
                self.link_states.remove(&region);
            }
            Event::NotePreferred { region, preferred } => {
                if let Some(link) = self.lanes.relays.get(&region) {
                    link.lane.set_preferred(preferred);
                }
            }
            Event::PingRelay { region } => {
                if let Some(link) = self.lanes.relays.get(&region) {
                    link.lane.ping();
                }
            }
            Event::Resolve { host } => self.resolve(host),
            Event::MeasureRelay { region } => self.measure(region),
            Event::Report(report) => {
                self.report.send_replace(Some(Arc::new(*report)));
                self.refresh_local(now);
            }
        }
    }

    fn handle_netstack_event(&mut self, now: Instant, event: netstack::Event) {
        match event {
            netstack::Event::Incoming { key, .. } => {
                let port = Some(key.local.port());
                let listener = self.listeners.get(&port).or_else(|| self.listeners.get(&None));
                match listener.map(|l| l.try_send(key)) {
                    Some(Ok(())) => {}
                    Some(Err(mpsc::error::TrySendError::Full(_))) => {
                        self.drops.backlog += 1;
                        self.node.refuse(key);
                    }
                    Some(Err(mpsc::error::TrySendError::Closed(_))) | None => self.node.refuse(key),
                }
            }
            netstack::Event::Readable { flow } | netstack::Event::Writable { flow } => {
                self.flows.handle_news(now, &mut self.node, flow, None);
            }
            netstack::Event::Closed { flow, reason } => self.flows.handle_news(now, &mut self.node, flow, Some(reason)),
            netstack::Event::Datagram { from, to, data, .. } => {
                let owner = self.udp_ports.get(&to.port()).or(self.udp_rest.as_ref());
                let sent = owner.map(|owner| owner.try_send(Datagram { from, to, data }));
                self.drops.datagrams += u64::from(!matches!(sent, Some(Ok(()))));
            }
            // An accepted connection is the owner's already; pings of the stack are answered by the node.
            netstack::Event::Connected { .. } | netstack::Event::Pong { .. } => {}
        }
    }

    /// Tells everyone who watches a path how it is now.
    fn tell_watchers(&mut self) {
        let node = &self.node;
        self.watched.retain(|address, sender| {
            let info = node.path_info(address);
            sender.send_if_modified(|old| std::mem::replace(old, info) != info);
            !sender.is_closed()
        });
    }
}
