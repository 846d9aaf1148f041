//! What tunnels have to survive: restarts, new keys, receivers that pause, loss.

use super::{
    namespace::Namespace,
    node::LIMIT,
    pair::{Dialler, Pair, Way},
    streams::{Pace, accept, dial, echo, echo_server, receive, receive_noting, round_trip, send_while, within},
    transfers::{bulk, well},
};
use crate::{
    peers::{Context, Kind},
    table::Outcome,
};
use anyhow::{Context as _, ensure};
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tailnet::net::Counters;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

/// A stream to a peer that is back as another process fails within this time.
const FAILS_WITHIN: Duration = Duration::from_secs(5);
/// And a new one works within this time.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Whose process ends and comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restarted {
    Ours,
    Go,
}

/// Under a stream, one side ends without a word and comes back with its address and other keys.
pub fn restart(context: &Context, kind: Kind, dialler: Dialler, restarted: Restarted) -> Outcome {
    super::run(async {
        let mut words = Vec::new();
        for way in [Way::Relayed, Way::Direct] {
            let mut pair = Pair::start(context, kind, dialler).await?;
            if way == Way::Direct {
                pair.go_direct().await?;
            }
            let restart = match restarted {
                Restarted::Ours => ours_restarts(&mut pair, dialler, way).await,
                Restarted::Go => go_restarts(&mut pair, dialler, way).await,
            };
            let fails = restart.with_context(|| format!("{way:?}"))?;
            let begin = Instant::now();
            new_stream(&mut pair, dialler).await.with_context(|| format!("{way:?}, a new stream"))?;
            let works = begin.elapsed();
            ensure!(works < AT_ONCE, "{way:?}: the new stream took {works:?}");
            words.push(format!("{way:?}: fails after {} ms, new one {} ms", fails.as_millis(), works.as_millis()));
        }
        Ok(words.join(", "))
    })
}

/// A Go node sends all the time; what it sends meets a process that knows nothing of the stream.
async fn ours_restarts(pair: &mut Pair<'_>, dialler: Dialler, way: Way) -> Result<Duration, anyhow::Error> {
    let (event, tag) = match dialler {
        Dialler::Ours => {
            pair.go.listen(7, "source").await?;
            let mut stream = dial(&pair.ours.tailnet, pair.go.at(7)).await?;
            stream.write_all(b"1000000000000\n").await?;
            let mut some = vec![0; 1_000_000];
            within(LIMIT, "the first bytes", async { Ok(stream.read_exact(&mut some).await?) }).await?;
            // It goes with its node, and no reset leaves before.
            std::mem::forget(stream);
            ("served", json!(7))
        }
        Dialler::Go => {
            let mut listener = pair.ours.tailnet.listen_tcp(7).await?;
            let to = pair.ours.at(7).to_string();
            pair.go.ask(json!({ "op": "dial", "tag": "old", "mode": "flood", "to": to }));
            let mut stream = accept(&mut listener).await?;
            let mut some = vec![0; 1_000_000];
            within(LIMIT, "the first bytes", async { Ok(stream.read_exact(&mut some).await?) }).await?;
            std::mem::forget(stream);
            ("done", json!("old"))
        }
    };
    pair.restart_ours(way).await?;
    let begin = Instant::now();
    let name = if event == "served" { "port" } else { "tag" };
    let ended = pair.go.event_within(event, FAILS_WITHIN, |e| e[name] == tag).await.context("the old stream goes on")?;
    ensure!(ended["error"].is_string(), "the old stream ended well: {ended}");
    Ok(begin.elapsed())
}

/// Our node has nothing to send: it learns of the restart by the new keys alone.
async fn go_restarts(pair: &mut Pair<'_>, dialler: Dialler, way: Way) -> Result<Duration, anyhow::Error> {
    let mut stream = match dialler {
        Dialler::Ours => {
            pair.go.listen(7, "echo").await?;
            dial(&pair.ours.tailnet, pair.go.at(7)).await?
        }
        Dialler::Go => {
            let mut listener = pair.ours.tailnet.listen_tcp(8).await?;
            let to = pair.ours.at(8).to_string();
            pair.go.ask(json!({ "op": "dial", "tag": "old", "mode": "idle", "to": to }));
            pair.go.ask(json!({ "op": "release", "tag": "old" }));
            accept(&mut listener).await?
        }
    };
    let mut byte = [0];
    if dialler == Dialler::Ours {
        stream.write_all(b".").await?;
    }
    within(LIMIT, "a byte", async { Ok(stream.read_exact(&mut byte).await?) }).await?;
    pair.restart_go(way).await?;
    let begin = Instant::now();
    let read = timeout(FAILS_WITHIN, stream.read(&mut byte)).await.context("the old stream goes on")?;
    ensure!(read.is_err(), "the old stream ended well");
    Ok(begin.elapsed())
}

