//! Sockets that the agent listens on for a client: `tcpip-forward` and `streamlocal-forward` (`-R`), the one of its key
//! agent (`-A`) and its X11 displays (`-X`; agent.md §6.2, §6.6, §6.7). Each ends with its connection at the latest.

use super::{
    Shared,
    channels::{Channels, MAX_CHANNELS},
    forward::Forward,
    session::Output,
    x11,
};
use crate::{
    agent::environment::Sources,
    driver::{blocking, local::Socket},
};
use russh::{
    Channel,
    server::{Handle, Msg},
};
use rustix::fs::Mode;
use std::{
    collections::HashMap,
    fs::{self, DirBuilder, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, UnixListener, lookup_host},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Most sockets that one connection listens on.
pub(super) const MAX_LISTENERS: usize = 256;
/// How long a name or a path to listen on may take to be found; the connection waits for it.
const FIND: Duration = Duration::from_secs(5);
/// The pause after a failed accept, which means that the machine has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket's name in the folder of a key agent.
const SOCKET: &str = "socket";

/// What a client asked to listen on, as it named it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Tcp { address: String, port: u32 },
    Unix(String),
}

/// A display as the client asks for it. The cookie is a secret.
pub(super) struct Display<'a> {
    pub(super) protocol: &'a str,
    pub(super) cookie: &'a str,
    pub(super) screen: u32,
    /// For one program alone.
    pub(super) single: bool,
}

/// What a connection listens on.
#[derive(Debug)]
pub(super) struct Listeners {
    shared: Arc<Shared>,
    /// The connection's channels that are not closed yet.
    open: TaskTracker,
    channels: Arc<Channels>,
    /// One for each connection that waits for the client or is carried.
    slots: Arc<Semaphore>,
    ends: HashMap<Key, DropGuard>,
    key_agent: Option<(PathBuf, DropGuard)>,
    /// The ends of the sessions that were given a display.
    displays: Vec<CancellationToken>,
}

impl Listeners {
    pub(super) fn new(shared: Arc<Shared>, open: TaskTracker, channels: Arc<Channels>) -> Self {
        let slots = Arc::new(Semaphore::new(MAX_CHANNELS));
        Self { shared, open, channels, slots, ends: HashMap::new(), key_agent: None, displays: Vec::new() }
    }

    fn room(&mut self) -> io::Result<()> {
        self.displays.retain(|gone| !gone.is_cancelled());
        let listening = self.ends.len() + self.displays.len() + usize::from(self.key_agent.is_some());
        let full = listening >= MAX_LISTENERS || self.shared.stop.is_cancelled();
        if full { Err(io::Error::other("the connection listens on too many sockets")) } else { Ok(()) }
    }

    /// `tcpip-forward`: the port that was taken.
    pub(super) async fn listen_tcp(&mut self, address: &str, port: u32, handle: Handle) -> io::Result<u32> {
        self.room()?;
        let wanted = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let (bound, listeners) = timeout(FIND, bind(address, wanted)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let port = u32::from(bound);
        let end = CancellationToken::new();
        for listener in listeners {
            let origin = Origin::Tcp { address: address.to_owned(), port };
            self.spawn(Listener::Tcp(listener), origin, handle.clone(), end.clone());
        }
        self.ends.insert(Key::Tcp { address: address.to_owned(), port }, end.drop_guard());
        Ok(port)
    }

    /// `cancel-tcpip-forward`: false when there is no such one.
    pub(super) fn cancel_tcp(&mut self, address: &str, port: u32) -> bool {
        self.ends.remove(&Key::Tcp { address: address.to_owned(), port }).is_some()
    }

    /// `streamlocal-forward@openssh.com`. A relative path begins where commands begin.
    pub(super) async fn listen_unix(&mut self, path: &str, handle: Handle) -> io::Result<()> {
        self.room()?;
        let key = Key::Unix(path.to_owned());
        if path.is_empty() || self.ends.contains_key(&key) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (shared, named) = (Arc::clone(&self.shared), path.to_owned());
        let (listener, file) = found(move || bind_unix(&shared.path(named))).await?;
        let end = CancellationToken::new();
        let listener = Listener::Unix { listener, _file: file };
        self.spawn(listener, Origin::Unix { path: path.to_owned() }, handle, end.clone());
        self.ends.insert(key, end.drop_guard());
        Ok(())
    }

    /// `cancel-streamlocal-forward@openssh.com`: false when there is no such one.
    pub(super) fn cancel_unix(&mut self, path: &str) -> bool {
        self.ends.remove(&Key::Unix(path.to_owned())).is_some()
    }

    /// `auth-agent-req@openssh.com`: the socket of the client's key agent, one for the whole connection.
    pub(super) async fn key_agent(&mut self, handle: Handle) -> io::Result<PathBuf> {
        if let Some((path, _)) = &self.key_agent {
            return Ok(path.clone());
        }
        self.room()?;
        let (listener, folder) = found(bind_in_new_folder).await?;
        let path = folder.path().join(SOCKET);
        let end = CancellationToken::new();
        self.spawn(Listener::KeyAgent { listener, _folder: folder }, Origin::KeyAgent, handle, end.clone());
        self.key_agent = Some((path.clone(), end.drop_guard()));
        Ok(path)
    }

    /// `x11-req`: the display's name. It ends with the session, whose `gone` this is and which has none yet.
    pub(super) async fn display(&mut self, asked: Display<'_>, handle: Handle, gone: CancellationToken) -> io::Result<String> {
        self.room()?;
        let (number, listener) = x11::bind().await?;
        let shared = &self.shared;
        let sources = Sources {
            profile: &shared.profile(),
            account: &shared.account,
            process: &shared.process,
            client: &[],
            executable: &shared.executable,
            terminal: None,
            key_agent: None,
            display: None,
        };
        x11::authorise(sources.build(), number, asked.protocol, asked.cookie).await?;
        self.displays.push(gone.clone());
        self.spawn(Listener::Tcp(listener), Origin::X11 { single: asked.single }, handle, gone);
        Ok(format!("localhost:{number}.{}", asked.screen))
    }

    fn spawn(&self, listener: Listener, origin: Origin, handle: Handle, end: CancellationToken) {
        let accepting = Accepting {
            shared: Arc::clone(&self.shared),
            open: self.open.clone(),
            channels: Arc::clone(&self.channels),
            slots: Arc::clone(&self.slots),
            handle,
        };
        let stop = self.shared.stop.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = accepting.run(&listener, origin) => {}
                () = end.cancelled() => {}
                () = stop.cancelled() => {}
            }
            if !matches!(listener, Listener::Tcp(_)) {
                // Its file goes too, which may take time. What cannot be queued is dropped here.
                let _ = blocking::run(move || drop(listener)).await;
            }
        });
    }
}

