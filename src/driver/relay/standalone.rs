//! A relay that is nothing else: just enough HTTP to be dialled (`derp.md` §2, §10). For examples, tests and benches;
//! the coder server has the same routes beside its others.

use super::RelayServer;
use crate::driver::websocket::{ByteStream, MAX_MESSAGE, WebSocket, accept_key};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

/// Longest head of a request.
const MAX_HEAD: usize = 16 << 10;
/// How long a request may take to arrive.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Requests of one connection before an upgrade.
const MAX_REQUESTS: usize = 16;

impl RelayServer {
    /// Serves everyone who connects, until the listener fails.
    ///
    /// # Errors
    /// When no more connections can be accepted.
    ///
    /// # Cancel safety
    /// Dropping the future ends all connections.
    pub async fn listen(&self, listener: TcpListener) -> io::Result<()> {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    let server = self.clone();
                    tasks.spawn(async move {
                        if let Err(error) = server.answer(stream).await {
                            tracing::debug!(%error, "a relay client ended");
                        }
                    });
                }
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        for _ in 0..MAX_REQUESTS {
            let late = |_| io::Error::from(io::ErrorKind::TimedOut);
            let Some(head) = timeout(HEAD_LIMIT, read_head(&mut stream)).await.map_err(late)?? else { return Ok(()) };
            let path = head.lines().next().and_then(|l| l.split(' ').nth(1)).unwrap_or_default();
            let header = |name: &str| {
                let fields = head.lines().filter_map(|l| l.split_once(':'));
                fields.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
            };
            let upgrade = header("upgrade").unwrap_or_default().to_ascii_lowercase();
            match (path, upgrade.as_str()) {
                ("/derp", "websocket") if header("sec-websocket-protocol") == Some("derp") => {
                    let key = accept_key(header("sec-websocket-key").unwrap_or_default().as_bytes());
                    let answer = format!(
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: {key}\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
                    );
                    stream.write_all(answer.as_bytes()).await?;
                    return self.serve(ByteStream::new(WebSocket::server(stream, MAX_MESSAGE))).await;
                }
                ("/derp", "derp") => {
                    let key = self.public_key().to_hex();
                    let answer = format!(
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\
                         Derp-Version: 2\r\nDerp-Public-Key: {key}\r\n\r\n"
                    );
                    stream.write_all(answer.as_bytes()).await?;
                    return self.serve(stream).await;
                }
                ("/derp/latency-check", _) => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?,
                ("/derp", _) => {
                    let answer = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 32\r\n\r\nDERP requires connection upgrade";
                    stream.write_all(answer).await?;
                }
                _ => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await?,
            }
        }
        Ok(())
    }
}

/// A request's head, byte by byte: what follows it belongs to the relay protocol. `None` at the end of the stream.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head of a request is too long"));
        }
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && head.is_empty() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    String::from_utf8(head).map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the head of a request is no text"))
}
