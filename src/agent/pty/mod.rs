//! Terminals that outlive their connections, port 2 of the tunnel (agent.md §5.2).
//!
//! ```text
//! connection ─ opening ─► table: id → slot ─► Terminal ◄─ process, 64 KiB of its last output
//!     ▲   requests ──────────────────────────► input          │
//!     └── bounded queue ◄── replay, then every byte ──────────┘
//! ```
//! An id names a terminal. Whoever says a new one starts a process; whoever says one that is there gets the last 64 KiB of
//! its output and everything from then on, beside all others who are attached. Everybody may type and resize; the last
//! size counts. A terminal ends with its process, or five minutes after the last connection left.
//!
//! Slow readers: each connection has a queue of its own. The process waits for a full one, as it would for any terminal,
//! but not for ever: a connection that takes nothing for ten seconds, or that has held others up for ten, is dropped. It
//! can come back and is shown the end of what it missed.
//!
//! The one backend is `buffered`; who asks for `screen` gets it too. There is no exit status on this port: the end of the
//! bytes is all there is. Why no terminal could be had is told in its place, and in the log.

mod ring;
mod terminal;
#[cfg(test)]
mod tests;

use super::ssh::Server;
use crate::wire::pty::{MAX_OPENING, Opening, Reject, Requests};
use std::{
    collections::HashMap,
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use terminal::{Connection, Terminal};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{OnceCell, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

/// The port.
pub(crate) const PORT: u16 = 2;
/// What its users count as in the statistics.
pub(crate) const KIND: &str = "reconnecting_pty";
/// What programs are told the terminal is.
const TERM: &str = "xterm-256color";
/// The size of a terminal whose client names none.
const ROWS_COLUMNS: (u32, u32) = (24, 80);
/// How long a client may take to say what it wants.
const OPENING: Duration = Duration::from_secs(20);
/// How long a connection waits for its terminal's process to be started.
const ATTACH: Duration = Duration::from_secs(30);
/// What a client that has not said what it wants when the agent stops still gets for it.
const LAST_CALL: Duration = Duration::from_secs(1);
/// What the last words to a client, and all terminals at a stop, may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// Most terminals at a time. Linux gives 4,096 to the whole machine.
const MAX_TERMINALS: usize = 256;
/// Most connections to all of them.
const MAX_CONNECTIONS: usize = 1024;

/// All terminals of the agent. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Terminals {
    shared: Arc<Shared>,
}

struct Shared {
    server: Server,
    table: Mutex<HashMap<Uuid, Slot>>,
    room: usize,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("terminals", &self.table().len()).finish_non_exhaustive()
    }
}

/// The place of a terminal, which several may wait for while one starts it.
type Slot = Arc<OnceCell<Terminal>>;

/// Why there is no terminal. The text is shown to the client.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("not a terminal client: {0}")]
    Reject(#[from] Reject),
    #[error("this agent runs no terminals in containers: ask for one without a container")]
    Container,
    #[error("this agent has no backend {0:?} for terminals: ask for \"buffered\"")]
    Backend(String),
    #[error("the agent has {0} terminals already, and no more: end one of them")]
    Full(usize),
    #[error("cannot start a terminal: {0}{hint}", hint = exhausted(.0))]
    Start(io::Error),
    #[error("the terminal did not start within {} s", ATTACH.as_secs())]
    Late,
    #[error("the agent is shutting down")]
    Stopping,
}

/// What to do where the machine itself has no terminal left.
pub(in crate::agent) fn exhausted(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::AGAIN) => {
            "; this machine has no terminal left: end some, or raise the limit (on Linux kernel.pty.max)"
        }
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
            "; too many files are open: end some sessions, or raise the limit of open files"
        }
        _ => "",
    }
}

/// Takes an empty slot out of the table again when nobody else waits for it.
struct Claim<'a> {
    shared: &'a Shared,
    id: Uuid,
    slot: Slot,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        // Clones are made only under this lock: two means the table's and ours.
        if !self.slot.initialized() && Arc::strong_count(&self.slot) == 2 {
            table.remove(&self.id);
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, HashMap<Uuid, Slot>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, id: Uuid) -> Result<Claim<'_>, OpenError> {
        let mut table = self.table();
        let room = table.len() < self.room;
        let slot = match table.entry(id) {
            std::collections::hash_map::Entry::Occupied(slot) => Arc::clone(slot.get()),
            std::collections::hash_map::Entry::Vacant(_) if !room => return Err(OpenError::Full(self.room)),
            std::collections::hash_map::Entry::Vacant(place) => Arc::clone(place.insert(Slot::default())),
        };
        drop(table);
        Ok(Claim { shared: self, id, slot })
    }

    /// A terminal has ended: whoever asks for its id from now on gets another.
    fn forget(&self, id: Uuid, ended: &Terminal) {
        let mut table = self.table();
        if table.get(&id).and_then(|slot| slot.get()).is_some_and(|now| now.is(ended)) {
            table.remove(&id);
        }
    }
}

impl Terminals {
    /// None yet. Processes are started as the SSH server starts them.
    pub(crate) fn new(server: Server) -> Self {
        Self::with_room(server, MAX_TERMINALS)
    }

