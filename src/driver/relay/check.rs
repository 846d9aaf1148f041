//! One relay looked at from outside, as `netcheck` shows it: how fast it answers, which transport reaches it, and whether
//! two clients can talk through it.

use super::dial::{self, Transport};
use crate::{
    base::{Instant, NodeKey, NodeSecret},
    driver::{
        clock,
        http::{Http, Io},
    },
    proto::relay::client::{Received, RelayClient},
    wire::derp::{RelayNode, ServerInfo},
};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{interval, timeout},
};

/// How long a message may take through the relay and back.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);
/// How often a message is sent again: the relay may drop one.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the latency check may take.
const LATENCY_LIMIT: Duration = Duration::from_secs(3);
/// Longest read.
const READ_BYTES: usize = 4_096;

/// What was found about one relay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelayCheck {
    /// How long the relay takes to answer on a connection that stands.
    pub latency: Option<Duration>,
    /// Where that connection went: to the relay, or to a proxy.
    pub address: Option<SocketAddr>,
    /// How long a message took from one client to the other and back; `None` when it did not.
    pub round_trip: Option<Duration>,
    /// Only a WebSocket came through.
    pub websocket: bool,
    /// What the relay says of itself at login.
    pub info: ServerInfo,
    /// What each of the two clients did.
    pub logs: [Vec<String>; 2],
    /// What went wrong with each.
    pub errors: [Vec<String>; 2],
}

/// Looks at one relay. Takes about 20 s when all goes wrong.
///
/// # Cancel safety
/// Dropping the future ends all connections.
pub async fn check(http: &Http, node: &RelayNode) -> RelayCheck {
    let mut check = RelayCheck::default();
    let client = match dial::client(http, node) {
        Ok(client) => client,
        Err(error) => {
            check.errors[0].push(error.to_string());
            return check;
        }
    };
    let measured = async { timeout(LATENCY_LIMIT, dial::time_answer(&client)).await.ok().flatten() };
    let (measured, ()) = tokio::join!(measured, exchange(&client, &mut check));
    (check.latency, check.address) = measured.map_or((None, None), |(latency, address)| (Some(latency), address));
    check
}

/// Lets two clients send each other a message.
async fn exchange(http: &Http, check: &mut RelayCheck) {
    let RelayCheck { logs: [log_a, log_b], errors: [errors_a, errors_b], .. } = check;
    let (a, b) = tokio::join!(Party::join(http, log_a), Party::join(http, log_b));
    let (mut a, mut b) = match (a, b) {
        (Ok(a), Ok(b)) => (a, b),
        (a, b) => {
            errors_a.extend(a.err());
            errors_b.extend(b.err());
            return;
        }
    };
    check.websocket = a.transport == Transport::WebSocket || b.transport == Transport::WebSocket;
    match timeout(EXCHANGE_LIMIT, round_trip(&mut a, &mut b)).await {
        Ok(Ok(time)) => check.round_trip = Some(time),
        Ok(Err(error)) => check.errors[0].push(format!("the connection broke: {error}")),
        Err(_) => check.errors[0].push(format!("no message came back within {} s", EXCHANGE_LIMIT.as_secs())),
    }
    if let Some(info) = a.engine.server_info() {
        check.info = info.clone();
    }
}

/// The time that a message takes from `a` to `b` and back.
async fn round_trip(a: &mut Party, b: &mut Party) -> io::Result<Duration> {
    let (key_a, key_b) = (a.key, b.key);
    // Nobody is reached before the relay knows both.
    let nobody = |_: NodeKey, _: &[u8]| {};
    while a.engine.server_info().is_none() {
        a.turn(nobody).await?;
    }
    while b.engine.server_info().is_none() {
        b.turn(nobody).await?;
    }
    let mut sent: Vec<Instant> = Vec::new();
    let (mut back, mut answer) = (None, None);
    let mut again = interval(AGAIN);
    loop {
        tokio::select! {
            _ = again.tick() => {
                let number = u32::try_from(sent.len()).unwrap_or(u32::MAX);
                sent.push(clock::now());
                a.send(key_b, &number.to_be_bytes()).await?;
            }
            done = a.turn(|from, packet: &[u8]| {
                if from == key_b && let Ok(number) = packet.try_into() {
                    back = Some(u32::from_be_bytes(number));
                }
            }) => done?,
            done = b.turn(|from, packet: &[u8]| {
                if from == key_a {
                    answer = Some(packet.to_vec());
                }
            }) => done?,
        }
        if let Some(packet) = answer.take() {
            b.send(key_a, &packet).await?;
        }
        let began = back.take().and_then(|number| sent.get(usize::try_from(number).unwrap_or(usize::MAX)));
        if let Some(began) = began {
            return Ok(clock::now() - *began);
        }
    }
}

/// One of the two clients.
struct Party {
    key: NodeKey,
    io: Box<dyn Io>,
    engine: RelayClient,
    transport: Transport,
    buffer: Vec<u8>,
    out: Vec<u8>,
}

impl Party {
    /// Connects as tunnels do: by `Upgrade: DERP`, and by WebSocket where that does not pass.
    async fn join(http: &Http, log: &mut Vec<String>) -> Result<Self, String> {
        let began = clock::now();
        let url = http.base();
        log.push(format!("connecting to {}://{}/derp", url.scheme(), url.authority()));
        let first = timeout(dial::STALL, dial::upgrade(http)).await;
        let dialed = match first {
            Ok(Ok(dialed)) => dialed,
            Ok(Err(error)) if error.is_connect() => return Err(error.to_string()),
            failed => {
                let why = failed.map_or_else(|_| "no answer".to_owned(), |e| e.err().map(|e| e.to_string()).unwrap_or_default());
                log.push(format!("the way does not let \"Upgrade: DERP\" pass ({why}); trying a WebSocket"));
                dial::websocket(http).await.map_err(|e| e.to_string())?
            }
        };
        let millis = (clock::now() - began).as_millis();
        log.push(format!("connected by {} after {millis} ms", dialed.transport.name()));
        let mut rng = clock::random().map_err(|e| e.to_string())?;
        let secret = NodeSecret::generate(&mut rng);
        let key = secret.public();
        let engine = RelayClient::new(clock::now(), secret, rng);
        let (io, transport) = (dialed.io, dialed.transport);
        let mut party = Self { key, io, engine, transport, buffer: vec![0; READ_BYTES], out: Vec::new() };
        party.engine.handle_bytes(clock::now(), &dialed.first, &mut |_| {}).map_err(|e| e.to_string())?;
        party.flush().await.map_err(|e| e.to_string())?;
        Ok(party)
    }

    /// Reads once and answers what is to be answered.
    ///
    /// # Cancel safety
    /// Nothing is lost: what was not written yet goes with the next call of [`Party::flush`].
    async fn turn(&mut self, mut on: impl FnMut(NodeKey, &[u8])) -> io::Result<()> {
        let n = self.io.read(&mut self.buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = self.buffer.get(..n).unwrap_or_default();
        let done = self.engine.handle_bytes(clock::now(), bytes, &mut |received| {
            if let Received::Packet { from, packet } = received {
                on(from, packet);
            }
        });
        done.map_err(io::Error::other)?;
        if self.engine.has_output() { self.flush().await } else { Ok(()) }
    }

    async fn send(&mut self, to: NodeKey, packet: &[u8]) -> io::Result<()> {
        self.engine.write_packet(clock::now(), &to, packet, &mut self.out);
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.engine.poll_output(&mut self.out);
        while !self.out.is_empty() {
            let n = self.io.write(&self.out).await?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.out.drain(..n);
        }
        self.io.flush().await
    }
}
