//! The agent's SSH server, over any byte stream (agent.md §6).
//!
//! Every login succeeds: reaching the port through the tunnel is the authorisation. Sessions run a command or a login
//! shell, with or without a terminal, or serve files (`sftp`). Connections are forwarded to TCP ports and unix sockets of
//! the agent's machine (`forward`), and from such sockets to the client (`listen`), those of its key agent and its X11
//! display (`x11`) among them.
//!
//! One connection is one task (russh's), each channel another. Nothing that a channel waits for stops the connection:
//! input is queued (`input`), output waits for the client's window before it enters the connection's queue, and a
//! stuck write does not stop reading (`transport`). What may wait for a file system, as a look at a folder and the start of a
//! program do, waits on a thread of its own (`driver::blocking`).

mod channels;
mod connection;
mod forward;
pub(crate) mod input;
mod listen;
pub(super) mod process;
mod rules;
mod running;
mod session;
mod sftp;
mod stats;
mod terminal;
#[cfg(test)]
mod tests;
mod transport;
mod x11;

pub(super) use process::{command_line, own_session};
pub use rules::Rules;
pub use stats::Counters;

use super::{account::Account, connections::Connections, environment::Profile};
use crate::driver::blocking;
use connection::Connection;
use process::{Launch, Process};
use russh::{
    Disconnect, Preferred, SshId, cipher, compression,
    keys::{Algorithm, PrivateKey, ssh_key::private::Ed25519Keypair},
    server::{Config, run_stream},
};
use sha2::{Digest as _, Sha256};
use stats::{ActiveSession, Stats};
use std::{
    borrow::Cow,
    env,
    ffi::OsString,
    fmt, fs,
    future::pending,
    io::{self, Read as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use transport::Transport;

/// How long a client may take to say that it speaks SSH.
const IDENTIFY: Duration = Duration::from_secs(60);
/// What the channels of a connection get to close when the agent stops.
const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// What sessions are told when the agent stops.
const SHUTTING_DOWN: &str = "the agent is shutting down";
/// Messages of output that wait in a connection's queue, each up to the client's packet size (32 KiB).
const OUTPUT_QUEUE: usize = 16;
/// How long a terminal waits for the message of the day.
const MOTD: Duration = Duration::from_secs(2);
/// Largest message of the day that is shown.
const MAX_MOTD: u64 = 64 << 10;

/// The server. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    rules: Rules,
    profile: RwLock<Arc<Profile>>,
    banners: RwLock<Vec<String>>,
    account: Account,
    process: Vec<(OsString, OsString)>,
    executable: PathBuf,
    tasks: TaskTracker,
    stop: CancellationToken,
    stats: Stats,
}

impl fmt::Debug for Shared {
    // The environment of the process holds the agent's token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl Shared {
    fn profile(&self) -> Arc<Profile> {
        Arc::clone(&self.profile.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a client's path means: a relative one begins where commands begin. Blocks for as long as the file system does.
    fn path(&self, named: impl AsRef<Path>) -> PathBuf {
        let named = named.as_ref();
        // Nobody waits for a folder that is not asked for.
        if named.is_absolute() { named.to_owned() } else { self.profile().folder(&self.account).join(named) }
    }

    /// What a terminal session without command shows first (agent.md §6.5).
    async fn greeting(&self, profile: &Profile) -> Vec<u8> {
        let mut text: String = {
            let banners = self.banners.read().unwrap_or_else(PoisonError::into_inner);
            let shown = banners.iter().map(|b| b.trim()).filter(|b| !b.is_empty());
            shown.map(|b| format!("{b}\n\n")).collect()
        };
        if !profile.motd.as_os_str().is_empty() {
            let (motd, hushed) = (profile.motd.clone(), self.account.home.join(".hushlogin"));
            let look = blocking::run(move || if hushed.exists() { String::new() } else { message_of_the_day(&motd) });
            match timeout(MOTD, look).await {
                Ok(Ok(message)) => text.push_str(&message),
                Ok(Err(error)) => tracing::debug!(%error, "no message of the day"),
                Err(_) => tracing::warn!("the message of the day cannot be read: its file system does not answer"),
            }
        }
        text.replace("\r\n", "\n").replace('\n', "\r\n").into_bytes()
    }
}

impl Server {
    /// A server whose host key follows from the names in `profile`: the same ones give the same key on every start.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self::with_rules(profile, Rules::default())
    }

    /// The same with rules for its clients.
    #[must_use]
    pub fn with_rules(profile: Profile, rules: Rules) -> Self {
        let keepalive = rules.keepalive();
        let config = Config {
            // What the Go implementation says on both sides; some editors compare it.
            server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Go")),
            keys: vec![host_key(&profile)],
            window_size: input::WINDOW,
            maximum_packet_size: 32 << 10,
            event_buffer_size: OUTPUT_QUEUE,
            channel_buffer_size: 1,
            inactivity_timeout: None,
            keepalive_interval: keepalive.map(|(interval, _)| interval),
            keepalive_max: keepalive.map_or(0, |(_, unanswered)| unanswered),
            preferred: Preferred {
                key: Cow::Borrowed(&[Algorithm::Ed25519]),
                cipher: Cow::Borrowed(&[
                    cipher::CHACHA20_POLY1305,
                    cipher::AES_128_GCM,
                    cipher::AES_256_GCM,
                    cipher::AES_128_CTR,
                    cipher::AES_192_CTR,
                    cipher::AES_256_CTR,
                ]),
                compression: Cow::Borrowed(&[compression::NONE]),
                ..Preferred::DEFAULT
            },
            ..Config::default()
        };
        let shared = Shared {
            config: Arc::new(config),
            rules,
            profile: RwLock::new(Arc::new(profile)),
            banners: RwLock::default(),
            account: Account::current(),
            process: env::vars_os().collect(),
            executable: env::current_exe().unwrap_or_else(|_| PathBuf::from("coder")),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            stats: Stats::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Reports the sessions that begin from now on.
    pub(super) fn report_to(&self, connections: Connections) {
        // There is one box for the agent's whole life.
        let _ = self.shared.stats.reports.set(connections);
    }

    /// What sessions see that start now.
    pub(super) fn profile(&self) -> Arc<Profile> {
        self.shared.profile()
    }

    /// What sessions that start from now on see. The host key stays.
    pub fn set_profile(&self, profile: Profile) {
        *self.shared.profile.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(profile);
    }

    /// Messages of the deployment that terminal sessions without command show first.
    pub fn set_banners(&self, banners: Vec<String>) {
        *self.shared.banners.write().unwrap_or_else(PoisonError::into_inner) = banners;
    }

    /// Serves one connection to its end.
    ///
    /// # Cancel safety
    /// A cancelled call cuts the connection: terminals hang up, other commands lose their pipes and go on.
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_from(stream, None).await;
    }

    /// The same for a client whose address in the tunnel is known.
    pub(super) async fn serve_from<S>(&self, stream: S, from: Option<IpAddr>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = &self.shared;
        if shared.stop.is_cancelled() {
            return;
        }
        shared.stats.connection();
        let cut = CancellationToken::new();
        let _cut_on_drop = cut.clone().drop_guard();
        let open = TaskTracker::new();
        let connection = Connection::new(Arc::clone(shared), open.clone(), from);
        let start = run_stream(Arc::clone(&shared.config), Transport::new(stream, cut), connection);
        let running = match timeout(IDENTIFY, start).await {
            Ok(Ok(running)) => running,
            Ok(Err(error)) => return tracing::debug!(%error, "not an SSH client"),
            Err(_) => return tracing::debug!("a client that never spoke"),
        };
        let handle = running.handle();
        let mut running = std::pin::pin!(running);
        let lifetime = shared.rules.lifetime();
        let over = async {
            match lifetime {
                Some(lifetime) => sleep(lifetime).await,
                None => pending().await,
            }
        };
        let why = tokio::select! {
            ended = &mut running => return tracing::debug!(?ended, "connection ended"),
            () = shared.stop.cancelled() => SHUTTING_DOWN,
            () = over => "the connection has reached the limit of --ssh-max-timeout",
        };
        let close = async {
            open.close();
            if shared.stop.is_cancelled() {
                // Each channel's task closes its channel; the farewell comes after that.
                let _ = timeout(CLOSE_GRACE, open.wait()).await;
            }
            let _ = handle.disconnect(Disconnect::ByApplication, why.to_owned(), String::new()).await;
            let _ = running.await;
        };
        let _ = timeout(2 * CLOSE_GRACE, close).await;
    }

    /// Closes all connections without exit status, ends what their sessions started, and waits for that up to `limit`.
    pub async fn shutdown(&self, limit: Duration) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if timeout(limit, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.shared.tasks.len(), "sessions did not end in time");
        }
    }

    /// Starts a command, or a login shell, in a terminal that belongs to no session of this server, with the same
    /// environment.
    ///
    /// # Cancel safety
    /// What a cancelled call starts is killed.
    pub(super) async fn start_in_terminal(
        &self,
        command: Option<Vec<u8>>,
        kind: &str,
        rows: u32,
        columns: u32,
    ) -> io::Result<Process> {
        let shared = Arc::clone(&self.shared);
        let size = terminal::Size { rows, columns, ..terminal::Size::default() };
        let launch = Launch {
            profile: shared.profile(),
            shared,
            client: Vec::new(),
            command,
            terminal: Some(terminal::Request { kind: kind.to_owned(), size, modes: Vec::new() }),
            key_agent: None,
            display: None,
            utf8: true,
        };
        launch.start().await
    }

    /// Counts somebody who uses the agent by another way as a session of this kind, until the answer is dropped.
    pub(super) fn count_session(&self, kind: &str, from: Option<IpAddr>) -> ActiveSession {
        self.shared.stats.start_session(kind, from)
    }

    /// A reading of the counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.stats.read()
    }
}

/// The beginning of a file, if it is one: a pipe would hold the session up.
fn message_of_the_day(path: &Path) -> String {
    let mut text = Vec::new();
    if fs::metadata(path).is_ok_and(|m| m.is_file())
        && let Ok(file) = fs::File::open(path)
    {
        // What could be read is shown.
        let _ = file.take(MAX_MOTD).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// An ed25519 key made of the names alone. It proves nothing, since anybody can derive it; the tunnel below has proved
/// the peer already, and clients are told not to check it. It is stable so that those who check all the same see no change.
fn host_key(profile: &Profile) -> PrivateKey {
    let mut hash = Sha256::new();
    hash.update(b"tailnet agent host key\0");
    for name in [&profile.owner, &profile.workspace, &profile.agent] {
        hash.update(name.as_bytes());
        hash.update([0]);
    }
    let pair = Ed25519Keypair::from_seed(&hash.finalize().into());
    pair.into()
}
