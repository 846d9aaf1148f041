//! L5: what programs use: a [`Tailnet`] and its streams, listeners and datagrams.
//!
//! ```no_run
//! # async fn example(config: tailnet::net::Config, peer: std::net::SocketAddrV6) -> Result<(), Box<dyn std::error::Error>> {
//! use tailnet::net::Tailnet;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! let tailnet = Tailnet::start(config)?;
//! let mut stream = tailnet.dial_tcp(peer).await?;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?;
//! let mut answer = Vec::new();
//! stream.read_to_end(&mut answer).await?;
//! tailnet.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Every handle may be used from any runtime and thread; the data loop runs where [`Tailnet::start`] was called, or on
//! a thread of its own with [`Tailnet::start_on_thread`].

mod datagram;
#[cfg(any(test, feature = "agent"))]
pub(crate) mod datagram_flows;
mod error;
#[cfg(any(test, feature = "agent"))]
pub(crate) mod forward;
mod listener;
pub mod speedtest;
mod stream;

pub use crate::{
    base::{DiscoSecret, NodeSecret},
    driver::{
        control::{Control, ControlRole, ControlStatus},
        datapath::{Counters, PingError, Pong, QueueDrops},
        http::{Http, HttpOptions, Token},
        pipe::Broken,
        relay::{RelayCounters, RelayServer},
        sockets::UdpCounters,
    },
    proto::{
        netcheck::Report,
        node::{PathInfo, PeerInfo, PingKind, Role},
        path::PathState,
    },
    wire::{coord::tailnet::Node, derp::RelayMap, pcap::FILE_HEADER as PCAP_HEADER},
};
pub use datagram::{Datagram, DatagramRest, DatagramSender};
pub use error::{BindError, ClosedError, DialError};
pub use listener::{Incoming, Listener};
pub use stream::Stream;

