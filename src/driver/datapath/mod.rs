//! The data loop: one future owns a node, its sockets and its relay connections, and nothing else touches them.
//!
//! A turn: wake → UDP batch in → relay buffers in → what owners asked and wrote → timers → transmit → flush → events →
//! sleep. Several turns follow each other, with a look at the other tasks in between, as long as there is work; then
//! the loop sleeps until a socket, a relay, an owner or the node's next deadline wakes it. Nothing ticks.
//!
//! Owners speak with it through a [`Handle`]: commands with their answers, and rings for the bytes of streams.

mod events;
mod flows;
mod lanes;
mod run;
mod udp;

use super::{
    control::Control,
    http::Http,
    pipe::OwnerEnd,
    relay::RelayCounters,
    sockets::{Sockets, UdpCounters},
};
use crate::{
    base::{Instant, Rng},
    proto::{
        netcheck::Report,
        netstack::IncomingKey,
        node::{self, DialFailure, PathInfo, PeerInfo, PingKind},
    },
    wire::{
        coord::tailnet::{self, PeerUpdate},
        derp::RelayMap,
    },
};
use std::{
    fmt, io,
    net::{Ipv6Addr, SocketAddrV6},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

/// Connections that may wait in one listener; beyond it they are refused and counted.
const BACKLOG: usize = 256;
/// Datagrams that may wait for the owner of a port; beyond it they are dropped and counted.
const DATAGRAMS: usize = 256;
/// Datagrams that may wait for the loop; their senders wait then.
const OUTGOING: usize = 256;

/// What a loop is made of.
pub struct Config {
    /// The node.
    pub node: node::Config,
    /// The relays, embedded ones already rewritten. May come later, or from the coordinator.
    pub relay_map: Option<RelayMap>,
    /// How relays are reached.
    pub http: Http,
    /// Whether relays are reached by WebSocket alone.
    pub websocket_only: bool,
    /// UDP port, 0 for any.
    pub port: u16,
    /// The coordinator, if there is one.
    pub control: Option<Control>,
    /// Where the packets of the tunnel go as records of a capture, if anywhere.
    pub capture: Option<mpsc::Sender<Vec<u8>>>,
    /// Seeds the node.
    pub rng: Rng,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("port", &self.port).finish_non_exhaustive()
    }
}

/// A connection that was dialled.
#[derive(Debug)]
pub struct Connected {
    /// Its bytes.
    pub end: OwnerEnd,
    /// Our address.
    pub local: SocketAddrV6,
    /// The peer's.
    pub remote: SocketAddrV6,
}

/// A datagram that arrived.
#[derive(Debug)]
pub struct Datagram {
    /// Its sender.
    pub from: SocketAddrV6,
    /// Where it was sent to: one of our addresses.
    pub to: SocketAddrV6,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// The answer to a ping.
#[derive(Debug, Clone, Copy)]
pub struct Pong {
    /// How long it took.
    pub latency: Duration,
    /// The way, as far as the answer tells: disco pings tell exactly, the others the peer's present path.
    pub path: Option<PathInfo>,
}

/// Why no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// The peer has never been announced.
    #[error("the peer is unknown")]
    UnknownPeer,
    /// It did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// This node is closed.
    #[error("the tailnet is closed")]
    Closed,
}

/// Drops at the loop's own queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueDrops {
    /// Connections refused because a listener's owner did not keep up.
    pub backlog: u64,
    /// Datagrams dropped because a port's owner did not keep up.
    pub datagrams: u64,
}

/// Everything counted; a snapshot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// By the node.
    pub node: node::Counters,
    /// By the UDP sockets.
    pub udp: UdpCounters,
    /// By the relay connections.
    pub relays: RelayCounters,
    /// At the loop's queues.
    pub drops: QueueDrops,
    /// Turns of the loop.
    pub turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
}

/// Names a dial before the loop has seen it, so that it can be given up.
pub type Ticket = u64;

