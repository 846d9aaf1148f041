//! A node of ours and a Go node that know each other, with a relay between them.

use super::node::{GoNode, LIMIT};
use crate::peers::{Context, Kind, Relay, region, region_id};
use anyhow::{Context as _, ensure};
use prost::Message as _;
use serde_json::json;
use std::{
    fs::File,
    io::{BufWriter, Write as _},
    net::SocketAddrV6,
    path::Path,
    thread,
    time::Duration,
};
use tailnet::{
    base::{client_address, node_id},
    driver::http::{Http, HttpOptions, ProxyChoice},
    net::{Config, Counters, PCAP_HEADER, PathState, PingKind, Tailnet},
    wire::{coord::tailnet::Node, derp::RelayMap},
};
use tokio::{
    runtime::Runtime,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use uuid::Uuid;

/// Who opens the connections of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialler {
    Ours,
    Go,
}

impl Dialler {
    pub const BOTH: [Self; 2] = [Self::Ours, Self::Go];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours dials",
            Self::Go => "Go dials",
        }
    }
}

/// How data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Relayed,
    Direct,
}

/// Where `TAILNET_INTEROP_PCAP` names a folder, all packets of our node go into a file there: to look at a cell that failed.
fn capture(id: Uuid) -> Result<Option<mpsc::Sender<Vec<u8>>>, anyhow::Error> {
    let Some(folder) = std::env::var_os("TAILNET_INTEROP_PCAP") else { return Ok(None) };
    let mut file = BufWriter::new(File::create(Path::new(&folder).join(format!("{id}.pcap")))?);
    file.write_all(&PCAP_HEADER)?;
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(1 << 16);
    // The file is whole when the node is gone.
    thread::spawn(move || std::iter::from_fn(|| receiver.blocking_recv()).try_for_each(|record| file.write_all(&record)));
    Ok(Some(sender))
}

/// Our node in a runtime of its own, so that it can be ended as a crash would.
pub struct Ours {
    pub tailnet: Tailnet,
    id: Uuid,
    runtime: Option<Runtime>,
}

impl Ours {
    /// Starts it with this id, hence this address; direct paths are forbidden.
    fn start(id: Uuid, relays: &RelayMap) -> Result<Self, anyhow::Error> {
        let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
        let mut config = Config::client(Http::new("http://127.0.0.1:9", None, options)?)?;
        config.relay_map = Some(relays.clone());
        config.direct = false;
        config.capture = capture(id)?;
        config.addresses = vec![client_address(id)];
        config.node_id = node_id(id);
        let runtime = crate::peers::runtime();
        let tailnet = {
            let _inside = runtime.enter();
            Tailnet::start(config)?
        };
        Ok(Self { tailnet, id, runtime: Some(runtime) })
    }

    /// Where its port is.
    pub fn at(&self, port: u16) -> SocketAddrV6 {
        SocketAddrV6::new(self.tailnet.addresses()[0], port, 0, 0)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // No goodbye: its tasks end where they are.
        self.runtime.take().expect("taken here only").shutdown_background();
    }
}

/// Both nodes. They start relayed.
pub struct Pair<'a> {
    pub ours: Ours,
    pub go: GoNode,
    context: &'a Context,
    relays: RelayMap,
    _relay: Relay,
    introduction: JoinSet<()>,
}

impl<'a> Pair<'a> {
    /// Starts relay and nodes and waits until `first` has sent a packet through the tunnel and got its answer.
    pub async fn start(context: &'a Context, kind: Kind, first: Dialler) -> Result<Self, anyhow::Error> {
        let relay = Relay::start(context, kind);
        let mut region = region(relay.address.port());
        region.nodes.iter_mut().for_each(|node| node.stun_port = relay.stun);
        let relays = RelayMap { regions: [(region_id(), region)].into(), ..RelayMap::default() };
        let go = GoNode::start(context, Uuid::new_v4(), &relays).await?;
        let ours = Ours::start(Uuid::new_v4(), &relays)?;
        let mut pair = Self { ours, go, context, relays, _relay: relay, introduction: JoinSet::new() };
        pair.introduce();
        pair.meet(first).await?;
        Ok(pair)
    }

