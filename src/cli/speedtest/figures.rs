//! The figures of a speed test: measured, as a table and as JSON.

use super::{super::output, SpeedColumn};
use crate::base::Instant;
use serde::{Serialize, Serializer};
use std::time::Duration;

/// A row spans at least this.
const INTERVAL: Duration = Duration::from_secs(1);
/// A last row shorter than this is left out, as in Go.
const LEAST: Duration = Duration::from_millis(10);

/// Counts bytes by the second.
#[derive(Debug)]
pub(super) struct Meter {
    start: Instant,
    /// When something was counted last.
    at: Instant,
    total: u64,
    rows: Vec<Row>,
    /// Bytes since the last row.
    rest: u64,
}

/// A span of the test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Row {
    from: Duration,
    to: Duration,
    bytes: u64,
}

/// The whole test and its parts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figures {
    overall: Row,
    intervals: Vec<Row>,
}

impl Meter {
    pub(super) const fn new(start: Instant) -> Self {
        Self { start, at: start, total: 0, rows: Vec::new(), rest: 0 }
    }

    /// Bytes have come or gone.
    pub(super) fn add(&mut self, now: Instant, bytes: usize) {
        self.total += bytes as u64;
        self.rest += bytes as u64;
        self.wait(now);
        let (from, to) = (self.from(), now - self.start);
        if to - from >= INTERVAL {
            self.rows.push(Row { from, to, bytes: self.rest });
            self.rest = 0;
        }
    }

    /// Nothing more came or went until now, but the test has lasted till then.
    pub(super) fn wait(&mut self, now: Instant) {
        self.at = self.at.max(now);
    }

    /// The figures, if there was any data.
    pub(super) fn finish(mut self) -> Option<Figures> {
        let (from, to) = (self.from(), self.at - self.start);
        if self.total == 0 || to.is_zero() {
            return None;
        }
        match self.rows.last_mut() {
            // A wait for the other side belongs to what it waits for.
            Some(last) if self.rest == 0 => last.to = to,
            _ if to - from > LEAST => self.rows.push(Row { from, to, bytes: self.rest }),
            _ => {}
        }
        Some(Figures { overall: Row { from: Duration::ZERO, to, bytes: self.total }, intervals: self.rows })
    }

    /// Where the present row began.
    fn from(&self) -> Duration {
        self.rows.last().map_or(Duration::ZERO, |row| row.to)
    }
}

impl Row {
    #[expect(clippy::cast_precision_loss, reason = "2^53 bytes do not pass in a day")]
    fn megabits(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6
    }

    /// Of 10^6 bit in a second.
    fn throughput(&self) -> f64 {
        self.megabits() / (self.to - self.from).as_secs_f64()
    }

