//! The server's node and its place in the coordinator.

use super::{
    super::{app::App, coordination::Coordination},
    News, Running,
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
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc},
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
    let (news, told) = mpsc::unbounded_channel();
    let wake = Arc::new(Notify::new());
    let conn = app.coordination().connect(Uuid::new_v4(), Auth::All, &wake);
    let task = Task { app: app.clone(), http, tailnet: tailnet.clone(), told, wake, conn, uses: BTreeMap::new() };
    app.spawn(task.run());
    tracing::debug!("the server's own node starts");
    Ok(Running { tailnet, news })
}

/// The relays as this process reaches them.
fn own_map(map: &RelayMap, http: &Http) -> RelayMap {
    let (host, port, plain) = http.endpoint();
    let mut map = map.clone();
    map.rewrite_embedded(&host, port, plain);
    map
}

/// How an agent is used.
#[derive(Debug, Clone, Copy)]
struct Use {
    open: usize,
    /// Since when nobody uses it.
    since: Instant,
}

struct Task {
    app: App,
    http: Http,
    tailnet: Tailnet,
    told: mpsc::UnboundedReceiver<News>,
    wake: Arc<Notify>,
    conn: ConnId,
    uses: BTreeMap<Uuid, Use>,
}

impl Task {
    async fn run(mut self) {
        let stopping = self.app.stopping().clone();
        let mut own = self.tailnet.own_node();
        let mut relays = self.app.network().relays.watch();
        loop {
            // A year stands for never.
            let far = Instant::now() + Duration::from_secs(365 * 86_400);
            let due = self.uses.values().filter(|u| u.open == 0).map(|u| u.since + IDLE).min().unwrap_or(far);
            tokio::select! {
                Some(news) = self.told.recv() => self.note(news),
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
        self.told.close();
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

    fn note(&mut self, news: News) {
        let now = Instant::now();
        match news {
            News::Used(agent) => {
                if !self.uses.contains_key(&agent) {
                    self.tailnet.add_destination(agent);
                    let add_tunnel = Some(Tunnel { id: agent.as_bytes().to_vec() });
                    self.ask(&CoordinateRequest { add_tunnel, ..CoordinateRequest::default() });
                }
                self.uses.entry(agent).or_insert(Use { open: 0, since: now }).open += 1;
            }
            News::Done(agent) => {
                if let Some(used) = self.uses.get_mut(&agent) {
                    *used = Use { open: used.open.saturating_sub(1), since: now };
                }
            }
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
        let due: Vec<_> = self.uses.iter().filter(|(_, u)| u.open == 0 && u.since + IDLE <= now).map(|(id, _)| *id).collect();
        for agent in due {
            self.uses.remove(&agent);
            self.tailnet.remove_destination(agent);
            let remove_tunnel = Some(Tunnel { id: agent.as_bytes().to_vec() });
            self.ask(&CoordinateRequest { remove_tunnel, ..CoordinateRequest::default() });
        }
        if !self.uses.is_empty() {
            return false;
        }
        let app = self.app.clone();
        let mut running = app.tunnels().0.lock().await;
        // Whoever dials holds this lock while it tells us so.
        if let Ok(news) = self.told.try_recv() {
            drop(running);
            self.note(news);
            return false;
        }
        *running = None;
        true
    }
}
