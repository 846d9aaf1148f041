//! Our relay client in the role of `derppeer`: numbered packets, acknowledged, at most sixteen under way.

use crate::peers::{region, region_id};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, future::poll_fn, task::Poll, time::Duration};
use tailnet::{
    base::{NodeKey, NodeSecret},
    driver::{
        clock,
        http::{Http, HttpOptions, ProxyChoice},
        relay::{Incoming, Link, RelayCounters, Relays, State},
    },
};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);
/// Packets that may be under way: the relays of upstream drop what waits behind 32.
const WINDOW: u32 = 16;
const ACK_EVERY: u32 = 4;
/// Every so manieth packet has the greatest size there is.
pub const GREAT_EVERY: u32 = 500;
pub const GREATEST: usize = 65_536;
const DATA: u8 = b'D';
const ACK: u8 = b'A';

pub fn relays(secret: &NodeSecret, websocket_only: bool) -> Relays {
    let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
    Relays::new(Http::new("http://127.0.0.1:9", None, options).unwrap(), secret.clone(), websocket_only)
}

/// What arrived besides numbered packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Packet(NodeKey, Vec<u8>),
    Gone(NodeKey),
}

#[derive(Default)]
struct Got {
    count: u32,
    disordered: bool,
    digest: Sha256,
}

/// How an exchange ended on our side.
#[derive(Debug)]
pub struct Exchanged {
    pub count: u32,
    pub ordered: bool,
    pub sent: String,
    pub received: String,
}

/// A connection.
pub struct Client {
    relays: Relays,
    link: Link,
    pub key: NodeKey,
    got: BTreeMap<NodeKey, Got>,
    acked: BTreeMap<NodeKey, u32>,
    owed: Vec<(NodeKey, u32)>,
    news: Vec<News>,
}

impl Client {
    /// Connects and waits until the relay has taken the login.
    pub async fn connect(port: u16, secret: &NodeSecret, websocket_only: bool) -> Result<Self, String> {
        let relays = relays(secret, websocket_only);
        let link = relays.open(region_id(), region(port), true, clock::random().map_err(|e| e.to_string())?);
        let mut this = Self {
            relays,
            link,
            key: secret.public(),
            got: BTreeMap::new(),
            acked: BTreeMap::new(),
            owed: Vec::new(),
            news: Vec::new(),
        };
        this.wait("a connection", |this| this.link.lane.state() != State::Dialing).await?;
        if this.link.lane.state() != State::Up {
            return Err(format!("no connection to the relay: {}", this.link.lane.why()));
        }
        let key = this.key;
        this.send(&key, b"settled").await?;
        match this.news().await? {
            News::Packet(from, packet) if from == key && packet == b"settled" => Ok(this),
            other => Err(format!("{other:?} instead of our own packet")),
        }
    }

    pub fn counters(&self) -> RelayCounters {
        self.relays.counters()
    }

    /// `Ok` while the connection stands.
    pub fn standing(&self) -> Result<(), String> {
        match self.link.lane.state() {
            State::Up => Ok(()),
            _ => Err(format!("the connection to the relay ended: {}", self.link.lane.why())),
        }
    }

