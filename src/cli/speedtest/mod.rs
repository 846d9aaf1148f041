//! `coder speedtest`: how fast data goes through the tunnel (`cli.md` §2.9).

mod capture;
mod figures;
mod flags;

use super::{
    args::{Global, Listing},
    connect::{SPEEDTEST_PORT, Tunnel, Wishes},
    deployment::Deployment,
    go_time,
    interrupt::exit_code,
    logs, output, ping,
    target::{HostNames, Target},
};
use crate::{
    base::Lane,
    driver::{clock, process::EndSignals},
    net::{
        PathInfo, PingKind, Pong, Stream,
        speedtest::{self, Opening, SpeedtestError},
    },
};
use anyhow::{Context as _, anyhow, bail};
use capture::CaptureFile;
use figures::{Figures, Meter};
use flags::Direction;
pub(super) use flags::Speedtest;
use std::{future::pending, io, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
    time::{sleep, timeout},
};
use tracing::level_filters::LevelFilter;

/// How long `--direct` waits for a direct path.
const DIRECT_LIMIT: Duration = Duration::from_secs(60);
/// Time between two pings while it waits, and until one counts as lost.
const PING: Duration = Duration::from_secs(1);
/// Time between two looks whether the agent still lives, until one counts as lost, and how many of these in a row mean
/// that it does not: no queue of a path is that long, and single packets do get lost.
const ALIVE: Duration = Duration::from_secs(4);
const LOST_ALIVE: u32 = 3;
/// What the tunnel gets to come up.
const FIRST_PING: Duration = Duration::from_secs(30);
/// A test may last so many times what was asked for, and this on top: a slow link takes a while for one block.
const STRETCH: u32 = 4;
const SLACK: Duration = Duration::from_secs(30);

pub(super) fn run(global: &Global, args: &Speedtest) -> anyhow::Result<u8> {
    logs::start(logs::level(global.verbose, LevelFilter::ERROR));
    if args.direct && global.disable_direct_connections {
        bail!("--direct (-d) waits for a direct path, which --disable-direct-connections forbids: leave one of them out");
    }
    super::on_one_thread(async {
        if global.disable_direct_connections {
            output::note("Direct connections disabled.");
        }
        let deployment = Deployment::open(global).await?;
        let target = Target::parse(&args.workspace, &HostNames::default());
        let mut signals = EndSignals::open().context("cannot handle signals")?;
        let (file, capture) = args.pcap_file.as_deref().map(CaptureFile::create).transpose()?.unzip();
        let wishes = Wishes { direct: !global.disable_direct_connections, capture, ..Wishes::default() };
        let tunnel = tokio::select! {
            tunnel = Tunnel::open(&deployment, &target, wishes) => tunnel?,
            signal = signals.next() => return Ok(exit_code(signal)),
        };
        let outcome = tokio::select! {
            figures = measure(&tunnel, args) => figures.map(Ok),
            signal = signals.next() => Ok(Err(signal)),
        };
        tunnel.close().await;
        if let Some(file) = file {
            file.finish().await?;
        }
        match outcome? {
            Ok(figures) => {
                print(&figures, args)?;
                Ok(0)
            }
            Err(signal) => Ok(exit_code(signal)),
        }
    })
}

fn print(figures: &Figures, args: &Speedtest) -> anyhow::Result<()> {
    match args.output {
        Listing::Table => output::line(&figures.table(&args.column))?,
        Listing::Json => output::line(&serde_json::to_string_pretty(figures)?)?,
    }
    Ok(())
}

async fn measure(tunnel: &Tunnel, args: &Speedtest) -> anyhow::Result<Figures> {
    if args.direct {
        wait_for_direct(tunnel).await?;
    }
    let name = &tunnel.name;
    let mut stream = tunnel.dial(SPEEDTEST_PORT).await?;
    let direction = match args.direction {
        Direction::Down => speedtest::Direction::Download,
        Direction::Up => speedtest::Direction::Upload,
    };
    let opening = Opening { time: args.time, direction };
    let early = speedtest::ask(&mut stream, &opening).await.map_err(|error| explain(tunnel, error))?;
    let path = tunnel.tailnet.watch_path(tunnel.address).await?;
    let first = path.borrow().and_then(|p| p.lane);
    let what = match args.direction {
        Direction::Down => "download from",
        Direction::Up => "upload to",
    };
    output::note(&format!("Testing the {what} {name} for {}, {} …", shown(args.time), way(tunnel, first)));
    let mut meter = Meter::new(clock::now());
    meter.add(clock::now(), early);
    let moved = async {
        match args.direction {
            Direction::Down => download(&mut stream, &mut meter, args.time).await,
            Direction::Up => upload(&mut stream, &mut meter, args.time).await,
        }
    };
    tokio::select! {
        moved = moved => moved.map_err(|why| anyhow!("the speed test with the agent of {name} broke off: {why}"))?,
        () = tell_changes(tunnel, path, first) => {}
        () = tell_latency(tunnel) => {}
        () = silence(tunnel) => bail!("the speed test with the agent of {name} broke off: the agent does not answer any more"),
    }
    meter.finish().with_context(|| format!("the agent of {name} ended the speed test without any data"))
}

