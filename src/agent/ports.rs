//! Every port of the tunnel that no service of the agent takes: forwarded to the machine's loopback (coordination.md §14).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::TcpStream,
    time::timeout,
};

/// Loopback answers at once or not at all; a full backlog is the only reason to wait.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes taken at once in one direction.
const COPY: usize = 32 << 10;

/// Connects to a port of this machine, first by IPv4.
pub(crate) async fn connect(port: u16) -> io::Result<TcpStream> {
    let by = async |ip: IpAddr| {
        let connecting = TcpStream::connect(SocketAddr::new(ip, port));
        timeout(CONNECT, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    };
    let stream = match by(Ipv4Addr::LOCALHOST.into()).await {
        Ok(stream) => stream,
        Err(error) => by(Ipv6Addr::LOCALHOST.into()).await.map_err(|_| error)?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Carries both directions, each to its own end. An error means that one side was reset and the other should be too.
pub(crate) async fn carry(mut tunnel: impl AsyncRead + AsyncWrite + Unpin, mut local: TcpStream) -> io::Result<()> {
    let carried = copy_bidirectional_with_sizes(&mut tunnel, &mut local, COPY, COPY).await;
    if carried.is_err() {
        // What the tunnel's side reset is reset here too, instead of looking like a proper end.
        let _ = local.set_zero_linger();
    }
    carried.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        net::TcpListener,
    };

    #[tokio::test]
    async fn a_port_is_found_on_either_loopback_address_and_a_closed_one_is_an_error() {
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        assert!(connect(four.local_addr().unwrap().port()).await.unwrap().peer_addr().unwrap().is_ipv4());
        match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await {
            Ok(six) => {
                let port = six.local_addr().unwrap().port();
                assert!(connect(port).await.unwrap().peer_addr().unwrap().is_ipv6());
            }
            Err(error) => println!("skipped: no IPv6 on this machine ({error})"),
        }
        let port = four.local_addr().unwrap().port();
        drop(four);
        assert_eq!(connect(port).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn an_answer_still_comes_after_the_question_has_ended() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (mut near, far) = duplex(64);
        let local = connect(listener.local_addr().unwrap().port()).await.unwrap();
        let carrying = tokio::spawn(carry(far, local));
        let (mut service, _) = listener.accept().await.unwrap();
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut question = Vec::new();
        service.read_to_end(&mut question).await.unwrap();
        service.write_all(b"answer").await.unwrap();
        drop(service);
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        carrying.await.unwrap().unwrap();
        assert_eq!((question.as_slice(), answer.as_slice()), (&b"question"[..], &b"answer"[..]));
    }

    #[tokio::test]
    async fn a_reset_service_is_an_error() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (_near, far) = duplex(64);
        let local = connect(listener.local_addr().unwrap().port()).await.unwrap();
        let (service, _) = listener.accept().await.unwrap();
        service.set_zero_linger().unwrap();
        drop(service);
        assert_eq!(carry(far, local).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