    /// Tells both of each other, the Go node first, now and whenever one of them changes. What it sends at once runs ahead
    /// of our hearing of it.
    fn introduce(&mut self) {
        self.introduction = JoinSet::new();
        let (mut own, requests, id) = (self.ours.tailnet.own_node(), self.go.requests(), self.ours.id);
        self.introduction.spawn(async move {
            loop {
                if let Some(node) = own.borrow_and_update().clone() {
                    let hex = hex::encode(node.encode_to_vec());
                    let _ = requests.send(json!({ "op": "peer", "id": id, "hex": hex }));
                }
                if own.changed().await.is_err() {
                    return;
                }
            }
        });
        let (mut own, tailnet, id) = (self.go.own.clone(), self.ours.tailnet.clone(), self.go.id);
        let mut told = self.go.told.clone();
        let before = *told.borrow_and_update();
        self.introduction.spawn(async move {
            // As a coordinator tells us when the other side says that it is ready.
            if told.wait_for(|count| *count > before).await.is_err() {
                return;
            }
            loop {
                let node = own.borrow_and_update().clone();
                // Without a home nobody can reach it yet.
                if let Some(node) = node.filter(|node| node.preferred_derp != 0) {
                    tailnet.add_peer(id, node);
                }
                if own.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    async fn meet(&mut self, first: Dialler) -> Result<(), anyhow::Error> {
        let mut own = self.ours.tailnet.own_node();
        timeout(LIMIT, own.wait_for(Option::is_some)).await.context("our node has no home")??;
        let mut own = self.go.own.clone();
        let homely = |node: &Option<Node>| node.as_ref().is_some_and(|node| node.preferred_derp != 0);
        timeout(LIMIT, own.wait_for(homely)).await.context("the Go node has no home")??;
        let mut path = self.ours.tailnet.watch_path(self.go.address).await?;
        timeout(LIMIT, path.wait_for(Option::is_some)).await.context("they never met")??;
        let reached = async {
            match first {
                Dialler::Ours => {
                    let ping = || self.ours.tailnet.ping(self.go.address, PingKind::Tsmp, Duration::from_secs(2));
                    while ping().await.is_err() {}
                }
                Dialler::Go => {
                    let ping = json!({ "op": "ping", "tag": "meet", "mode": "TSMP", "ip": self.ours.at(0).ip(), "limit": 2_000 });
                    let mut answered = false;
                    while !answered {
                        self.go.ask(ping.clone());
                        answered = self.go.event("pong", |e| e["tag"] == "meet").await?["error"].is_null();
                    }
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        timeout(LIMIT, reached).await.context("no packet comes through the tunnel")?
    }

    /// Allows the direct way on both sides and waits until both use it alone.
    pub async fn go_direct(&mut self) -> Result<Duration, anyhow::Error> {
        let begin = Instant::now();
        self.ours.tailnet.set_direct(true);
        self.go.ask(json!({ "op": "block", "on": false }));
        let mut path = self.ours.tailnet.watch_path(self.go.address).await?;
        let direct = path.wait_for(|path| path.is_some_and(|path| path.state == PathState::Direct));
        timeout(LIMIT, direct).await.context("our path does not become direct")??;
        let theirs = async {
            loop {
                if self.go_says_direct().await? {
                    return Ok::<_, anyhow::Error>(());
                }
                // Only what is sent makes it look for a way.
                let _ = self.ours.tailnet.ping(self.go.address, PingKind::Tsmp, Duration::from_secs(1)).await;
            }
        };
        timeout(LIMIT, theirs).await.context("the Go node's path does not become direct")??;
        // What it says of itself and what it does may differ while news of our endpoints reach it.
        let settled = async {
            loop {
                let before = self.counters().await?;
                self.ours.tailnet.ping(self.go.address, PingKind::Tsmp, LIMIT).await?;
                if self.took(Way::Direct, &before).await.is_ok() {
                    return Ok::<_, anyhow::Error>(());
                }
            }
        };
        timeout(LIMIT, settled).await.context("the Go node does not stay with the direct way")??;
        Ok(begin.elapsed())
    }

    /// Whether the Go node says that it sends direct.
    pub async fn go_says_direct(&mut self) -> Result<bool, anyhow::Error> {
        self.go.ask(json!({ "op": "status" }));
        let status = self.go.event("status", |_| true).await?;
        Ok(status["peers"].as_array().is_some_and(|peers| peers.iter().any(|p| p["direct"].as_str() != Some(""))))
    }

    pub async fn counters(&self) -> Result<Counters, anyhow::Error> {
        Ok(self.ours.tailnet.counters().await?)
    }

    /// Fails unless all data since `before` took this way; a direct path in doubt may have copied a few by the relay.
    pub async fn took(&self, way: Way, before: &Counters) -> Result<(), anyhow::Error> {
        let now = self.counters().await?.node;
        let before = before.node;
        let udp = [now.data_sent.udp - before.data_sent.udp, now.data_received.udp - before.data_received.udp];
        let relay = [now.data_sent.relay - before.data_sent.relay, now.data_received.relay - before.data_received.relay];
        match way {
            Way::Relayed => ensure!(udp == [0, 0] && relay.iter().all(|n| *n > 0), "not relayed: udp {udp:?}, relay {relay:?}"),
            Way::Direct => {
                let most = udp.iter().zip(relay).all(|(udp, relay)| *udp > 0 && relay <= udp / 10 + 3);
                ensure!(most, "not direct: udp {udp:?}, relay {relay:?}");
            }
        }
        Ok(())
    }

    /// Our node ends without a word and comes back with the same address and other keys.
    pub async fn restart_ours(&mut self, way: Way) -> Result<(), anyhow::Error> {
        self.introduction = JoinSet::new();
        let id = self.ours.id;
        self.ours = Ours::start(id, &self.relays)?;
        self.ours.tailnet.set_direct(way == Way::Direct);
        self.introduce();
        let mut own = self.ours.tailnet.own_node();
        timeout(LIMIT, own.wait_for(Option::is_some)).await.context("our node has no home")??;
        Ok(())
    }

    /// The same for the Go node.
    pub async fn restart_go(&mut self, way: Way) -> Result<(), anyhow::Error> {
        self.introduction = JoinSet::new();
        let new = GoNode::start(self.context, self.go.id, &self.relays).await?;
        std::mem::replace(&mut self.go, new).kill().await?;
        self.go.ask(json!({ "op": "block", "on": way == Way::Relayed }));
        self.introduce();
        let mut own = self.go.own.clone();
        timeout(LIMIT, own.wait_for(|node| node.as_ref().is_some_and(|node| node.preferred_derp != 0))).await??;
        Ok(())
    }
}
