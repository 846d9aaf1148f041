//! The load on a relay: pairs of clients, one of each sends as much as it may, the other counts. The clients are written for
//! this alone, so that the cores they share with the relay are mostly the relay's: whole buffers of ready frames go out, and
//! what comes in is counted frame by frame. The same program loads every relay.

use anyhow::{Context as _, anyhow, bail, ensure};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};
use tailnet::{
    base::{NodeKey, NodeSecret},
    driver::clock,
    wire::derp::{ClientInfo, Frame, HEADER, Header, MAX_FRAME, kind, write_send_packet},
};

use crate::harness::usage::Usage;

pub const PAIRS: usize = 4;
/// A WireGuard packet of the greatest size that a tunnel sends.
const PACKET: usize = 1_312;
/// What it holds behind its number.
const FILL: [u8; PACKET] = [0x5a; PACKET];
/// The same as a frame.
pub const FRAME: usize = HEADER + 32 + PACKET;
/// Frames of one write.
const BATCH: usize = 48;
const READ_BYTES: usize = 256 << 10;
/// No step takes this long; reaching it is a hang.
const LIMIT: Duration = Duration::from_secs(20);
/// After this time without a packet everything has come that will.
const QUIET: Duration = Duration::from_millis(200);

/// How the senders behave.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Packets of one pair that may be under way; `None` for as many as the relay's socket takes.
    pub window: Option<u64>,
    /// How long the load runs before anything is counted.
    pub warm_up: Duration,
    /// How long is counted.
    pub time: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Packets received in a second, all pairs together.
    pub packets: f64,
    /// The part of the sent packets that never came.
    pub lost: f64,
    /// Processor time of the relay for a received packet, in microseconds.
    pub cost: f64,
}

/// What a pair has done.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
}

/// Loads the relay at `address` that runs in the process `pid`.
pub fn run(address: SocketAddr, pid: u32, plan: Plan) -> anyhow::Result<Load> {
    let (outcomes, outcome) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        pairs.push(Pair::start(address, plan.window, &stop, &outcomes)?);
    }
    drop(outcomes);
    let begin = Instant::now();
    pass(&outcome, plan.warm_up)?;
    let before = Sample::take(&pairs, pid)?;
    pass(&outcome, plan.time)?;
    let after = Sample::take(&pairs, pid)?;
    stop.store(true, Ordering::Relaxed);
    // A sender ends when the relay has read all that it sent.
    for _ in 0..PAIRS {
        outcome.recv_timeout(LIMIT).map_err(|_| anyhow!("a sender did not end within {LIMIT:?}"))??;
    }
    let (mut received, mut last) = (total(&pairs, |c| &c.received), Instant::now());
    while last.elapsed() < QUIET {
        ensure!(begin.elapsed() < plan.warm_up + plan.time + 2 * LIMIT, "packets come without an end");
        thread::park_timeout(QUIET / 10);
        let now = total(&pairs, |c| &c.received);
        if now != received {
            (received, last) = (now, Instant::now());
        }
    }
    let sent = total(&pairs, |c| &c.sent);
    for pair in pairs {
        pair.end()?;
    }
    let counted = after.received - before.received;
    ensure!(counted > 0, "no packet came through");
    ensure!(received <= sent, "{received} packets came of {sent}");
    let seconds = (after.at - before.at).as_secs_f64();
    let cost = after.usage.since(before.usage).busy.as_secs_f64() * 1e6;
    Ok(Load { packets: number(counted) / seconds, lost: 1.0 - number(received) / number(sent), cost: cost / number(counted) })
}

/// Lets time pass in which no thread may end.
fn pass(outcome: &mpsc::Receiver<anyhow::Result<()>>, time: Duration) -> anyhow::Result<()> {
    match outcome.recv_timeout(time) {
        Err(RecvTimeoutError::Timeout) => Ok(()),
        Ok(Err(why)) => Err(why),
        Ok(Ok(())) | Err(RecvTimeoutError::Disconnected) => bail!("a client ended before its time"),
    }
}

struct Sample {
    at: Instant,
    received: u64,
    usage: Usage,
}

impl Sample {
    fn take(pairs: &[Pair], pid: u32) -> anyhow::Result<Self> {
        let usage = Usage::of(pid).context("the relay's process is gone")?;
        Ok(Self { at: Instant::now(), received: total(pairs, |c| &c.received), usage })
    }
}

fn total(pairs: &[Pair], of: impl Fn(&Counts) -> &AtomicU64) -> u64 {
    pairs.iter().map(|pair| of(&pair.counts).load(Ordering::Relaxed)).sum()
}

#[expect(clippy::cast_precision_loss, reason = "numbers for people")]
const fn number(count: u64) -> f64 {
    count as f64
}

