//! Ports of loopback for programs that cannot be asked which one they took.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};
use tokio::net::TcpSocket;

/// A port that nobody has, for TCP and UDP, and that the system gives to nobody by itself.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 16_000 + (std::process::id() % 150) as u16 * 100;
    (0..100)
        .map(|_| first + NEXT.fetch_add(1, Ordering::Relaxed) % 100)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok() && UdpSocket::bind(("127.0.0.1", *port)).is_ok())
        .expect("some port is free")
}

/// A TCP port that is held, so that nobody else can come to listen on it, and that nobody listens on.
pub struct DeadPort {
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl DeadPort {
    pub fn hold() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self { address: socket.local_addr().unwrap(), _socket: socket }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}
