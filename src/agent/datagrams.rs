//! UDP ports of the tunnel: forwarded to the machine's own loopback (coordination.md §14).
//!
//! Each sender and port is a flow with a socket of its own, so that the answers find their way back.

use crate::net::{
    Datagram, DatagramRest, DatagramSender,
    datagram_flows::{Flows, Inbox, quiet_limit},
};
use std::{
    io,
    net::{Ipv4Addr, SocketAddrV6},
};
use tokio::net::UdpSocket;

/// Room for one answer of a local service. What is larger does not fit into the tunnel anyway.
const BUFFER: usize = Datagram::MAX + 1;

/// Forwards until the node is closed.
pub(crate) async fn forward(mut arriving: DatagramRest) {
    let mut flows = Flows::new();
    while let Ok((datagram, from, port)) = arriving.recv_from().await {
        let back = arriving.sender(port);
        flows.pass(&(from, port), quiet_limit(port), datagram, |inbox| carry(inbox, port, back, from));
    }
    tracing::debug!(dropped = flows.dropped(), "datagrams are forwarded no longer");
}

/// One flow, until it has been quiet for too long.
async fn carry(inbox: Inbox, port: u16, back: DatagramSender, to: SocketAddrV6) {
    let local = match connect(port).await {
        Ok(local) => local,
        Err(error) => return tracing::debug!(port, %error, "no socket for a flow of datagrams"),
    };
    pass(inbox, &local, port, back, to).await;
}

/// A socket that speaks with one port of this machine.
async fn connect(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect((Ipv4Addr::LOCALHOST, port)).await?;
    Ok(socket)
}

async fn pass(mut inbox: Inbox, local: &UdpSocket, port: u16, back: DatagramSender, to: SocketAddrV6) {
    let mut buffer = [0; BUFFER];
    loop {
        tokio::select! {
            datagram = inbox.next() => {
                let Some(datagram) = datagram else { return };
                // Nobody listens there yet: the next one may be luckier.
                if let Err(error) = local.send(&datagram).await {
                    tracing::trace!(port, %error, "a datagram was not delivered");
                }
            }
            received = local.recv(&mut buffer) => match received {
                Ok(n) if n > Datagram::MAX => tracing::debug!(port, "an answer is too large for the tunnel: dropped"),
                Ok(n) => {
                    inbox.touch();
                    let answer = buffer.get(..n).unwrap_or_default();
                    if back.send_to(answer, to).await.is_err() {
                        return;
                    }
                }
                // What an earlier datagram met.
                Err(error) => tracing::trace!(port, %error, "no answer"),
            },
        }
    }
}
