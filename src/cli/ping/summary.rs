//! What all pings gave together: the table, or the document.

use super::flags::Column;
use crate::cli::{go_time::go_text, output};
use jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;

const HEADS: [(Column, &str); 7] = [
    (Column::Workspace, "WORKSPACE"),
    (Column::Total, "TOTAL"),
    (Column::Successful, "SUCCESSFUL"),
    (Column::Min, "MIN"),
    (Column::Avg, "AVG"),
    (Column::Max, "MAX"),
    (Column::Variance, "VARIANCE"),
];

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub(super) latency: Duration,
    pub(super) direct: bool,
    /// Direct within a private network.
    pub(super) private: bool,
    /// The name of the relay that it came through.
    pub(super) relay: String,
}

/// The pings of one run.
#[derive(Debug)]
pub(super) struct Summary {
    workspace: String,
    pongs: Vec<(Timestamp, Result<Answer, String>)>,
}

#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    workspace: &'a str,
    pongs: Vec<PongView<'a>>,
    summary: SummaryView,
}

/// Keys without a value are left out.
#[derive(Debug, Serialize)]
struct PongView<'a> {
    sequence: usize,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct: Option<bool>,
    #[serde(skip_serializing_if = "str::is_empty")]
    derp_region: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Debug, Serialize)]
struct SummaryView {
    total: usize,
    successful: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variance_ms: Option<f64>,
}

impl Summary {
    pub(super) fn new(workspace: &str) -> Self {
        Self { workspace: workspace.to_owned(), pongs: Vec::new() }
    }

    pub(super) fn add(&mut self, at: Timestamp, answer: Result<Answer, String>) {
        self.pongs.push((at, answer));
    }

    /// Pings sent.
    pub(super) fn total(&self) -> u64 {
        self.pongs.len() as u64
    }

    /// How the last answer came: `Some(None)` through a relay, `Some(Some(_))` directly and whether within a private network.
    pub(super) fn last_direct(&self) -> Option<Option<bool>> {
        let last = self.answers().last()?;
        Some(last.direct.then_some(last.private))
    }

    fn answers(&self) -> impl DoubleEndedIterator<Item = &Answer> {
        self.pongs.iter().filter_map(|(_, answer)| answer.as_ref().ok())
    }

    fn mean(&self) -> Option<Duration> {
        let count = u32::try_from(self.answers().count()).ok().filter(|n| *n > 0)?;
        Some(self.answers().map(|a| a.latency).sum::<Duration>() / count)
    }

