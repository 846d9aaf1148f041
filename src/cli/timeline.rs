//! How long each stage of connecting took, for `-v`: one line a stage once the first byte is there, or it is clear that none comes.

use crate::{base::Instant, driver::clock};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// When which stage began and ended. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    began: Instant,
    /// `None` once they were told.
    stages: Arc<Mutex<Option<Vec<Stage>>>>,
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
        Self { began: clock::now(), stages: Arc::new(Mutex::new(Some(Vec::new()))) }
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
        if let Some(stages) = &mut *self.stages.lock().unwrap_or_else(PoisonError::into_inner) {
            stages.push(stage);
        }
    }

    /// Whether nobody was told yet.
    pub(super) fn is_untold(&self) -> bool {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Writes the lines once, in the order in which the stages ended.
    pub(super) fn log(&self) {
        let Some(mut stages) = self.stages.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        stages.sort_by_key(|stage| stage.end);
        for Stage { name, end, took } in stages {
            let ms = |time: Duration| format!("{:.1}ms", time.as_secs_f64() * 1000.0);
            tracing::debug!(stage = name, took = %ms(took), at = %ms(end), "timeline");
        }
    }
}
