//! Connections that end at once or never begin, datagrams, pings.

use super::{
    node::LIMIT,
    pair::{Dialler, Pair, Way},
    streams::{accept, dial, within},
    transfers::well,
};
use crate::{harness::DeadPort, table::Outcome};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tailnet::net::{Broken, Datagram, DialError, PathState, PingKind, Stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

/// A reset is one packet; the limit is for busy machines.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Either end resets; the other one reads it as that and not as an end.
pub async fn reset(pair: &mut Pair<'_>, dialler: Dialler, way: Way) -> Outcome {
    let before = pair.counters().await?;
    let (theirs, ours) = if way == Way::Relayed { (501, 502) } else { (601, 602) };
    match dialler {
        Dialler::Ours => {
            pair.go.listen(theirs, "reset").await?;
            let mut stream = dial(&pair.ours.tailnet, pair.go.at(theirs)).await?;
            stream.write_all(&[1; 1_000]).await?;
            is_reset(&mut stream).await?;

            pair.go.listen(ours, "echo").await?;
            let mut stream = dial(&pair.ours.tailnet, pair.go.at(ours)).await?;
            stream.write_all(b"?").await?;
            let mut answer = [0];
            within(LIMIT, "the echo", async { Ok(stream.read_exact(&mut answer).await?) }).await?;
            stream.abort();
            let served = pair.go.event_within("served", AT_ONCE, |e| e["port"] == ours).await?;
            says(&served, "reset by peer")?;
        }
        Dialler::Go => {
            let mut listener = pair.ours.tailnet.listen_tcp(ours).await?;
            let to = pair.ours.at(ours).to_string();
            pair.go.ask(json!({ "op": "dial", "tag": "sink", "mode": "echo", "to": to, "size": 1_000_000 }));
            let mut stream = accept(&mut listener).await?;
            let mut first = [0];
            within(LIMIT, "a byte", async { Ok(stream.read_exact(&mut first).await?) }).await?;
            stream.abort();
            let done = pair.go.event_within("done", AT_ONCE, |e| e["tag"] == "sink").await?;
            says(&done, "reset by peer")?;

            let mut listener = pair.ours.tailnet.listen_tcp(theirs).await?;
            let to = pair.ours.at(theirs).to_string();
            pair.go.ask(json!({ "op": "dial", "tag": "abort", "mode": "abort", "to": to }));
            let mut stream = accept(&mut listener).await?;
            stream.write_all(&[1; 1_000]).await?;
            is_reset(&mut stream).await?;
            well(&pair.go.event("done", |e| e["tag"] == "abort").await?)?;
        }
    }
    pair.took(way, &before).await?;
    Ok(String::new())
}

async fn is_reset(stream: &mut Stream) -> Result<(), anyhow::Error> {
    let mut rest = Vec::new();
    let read = timeout(AT_ONCE, stream.read_to_end(&mut rest)).await.context("no reset comes")?;
    ensure!(read.is_err(), "an end came instead of a reset");
    ensure!(stream.broken() == Some(Broken::Reset), "{:?}", stream.broken());
    Ok(())
}

fn says(event: &Value, what: &str) -> Result<(), anyhow::Error> {
    ensure!(event["error"].as_str().is_some_and(|error| error.contains(what)), "the Go node does not say {what:?}: {event}");
    Ok(())
}

/// Nobody listens: the dialler is told so at once.
pub async fn refused(pair: &mut Pair<'_>, dialler: Dialler, way: Way) -> Outcome {
    let before = pair.counters().await?;
    let begin = Instant::now();
    match dialler {
        Dialler::Ours => {
            // A Go node hands what nobody takes to its host.
            let nobody = DeadPort::hold();
            let port = nobody.port();
            let failed = timeout(AT_ONCE, pair.ours.tailnet.dial_tcp(pair.go.at(port))).await.context("the dial hangs")?;
            let failed = failed.err().context("somebody took the connection")?;
            ensure!(failed == DialError::Refused(port), "{failed}");
        }
        Dialler::Go => {
            let to = pair.ours.at(9).to_string();
            let tag = format!("{way:?}");
            pair.go.ask(json!({ "op": "dial", "tag": tag, "mode": "sink", "to": to }));
            let done = pair.go.event_within("done", AT_ONCE, |e| e["tag"] == tag).await?;
            says(&done, "refused")?;
        }
    }
    let took = begin.elapsed();
    pair.took(way, &before).await?;
    Ok(format!("{way:?} {} ms", took.as_millis()))
}

/// Datagrams of all sizes and their echoes, one after the other. UDP may lose one: it is sent up to three times.
pub async fn udp(pair: &mut Pair<'_>, dialler: Dialler, way: Way) -> Outcome {
    const COUNT: usize = 100;
    const LONGEST: usize = 1_232;
    let before = pair.counters().await?;
    match dialler {
        Dialler::Ours => {
            pair.go.ask(json!({ "op": "udp_listen" }));
            pair.go.event("listening", |e| e["mode"] == "udp").await?;
            let mut socket = pair.ours.tailnet.bind_udp(None).await?;
            let to = pair.go.at(53_000);
            for i in 0..COUNT {
                let sent = crate::harness::noise(i * LONGEST / (COUNT - 1), i as u64);
                let mut tries = 0;
                loop {
                    tries += 1;
                    ensure!(tries <= 3, "no echo of a datagram with {} bytes", sent.len());
                    socket.send_to(&sent, to).await?;
                    let Ok(came) = timeout(AT_ONCE, socket.recv_from()).await else { continue };
                    let (came, from) = came?;
                    ensure!(from == to, "an echo from {from}");
                    // Late echoes of a datagram that was sent again come before.
                    if came == sent {
                        break;
                    }
                }
            }
        }
        Dialler::Go => {
            let socket = pair.ours.tailnet.bind_udp(Some(53)).await?;
            let echo = tokio::spawn(echo(socket));
            let to = pair.ours.at(53).to_string();
            pair.go.ask(json!({ "op": "udp", "tag": format!("{way:?}"), "to": to, "size": COUNT }));
            let done = pair.go.event("done", |e| e["tag"] == format!("{way:?}")).await?;
            echo.abort();
            let _ = echo.await;
            well(&done)?;
            ensure!(done["size"] == COUNT, "{done}");
        }
    }
    pair.took(way, &before).await?;
    Ok(String::new())
}

async fn echo(mut socket: Datagram) {
    while let Ok((data, from)) = socket.recv_from().await {
        if socket.send_to(&data, from).await.is_err() {
            return;
        }
    }
}

/// The kinds of ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ping {
    Icmp,
    Tsmp,
    Disco,
}

