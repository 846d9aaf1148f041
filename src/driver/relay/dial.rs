//! Getting a connection to a relay region: its nodes in order, each with a head start on the next, and two transports in
//! a race (`derp.md` §2, §9).
//!
//! `Upgrade: derp` goes first. A WebSocket joins when the upgrade fails or stalls, for proxies that let only those pass.
//! A transport has won when the relay's first bytes are there: a 101 alone may be a proxy's. Logging in comes after the
//! race, so that no relay ever sees one node twice.

use crate::{
    base::RegionId,
    driver::{
        dns::Prescribed,
        http::{Http, HttpError, Io, Method, Overlay},
        websocket::ByteStream,
    },
    wire::derp::{HostIp, Region, RelayNode},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use std::{
    future::Future,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::pin,
    time::Duration,
};
use tokio::{
    io::AsyncReadExt as _,
    time::{sleep, timeout},
};

/// All of connecting and logging in (`derp.md` §5).
const LIMIT: Duration = Duration::from_secs(10);
/// How long one node of a region may take before the next one joins. What swallows a SYN must not use up the time of all;
/// a slow one goes on beside the next and still wins when it is there first.
const NODE_LIMIT: Duration = Duration::from_millis(1_500);
/// How long the first transport may take before the other one joins.
pub(super) const STALL: Duration = Duration::from_millis(1_500);
/// How long a measurement may take; the relay is no good as home then.
const MEASURE_LIMIT: Duration = Duration::from_secs(3);
/// Room for what follows the greeting.
const FIRST_READ: usize = 4_096;

/// How the frames travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Raw, behind `Upgrade: DERP`.
    Upgrade,
    /// In binary messages.
    WebSocket,
}

impl Transport {
    /// What logs call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Upgrade => "derp",
            Self::WebSocket => "websocket",
        }
    }
}

/// Why a region could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// The map names no relay for it.
    #[error("region {0} has no relay")]
    NoRelay(RegionId),
    /// The last relay tried failed so.
    #[error(transparent)]
    Http(HttpError),
    /// Nothing within ten seconds.
    #[error("no relay of region {0} answered in time")]
    Timeout(RegionId),
}

/// A connection whose first bytes have been read.
pub(super) struct Dialed {
    pub(super) io: Box<dyn Io>,
    pub(super) first: Vec<u8>,
    pub(super) transport: Transport,
}

/// Connects to a region. With `websocket_only` nothing else is tried; `before` is the transport that served last time.
pub(super) async fn dial(
    http: &Http,
    id: RegionId,
    region: &Region,
    websocket_only: bool,
    before: Option<Transport>,
) -> Result<Dialed, DialError> {
    let every_node = async {
        let mut last = DialError::NoRelay(id);
        let mut nodes = region.relays().peekable();
        let mut dials = FuturesUnordered::new();
        let mut start = true;
        loop {
            if start && let Some(node) = nodes.next() {
                dials.push(async move { (node, reach(http, node, websocket_only, before).await) });
            }
            // With WebSockets alone only the limit of all counts (`derp.md` §2.6).
            start = tokio::select! {
                done = dials.next() => match done {
                    None => return Err(last),
                    Some((_, Ok(dialed))) => return Ok(dialed),
                    Some((node, Err(error))) => {
                        tracing::debug!(region = %id, node = node.name, %error, "a relay cannot be reached");
                        last = DialError::Http(error);
                        true
                    }
                },
                () = sleep(NODE_LIMIT), if !websocket_only && nodes.peek().is_some() => true,
            };
        }
    };
    timeout(LIMIT, every_node).await.unwrap_or(Err(DialError::Timeout(id)))
}

/// Connects to one node of a region.
async fn reach(http: &Http, node: &RelayNode, websocket_only: bool, before: Option<Transport>) -> Result<Dialed, HttpError> {
    let http = client(http, node)?;
    if websocket_only {
        websocket(&http).await
    } else if before == Some(Transport::WebSocket) {
        race(websocket(&http), upgrade(&http)).await
    } else {
        race(upgrade(&http), websocket(&http)).await
    }
}

/// The time that a region's relay takes to answer a small request on a connection that stands.
pub(super) async fn measure(http: &Http, region: &Region) -> Option<Duration> {
    let http = client(http, region.relays().next()?).ok()?;
    let (latency, _) = timeout(MEASURE_LIMIT, time_answer(&http)).await.ok()??;
    Some(latency)
}

