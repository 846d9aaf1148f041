//! `coder ping`: disco pings, the way they take, and a summary (`cli.md` §2.8).

use super::{
    args::{Global, Ping},
    connect::{Tunnel, Wishes},
    deployment::Deployment,
    logs, output,
    target::{HostNames, Target},
};
use crate::{
    base::Lane,
    driver::{clock, process::EndSignals},
    net::{PingError, PingKind, Pong},
};
use anyhow::{Context as _, bail};
use jiff::{
    Timestamp,
    tz::{Offset, TimeZone},
};
use std::time::Duration;
use tracing::level_filters::LevelFilter;

const HEADS: [&str; 7] = ["WORKSPACE", "TOTAL", "SUCCESSFUL", "MIN", "AVG", "MAX", "VARIANCE"];

pub(super) fn run(global: &Global, args: &Ping) -> anyhow::Result<u8> {
    logs::start(logs::level(global.verbose, LevelFilter::ERROR));
    super::on_one_thread(async {
        let deployment = Deployment::open(global).await?;
        let target = Target::parse(&args.workspace, &HostNames::default());
        let wishes = Wishes { direct: !global.disable_direct_connections, ..Wishes::default() };
        let mut signals = EndSignals::open().context("cannot handle signals")?;
        let tunnel = tokio::select! {
            tunnel = Tunnel::open(&deployment, &target, wishes) => tunnel?,
            _ = signals.next() => return Ok(1),
        };
        let mut summary = Summary::default();
        let outcome = tokio::select! {
            done = pings(&tunnel, args, &mut summary) => done,
            _ = signals.next() => Ok(()),
        };
        tunnel.close().await;
        outcome?;
        if summary.sent > 0 {
            output::raw(&summary.text(&target.to_string()))?;
        }
        Ok(0)
    })
}

async fn pings(tunnel: &Tunnel, args: &Ping, summary: &mut Summary) -> anyhow::Result<()> {
    first(tunnel, args.timeout.max(Duration::from_secs(5))).await?;
    let mut was_direct = false;
    let started = clock::now();
    loop {
        summary.sent += 1;
        match tunnel.tailnet.ping(tunnel.address, PingKind::Disco, args.timeout).await {
            Ok(pong) => {
                let direct = is_direct(&pong);
                if direct && !was_direct && summary.sent > 1 {
                    let after = clock::now() - started;
                    output::line(&format!("p2p connection established in {}", rounded(after)))?;
                }
                was_direct |= direct;
                summary.add(pong.latency);
                let (time, way) = (now_as(args), way(tunnel, &pong));
                output::line(&format!("{time}pong from {} {way} in {}", tunnel.name, rounded(pong.latency)))?;
            }
            Err(PingError::Timeout | PingError::UnknownPeer) => {
                output::line(&format!("ping to {:?} timed out ", tunnel.name))?;
            }
            Err(error) => bail!("ping to {:?} failed: {error}", tunnel.name),
        }
        if args.num != 0 && summary.sent >= args.num {
            return Ok(());
        }
        tokio::time::sleep(args.wait).await;
    }
}

/// What a line begins with: nothing, unless the time is wanted.
fn now_as(args: &Ping) -> String {
    let zone = match (args.utc, args.time) {
        (true, _) => TimeZone::UTC,
        (false, true) => TimeZone::system(),
        (false, false) => return String::new(),
    };
    let seconds = i64::try_from(clock::wall().since_unix().as_secs()).unwrap_or_default();
    stamp(Timestamp::from_second(seconds).unwrap_or_default(), zone)
}

/// RFC 3339 to the second, in brackets.
fn stamp(at: Timestamp, zone: TimeZone) -> String {
    let at = at.to_zoned(zone);
    let offset = if at.offset() == Offset::UTC { "Z".to_owned() } else { at.strftime("%:z").to_string() };
    format!("[{}{offset}] ", at.strftime("%FT%T"))
}

