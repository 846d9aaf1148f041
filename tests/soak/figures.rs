//! What the processes hold: memory, descriptors, threads, children, and what lies in the folder for temporary files.

use crate::{
    harness::{
        process::{LIMIT, children, descriptors, until_within},
        usage::Memory,
    },
    work::Lab,
};
use rustix::process::Pid;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const MEGABYTE: u64 = 1 << 20;

/// What one process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    memory: u64,
    descriptors: u64,
    threads: u64,
    children: u64,
}

impl Held {
    fn by(pid: Pid) -> Self {
        let number = pid.as_raw_nonzero();
        Self {
            memory: Memory::of(number.get().cast_unsigned()).expect("it runs").resident,
            descriptors: descriptors(pid) as u64,
            threads: fs::read_dir(format!("/proc/{number}/task")).map_or(0, Iterator::count) as u64,
            children: children(pid).len() as u64,
        }
    }

    /// All but the memory, which breathes.
    fn countable(self) -> [(&'static str, u64); 3] {
        [("descriptors", self.descriptors), ("threads", self.threads), ("children", self.children)]
    }

    /// Each figure as `choose` chooses it of two.
    fn chosen(self, other: Self, choose: fn(u64, u64) -> u64) -> Self {
        Self {
            memory: choose(self.memory, other.memory),
            descriptors: choose(self.descriptors, other.descriptors),
            threads: choose(self.threads, other.threads),
            children: choose(self.children, other.children),
        }
    }

    /// What is more than at the start: one descriptor, or of the memory a quarter and at least 10 MB.
    fn more_than(self, start: Self) -> Vec<String> {
        let mut more: Vec<String> = self
            .countable()
            .into_iter()
            .zip(start.countable())
            .filter(|((_, now), (_, then))| now > then)
            .map(|((what, now), (_, then))| format!("{what}: {now}, at the start {then}"))
            .collect();
        let allowed = start.memory + (start.memory / 4).max(10 * MEGABYTE);
        if self.memory > allowed {
            more.push(format!("memory: {}, at the start {}", megabytes(self.memory), megabytes(start.memory)));
        }
        more
    }
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes * 10 / MEGABYTE;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

struct Watched {
    name: &'static str,
    pid: Pid,
    start: Held,
    now: Held,
    max: Held,
}

/// The processes that stay, and their folder for temporary files.
pub(crate) struct Watch {
    processes: Vec<Watched>,
    temporary: PathBuf,
    /// Files in it at the start and now.
    files: (usize, usize),
    data: PathBuf,
    told: Option<Instant>,
}

impl Watch {
    pub(crate) fn of(lab: &Lab) -> Self {
        let watched = |(name, pid)| Watched { name, pid, start: Held::default(), now: Held::default(), max: Held::default() };
        Self {
            processes: lab.processes().into_iter().map(watched).collect(),
            temporary: lab.temporary(),
            files: (0, 0),
            data: lab.data(),
            told: None,
        }
    }

    fn sample(&mut self) {
        for process in &mut self.processes {
            process.now = Held::by(process.pid);
            process.max = process.max.chosen(process.now, u64::max);
        }
        self.files.1 = files(&self.temporary);
    }

    /// Looks, and says what there is once a minute.
    pub(crate) fn look(&mut self, started: Instant, rounds: u64) {
        self.sample();
        if self.told.is_some_and(|told| told.elapsed() < Duration::from_secs(60)) {
            return;
        }
        self.told = Some(Instant::now());
        let mut line = format!("{:4} s, {rounds} rounds", started.elapsed().as_secs());
        for Watched { name, now, .. } in &self.processes {
            let Held { memory, descriptors, threads, children } = now;
            let _ = write!(line, "; {name} {}, {descriptors} fd, {threads} thr, {children} ch", megabytes(*memory));
        }
        println!("{line}; {} temporary files; data {}", self.files.1, megabytes(size(&self.data)));
    }

    /// Looks, and keeps what is less than before: what comes and goes by itself, such as a report each minute, is no growth.
    fn sample_least(&mut self) {
        let before: Vec<Held> = self.processes.iter().map(|process| process.now).collect();
        let files = self.files.1;
        self.sample();
        for (process, before) in self.processes.iter_mut().zip(before) {
            process.now = process.now.chosen(before, u64::min);
        }
        self.files.1 = self.files.1.min(files);
    }

    /// Once nobody has worked for so long: the least that is held within a time.
    pub(crate) fn rest(&mut self, after: Duration, within: Duration) {
        until_within(after, || {
            self.sample();
            false
        });
        until_within(within, || {
            self.sample_least();
            false
        });
    }

    pub(crate) fn keep_as_start(&mut self) {
        for process in &mut self.processes {
            process.start = process.now;
        }
        self.files.0 = self.files.1;
    }

    /// The same, and longer while more is held than at the start; [`Watch::grown`] tells what stayed.
    pub(crate) fn rest_as_at_start(&mut self, after: Duration, within: Duration) {
        self.rest(after, within);
        until_within(LIMIT, || {
            self.sample_least();
            self.grown().is_empty()
        });
    }

    /// What is more than at the start.
    pub(crate) fn grown(&self) -> Vec<String> {
        let mut grown: Vec<String> = Vec::new();
        for Watched { name, start, now, .. } in &self.processes {
            grown.extend(now.more_than(*start).into_iter().map(|what| format!("{name}: {what}")));
        }
        if self.files.1 > self.files.0 {
            grown.push(format!("temporary files: {}, at the start {}", self.files.1, self.files.0));
        }
        grown
    }

    /// Start, end and most of everything.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("{:14} {:12} {:>9} {:>9} {:>9}\n", "", "", "start", "end", "max");
        for Watched { name, start, now, max, .. } in &self.processes {
            let [start_memory, now_memory, max_memory] = [start, now, max].map(|held| megabytes(held.memory));
            let _ = writeln!(table, "{name:14} {:12} {start_memory:>9} {now_memory:>9} {max_memory:>9}", "memory");
            let counts = start.countable().into_iter().zip(now.countable()).zip(max.countable());
            for (((what, start), (_, now)), (_, max)) in counts {
                let _ = writeln!(table, "{:14} {what:12} {start:>9} {now:>9} {max:>9}", "");
            }
        }
        let _ = writeln!(table, "{:14} {:12} {:>9} {:>9}", "temporary", "files", self.files.0, self.files.1);
        table
    }
}

/// Everything below a folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    paths.flat_map(|path| if path.is_dir() { [vec![path.clone()], entries(&path)].concat() } else { vec![path] }).collect()
}

