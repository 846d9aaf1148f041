//! The server's node and its place in the coordinator.

use super::{
    super::{app::App, coordination::Coordination},
    Running, Uses,
};
use crate::{
    driver::http::{Http, HttpOptions, ProxyChoice},
    net::{Config, Tailnet},
    proto::coord::{Auth, ConnId, Delivery},
    wire::{
        coord::tailnet::{CoordinateRequest, Tunnel, UpdateSelf},
        derp::RelayMap,
    },
};
use std::{collections::BTreeSet, io, sync::Arc, time::Duration};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

/// A tunnel that nobody used for so long is taken back, as in Go.
const IDLE: Duration = Duration::from_secs(30 * 60);

/// Starts the node and its task.
pub(super) async fn start(app: &App) -> io::Result<Running> {
    // Other relays are reached without a proxy too: what leads out of a server is its own network.
    let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
    let http = Http::new(app.network().own_url.as_str(), None, options).map_err(io::Error::other)?;
    let config = Config {
        relay_map: Some(own_map(&app.relay_map(), &http)),
        direct: !app.network().block_direct,
        force_websockets: app.network().force_websockets,
        ..Config::client(http.clone())?
    };
    let tailnet = Tailnet::start_on_thread(config).await?;
    let uses = Arc::new(Uses::default());
    let wake = Arc::new(Notify::new());
    let conn = app.coordination().connect(Uuid::new_v4(), Auth::All, &wake);
    let (reached, used) = (BTreeSet::new(), Arc::clone(&uses));
    let task = Task { app: app.clone(), http, tailnet: tailnet.clone(), uses: used, wake, conn, reached };
    app.spawn(task.run());
    tracing::debug!("the server's own node starts");
    Ok(Running { tailnet, uses })
}

/// The relays as this process reaches them.
fn own_map(map: &RelayMap, http: &Http) -> RelayMap {
    let (host, port, plain) = http.endpoint();
    let mut map = map.clone();
    map.rewrite_embedded(&host, port, plain);
    map
}

struct Task {
    app: App,
    http: Http,
    tailnet: Tailnet,
    uses: Arc<Uses>,
    wake: Arc<Notify>,
    conn: ConnId,
    /// The agents that a tunnel was asked to.
    reached: BTreeSet<Uuid>,
}

impl Task {
    async fn run(mut self) {
        let stopping = self.app.stopping().clone();
        let mut own = self.tailnet.own_node();
        let mut relays = self.app.network().relays.watch();
        loop {
            // A year stands for never.
            let far = Instant::now() + Duration::from_secs(365 * 86_400);
            let due = self.uses.table().values().filter(|u| u.open == 0).map(|u| u.since + IDLE).min().unwrap_or(far);
            tokio::select! {
                () = self.uses.changed.notified() => self.reach(),
                changed = own.changed() => {
                    let node = own.borrow_and_update().clone();
                    if changed.is_err() {
                        break;
                    }
                    let update_self = Some(UpdateSelf { node: node.as_deref().cloned() });
                    self.ask(&CoordinateRequest { update_self, ..CoordinateRequest::default() });
                }
                () = self.wake.notified() => if !self.take_news() { break },
                Ok(()) = relays.changed() => {
                    let map = own_map(&relays.borrow_and_update(), &self.http);
                    self.tailnet.set_relay_map(map);
                }
                () = sleep_until(due) => if self.take_back().await { break },
                () = stopping.cancelled() => break,
            }
        }
        // Whoever dials from now on gets a new node.
        self.uses.end();
        self.coordination().lost(self.conn);
        self.tailnet.close().await;
        tracing::debug!("the server's own node ends");
    }

    fn coordination(&self) -> &Coordination {
        self.app.coordination()
    }

    fn ask(&self, request: &CoordinateRequest) {
        if let Err(error) = self.coordination().handle(self.conn, request) {
            tracing::error!(%error, "the server's own node is refused by its coordinator");
        }
    }

    /// Asks for a tunnel to each agent that is used for the first time.
    fn reach(&mut self) {
        let new: Vec<_> = self.uses.table().keys().filter(|agent| !self.reached.contains(agent)).copied().collect();
        for agent in new {
            self.reached.insert(agent);
            self.tailnet.add_destination(agent);
            let add_tunnel = Some(Tunnel { id: agent.as_bytes().to_vec() });
            self.ask(&CoordinateRequest { add_tunnel, ..CoordinateRequest::default() });
        }
    }

    /// Takes the coordinator's news; whether it goes on.
    fn take_news(&self) -> bool {
        loop {
            match self.coordination().poll(self.conn) {
                Some(Delivery::Response(response)) => {
                    if !response.error.is_empty() {
                        tracing::warn!(error = response.error, "the coordinator tells the server's own node");
                    }
                    response.peer_updates.into_iter().for_each(|update| self.tailnet.update_peer(update));
                }
                Some(Delivery::End) => return false,
                None => return true,
            }
        }
    }

    /// Takes back the tunnels that are due; whether none is left and the node shall end.
    async fn take_back(&mut self) -> bool {
        let now = Instant::now();
        let mut due = Vec::new();
        self.uses.table().retain(|agent, used| {
            let stays = used.open > 0 || used.since + IDLE > now;
            due.extend((!stays).then_some(*agent));
            stays
        });
        for agent in due {
            self.reached.remove(&agent);
            self.tailnet.remove_destination(agent);
            let remove_tunnel = Some(Tunnel { id: agent.as_bytes().to_vec() });
            self.ask(&CoordinateRequest { remove_tunnel, ..CoordinateRequest::default() });
        }
        let app = self.app.clone();
        let mut running = app.tunnels().0.lock().await;
        // Whoever dials holds this lock while it says so.
        let unused = self.uses.table().is_empty();
        if unused {
            *running = None;
        }
        drop(running);
        // What began between the two is reached anew.
        self.reach();
        unused
    }
}
