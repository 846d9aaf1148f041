//! Every port of the tunnel that no service of the agent takes: forwarded to the machine's loopback (coordination.md §14).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};

/// Loopback answers at once or not at all; a full backlog is the only reason to wait.
const CONNECT: Duration = Duration::from_secs(5);

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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

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
}