async fn new_stream(pair: &mut Pair<'_>, dialler: Dialler) -> Result<(), anyhow::Error> {
    const SIZE: u64 = 100_000;
    match dialler {
        Dialler::Ours => {
            pair.go.listen(17, "echo").await?;
            let stream = dial(&pair.ours.tailnet, pair.go.at(17)).await?;
            within(LIMIT, "the echo", round_trip(stream, SIZE)).await.map(drop)
        }
        Dialler::Go => {
            let _echo = echo_server(&pair.ours.tailnet, 17).await?;
            let to = pair.ours.at(17).to_string();
            pair.go.ask(json!({ "op": "dial", "tag": "new", "mode": "echo", "to": to, "size": SIZE }));
            let done = pair.go.event("done", |e| e["tag"] == "new").await?;
            well(&done)?;
            ensure!(done["received"] == done["sent"], "{done}");
            Ok(())
        }
    }
}

/// More than all windows and buffers on the way hold.
const STALLS: u64 = 20_000_000;
/// By then a sender has filled the windows.
const FILLED: Duration = Duration::from_secs(3);

/// In both directions at once a receiver reads nothing for 10 s, or 60 s in the long form.
pub fn zero_window(context: &Context, kind: Kind, dialler: Dialler) -> Outcome {
    let pause = Duration::from_secs(if context.full() { 60 } else { 10 });
    super::run(async {
        let mut pair = Pair::start(context, kind, dialler).await?;
        let mut words = vec![paused(&mut pair, dialler, pause, "relayed").await.context("relayed")?];
        pair.go_direct().await?;
        words.push(paused(&mut pair, dialler, pause, "direct").await.context("direct")?);
        Ok(format!("{} s each, {}", pause.as_secs(), words.join(", ")))
    })
}

async fn paused(pair: &mut Pair<'_>, dialler: Dialler, pause: Duration, way: &str) -> Outcome {
    let (to_them, to_us) = if way == "relayed" { (701, 702) } else { (801, 802) };
    let written = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&written);
    let left = move |sent| {
        count.store(sent, Ordering::Relaxed);
        STALLS - sent
    };
    match dialler {
        Dialler::Ours => {
            pair.go.listen(to_them, "hold").await?;
            pair.go.listen(to_us, "source").await?;
            let mut to_pause = dial(&pair.ours.tailnet, pair.go.at(to_them)).await?;
            let mut from = dial(&pair.ours.tailnet, pair.go.at(to_us)).await?;
            from.write_all(format!("{STALLS}\n").as_bytes()).await?;
            let sender = tokio::spawn(async move {
                let sent = send_while(&mut to_pause, Pace::Full, left).await?;
                let mut answer = String::new();
                to_pause.read_to_string(&mut answer).await?;
                Ok::<_, anyhow::Error>((sent, answer))
            });
            stand_still(pair, &written, pause).await?;
            pair.go.ask(json!({ "op": "release", "tag": to_them.to_string() }));
            let came = within(LIMIT, "our receiver", receive(&mut from)).await?;
            let served = pair.go.event("served", |e| e["port"] == to_us).await?;
            well(&served)?;
            ensure!(came.size == STALLS && served["sha256"] == came.sha256, "{came:?}, {served}");
            let (sent, answer) = within(LIMIT, "our sender", async { sender.await? }).await?;
            ensure!(answer == format!("{} {}\n", sent.size, sent.sha256), "{sent:?}, {answer}");
        }
        Dialler::Go => {
            let mut listener = pair.ours.tailnet.listen_tcp(to_us).await?;
            let to = pair.ours.at(to_us).to_string();
            pair.go.ask(json!({ "op": "dial", "tag": "sink", "mode": "sink", "to": to, "size": STALLS, "limit": 240_000 }));
            let mut from = accept(&mut listener).await?;
            let mut listener = pair.ours.tailnet.listen_tcp(to_them).await?;
            let (to, tag) = (pair.ours.at(to_them).to_string(), format!("late {way}"));
            pair.go.ask(json!({ "op": "dial", "tag": tag, "mode": "late", "to": to, "size": STALLS, "limit": 240_000 }));
            let mut to_pause = accept(&mut listener).await?;
            let sender = tokio::spawn(async move {
                let mut line = [0];
                while to_pause.read(&mut line).await? == 1 && line != *b"\n" {}
                send_while(&mut to_pause, Pace::Full, left).await
            });
            stand_still(pair, &written, pause).await?;
            pair.go.ask(json!({ "op": "release", "tag": tag }));
            let came = within(LIMIT, "our receiver", receive(&mut from)).await?;
            from.write_all(b"thanks\n").await?;
            from.shutdown().await?;
            let done = pair.go.event("done", |e| e["tag"] == "sink").await?;
            well(&done)?;
            ensure!(came.size == STALLS && done["sent"] == came.sha256 && done["answer"] == "thanks", "{came:?}, {done}");
            let sent = within(LIMIT, "our sender", async { sender.await? }).await?;
            let done = pair.go.event("done", |e| e["tag"] == tag).await?;
            well(&done)?;
            ensure!(done["received"] == sent.sha256, "{sent:?}, {done}");
        }
    }
    Ok(way.to_owned())
}

