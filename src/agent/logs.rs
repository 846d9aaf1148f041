//! Output of scripts on its way to the server, line by line (agent.md §3.3).

use super::calls::{AskError, Calls, ask, timestamp};
use crate::{
    driver::{blocking, clock},
    proto::coord::CallError,
    wire::coord::agent::{BATCH_CREATE_LOGS, BatchCreateLogsRequest, BatchCreateLogsResponse, Log, LogLevel},
};
use bytes::BytesMut;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs::File,
    io::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::watch,
    time::sleep,
};
use uuid::Uuid;

/// Most bytes that wait for the server, and so the largest batch.
const ROOM: usize = 1 << 20;
/// What a line counts beside its text.
const OVERHEAD: usize = 21;
/// How long a line waits for others.
const FLUSH: Duration = Duration::from_secs(1);
/// A longer line is cut into several.
const LINE: usize = 64 << 10;

/// A file that keeps the output of a script.
pub(crate) type LogFile = Arc<Mutex<File>>;

/// The lines that the server has not taken yet. They outlive connections. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Logs(Arc<watch::Sender<State>>);

#[derive(Debug, Default)]
struct State {
    lines: BTreeMap<Uuid, Vec<Log>>,
    bytes: usize,
    /// The server takes no more for good.
    full: bool,
    /// Nothing waits for company any more.
    hurry: bool,
    /// Lines that found no room, for each source that is not told of them yet.
    dropped: BTreeMap<Uuid, u64>,
}

impl State {
    fn push(&mut self, source: Uuid, log: Log) {
        self.bytes += log.output.len() + OVERHEAD;
        self.lines.entry(source).or_default().push(log);
    }
}

impl Default for Logs {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }
}

impl Logs {
    /// Adds a line; it is dropped when the queue is full or the server wants no more.
    pub(crate) fn line(&self, source: Uuid, level: LogLevel, text: &[u8]) {
        // The server stores text, and no database takes a NUL in one.
        let output = String::from_utf8_lossy(text).replace('\0', "\u{fffd}");
        let bytes = output.len() + OVERHEAD;
        let log = Log { created_at: Some(timestamp(clock::wall())), output, level: level.into() };
        self.0.send_if_modified(|state| {
            if state.full {
                return false;
            }
            // Behind a gap nothing comes before the words about it.
            if state.bytes + bytes > ROOM || state.dropped.contains_key(&source) {
                if state.dropped.is_empty() {
                    tracing::warn!("scripts write faster than the server takes their logs: lines are dropped");
                }
                *state.dropped.entry(source).or_default() += 1;
                return false;
            }
            state.push(source, log);
            true
        });
    }