/// One asks the other ten times; all are answered, and a disco ping tells the way.
pub async fn ping(pair: &mut Pair<'_>, dialler: Dialler, way: Way, kind: Ping) -> Outcome {
    const COUNT: usize = 10;
    let before = pair.counters().await?;
    let mut times = Vec::new();
    for i in 0..COUNT {
        times.push(match dialler {
            Dialler::Ours => {
                let kind = match kind {
                    Ping::Icmp => PingKind::Icmp,
                    Ping::Tsmp => PingKind::Tsmp,
                    Ping::Disco => PingKind::Disco,
                };
                let pong = pair.ours.tailnet.ping(pair.go.address, kind, LIMIT).await?;
                let state = pong.path.context("no path")?.state;
                let expected = match way {
                    Way::Relayed => state == PathState::Relay,
                    // A peer that is silent for a tenth of a second, as on a busy machine, is doubted until it answers.
                    Way::Direct => matches!(state, PathState::Direct | PathState::Doubtful),
                };
                ensure!(expected, "the answer came {state:?}");
                pong.latency.as_secs_f64() * 1e3
            }
            Dialler::Go => {
                let mode = match kind {
                    Ping::Icmp => "ICMP",
                    Ping::Tsmp => "TSMP",
                    Ping::Disco => "disco",
                };
                let tag = format!("{way:?} {i}");
                pair.go.ask(json!({ "op": "ping", "tag": tag, "mode": mode, "ip": pair.ours.at(0).ip() }));
                let pong = pair.go.event("pong", |e| e["tag"] == tag).await?;
                well(&pong)?;
                if kind == Ping::Disco {
                    let relayed = pong["region"] == 7 && pong["endpoint"] == "";
                    let direct = pong["region"] == 0 && pong["endpoint"] != "";
                    ensure!(if way == Way::Relayed { relayed } else { direct }, "{pong}");
                }
                pong["ms"].as_f64().context("no time")?
            }
        });
    }
    if kind != Ping::Disco {
        pair.took(way, &before).await?;
    }
    times.sort_by(f64::total_cmp);
    Ok(format!("{way:?} median {:.1} ms", times[COUNT / 2]))
}
