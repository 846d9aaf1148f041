//! The UDP sockets of a node: one a family, shared by STUN, disco and WireGuard.
//!
//! Segmentation offload both ways through quinn-udp, with the don't-fragment bit set. Where the kernel refuses to cut
//! a batch (some drivers), the batch is sent piece by piece, offload stays off for that socket, and it is counted.
//! A socket without room pauses its lanes; what the kernel rejects outright is dropped and counted.

mod batch;

use crate::base::SocketIx;
use batch::Batches;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket as Raw, Type};
use std::{
    cell::Cell,
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    task::{Context, Poll},
};
use tokio::{io::Interest, net::UdpSocket};

/// Asked of the kernel: a burst at line rate while the loop encrypts. Granted is often less.
const RECV_BUFFER: usize = 7 << 20;
/// Asked of the kernel: more would only add delay in front of the congestion control.
const SEND_BUFFER: usize = 1 << 20;
/// Buffers handed to the kernel in one call.
const RECV_BATCH: usize = 8;
/// Size of one: the longest chain of datagrams that the kernel joins.
const RECV_BYTES: usize = 64 << 10;

/// What the sockets did; a snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Datagrams received.
    pub received: u64,
    /// Receive buffers that held several datagrams (GRO).
    pub joined_receives: u64,
    /// Datagrams handed to the kernel.
    pub sent: u64,
    /// Calls that carried several datagrams (GSO).
    pub joined_sends: u64,
    /// Times a socket lost its offload because the kernel refused.
    pub offload_fallbacks: u64,
    /// Times a socket had no room.
    pub blocked: u64,
    /// Datagrams that the kernel rejected: too long for the link, no route, no permission.
    pub send_errors: u64,
    /// Failed receive calls.
    pub receive_errors: u64,
}

/// Both sockets. A family that the host does not have is absent.
pub struct Sockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
    buffers: Box<[u8]>,
    counters: UdpCounters,
    /// A datagram found no room.
    full: Cell<bool>,
}

struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    batches: Batches,
    blocked: bool,
}

impl Sockets {
    /// Binds `port` (0: any) for IPv4, and the same one for IPv6 if it is free there.
    ///
    /// # Errors
    /// When neither family can be bound, or a wished port is taken.
    pub fn bind(port: u16) -> io::Result<Self> {
        let v4 = Socket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
        let same = v4.as_ref().ok().and_then(|s| s.io.local_addr().ok()).map_or(port, |a| a.port());
        let any6 = |port| Socket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
        let v6 = any6(same).or_else(|e| if port == 0 { any6(0) } else { Err(e) });
        if let Err(error) = &v6 {
            tracing::debug!(%error, "no IPv6 socket");
        }
        let v4 = match v4 {
            Ok(socket) => Some(socket),
            // A wished port that is taken is the user's business; a host without IPv4 is not.
            Err(error) if v6.is_err() || error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "no IPv4 socket");
                None
            }
        };
        // Zeroed pages cost nothing until the kernel writes into them.
        let buffers = vec![0; RECV_BATCH * RECV_BYTES].into_boxed_slice();
        Ok(Self { v4, v6: v6.ok(), buffers, counters: UdpCounters::default(), full: Cell::new(false) })
    }

    /// The local ports of the IPv4 and the IPv6 socket.
    #[must_use]
    pub fn ports(&self) -> (Option<u16>, Option<u16>) {
        let port = |s: &Option<Socket>| s.as_ref().and_then(|s| s.io.local_addr().ok()).map(|a| a.port());
        (port(&self.v4), port(&self.v6))
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> UdpCounters {
        self.counters
    }

    /// Ready when a socket may have something to read, or room again after it was full.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut ready = Poll::Pending;
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            if socket.io.poll_recv_ready(cx).is_ready() || (socket.blocked && socket.io.poll_send_ready(cx).is_ready()) {
                ready = Poll::Ready(());
            }
        }
        ready
    }

    /// Takes in about `max` datagrams that have arrived; returns how many there were.
    pub fn receive(&mut self, max: usize, mut on: impl FnMut(SocketIx, SocketAddr, &[u8])) -> usize {
        let mut total = 0;
        for (socket, ix) in [(&self.v4, SocketIx::V4), (&self.v6, SocketIx::V6)] {
            let Some(socket) = socket else { continue };
            // Each family gets its share, so that a flood on one cannot silence the other.
            let share = (max / 2).max(1);
            let mut taken = 0;
            while taken < share {
                match socket.receive(&mut self.buffers, &mut self.counters, |from, d| on(ix, from, d)) {
                    0 => break,
                    n => taken += n,
                }
            }
            total += taken;
        }
        self.counters.received += total as u64;
        total
    }

    /// Whether a datagram of `len` bytes to `to` can be taken.
    #[must_use]
    pub fn room(&self, to: &SocketAddr, len: usize) -> bool {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        // To a family that does not exist everything "leaves": waiting for room would pause the lane for ever.
        let room = socket.as_ref().is_none_or(|s| !s.blocked && s.batches.room(len));
        self.full.set(self.full.get() || !room);
        room
    }

    /// Whether there is room again after [`Sockets::room`] found none. Told once.
    #[must_use]
    pub fn has_recovered(&self) -> bool {
        let blocked = [&self.v4, &self.v6].into_iter().flatten().any(|s| s.blocked);
        let recovered = self.full.get() && !blocked;
        self.full.set(self.full.get() && !recovered);
        recovered
    }

    /// Space for a datagram of up to `len` bytes to `to`. Of a family that does not exist it leads nowhere.
    pub fn slot(&mut self, to: SocketAddr, len: usize) -> &mut [u8] {
        let socket = if to.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        match socket {
            Some(socket) => socket.batches.slot(to, len),
            None => self.buffers.get_mut(..len).unwrap_or_default(),
        }
    }

    /// Queues the first `used` bytes of the last slot.
    pub fn commit(&mut self, to: &SocketAddr, used: usize) {
        let socket = if to.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        match socket {
            Some(socket) => socket.batches.commit(used),
            None => self.counters.send_errors += 1,
        }
    }

    /// Hands everything queued to the kernel, as far as it takes it.
    pub fn flush(&mut self) {
        for socket in [&mut self.v4, &mut self.v6].into_iter().flatten() {
            socket.flush(&mut self.counters);
        }
    }
}

