//! Row 1: our relay client on Go relays, Go clients on ours.

mod client;
mod go_client;

use crate::{
    peers::{Context, Front, Kind, Lines, Need, Program, Relay, netcheck, region, region_id, runtime, secret},
    table::{Cell, Outcome},
};
use anyhow::{Context as _, anyhow, bail, ensure};
use client::{Client, News, relays};
use go_client::GoClient;
use serde_json::json;
use std::time::{Duration, Instant};
use tailnet::{base::NodeKey, wire::derp::RelayMap};

const ROW: &str = "relay";
/// Packets each way.
const PACKETS: u32 = 10_000;
const SIZE: usize = 1_400;

/// How a client reaches a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By `Upgrade: derp`.
    Upgrade,
    /// By WebSocket, after a proxy has refused the upgrade.
    Refused,
    /// By WebSocket from the start.
    Forced,
}

impl Way {
    const ALL: [Self; 3] = [Self::Upgrade, Self::Refused, Self::Forced];

    const fn name(self) -> &'static str {
        match self {
            Self::Upgrade => "Upgrade: derp",
            Self::Refused => "WebSocket after a refusal",
            Self::Forced => "forced WebSocket",
        }
    }
}

pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for kind in [Kind::Derper, Kind::GoServer] {
        let needs = with(kind, GoClient::Coder);
        for way in Way::ALL {
            let name = format!("our client on {}, {}, {PACKETS} packets each way", kind.name(), way.name());
            cells.push(Cell::new(ROW, name, &needs, move |c| exchange(c, kind, way, Side::Ours)));
        }
        let name = |what: &str| format!("our client on {}, {what}", kind.name());
        cells.push(Cell::new(ROW, name("peer gone"), &needs, move |c| our_peer_gone(c, kind)));
        cells.push(Cell::new(ROW, name("duplicate key"), &needs, move |c| our_duplicate_key(c, kind)));
        cells.push(Cell::new(ROW, name("latency check"), &kind.needs(), move |c| our_latency_check(c, kind)));
    }
    let kind = Kind::OurServer;
    for (go, ways) in [(GoClient::Coder, &Way::ALL[..]), (GoClient::Upstream, &[Way::Upgrade, Way::Forced])] {
        let needs = with(kind, go);
        for &way in ways {
            let name = format!("{} on {}, {}, {PACKETS} packets each way", go.name(), kind.name(), way.name());
            cells.push(Cell::new(ROW, name, &needs, move |c| exchange(c, kind, way, Side::Theirs(go))));
        }
        let name = |what: &str| format!("{} on {}, {what}", go.name(), kind.name());
        cells.push(Cell::new(ROW, name("peer gone"), &needs, move |c| go_peer_gone(c, go)));
        cells.push(Cell::new(ROW, name("duplicate key"), &needs, move |c| go_duplicate_key(c, go)));
    }
    let needs = [Need::Program(Program::Netcheck)];
    cells.push(Cell::new(ROW, "Go client on our server's relay, latency check", &needs, go_latency_check));
    let mut needs = with(Kind::Derper, GoClient::Coder);
    needs.extend(with(Kind::GoServer, GoClient::Upstream));
    cells.push(Cell::new(ROW, "keep-alives, both ways", &needs, keep_alives).within(Duration::from_secs(240)));
    cells
}

fn with(kind: Kind, client: GoClient) -> Vec<Need> {
    let mut needs = kind.needs();
    needs.push(Need::Program(client.program()));
    needs
}

/// Whose client goes the way that the cell is about.
#[derive(Debug, Clone, Copy)]
enum Side {
    Ours,
    Theirs(GoClient),
}

