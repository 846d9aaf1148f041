//! `coder ping`: disco pings, the way they take, and a summary (`cli.md` §2.8).

mod diagnostics;
mod flags;
mod summary;

use super::{
    args::{Global, Listing},
    connect::{Tunnel, Wishes},
    deployment::Deployment,
    go_time::rounded,
    interrupt::exit_code,
    logs, output,
    target::{HostNames, Target},
};
use crate::{
    base::Lane,
    driver::{clock, process::EndSignals},
    net::{PingError, PingKind, Pong},
};
use anyhow::{Context as _, bail};
pub(super) use flags::Ping;
use jiff::{
    Timestamp,
    tz::{Offset, TimeZone},
};
use std::{net::IpAddr, time::Duration};
use summary::{Answer, Summary};
use tracing::level_filters::LevelFilter;

/// The tunnel gets this at least to come up.
const FIRST_PING: Duration = Duration::from_secs(5);
/// Why a connection may not be direct, and what to do.
const HELP: &str = "https://coder.com/docs/admin/networking/troubleshooting#common-problems-with-direct-connections";

pub(super) fn run(global: &Global, args: &Ping) -> anyhow::Result<u8> {
    logs::start(logs::level(global.verbose, LevelFilter::ERROR));
    if args.output == Listing::Json && args.num == 0 {
        bail!("--output json is one document at the end: say with --num how many pings there are");
    }
    super::on_one_thread(async {
        let deployment = Deployment::open(global).await?;
        let target = Target::parse(&args.workspace, &HostNames::default());
        let wishes = Wishes { direct: !global.disable_direct_connections, ..Wishes::default() };
        let mut signals = EndSignals::open().context("cannot handle signals")?;
        let tunnel = tokio::select! {
            tunnel = Tunnel::open(&deployment, &target, wishes) => tunnel?,
            signal = signals.next() => return Ok(exit_code(signal)),
        };
        let mut summary = Summary::new(&args.workspace);
        let outcome = tokio::select! {
            done = pings(&tunnel, global, args, &mut summary) => done,
            _ = signals.next() => Ok(()),
        };
        tunnel.close().await;
        outcome?;
        print(&summary, args)?;
        Ok(0)
    })
}

fn print(summary: &Summary, args: &Ping) -> anyhow::Result<()> {
    if let Some(last) = summary.last_direct() {
        output::note("");
        output::note(&match last {
            Some(true) => "✔ You are connected directly (p2p), over a private network".to_owned(),
            Some(false) => "✔ You are connected directly (p2p)".to_owned(),
            None => format!("❗ You are connected via a DERP relay, not directly (p2p)\n   {HELP}"),
        });
    }
    match args.output {
        Listing::Json => output::line(&serde_json::to_string_pretty(&summary.document())?)?,
        Listing::Table if summary.total() > 0 => output::raw(&summary.text(&args.column))?,
        Listing::Table => {}
    }
    Ok(())
}

async fn pings(tunnel: &Tunnel, global: &Global, args: &Ping, summary: &mut Summary) -> anyhow::Result<()> {
    first(tunnel, args.timeout.max(FIRST_PING)).await?;
    diagnostics::show(tunnel, global).await;
    let name = &args.workspace;
    let mut was_direct = false;
    let started = clock::now();
    loop {
        announce(tunnel).await;
        let at = now();
        match tunnel.tailnet.ping(tunnel.address, PingKind::Disco, args.timeout).await {
            Ok(pong) => {
                let direct = is_direct(&pong);
                if direct && !was_direct && summary.total() > 0 {
                    let after = clock::now() - started;
                    say(args, &format!("p2p connection established in {}", rounded(after)))?;
                }
                was_direct |= direct;
                summary.add(at, Ok(answer(tunnel, &pong)));
                let (time, way) = (now_as(args), way(tunnel, &pong));
                say(args, &format!("{time}pong from {name} {way} in {}", rounded(pong.latency)))?;
            }
            Err(error @ (PingError::Timeout | PingError::UnknownPeer)) => {
                summary.add(at, Err(error.to_string()));
                say(args, &format!("ping to {name:?} timed out "))?;
            }
            Err(error) => bail!("ping to {name:?} failed: {error}"),
        }
        if args.num != 0 && summary.total() >= args.num {
            return Ok(());
        }
        tokio::time::sleep(args.wait).await;
    }
}

