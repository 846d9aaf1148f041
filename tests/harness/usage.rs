//! What a process costs: its memory, its processor time and how often it gave the processor up.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// What a process has used, its threads added up.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Voluntary context switches: the others are the doing of whoever shares the machine.
    pub switches: u64,
    /// Time on a processor.
    pub busy: Duration,
}

impl Usage {
    /// Of the process with this number; `None` when it is gone or the system does not say.
    pub fn of(pid: u32) -> Option<Self> {
        let mut usage = None;
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            // A thread may end while we look.
            let Some(Self { switches, busy }) = task.ok().and_then(|task| Self::of_task(&task.path())) else { continue };
            let all = usage.get_or_insert(Self { switches: 0, busy: Duration::ZERO });
            all.switches += switches;
            all.busy += busy;
        }
        usage
    }

    fn of_task(task: &Path) -> Option<Self> {
        let switches = field(&task.join("status"), "voluntary_ctxt_switches:")?;
        let scheduled = fs::read_to_string(task.join("schedstat")).ok()?;
        Some(Self { switches, busy: Duration::from_nanos(scheduled.split(' ').next()?.parse().ok()?) })
    }

    /// What came on top since `before`; a thread that has ended since counts for nothing.
    pub fn since(self, before: Self) -> Self {
        Self { switches: self.switches.saturating_sub(before.switches), busy: self.busy.saturating_sub(before.busy) }
    }
}

/// Bytes of memory that a process holds.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// All of it.
    pub resident: u64,
    /// Its share: what several processes have in common is divided among them.
    pub share: u64,
}

impl Memory {
    /// Of the process with this number; `None` when it is gone or the system does not say.
    pub fn of(pid: u32) -> Option<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let bytes = |file: &str, name: &str| Some(field(&folder.join(file), name)? * 1024);
        Some(Self { resident: bytes("status", "VmRSS:")?, share: bytes("smaps_rollup", "Pss:")? })
    }
}

/// The number of a line of a file of `/proc`.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}
