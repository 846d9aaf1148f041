//! UDP inside the overlay.

use super::{ClosedError, Tailnet};
use crate::{
    driver::datapath::{self, Command, Outgoing},
    wire::ip::Udp,
};
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
    /// The most bytes that one datagram holds.
    pub const MAX: usize = Udp::MAX_PAYLOAD;

    pub(super) const fn new(tailnet: Tailnet, port: u16, arriving: mpsc::Receiver<datapath::Datagram>) -> Self {
        Self { tailnet, port, arriving }
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Sends a datagram; waits only while the data loop is busy. At most [`Datagram::MAX`] bytes fit into one packet; longer
    /// ones are dropped.
    ///
    /// # Errors
    /// When the node is closed.
    ///
    /// # Cancel safety
    /// Either all of it is on its way or nothing.
    pub async fn send_to(&self, data: &[u8], to: SocketAddrV6) -> Result<(), ClosedError> {
        send(&self.tailnet, self.port, data, to).await
    }

    /// The next datagram and its sender.
    ///
    /// # Errors
    /// When the node is closed.
    ///
    /// # Cancel safety
    /// No datagram is lost when the future is dropped.
    pub async fn recv_from(&mut self) -> Result<(Vec<u8>, SocketAddrV6), ClosedError> {
        let datapath::Datagram { from, data, .. } = self.arriving.recv().await.ok_or(ClosedError)?;
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

/// Every UDP port of this node that has no [`Datagram`] of its own, as one. Dropping it gives them back.
pub struct DatagramRest {
    tailnet: Tailnet,
    arriving: mpsc::Receiver<datapath::Datagram>,
}

impl DatagramRest {
    pub(super) const fn new(tailnet: Tailnet, arriving: mpsc::Receiver<datapath::Datagram>) -> Self {
        Self { tailnet, arriving }
    }

    /// The next datagram, its sender and the port that it was sent to.
    ///
    /// # Errors
    /// When the node is closed.
    ///
    /// # Cancel safety
    /// No datagram is lost when the future is dropped.
    pub async fn recv_from(&mut self) -> Result<(Vec<u8>, SocketAddrV6, u16), ClosedError> {
        let datapath::Datagram { from, to, data } = self.arriving.recv().await.ok_or(ClosedError)?;
        Ok((data, from, to.port()))
    }

    /// Something that answers from one of the ports while this goes on receiving.
    #[must_use]
    pub fn sender(&self, port: u16) -> DatagramSender {
        DatagramSender { tailnet: self.tailnet.clone(), port }
    }
}

impl Drop for DatagramRest {
    fn drop(&mut self) {
        self.arriving.close();
        self.tailnet.tell(Command::UnbindUdpRest);
    }
}

impl fmt::Debug for DatagramRest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramRest").finish_non_exhaustive()
    }
}

/// Sends datagrams from one port of this node.
#[derive(Debug, Clone)]
pub struct DatagramSender {
    tailnet: Tailnet,
    port: u16,
}

impl DatagramSender {
    /// As [`Datagram::send_to`].
    ///
    /// # Errors
    /// When the node is closed.
    ///
    /// # Cancel safety
    /// Either all of it is on its way or nothing.
    pub async fn send_to(&self, data: &[u8], to: SocketAddrV6) -> Result<(), ClosedError> {
        send(&self.tailnet, self.port, data, to).await
    }
}

async fn send(tailnet: &Tailnet, port: u16, data: &[u8], to: SocketAddrV6) -> Result<(), ClosedError> {
    tailnet.0.handle.datagrams.send(Outgoing { port, to, data: data.to_vec() }).await.map_err(|_| ClosedError)
}