/// The time that one relay takes to answer a small request on a connection that stands, and where that goes.
pub(super) async fn time_answer(http: &Http) -> Option<(Duration, Option<SocketAddr>)> {
    let ask = async || http.call(Method::Get, "/derp/latency-check", None::<&()>).await.ok();
    // The first request pays for the connection.
    ask().await?;
    let begin = crate::driver::clock::now();
    let reply = ask().await?;
    Some((crate::driver::clock::now() - begin, reply.address()))
}

/// The HTTP client for one node, with the addresses and the certificate that the map prescribes (`derp.md` §8).
pub(super) fn client(http: &Http, node: &RelayNode) -> Result<Http, HttpError> {
    let scheme = if node.plain_http { "http" } else { "https" };
    let mut fixed: Vec<IpAddr> = Vec::new();
    if let HostIp::Fixed(ip) = node.ipv4 {
        fixed.push(ip.into());
    }
    if let HostIp::Fixed(ip) = node.ipv6 {
        fixed.push(ip.into());
    }
    let host = match fixed.first() {
        Some(ip) if node.host.is_empty() => ip.to_string(),
        _ => node.host.clone(),
    };
    let (v4_off, v6_off) = (node.ipv4 == HostIp::Off, node.ipv6 == HostIp::Off);
    // A literal is its own and only address.
    let unusable = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => v4_off,
        Ok(IpAddr::V6(_)) => v6_off,
        Err(_) => v4_off && v6_off,
    };
    if unusable {
        return Err(HttpError::Setting(format!(
            "the relay map switches off every address family of relay node {:?}; allow IPv4 or IPv6 for it",
            node.name
        )));
    }
    let bracketed = if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.clone() };
    let (v4, v6) = (node.ipv4 == HostIp::Resolve, node.ipv6 == HostIp::Resolve);
    let addresses = (!v4 || !v6).then_some(Prescribed { host, fixed, v4, v6 });
    let overlay = Overlay { addresses, certificate: node.cert_name.clone(), unchecked: node.insecure };
    http.at_relay(&format!("{scheme}://{bracketed}:{}", node.relay_port), overlay)
}

/// Runs `second` beside `first` once that stalls, or alone once it failed. What cannot even connect has no second try:
/// the other transport goes the same way.
async fn race(
    first: impl Future<Output = Result<Dialed, HttpError>>,
    second: impl Future<Output = Result<Dialed, HttpError>>,
) -> Result<Dialed, HttpError> {
    let mut first = pin!(first);
    match timeout(STALL, &mut first).await {
        Ok(Err(error)) if !error.is_connect() => {
            tracing::debug!(%error, "the first relay transport failed; trying the other");
            second.await
        }
        Ok(done) => done,
        Err(_) => {
            tracing::debug!("the first relay transport stalls; trying the other beside it");
            let mut second = pin!(second);
            tokio::select! {
                done = &mut first => match done {
                    Ok(dialed) => Ok(dialed),
                    Err(_) => second.await,
                },
                done = &mut second => match done {
                    Ok(dialed) => Ok(dialed),
                    Err(_) => first.await,
                },
            }
        }
    }
}

pub(super) async fn upgrade(http: &Http) -> Result<Dialed, HttpError> {
    greeted(http, http.upgrade_derp("/derp").await?, Transport::Upgrade).await
}

pub(super) async fn websocket(http: &Http) -> Result<Dialed, HttpError> {
    let socket = http.websocket("/derp", Some("derp")).await?;
    greeted(http, Box::new(ByteStream::new(socket)), Transport::WebSocket).await
}

/// Waits for the relay's first bytes.
async fn greeted(http: &Http, mut io: Box<dyn Io>, transport: Transport) -> Result<Dialed, HttpError> {
    let broken = |reason: String| HttpError::Answer { host: http.endpoint().0, reason };
    let mut first = Vec::with_capacity(FIRST_READ);
    match io.read_buf(&mut first).await {
        Ok(0) => Err(broken("the relay closed before its greeting".into())),
        Ok(_) => Ok(Dialed { io, first, transport }),
        Err(error) => Err(broken(error.to_string())),
    }
}
