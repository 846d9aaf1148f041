//! UDP inside the overlay.

use super::{ClosedError, Tailnet};
use crate::driver::datapath::{self, Command, Outgoing};
use std::{fmt, net::SocketAddrV6};
use tokio::sync::mpsc;

/// A UDP port of this node. As unreliable as UDP is anywhere; datagrams that nobody receives in time are dropped and
/// counted. Dropping it gives the port back.
pub struct Datagram {
    tailnet: Tailnet,
    port: u16,
    arriving: mpsc::Receiver<datapath::Datagram>,
}

impl Datagram {
    pub(super) const fn new(tailnet: Tailnet, port: u16, arriving: mpsc::Receiver<datapath::Datagram>) -> Self {
        Self { tailnet, port, arriving }
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Sends a datagram; waits only while the data loop is busy. At most 1,232 bytes fit into one packet; longer ones
    /// are dropped.
    ///
    /// # Errors
    /// When the node is closed.
    ///
    /// # Cancel safety
    /// Either all of it is on its way or nothing.
    pub async fn send_to(&self, data: &[u8], to: SocketAddrV6) -> Result<(), ClosedError> {
        let outgoing = Outgoing { port: self.port, to, data: data.to_vec() };
        self.tailnet.0.handle.datagrams.send(outgoing).await.map_err(|_| ClosedError)
    }

    /// The next datagram and its sender.
    ///
    /// # Errors
    /// When the node is closed.
    ///
    /// # Cancel safety
    /// No datagram is lost when the future is dropped.
    pub async fn recv_from(&mut self) -> Result<(Vec<u8>, SocketAddrV6), ClosedError> {
        let datapath::Datagram { from, data } = self.arriving.recv().await.ok_or(ClosedError)?;
        Ok((data, from))
    }
}

impl Drop for Datagram {
    fn drop(&mut self) {
        self.arriving.close();
        self.tailnet.tell(Command::UnbindUdp(self.port));
    }
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagram").field("port", &self.port).finish_non_exhaustive()
    }
}