use crate::{
    base::{client_address, node_id},
    driver::{
        clock,
        datapath::{self, Command, Handle},
    },
    proto::node,
    wire::coord::tailnet::{PeerUpdate, PeerUpdateKind},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use std::{
    fmt, io,
    net::{Ipv6Addr, SocketAddrV6},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

/// How long [`Tailnet::dial_tcp`] waits.
const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// First distance between two pings of [`Tailnet::wait_reachable`]; each is half as long again (path-selection.md).
const REPEAT: Duration = Duration::from_millis(50);
/// All TCP buffers of a node.
const BUFFER_BYTES: usize = 64 << 20;

/// What a [`Tailnet`] is made of. [`Config::client`] and [`Config::agent`] fill in what is the same for all.
pub struct Config {
    /// WireGuard and relay identity; fresh for each run, or kept by an agent.
    pub secret: NodeSecret,
    /// Disco identity, fresh for each run.
    pub disco: DiscoSecret,
    /// The numeric id in the announcement.
    pub node_id: i64,
    /// Overlay addresses.
    pub addresses: Vec<Ipv6Addr>,
    /// Client or agent.
    pub role: Role,
    /// The relays, embedded ones already pointing at the server as this host reaches it. Relays open at once; a map
    /// from the coordinator replaces it.
    pub relay_map: Option<RelayMap>,
    /// How relays are reached: proxy, extra headers, trust. Its token is not sent to them.
    pub http: Http,
    /// The coordinator. Without one, peers come by [`Tailnet::add_peer`].
    pub control: Option<Control>,
    /// Agents to reach from the start.
    pub destinations: Vec<Uuid>,
    /// Whether direct paths are allowed.
    pub direct: bool,
    /// Whether relays are reached by WebSocket alone.
    pub force_websockets: bool,
    /// The UDP port of this node, 0 for any.
    pub port: u16,
    /// Gets every packet of the tunnel as records of a capture file, to stand behind [`PCAP_HEADER`]. What its owner does
    /// not take in time is missing there; nothing else waits for it.
    pub capture: Option<mpsc::Sender<Vec<u8>>>,
}

impl Config {
    /// A client with fresh keys and a random address.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn client(http: Http) -> io::Result<Self> {
        let id = Uuid::from_bytes(clock::random()?.bytes());
        Self::new(http, Role::Client, id, vec![client_address(id)])
    }

    /// An agent with fresh keys and the addresses of its id.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn agent(http: Http, agent: Uuid) -> io::Result<Self> {
        Self::new(http, Role::Agent, agent, crate::base::agent_addresses(agent).into())
    }

    fn new(http: Http, role: Role, id: Uuid, addresses: Vec<Ipv6Addr>) -> io::Result<Self> {
        let mut rng = clock::random()?;
        Ok(Self {
            secret: NodeSecret::generate(&mut rng),
            disco: DiscoSecret::generate(&mut rng),
            node_id: node_id(id),
            addresses,
            role,
            relay_map: None,
            http,
            control: None,
            destinations: Vec::new(),
            direct: true,
            force_websockets: false,
            port: 0,
            capture: None,
        })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("role", &self.role).field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// One node of the overlay. Clones are handles on the same node; when the last one and all streams, listeners and
/// datagram sockets are gone, the node ends by itself as after [`Tailnet::close`], which also waits for the end.
#[derive(Clone)]
pub struct Tailnet(Arc<Inner>);

struct Inner {
    handle: Handle,
    control: Option<Control>,
    addresses: Vec<Ipv6Addr>,
    /// The next dial's ticket.
    tickets: AtomicU64,
}

impl Tailnet {
    /// Starts a node as a task of the current runtime. Relay connection, UDP sockets and control socket open at once.
    ///
    /// # Errors
    /// When no UDP socket can be bound, or the wished port is taken.
    pub fn start(config: Config) -> io::Result<Self> {
        let (this, data_loop) = Self::open(config)?;
        tokio::spawn(data_loop);
        Ok(this)
    }

    /// Starts a node on a thread and a runtime of its own: for programs that do much else.
    ///
    /// # Errors
    /// When no UDP socket can be bound, the wished port is taken, or no thread can be started.
    ///
    /// # Cancel safety
    /// Dropping the future ends the node.
    pub async fn start_on_thread(config: Config) -> io::Result<Self> {
        let (sender, receiver) = oneshot::channel();
        let body = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(sender.send(Err(error))),
            };
            runtime.block_on(async {
                match Self::open(config) {
                    Ok((this, data_loop)) => {
                        // Nobody left to tell: then nobody holds the handle either, and the loop ends at once.
                        let _ = sender.send(Ok(this));
                        data_loop.await;
                    }
                    Err(error) => drop(sender.send(Err(error))),
                }
            });
        };
        std::thread::Builder::new().name("data loop".into()).spawn(body)?;
        receiver.await.map_err(|_| io::Error::other("the data loop's thread ended"))?
    }

    fn open(config: Config) -> io::Result<(Self, impl Future<Output = ()> + Send)> {
        let Config { secret, disco, node_id, addresses, role, relay_map, http, control, destinations, direct, .. } = config;
        let node =
            node::Config { secret, disco, node_id, addresses: addresses.clone(), role, direct, buffer_bytes: BUFFER_BYTES };
        let (handle, data_loop) = datapath::open(datapath::Config {
            node,
            relay_map,
            http,
            websocket_only: config.force_websockets,
            port: config.port,
            control: control.clone(),
            capture: config.capture,
            rng: clock::random()?,
        })?;
        let this = Self(Arc::new(Inner { handle, control, addresses, tickets: AtomicU64::new(0) }));
        for agent in destinations {
            this.add_destination(agent);
        }
        Ok((this, data_loop))
    }

    /// Our overlay addresses.
    #[must_use]
    pub fn addresses(&self) -> &[Ipv6Addr] {
        &self.0.addresses
    }

    /// The UDP ports of the IPv4 and the IPv6 socket.
    #[must_use]
    pub fn udp_ports(&self) -> (Option<u16>, Option<u16>) {
        self.0.handle.ports
    }

    /// The control socket, for calls of its other services.
    #[must_use]
    pub fn control(&self) -> Option<&Control> {
        self.0.control.as_ref()
    }

    /// Connects to a port of a peer, for at most 30 s. The peer may still be unknown: the dial waits for it.
    ///
    /// # Errors
    /// As [`DialError`] tells.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection up.
    pub async fn dial_tcp(&self, to: SocketAddrV6) -> Result<Stream, DialError> {
        self.dial_tcp_within(to, DIAL_LIMIT).await
    }

    /// The same with a limit of the caller's.
    ///
    /// # Errors
    /// As [`DialError`] tells.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection up.
    pub async fn dial_tcp_within(&self, to: SocketAddrV6, limit: Duration) -> Result<Stream, DialError> {
        struct Cancel<'a>(&'a Tailnet, u64);
        impl Drop for Cancel<'_> {
            fn drop(&mut self) {
                self.0.tell(Command::CancelDial(self.1));
            }
        }
        let ticket = self.0.tickets.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Dial { ticket, to, deadline: clock::now() + limit, reply });
        let cancel = Cancel(self, ticket);
        let answer = answer.await;
        std::mem::forget(cancel);
        match answer {
            Ok(Ok(connected)) => Ok(Stream::new(connected.end, connected.local, connected.remote, self.clone())),
            Ok(Err(why)) => Err(DialError::new(why, to, limit)),
            Err(_) => Err(DialError::Closed),
        }
    }

    /// Takes connections to a port.
    ///
    /// # Errors
    /// When the port has a listener already, or the node is closed.
    ///
    /// # Cancel safety
    /// Dropping the future gives the port back.
    pub async fn listen_tcp(&self, port: u16) -> Result<Listener, BindError> {
        self.listen(Some(port)).await
    }

    /// Takes connections to all ports that have no listener of their own.
    ///
    /// # Errors
    /// When somebody does so already, or the node is closed.
    ///
    /// # Cancel safety
    /// Dropping the future gives the ports back.
    pub async fn listen_rest(&self) -> Result<Listener, BindError> {
        self.listen(None).await
    }

    async fn listen(&self, port: Option<u16>) -> Result<Listener, BindError> {
        let requests = self.ask(|reply| Command::Listen { port, reply }).await.map_err(|ClosedError| BindError::Closed)?;
        requests.map(|requests| Listener::new(self.clone(), port, requests)).map_err(|_| BindError::Taken)
    }

    /// Binds a UDP port of the overlay, or any with `None`.
    ///
    /// # Errors
    /// When the port is taken, or the node is closed.
    ///
    /// # Cancel safety
    /// Dropping the future gives the port back.
    pub async fn bind_udp(&self, port: Option<u16>) -> Result<Datagram, BindError> {
        let bound = self.ask(|reply| Command::BindUdp { port, reply }).await.map_err(|ClosedError| BindError::Closed)?;
        let (port, arriving) = bound.map_err(|_| BindError::Taken)?;
        Ok(Datagram::new(self.clone(), port, arriving))
    }

    /// Takes the datagrams that arrive at UDP ports which are not bound.
    ///
    /// # Errors
    /// When somebody does so already, or the node is closed.
    ///
    /// # Cancel safety
    /// Dropping the future gives the ports back.
    pub async fn bind_udp_rest(&self) -> Result<DatagramRest, BindError> {
        let bound = self.ask(Command::BindUdpRest).await.map_err(|ClosedError| BindError::Closed)?;
        bound.map(|arriving| DatagramRest::new(self.clone(), arriving)).map_err(|_| BindError::Taken)
    }

    /// Asks a peer for an answer.
    ///
    /// # Errors
    /// When none comes within `limit`, the peer is unknown, or the node is closed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait.
    pub async fn ping(&self, to: Ipv6Addr, kind: PingKind, limit: Duration) -> Result<Pong, PingError> {
        let deadline = clock::now() + limit;
        let answer = self.ask(|reply| Command::Ping { to, kind, deadline, reply }).await;
        answer.unwrap_or(Err(PingError::Closed))
    }

    /// Waits until a peer answers through the tunnel: pings it again and again, at growing distances, until an answer to any
    /// of them comes.
    ///
    /// # Errors
    /// As [`Tailnet::ping`], when `limit` is over.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait.
    pub async fn wait_reachable(&self, to: Ipv6Addr, limit: Duration) -> Result<Pong, PingError> {
        let end = clock::now() + limit;
        let mut pause = REPEAT;
        let mut pings = FuturesUnordered::new();
        loop {
            pings.push(self.ping(to, PingKind::Tsmp, end - clock::now()));
            tokio::select! {
                // All have the same deadline: whichever ends first decides.
                Some(answer) = pings.next() => return answer,
                () = tokio::time::sleep(pause) => pause = pause * 3 / 2,
            }
        }
    }

    /// How a peer is reached, now and whenever that changes. `None`: it is not known.
    ///
    /// # Errors
    /// When the node is closed.
    pub async fn watch_path(&self, peer: Ipv6Addr) -> Result<watch::Receiver<Option<PathInfo>>, ClosedError> {
        self.ask(|reply| Command::WatchPath { address: peer, reply }).await
    }

    /// What is known of a peer. `None`: nothing yet.
    ///
    /// # Errors
    /// When the node is closed.
    pub async fn peer_info(&self, peer: Ipv6Addr) -> Result<Option<PeerInfo>, ClosedError> {
        self.ask(|reply| Command::PeerInfo { address: peer, reply }).await
    }

    /// Everything the node has counted.
    ///
    /// # Errors
    /// When the node is closed.
    pub async fn counters(&self) -> Result<Counters, ClosedError> {
        self.ask(Command::Counters).await
    }

    /// Our own node as others are told of it, now and whenever it changes. `None` until a home relay is chosen.
    #[must_use]
    pub fn own_node(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.0.handle.own.clone()
    }

    /// The last report on the network, now and whenever there is a new one.
    #[must_use]
    pub fn report(&self) -> watch::Receiver<Option<Arc<Report>>> {
        self.0.handle.report.clone()
    }

    /// An agent to reach: asks the coordinator for a tunnel.
    pub fn add_destination(&self, agent: Uuid) {
        self.tell(Command::AddDestination(agent));
    }

    /// Gives the tunnel to an agent up.
    pub fn remove_destination(&self, agent: Uuid) {
        self.tell(Command::RemoveDestination(agent));
    }

    /// Adds or replaces a peer without a coordinator: `node` is what [`Tailnet::own_node`] shows on the other side.
    pub fn add_peer(&self, id: Uuid, node: Node) {
        let update = |kind: PeerUpdateKind, node| {
            let update = PeerUpdate { id: id.as_bytes().to_vec(), node, kind: kind.into(), reason: String::new() };
            self.tell(Command::PeerUpdate(Box::new(update)));
        };
        update(PeerUpdateKind::Node, Some(node));
        update(PeerUpdateKind::ReadyForHandshake, None);
    }

    /// Takes a coordinator's news of a peer, for programs that hear them by another way than [`Config::control`].
    pub fn update_peer(&self, update: PeerUpdate) {
        self.tell(Command::PeerUpdate(Box::new(update)));
    }

    /// Replaces the relays. Embedded ones already point at the server as this host reaches it.
    pub fn set_relay_map(&self, map: RelayMap) {
        self.tell(Command::SetRelayMap(Box::new(map)));
    }

    /// Allows or forbids direct paths.
    pub fn set_direct(&self, direct: bool) {
        self.tell(Command::SetDirect(direct));
    }

    /// Whether relay connections made from now on use WebSockets alone.
    pub fn set_force_websockets(&self, on: bool) {
        self.tell(Command::SetWebsocketOnly(on));
    }

    /// Ends the node in good order: listeners close, what was written to streams is sent, the coordinator is told.
    /// Takes less than two seconds however the others behave.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait, not the closing.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        self.tell(Command::Close(reply));
        // An error means that the loop had ended before.
        let _ = done.await;
    }

    fn tell(&self, command: Command) {
        // A loop that has ended is told nothing; its streams have broken already.
        let _ = self.0.handle.commands.send(command);
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, ClosedError> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply));
        answer.await.map_err(|_| ClosedError)
    }
}

impl fmt::Debug for Tailnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tailnet").field("addresses", &self.0.addresses).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