/// What a call gives that may block, unless it takes too long.
async fn found<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    timeout(FIND, blocking::run(call)).await.map_err(|_| io::ErrorKind::TimedOut)??
}

/// Binds each address that `name` means to one port: the first must succeed, the others may.
async fn bind(name: &str, port: u16) -> io::Result<(u16, Vec<TcpListener>)> {
    let addresses: Vec<SocketAddr> = match name {
        // RFC 4254 §7.1: everything, on both families.
        "" | "*" => vec![([0; 8], port).into(), ([0; 4], port).into()],
        "localhost" => vec![([127, 0, 0, 1], port).into(), ([0, 0, 0, 0, 0, 0, 0, 1], port).into()],
        name => lookup_host((name.trim_start_matches('[').trim_end_matches(']'), port)).await?.collect(),
    };
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut port = port;
    for mut address in addresses {
        address.set_port(port);
        match TcpListener::bind(address).await {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                listeners.push(listener);
            }
            Err(error) if listeners.is_empty() => failure = error,
            // The first one may have taken both families.
            Err(error) => tracing::debug!(%address, %error, "not listening there too"),
        }
    }
    if listeners.is_empty() { Err(failure) } else { Ok((port, listeners)) }
}

/// Listens on a path for this user alone: its folder is made, a socket that is left there goes.
fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile::new(path)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    Ok((listener, file))
}

/// Listens in a folder of its own for this user alone.
fn bind_in_new_folder() -> io::Result<(UnixListener, TempDir)> {
    let folder = tempfile::Builder::new().prefix("coder-agent-").permissions(Permissions::from_mode(0o700)).tempdir()?;
    Ok((UnixListener::bind(folder.path().join(SOCKET))?, folder))
}

/// Removes the file of a socket when nobody listens on it any more, unless another took its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), inode: inode(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|i| i == self.inode) {
            // Somebody was faster.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

/// A listening socket and what goes with it.
#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
    KeyAgent { listener: UnixListener, _folder: TempDir },
}

impl Listener {
    /// The next connection, with the address it comes from where there is one.
    async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Socket::Tcp(stream), Some(from)))
            }
            Self::Unix { listener, .. } | Self::KeyAgent { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), None))
            }
        }
    }
}

/// What a channel to the client is opened for.
#[derive(Debug, Clone)]
enum Origin {
    Tcp { address: String, port: u32 },
    Unix { path: String },
    KeyAgent,
    X11 { single: bool },
}

impl Origin {
    async fn open(&self, handle: &Handle, from: Option<SocketAddr>) -> Result<Channel<Msg>, russh::Error> {
        let (from, from_port) = from.map_or((String::new(), 0), |f| (f.ip().to_canonical().to_string(), f.port()));
        match self {
            Self::Tcp { address, port } => {
                handle.channel_open_forwarded_tcpip(address.clone(), *port, from, from_port.into()).await
            }
            Self::Unix { path } => handle.channel_open_forwarded_streamlocal(path.clone()).await,
            Self::KeyAgent => handle.channel_open_agent().await,
            Self::X11 { .. } => handle.channel_open_x11(from, from_port.into()).await,
        }
    }
}

/// Takes connections and opens a channel for each.
#[derive(Clone)]
struct Accepting {
    shared: Arc<Shared>,
    open: TaskTracker,
    channels: Arc<Channels>,
    slots: Arc<Semaphore>,
    handle: Handle,
}

impl Accepting {
    async fn run(&self, listener: &Listener, origin: Origin) {
        // The semaphore is never closed.
        while let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await {
            match listener.accept().await {
                Ok((socket, from)) => {
                    let carried = self.clone().carry(origin.clone(), socket, from);
                    self.shared.tasks.spawn(self.open.track_future(async move {
                        carried.await;
                        drop(slot);
                    }));
                    if matches!(origin, Origin::X11 { single: true }) {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(?origin, %error, "no connection was taken");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Runs on when its listener ends: an answer of the client to nobody would break its whole connection (russh).
    async fn carry(self, origin: Origin, socket: Socket, from: Option<SocketAddr>) {
        let opened = tokio::select! {
            opened = origin.open(&self.handle, from) => opened,
            () = self.shared.stop.cancelled() => return,
        };
        let half = match opened {
            // Input does not come through the channel's reader: see the module `input`.
            Ok(channel) => channel.split().1,
            Err(error) => return tracing::debug!(?origin, %error, "the client took no channel"),
        };
        let output = Output::new(half);
        if let Some(lane) = self.channels.taken(output.id()).await {
            Forward { shared: self.shared, output, lane, from: None }.carry(socket).await;
        }
    }
}
