//! Our side of the streams: what is sent, what came, and how fast.

use super::node::LIMIT;
use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use std::{future::Future, net::SocketAddrV6, time::Duration};
use tailnet::net::{Listener, Stream, Tailnet};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const CHUNK: usize = 64 << 10;

/// Bytes that went one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    pub size: u64,
    pub sha256: String,
}

/// Bytes that neither repeat nor compress.
pub struct Noise(u64);

impl Noise {
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().0 | 1)
    }

    pub fn fill(&mut self, to: &mut [u8]) {
        for chunk in to.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// How fast a sender or an echo goes.
#[derive(Debug, Clone)]
pub enum Pace {
    /// As fast as it can.
    Full,
    /// So many bytes every 20 ms.
    Steady(usize),
    /// Slowly until it is told that it may run.
    SlowUntil(watch::Receiver<bool>),
}

impl Pace {
    const TICK: Duration = Duration::from_millis(20);
    const SLOW: usize = 16 << 10;

    /// Waits for its turn and gives the most that may pass then.
    async fn turn(&mut self) -> usize {
        match self {
            Self::Full => CHUNK,
            Self::Steady(bytes) => {
                sleep(Self::TICK).await;
                *bytes
            }
            Self::SlowUntil(run) => {
                // Nobody left to tell it: it may run.
                match timeout(Self::TICK, run.wait_for(|run| *run)).await {
                    Ok(_) => CHUNK,
                    Err(_) => Self::SLOW,
                }
            }
        }
    }
}

/// Sends so many bytes and ends the direction.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), size: u64) -> Result<Passed, anyhow::Error> {
    send_while(to, Pace::Full, |sent| size - sent).await
}

/// Sends until `left` of what has been sent says 0, and ends the direction.
pub async fn send_while(
    to: &mut (impl AsyncWrite + Unpin),
    mut pace: Pace,
    left: impl Fn(u64) -> u64,
) -> Result<Passed, anyhow::Error> {
    let (mut noise, mut sum, mut sent, mut buffer) = (Noise::new(), Sha256::new(), 0_u64, vec![0; CHUNK]);
    loop {
        let most = usize::try_from(left(sent)).unwrap_or(CHUNK).min(CHUNK);
        if most == 0 {
            break;
        }
        let chunk = &mut buffer[..pace.turn().await.min(most)];
        noise.fill(chunk);
        sum.update(&*chunk);
        to.write_all(chunk).await.with_context(|| format!("after {sent} bytes were written"))?;
        sent += chunk.len() as u64;
    }
    to.shutdown().await.context("our direction cannot be closed")?;
    Ok(Passed { size: sent, sha256: hex::encode(sum.finalize()) })
}

/// Reads to the end.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> Result<Passed, anyhow::Error> {
    let mut gap = Duration::ZERO;
    receive_noting(from, &mut gap).await
}

/// The same; `gap` becomes the longest time between two reads.
pub async fn receive_noting(from: &mut (impl AsyncRead + Unpin), gap: &mut Duration) -> Result<Passed, anyhow::Error> {
    let (mut sum, mut size, mut buffer) = (Sha256::new(), 0_u64, vec![0; CHUNK]);
    let mut last = Instant::now();
    loop {
        let n = from.read(&mut buffer).await.with_context(|| format!("after {size} bytes were read"))?;
        if n == 0 {
            return Ok(Passed { size, sha256: hex::encode(sum.finalize()) });
        }
        *gap = (*gap).max(last.elapsed());
        last = Instant::now();
        sum.update(&buffer[..n]);
        size += n as u64;
    }
}

/// Sends everything back and ends with the other side.
pub async fn echo(stream: Stream, mut pace: Pace) -> Result<u64, anyhow::Error> {
    let (read, mut write) = tokio::io::split(stream);
    let mut read = BufReader::with_capacity(CHUNK, read);
    let (mut buffer, mut passed) = (vec![0; CHUNK], 0);
    loop {
        let most = pace.turn().await;
        let n = read.read(&mut buffer[..most]).await.context("the echo's read")?;
        if n == 0 {
            write.shutdown().await.context("the echo's end")?;
            return Ok(passed);
        }
        write.write_all(&buffer[..n]).await.context("the echo's write")?;
        passed += n as u64;
    }
}

/// Sends so many bytes through the other side's echo; both directions have to be equal.
pub async fn round_trip(stream: Stream, size: u64) -> Result<Passed, anyhow::Error> {
    let (mut read, mut write) = tokio::io::split(stream);
    let (sent, came) = tokio::try_join!(send(&mut write, size), receive(&mut read))?;
    ensure!(sent == came, "sent {sent:?}, came {came:?}");
    Ok(came)
}

/// Connects to a port of the Go node.
pub async fn dial(from: &Tailnet, to: SocketAddrV6) -> Result<Stream, anyhow::Error> {
    let stream = timeout(LIMIT, from.dial_tcp(to)).await.context("the dial hangs")?;
    stream.with_context(|| format!("port {}", to.port()))
}

/// The next connection to a port.
pub async fn accept(listener: &mut Listener) -> Result<Stream, anyhow::Error> {
    let incoming = timeout(LIMIT, listener.accept()).await.context("nobody dials our port")??;
    Ok(incoming.accept().await?)
}

/// Serves an echo on a port until it is dropped. A connection that breaks is for its dialler to tell.
pub async fn echo_server(tailnet: &Tailnet, port: u16) -> Result<JoinSet<()>, anyhow::Error> {
    let mut listener = tailnet.listen_tcp(port).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut streams = JoinSet::new();
        while let Ok(incoming) = listener.accept().await {
            streams.spawn(async move {
                let Ok(stream) = incoming.accept().await else { return };
                let _ = echo(stream, Pace::Full).await;
            });
        }
    });
    Ok(tasks)
}

/// The value within the limit.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T, anyhow::Error>>,
) -> Result<T, anyhow::Error> {
    timeout(limit, work).await.with_context(|| format!("{what}: not done within {limit:?}"))?
}

/// Megabits a second, both directions counted.
pub fn speed(bytes: u64, took: Duration) -> String {
    format!("{:.0} Mbit/s each way", bytes as f64 * 8.0 / 1e6 / took.as_secs_f64())
}
