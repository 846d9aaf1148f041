//! Streams that carry bytes: both halves closed on their own, bulk, many at once, a change of the way.

use super::{
    node::LIMIT,
    pair::{Dialler, Pair, Way},
    streams::{Pace, accept, dial, echo, echo_server, receive, round_trip, send, send_while, speed, within},
};
use crate::{
    peers::{Context, Kind},
    table::Outcome,
};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, sync::watch, task::JoinSet};

const MB: u64 = 1_000_000;
const PARALLEL: u16 = 200;

/// The Go node has ended a dialled stream without an error.
pub fn well(done: &Value) -> Result<(), anyhow::Error> {
    ensure!(done["error"].is_null(), "the Go node: {done}");
    Ok(())
}

/// Whoever dials ends its direction first and then reads; on another stream it reads the end first and then sends.
pub async fn half_close(pair: &mut Pair<'_>, dialler: Dialler, way: Way) -> Outcome {
    let before = pair.counters().await?;
    let (first, second) = if way == Way::Relayed { (101, 102) } else { (201, 202) };
    match dialler {
        Dialler::Ours => {
            pair.go.listen(first, "sink").await?;
            let mut stream = dial(&pair.ours.tailnet, pair.go.at(first)).await?;
            let sent = send(&mut stream, MB).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            ensure!(answer == format!("{} {}\n", sent.size, sent.sha256), "sent {sent:?}, the answer is {answer:?}");

            pair.go.listen_with(second, "turn", MB).await?;
            let mut stream = dial(&pair.ours.tailnet, pair.go.at(second)).await?;
            let came = receive(&mut stream).await?;
            ensure!(came.size == MB, "{came:?}");
            let sent = send(&mut stream, MB).await?;
            let served = pair.go.event("served", |e| e["port"] == second).await?;
            well(&served)?;
            ensure!(served["sha256"] == sent.sha256, "sent {sent:?}, came {served}");
        }
        Dialler::Go => {
            let mut listener = pair.ours.tailnet.listen_tcp(first).await?;
            let to = pair.ours.at(first).to_string();
            pair.go.ask(json!({ "op": "dial", "tag": "sink", "mode": "sink", "to": to, "size": MB }));
            let mut stream = accept(&mut listener).await?;
            let came = receive(&mut stream).await?;
            stream.write_all(format!("{} {}\n", came.size, came.sha256).as_bytes()).await?;
            stream.shutdown().await?;
            let done = pair.go.event("done", |e| e["tag"] == "sink").await?;
            well(&done)?;
            ensure!(came.size == MB && done["sent"] == came.sha256, "came {came:?}, sent {done}");
            ensure!(done["answer"] == format!("{} {}", came.size, came.sha256), "{done}");

            let mut listener = pair.ours.tailnet.listen_tcp(second).await?;
            let to = pair.ours.at(second).to_string();
            pair.go.ask(json!({ "op": "dial", "tag": "turn", "mode": "turn", "to": to, "size": MB }));
            let mut stream = accept(&mut listener).await?;
            let sent = send(&mut stream, MB).await?;
            let came = receive(&mut stream).await?;
            let done = pair.go.event("done", |e| e["tag"] == "turn").await?;
            well(&done)?;
            ensure!(done["received"] == sent.sha256 && done["sent"] == came.sha256, "sent {sent:?}, came {came:?}, {done}");
            ensure!(came.size == MB, "{came:?}");
        }
    }
    pair.took(way, &before).await?;
    Ok(String::new())
}

/// Many bytes in both directions at once.
pub async fn bulk(pair: &mut Pair<'_>, dialler: Dialler, way: Way, size: u64, limit: Duration) -> Outcome {
    let before = pair.counters().await?;
    let begin = Instant::now();
    match dialler {
        Dialler::Ours => {
            pair.go.listen(7, "echo").await?;
            let stream = dial(&pair.ours.tailnet, pair.go.at(7)).await?;
            within(limit, "the echo", round_trip(stream, size)).await?;
        }
        Dialler::Go => {
            let _echo = echo_server(&pair.ours.tailnet, 7).await?;
            let (to, limit_ms) = (pair.ours.at(7).to_string(), limit.as_millis() as u64);
            pair.go.ask(json!({ "op": "dial", "tag": "bulk", "mode": "echo", "to": to, "size": size, "limit": limit_ms }));
            let done = pair.go.event_within("done", limit, |e| e["tag"] == "bulk").await?;
            well(&done)?;
            ensure!(done["size"] == size && done["received"] == done["sent"], "{done}");
        }
    }
    let took = begin.elapsed();
    pair.took(way, &before).await?;
    Ok(speed(size, took))
}