/// A line of a ping: standard output holds nothing but the document when that is wanted.
fn say(args: &Ping, line: &str) -> anyhow::Result<()> {
    match args.output {
        Listing::Table => output::line(line)?,
        Listing::Json => output::note(line),
    }
    Ok(())
}

/// With `-v`, the line by which support staff find a ping in the log.
async fn announce(tunnel: &Tunnel) {
    if tracing::enabled!(target: "tailnet::net.wgengine", tracing::Level::DEBUG)
        && let Ok(Some(peer)) = tunnel.tailnet.peer_info(tunnel.address).await
    {
        tracing::debug!(target: "tailnet::net.wgengine", "ping({}): sending disco ping to {} ...", tunnel.address, peer.key);
    }
}

fn answer(tunnel: &Tunnel, pong: &Pong) -> Answer {
    let latency = pong.latency;
    match pong.path.and_then(|path| path.lane) {
        Some(Lane::Udp { to, .. }) => Answer { latency, direct: true, private: is_private(&to.ip()), relay: String::new() },
        Some(Lane::Relay { region, .. }) => Answer { latency, direct: false, private: false, relay: tunnel.region_name(region) },
        None => Answer { latency, direct: false, private: false, relay: String::new() },
    }
}

const fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private(),
        // Unique local addresses (RFC 4193).
        IpAddr::V6(ip) => ip.segments()[0] & 0xfe00 == 0xfc00,
    }
}

fn now() -> Timestamp {
    let since = clock::wall().since_unix();
    let nanos = i32::try_from(since.subsec_nanos()).unwrap_or_default();
    Timestamp::new(i64::try_from(since.as_secs()).unwrap_or_default(), nanos).unwrap_or_default()
}

/// What a line begins with: nothing, unless the time is wanted.
fn now_as(args: &Ping) -> String {
    match (args.utc, args.time) {
        (true, _) => stamp(now(), TimeZone::UTC),
        (false, true) => stamp(now(), TimeZone::system()),
        (false, false) => String::new(),
    }
}

/// RFC 3339 to the second, in brackets.
fn stamp(at: Timestamp, zone: TimeZone) -> String {
    let at = at.to_zoned(zone);
    let offset = if at.offset() == Offset::UTC { "Z".to_owned() } else { at.strftime("%:z").to_string() };
    format!("[{}{offset}] ", at.strftime("%FT%T"))
}

/// The first ping waits for the coordinator, relay and handshake as well, and its time says nothing.
pub(super) async fn first(tunnel: &Tunnel, limit: Duration) -> anyhow::Result<()> {
    let reachable = tokio::select! {
        reachable = tunnel.tailnet.wait_reachable(tunnel.address, limit) => reachable,
        refused = tunnel.refused() => return Err(refused),
    };
    match reachable {
        Ok(_) => Ok(()),
        Err(PingError::UnknownPeer) => bail!("the coordinator did not announce the agent of {}: is it running?", tunnel.name),
        Err(_) => bail!("the agent of {} does not answer: it may have lost its network", tunnel.name),
    }
}

pub(super) fn is_direct(pong: &Pong) -> bool {
    pong.path.and_then(|p| p.lane).is_some_and(|lane| !lane.is_relay())
}

/// The way that a ping took, in the words that programs read.
pub(super) fn way(tunnel: &Tunnel, pong: &Pong) -> String {
    match pong.path.and_then(|p| p.lane) {
        Some(Lane::Udp { to, .. }) => format!("p2p via {to}"),
        Some(Lane::Relay { region, .. }) => format!("proxied via DERP({})", tunnel.region_name(region)),
        None => "proxied via DERP(unknown)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_the_time_as_rfc_3339_has_it() {
        let vector = include_str!("../../../tests/vectors/cli/ping_time_tz.txt");
        let at = "2026-11-22T23:16:18Z".parse().unwrap();
        assert_eq!(stamp(at, TimeZone::UTC), "[2026-11-22T23:16:18Z] ");
        let there = stamp(at, TimeZone::fixed(jiff::tz::offset(9)));
        assert!(vector.contains(&format!("\n{there}pong from ")), "{there}");
    }
}
