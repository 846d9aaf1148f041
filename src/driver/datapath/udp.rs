//! The loop's UDP ports: who owns them, and what leaves from them.

use super::{DATAGRAMS, Datagram, Outgoing, run::DataLoop};
use std::io;
use tokio::sync::{mpsc, oneshot};

/// What the owner of one port gets.
type Bound = io::Result<(u16, mpsc::Receiver<Datagram>)>;

impl DataLoop {
    pub(super) fn send_datagram(&mut self, Outgoing { port, to, data }: Outgoing) {
        // To a peer that is not there: as lost as on any network.
        let _ = self.node.udp_send(port, to, &data);
    }

    pub(super) fn bind_udp(&mut self, port: Option<u16>, reply: oneshot::Sender<Bound>) {
        let taken = || io::Error::from(io::ErrorKind::AddrInUse);
        let bound = self.node.udp_bind(port).ok_or_else(taken).map(|port| {
            let (sender, receiver) = mpsc::channel(DATAGRAMS);
            self.udp_ports.insert(port, sender);
            (port, receiver)
        });
        // Whoever asked may be gone.
        if let Err(Ok((port, receiver))) = reply.send(bound) {
            drop(receiver);
            self.unbind_udp(port);
        }
    }

    /// Gives a UDP port back whose owner is gone.
    pub(super) fn unbind_udp(&mut self, port: u16) {
        if self.udp_ports.get(&port).is_some_and(mpsc::Sender::is_closed) {
            self.udp_ports.remove(&port);
            self.node.udp_unbind(port);
        }
    }

    pub(super) fn bind_udp_rest(&mut self, reply: oneshot::Sender<io::Result<mpsc::Receiver<Datagram>>>) {
        if self.udp_rest.as_ref().is_some_and(|owner| !owner.is_closed()) {
            let _ = reply.send(Err(io::ErrorKind::AddrInUse.into()));
            return;
        }
        let (sender, receiver) = mpsc::channel(DATAGRAMS);
        self.udp_rest = Some(sender);
        self.node.udp_listen_rest(true);
        // Whoever asked may be gone, and the receiver with him.
        if reply.send(Ok(receiver)).is_err() {
            self.unbind_udp_rest();
        }
    }

    /// Gives the unbound ports back if their owner is gone: a new one may have taken his place meanwhile.
    pub(super) fn unbind_udp_rest(&mut self) {
        if self.udp_rest.as_ref().is_some_and(mpsc::Sender::is_closed) {
            self.udp_rest = None;
            self.node.udp_listen_rest(false);
        }
    }
}