/// Many streams at once, each with its own bytes.
pub async fn parallel(pair: &mut Pair<'_>, dialler: Dialler, way: Way) -> Outcome {
    const SIZE: u64 = 64_000;
    let before = pair.counters().await?;
    let begin = Instant::now();
    match dialler {
        Dialler::Ours => {
            let port = if way == Way::Relayed { 301 } else { 302 };
            pair.go.listen(port, "echo").await?;
            let to = pair.go.at(port);
            let mut streams = JoinSet::new();
            for _ in 0..PARALLEL {
                let tailnet = pair.ours.tailnet.clone();
                streams.spawn(async move { round_trip(dial(&tailnet, to).await?, SIZE).await });
            }
            let all = async {
                while let Some(stream) = streams.join_next().await {
                    stream??;
                }
                Ok(())
            };
            within(LIMIT, "the streams", all).await?;
        }
        Dialler::Go => {
            let port = 303;
            let _echo = echo_server(&pair.ours.tailnet, port).await?;
            let to = pair.ours.at(port).to_string();
            for i in 0..PARALLEL {
                pair.go.ask(json!({ "op": "dial", "tag": format!("{way:?} {i}"), "mode": "echo", "to": to, "size": SIZE }));
            }
            for i in 0..PARALLEL {
                let tag = format!("{way:?} {i}");
                let done = pair.go.event("done", |e| e["tag"] == tag).await?;
                well(&done)?;
                ensure!(done["size"] == SIZE && done["received"] == done["sent"], "{done}");
            }
        }
    }
    pair.took(way, &before).await?;
    Ok(format!("{way:?} {:.1} s", begin.elapsed().as_secs_f64()))
}

/// One stream runs through the relay, the direct way opens, the stream goes on there: no byte and no second is lost.
pub fn upgrade(context: &Context, kind: Kind, dialler: Dialler) -> Outcome {
    const SIZE: u64 = 64 * MB;
    super::run(async {
        let mut pair = Pair::start(context, kind, dialler).await?;
        let (run, may_run) = watch::channel(false);
        let before = pair.counters().await?;
        let words = match dialler {
            Dialler::Ours => {
                pair.go.listen(7, "echo").await?;
                let stream = dial(&pair.ours.tailnet, pair.go.at(7)).await?;
                let (mut read, mut write) = tokio::io::split(stream);
                let pace = Pace::SlowUntil(may_run);
                let sender = tokio::spawn(async move { send_while(&mut write, pace, |sent| SIZE - sent).await });
                let receiver = tokio::spawn(async move { receive(&mut read).await });
                let words = change(&mut pair, &before, &run).await?;
                let sent = within(LIMIT, "sending", async { sender.await? }).await?;
                let came = within(LIMIT, "receiving", async { receiver.await? }).await?;
                ensure!(sent == came && came.size == SIZE, "sent {sent:?}, came {came:?}");
                words
            }
            Dialler::Go => {
                let mut listener = pair.ours.tailnet.listen_tcp(7).await?;
                let to = pair.ours.at(7).to_string();
                pair.go.ask(json!({ "op": "dial", "tag": "up", "mode": "echo", "to": to, "size": SIZE }));
                let stream = accept(&mut listener).await?;
                let served = tokio::spawn(echo(stream, Pace::SlowUntil(may_run)));
                let words = change(&mut pair, &before, &run).await?;
                let done = pair.go.event("done", |e| e["tag"] == "up").await?;
                well(&done)?;
                ensure!(served.await?? == SIZE && done["received"] == done["sent"], "{done}");
                words
            }
        };
        let (now, before) = (pair.counters().await?.node, before.node);
        // Ours or the one that answers theirs.
        ensure!(now.syns_sent - before.syns_sent == 1, "another connection was made");
        ensure!(now.sessions == before.sessions, "another handshake was needed");
        Ok(words)
    })
}

/// While the stream runs: proves that it is relayed, opens the direct way, lets the stream run.
async fn change(pair: &mut Pair<'_>, before: &tailnet::net::Counters, run: &watch::Sender<bool>) -> Outcome {
    let flowing = async {
        loop {
            let now = pair.counters().await?;
            if now.node.data_received.relay > before.node.data_received.relay + 100 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(LIMIT, "the first bytes", flowing).await.context("by the relay")?;
    pair.took(Way::Relayed, before).await?;
    let took = pair.go_direct().await?;
    let direct = pair.counters().await?;
    run.send_replace(true);
    // A fifth of the rest of the stream.
    const ENOUGH: u64 = 10_000;
    let mut came = [0; 2];
    let flowing = async {
        while came.iter().sum::<u64>() < ENOUGH {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (now, before) = (pair.counters().await?.node.data_received, direct.node.data_received);
            came = [now.udp - before.udp, now.relay - before.relay];
        }
        Ok(())
    };
    let flowed = within(LIMIT, "the rest", flowing).await;
    flowed.with_context(|| format!("directly; packets that came by UDP and by relay: {came:?}"))?;
    pair.took(Way::Direct, &direct).await?;
    Ok(format!("direct after {:.1} s", took.as_secs_f64()))
}
