//! Cells, their order and their outcome: one line each, whatever happens inside.

use crate::peers::{Context, Mode, Need};
use std::{
    any::Any,
    cell::RefCell,
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A cell's outcome: words for its line, or the reason of its failure. A panic is a failure too.
pub type Outcome = Result<String, anyhow::Error>;

type Run = Box<dyn FnOnce(&Context) -> Outcome + Send>;

/// One line of the table.
pub struct Cell {
    row: &'static str,
    name: String,
    limit: Duration,
    needs: Vec<Need>,
    run: Run,
}

impl Cell {
    /// A cell that may take two minutes; what it needs is built and started before its time begins.
    pub fn new(
        row: &'static str,
        name: impl Into<String>,
        needs: &[Need],
        run: impl FnOnce(&Context) -> Outcome + Send + 'static,
    ) -> Self {
        Self { row, name: name.into(), limit: Duration::from_secs(120), needs: needs.to_vec(), run: Box::new(run) }
    }

    /// The same cell with another limit.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn title(&self) -> String {
        format!("{}: {}", self.row, self.name)
    }
}

/// What the command line asks for, in the words of the standard test runner.
#[derive(Debug, Default)]
pub struct Arguments {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
}

impl Arguments {
    /// Reads the arguments; unknown flags are errors, those that change nothing here are taken.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let (flag, given) = match word.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag.to_owned(), Some(value.to_owned())),
                _ => (word, None),
            };
            let mut value = || given.clone().or_else(|| words.next()).ok_or_else(|| format!("{flag} needs a value"));
            match flag.as_str() {
                "--list" => arguments.list = true,
                "--exact" => arguments.exact = true,
                "--skip" => arguments.skips.push(value()?),
                "--test-threads" | "--color" | "--format" | "--logfile" | "-Z" => drop(value()?),
                "--nocapture" | "--no-capture" | "--show-output" | "--quiet" | "-q" | "--include-ignored" | "--test" => {}
                other if other.starts_with('-') => return Err(format!("the table knows no flag {other}")),
                filter => arguments.filters.push(filter.to_owned()),
            }
        }
        Ok(arguments)
    }

    fn chooses(&self, title: &str) -> bool {
        let holds = |word: &String| if self.exact { title == word } else { title.contains(word.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(holds)) && !self.skips.iter().any(holds)
    }
}

#[derive(Default)]
struct Sum {
    passed: usize,
    /// The lines of the cells that failed: the table is long, and its end is what is read first.
    failed: Vec<String>,
    skipped: usize,
}

impl Sum {
    fn fail(&mut self, line: String) {
        println!("✗ {line}");
        self.failed.push(line);
    }
}

/// Runs the chosen cells and prints the table.
pub fn run(arguments: &Arguments, cells: Vec<Cell>) -> ExitCode {
    let cells: Vec<Cell> = cells.into_iter().filter(|cell| arguments.chooses(&cell.title())).collect();
    if arguments.list {
        cells.iter().for_each(|cell| println!("{}: test", cell.title()));
        return ExitCode::SUCCESS;
    }
    let mut sum = Sum::default();
    match Mode::from_environment() {
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
        Ok(None) => {
            sum.skipped = cells.len();
            println!("skipped: {}", Need::why_not_by_default(cells.iter().flat_map(|cell| &cell.needs)));
        }
        Ok(Some(mode)) => {
            panic::set_hook(Box::new(|panic| {
                let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
                PANIC.with(|last| *last.borrow_mut() = place);
            }));
            crate::peers::end_with_signals();
            let context = Arc::new(Context::new(mode));
            let mut late = Vec::new();
            for cell in cells {
                one(&context, cell, &mut sum, &mut late);
            }
            if let Some(summary) = context.figures.summary() {
                println!("\n{summary}");
            }
            end(context, late);
        }
    }
    if !sum.failed.is_empty() {
        println!("\nfailed:");
        sum.failed.iter().for_each(|line| println!("✗ {line}"));
    }
    println!("\n{} passed; {} failed; {} skipped", sum.passed, sum.failed.len(), sum.skipped);
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

thread_local! {
    /// Where the last panic of the thread was.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn one(context: &Arc<Context>, cell: Cell, sum: &mut Sum, late: &mut Vec<JoinHandle<()>>) {
    let (title, limit) = (cell.title(), cell.limit);
    if let Err(why) = context.prepare(&cell.needs) {
        return sum.fail(format!("{title}: {}", in_one_line(&why)));
    }
    let begin = Instant::now();
    let (sender, receiver) = mpsc::channel();
    let body = {
        let context = Arc::clone(context);
        move || {
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| (cell.run)(&context)));
            let outcome = outcome.unwrap_or_else(|panic| Err(anyhow::anyhow!(reason(&*panic))));
            // Nobody waits any more when the limit has passed.
            let _ = sender.send(outcome);
        }
    };
    let thread = match thread::Builder::new().name(title.clone()).spawn(body) {
        Ok(thread) => thread,
        Err(error) => {
            return sum.fail(format!("{title}: cannot start a thread: {error}"));
        }
    };
    match receiver.recv_timeout(limit) {
        Ok(Ok(words)) => {
            sum.passed += 1;
            let words = if words.is_empty() { words } else { format!(" – {words}") };
            println!("✓ {title} ({:.1} s){words}", begin.elapsed().as_secs_f64());
        }
        Ok(Err(why)) => {
            let took = begin.elapsed().as_secs_f64();
            sum.fail(format!("{title}: {} ({took:.1} s)", in_one_line(&format!("{why:#}"))));
        }
        Err(_) => {
            sum.fail(format!("{title}: not done after {limit:?}"));
            return late.push(thread);
        }
    }
    // It has said its outcome; what is left is the end of its processes.
    let _ = thread.join();
}

/// Ends what cells that were too late have started, and what was shared.
fn end(context: Arc<Context>, late: Vec<JoinHandle<()>>) {
    drop(context);
    for process in crate::peers::own_children() {
        // Gone already is as good.
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    }
    // Without their processes they end or fail; a thread that hangs in itself goes with the program.
    crate::harness::until_within(Duration::from_secs(5), || late.iter().all(JoinHandle::is_finished));
}

/// One step of a cell: why it failed begins with its name, a panic's reason too.
pub fn step<T>(name: &str, run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    panic::catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(anyhow::anyhow!(reason(&*panic))))
        .map_err(|why| why.context(name.to_owned()))
}

fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let place = PANIC.with(RefCell::take);
    format!("{}{place}", text.unwrap_or("a panic without words"))
}

/// A reason may be the whole output of a process.
fn in_one_line(text: &str) -> String {
    const LONGEST: usize = 2_000;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{} …", &line[..cut]),
        None => line,
    }
}

/// Groups words as `3 × a, b`: for the words of a cell.
pub fn counted(words: impl IntoIterator<Item = String>) -> String {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_insert(0_usize) += 1;
    }
    counts.into_iter().map(|(word, n)| if n == 1 { word } else { format!("{n} × {word}") }).collect::<Vec<_>>().join(", ")
}
