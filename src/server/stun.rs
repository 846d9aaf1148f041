//! STUN in the server's own process: tells whoever asks where their datagram came from (`stun-netcheck.md`).
//!
//! The answer is not longer than the request of any client that pads as the Go ones do, and there is one for each request:
//! nothing to amplify an attack with.

use crate::wire::stun;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{net::UdpSocket, time::sleep};
use tokio_util::sync::CancellationToken;

/// Pause after a failed receive: some errors stay.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until `stop`.
pub(super) async fn serve(socket: UdpSocket, stop: CancellationToken) {
    let mut buffer = [0; stun::MAX_LEN];
    let mut broken = false;
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (n, from) = match received {
            Ok(received) => received,
            Err(error) => {
                if !std::mem::replace(&mut broken, true) {
                    tracing::warn!(%error, "the STUN socket fails; trying it again and again");
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(PAUSE) => continue,
                }
            }
        };
        broken = false;
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
    use std::{future::Future as _, net::Ipv6Addr, pin::pin, task::Poll};

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

    #[cfg(unix)]
    #[tokio::test]
    async fn a_socket_that_fails_for_ever_does_not_spin_and_still_ends() {
        // A stream socket without a connection says so at every receive.
        let stream = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        stream.set_nonblocking(true).unwrap();
        let socket = UdpSocket::from_std(std::os::fd::OwnedFd::from(stream).into()).unwrap();
        assert!(socket.recv(&mut [0; 9]).await.is_err());
        let stop = CancellationToken::new();
        let mut serving = pin!(serve(socket, stop.clone()));
        let mut polls = 0;
        let counted = std::future::poll_fn(|cx| {
            polls += 1;
            serving.as_mut().poll(cx)
        });
        let late = tokio::time::timeout(Duration::from_millis(350), counted).await;
        assert!(late.is_err() && polls <= 10, "{polls} polls");
        stop.cancel();
        assert_eq!(std::future::poll_fn(|cx| Poll::Ready(serving.as_mut().poll(cx))).await, Poll::Ready(()));
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
