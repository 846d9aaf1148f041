//! The statistics that the agent reports as often as the server asks for (agent.md §3.2).

use super::{
    calls::{AskError, Calls, ask},
    pty::KIND as TERMINAL,
    ssh::Counters,
    traffic::Reading,
};
use crate::wire::coord::agent::{Stats, UPDATE_STATS, UpdateStatsRequest, UpdateStatsResponse};
use std::{collections::BTreeMap, convert::Infallible, time::Duration};
use tokio::time::sleep;

/// Where the server names no interval.
const INTERVAL: Duration = Duration::from_secs(300);
/// The least time between two reports, whatever the server says.
const LEAST: Duration = Duration::from_secs(1);
/// What stands for "not measured".
const NO_LATENCY: f64 = -0.001;

/// What one report is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) traffic: Reading,
    pub(crate) ssh: Counters,
}

/// Reports until a call fails. `read` gives the counters as they are now; reported are the differences to `last`, which is
/// kept across connections, so that nothing is reported twice or left out. `latency` measures the way to the peers.
pub(crate) async fn report<L: Future<Output = Option<Duration>>>(
    server: &impl Calls,
    last: &mut Sample,
    read: impl Fn() -> Sample,
    latency: impl Fn() -> L,
) -> Result<Infallible, AskError> {
    let mut interval = interval(ask(server, UPDATE_STATS, &UpdateStatsRequest { stats: None }).await?);
    loop {
        sleep(interval).await;
        let latency = latency().await;
        let now = read();
        let request = UpdateStatsRequest { stats: Some(stats(last, &now, latency)) };
        interval = self::interval(ask(server, UPDATE_STATS, &request).await?);
        *last = now;
    }
}

fn interval(answer: UpdateStatsResponse) -> Duration {
    let asked = answer.report_interval.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero());
    asked.unwrap_or(INTERVAL).max(LEAST)
}

fn stats(last: &Sample, now: &Sample, latency: Option<Duration>) -> Stats {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let of_kind = |kind: &str| signed(now.ssh.sessions.get(kind).copied().unwrap_or_default());
    let open = signed(now.traffic.open);
    // Every other kind, unknown editors too, counts as plain SSH in the field that old servers read.
    let others = of_kind("vscode") + of_kind("jetbrains") + of_kind(TERMINAL);
    Stats {
        connections_by_proto: if open > 0 { BTreeMap::from([("TCP".to_owned(), open)]) } else { BTreeMap::new() },
        connection_count: open,
        connection_median_latency_ms: latency.map_or(NO_LATENCY, |latency| latency.as_secs_f64() * 1e3),
        rx_bytes: signed(now.traffic.received.saturating_sub(last.traffic.received)),
        tx_bytes: signed(now.traffic.sent.saturating_sub(last.traffic.sent)),
        session_count_vscode: of_kind("vscode"),
        session_count_jetbrains: of_kind("jetbrains"),
        session_count_reconnecting_pty: of_kind(TERMINAL),
        session_count_ssh: signed(now.ssh.sessions.values().sum()) - others,
        session_counts: now.ssh.sessions.iter().map(|(kind, n)| (kind.clone(), signed(*n))).collect(),
        ..Stats::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::calls::fake::Fake, *};
    use crate::proto::coord::CallError;
    use prost::Message as _;
    use std::{
        future::ready,
        sync::atomic::{AtomicU64, Ordering::Relaxed},
    };

    fn sample(received: u64, sessions: &[(&str, u64)]) -> Sample {
        let sessions = sessions.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect();
        Sample { traffic: Reading { open: 2, received, sent: 1 }, ssh: Counters { sessions, ..Counters::default() } }
    }

    fn every(seconds: i64) -> Result<Vec<u8>, CallError> {
        let report_interval = Some(prost_types::Duration { seconds, nanos: 0 });
        Ok(UpdateStatsResponse { report_interval }.encode_to_vec())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_call_only_asks_and_the_others_report_differences_at_the_servers_pace() {
        let received = AtomicU64::new(0);
        let server = Fake::new(|_, _: &[u8]| every(30));
        let start = tokio::time::Instant::now();
        let mut last = Sample::default();
        let read = || sample(received.fetch_add(100, Relaxed) + 100, &[("ssh", 2), ("vscode", 1), ("cursor", 4)]);
        let reporting = report(&server, &mut last, read, || ready(Some(Duration::from_micros(1500))));
        let _ = tokio::time::timeout(Duration::from_secs(65), reporting).await;
        assert_eq!(start.elapsed(), Duration::from_secs(65));
        let asked = server.asked::<UpdateStatsRequest>(UPDATE_STATS);
        assert_eq!(asked.len(), 3);
        assert_eq!(asked[0].stats, None);
        for report in &asked[1..] {
            let stats = report.stats.as_ref().unwrap();
            assert_eq!((stats.rx_bytes, stats.connection_count, stats.connections_by_proto["TCP"]), (100, 2, 2));
            assert_eq!((stats.session_count_vscode, stats.session_count_ssh, stats.session_counts["cursor"]), (1, 6, 4));
        }
        assert!(asked[1..].iter().all(|r| r.stats.as_ref().unwrap().connection_median_latency_ms.to_bits() == 1.5_f64.to_bits()));
        assert_eq!(last.traffic.received, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_that_failed_is_part_of_the_next_one() {
        let mut last = Sample::default();
        let failing = Fake::new(|_, body: &[u8]| {
            let asks = UpdateStatsRequest::decode(body).unwrap().stats.is_none();
            if asks { every(30) } else { Err(CallError::Closed) }
        });
        report(&failing, &mut last, || sample(70, &[]), || ready(None)).await.unwrap_err();
        let working = Fake::new(|_, _: &[u8]| every(30));
        let reporting = report(&working, &mut last, || sample(100, &[]), || ready(None));
        let _ = tokio::time::timeout(Duration::from_secs(31), reporting).await;
        let asked = working.asked::<UpdateStatsRequest>(UPDATE_STATS);
        let stats = asked[1].stats.as_ref().unwrap();
        assert!(stats.rx_bytes == 100 && stats.connection_median_latency_ms < 0.0, "{stats:?}");
    }

    #[test]
    fn a_server_without_a_usable_interval_gets_ours() {
        for report_interval in
            [None, Some(prost_types::Duration::default()), Some(prost_types::Duration { seconds: -1, nanos: 0 })]
        {
            assert_eq!(interval(UpdateStatsResponse { report_interval }), INTERVAL);
        }
        let tiny = Some(prost_types::Duration { seconds: 0, nanos: 1 });
        assert_eq!(interval(UpdateStatsResponse { report_interval: tiny }), LEAST);
    }
}