/// Lets the pause pass and fails unless both directions stand still in it.
async fn stand_still(pair: &Pair<'_>, written: &AtomicU64, pause: Duration) -> Result<(), anyhow::Error> {
    /// Probes, acknowledgements, keepalives; bulk is thousands.
    const FEW: u64 = 200;
    sleep(FILLED).await;
    let (before, written_before) = (pair.counters().await?.node, written.load(Ordering::Relaxed));
    sleep(pause - FILLED).await;
    let (now, written_now) = (pair.counters().await?.node, written.load(Ordering::Relaxed));
    ensure!(written_now == written_before && written_now < STALLS, "we wrote on: {written_before}, then {written_now}");
    let packets = |c: &tailnet::proto::node::Counters| c.data_received.udp + c.data_received.relay;
    let came = packets(&now) - packets(&before);
    ensure!(came < FEW, "the Go node sent {came} packets into a closed window");
    Ok(())
}

/// Bulk both ways while one datagram in a hundred is lost.
pub fn loss(context: &Context, kind: Kind, dialler: Dialler) -> Outcome {
    let size = if context.full() { 200_000_000 } else { 20_000_000 };
    let namespace = Namespace::enter()?;
    super::run(async {
        let mut pair = Pair::start(context, kind, dialler).await?;
        pair.go_direct().await?;
        namespace.lose()?;
        let words = bulk(&mut pair, dialler, Way::Direct, size, Duration::from_secs(500)).await?;
        let (came, lost) = namespace.counted()?;
        ensure!(lost * 200 > came && lost * 66 < came, "{lost} of {came} datagrams were lost");
        Ok(format!("{} MB each way, {words}, {lost} of {came} datagrams lost", size / 1_000_000))
    })
}

/// Keys last two minutes: under load for longer, with us and with the Go node as the one who asks for new ones.
pub fn rekey(context: &Context) -> Outcome {
    const LASTS: Duration = Duration::from_secs(130);
    // A stream that waits longer was noticed by somebody.
    const LONGEST_GAP: Duration = Duration::from_secs(1);
    let pace = if context.full() { Pace::Full } else { Pace::Steady(20_000) };
    super::run(async {
        let mut ours = Pair::start(context, Kind::OurServer, Dialler::Ours).await?;
        let mut theirs = Pair::start(context, Kind::OurServer, Dialler::Go).await?;
        ours.go_direct().await?;
        theirs.go_direct().await?;
        let (ours_before, theirs_before) = (ours.counters().await?, theirs.counters().await?);
        ensure!(ours_before.node.responses_sent == 0, "the Go node asked first: {ours_before:?}");
        ensure!(theirs_before.node.initiations_sent == 0, "we asked first: {theirs_before:?}");

        let mut gap = Duration::ZERO;
        ours.go.listen(7, "echo").await?;
        let (mut read, mut write) = tokio::io::split(dial(&ours.ours.tailnet, ours.go.at(7)).await?);
        let mut listener = theirs.ours.tailnet.listen_tcp(7).await?;
        let to = theirs.ours.at(7).to_string();
        theirs.go.ask(json!({ "op": "dial", "tag": "load", "mode": "flood", "to": to, "limit": 240_000 }));
        let echoed = tokio::spawn(echo(accept(&mut listener).await?, pace.clone()));
        let end = Instant::now() + LASTS;
        let left = |_| if Instant::now() < end { u64::MAX } else { 0 };
        let (sent, came) = tokio::try_join!(send_while(&mut write, pace, left), receive_noting(&mut read, &mut gap))?;
        theirs.go.ask(json!({ "op": "release", "tag": "load" }));
        ensure!(sent == came, "sent {sent:?}, came {came:?}");
        let done = theirs.go.event_within("done", 2 * LIMIT, |e| e["tag"] == "load").await?;
        well(&done)?;
        ensure!(echoed.await?? == done["size"].as_u64().context("no size")? && done["received"] == done["sent"], "{done}");

        let (ours, theirs) = (ours.counters().await?, theirs.counters().await?);
        let new = |now: &Counters, before: &Counters| now.node.sessions - before.node.sessions;
        ensure!(new(&ours, &ours_before) == 1, "as initiator: {ours:?}");
        ensure!(ours.node.initiations_sent == ours_before.node.initiations_sent + 1, "as initiator: {ours:?}");
        ensure!(new(&theirs, &theirs_before) == 1, "as responder: {theirs:?}");
        ensure!(theirs.node.responses_sent == theirs_before.node.responses_sent + 1, "as responder: {theirs:?}");
        ensure!(gap < LONGEST_GAP, "the stream stood still for {gap:?}");
        Ok(format!("{} MB through, longest gap {} ms", came.size / 1_000_000, gap.as_millis()))
    })
}
