//! A proxy in front of a relay or a server: passes everything on and counts, or refuses `Upgrade: derp` as some do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

#[derive(Debug, Default)]
struct Counts {
    refused: AtomicUsize,
    upgrades: AtomicUsize,
    websockets: AtomicUsize,
    down: AtomicU64,
}

/// The proxy; it ends with its runtime.
pub struct Front {
    pub port: u16,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

/// How a proxy differs from a wire.
#[derive(Debug, Clone, Copy, Default)]
struct Manners {
    refuse_upgrade: bool,
    /// How long a latency check takes more.
    latency: Duration,
}

impl Front {
    /// A proxy in front of `relay`, on the current runtime.
    pub async fn open(relay: SocketAddr, refuse_upgrade: bool) -> Self {
        Self::with(relay, Manners { refuse_upgrade, ..Manners::default() }).await
    }

    /// A proxy that makes the relay look far away to latency checks. Go's netcheck ends when they are answered: a STUN server
    /// on a busy machine needs the time.
    pub async fn far(relay: SocketAddr) -> Self {
        Self::with(relay, Manners { latency: Duration::from_millis(500), ..Manners::default() }).await
    }

    async fn with(relay: SocketAddr, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let counts = Arc::clone(&shared);
                tokio::spawn(async move {
                    // Either side may end whenever it likes.
                    let _ = pass(client, relay, manners, &counts).await;
                });
            }
        });
        Self { port, counts, task }
    }

    /// Requests that were refused.
    pub fn refused(&self) -> usize {
        self.counts.refused.load(Ordering::Relaxed)
    }

    /// Relay connections that began by `Upgrade: derp`.
    pub fn upgrades(&self) -> usize {
        self.counts.upgrades.load(Ordering::Relaxed)
    }

    /// Relay connections that began as a WebSocket.
    pub fn websockets(&self) -> usize {
        self.counts.websockets.load(Ordering::Relaxed)
    }

    /// Bytes that went from the relay to its clients.
    pub fn down(&self) -> u64 {
        self.counts.down.load(Ordering::Relaxed)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut client: TcpStream, relay: SocketAddr, manners: Manners, counts: &Counts) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let asks = |wanted: &str| text.starts_with("get /derp ") && text.lines().any(|line| line.trim() == wanted);
    if asks("upgrade: websocket") {
        counts.websockets.fetch_add(1, Ordering::Relaxed);
    }
    if text.starts_with("get /derp/latency-check ") {
        tokio::time::sleep(manners.latency).await;
    }
    let by_upgrade = asks("upgrade: derp");
    if by_upgrade && !manners.refuse_upgrade {
        counts.upgrades.fetch_add(1, Ordering::Relaxed);
    }
    if by_upgrade && manners.refuse_upgrade {
        counts.refused.fetch_add(1, Ordering::Relaxed);
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\nConnection: close\r\n\r\nrefused").await;
    }
    let mut relay = TcpStream::connect(relay).await?;
    relay.set_nodelay(true)?;
    client.set_nodelay(true)?;
    relay.write_all(&head).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_relay, mut to_relay) = relay.split();
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_relay).await?;
        to_relay.shutdown().await
    };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = from_relay.read(&mut buffer).await?;
            if n == 0 {
                return to_client.shutdown().await;
            }
            counts.down.fetch_add(n as u64, Ordering::Relaxed);
            to_client.write_all(&buffer[..n]).await?;
        }
    };
    tokio::try_join!(up, down).map(drop)
}