    fn cell(&self, column: SpeedColumn) -> String {
        match column {
            SpeedColumn::Interval => format!("{:.2}-{:.2} sec", self.from.as_secs_f64(), self.to.as_secs_f64()),
            SpeedColumn::Transfer => format!("{:.4} MBits", self.megabits()),
            SpeedColumn::Throughput => format!("{:.4} Mbits/sec", self.throughput()),
        }
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// A number that is whole without a fraction, as Go writes it.
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Number {
            Whole(u64),
            Any(f64),
        }
        #[derive(Serialize)]
        struct Shape {
            start_time_seconds: Number,
            end_time_seconds: Number,
            throughput_mbits: Number,
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, positive and small enough")]
        let number = |n: f64| if n.fract() == 0.0 && (0.0..1e15).contains(&n) { Number::Whole(n as u64) } else { Number::Any(n) };
        let shape = Shape {
            start_time_seconds: number(self.from.as_secs_f64()),
            end_time_seconds: number(self.to.as_secs_f64()),
            throughput_mbits: number(self.throughput()),
        };
        shape.serialize(serializer)
    }
}

impl Figures {
    /// The rows, a rule and the whole. Columns stand in their own order, whatever the order of `columns`.
    pub(super) fn table(&self, columns: &[SpeedColumn]) -> String {
        let mut columns = columns.to_vec();
        columns.sort_unstable();
        columns.dedup();
        let heads: Vec<&str> = columns
            .iter()
            .map(|column| match column {
                SpeedColumn::Interval => "INTERVAL",
                SpeedColumn::Transfer => "TRANSFER",
                SpeedColumn::Throughput => "THROUGHPUT",
            })
            .collect();
        let rows = self.intervals.iter().chain([&self.overall]);
        let rows: Vec<Vec<String>> = rows.map(|row| columns.iter().map(|c| row.cell(*c)).collect()).collect();
        let table = output::table(&heads, &rows);
        match table.rsplit_once('\n') {
            Some((above, overall)) if !self.intervals.is_empty() => format!("{above}\n{}\n{overall}", output::rule(&table)),
            _ => table,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn stdout(vector: &str) -> Vec<&str> {
        vector.lines().skip_while(|l| *l != "## stdout").skip(1).take_while(|l| *l != "## stderr").collect()
    }

    /// The figures that a table of the Go implementation shows, with times of two digits.
    fn row(from: u64, to: u64, throughput: f64) -> Row {
        let (from, to) = (Duration::from_millis(from * 10), Duration::from_millis(to * 10));
        let bytes = (throughput * 1e6 / 8.0 * (to - from).as_secs_f64()).round() as u64;
        Row { from, to, bytes }
    }

    const BOTH: [SpeedColumn; 2] = [SpeedColumn::Interval, SpeedColumn::Throughput];

    #[test]
    fn the_table_looks_as_the_go_one_does() {
        let figures = Figures {
            overall: row(0, 312, 214.7683),
            intervals: vec![row(0, 107, 203.1444), row(107, 210, 196.2836), row(210, 312, 245.4296)],
        };
        let vector = include_str!("../../../tests/vectors/cli/speedtest_t3.txt");
        assert_eq!(figures.table(&BOTH), stdout(vector).join("\n"));
        assert_eq!(figures.table(&[SpeedColumn::Throughput, SpeedColumn::Interval]), figures.table(&BOTH));

        let figures = Figures { overall: row(0, 120, 188.3167), intervals: vec![row(0, 100, 195.3291), row(100, 120, 154.9421)] };
        let vector = include_str!("../../../tests/vectors/cli/speedtest_column.txt");
        assert_eq!(figures.table(&[SpeedColumn::Throughput]), stdout(vector).join("\n"));
        assert_eq!(
            figures.table(&[SpeedColumn::Transfer]).lines().collect::<Vec<_>>(),
            ["TRANSFER        ", "195.3291 MBits  ", "30.9884 MBits   ", "----------------", "225.9800 MBits  "]
        );
        let short = Figures { overall: row(0, 1, 1.0), intervals: Vec::new() };
        assert_eq!(short.table(&BOTH), "INTERVAL       THROUGHPUT        \n0.00-0.01 sec  1.0000 Mbits/sec  ");
    }

    /// Everything but the numbers.
    fn shape(json: &str) -> String {
        let mut out = String::new();
        for c in json.chars() {
            match c {
                '0'..='9' | '.' if out.ends_with('#') => {}
                '0'..='9' => out.push('#'),
                _ => out.push(c),
            }
        }
        out
    }

    #[test]
    fn the_json_has_the_shape_of_the_go_one_to_the_byte() {
        let vector = stdout(include_str!("../../../tests/vectors/cli/speedtest_t3_json.txt")).join("\n");
        let go: Value = serde_json::from_str(&vector).unwrap();
        let of = |value: &Value| {
            let number = |name: &str| value[name].as_f64().unwrap();
            let (from, to) = (number("start_time_seconds"), number("end_time_seconds"));
            let bytes = (number("throughput_mbits") * 1e6 / 8.0 * (to - from)).round() as u64;
            Row { from: Duration::from_secs_f64(from), to: Duration::from_secs_f64(to), bytes }
        };
        let intervals = go["intervals"].as_array().unwrap().iter().map(of).collect();
        let figures = Figures { overall: of(&go["overall"]), intervals };
        let text = serde_json::to_string_pretty(&figures).unwrap();
        assert_eq!(shape(&text), shape(&vector));
        assert!(text.contains("\"start_time_seconds\": 0,"), "{text}");
        let ours: Value = serde_json::from_str(&text).unwrap();
        let throughput = ours["overall"]["throughput_mbits"].as_f64().unwrap();
        assert!((throughput - 200.696_848_112_991_03).abs() < 1e-3, "{throughput}");
    }

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(77) + Duration::from_millis(ms)
    }

    #[test]
    fn a_row_ends_with_the_first_bytes_after_a_second_and_the_rows_make_up_the_whole() {
        let mut meter = Meter::new(at(0));
        for (ms, bytes) in [(0, 5), (400, 1000), (1010, 500), (1900, 7), (2009, 1), (2010, 2), (2040, 3)] {
            meter.add(at(ms), bytes);
        }
        let figures = meter.finish().unwrap();
        let spans: Vec<_> = figures.intervals.iter().map(|r| (r.from.as_millis(), r.to.as_millis(), r.bytes)).collect();
        assert_eq!(spans, [(0, 1010, 1505), (1010, 2010, 10), (2010, 2040, 3)]);
        assert_eq!(figures.overall, Row { from: Duration::ZERO, to: Duration::from_millis(2040), bytes: 1518 });
    }

    #[test]
    fn a_last_row_of_ten_milliseconds_is_left_out_but_counts_in_the_whole() {
        let mut meter = Meter::new(at(0));
        meter.add(at(1000), 100);
        meter.add(at(1010), 100);
        let figures = meter.finish().unwrap();
        assert_eq!((figures.intervals.len(), figures.overall.bytes, figures.overall.to), (1, 200, Duration::from_millis(1010)));
    }

    #[test]
    fn the_wait_for_what_is_on_its_way_counts() {
        let mut meter = Meter::new(at(0));
        meter.add(at(1000), 1000);
        meter.wait(at(3000));
        let figures = meter.finish().unwrap();
        assert_eq!(figures.intervals, [Row { from: Duration::ZERO, to: Duration::from_secs(3), bytes: 1000 }]);
        assert_eq!(figures.overall, figures.intervals[0]);
        let mut short = Meter::new(at(0));
        short.add(at(0), 1000);
        short.wait(at(500));
        assert_eq!(short.finish().unwrap().intervals.len(), 1);
    }

    #[test]
    fn no_data_is_no_result() {
        let mut meter = Meter::new(at(0));
        meter.wait(at(5000));
        assert_eq!(meter.finish(), None);
        assert_eq!(Meter::new(at(0)).finish(), None);
    }
}