    /// Adds the lines of an output until its end, and copies all of it to `file`.
    pub(crate) async fn copy(&self, source: Uuid, level: LogLevel, mut from: impl AsyncRead + Unpin, file: Option<&LogFile>) {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(8 << 10);
            let before = buffer.len();
            // A pipe that fails has ended.
            let read = from.read_buf(&mut buffer).await.unwrap_or(0);
            if let (Some(file), Some(new)) = (file, buffer.get(before..)) {
                let (file, new) = (Arc::clone(file), new.to_vec());
                // A full disk must not stop the script, and one that hangs stops nobody else.
                let _ = blocking::run(move || file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&new)).await;
            }
            while let Some(end) = buffer.iter().take(LINE).position(|b| *b == b'\n').or((buffer.len() >= LINE).then_some(LINE)) {
                let mut line = buffer.split_to(end);
                if buffer.first() == Some(&b'\n') {
                    let _ = buffer.split_to(1);
                }
                if line.last() == Some(&b'\r') {
                    line.truncate(line.len() - 1);
                }
                self.line(source, level, &line);
            }
            if read == 0 {
                if !buffer.is_empty() {
                    self.line(source, level, &buffer);
                }
                return;
            }
        }
    }

    /// Sends what waits and what comes, until the connection fails.
    pub(crate) async fn send(&self, server: &impl Calls) -> Result<Infallible, AskError> {
        let mut state = self.0.subscribe();
        loop {
            // The sender is ours and lives as long as this call.
            let _ = state.wait_for(|s| s.bytes > 0).await;
            tokio::select! {
                () = sleep(FLUSH) => {}
                _ = state.wait_for(|s| s.hurry || s.bytes >= ROOM / 2) => {}
            }
            while let Some((source, logs)) = self.batch() {
                let (sent, log_source_id) = (logs.len(), source.as_bytes().to_vec());
                let answer = ask(server, BATCH_CREATE_LOGS, &BatchCreateLogsRequest { log_source_id, logs }).await;
                let full = match answer {
                    Ok(BatchCreateLogsResponse { log_limit_exceeded }) => log_limit_exceeded,
                    Err(AskError::Call { why: CallError::Rpc(error), .. }) => {
                        tracing::warn!(%error, "the server did not take lines of a script's log");
                        false
                    }
                    Err(error) => return Err(error),
                };
                self.sent(source, sent, full);
            }
        }
    }

    fn batch(&self) -> Option<(Uuid, Vec<Log>)> {
        self.0.borrow().lines.first_key_value().map(|(source, logs)| (*source, logs.clone()))
    }

    fn sent(&self, source: Uuid, count: usize, full: bool) {
        self.0.send_modify(|state| {
            if let Some(logs) = state.lines.get_mut(&source) {
                state.bytes -= logs.drain(..count).map(|log| log.output.len() + OVERHEAD).sum::<usize>();
                if logs.is_empty() {
                    state.lines.remove(&source);
                }
            }
            for (source, count) in std::mem::take(&mut state.dropped) {
                let what = if count == 1 { "1 line was" } else { &format!("{count} lines were") };
                let output = format!("{what} left out here: they came faster than the server took them");
                let created_at = Some(timestamp(clock::wall()));
                state.push(source, Log { created_at, output, level: LogLevel::Warn.into() });
            }
            if full {
                tracing::warn!("the server has the most log lines that it keeps for this agent: no more are sent");
                *state = State { full, ..State::default() };
            }
        });
    }

    /// Waits until the server has everything; nothing waits for company from now on.
    pub(crate) async fn flushed(&self) {
        self.0.send_modify(|state| state.hurry = true);
        let _ = self.0.subscribe().wait_for(|s| s.bytes == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::calls::fake::Fake, *};
    use prost::Message as _;
    use tokio::time::{Instant, timeout};

    const SOURCE: Uuid = Uuid::from_u128(7);

    fn texts(asked: &[BatchCreateLogsRequest]) -> Vec<Vec<&str>> {
        asked.iter().map(|batch| batch.logs.iter().map(|l| l.output.as_str()).collect()).collect()
    }

    fn taken(_: &'static str, _: &[u8]) -> Result<Vec<u8>, CallError> {
        Ok(Vec::new())
    }

    #[tokio::test]
    async fn an_output_becomes_lines_of_clean_text() {
        let logs = Logs::default();
        let long = "x".repeat(LINE + 3);
        let output = [b"one\r\ntwo\n\nth\0ree\xff\n".as_slice(), long.as_bytes(), b"\nlast"].concat();
        logs.copy(SOURCE, LogLevel::Info, output.as_slice(), None).await;
        let server = Fake::new(taken);
        tokio::select! { biased; () = logs.flushed() => {} _ = logs.send(&server) => panic!("no connection failed") }
        let asked = server.asked::<BatchCreateLogsRequest>(BATCH_CREATE_LOGS);
        let lines = ["one", "two", "", "th\u{fffd}ree\u{fffd}", &long[..LINE], "xxx", "last"];
        assert_eq!(texts(&asked), [lines]);
        assert_eq!(asked[0].log_source_id, SOURCE.as_bytes());
    }

    #[tokio::test(start_paused = true)]
    async fn lines_wait_a_second_for_company_and_survive_a_lost_connection() {
        let logs = Logs::default();
        let started = Instant::now();
        logs.line(SOURCE, LogLevel::Error, b"a");
        let lost = Fake::new(|_, _: &[u8]| Err(CallError::Closed));
        logs.send(&lost).await.unwrap_err();
        assert_eq!(started.elapsed(), FLUSH);
        logs.line(SOURCE, LogLevel::Info, b"b");
        logs.line(Uuid::from_u128(8), LogLevel::Info, b"other");
        let server = Fake::new(taken);
        let _ = timeout(Duration::from_secs(5), logs.send(&server)).await;
        let asked = server.asked::<BatchCreateLogsRequest>(BATCH_CREATE_LOGS);
        assert_eq!(texts(&asked), [vec!["a", "b"], vec!["other"]]);
        assert_eq!(asked[0].logs[0].level, i32::from(LogLevel::Error));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_server_is_sent_nothing_more_and_a_full_queue_drops() {
        let logs = Logs::default();
        for _ in 0..40 {
            logs.line(SOURCE, LogLevel::Info, &[b'y'; LINE]);
        }
        assert!(logs.0.borrow().bytes <= ROOM && logs.0.borrow().dropped[&SOURCE] > 0);
        let server = Fake::new(|_, _: &[u8]| Ok(BatchCreateLogsResponse { log_limit_exceeded: true }.encode_to_vec()));
        let _ = timeout(Duration::from_secs(5), logs.send(&server)).await;
        logs.line(SOURCE, LogLevel::Info, b"late");
        let _ = timeout(Duration::from_secs(5), logs.send(&server)).await;
        assert_eq!(server.asked::<BatchCreateLogsRequest>(BATCH_CREATE_LOGS).len(), 1);
        timeout(Duration::from_secs(1), logs.flushed()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_found_no_room_are_told_where_they_are_missing() {
        let (logs, other) = (Logs::default(), Uuid::from_u128(8));
        for _ in 0..20 {
            logs.line(SOURCE, LogLevel::Info, &[b'y'; LINE]);
        }
        // This one would fit, and is behind the gap all the same.
        logs.line(SOURCE, LogLevel::Info, b"short");
        logs.line(other, LogLevel::Info, b"fits");
        let kept = logs.0.borrow().lines[&SOURCE].len();
        let server = Fake::new(taken);
        let _ = timeout(Duration::from_secs(5), logs.send(&server)).await;
        logs.line(SOURCE, LogLevel::Info, b"again");
        let _ = timeout(Duration::from_secs(5), logs.send(&server)).await;
        let asked = server.asked::<BatchCreateLogsRequest>(BATCH_CREATE_LOGS);
        let (mine, others): (Vec<_>, Vec<_>) = asked.into_iter().partition(|batch| batch.log_source_id == SOURCE.as_bytes());
        let lines = texts(&mine).concat();
        let missing = format!("{} lines were left out here: they came faster than the server took them", 21 - kept);
        assert_eq!(lines[kept..], [missing.as_str(), "again"]);
        assert_eq!(texts(&others), [["fits"]]);
        assert_eq!(logs.0.borrow().bytes, 0);
    }
}