/// A client of ours and one of Go send each other packets at once; one goes the cell's way, the other the plain one.
fn exchange(context: &Context, kind: Kind, way: Way, side: Side) -> Outcome {
    let runtime = runtime();
    let relay = Relay::start(context, kind);
    let front = runtime.block_on(Front::open(relay.address, way == Way::Refused));
    let (plain, fronted) = (relay.address.port(), front.port);
    let (our_port, go_port, go) = match side {
        Side::Ours => (fronted, plain, GoClient::Coder),
        Side::Theirs(go) => (plain, fronted, go),
    };
    let forced = way == Way::Forced;
    let ours = matches!(side, Side::Ours);
    let mut client = runtime.block_on(Client::connect(our_port, &secret(), ours && forced)).map_err(|e| anyhow!(e))?;
    let (mut theirs, key) = go.connect(context, go_port, !ours && forced, None);
    let their_key = NodeKey::from_hex(&key).context("the Go client's key")?;

    theirs.ask(&json!({ "op": "exchange", "peer": client.key.to_hex(), "count": PACKETS, "size": SIZE }));
    let begin = Instant::now();
    let exchanged = runtime.block_on(client.exchange(their_key, PACKETS, SIZE)).map_err(|e| anyhow!("ours: {e}"))?;
    let took = begin.elapsed();
    let go = theirs.event("exchanged");
    ensure!(exchanged.count == PACKETS, "we got {} packets", exchanged.count);
    ensure!(exchanged.ordered, "packets came to us in another order");
    ensure!(go["complete"] == true && go["count"] == PACKETS, "the Go client got {} packets", go["count"]);
    ensure!(go["ordered"] == true, "packets came to the Go client in another order");
    ensure!(go["sent"] == exchanged.received, "what the Go client sent is not what came: {go} {exchanged:?}");
    ensure!(go["received"] == exchanged.sent, "what we sent is not what came: {go} {exchanged:?}");
    ensure!(client.news_so_far().is_empty(), "more came than was sent");
    let counters = client.counters();
    if ours {
        let ways = (counters.upgrades, counters.websockets);
        ensure!(ways == if way == Way::Upgrade { (1, 0) } else { (0, 1) }, "another way was taken: {counters:?}");
    }
    ensure!((front.refused() > 0) == (way == Way::Refused), "{} upgrades were refused", front.refused());
    Ok(format!("{:.0} packets/s", f64::from(2 * PACKETS) / took.as_secs_f64()))
}

/// A packet that a relay takes for one of disco: those are answered when the receiver is not there.
fn like_disco() -> Vec<u8> {
    let mut packet = "TS💬".as_bytes().to_vec();
    packet.resize(62 + 40, 7);
    packet
}

fn our_peer_gone(context: &Context, kind: Kind) -> Outcome {
    let runtime = runtime();
    let relay = Relay::start(context, kind);
    let port = relay.address.port();
    let (mut go, key) = GoClient::Coder.connect(context, port, false, None);
    let key = NodeKey::from_hex(&key).context("the Go client's key")?;
    runtime.block_on(async {
        let mut client = Client::connect(port, &secret(), false).await.map_err(|e| anyhow!(e))?;
        let nobody = secret().public();
        client.send(&nobody, &like_disco()).await.map_err(|e| anyhow!(e))?;
        let news = client.news().await.map_err(|e| anyhow!("not here: {e}"))?;
        ensure!(news == News::Gone(nobody), "{news:?} instead of the news that the peer is not here");
        // Those are told to whom the one that leaves has sent.
        go.ask(&json!({ "op": "raw", "peer": client.key.to_hex(), "hex": hex::encode("here") }));
        let news = client.news().await.map_err(|e| anyhow!(e))?;
        ensure!(news == News::Packet(key, b"here".to_vec()), "{news:?}");
        drop(go);
        let news = client.news().await.map_err(|e| anyhow!("disconnected: {e}"))?;
        ensure!(news == News::Gone(key), "{news:?} instead of the news that the peer has gone");
        client.standing().map_err(|e| anyhow!(e))?;
        Ok("not here, and gone".to_owned())
    })
}

fn go_peer_gone(context: &Context, go: GoClient) -> Outcome {
    let runtime = runtime();
    let relay = Relay::start(context, Kind::OurServer);
    let port = relay.address.port();
    let (mut theirs, their_key) = go.connect(context, port, false, None);
    let their_key = NodeKey::from_hex(&their_key).context("the Go client's key")?;
    let mut client = runtime.block_on(Client::connect(port, &secret(), false)).map_err(|e| anyhow!(e))?;
    let nobody = secret().public().to_hex();
    theirs.ask(&json!({ "op": "raw", "peer": nobody, "hex": hex::encode(like_disco()) }));
    let gone = theirs.event("gone");
    ensure!(gone["peer"] == nobody && gone["reason"] == 1, "not here: {gone}");
    let key = client.key.to_hex();
    // Those are told to whom the one that leaves has sent.
    runtime.block_on(client.send(&their_key, b"here")).map_err(|e| anyhow!(e))?;
    let heard = theirs.event("packet");
    ensure!(heard["hex"] == hex::encode("here") && heard["peer"] == key, "{heard}");
    drop(client);
    let gone = theirs.event("gone");
    ensure!(gone["peer"] == key && gone["reason"] == 0, "disconnected: {gone}");
    theirs.settle();
    Ok("not here, and gone".to_owned())
}

