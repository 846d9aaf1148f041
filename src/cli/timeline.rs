//! How long each stage of connecting took, for `-v`: one line a stage once the first byte is there.

use crate::{base::Instant, driver::clock};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// When which stage began and ended. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    began: Instant,
    stages: Arc<Mutex<Vec<Stage>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stage {
    name: &'static str,
    /// After the beginning.
    end: Duration,
    took: Duration,
}

impl Timeline {
    /// Begins now.
    pub(super) fn start() -> Self {
        Self { began: clock::now(), stages: Arc::default() }
    }

    /// A stage that began at `from` has ended.
    pub(super) fn ended(&self, name: &'static str, from: Instant) {
        let now = clock::now();
        self.add(Stage { name, end: now - self.began, took: now - from });
    }

    /// A stage that was measured elsewhere.
    pub(super) fn took(&self, name: &'static str, end: Instant, took: Duration) {
        self.add(Stage { name, end: end - self.began, took });
    }

    fn add(&self, stage: Stage) {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).push(stage);
    }

    /// Writes the lines, in the order in which the stages ended.
    pub(super) fn log(&self) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stages.sort_by_key(|stage| stage.end);
        for Stage { name, end, took } in stages {
            let ms = |time: Duration| format!("{:.1}ms", time.as_secs_f64() * 1000.0);
            tracing::debug!(stage = name, took = %ms(took), at = %ms(end), "timeline");
        }
    }
}