/// A sender and a receiver.
struct Pair {
    counts: Arc<Counts>,
    streams: [TcpStream; 2],
    receiver: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Pair {
    fn start(
        address: SocketAddr,
        window: Option<u64>,
        stop: &Arc<AtomicBool>,
        outcomes: &mpsc::Sender<anyhow::Result<()>>,
    ) -> anyhow::Result<Self> {
        let counts = Arc::new(Counts::default());
        let (from, source) = log_in(address).context("the sender's login")?;
        let (to, sink) = log_in(address).context("the receiver's login")?;
        let streams = [source.try_clone()?, sink.try_clone()?];
        let (shared, stop, outcomes) = (Arc::clone(&counts), Arc::clone(stop), outcomes.clone());
        let sender = thread::Builder::new().name("load, sender".into()).spawn(move || {
            // Nobody waits any more when the load has failed.
            let _ = outcomes.send(send(source, to, window, &shared, &stop));
        })?;
        let (shared, wakes) = (Arc::clone(&counts), window.map(|_| sender.thread().clone()));
        let receiver = thread::Builder::new().name("load, receiver".into());
        let receiver = receiver.spawn(move || receive(sink, from, &shared, wakes.as_ref()))?;
        Ok(Self { counts, streams, receiver: Some(receiver) })
    }

    /// Closes both connections and tells what the receiver has to say.
    fn end(mut self) -> anyhow::Result<()> {
        self.close();
        let receiver = self.receiver.take().context("a pair ends once")?;
        receiver.join().map_err(|_| anyhow!("a receiver ended in a panic"))?
    }

    fn close(&self) {
        for stream in &self.streams {
            // The relay may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // The threads end with their connections.
        self.close();
    }
}

/// Opens a connection by `Upgrade: derp` and logs a fresh key in.
fn log_in(address: SocketAddr) -> anyhow::Result<(NodeKey, TcpStream)> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let request = format!("GET /derp HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
        ensure!(head.len() < 8_192, "the relay's answer has no end");
    }
    let head = String::from_utf8_lossy(&head);
    ensure!(head.starts_with("HTTP/1.1 101 "), "the relay answers {:?}", head.lines().next().unwrap_or_default());
    let mut rng = clock::random()?;
    let secret = NodeSecret::generate(&mut rng);
    let (kind, greeting) = read_frame(&mut stream)?;
    let Frame::ServerKey { key } = Frame::parse(kind, &greeting)? else { bail!("no greeting, but a frame of type {kind:#04x}") };
    let mut login = Vec::new();
    ClientInfo::of_node().write(&secret, &key, rng.bytes(), &mut login);
    stream.write_all(&login)?;
    let (kind, _) = read_frame(&mut stream)?;
    ensure!(kind == kind::SERVER_INFO, "the login is answered by a frame of type {kind:#04x}");
    Ok((secret.public(), stream))
}

fn read_frame(stream: &mut TcpStream) -> anyhow::Result<(u8, Vec<u8>)> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let Header { kind, len } = Header::parse(&header).context("no header")?;
    ensure!(len <= MAX_FRAME, "a frame of {len} bytes");
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload)?;
    Ok((kind, payload))
}

/// Sends numbered packets until it is told to stop, and returns when the relay has read them.
fn send(mut stream: TcpStream, to: NodeKey, window: Option<u64>, counts: &Counts, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut frames = Vec::new();
    for _ in 0..BATCH {
        write_send_packet(&to, &FILL, &mut frames);
    }
    let mut sent = 0_u64;
    let mut moved = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let under_way = sent - counts.received.load(Ordering::Relaxed);
        let free = window.map_or(BATCH, |window| usize::try_from(window.saturating_sub(under_way)).unwrap_or(BATCH));
        let now = free.min(BATCH);
        if now == 0 {
            ensure!(moved.elapsed() < LIMIT / 4, "nothing comes with {under_way} packets under way: the relay has lost some");
            thread::park_timeout(LIMIT / 40);
            continue;
        }
        for frame in frames.chunks_exact_mut(FRAME).take(now) {
            sent += 1;
            frame[HEADER + 32..HEADER + 40].copy_from_slice(&sent.to_be_bytes());
        }
        counts.sent.store(sent, Ordering::Relaxed);
        stream.write_all(&frames[..now * FRAME]).context("the sender")?;
        moved = Instant::now();
    }
    let mut ping = Vec::new();
    Frame::Ping(*b"all sent").write(&mut ping);
    stream.write_all(&ping).context("the sender's ping")?;
    while read_frame(&mut stream).context("the answer to the sender's ping")?.0 != kind::PONG {}
    Ok(())
}

/// Counts packets until the connection ends. They come in order, whole, and none twice.
fn receive(mut stream: TcpStream, from: NodeKey, counts: &Counts, wakes: Option<&Thread>) -> anyhow::Result<()> {
    let (mut buffer, mut held, mut last, mut received) = (vec![0; READ_BYTES], 0, 0, 0);
    loop {
        let read = match stream.read(&mut buffer[held..]) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("the receiver"),
        };
        held += read;
        let mut at = 0;
        while let Some(Header { kind, len }) = Header::parse(&buffer[at..held]) {
            ensure!(len <= FRAME, "a frame of {len} bytes came");
            let end = at + HEADER + len;
            if end > held {
                break;
            }
            if kind == kind::RECV_PACKET {
                let payload = &buffer[at + HEADER..end];
                ensure!(len == 32 + PACKET && payload.starts_with(from.as_bytes()), "a packet that nobody sent");
                let number = payload[32..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes)).context("a short packet")?;
                ensure!(number > last && payload[40..] == FILL[8..], "packet {number} behind {last}, or other bytes");
                (last, received) = (number, received + 1);
            }
            at = end;
        }
        buffer.copy_within(at..held, 0);
        held -= at;
        counts.received.store(received, Ordering::Relaxed);
        if let Some(sender) = wakes {
            sender.unpark();
        }
    }
}
