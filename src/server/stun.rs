//! STUN in the server's own process: tells whoever asks where their datagram came from (`stun-netcheck.md`).
//!
//! The answer is not longer than the request of any client that pads as the Go ones do, and there is one for each request:
//! nothing to amplify an attack with.

use crate::wire::stun;
use std::{
    io,
    net::{IpAddr, SocketAddr},
};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

/// Answers requests until `stop`.
pub(super) async fn serve(socket: UdpSocket, stop: CancellationToken) {
    let mut buffer = [0; stun::MAX_LEN];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let Ok((n, from)) = received else { continue };
        let Ok(tx) = buffer.get(..n).ok_or(()).and_then(|d| stun::parse_request(d).map_err(|_| ())) else { continue };
        if let Err(error) = answer(&socket, tx, from).await {
            tracing::trace!(%error, "a STUN answer was not sent");
        }
    }
}

async fn answer(socket: &UdpSocket, tx: stun::TxId, from: SocketAddr) -> io::Result<()> {
    socket.send_to(&stun::write_response(tx, unmapped(from)), from).await.map(drop)
}

/// A dual-stack socket sees IPv4 senders as IPv6 addresses; they know themselves only by the former.
fn unmapped(from: SocketAddr) -> SocketAddr {
    match from.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, from.port()),
        IpAddr::V6(_) => from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::Ipv6Addr, time::Duration};

    async fn ask(bind: SocketAddr, client: &UdpSocket) -> (stun::TxId, SocketAddr) {
        let socket = UdpSocket::bind(bind).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(socket, stop.clone()));
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
        client.send_to(b"junk", to).await.unwrap();
        client.send_to(&stun::write_request(stun::TxId([7; 12])), to).await.unwrap();
        let mut buffer = [0; 1500];
        let got = tokio::time::timeout(Duration::from_secs(10), client.recv(&mut buffer)).await.unwrap().unwrap();
        stop.cancel();
        task.await.unwrap();
        stun::parse_response(&buffer[..got]).unwrap()
    }

    #[tokio::test]
    async fn a_request_is_answered_with_the_address_it_came_from() {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (tx, seen) = ask("127.0.0.1:0".parse().unwrap(), &client).await;
        assert_eq!((tx, seen), (stun::TxId([7; 12]), client.local_addr().unwrap()));
    }

    #[tokio::test]
    async fn a_dual_stack_socket_tells_ipv4_clients_their_ipv4_address() {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        if UdpSocket::bind(any).await.is_err() {
            println!("skipped: no IPv6 here");
            return;
        }
        assert_eq!(ask(any, &client).await.1, client.local_addr().unwrap());
    }
}
