//! Connections and bytes inside the tunnel, for the statistics that the agent reports (agent.md §3.2).

use crate::net::{Stream, forward};
use std::{
    collections::BTreeMap,
    io,
    net::Ipv6Addr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Counters that every connection of the agent adds to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// The peers of the open connections, with how many each has.
    peers: Mutex<BTreeMap<Ipv6Addr, u64>>,
}

impl Counts {
    fn add(&self, received: usize, sent: usize) {
        self.received.fetch_add(received as u64, Relaxed);
        self.sent.fetch_add(sent as u64, Relaxed);
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<Ipv6Addr, u64>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reading of the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Connections open now.
    pub(crate) open: u64,
    /// Bytes that came through the tunnel since the start.
    pub(crate) received: u64,
    /// Bytes that went into it.
    pub(crate) sent: u64,
}

impl Traffic {
    /// Counts a connection and its bytes until it is dropped.
    pub(crate) fn count<S>(&self, stream: S) -> Counted<S> {
        self.0.open.fetch_add(1, Relaxed);
        Counted { stream, open: Open { counts: Arc::clone(&self.0), peer: None } }
    }

    /// Whose connections are open.
    pub(crate) fn peers(&self) -> Vec<Ipv6Addr> {
        self.0.peers().keys().copied().collect()
    }

    pub(crate) fn read(&self) -> Reading {
        let counts = &self.0;
        Reading { open: counts.open.load(Relaxed), received: counts.received.load(Relaxed), sent: counts.sent.load(Relaxed) }
    }
}

/// A counted connection.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    open: Open,
}

#[derive(Debug)]
struct Open {
    counts: Arc<Counts>,
    peer: Option<Ipv6Addr>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Relaxed);
        let Some(peer) = self.peer else { return };
        let mut peers = self.counts.peers();
        if let Some(open) = peers.get_mut(&peer) {
            *open -= 1;
            if *open == 0 {
                peers.remove(&peer);
            }
        }
    }
}

impl<S> Counted<S> {
    /// Counts as one of this peer's, too.
    pub(crate) fn of(mut self, peer: Ipv6Addr) -> Self {
        if self.open.peer.replace(peer).is_none() {
            *self.open.counts.peers().entry(peer).or_default() += 1;
        }
        self
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl Counted<Stream> {
    /// Carries it to a connection of this machine until both directions have ended, each by itself.
    ///
    /// # Errors
    /// When one side was reset and the other should be too.
    pub(crate) async fn carry(&mut self, local: &mut TcpStream) -> io::Result<()> {
        let Self { stream, open } = self;
        forward::carry(stream, local, |received, sent| open.counts.add(received, sent)).await
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.open.counts.add(buf.filled().len() - before, 0);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, data);
        if let Poll::Ready(Ok(written)) = polled {
            this.open.counts.add(0, written);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn bytes_are_counted_by_direction_and_connections_while_they_live() {
        let traffic = Traffic::default();
        let (near, mut far) = duplex(64);
        let peer = Ipv6Addr::LOCALHOST;
        let mut near = traffic.count(near).of(peer);
        assert_eq!(traffic.peers(), [peer]);
        near.write_all(b"abc").await.unwrap();
        far.write_all(b"hello").await.unwrap();
        near.read_exact(&mut [0; 5]).await.unwrap();
        assert_eq!(traffic.read(), Reading { open: 1, received: 5, sent: 3 });
        drop(near);
        assert_eq!((traffic.read().open, traffic.peers().len()), (0, 0));
    }
}