impl Socket {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let raw = Raw::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            raw.set_only_v6(true)?;
        }
        raw.set_nonblocking(true)?;
        raw.bind(&address.into())?;
        enlarge(&raw);
        let io = UdpSocket::from_std(raw.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        let batches = Batches::new(state.max_gso_segments());
        Ok(Self { io, state, batches, blocked: false })
    }

    /// One receive call; the number of datagrams, 0 when there is nothing.
    fn receive(&self, buffers: &mut [u8], counters: &mut UdpCounters, mut on: impl FnMut(SocketAddr, &[u8])) -> usize {
        let mut metas = [RecvMeta::default(); RECV_BATCH];
        let mut parts = buffers.chunks_exact_mut(RECV_BYTES).map(IoSliceMut::new);
        let mut slices: [IoSliceMut<'_>; RECV_BATCH] =
            std::array::from_fn(|_| parts.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        let read = self.io.try_io(Interest::READABLE, || self.state.recv(UdpSockRef::from(&self.io), &mut slices, &mut metas));
        let messages = match read {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return 0,
            Err(error) => {
                counters.receive_errors += 1;
                tracing::debug!(%error, "a receive call failed");
                return 0;
            }
        };
        let mut datagrams = 0;
        for (meta, slice) in metas.iter().zip(&slices).take(messages) {
            let bytes = slice.get(..meta.len).unwrap_or_default();
            if meta.len > meta.stride {
                counters.joined_receives += 1;
            }
            for datagram in bytes.chunks(meta.stride.max(1)) {
                datagrams += 1;
                on(meta.addr, datagram);
            }
        }
        // An empty datagram is still one message taken: the caller must look again.
        datagrams.max(messages)
    }

    fn flush(&mut self, counters: &mut UdpCounters) {
        self.blocked = false;
        while let Some(batch) = self.batches.front() {
            let joined = (batch.count() > 1).then_some(batch.segment());
            let count = batch.count() as u64;
            match send(&self.io, &self.state, batch.to(), batch.bytes(), joined) {
                Ok(()) => {
                    counters.sent += count;
                    counters.joined_sends += u64::from(joined.is_some());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    counters.blocked += 1;
                    return;
                }
                Err(error) if joined.is_some() => {
                    if self.state.max_gso_segments() == 1 {
                        tracing::debug!(%error, "the kernel does not cut datagrams; sending them one by one");
                        counters.offload_fallbacks += 1;
                    }
                    for datagram in batch.bytes().chunks(batch.segment().max(1)) {
                        // A full socket may lose the rest of this one batch: the peers' TCP repairs it.
                        match send(&self.io, &self.state, batch.to(), datagram, None) {
                            Ok(()) => counters.sent += 1,
                            Err(_) => counters.send_errors += 1,
                        }
                    }
                }
                Err(error) => {
                    tracing::trace!(%error, "a datagram was rejected");
                    counters.send_errors += count;
                }
            }
            self.batches.pop();
            self.batches.limit_segments(self.state.max_gso_segments());
        }
    }
}

fn send(io: &UdpSocket, state: &UdpSocketState, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> io::Result<()> {
    let transmit = Transmit { destination: to, ecn: None, contents: bytes, segment_size: segment, src_ip: None };
    match state.try_send(UdpSockRef::from(io), &transmit) {
        // Tried before the runtime has heard of writability; once more inside it, so that it waits for the right edge.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            io.try_io(Interest::WRITABLE, || state.try_send(UdpSockRef::from(io), &transmit))
        }
        done => done,
    }
}

/// Asks for large buffers; what is granted is the system's decision.
fn enlarge(socket: &Raw) {
    // With the privilege for it the system's limit does not apply.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let forced = {
        use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
        (
            set_socket_recv_buffer_size_force(socket, RECV_BUFFER).is_ok(),
            set_socket_send_buffer_size_force(socket, SEND_BUFFER).is_ok(),
        )
    };
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let forced = (false, false);
    if !forced.0 {
        let _ = socket.set_recv_buffer_size(RECV_BUFFER);
    }
    if !forced.1 {
        let _ = socket.set_send_buffer_size(SEND_BUFFER);
    }
    tracing::debug!(
        receive = socket.recv_buffer_size().unwrap_or(0),
        send = socket.send_buffer_size().unwrap_or(0),
        "UDP buffers"
    );
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").field("ports", &self.ports()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn readable(sockets: &mut Sockets) {
        let ready = std::future::poll_fn(|cx| sockets.poll_ready(cx));
        tokio::time::timeout(std::time::Duration::from_secs(20), ready).await.expect("a datagram was sent and must arrive");
    }

    fn loopback(port: u16, v6: bool) -> SocketAddr {
        if v6 { SocketAddr::from((Ipv6Addr::LOCALHOST, port)) } else { SocketAddr::from((Ipv4Addr::LOCALHOST, port)) }
    }

    #[tokio::test]
    async fn datagrams_keep_their_borders_and_order_with_offload_and_without() {
        for offload in [true, false] {
            let (mut a, mut b) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
            let from = loopback(a.ports().0.unwrap(), false);
            let to = loopback(b.ports().0.unwrap(), false);
            if !offload {
                a.v4.as_mut().unwrap().batches.limit_segments(1);
            }
            let lengths: Vec<usize> = (0..200).map(|i| if i % 50 == 49 { 700 } else { 1312 }).collect();
            let mut got = Vec::new();
            for (i, &len) in lengths.iter().enumerate() {
                while !a.room(&to, len) {
                    a.flush();
                }
                a.slot(to, len)[..len].fill(i as u8);
                a.commit(&to, len);
            }
            while got.len() < lengths.len() {
                a.flush();
                readable(&mut b).await;
                b.receive(64, |ix, sender, d| {
                    assert_eq!((ix, sender), (SocketIx::V4, from));
                    got.push((d.len(), d.to_vec()));
                });
            }
            for (i, (len, bytes)) in got.iter().enumerate() {
                assert_eq!(*len, lengths[i]);
                assert!(bytes.iter().all(|x| *x == i as u8), "datagram {i} holds another's bytes");
            }
            assert_eq!((a.counters().sent, b.counters().received), (200, 200));
            assert_eq!(a.counters().send_errors, 0);
            if offload && a.v4.as_ref().unwrap().state.max_gso_segments() > 1 {
                assert!(a.counters().joined_sends > 0);
            }
            if !offload {
                assert_eq!(a.counters().joined_sends, 0);
            }
        }
    }

    #[tokio::test]
    async fn both_families_are_bound_to_one_port_and_both_deliver() {
        let (mut a, mut b) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
        let (v4, v6) = b.ports();
        let mut targets = vec![loopback(v4.unwrap(), false)];
        // A host without IPv6 has one socket less.
        targets.extend(v6.map(|port| loopback(port, true)));
        for &to in &targets {
            a.slot(to, 3).copy_from_slice(b"abc");
            a.commit(&to, 3);
        }
        a.flush();
        let mut seen = 0;
        while seen < targets.len() {
            readable(&mut b).await;
            seen += b.receive(64, |_, _, d| assert_eq!(d, b"abc"));
        }
    }

    #[tokio::test]
    async fn a_datagram_too_long_for_any_link_is_counted_not_retried() {
        let (mut a, mut b) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
        let to = loopback(b.ports().0.unwrap(), false);
        // One byte more than any IPv4 datagram holds; loopback itself takes whatever fits into one.
        let long = vec![1; 65_508];
        let socket = a.v4.as_mut().unwrap();
        let refused = send(&socket.io, &socket.state, to, &long, None).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::MSGSIZE.raw_os_error()), "{refused}");
        socket.batches.push_any(to, long);
        a.flush();
        let c = a.counters();
        assert_eq!((c.sent, c.send_errors, c.blocked), (0, 1, 0));
        assert!(a.v4.as_ref().unwrap().batches.is_empty(), "it would be tried again");
        // What is queued behind it leaves.
        a.v4.as_mut().unwrap().batches.push_any(to, vec![1; 65_508]);
        a.slot(to, 3).copy_from_slice(b"abc");
        a.commit(&to, 3);
        a.flush();
        assert_eq!((a.counters().sent, a.counters().send_errors), (1, 2));
        readable(&mut b).await;
        assert_eq!(b.receive(64, |_, _, d| assert_eq!(d, b"abc")), 1);
    }

    #[tokio::test]
    async fn a_wished_port_that_is_taken_is_an_error() {
        let a = Sockets::bind(0).unwrap();
        assert_eq!(Sockets::bind(a.ports().0.unwrap()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
