//! The byte stream below a connection: it never stops reading because it cannot write, and it can be cut.
//!
//! russh writes and reads in turns: a connection whose writes are stuck reads nothing. Two such ends with full buffers
//! wait for each other for ever. So while a write is stuck this side keeps reading into memory, up to [`AHEAD`] bytes,
//! which is more than the windows of a few channels allow the other end to send.

use bytes::{Buf as _, BytesMut};
use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Most bytes read ahead while a write is stuck.
const AHEAD: usize = 16 << 20;
/// Bytes asked for by one read ahead.
const STEP: usize = 64 << 10;

/// `S`, read ahead and cut by a token.
pub(super) struct Transport<S> {
    inner: S,
    ahead: BytesMut,
    ended: bool,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Transport<S> {
    pub(super) fn new(inner: S, cut: CancellationToken) -> Self {
        Self { inner, ahead: BytesMut::new(), ended: false, cut: Box::pin(cut.cancelled_owned()) }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> Transport<S> {
    /// Reads what is there while a write is stuck. An error is left for the next ordinary read to meet.
    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        while !self.ended && self.ahead.len() < AHEAD {
            let before = self.ahead.len();
            self.ahead.resize(before + STEP, 0);
            let (_, free) = self.ahead.split_at_mut(before);
            let mut buf = ReadBuf::new(free);
            let polled = Pin::new(&mut self.inner).poll_read(cx, &mut buf);
            let read = buf.filled().len();
            self.ahead.truncate(before + read);
            match polled {
                Poll::Ready(Ok(())) => self.ended = read == 0,
                Poll::Ready(Err(_)) | Poll::Pending => return,
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Transport<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_cut(cx)?;
        if this.ahead.is_empty() {
            return if this.ended { Poll::Ready(Ok(())) } else { Pin::new(&mut this.inner).poll_read(cx, buf) };
        }
        let taken = this.ahead.len().min(buf.remaining());
        buf.put_slice(this.ahead.get(..taken).unwrap_or_default());
        this.ahead.advance(taken);
        if this.ahead.is_empty() {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.poll_cut(cx)?;
        let polled = Pin::new(&mut this.inner).poll_write(cx, data);
        if polled.is_pending() {
            this.read_ahead(cx);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_cut(cx)?;
        let polled = Pin::new(&mut this.inner).poll_flush(cx);
        if polled.is_pending() {
            this.read_ahead(cx);
        }
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_cut(cx)?;
        ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn two_ends_that_write_more_than_fits_before_they_read_both_finish() {
        let (ours, mut theirs) = duplex(1024);
        let mut ours = Transport::new(ours, CancellationToken::new());
        let (up, down) = (vec![1; 300_000], vec![2; 200_000]);
        let here = async {
            ours.write_all(&down).await.unwrap();
            let mut got = vec![0; 300_000];
            ours.read_exact(&mut got).await.unwrap();
            got
        };
        let there = async {
            theirs.write_all(&up).await.unwrap();
            let mut got = vec![0; 200_000];
            theirs.read_exact(&mut got).await.unwrap();
            got
        };
        let (got, back) = tokio::join!(here, there);
        assert!(got == up && back == down);
    }

    #[tokio::test]
    async fn what_was_read_ahead_is_followed_by_the_end() {
        let (ours, mut theirs) = duplex(64);
        let mut ours = Transport::new(ours, CancellationToken::new());
        let there = async {
            theirs.write_all(&[7; 500]).await.unwrap();
            theirs.shutdown().await.unwrap();
            let mut got = [0; 200];
            theirs.read_exact(&mut got).await.unwrap();
        };
        let here = async {
            ours.write_all(&[8; 200]).await.unwrap();
            let mut got = Vec::new();
            ours.read_to_end(&mut got).await.unwrap();
            got
        };
        let (got, ()) = tokio::join!(here, there);
        assert_eq!(got, [7; 500]);
    }

    #[tokio::test]
    async fn a_cut_wakes_a_waiting_reader() {
        let (ours, _theirs) = duplex(64);
        let cut = CancellationToken::new();
        let mut ours = Transport::new(ours, cut.clone());
        let (read, ()) = tokio::join!(ours.read_u8(), async { cut.cancel() });
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
