//! One measure of one side.

use crate::{
    harness::{
        LIMIT, Process,
        process::{gone_within, pidfd},
        run_within, text,
        usage::Memory,
    },
    peers::Deployment,
};
use anyhow::{Context as _, bail, ensure};
use rustix::process::Pid;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read as _},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Bytes of one read or write of a transfer.
const CHUNK: usize = 64 << 10;

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Direct,
    Relayed,
}

/// Mbit/s as `coder speedtest` finds them.
pub fn speedtest(deployment: &Deployment, workspace: &str, way: Way, direction: &str, time: Duration) -> anyhow::Result<f64> {
    let time = format!("{}s", time.as_secs());
    let mut command =
        deployment.cli(deployment.side, &["speedtest", workspace, "-t", &time, "--output", "json", "--direction", direction]);
    match way {
        Way::Direct => command.arg("--direct"),
        Way::Relayed => command.env("CODER_DISABLE_DIRECT_CONNECTIONS", "true"),
    };
    let out = run_within(command, b"", 2 * LIMIT);
    ensure!(out.status.success(), "{}: {}", out.status, text(&out.stderr));
    let found: Value = serde_json::from_slice(&out.stdout).with_context(|| text(&out.stdout))?;
    found["overall"]["throughput_mbits"].as_f64().with_context(|| format!("no speed in {found}"))
}

/// Which way a file goes through OpenSSH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    Down,
    Up,
}

impl Transfer {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
        }
    }
}

/// Mbit/s of so many bytes through OpenSSH, from the first byte to the last: the start has a measure of its own.
pub fn transfer(deployment: &Deployment, workspace: &str, direction: Transfer, bytes: u64) -> anyhow::Result<f64> {
    let remote = match direction {
        Transfer::Down => format!("echo ready; head -c {bytes} /dev/zero"),
        Transfer::Up => "echo ready; wc -c".to_owned(),
    };
    let mut ssh = Guard::start(deployment.ssh(deployment.side, &[], &[], workspace, &remote))?;
    let stdin = ssh.0.stdin.take().context("no input")?;
    let mut stdout = BufReader::with_capacity(CHUNK, ssh.0.stdout.take().context("no output")?);
    let mut stderr = ssh.0.stderr.take().context("no errors")?;
    let said = thread::spawn(move || {
        let mut said = Vec::new();
        // What could be read is all there is to say.
        let _ = stderr.read_to_end(&mut said);
        text(&said)
    });
    // Whoever hangs is ended, and then every read and write here comes to its end.
    let (over, ended) = std::sync::mpsc::channel::<()>();
    let pid = Pid::from_child(&ssh.0);
    let watch = thread::spawn(move || {
        let late = ended.recv_timeout(4 * LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        // Its number is still its own: nobody has waited for it.
        late && rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok()
    });
    let moved = (|| {
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let begin = Instant::now();
        let moved = match direction {
            Transfer::Down => {
                drop(stdin);
                sink(&mut stdout)?
            }
            Transfer::Up => {
                source(stdin, bytes)?;
                line.clear();
                stdout.read_line(&mut line)?;
                line.trim().parse().unwrap_or(0)
            }
        };
        Ok::<_, std::io::Error>((moved, begin.elapsed()))
    })();
    drop(over);
    let late = watch.join().unwrap_or(true);
    let (moved, took) = match moved {
        Ok(moved) => moved,
        Err(error) => {
            let _ = ssh.0.kill();
            bail!("{error}; OpenSSH said: {}", said.join().unwrap_or_default());
        }
    };
    ensure!(!late, "OpenSSH was not done after {:?}", 4 * LIMIT);
    let pidfd = pidfd(Pid::from_child(&ssh.0));
    ensure!(gone_within(pidfd, LIMIT), "OpenSSH does not end");
    let status = ssh.0.wait()?;
    ensure!(status.success() && moved == bytes, "{status}, {moved} of {bytes} bytes: {}", said.join().unwrap_or_default());
    Ok(megabits(bytes) / took.as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "a number for people")]
fn megabits(bytes: u64) -> f64 {
    bytes as f64 * 8.0 / 1e6
}

/// Counts what comes until the end.
fn sink(from: &mut impl BufRead) -> std::io::Result<u64> {
    let mut count = 0;
    loop {
        let n = from.fill_buf()?.len();
        if n == 0 {
            return Ok(count);
        }
        count += n as u64;
        from.consume(n);
    }
}

fn source(mut to: impl std::io::Write, bytes: u64) -> std::io::Result<()> {
    let chunk = [0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        to.write_all(&chunk[..n])?;
        left -= n as u64;
    }
    Ok(())
}

/// A child that ends with its value.
struct Guard(Child);

impl Guard {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        Ok(Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It has ended already, or has to.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Milliseconds until `ssh --stdio` gives its first bytes.
pub fn first_byte(deployment: &Deployment, workspace: &str) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let (mut session, first) = open(deployment, workspace)?;
    session.close_stdin();
    // One that hangs at its end is ended: that is not what is measured.
    let _ = gone_within(pidfd(session.pid()), Duration::from_secs(5));
    Ok((first - begin).as_secs_f64() * 1e3)
}

/// An `ssh --stdio` that has said its first word and says no more.
pub fn idle_session(deployment: &Deployment, workspace: &str) -> anyhow::Result<Process> {
    open(deployment, workspace).map(|(session, _)| session)
}

/// Starts `ssh --stdio` and waits for the agent's first line: its SSH version comes as a whole.
fn open(deployment: &Deployment, workspace: &str) -> anyhow::Result<(Process, Instant)> {
    let mut session = Process::start("ssh --stdio", deployment.cli(deployment.side, &["ssh", "--stdio", workspace]));
    let end = Instant::now() + LIMIT;
    loop {
        match session.next_line(end.saturating_duration_since(Instant::now())) {
            Some((at, line)) if line.starts_with("SSH-2.0-") => return Ok((session, at)),
            Some(_) => {}
            None => bail!("the agent says nothing; the command line said: {}", session.seen.join(" | ")),
        }
    }
}

/// Resident memory and share of a process, in MB.
pub fn memory_of(pid: u32) -> anyhow::Result<(f64, f64)> {
    let memory = Memory::of(pid).with_context(|| format!("process {pid} has ended"))?;
    #[expect(clippy::cast_precision_loss, reason = "a number for people")]
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    Ok((megabytes(memory.resident), megabytes(memory.share)))
}
