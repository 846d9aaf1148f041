//! Connections that peers open to us.

use super::{ClosedError, Stream, Tailnet};
use crate::{driver::datapath::Command, proto::netstack::IncomingKey};
use std::{fmt, io, net::SocketAddrV6};
use tokio::sync::mpsc;

/// Takes connections to a port, or to all ports without a listener. Dropping it gives the port back and refuses those
/// that wait.
pub struct Listener {
    tailnet: Tailnet,
    port: Option<u16>,
    requests: mpsc::Receiver<IncomingKey>,
}

impl Listener {
    pub(super) const fn new(tailnet: Tailnet, port: Option<u16>, requests: mpsc::Receiver<IncomingKey>) -> Self {
        Self { tailnet, port, requests }
    }

    /// The next connection, not yet accepted.
    ///
    /// # Errors
    /// When the node is closed.
    ///
    /// # Cancel safety
    /// No connection is lost when the future is dropped.
    pub async fn accept(&mut self) -> Result<Incoming, ClosedError> {
        let key = self.requests.recv().await.ok_or(ClosedError)?;
        Ok(Incoming { tailnet: Some(self.tailnet.clone()), key })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.requests.close();
        while let Ok(key) = self.requests.try_recv() {
            self.tailnet.tell(Command::Refuse(key));
        }
        self.tailnet.tell(Command::Unlisten(self.port));
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("port", &self.port).finish_non_exhaustive()
    }
}

/// A connection that a peer asks for. Dropping it refuses.
pub struct Incoming {
    /// Taken once it is decided.
    tailnet: Option<Tailnet>,
    key: IncomingKey,
}

impl Incoming {
    /// Our overlay address and the port that was dialled.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddrV6 {
        self.key.local
    }

    /// The peer's overlay address and port.
    #[must_use]
    pub const fn peer_addr(&self) -> SocketAddrV6 {
        self.key.remote
    }

    /// Accepts.
    ///
    /// # Errors
    /// When the peer has given up meanwhile, or the node is closed.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn accept(mut self) -> io::Result<Stream> {
        let Some(tailnet) = self.tailnet.take() else { return Err(ClosedError.into()) };
        let key = self.key;
        let end = tailnet.ask(|reply| Command::Accept { key, reply }).await?;
        let over = || io::Error::new(io::ErrorKind::ConnectionAborted, "the peer has given up");
        Ok(Stream::new(end.ok_or_else(over)?, key.local, key.remote, tailnet))
    }

    /// Refuses: the peer reads "connection refused".
    pub fn refuse(self) {}
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(tailnet) = self.tailnet.take() {
            tailnet.tell(Command::Refuse(self.key));
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("key", &self.key).finish_non_exhaustive()
    }
}