fn files(folder: &Path) -> usize {
    entries(folder).len()
}

/// Bytes of the files below a folder.
fn size(folder: &Path) -> u64 {
    entries(folder).iter().filter_map(|path| path.symlink_metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

#[test]
fn one_descriptor_more_or_a_quarter_of_the_memory_is_growth() {
    let start = Held { memory: 100 * MEGABYTE, descriptors: 20, threads: 4, children: 1 };
    assert!(start.more_than(start).is_empty());
    let held = |change: fn(&mut Held)| {
        let mut held = start;
        change(&mut held);
        held.more_than(start)
    };
    assert_eq!(held(|h| h.descriptors += 1), ["descriptors: 21, at the start 20"]);
    assert_eq!(held(|h| h.threads += 1), ["threads: 5, at the start 4"]);
    assert_eq!(held(|h| h.children += 1), ["children: 2, at the start 1"]);
    assert!(held(|h| h.memory += 25 * MEGABYTE).is_empty());
    assert_eq!(held(|h| h.memory += 26 * MEGABYTE), ["memory: 126.0 MB, at the start 100.0 MB"]);
    // Of a small process a quarter is nothing.
    let small = Held { memory: 8 * MEGABYTE, ..start };
    assert!(Held { memory: 18 * MEGABYTE, ..small }.more_than(small).is_empty());
    assert!(!Held { memory: 19 * MEGABYTE, ..small }.more_than(small).is_empty());
}
