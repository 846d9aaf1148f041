//! One local UDP port: a flow for each source.

use super::way::{Way, to};
use crate::{
    cli::output,
    net::{
        Datagram,
        datagram_flows::{Flows, Inbox, quiet_limit},
    },
};
use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{net::UdpSocket, time::sleep};

/// Room for the largest datagram that there is: a cut one would look like a whole one.
const BUFFER: usize = 64 << 10;
/// Pause after an error of the local socket, which should have none.
const PAUSE: Duration = Duration::from_millis(10);

/// Takes datagrams and carries them to `port` of the workspace. No failure ends it.
pub(super) async fn serve(socket: UdpSocket, port: u16, target: String, way: Arc<Way>) {
    let socket = Arc::new(socket);
    let mut flows = Flows::new();
    let mut buffer = vec![0; BUFFER];
    let mut told = false;
    loop {
        let (n, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "a datagram was not taken");
                sleep(PAUSE).await;
                continue;
            }
        };
        if n > Datagram::MAX {
            if !std::mem::replace(&mut told, true) {
                let max = Datagram::MAX;
                output::note(&format!(
                    "Warning: a datagram of {n} bytes for '{target}' was dropped, and so are others above {max} bytes: \
                     the tunnel holds no more"
                ));
            }
            continue;
        }
        let datagram = buffer.get(..n).unwrap_or_default().to_vec();
        flows.pass(&from, quiet_limit(port), datagram, |inbox| carry(inbox, Arc::clone(&socket), from, port, Arc::clone(&way)));
    }
}

/// One flow, until it has been quiet for too long.
async fn carry(mut inbox: Inbox, socket: Arc<UdpSocket>, from: SocketAddr, port: u16, way: Arc<Way>) {
    let tunnel = way.tunnel();
    let agent = to(tunnel.address, port);
    let mut far = match tunnel.tailnet.bind_udp(None).await {
        Ok(far) => far,
        Err(error) => return tracing::debug!(%error, "no port for a flow of datagrams"),
    };
    let mut replaced = pin!(way.replaced());
    loop {
        tokio::select! {
            // The next datagram begins a flow to the agent that is there then.
            () = &mut replaced => return,
            datagram = inbox.next() => {
                let Some(datagram) = datagram else { return };
                if far.send_to(&datagram, agent).await.is_err() {
                    return;
                }
            }
            received = far.recv_from() => {
                let Ok((answer, sender)) = received else { return };
                if sender != agent {
                    continue;
                }
                inbox.touch();
                if let Err(error) = socket.send_to(&answer, from).await {
                    tracing::trace!(%error, "an answer was not delivered");
                }
            }
        }
    }
}