fn our_duplicate_key(context: &Context, kind: Kind) -> Outcome {
    let runtime = runtime();
    let relay = Relay::start(context, kind);
    let port = relay.address.port();
    let (mut go, go_key) = GoClient::Coder.connect(context, port, false, None);
    let go_key = NodeKey::from_hex(&go_key).context("the Go client's key")?;
    let twice = secret();
    let key = twice.public().to_hex();
    let mut say = |text: &str| go.ask(&json!({ "op": "raw", "peer": key, "hex": hex::encode(text) }));
    let connect = || runtime.block_on(Client::connect(port, &twice, false)).map_err(|e| anyhow!(e));
    let hears = |client: &mut Client, text: &str| {
        let news = runtime.block_on(client.news()).map_err(|e| anyhow!("waiting for {text:?}: {e}"))?;
        ensure!(news == News::Packet(go_key, text.as_bytes().to_vec()), "{news:?} instead of {text:?}");
        Ok(())
    };
    let mut first = connect()?;
    say("one");
    hears(&mut first, "one")?;
    let mut second = connect()?;
    say("two");
    hears(&mut second, "two")?;
    // Whoever spoke last is heard: the relay has taken the word when it has come to the other side.
    runtime.block_on(first.send(&go_key, b"first speaks")).map_err(|e| anyhow!(e))?;
    let heard = go.event("packet");
    ensure!(heard["hex"] == hex::encode("first speaks"), "{heard}");
    go.ask(&json!({ "op": "raw", "peer": key, "hex": hex::encode("three") }));
    hears(&mut first, "three")?;
    ensure!(second.news_so_far().is_empty(), "both connections were heard");
    drop(first);
    let end = Instant::now() + Duration::from_secs(10);
    // What is sent before the relay has noticed the end is lost.
    while second.news_so_far().is_empty() {
        ensure!(Instant::now() < end, "nothing comes to the connection that is left");
        go.ask(&json!({ "op": "raw", "peer": key, "hex": hex::encode("four") }));
        go.settle();
    }
    ensure!(go.take("gone").is_empty(), "told gone while one connection was left");
    drop(second);
    let gone = go.event("gone");
    ensure!(gone["peer"] == key && gone["reason"] == 0, "{gone}");
    Ok("the last to speak is heard; gone with the last".to_owned())
}

fn go_duplicate_key(context: &Context, go: GoClient) -> Outcome {
    let runtime = runtime();
    let relay = Relay::start(context, Kind::OurServer);
    let port = relay.address.port();
    let mut other = runtime.block_on(Client::connect(port, &secret(), false)).map_err(|e| anyhow!(e))?;
    let twice = hex::encode(crate::harness::noise(32, u64::from(std::process::id())));
    let (mut first, key) = go.connect(context, port, false, Some(&twice));
    let peer = NodeKey::from_hex(&key).context("the Go client's key")?;
    let own = other.key.to_hex();
    let mut say = |text: &str| runtime.block_on(other.send(&peer, text.as_bytes())).map_err(|e| anyhow!(e));
    let hears = |client: &mut Lines, text: &str| {
        let heard = client.event("packet");
        ensure!(heard["hex"] == hex::encode(text) && heard["peer"] == own, "{heard} instead of {text:?}");
        Ok(())
    };
    say("one")?;
    hears(&mut first, "one")?;
    let (mut second, again) = go.connect(context, port, true, Some(&twice));
    ensure!(again == key, "the secret gave another key");
    say("two")?;
    hears(&mut second, "two")?;
    // Whoever spoke last is heard.
    first.settle();
    say("three")?;
    hears(&mut first, "three")?;
    ensure!(second.take("packet").is_empty(), "both connections were heard");
    drop(first);
    let end = Instant::now() + Duration::from_secs(10);
    // What is sent before the relay has noticed the end is lost.
    while second.event_if_any("packet", Duration::from_millis(100), |_| true).is_none() {
        ensure!(Instant::now() < end, "nothing comes to the connection that is left");
        say("four")?;
    }
    ensure!(other.news_so_far().is_empty(), "told gone while one connection was left");
    second.ask(&json!({ "op": "raw", "peer": own, "hex": hex::encode("last") }));
    let news = runtime.block_on(other.news()).map_err(|e| anyhow!(e))?;
    ensure!(news == News::Packet(peer, b"last".to_vec()), "{news:?}");
    drop(second);
    let news = runtime.block_on(other.news()).map_err(|e| anyhow!(e))?;
    ensure!(news == News::Gone(peer), "{news:?}");
    Ok("the last to speak is heard; gone with the last".to_owned())
}

