//! One connection: its login, its frames, its clock.

use super::registry::{ConnId, Hop, Registry};
use crate::{
    base::{Deadline, Instant, NodeKey, Rng},
    proto::relay::inbox::{Inbox, Judgement},
    wire::derp::{ClientInfo, Frame, Header, LoginError, MAX_CLIENT_INFO, MAX_PACKET, MAX_PING, RelaySecret, ServerInfo, kind},
};
use std::time::Duration;

/// How long a client may take to log in.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a client is sent a keepalive, and by how much that varies from one connection to another.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_JITTER: Duration = Duration::from_millis(4_999);

/// Why the server ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Close {
    /// The first frame is no login.
    #[error("the first frame is no login")]
    NoLogin,
    /// The login is not the key's owner's, or unreadable.
    #[error("login refused: {0}")]
    Login(#[from] LoginError),
    /// No login in time.
    #[error("no login within {} s", LOGIN_TIMEOUT.as_secs())]
    LoginTimeout,
    /// A frame for mesh peers only.
    #[error("insufficient permissions for a frame of type {0:#04x}")]
    Permissions(u8),
    /// A frame whose length does not fit its type.
    #[error("a frame of type {kind:#04x} with {len} bytes")]
    Malformed {
        /// The frame's type.
        kind: u8,
        /// Its length.
        len: usize,
    },
}

/// The engine of one connection, owned by its task.
#[derive(Debug)]
pub struct RelayConn {
    id: ConnId,
    secret: RelaySecret,
    rng: Rng,
    key: Option<NodeKey>,
    /// The answer to the login, until the registry has taken it.
    answer: Option<Vec<u8>>,
    inbox: Inbox,
    hop: Option<Hop>,
    login_by: Instant,
    keep_alive_every: Duration,
    keep_alive_at: Instant,
}

impl RelayConn {
    pub(super) fn new(now: Instant, id: ConnId, secret: RelaySecret, mut rng: Rng) -> Self {
        let keep_alive_every = KEEP_ALIVE + rng.between(Duration::ZERO, KEEP_ALIVE_JITTER);
        Self {
            id,
            secret,
            rng,
            key: None,
            answer: None,
            inbox: Inbox::new(),
            hop: None,
            login_by: now + LOGIN_TIMEOUT,
            keep_alive_every,
            keep_alive_at: now + keep_alive_every,
        }
    }

    /// The connection's name in the registry.
    #[must_use]
    pub const fn id(&self) -> ConnId {
        self.id
    }

    /// The client's key, once it has proven it.
    #[must_use]
    pub const fn key(&self) -> Option<NodeKey> {
        self.key
    }

    /// Takes the login off the front of `input`, if it is still to come: opens it and seals its answer. The curve arithmetic
    /// of that is far more work than a packet, so it is done without the registry that all connections share;
    /// [`handle_bytes`](Self::handle_bytes) hands the result over.
    ///
    /// # Errors
    /// When the connection must be closed; see [`Close`].
    pub fn handle_login(&mut self, now: Instant, input: &mut &[u8]) -> Result<(), Close> {
        if self.key.is_some() {
            return Ok(());
        }
        let mut inbox = std::mem::take(&mut self.inbox);
        if let Some((kind, payload)) = inbox.next(input, |header| judge(false, header))? {
            let Ok(Frame::ClientInfo { key, nonce, sealed }) = Frame::parse(kind, payload) else { return Err(Close::NoLogin) };
            ClientInfo::open(&self.secret, &key, &nonce, sealed)?;
            let mut answer = Vec::new();
            ServerInfo::unlimited().write(&self.secret, &key, self.rng.bytes(), &mut answer);
            self.answer = Some(answer);
            self.key = Some(key);
            self.keep_alive_at = now + self.keep_alive_every;
        }
        self.inbox = inbox;
        Ok(())
    }

    /// Takes bytes off the stream, cut anywhere. Afterwards, wake what [`Registry::poll_ready`] names.
    ///
    /// # Errors
    /// When the connection must be closed; see [`Close`].
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8], registry: &mut Registry) -> Result<(), Close> {
        let mut input = bytes;
        self.handle_login(now, &mut input)?;
        let Some(key) = self.key else { return Ok(()) };
        if let Some(answer) = self.answer.take() {
            registry.login(self.id, key, &answer);
        }
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut touched = false;
        while let Some((kind, payload)) = inbox.next(&mut input, |header| judge(true, header))? {
            let malformed = Close::Malformed { kind, len: payload.len() };
            let frame = Frame::parse(kind, payload).map_err(|_| malformed)?;
            if !std::mem::replace(&mut touched, true) {
                registry.touch(self.id, &key);
            }
            match frame {
                Frame::SendPacket { to, packet } => registry.deliver(now, self.id, &key, &mut self.hop, &to, packet),
                Frame::Ping(data) => registry.pong(self.id, data),
                // Whether we are a client's home is of no consequence here.
                Frame::NotePreferred(_) => {}
                _ => return Err(malformed),
            }
        }
        self.inbox = inbox;
        Ok(())
    }

    /// Looks at the clock: sends keepalives, ends a login that takes too long.
    ///
    /// # Errors
    /// [`Close::LoginTimeout`].
    pub fn handle_timeout(&mut self, now: Instant, registry: &mut Registry) -> Result<(), Close> {
        if self.key.is_none() {
            return if self.login_by <= now { Err(Close::LoginTimeout) } else { Ok(()) };
        }
        if self.keep_alive_at <= now {
            self.keep_alive_at = now + self.keep_alive_every;
            registry.keep_alive(self.id);
        }
        Ok(())
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub const fn poll_timeout(&self) -> Deadline {
        match self.key {
            None => Deadline { at: self.login_by, why: "relay client login" },
            Some(_) => Deadline { at: self.keep_alive_at, why: "relay keepalive" },
        }
    }
}

/// What the server reads, by the header alone: nothing is collected that will not be used.
const fn judge(logged_in: bool, Header { kind, len }: Header) -> Result<Judgement, Close> {
    let fits = match kind {
        kind::CLIENT_INFO if !logged_in => len <= MAX_CLIENT_INFO,
        _ if !logged_in => return Err(Close::NoLogin),
        kind::SEND_PACKET => 32 <= len && len <= 32 + MAX_PACKET,
        kind::PING => 8 <= len && len <= MAX_PING,
        kind::NOTE_PREFERRED => len == 1,
        kind::FORWARD_PACKET | kind::WATCH_CONNS | kind::CLOSE_PEER => return Err(Close::Permissions(kind)),
        _ => return Ok(Judgement::Skip),
    };
    if fits { Ok(Judgement::Take) } else { Err(Close::Malformed { kind, len }) }
}
