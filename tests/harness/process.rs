//! Child processes with limits on every wait.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    os::fd::{AsFd, OwnedFd},
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::{
        Mutex,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// No step of a test takes this long on a busy machine; reaching it is a hang.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How long the pipes of a process may outlive it.
const OUTPUT_LIMIT: Duration = Duration::from_secs(5);

/// A running process whose lines can be waited for. It is killed when dropped.
pub struct Process {
    pub child: Child,
    stdin: Option<ChildStdin>,
    lines: Mutex<Receiver<(Instant, String)>>,
    stdout: Option<Reader>,
    /// All lines seen so far.
    pub seen: Vec<String>,
    name: String,
}

impl Process {
    /// Starts `command` and reads its standard output and error as lines.
    pub fn start(name: &str, mut command: Command) -> Self {
        let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
        let (sender, lines) = mpsc::channel();
        read_lines(child.stdout.take().unwrap(), sender.clone());
        read_lines(child.stderr.take().unwrap(), sender);
        let stdin = child.stdin.take();
        Self { child, stdin, lines: lines.into(), stdout: None, seen: Vec::new(), name: name.to_owned() }
    }

    /// Starts `command`; its standard output is kept as bytes for [`Process::finish`], lines are those of standard error.
    pub fn start_with_output(name: &str, mut command: Command) -> Self {
        let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
        let (sender, lines) = mpsc::channel();
        read_lines(child.stderr.take().unwrap(), sender);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().map(Reader::of));
        Self { child, stdin, lines: lines.into(), stdout, seen: Vec::new(), name: name.to_owned() }
    }

    /// Writes to standard input.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("standard input is open").write_all(bytes).unwrap();
    }

    /// Writes all of it beside the test and closes standard input then.
    pub fn feed(&mut self, bytes: Vec<u8>) {
        let mut stdin = self.stdin.take().expect("standard input is open");
        // A process that ended early is found by its status and output.
        thread::spawn(move || drop(stdin.write_all(&bytes)));
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits for a line that holds `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_within(text, LIMIT)
    }

    /// Waits for a line that holds `text`, at most `limit`.
    pub fn wait_within(&mut self, text: &str, limit: Duration) -> String {
        let end = Instant::now() + limit;
        loop {
            match self.line_before(end) {
                Ok((_, line)) if line.contains(text) => return line,
                Ok(_) => {}
                Err(why) => {
                    let why = if why == RecvTimeoutError::Timeout { "did not say it in time" } else { "ended" };
                    panic!("{} {why}, waiting for {text:?}; it said:\n{}", self.name, self.seen.join("\n"));
                }
            }
        }
    }

    /// The next line and when it came, if one comes within `limit`.
    pub fn next_line(&mut self, limit: Duration) -> Option<(Instant, String)> {
        self.line_before(Instant::now() + limit).ok()
    }

    fn line_before(&mut self, end: Instant) -> Result<(Instant, String), RecvTimeoutError> {
        let line = self.lines.get_mut().unwrap().recv_timeout(end.saturating_duration_since(Instant::now()))?;
        self.seen.push(line.1.clone());
        Ok(line)
    }

    /// All lines that have come by now.
    pub fn drain(&mut self) -> &[String] {
        self.seen.extend(self.lines.get_mut().unwrap().try_iter().map(|(_, line)| line));
        &self.seen
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        if let Some(status) = self.child.try_wait().unwrap() {
            return status;
        }
        if !gone_within(pidfd(self.pid()), limit) {
            let said = self.drain().join("\n");
            panic!("{} still runs after {limit:?}; it said:\n{said}", self.name);
        }
        self.child.wait().unwrap()
    }

    /// Closes standard input unless [`Process::feed`] did, waits for the end and gives status, output and the lines of
    /// standard error.
    pub fn finish(&mut self, limit: Duration) -> Finished {
        self.stdin = None;
        let status = self.wait(limit);
        let stdout = self.stdout.take().map(|reader| reader.all(&self.name)).unwrap_or_default();
        // The readers end with the pipes; a child of the process that kept one open would be a bug worth failing for.
        let end = Instant::now() + OUTPUT_LIMIT;
        loop {
            match self.line_before(end) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("{} ended, but somebody still holds its output", self.name),
            }
        }
        Finished { status, stdout, lines: self.seen.clone() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let said = self.drain().join("\n");
            println!("-- {} said:\n{said}", self.name);
        }
    }
}

/// What is left of a process.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub lines: Vec<String>,
}

impl Finished {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn said(&self) -> String {
        self.lines.join("\n")
    }
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"))
}

fn read_lines(stream: impl Read + Send + 'static, lines: mpsc::Sender<(Instant, String)>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if lines.send((Instant::now(), text(&line))).is_err() {
                return;
            }
        }
    });
}

/// Everything that a pipe gives, once it has ended.
struct Reader(Mutex<Receiver<Vec<u8>>>);

impl Reader {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            // Nobody may want it any more.
            let _ = sender.send(all);
        });
        Self(Mutex::new(receiver))
    }

    /// Takes it after the end of the process: a child that still holds the pipe is a bug worth failing for.
    fn all(self, name: &str) -> Vec<u8> {
        let all = self.0.into_inner().unwrap().recv_timeout(OUTPUT_LIMIT);
        all.unwrap_or_else(|_| panic!("{name} ended, but somebody still holds its output"))
    }
}

/// Looks again and again, with a pause for those who are looked at, until it holds.
pub fn until(why: &str, holds: impl FnMut() -> bool) {
    assert!(until_within(LIMIT, holds), "{why}");
}

/// As [`until`], with a limit of its own; says whether it came.
pub fn until_within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    const PAUSE: Duration = Duration::from_millis(150);
    let end = Instant::now() + limit;
    while !holds() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(PAUSE);
    }
    true
}

/// Runs a command to its end with input, within the limit.
pub fn run(command: Command, input: &[u8]) -> Output {
    run_within(command, input, LIMIT)
}

/// Runs a command to its end with input, at most `limit` long.
pub fn run_within(mut command: Command, input: &[u8], limit: Duration) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Ends with the pipe, whose other end only the process and its children hold.
    thread::spawn(move || drop(stdin.write_all(&input)));
    let (out, err) = (Reader::of(child.stdout.take().unwrap()), Reader::of(child.stderr.take().unwrap()));
    let name = format!("{command:?}");
    let in_time = gone_within(pidfd(Pid::from_child(&child)), limit);
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    if !in_time {
        panic!("{name} still ran after {limit:?}; it said:\n{}", text(&err.all(&name)));
    }
    Output { status, stdout: out.all(&name), stderr: err.all(&name) }
}

/// A handle of a process that stays true when its number is given to another.
pub fn pidfd(pid: Pid) -> OwnedFd {
    pidfd_open(pid, PidfdFlags::empty()).unwrap_or_else(|e| panic!("no process {pid:?}: {e}"))
}

/// Whether the process ends within the limit.
pub fn gone_within(process: impl AsFd, limit: Duration) -> bool {
    readable_within(process, limit)
}

/// Whether there is something to read, or the end, within the limit.
pub fn readable_within(fd: impl AsFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return ready > 0,
            // A signal handler of this process ran, such as a runtime's for children that ended.
            Err(Errno::INTR) => {}
            Err(error) => panic!("cannot wait: {error}"),
        }
    }
}

/// The children of a process.
pub fn children(pid: Pid) -> Vec<Pid> {
    let of = |pid: Pid| fs::read_to_string(format!("/proc/{0}/task/{0}/children", pid.as_raw_nonzero())).unwrap_or_default();
    of(pid).split_whitespace().filter_map(|p| Pid::from_raw(p.parse().ok()?)).collect()
}

/// How many descriptors a process has open.
pub fn descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).map_or(0, Iterator::count)
}

/// Every process whose environment holds `setting` and whose command line holds `word`.
pub fn find(setting: &str, word: &str) -> Vec<Pid> {
    let holds =
        |file: String, what: &str| fs::read(file).is_ok_and(|bytes| bytes.split(|b| *b == 0).any(|part| part == what.as_bytes()));
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| holds(format!("/proc/{pid}/environ"), setting) && holds(format!("/proc/{pid}/cmdline"), word))
        .filter_map(Pid::from_raw)
        .collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
