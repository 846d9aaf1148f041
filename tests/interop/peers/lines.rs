//! A Go program that is driven by lines of JSON.

use crate::harness::{LIMIT, Process};
use serde_json::Value;
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// The program; it ends when this is dropped.
pub struct Lines {
    process: Process,
    name: String,
    /// Events that nobody has asked for yet.
    waiting: Vec<Value>,
}

impl Lines {
    pub fn start(name: &str, command: Command) -> Self {
        Self { process: Process::start(name, command), name: name.to_owned(), waiting: Vec::new() }
    }

    /// Sends a request.
    pub fn ask(&mut self, request: &Value) {
        self.process.type_in(format!("{request}\n").as_bytes());
    }

    /// For relay clients: a pong tells that the relay has read all that was sent before.
    pub fn settle(&mut self) {
        self.ask(&serde_json::json!({ "op": "ping" }));
        self.event("pinged");
    }

    /// The next event of this name; others are kept for later.
    pub fn event(&mut self, name: &str) -> Value {
        self.event_within(name, LIMIT, |_| true)
    }

    /// The next event of this name for which it holds, at most `limit` from now.
    ///
    /// # Panics
    /// When none comes, the program ends, or it says that a request failed.
    pub fn event_within(&mut self, name: &str, limit: Duration, holds: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + limit;
        match self.event_before(name, end, holds) {
            Ok(event) => event,
            Err(why) => {
                let said = self.said();
                panic!("{}: {why}, waiting for the event {name:?}; it said: {said}", self.name);
            }
        }
    }

    /// As [`Lines::event_within`]; none is no failure.
    pub fn event_if_any(&mut self, name: &str, limit: Duration, holds: impl Fn(&Value) -> bool) -> Option<Value> {
        self.event_before(name, Instant::now() + limit, holds).ok()
    }

    fn event_before(&mut self, name: &str, end: Instant, holds: impl Fn(&Value) -> bool) -> Result<Value, String> {
        let wanted = |event: &Value| event["event"] == name && holds(event);
        if let Some(at) = self.waiting.iter().position(wanted) {
            return Ok(self.waiting.remove(at));
        }
        loop {
            let Some((_, line)) = self.process.next_line(end.saturating_duration_since(Instant::now())) else {
                return Err(if Instant::now() >= end { "it did not come in time" } else { "it ended" }.to_owned());
            };
            // Logs come between events.
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            if wanted(&event) {
                return Ok(event);
            }
            if event["event"] == "failed" {
                return Err(format!("a request failed: {event}"));
            }
            self.waiting.push(event);
        }
    }

    /// All events of this name that have come and nobody has asked for.
    pub fn take(&mut self, name: &str) -> Vec<Value> {
        while let Some((_, line)) = self.process.next_line(Duration::ZERO) {
            self.waiting.extend(serde_json::from_str::<Value>(&line));
        }
        let (taken, kept) = self.waiting.drain(..).partition(|event| event["event"] == name);
        self.waiting = kept;
        taken
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The last lines of the program, for the reason of a failure.
    fn said(&mut self) -> String {
        const LAST: usize = 8;
        let seen = self.process.drain();
        seen[seen.len().saturating_sub(LAST)..].join(" | ")
    }
}