/// What owners ask of the loop.
#[derive(Debug)]
pub enum Command {
    /// Connect to a port.
    Dial {
        /// For [`Command::CancelDial`].
        ticket: Ticket,
        /// Where to.
        to: SocketAddrV6,
        /// When to give up.
        deadline: Instant,
        /// The connection, or why there is none.
        reply: oneshot::Sender<Result<Connected, DialFailure>>,
    },
    /// The dialler has lost interest.
    CancelDial(Ticket),
    /// Take connections to a port, or to all ports without a listener.
    Listen {
        /// `None`: the rest.
        port: Option<u16>,
        /// Their requests. An error when the port has a listener already.
        reply: oneshot::Sender<io::Result<mpsc::Receiver<IncomingKey>>>,
    },
    /// The listener is gone.
    Unlisten(Option<u16>),
    /// Accept a request.
    Accept {
        /// Which.
        key: IncomingKey,
        /// Its bytes; `None` when it is over already.
        reply: oneshot::Sender<Option<OwnerEnd>>,
    },
    /// Refuse a request.
    Refuse(IncomingKey),
    /// Bind a UDP port.
    BindUdp {
        /// `None`: any.
        port: Option<u16>,
        /// The port and what arrives there.
        reply: oneshot::Sender<io::Result<(u16, mpsc::Receiver<Datagram>)>>,
    },
    /// The owner of a UDP port is gone.
    UnbindUdp(u16),
    /// Take what arrives at UDP ports that nobody has bound. An error when somebody does so already.
    BindUdpRest(oneshot::Sender<io::Result<mpsc::Receiver<Datagram>>>),
    /// Not any more.
    UnbindUdpRest,
    /// Ask a peer for an answer.
    Ping {
        /// Whom.
        to: Ipv6Addr,
        /// Through what.
        kind: PingKind,
        /// When to give up.
        deadline: Instant,
        /// The answer.
        reply: oneshot::Sender<Result<Pong, PingError>>,
    },
    /// Tell how a peer is reached, now and from now on.
    WatchPath {
        /// The peer.
        address: Ipv6Addr,
        /// The news.
        reply: oneshot::Sender<watch::Receiver<Option<PathInfo>>>,
    },
    /// Tell what is known of a peer.
    PeerInfo {
        /// The peer.
        address: Ipv6Addr,
        /// What is known; `None` when it is not.
        reply: oneshot::Sender<Option<PeerInfo>>,
    },
    /// An agent that we want to reach.
    AddDestination(Uuid),
    /// Not any more.
    RemoveDestination(Uuid),
    /// News of a peer from somewhere else than the coordinator.
    PeerUpdate(Box<PeerUpdate>),
    /// Other relays.
    SetRelayMap(Box<RelayMap>),
    /// Direct paths allowed or not.
    SetDirect(bool),
    /// Relays by WebSocket alone, for connections made from now on.
    SetWebsocketOnly(bool),
    /// What was counted.
    Counters(oneshot::Sender<Counters>),
    /// Send what was written, say good-bye, end.
    Close(oneshot::Sender<()>),
}

/// A datagram on its way to the loop.
#[derive(Debug)]
pub struct Outgoing {
    /// Our port.
    pub port: u16,
    /// Where to.
    pub to: SocketAddrV6,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// The way to the loop. When all clones are gone, the loop ends in good order.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Commands. The channel has no bound of its own: each caller waits for its answer.
    pub commands: mpsc::UnboundedSender<Command>,
    /// Datagrams.
    pub datagrams: mpsc::Sender<Outgoing>,
    /// Our own node as it is announced.
    pub own: watch::Receiver<Option<Arc<tailnet::Node>>>,
    /// The last report on the network.
    pub report: watch::Receiver<Option<Arc<Report>>>,
    /// UDP ports of the IPv4 and the IPv6 socket.
    pub ports: (Option<u16>, Option<u16>),
}

/// Binds the sockets, starts everything that can start, and returns the loop with its handle. The loop must be polled
/// on the runtime on which this is called.
///
/// # Errors
/// When no UDP socket can be bound.
pub fn open(config: Config) -> io::Result<(Handle, impl Future<Output = ()> + Send)> {
    let sockets = Sockets::bind(config.port)?;
    let ports = sockets.ports();
    let (commands, commanded) = mpsc::unbounded_channel();
    let (datagrams, outgoing) = mpsc::channel(OUTGOING);
    let (own_sender, own) = watch::channel(None);
    let (report_sender, report) = watch::channel(None);
    let data_loop = run::DataLoop::new(config, sockets, commanded, outgoing, own_sender, report_sender);
    Ok((Handle { commands, datagrams, own, report, ports }, data_loop.run()))
}