    /// In s² printed as a duration, as in Go. Needs two answers.
    fn variance(&self) -> Option<Duration> {
        let seconds: Vec<f64> = self.answers().map(|a| a.latency.as_secs_f64()).collect();
        if seconds.len() < 2 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "nobody sends 2^52 pings")]
        let count = seconds.len() as f64;
        let mean = seconds.iter().sum::<f64>() / count;
        let spread = seconds.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (count - 1.0);
        // Go cuts the fraction of a nanosecond off.
        Duration::try_from_secs_f64((spread * 1e9).trunc() / 1e9).ok()
    }

    /// The table at the end, below its rule.
    pub(super) fn text(&self, columns: &[Column]) -> String {
        let known = |time: Option<Duration>| time.map_or_else(|| "<nil>".to_owned(), go_text);
        let latencies = || self.answers().map(|a| a.latency);
        let cell = |column: Column| match column {
            Column::Workspace => self.workspace.clone(),
            Column::Total => self.total().to_string(),
            Column::Successful => latencies().count().to_string(),
            Column::Min => known(latencies().min()),
            Column::Avg => known(self.mean()),
            Column::Max => known(latencies().max()),
            Column::Variance => known(self.variance()),
        };
        let shown: Vec<_> = HEADS.iter().filter(|(column, _)| columns.contains(column)).collect();
        let heads: Vec<&str> = shown.iter().map(|(_, head)| *head).collect();
        let row = shown.iter().map(|(column, _)| cell(*column)).collect();
        let right: Vec<bool> = shown.iter().map(|(c, _)| matches!(c, Column::Total | Column::Successful)).collect();
        let table = output::table_with(&heads, &[row], &right);
        format!("{}\n{table}", output::rule(&table))
    }

    /// Everything as one document.
    pub(super) fn document(&self) -> Document<'_> {
        let pongs = self.pongs.iter().enumerate().map(|(at, (time, answer))| {
            let (answer, error) = match answer {
                Ok(answer) => (Some(answer), ""),
                Err(error) => (None, error.as_str()),
            };
            PongView {
                sequence: at + 1,
                time: time.to_string(),
                latency_ms: answer.map(|a| ms(a.latency)),
                direct: answer.map(|a| a.direct),
                derp_region: answer.map_or("", |a| &a.relay),
                error,
            }
        });
        let latencies = || self.answers().map(|a| a.latency);
        let summary = SummaryView {
            total: self.pongs.len(),
            successful: latencies().count(),
            min_ms: latencies().min().map(ms),
            avg_ms: self.mean().map(ms),
            max_ms: latencies().max().map(ms),
            variance_ms: self.variance().map(ms),
        };
        Document { workspace: &self.workspace, pongs: pongs.collect(), summary }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn summary(nanos: &[u64]) -> Summary {
        let mut summary = Summary::new("dev");
        for nanos in nanos {
            let latency = Duration::from_nanos(*nanos);
            summary.add(Timestamp::UNIX_EPOCH, Ok(Answer { latency, direct: true, private: false, relay: String::new() }));
        }
        summary
    }

    const ALL: [Column; 7] =
        [Column::Workspace, Column::Total, Column::Successful, Column::Min, Column::Avg, Column::Max, Column::Variance];

    #[test]
    fn the_summary_looks_as_the_go_one_does() {
        for (nanos, vector) in [
            (&[255_598, 272_326, 550_849][..], include_str!("../../../tests/vectors/cli/ping_n3.txt")),
            (&[368_880], include_str!("../../../tests/vectors/cli/ping_utc.txt")),
        ] {
            let want: Vec<&str> =
                vector.lines().skip_while(|l| !l.starts_with("---")).take_while(|l| !l.starts_with("%%")).collect();
            assert_eq!(summary(nanos).text(&ALL), want.join("\n"));
        }
        let some = summary(&[1_000_000]).text(&[Column::Max, Column::Workspace]);
        assert_eq!(some, "----------------\nWORKSPACE  MAX  \ndev        1ms  ");
    }

    #[test]
    fn the_document_leaves_out_what_is_not_known() {
        let mut summary = summary(&[12_500_000]);
        summary.add(Timestamp::UNIX_EPOCH, Err("no answer in time".to_owned()));
        let relayed = Answer { latency: Duration::from_millis(30), direct: false, private: false, relay: "Denver".into() };
        let document = serde_json::to_value(summary.document()).unwrap();
        assert_eq!(
            document,
            json!({
                "workspace": "dev",
                "pongs": [
                    { "sequence": 1, "time": "1970-01-01T00:00:00Z", "latency_ms": 12.5, "direct": true },
                    { "sequence": 2, "time": "1970-01-01T00:00:00Z", "error": "no answer in time" },
                ],
                "summary": { "total": 2, "successful": 1, "min_ms": 12.5, "avg_ms": 12.5, "max_ms": 12.5 },
            })
        );
        assert_eq!(summary.last_direct(), Some(Some(false)));
        summary.add(Timestamp::UNIX_EPOCH, Ok(relayed));
        let document = serde_json::to_value(summary.document()).unwrap();
        assert_eq!(document["pongs"][2]["derp_region"], "Denver");
        assert!(document["summary"]["variance_ms"].is_f64());
        assert_eq!(summary.last_direct(), Some(None));
    }
}