fn our_latency_check(context: &Context, kind: Kind) -> Outcome {
    let runtime = runtime();
    let relay = Relay::start(context, kind);
    let relays = relays(&secret(), false);
    let took = runtime.block_on(relays.measure(&region(relay.address.port()))).context("no answer")?;
    Ok(format!("{took:.1?}"))
}

fn go_latency_check(context: &Context) -> Outcome {
    let relay = Relay::start(context, Kind::OurServer);
    let map = RelayMap { regions: [(region_id(), region(relay.address.port()))].into(), ..RelayMap::default() };
    let report = netcheck(context, Program::Netcheck, &map)?;
    let latency = report["netcheck"]["RegionLatency"][region_id().to_string()].as_u64();
    Ok(format!("{:.1?}", Duration::from_nanos(latency.context("the region has no latency")?)))
}

/// Idle connections of each kind stand, and their relays say so every minute. The long form waits past the two minutes
/// after which a client takes a silent connection for dead.
fn keep_alives(context: &Context) -> Outcome {
    let runtime = runtime();
    let (each, limit) = if context.full() { (2, Duration::from_secs(150)) } else { (1, Duration::from_secs(75)) };
    // A keep-alive is a frame without content; in a WebSocket it has a header of two bytes.
    let mut ours = Vec::new();
    let mut relays = Vec::new();
    for kind in [Kind::Derper, Kind::GoServer] {
        let relay = Relay::start(context, kind);
        for (websocket, bytes) in [(false, 5), (true, 7)] {
            let front = runtime.block_on(Front::open(relay.address, false));
            let client = runtime.block_on(Client::connect(front.port, &secret(), websocket)).map_err(|e| anyhow!(e))?;
            ours.push((format!("our client on {}, WebSocket {websocket}", kind.name()), front, client, bytes));
        }
        relays.push(relay);
    }
    let relay = Relay::start(context, Kind::OurServer);
    let mut theirs = Vec::new();
    for go in [GoClient::Coder, GoClient::Upstream] {
        for websocket in [false, true] {
            theirs.push((
                format!("{}, WebSocket {websocket}", go.name()),
                go.connect(context, relay.address.port(), websocket, None).0,
            ));
        }
    }
    let before: Vec<u64> = ours.iter().map(|(_, front, ..)| front.down()).collect();
    let begin = Instant::now();
    for (name, client) in &mut theirs {
        for n in 0..each {
            let left = limit.saturating_sub(begin.elapsed());
            client
                .event_if_any("keepalive", left, |_| true)
                .with_context(|| format!("{name} on our server: {n} keep-alives in {limit:?}"))?;
        }
    }
    let count = |at: usize, front: &Front, bytes: u64| (front.down() - before[at]) / bytes;
    while ours.iter().enumerate().any(|(at, (_, front, _, bytes))| count(at, front, *bytes) < each) {
        if begin.elapsed() > limit {
            let counts =
                ours.iter().enumerate().map(|(at, (name, front, _, bytes))| format!("{name}: {}", count(at, front, *bytes)));
            bail!("too few keep-alives in {limit:?}: {}", counts.collect::<Vec<_>>().join(", "));
        }
        std::thread::park_timeout(Duration::from_millis(200));
    }
    let waited = begin.elapsed();
    ensure!(!context.full() || waited > Duration::from_secs(120), "the second keep-alive came after {waited:?}");
    for (at, (name, front, client, bytes)) in ours.iter_mut().enumerate() {
        let down = front.down() - before[at];
        ensure!(down.is_multiple_of(*bytes), "{name}: {down} bytes are not keep-alives alone");
        let key = client.key;
        let back = runtime.block_on(async {
            client.send(&key, b"still here").await?;
            client.news().await
        });
        ensure!(back == Ok(News::Packet(key, b"still here".to_vec())), "{name} after {waited:?}: {back:?}");
        ensure!(client.counters().dials == 1, "{name} was dialled again");
    }
    for (name, client) in &mut theirs {
        client.settle();
        ensure!(client.take("broken").is_empty(), "{name} was disconnected");
    }
    Ok(format!("{} idle connections stood for {:.0} s", ours.len() + theirs.len(), waited.as_secs_f64()))
}