/// Reads what the agent sends until it ends. A link that is too slow for one block of the sender ends at the limit, and
/// what came till then is a result as well.
async fn download(stream: &mut Stream, meter: &mut Meter, time: Duration) -> anyhow::Result<()> {
    let receiving = speedtest::receive(stream, |n| meter.add(clock::now(), n));
    match timeout(time * STRETCH + SLACK, receiving).await {
        Ok(received) => Ok(received?),
        // The data goes on and on, only slowly; without any it would have been given up before.
        Err(_) => Ok(()),
    }
}

/// Sends for the time that was asked for, then waits until the agent has everything: what lies in buffers when the time
/// is over is not yet uploaded, and counts in the time that it takes.
async fn upload(stream: &mut Stream, meter: &mut Meter, time: Duration) -> anyhow::Result<()> {
    // Mostly cut in the middle of a block; the agent leaves it out of its own figures.
    if let Ok(sent) = timeout(time, speedtest::send(stream, time, |n| meter.add(clock::now(), n))).await {
        sent?;
    }
    stream.shutdown().await?;
    let closed = async {
        while stream.read(&mut [0; 64]).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let limit = time * STRETCH + SLACK;
    timeout(limit, closed).await.map_err(|_| anyhow!("the agent did not take all of the data within {}", shown(limit)))??;
    meter.wait(clock::now());
    Ok(())
}

/// Pings until an answer comes by a direct path.
async fn wait_for_direct(tunnel: &Tunnel) -> anyhow::Result<()> {
    let name = &tunnel.name;
    if !tunnel.direct {
        bail!("this deployment allows relayed connections only: leave --direct (-d) out");
    }
    ping::first(tunnel, FIRST_PING).await?;
    let waiting = async {
        loop {
            match tunnel.tailnet.ping(tunnel.address, PingKind::Disco, PING).await {
                Ok(pong) => {
                    output::note(&via(tunnel, &pong));
                    if ping::is_direct(&pong) {
                        return;
                    }
                }
                Err(error) => output::note(&format!("{name} does not answer ({error}); waiting for a direct path …")),
            }
            sleep(PING).await;
        }
    };
    let seconds = DIRECT_LIMIT.as_secs();
    timeout(DIRECT_LIMIT, waiting).await.map_err(|_| {
        anyhow!("no direct path to the agent of {name} within {seconds} s: without --direct (-d) the relay is measured")
    })
}

/// Tells of every change between relayed and direct. Never ends.
async fn tell_changes(tunnel: &Tunnel, mut path: watch::Receiver<Option<PathInfo>>, first: Option<Lane>) {
    let start = clock::now();
    let mut last = first;
    while path.changed().await.is_ok() {
        let lane = path.borrow_and_update().and_then(|p| p.lane);
        if lane.is_some() && lane.map(|l| l.is_relay()) != last.map(|l| l.is_relay()) {
            let after = (clock::now() - start).as_secs_f64();
            output::note(&format!("{} after {after:.1} s", way(tunnel, lane)));
            last = lane;
        }
    }
    pending().await
}

/// Tells every second how long an answer takes while the data goes, and which way. Never ends.
async fn tell_latency(tunnel: &Tunnel) {
    loop {
        sleep(PING).await;
        if let Ok(pong) = tunnel.tailnet.ping(tunnel.address, PingKind::Disco, PING).await {
            output::note(&via(tunnel, &pong));
        }
    }
}

/// Time and way of an answer: `29ms via coder`, which is the relay's code, or `29ms via direct`.
fn via(tunnel: &Tunnel, pong: &Pong) -> String {
    let way = match pong.path.and_then(|path| path.lane) {
        Some(Lane::Udp { .. }) => "direct",
        Some(Lane::Relay { region, .. }) => tunnel.relays.regions.get(&region).map_or("an unknown relay", |r| &r.code),
        None => "an unknown path",
    };
    format!("{}ms via {way}", pong.latency.as_millis())
}

/// Returns when the agent has not answered for a while. A sender sees a dead peer late: its buffers take the data.
async fn silence(tunnel: &Tunnel) {
    let mut lost = 0;
    while lost < LOST_ALIVE {
        sleep(ALIVE).await;
        let answer = tunnel.tailnet.ping(tunnel.address, PingKind::Tsmp, ALIVE).await;
        lost = if answer.is_ok() { 0 } else { lost + 1 };
    }
}

fn way(tunnel: &Tunnel, lane: Option<Lane>) -> String {
    match lane {
        Some(Lane::Udp { to, .. }) => format!("direct via {to}"),
        Some(Lane::Relay { region, .. }) => format!("relayed via DERP({})", tunnel.region_name(region)),
        None => "on an unknown path".to_owned(),
    }
}

/// Whole seconds as such, anything else in full precision.
fn shown(time: Duration) -> String {
    if time.subsec_nanos() == 0 { format!("{}s", time.as_secs()) } else { go_time::go_text(time) }
}

fn explain(tunnel: &Tunnel, error: SpeedtestError) -> anyhow::Error {
    let name = &tunnel.name;
    match error {
        SpeedtestError::Refused(why) => {
            // It goes to a terminal.
            let why: String = why.chars().filter(|c| !c.is_control()).collect();
            anyhow!("the agent of {name} refuses the speed test: {why}")
        }
        SpeedtestError::Silent => anyhow!("the agent of {name} took the connection, but does not answer: it may be overloaded"),
        SpeedtestError::Closed => anyhow!("the agent of {name} does not serve speed tests: it closed the connection"),
        SpeedtestError::Reject(why) => anyhow!("the agent of {name} does not answer as a speed test does: {why}"),
        other => anyhow!("the speed test with the agent of {name} could not begin: {other}"),
    }
}