    fn with_room(server: Server, room: usize) -> Self {
        let shared = Shared {
            server,
            table: Mutex::default(),
            room,
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves one connection to its end; `from` is the client's address in the tunnel.
    pub(crate) async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, from: Option<IpAddr>) {
        let Ok(_place) = self.shared.places.try_acquire() else {
            tracing::warn!(most = MAX_CONNECTIONS, "too many connections to terminals: one was turned away");
            return;
        };
        // A stop waits until all who are here were told.
        let _here = self.shared.tasks.token();
        let late = async {
            self.shared.stop.cancelled().await;
            sleep(LAST_CALL).await;
        };
        let opening = tokio::select! {
            opening = timeout(OPENING, read_opening(&mut stream)) => opening,
            () = late => return refuse(&mut stream, &OpenError::Stopping).await,
        };
        let opening = match opening {
            Ok(Ok(opening)) => opening,
            Ok(Err(error)) => return tracing::debug!(%error, "no terminal was asked for"),
            Err(_) => return tracing::debug!("a terminal's client never said what it wants"),
        };
        let (opening, rest) = match opening {
            Ok(opening) => opening,
            Err(reject) => return refuse(&mut stream, &reject.into()).await,
        };
        let attached = tokio::select! {
            attached = timeout(ATTACH, self.attach(&opening)) => attached.unwrap_or(Err(OpenError::Late)),
            () = self.shared.stop.cancelled() => Err(OpenError::Stopping),
        };
        match attached {
            Ok(connection) => {
                let _active = self.shared.server.count_session(KIND, from);
                talk(stream, connection, &opening, &rest).await;
            }
            Err(error) => refuse(&mut stream, &error).await,
        }
    }

    /// Tells all who watch a terminal that the agent stops, hangs the terminals up and waits for their processes and for those
    /// words, for a few seconds.
    pub(crate) async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if timeout(FAREWELL, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.shared.tasks.len(), "terminals did not end in time");
        }
    }

    /// Attaches to the terminal of an id, and starts it if there is none.
    async fn attach(&self, opening: &Opening) -> Result<Connection, OpenError> {
        if !opening.container.is_empty() {
            return Err(OpenError::Container);
        }
        if !matches!(opening.backend.as_str(), "" | "buffered" | "screen") {
            return Err(OpenError::Backend(opening.backend.clone()));
        }
        loop {
            if self.shared.stop.is_cancelled() {
                return Err(OpenError::Stopping);
            }
            let claim = self.shared.claim(opening.id)?;
            let terminal = claim.slot.get_or_try_init(|| self.start(opening)).await?;
            if let Some(connection) = terminal.attach() {
                return Ok(connection);
            }
            // It ended this moment, and is in the table no more.
            tokio::task::yield_now().await;
        }
    }

    async fn start(&self, opening: &Opening) -> Result<Terminal, OpenError> {
        let size = opening.size;
        let (rows, columns) = if size.is_real() { (size.height.into(), size.width.into()) } else { ROWS_COLUMNS };
        let command = (!opening.command.trim().is_empty()).then(|| opening.command.clone().into_bytes());
        let process = self.shared.server.start_in_terminal(command, TERM, rows, columns).await.map_err(OpenError::Start)?;
        let (terminal, running) = Terminal::new(process).map_err(OpenError::Start)?;
        tracing::debug!(id = %opening.id, shell = opening.command.is_empty(), "a terminal starts");
        let (id, shared, this) = (opening.id, Arc::clone(&self.shared), terminal.clone());
        self.shared.tasks.spawn(async move {
            let why = running.serve(&shared.stop).await;
            if shared.stop.is_cancelled() {
                this.tell(&format!("\r\n{}\r\n", OpenError::Stopping));
            }
            shared.forget(id, &this);
            running.end().await;
            tracing::debug!(%id, why, "a terminal ended");
        });
        Ok(terminal)
    }
}

/// The opening, and what came behind it.
async fn read_opening(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Result<(Opening, Vec<u8>), Reject>> {
    let mut bytes = Vec::new();
    loop {
        match Opening::parse(&bytes) {
            Ok(None) => {}
            Ok(Some((opening, used))) => return Ok(Ok((opening, bytes.split_off(used)))),
            Err(reject) => return Ok(Err(reject)),
        }
        let mut more = [0; 4096];
        let read = from.read(&mut more).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(more.get(..read).unwrap_or_default());
        debug_assert!(bytes.len() <= 2 + MAX_OPENING + more.len(), "an opening tells its length first");
    }
}

/// Tells a client in its terminal why it gets none.
async fn refuse(stream: &mut (impl AsyncWrite + Unpin), error: &OpenError) {
    tracing::warn!(%error, "a client gets no terminal");
    let told = async {
        stream.write_all(format!("{error}\r\n").as_bytes()).await?;
        stream.shutdown().await
    };
    // Whether it still listens changes nothing.
    let _ = timeout(FAREWELL, told).await;
}

/// Carries both directions until the terminal ends or the client leaves.
async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, mut connection: Connection, opening: &Opening, rest: &[u8]) {
    let (terminal, cut) = (connection.terminal().clone(), connection.cut());
    terminal.resize(opening.size);
    let (mut read, mut write) = tokio::io::split(stream);
    let input = async {
        let mut requests = Requests::new();
        requests.push(rest);
        let mut buffer = vec![0; 16 << 10];
        loop {
            loop {
                match requests.read() {
                    Ok(None) => break,
                    Ok(Some(request)) => {
                        terminal.resize(request.size);
                        if !request.data.is_empty() {
                            terminal.input(request.data.into_bytes()).await;
                        }
                    }
                    Err(error) => return tracing::debug!(%error, "a terminal's client is not understood"),
                }
            }
            match read.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => requests.push(buffer.get(..n).unwrap_or_default()),
            }
        }
    };
    let output = async {
        while let Some(bytes) = connection.next().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = timeout(FAREWELL, write.shutdown()).await;
    };
    tokio::select! {
        () = input => {}
        () = output => {}
        () = cut.cancelled() => {}
    }
}
