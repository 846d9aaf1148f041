//! A TCP connection to a peer.

use super::Tailnet;
use crate::driver::pipe::{Broken, OwnerEnd};
use std::{
    fmt, io,
    net::SocketAddrV6,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A TCP connection inside the overlay.
///
/// - A write is done when the bytes are in the stream's ring; a full ring makes it wait. Flushing is not needed.
/// - `shutdown` closes our half: the peer reads the end after the last byte, and we go on reading.
/// - Dropping closes in good order: what was written is delivered, for at most a minute. [`Stream::abort`] resets.
/// - A broken connection gives errors that say why ([`Stream::broken`]): bytes received before come first.
///
/// # Cancel safety
/// Reads and writes that did not complete took nothing: `read`, `write` and `shutdown` may be dropped at any point.
/// As always, a dropped `write_all` or `read_exact` leaves unknown how far it came.
pub struct Stream {
    end: OwnerEnd,
    local: SocketAddrV6,
    remote: SocketAddrV6,
    /// Keeps the node alive as long as the stream is.
    _tailnet: Tailnet,
}

impl Stream {
    pub(super) const fn new(end: OwnerEnd, local: SocketAddrV6, remote: SocketAddrV6, tailnet: Tailnet) -> Self {
        Self { end, local, remote, _tailnet: tailnet }
    }

    /// Our overlay address and port.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddrV6 {
        self.local
    }

    /// The peer's overlay address and port.
    #[must_use]
    pub const fn peer_addr(&self) -> SocketAddrV6 {
        self.remote
    }

    /// Resets the connection at once: what was written and not yet delivered is lost.
    pub fn abort(self) {
        self.end.abort();
    }

    /// Waits until there is something to read; `false` is the end of it. For those who move bytes on without a buffer of
    /// their own: [`Stream::read_with`].
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.end.poll_readable(cx)
    }

    /// Offers what has arrived, as far as it lies in one piece, to `take`, which says how much of it it took.
    ///
    /// # Errors
    /// Those of `take`, which has taken nothing then.
    pub fn read_with(&mut self, take: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        self.end.read_with(take)
    }

    /// Waits until a write would take something at once; how much.
    ///
    /// # Errors
    /// When the connection is broken or our half is closed.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.end.poll_room(cx)
    }

    /// Why the connection is broken, if it is.
    #[must_use]
    pub fn broken(&self) -> Option<Broken> {
        self.end.broken()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().end).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().end).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().end).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().end).poll_shutdown(cx)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("local", &self.local).field("remote", &self.remote).finish_non_exhaustive()
    }
}
