//! WebSockets (RFC 6455) on a stream whose HTTP upgrade is already done, for both ends.
//!
//! [`WebSocket`] speaks in messages, [`ByteStream`] treats binary messages as one stream of bytes: message borders carry
//! no meaning in the control sockets (`coordination.md` §3) nor on relays (`derp.md` §2.6). No compression is ever
//! offered or taken.
//!
//! Bounds: a message longer than the given limit ends the socket, and so does a peer that sends pings while it does not
//! read our answers.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, Bytes};
use futures::{Sink as _, SinkExt as _, StreamExt as _};
use ring::digest;
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_websockets::{ClientBuilder, CloseCode, Config, Limits, Message as Frame, ServerBuilder, WebSocketStream};

/// Longest message taken on sockets whose peer cuts its byte stream into messages as it likes.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Longest message that a [`ByteStream`] writes: the limit that upstream's relays and relay clients have without asking
/// for another; a longer message makes them close with 1009.
const MAX_WRITE: usize = 32 << 10;
/// Answers to pings that may wait while the peer does not read.
const MAX_WAITING_PONGS: u32 = 16;
/// The fixed suffix of RFC 6455 §1.3.
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` value that answers `key`, the text of `Sec-WebSocket-Key`.
#[must_use]
pub fn accept_key(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(ACCEPT_SUFFIX);
    STANDARD.encode(hash.finish())
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Opaque bytes.
    Binary(Bytes),
    /// UTF-8 text.
    Text(Bytes),
    /// The peer asks for a sign of life; the answer is sent by itself.
    Ping,
    /// The answer to our ping.
    Pong,
    /// The peer closes. 1005 stands for a close without a code.
    Close {
        /// The reason as a number.
        code: u16,
        /// The reason as a text.
        reason: String,
    },
}

/// What a [`WebSocket::turn`] has come to.
#[derive(Debug)]
pub enum Turn {
    /// A message came; `None` when the socket has ended.
    Came(Option<io::Result<Message>>),
    /// What was queued is out.
    Sent(io::Result<()>),
}

/// The other end closed the socket with a code that says something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("closed by the peer with {code} {reason:?}")]
pub struct ClosedByPeer {
    /// The reason as a number.
    pub code: u16,
    /// The reason as a text.
    pub reason: String,
}

/// The stream below, which remembers whether the peer takes what we write.
struct Watched<S> {
    io: S,
    stuck: bool,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write(cx, buf);
        self.stuck = done.is_pending();
        done
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.stuck = done.is_pending();
        done
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// A WebSocket in messages.
pub struct WebSocket<S> {
    frames: WebSocketStream<Watched<S>>,
    waiting_pongs: u32,
    /// Something is queued for [`WebSocket::turn`].
    queued: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// The server's end of an upgraded stream; `max_message` bounds what the peer may send at once.
    pub fn server(io: S, max_message: usize) -> Self {
        let limits = Limits::default().max_payload_len(Some(max_message));
        let builder = ServerBuilder::new().limits(limits).config(config());
        Self { frames: builder.serve(Watched { io, stuck: false }), waiting_pongs: 0, queued: false }
    }

    /// The client's end of an upgraded stream; `max_message` bounds what the peer may send at once.
    pub fn client(io: S, max_message: usize) -> Self {
        let limits = Limits::default().max_payload_len(Some(max_message));
        let builder = ClientBuilder::new().limits(limits).config(config());
        Self { frames: builder.take_over(Watched { io, stuck: false }), waiting_pongs: 0, queued: false }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Message>>> {
        let Some(frame) = ready!(self.frames.poll_next_unpin(cx)) else { return Poll::Ready(None) };
        let frame = frame.map_err(into_io)?;
        if frame.is_ping() {
            self.waiting_pongs = if self.frames.get_ref().stuck { self.waiting_pongs + 1 } else { 0 };
            if self.waiting_pongs > MAX_WAITING_PONGS {
                return Poll::Ready(Some(Err(io::Error::other("the peer sends pings but does not read the answers"))));
            }
        }
        let message = match frame.as_close() {
            Some((code, reason)) => Message::Close { code: code.into(), reason: reason.to_owned() },
            None if frame.is_ping() => Message::Ping,
            None if frame.is_pong() => Message::Pong,
            None if frame.is_text() => Message::Text(frame.into_payload().into()),
            None => Message::Binary(frame.into_payload().into()),
        };
        Poll::Ready(Some(Ok(message)))
    }

    /// The next message, `None` when the socket has ended.
    ///
    /// # Errors
    /// When the stream fails or the peer breaks the protocol.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<io::Result<Message>> {
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }

    /// Queues bytes as one binary message, for [`WebSocket::turn`] to send.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn queue_binary(&mut self, bytes: impl Into<Bytes>) -> io::Result<()> {
        self.queue(Frame::binary(bytes.into()))
    }

    /// Queues the question for a sign of life, for [`WebSocket::turn`] to send.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn queue_ping(&mut self) -> io::Result<()> {
        self.queue(Frame::ping(Bytes::new()))
    }

    fn queue(&mut self, frame: Frame) -> io::Result<()> {
        Pin::new(&mut self.frames).start_send(frame).map_err(into_io)?;
        self.queued = true;
        Ok(())
    }

    /// Whether something is queued that is not out yet.
    pub const fn is_sending(&self) -> bool {
        self.queued
    }

    /// Both directions at once: sends what is queued as far as the peer takes it, and, where `read` allows it, gives what
    /// comes meanwhile. Two ends that only wrote would wait for each other.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn turn(&mut self, read: bool) -> Turn {
        std::future::poll_fn(|cx| {
            if self.queued
                && let Poll::Ready(sent) = Pin::new(&mut self.frames).poll_flush(cx)
            {
                self.queued = false;
                return Poll::Ready(Turn::Sent(sent.map_err(into_io)));
            }
            if read { self.poll_message(cx).map(Turn::Came) } else { Poll::Pending }
        })
        .await
    }

    async fn send(&mut self, frame: Frame) -> io::Result<()> {
        self.frames.send(frame).await.map_err(into_io)
    }

    /// Sends bytes as one binary message and flushes.
    ///
    /// # Errors
    /// When the socket is closed or fails.
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) -> io::Result<()> {
        self.send(Frame::binary(bytes.into())).await
    }

    /// Sends one text message and flushes.
    ///
    /// # Errors
    /// When the socket is closed or fails.
    pub async fn send_text(&mut self, text: String) -> io::Result<()> {
        self.send(Frame::text(text)).await
    }

    /// Asks the peer for a sign of life; it comes as [`Message::Pong`].
    ///
    /// # Errors
    /// When the socket is closed or fails.
    pub async fn ping(&mut self) -> io::Result<()> {
        self.send(Frame::ping(Bytes::new())).await
    }

    /// Tells the peer why the socket ends. Does not wait for its answer.
    ///
    /// # Errors
    /// When the socket is already closed or fails.
    pub async fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        let code = CloseCode::try_from(code).unwrap_or(CloseCode::INTERNAL_SERVER_ERROR);
        // A control frame holds 125 bytes, two of which are the code.
        let mut end = reason.len().min(123);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason.get(..end).unwrap_or_default();
        self.send(Frame::close(Some(code), reason)).await
    }
}

impl<S> fmt::Debug for WebSocket<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocket").finish_non_exhaustive()
    }
}

fn config() -> Config {
    // Above the longest write: a message goes out in one piece and is flushed by us.
    Config::default().flush_threshold(2 * MAX_WRITE)
}

fn into_io(error: tokio_websockets::Error) -> io::Error {
    match error {
        tokio_websockets::Error::Io(error) => error,
        tokio_websockets::Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

/// Binary messages as one stream of bytes. A normal close (1000, 1001) reads as the end of the stream.
pub struct ByteStream<S> {
    socket: WebSocket<S>,
    rest: Bytes,
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ByteStream<S> {
    /// Turns a socket of messages into a stream of bytes.
    pub const fn new(socket: WebSocket<S>) -> Self {
        Self { socket, rest: Bytes::new(), closing: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ByteStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.socket.poll_message(cx)).transpose()? {
                None | Some(Message::Close { code: 1000 | 1001 | 1005, .. }) => return Poll::Ready(Ok(())),
                Some(Message::Binary(bytes)) => self.rest = bytes,
                Some(Message::Ping | Message::Pong) => {}
                Some(Message::Text(_)) => {
                    // The other end may be closed already; it learns the reason if it still listens.
                    let close = Frame::close(Some(CloseCode::UNSUPPORTED_DATA), "binary messages only");
                    let _ = Pin::new(&mut self.socket.frames).start_send(close);
                    let _ = Pin::new(&mut self.socket.frames).poll_flush(cx);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "text message on a byte stream")));
                }
                Some(Message::Close { code, reason }) => {
                    return Poll::Ready(Err(io::Error::other(ClosedByPeer { code, reason })));
                }
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.get(..n).unwrap_or_default());
        self.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ByteStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let frames = &mut self.socket.frames;
        ready!(Pin::new(&mut *frames).poll_ready(cx)).map_err(into_io)?;
        let bytes = buf.get(..MAX_WRITE).unwrap_or(buf);
        Pin::new(&mut *frames).start_send(Frame::binary(Bytes::copy_from_slice(bytes))).map_err(into_io)?;
        // Starts the write; whoever waits for it flushes.
        let _unfinished = Pin::new(frames).poll_flush(cx).map_err(into_io)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket.frames).poll_flush(cx).map_err(into_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            self.closing = true;
            let close = Frame::close(Some(CloseCode::NORMAL_CLOSURE), "");
            // Already closed by the peer: nothing is left to tell it.
            let _ = Pin::new(&mut self.socket.frames).start_send(close);
        }
        ready!(Pin::new(&mut self.socket.frames).poll_flush(cx)).map_err(into_io)?;
        Pin::new(self.socket.frames.get_mut()).poll_shutdown(cx)
    }
}

impl<S> fmt::Debug for ByteStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStream").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[test]
    fn the_accept_key_is_that_of_rfc_6455() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn message_borders_vanish_in_a_byte_stream() {
        let (a, b) = duplex(64 << 10);
        let (mut client, mut server) = (WebSocket::client(a, MAX_MESSAGE), ByteStream::new(WebSocket::server(b, MAX_MESSAGE)));
        client.send_binary(&b"ab"[..]).await.unwrap();
        client.send_binary(Bytes::new()).await.unwrap();
        client.send_binary(&b"cdef"[..]).await.unwrap();
        client.close(1000, "").await.unwrap();
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"abcdef");
    }

    #[tokio::test]
    async fn two_ends_that_both_write_much_do_not_wait_for_each_other() {
        const PIECES: usize = 200;
        async fn both(mut socket: WebSocket<tokio::io::DuplexStream>) {
            let (mut sent, mut came) = (0, 0);
            while sent < PIECES || came < PIECES || socket.is_sending() {
                if sent < PIECES && !socket.is_sending() {
                    socket.queue_binary(vec![7; 1000]).unwrap();
                    sent += 1;
                }
                match socket.turn(came < PIECES).await {
                    Turn::Came(message) => {
                        assert!(matches!(message.unwrap().unwrap(), Message::Binary(bytes) if bytes.len() == 1000));
                        came += 1;
                    }
                    Turn::Sent(sent) => sent.unwrap(),
                }
            }
        }
        // Less than one message has room on the way.
        let (a, b) = duplex(100);
        tokio::join!(both(WebSocket::client(a, MAX_MESSAGE)), both(WebSocket::server(b, MAX_MESSAGE)));
    }

    #[tokio::test]
    async fn a_text_message_on_a_byte_stream_closes_with_1003() {
        let (a, b) = duplex(64 << 10);
        let (mut client, mut server) = (WebSocket::client(a, MAX_MESSAGE), ByteStream::new(WebSocket::server(b, MAX_MESSAGE)));
        client.send_text("no".into()).await.unwrap();
        assert_eq!(server.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close { code: 1003, .. }));
    }

    #[tokio::test]
    async fn a_long_write_is_cut_to_what_upstream_reads_and_arrives_whole() {
        const UPSTREAM_LIMIT: usize = 32_768;
        let (a, b) = duplex(16 << 10);
        let (client, server) = (ByteStream::new(WebSocket::client(a, MAX_MESSAGE)), WebSocket::server(b, UPSTREAM_LIMIT));
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
        let copy = sent.clone();
        let (_, mut write) = tokio::io::split(client);
        let writer = tokio::spawn(async move {
            write.write_all(&copy).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut server = ByteStream::new(server);
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        writer.await.unwrap();
        assert!(all == sent);
    }

    #[tokio::test]
    async fn pings_are_answered_and_close_codes_arrive() {
        let (a, b) = duplex(1024);
        let (mut client, mut server) = (WebSocket::client(a, MAX_MESSAGE), WebSocket::server(b, MAX_MESSAGE));
        server.ping().await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Ping);
        // Reading is what sends the answer.
        let end = tokio::spawn(async move { client.next().await.unwrap().unwrap() });
        assert_eq!(server.next().await.unwrap().unwrap(), Message::Pong);
        server.close(1008, &"é".repeat(100)).await.unwrap();
        // A reason ends in front of the letter that would not fit wholly into its 123 bytes.
        assert_eq!(end.await.unwrap(), Message::Close { code: 1008, reason: "é".repeat(61) });
    }

    #[tokio::test]
    async fn a_message_over_the_limit_ends_the_socket() {
        let (a, b) = duplex(1024);
        let (mut client, mut server) = (WebSocket::client(a, MAX_MESSAGE), WebSocket::server(b, 10));
        client.send_binary(&[0; 11][..]).await.unwrap();
        assert_eq!(server.next().await.unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_peer_that_floods_pings_without_reading_is_dropped() {
        let (a, b) = duplex(64);
        let (mut raw, mut server) = (a, WebSocket::server(b, MAX_MESSAGE));
        let flood = tokio::spawn(async move {
            // A masked ping of 125 zero bytes under a zero mask; the answers are never read.
            let mut ping = vec![0x89, 0x80 | 125, 0, 0, 0, 0];
            ping.resize(6 + 125, 0);
            while raw.write_all(&ping).await.is_ok() {}
        });
        let mut pings = 0;
        while let Some(Ok(Message::Ping)) = server.next().await {
            pings += 1;
            assert!(pings < 100, "the flood was never stopped");
        }
        drop(server);
        flood.await.unwrap();
    }
}