    /// Waits until it holds; it is asked again whenever the connection has done something.
    async fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        let wait = poll_fn(|cx| {
            self.relays.bell().register(cx.waker());
            if holds(self) { Poll::Ready(()) } else { Poll::Pending }
        });
        timeout(LIMIT, wait).await.map_err(|_| format!("waited in vain for {what}"))
    }

    /// Sends one packet that is no part of an exchange.
    pub async fn send(&mut self, to: &NodeKey, packet: &[u8]) -> Result<(), String> {
        self.wait("room in the lane", |this| this.link.lane.room(packet.len()) || this.standing().is_err()).await?;
        self.standing()?;
        self.put(to, packet);
        self.link.lane.flush();
        Ok(())
    }

    fn put(&mut self, to: &NodeKey, packet: &[u8]) {
        self.link.lane.slot(to, packet.len()).copy_from_slice(packet);
        self.link.lane.commit(packet.len());
    }

    /// The next news.
    pub async fn news(&mut self) -> Result<News, String> {
        loop {
            self.take();
            self.pay();
            if !self.news.is_empty() {
                return Ok(self.news.remove(0));
            }
            self.wait("news", |this| this.link.lane.has_incoming() || this.standing().is_err()).await?;
            if !self.link.lane.has_incoming() {
                self.standing()?;
            }
        }
    }

    /// The news that have come.
    pub fn news_so_far(&mut self) -> Vec<News> {
        self.take();
        std::mem::take(&mut self.news)
    }

    fn take(&mut self) {
        let Self { link, got, acked, owed, news, .. } = self;
        link.lane.receive(64, |incoming| match incoming {
            Incoming::Gone(peer) => news.push(News::Gone(peer)),
            Incoming::Packet(from, packet) => match (packet.first(), packet.get(1..5).and_then(|n| n.try_into().ok())) {
                (Some(&ACK), Some(number)) => {
                    let acked = acked.entry(from).or_default();
                    *acked = (*acked).max(u32::from_be_bytes(number));
                }
                (Some(&DATA), Some(number)) => {
                    let got = got.entry(from).or_default();
                    got.disordered |= u32::from_be_bytes(number) != got.count;
                    got.count += 1;
                    got.digest.update(packet);
                    if got.count.is_multiple_of(ACK_EVERY) {
                        owed.push((from, got.count));
                    }
                }
                _ => news.push(News::Packet(from, packet.to_vec())),
            },
        });
    }

    /// Sends the acknowledgements that are due, as far as there is room.
    fn pay(&mut self) {
        while let Some((to, count)) = self.owed.first().copied() {
            if !self.link.lane.room(5) {
                return;
            }
            self.owed.remove(0);
            let mut packet = vec![ACK];
            packet.extend_from_slice(&count.to_be_bytes());
            self.put(&to, &packet);
        }
        self.link.lane.flush();
    }

    /// Sends `count` packets of up to `size` bytes to a peer that does the same, which may be ourselves.
    pub async fn exchange(&mut self, with: NodeKey, count: u32, size: usize) -> Result<Exchanged, String> {
        let mut sent = 0;
        let mut digest = Sha256::new();
        let mut next = packet(0, size);
        loop {
            self.take();
            self.pay();
            let acked = self.acked.get(&with).copied().unwrap_or(0);
            while sent < count && sent < acked + WINDOW && self.link.lane.room(next.len()) {
                digest.update(&next);
                self.put(&with, &next);
                sent += 1;
                next = packet(sent, size);
            }
            self.link.lane.flush();
            let received = self.got.get(&with).map_or(0, |got| got.count);
            if received >= count && acked >= count && self.owed.is_empty() {
                break;
            }
            let waits_for_room = (sent < count && sent < acked + WINDOW) || !self.owed.is_empty();
            let len = if self.owed.is_empty() { next.len() } else { 5 };
            let what = format!("packet {received} and the acknowledgement of {acked} of {sent}");
            self.wait(&what, |this| {
                let lane = &this.link.lane;
                lane.has_incoming() || this.standing().is_err() || (waits_for_room && lane.room(len))
            })
            .await?;
            if !self.link.lane.has_incoming() {
                self.standing()?;
            }
        }
        let got = self.got.remove(&with).unwrap_or_default();
        let (sent, received) = (hex::encode(digest.finalize()), hex::encode(got.digest.finalize()));
        Ok(Exchanged { count: got.count, ordered: !got.disordered, sent, received })
    }
}

/// Packet `n`: up to `size` bytes that differ from packet to packet, some of them as long as packets can be.
fn packet(n: u32, size: usize) -> Vec<u8> {
    let len = if n % GREAT_EVERY == GREAT_EVERY - 1 { GREATEST } else { 5 + (n as usize * 7_919) % (size - 4) };
    let mut packet = vec![DATA];
    packet.extend_from_slice(&n.to_be_bytes());
    packet.extend(crate::harness::noise(len - 5, u64::from(n) + 1));
    packet
}