/// The first ping waits for the coordinator, relay and handshake as well, and its time says nothing.
pub(super) async fn first(tunnel: &Tunnel, limit: Duration) -> anyhow::Result<()> {
    match tunnel.tailnet.wait_reachable(tunnel.address, limit).await {
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

/// Whole milliseconds, below one the microseconds.
pub(super) fn rounded(time: Duration) -> String {
    if time < Duration::from_millis(1) { format!("{}µs", time.as_micros()) } else { go_text(Duration::from_millis(to_ms(time))) }
}

fn to_ms(time: Duration) -> u64 {
    u64::try_from((time.as_micros() + 500) / 1000).unwrap_or(u64::MAX)
}

/// A duration in full precision as Go prints it: `1m2.5s`, `359.591µs`, `27ns`.
pub(super) fn go_text(time: Duration) -> String {
    let nanos = time.as_nanos();
    let fraction = |unit: u128, name: &str| {
        let (whole, rest) = (nanos / unit, nanos % unit);
        let width = unit.ilog10() as usize;
        let digits = format!("{rest:0width$}");
        let digits = digits.trim_end_matches('0');
        if rest == 0 { format!("{whole}{name}") } else { format!("{whole}.{digits}{name}") }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(1_000_000, "ms"),
        _ => {
            let minutes = time.as_secs() / 60;
            let seconds = go_seconds(time - Duration::from_secs(minutes * 60));
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, m) => format!("{m}m{seconds}"),
                (h, m) => format!("{h}h{m}m{seconds}"),
            }
        }
    }
}

fn go_seconds(time: Duration) -> String {
    let rest = format!("{:09}", time.subsec_nanos());
    match rest.trim_end_matches('0') {
        "" => format!("{}s", time.as_secs()),
        digits => format!("{}.{digits}s", time.as_secs()),
    }
}

/// What all pings gave together.
#[derive(Debug, Default)]
struct Summary {
    sent: u64,
    times: Vec<Duration>,
}

impl Summary {
    fn add(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// The table at the end. The variance is in s² printed as a duration, as in Go.
    fn text(&self, workspace: &str) -> String {
        let seconds: Vec<f64> = self.times.iter().map(Duration::as_secs_f64).collect();
        #[expect(clippy::cast_precision_loss, reason = "nobody sends 2^52 pings")]
        let count = seconds.len() as f64;
        let mean = seconds.iter().sum::<f64>() / count;
        let spread = seconds.iter().map(|s| (s - mean).powi(2)).sum::<f64>();
        let known = |time: Option<Duration>| time.map_or_else(|| "<nil>".to_owned(), go_text);
        let average = u32::try_from(self.times.len()).ok().filter(|n| *n > 0).map(|n| self.times.iter().sum::<Duration>() / n);
        // Go cuts the fraction of a nanosecond off.
        let cut = |seconds: f64| Duration::try_from_secs_f64((seconds * 1e9).trunc() / 1e9).ok();
        let row = vec![
            workspace.to_owned(),
            self.sent.to_string(),
            self.times.len().to_string(),
            known(self.times.iter().min().copied()),
            known(average),
            known(self.times.iter().max().copied()),
            if seconds.len() > 1 { known(cut(spread / (count - 1.0))) } else { "<nil>".to_owned() },
        ];
        let table = output::table_with(&HEADS, &[row], &[false, true, true, false, false, false, false]);
        format!("{}\n{table}", output::rule(&table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (nanos, text) in [
            (0, "0s"),
            (27, "27ns"),
            (359_591, "359.591µs"),
            (1_500_000, "1.5ms"),
            (62_500_000_000, "1m2.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(go_text(Duration::from_nanos(nanos)), text);
        }
        assert_eq!(rounded(Duration::from_micros(412)), "412µs");
        assert_eq!(rounded(Duration::from_micros(12_600)), "13ms");
    }

    #[test]
    fn a_line_begins_with_the_time_as_rfc_3339_has_it() {
        let vector = include_str!("../../tests/vectors/cli/ping_time_tz.txt");
        let at = "2026-11-22T23:16:18Z".parse().unwrap();
        assert_eq!(stamp(at, TimeZone::UTC), "[2026-11-22T23:16:18Z] ");
        let there = stamp(at, TimeZone::fixed(jiff::tz::offset(9)));
        assert!(vector.contains(&format!("\n{there}pong from ")), "{there}");
    }

    #[test]
    fn the_summary_looks_as_the_go_one_does() {
        let summary = Summary { sent: 3, times: [255_598, 272_326, 550_849].map(Duration::from_nanos).to_vec() };
        let vector = include_str!("../../tests/vectors/cli/ping_n3.txt");
        let want: Vec<&str> = vector.lines().skip_while(|l| !l.starts_with("---")).take_while(|l| !l.starts_with("%%")).collect();
        assert_eq!(summary.text("dev"), want.join("\n"));
    }
}
