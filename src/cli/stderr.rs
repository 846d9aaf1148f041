//! Standard error of a process that carries other people's bytes: it never waits for whoever reads that.
//!
//! A reader that stops, such as a pager, a terminal after Ctrl-S or a log shipper that hangs, would else stop everything at
//! the next line, signals included. Lines wait in a queue for a thread that may block; what is too much is left out, and
//! counted where it would have stood. A command that ends soon writes directly, as any program does.

use std::{
    borrow::Cow,
    collections::VecDeque,
    io::{self, Write},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Bytes that may wait for the reader.
const MOST: usize = 1 << 20;
/// What a result on standard output, and the end of the process, wait for lines that come before it.
const PATIENCE: Duration = Duration::from_secs(1);

static QUEUE: Queue = Queue::new();

/// From now on nobody in this process waits for the reader of standard error.
pub(super) fn do_not_wait() {
    QUEUE.state().queued = true;
}

/// Writes text, with control characters made visible.
pub(super) fn write(text: &str) {
    // Not its lock, which the thread may hold for ever.
    QUEUE.write(visible(text).as_bytes(), &mut io::stderr());
}

/// Waits a moment until all that was written so far is out. A reader that let us wait in vain is not waited for again until
/// it has read on.
pub(super) fn flush() {
    QUEUE.flush(PATIENCE);
}

/// [`write`] as a sink of log lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Errors;

impl Write for Errors {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write(&String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Text of others cannot drive the reader's terminal.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    let is_harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    Cow::Owned(shown)
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
}

#[derive(Debug)]
struct State {
    queued: bool,
    has_thread: bool,
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    left_out: u64,
    /// A line is being written.
    busy: bool,
    /// The reader was waited for in vain.
    stuck: bool,
}

impl Queue {
    const fn new() -> Self {
        let state =
            State { queued: false, has_thread: false, lines: VecDeque::new(), bytes: 0, left_out: 0, busy: false, stuck: false };
        Self { state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&'static self, line: &[u8], directly: &mut impl Write) {
        let mut state = self.state();
        if state.queued && !state.has_thread {
            let thread = thread::Builder::new().name("stderr".to_owned());
            state.has_thread = thread.spawn(|| self.serve(&mut io::stderr())).is_ok();
        }
        if !state.has_thread {
            drop(state);
            // A closed standard error is nobody's problem.
            let _ = directly.write_all(line);
            return;
        }
        state.push(line);
        drop(state);
        self.work.notify_one();
    }

    /// Writes what comes, for ever.
    fn serve(&self, to: &mut impl Write) {
        let mut state = self.state();
        loop {
            let Some(line) = state.next() else {
                state.busy = false;
                state.stuck = false;
                self.done.notify_all();
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy = true;
            drop(state);
            let _ = to.write_all(&line);
            state = self.state();
        }
    }

    fn flush(&self, patience: Duration) {
        let state = self.state();
        if state.stuck {
            return;
        }
        let waits = |state: &mut State| state.busy || !state.lines.is_empty() || state.left_out > 0;
        let (mut state, waited) = self.done.wait_timeout_while(state, patience, waits).unwrap_or_else(PoisonError::into_inner);
        state.stuck = waited.timed_out();
    }
}

impl State {
    fn push(&mut self, line: &[u8]) {
        if self.bytes + line.len() > MOST {
            self.left_out += 1;
            return;
        }
        // They would have stood before this one.
        if let Some(told) = self.told() {
            self.bytes += told.len();
            self.lines.push_back(told);
        }
        self.bytes += line.len();
        self.lines.push_back(line.to_vec());
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let Some(line) = self.lines.pop_front() else { return self.told() };
        self.bytes -= line.len();
        Some(line)
    }

    /// What is said of lines that were left out.
    fn told(&mut self) -> Option<Vec<u8>> {
        let left_out = std::mem::take(&mut self.left_out);
        (left_out > 0).then(|| format!("[{left_out} lines were left out: nobody read them in time]\n").into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A reader that takes a line whenever it is told to.
    struct Slow {
        go: mpsc::Receiver<()>,
        lines: mpsc::Sender<String>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.go.recv();
            let _ = self.lines.send(String::from_utf8(line.to_vec()).unwrap());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn with_reader() -> (&'static Queue, mpsc::Sender<()>, mpsc::Receiver<String>) {
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        queue.state().has_thread = true;
        let (go, told) = mpsc::channel();
        let (lines, read) = mpsc::channel();
        thread::spawn(move || queue.serve(&mut Slow { go: told, lines }));
        (queue, go, read)
    }

    #[test]
    fn whoever_writes_never_waits_and_what_was_left_out_is_counted_where_it_would_have_stood() {
        let (queue, go, read) = with_reader();
        let line = [b'x'; 1 << 10];
        let fits = MOST / line.len();
        // One more may be on its way to the reader.
        for _ in 0..fits + 10 {
            queue.write(&line, &mut io::sink());
        }
        let left_out = queue.state().left_out;
        assert!((9..=10).contains(&left_out), "{left_out}");
        // Waits in vain once, and not again.
        queue.flush(Duration::from_millis(1));
        assert!(queue.state().stuck);
        queue.flush(Duration::from_secs(3600));
        drop(go);
        let whole = fits + 10 - usize::try_from(left_out).unwrap();
        for _ in 0..whole {
            assert_eq!(read.recv().unwrap().len(), line.len());
        }
        assert_eq!(read.recv().unwrap(), format!("[{left_out} lines were left out: nobody read them in time]\n"));
        queue.write(b"last\n", &mut io::sink());
        assert_eq!(read.recv().unwrap(), "last\n");
        queue.flush(Duration::from_secs(3600));
        assert!(!queue.state().stuck);
    }

    #[test]
    fn the_end_waits_for_the_last_words_of_a_reader_that_reads() {
        let (queue, go, read) = with_reader();
        for text in ["one\n", "two\n"] {
            queue.write(text.as_bytes(), &mut io::sink());
            go.send(()).unwrap();
        }
        queue.flush(Duration::from_secs(3600));
        assert_eq!(read.try_iter().collect::<Vec<_>>(), ["one\n", "two\n"]);
    }

    #[test]
    fn a_command_that_ends_soon_writes_directly() {
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        let mut out = Vec::new();
        queue.write(b"now\n", &mut out);
        assert_eq!(out, b"now\n");
    }

    #[test]
    fn text_of_others_cannot_drive_a_terminal() {
        assert_eq!(visible("a\tb\r\nä 🔑"), "a\tb\r\nä 🔑");
        assert_eq!(visible("\x1b]0;title\x07 \u{9b}1m"), "\\u{1b}]0;title\\u{7} \\u{9b}1m");
    }
}
