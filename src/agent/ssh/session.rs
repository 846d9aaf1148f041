//! One session channel: what the client prepares, then one process and the bytes between both (agent.md §6.2, §6.4).

use super::{
    SHUTTING_DOWN, Shared,
    channels::Lane,
    input::Input,
    process::{Io, Launch, Process},
    rules::{TRANSFER_BLOCKED, TRANSFER_TEXT},
    running::Running,
    sftp,
    stats::ActiveSession,
    terminal::{Request, Size},
};
use crate::{
    agent::{environment::Profile, pty::exhausted},
    driver::process::Group,
};
use bytes::{Bytes, BytesMut};
use russh::{
    ChannelId, ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use rustix::process::Signal;
use std::{
    io, net::IpAddr, os::unix::process::ExitStatusExt as _, path::PathBuf, process::ExitStatus, sync::Arc, time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::Child,
    time::{sleep, timeout},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Exit status of a command that the agent could not start or serve.
pub(super) const NOT_STARTED: u32 = 229;
/// The status in the report of a session whose command gave none.
const KILLED: i32 = 255;
/// SSH's number for standard error.
const STDERR: u32 = 1;
/// After the command's end its terminal may still hold output; this much silence means it does not.
const QUIET: Duration = Duration::from_millis(100);
/// More than a terminal can hold: what comes later is from something left in the background.
const LEFT_IN_TERMINAL: usize = 256 << 10;
/// What a command gets between being told to end and being killed when the agent stops.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// What the words at the agent's stop get to enter the connection's queue.
const TELL: Duration = Duration::from_millis(250);
/// Most variables a client may set.
const MAX_VARIABLES: usize = 1024;
/// The variable that names the kind of client (agent.md §6.10).
const KIND: &str = "CODER_SSH_SESSION_TYPE";

/// A session channel as the connection's callbacks see it.
#[derive(Debug)]
pub(super) struct Session {
    /// Taken by the task that serves what was started.
    output: Option<Output>,
    variables: Vec<(String, String)>,
    terminal: Option<Request>,
    key_agent: Option<PathBuf>,
    display: Option<String>,
    running: Arc<Running>,
}

/// The way back to the client.
#[derive(Debug)]
pub(super) struct Output {
    half: ChannelWriteHalf<Msg>,
}

impl Output {
    pub(super) fn new(half: ChannelWriteHalf<Msg>) -> Self {
        Self { half }
    }

    pub(super) fn id(&self) -> ChannelId {
        self.half.id()
    }

    /// Sends once the client's window has room; only then, because russh stops the output of every channel while one
    /// of them has sent beyond its window.
    pub(super) async fn send(&self, extended: Option<u32>, data: Bytes) -> Result<(), russh::Error> {
        match extended {
            None => self.half.data_bytes(data).await,
            Some(kind) => self.half.extended_data_bytes(kind, data).await,
        }
    }

    /// Tells people something on standard error.
    pub(super) async fn complain(&self, text: String) {
        // A client that is gone needs no text.
        let _ = self.send(Some(STDERR), text.into()).await;
    }

    pub(super) async fn finish(&self) {
        // A connection that is gone needs no end.
        let _ = self.half.eof().await;
    }

    pub(super) async fn close(&self) {
        let _ = self.half.close().await;
    }

    pub(super) async fn report(&self, handle: &Handle, exit: Exit) {
        self.finish().await;
        let _ = match exit {
            Exit::Code(code) => self.half.exit_status(code).await.map_err(drop),
            Exit::Signal { signal, core_dumped } => {
                let name = signal_name(signal);
                handle.exit_signal_request(self.id(), name, core_dumped, String::new(), String::new()).await
            }
        };
        self.close().await;
    }

    /// Copies until the end of `from`; false if the client went away or reading failed.
    pub(super) async fn copy(&self, mut from: impl AsyncRead + Unpin, extended: Option<u32>, shared: &Shared) -> bool {
        let mut buffer = BytesMut::new();
        loop {
            match read_some(&mut from, &mut buffer).await {
                Ok(None) => return true,
                Ok(Some(data)) => {
                    shared.stats.sent(data.len());
                    if self.send(extended, data).await.is_err() {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Code(u32),
    Signal { signal: i32, core_dumped: bool },
}

impl From<io::Result<ExitStatus>> for Exit {
    fn from(status: io::Result<ExitStatus>) -> Self {
        let Ok(status) = status else { return Self::Code(NOT_STARTED) };
        match (status.code().map(u32::try_from), status.signal()) {
            (Some(Ok(code)), _) => Self::Code(code),
            (_, Some(signal)) => Self::Signal { signal, core_dumped: status.core_dumped() },
            _ => Self::Code(NOT_STARTED),
        }
    }
}

/// What a session's task needs beside its process.
pub(super) struct Channel {
    pub(super) shared: Arc<Shared>,
    pub(super) handle: Handle,
    pub(super) lane: Lane,
    /// Held until the channel is closed.
    pub(super) open: TaskTrackerToken,
    /// The client's address in the tunnel.
    pub(super) from: Option<IpAddr>,
}

impl Session {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output: Some(output),
            variables: Vec::new(),
            terminal: None,
            key_agent: None,
            display: None,
            running: Arc::default(),
        }
    }

    /// `env`: false once the command runs.
    pub(super) fn set_variable(&mut self, name: &str, value: &str) -> bool {
        // What no process can be given would keep the command from starting.
        let possible = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        let taken = self.can_start() && possible && self.variables.len() < MAX_VARIABLES;
        if taken {
            self.variables.push((name.to_owned(), value.to_owned()));
        }
        taken
    }

    /// `pty-req`: once, before the command runs.
    pub(super) fn set_terminal(&mut self, request: Request) -> bool {
        let taken = self.can_start() && self.terminal.is_none();
        if taken {
            self.terminal = Some(request);
        }
        taken
    }

    /// `auth-agent-req`: where the command finds the client's key agent.
    pub(super) fn set_key_agent(&mut self, socket: PathBuf) {
        self.key_agent = Some(socket);
    }

    /// Whether it may be given a display: it has none, and nothing was started yet.
    pub(super) fn wants_display(&self) -> bool {
        self.can_start() && self.display.is_none()
    }

    /// `x11-req`: the display that the command finds.
    pub(super) fn set_display(&mut self, display: String) {
        self.display = Some(display);
    }

    /// `window-change`: false without a terminal.
    pub(super) fn resize(&mut self, size: Size) -> bool {
        let Some(request) = &mut self.terminal else { return false };
        request.size = size;
        self.running.resize(size)
    }

    /// `signal`: kept until the command runs.
    pub(super) fn signal(&self, signal: &Sig) {
        self.running.signal(signal_number(signal));
    }

    /// Whether nothing was started yet.
    pub(super) fn can_start(&self) -> bool {
        self.output.is_some()
    }

    /// What kind of client this is, by its own word.
    fn kind(&self) -> &str {
        self.variables.iter().rev().find(|(name, _)| name == KIND).map_or("", |(_, value)| value.as_str())
    }

    /// `subsystem sftp`: files instead of a command, once.
    pub(super) fn start_sftp(&mut self, channel: Channel) {
        let Some(output) = self.output.take() else { return };
        let shared = Arc::clone(&channel.shared);
        let active = shared.stats.start_session(self.kind(), channel.from);
        self.running.end();
        if shared.rules.block_file_transfer {
            shared.tasks.spawn(refuse(output, channel, active, false));
        } else {
            shared.tasks.spawn(sftp::serve(output, channel, active));
        }
    }

    /// `shell` and `exec`: starts the process and the task that serves it, once.
    pub(super) fn start(&mut self, command: Option<&[u8]>, channel: Channel) {
        let Some(output) = self.output.take() else { return };
        let shared = Arc::clone(&channel.shared);
        let active = shared.stats.start_session(self.kind(), channel.from);
        if shared.rules.forbids(command) {
            self.running.end();
            shared.tasks.spawn(refuse(output, channel, active, true));
            return;
        }
        let profile = shared.profile();
        let greeted = (command.is_none() && self.terminal.is_some()).then(|| Arc::clone(&profile));
        let launch = Launch {
            shared: Arc::clone(&shared),
            profile,
            client: std::mem::take(&mut self.variables),
            command: command.map(<[u8]>::to_vec),
            terminal: self.terminal.clone(),
            key_agent: self.key_agent.take(),
            display: self.display.take(),
            utf8: false,
        };
        shared.tasks.spawn(start(launch, greeted, output, channel, active, Arc::clone(&self.running)));
    }
}

/// Starts a session's process and serves it. `greeted`: whose messages come first.
async fn start(
    launch: Launch,
    greeted: Option<Arc<Profile>>,
    output: Output,
    channel: Channel,
    mut active: ActiveSession,
    running: Arc<Running>,
) {
    let shared = Arc::clone(&channel.shared);
    let (terminal, shell) = (launch.terminal.is_some(), launch.command.is_none());
    let started = tokio::select! {
        started = launch.start() => started,
        () = shared.stop.cancelled() => {
            running.end();
            return part(&output, &channel, &mut active).await;
        }
    };
    tracing::debug!(terminal, shell, ok = started.is_ok(), "session");
    match started {
        Ok(Process { child, group, io }) => {
            let (ends, control) = match io {
                Io::Pipes { stdin, stdout, stderr } => (Ends::Pipes { stdin, stdout, stderr }, None),
                Io::Terminal { pty } => (Ends::Terminal { reader: pty.reader, writer: pty.writer }, Some(pty.control)),
            };
            running.begin(group, control);
            Serve { child, group, running, ends, output, channel, greeted, active }.run().await;
        }
        Err(error) => {
            running.end();
            let hint = if terminal { exhausted(&error) } else { "" };
            let text = format!("cannot start {}: {error}{hint}\r\n", shared.account.shell.display());
            active.ended(NOT_STARTED.cast_signed(), "the command could not be started");
            let told = output.complain(text);
            tokio::select! { () = told => {} () = channel.lane.gone.cancelled() => {} }
            output.report(&channel.handle, Exit::Code(NOT_STARTED)).await;
            channel.lane.gone.cancel();
        }
    }
}

/// Ends a session without a status, which its client left or the agent's stop ends.
async fn part(output: &Output, channel: &Channel, active: &mut ActiveSession) {
    let (stop, gone) = (&channel.shared.stop, &channel.lane.gone);
    active.ended(KILLED, if stop.is_cancelled() { SHUTTING_DOWN } else { "the client left" });
    if stop.is_cancelled() && !gone.is_cancelled() {
        // A client whose window is full does not hold the stop up.
        let _ = timeout(TELL, output.complain(format!("{SHUTTING_DOWN}\r\n"))).await;
    }
    output.close().await;
    gone.cancel();
}

/// Ends a session that would carry files (agent.md §6.8). A command says so where its program would speak; whoever waits
/// for the subsystem's packets reads it beside them.
async fn refuse(output: Output, channel: Channel, mut active: ActiveSession, is_command: bool) {
    active.ended(TRANSFER_BLOCKED.cast_signed(), "file transfer is blocked");
    let told = async {
        if is_command {
            // A client that is gone needs no text.
            let _ = output.send(None, TRANSFER_TEXT.into()).await;
        } else {
            output.complain(TRANSFER_TEXT.trim_start_matches('\u{2}').to_owned()).await;
        }
    };
    tokio::select! { () = told => {} () = channel.lane.gone.cancelled() => {} }
    output.report(&channel.handle, Exit::Code(TRANSFER_BLOCKED)).await;
    channel.lane.gone.cancel();
}

enum Ends {
    Pipes { stdin: tokio::process::ChildStdin, stdout: tokio::process::ChildStdout, stderr: tokio::process::ChildStderr },
    Terminal { reader: pty_process::OwnedReadPty, writer: pty_process::OwnedWritePty },
}

/// A running command and its way to the client.
struct Serve {
    child: Child,
    group: Group,
    running: Arc<Running>,
    ends: Ends,
    output: Output,
    channel: Channel,
    greeted: Option<Arc<Profile>>,
    active: ActiveSession,
}

impl Serve {
    async fn run(self) {
        let Self { mut child, group, running, ends, output, channel, greeted, mut active } = self;
        let (shared, Lane { input, gone }) = (&channel.shared, &channel.lane);
        let has_terminal = matches!(ends, Ends::Terminal { .. });
        let exchange = async {
            if let Some(profile) = greeted {
                let greeting = shared.greeting(&profile).await;
                if !greeting.is_empty() && output.send(None, greeting.into()).await.is_err() {
                    return None;
                }
            }
            Some(match ends {
                Ends::Pipes { stdin, stdout, stderr } => {
                    let carry = async {
                        tokio::join!(output.copy(stdout, None, shared), output.copy(stderr, Some(STDERR), shared));
                        running.wait(&mut child).await
                    };
                    beside(feed(input, stdin, shared), carry).await
                }
                Ends::Terminal { reader, writer } => {
                    let carry = carry_terminal(reader, &output, (&mut child, &running), shared);
                    beside(feed(input, writer, shared), carry).await
                }
            })
        };
        let status = tokio::select! {
            status = exchange => status,
            () = gone.cancelled() => None,
            () = shared.stop.cancelled() => None,
        };
        running.end();
        match status {
            Some(status) => {
                let exit = status.into();
                match exit {
                    Exit::Code(code) => active.ended(code.cast_signed(), ""),
                    Exit::Signal { signal, .. } => active.ended(KILLED, &format!("ended by signal {signal}")),
                }
                output.report(&channel.handle, exit).await;
                gone.cancel();
            }
            None => part(&output, &channel, &mut active).await,
        }
        let shared = channel.shared;
        drop((output, active, channel.handle, channel.open));
        // By now the terminal is closed, which hangs up what runs in it; without one the command may go on, as below
        // OpenSSH, until it ends or the agent does.
        if !has_terminal && ended_early(&mut child) {
            tokio::select! {
                _ = child.wait() => return,
                () = shared.stop.cancelled() => {}
            }
        }
        if shared.stop.is_cancelled() && ended_early(&mut child) {
            group.end(&mut child, Signal::HUP, STOP_GRACE).await;
        }
    }
}

/// Whether the session ended before its process.
fn ended_early(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(None))
}

/// Runs `helper` for as long as `main` takes.
pub(super) async fn beside<T>(helper: impl Future<Output = ()>, main: impl Future<Output = T>) -> T {
    let helper = async {
        helper.await;
        std::future::pending().await
    };
    tokio::select! {
        result = main => result,
        never = helper => never,
    }
}

/// Carries what the client sends; at its end the process sees the end too.
async fn feed(input: &Input, mut to: impl AsyncWrite + Unpin, shared: &Shared) {
    while let Some(data) = input.next().await {
        shared.stats.received(data.len());
        if to.write_all(&data).await.is_err() {
            input.discard();
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Carries a terminal's output until the command has ended and all it wrote was read. The terminal itself ends only when
/// the last process that has it open is gone, which background processes delay.
async fn carry_terminal(
    mut reader: pty_process::OwnedReadPty,
    output: &Output,
    (child, running): (&mut Child, &Running),
    shared: &Shared,
) -> io::Result<ExitStatus> {
    let mut buffer = BytesMut::new();
    let mut ended = None;
    let mut left = LEFT_IN_TERMINAL;
    while left > 0 {
        let data = tokio::select! {
            biased;
            data = read_some(&mut reader, &mut buffer) => data,
            status = running.wait(child), if ended.is_none() => {
                ended = Some(status);
                continue;
            }
            () = sleep(QUIET), if ended.is_some() => break,
        };
        // A terminal without a process answers EIO, not the end.
        let Ok(Some(data)) = data else { break };
        if ended.is_some() {
            left = left.saturating_sub(data.len());
        }
        shared.stats.sent(data.len());
        if output.send(None, data).await.is_err() {
            break;
        }
    }
    match ended {
        Some(status) => status,
        None => running.wait(child).await,
    }
}

/// The next bytes, `None` at the end. Small reads share an allocation.
///
/// # Cancel safety
/// A cancelled call takes nothing.
async fn read_some(from: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    if buffer.capacity() < 4 << 10 {
        buffer.reserve(64 << 10);
    }
    let read = from.read_buf(buffer).await?;
    Ok((read > 0).then(|| buffer.split().freeze()))
}

fn signal_number(signal: &Sig) -> Signal {
    match signal {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        // An unknown name kills.
        Sig::KILL | Sig::Custom(_) => Signal::KILL,
    }
}

/// The name of RFC 4254 §6.10, or one in OpenSSH's name space.
fn signal_name(number: i32) -> Sig {
    let known = [
        (Signal::ABORT, Sig::ABRT),
        (Signal::ALARM, Sig::ALRM),
        (Signal::FPE, Sig::FPE),
        (Signal::HUP, Sig::HUP),
        (Signal::ILL, Sig::ILL),
        (Signal::INT, Sig::INT),
        (Signal::KILL, Sig::KILL),
        (Signal::PIPE, Sig::PIPE),
        (Signal::QUIT, Sig::QUIT),
        (Signal::SEGV, Sig::SEGV),
        (Signal::TERM, Sig::TERM),
        (Signal::USR1, Sig::USR1),
        (Signal::USR2, Sig::Custom("USR2".to_owned())),
        (Signal::BUS, Sig::Custom("BUS@openssh.com".to_owned())),
        (Signal::TRAP, Sig::Custom("TRAP@openssh.com".to_owned())),
        (Signal::SYS, Sig::Custom("SYS@openssh.com".to_owned())),
        (Signal::XCPU, Sig::Custom("XCPU@openssh.com".to_owned())),
    ];
    let found = known.into_iter().find(|(signal, _)| signal.as_raw() == number).map(|(_, name)| name);
    found.unwrap_or_else(|| Sig::Custom(format!("{number}@openssh.com")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_becomes_a_code_or_a_signal() {
        let of = |raw| Exit::from(Ok(ExitStatus::from_raw(raw)));
        assert_eq!(of(7 << 8), Exit::Code(7));
        assert_eq!(of(255 << 8), Exit::Code(255));
        assert_eq!(of(15), Exit::Signal { signal: 15, core_dumped: false });
        assert_eq!(of(11 | 0x80), Exit::Signal { signal: 11, core_dumped: true });
        assert_eq!(Exit::from(Err(io::ErrorKind::Other.into())), Exit::Code(NOT_STARTED));
    }

    #[test]
    fn every_signal_of_the_page_is_sent_and_named_alike() {
        for (name, signal) in [("USR2", Signal::USR2), ("nonsense", Signal::KILL)] {
            assert_eq!(signal_number(&Sig::Custom(name.to_owned())), signal);
        }
        for sig in [
            Sig::ABRT,
            Sig::ALRM,
            Sig::FPE,
            Sig::HUP,
            Sig::ILL,
            Sig::INT,
            Sig::KILL,
            Sig::PIPE,
            Sig::QUIT,
            Sig::SEGV,
            Sig::TERM,
            Sig::USR1,
        ] {
            assert_eq!(format!("{:?}", signal_name(signal_number(&sig).as_raw())), format!("{sig:?}"));
        }
    }
}
