//! How processes end: ours by its parent's death and by signals, others by ours.

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Pid, Signal, getppid, kill_process_group, test_kill_process_group},
};
use std::{
    io,
    os::fd::{BorrowedFd, RawFd},
    time::Duration,
};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

/// Asks the kernel to send SIGTERM when the parent ends, and reports whether it ended while we asked.
///
/// Call it first thing on the main thread. The signal follows the parent's *thread* that made this process. Where the
/// facility is missing (not Linux) nothing ends the process with its parent.
#[must_use]
pub fn end_with_parent() -> bool {
    let parent = getppid();
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    parent != getppid()
}

/// Lets this process open as many files and connections as the system allows it, which is often far more than it begins
/// with.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // What is refused stays as it was.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// Where the system lists the descriptors of the process that looks.
const DESCRIPTORS: &str = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };

/// Keeps what this process was started with beside its standard streams from those that it starts itself: they would hold
/// files, locks and pipes of whoever started this one.
///
/// Where the system does not list the descriptors nothing changes.
#[expect(unsafe_code, reason = "a descriptor that nothing here opened is known by its number alone")]
pub fn keep_descriptors() {
    let Ok(list) = std::fs::read_dir(DESCRIPTORS) else { return };
    for number in list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok()).filter(|n| *n > 2) {
        // SAFETY: borrowed for one system call, which keeps nothing and refuses a number that was closed meanwhile.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if let Err(error) = fcntl_setfd(fd, FdFlags::CLOEXEC) {
            tracing::debug!(number, %error, "a descriptor cannot be kept from children");
        }
    }
}

/// The process group that a child leads.
#[derive(Debug, Clone, Copy)]
pub struct Group(Pid);

impl Group {
    /// That of a child which was started in a group or a session of its own.
    ///
    /// # Errors
    /// When the child was waited for already.
    pub fn of(child: &Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        id.map(Self).ok_or_else(|| io::Error::other("the process has no id"))
    }

    /// Sends a signal to all of it; a group that is gone needs none.
    pub fn signal(self, signal: Signal) {
        if let Err(error) = kill_process_group(self.0, signal) {
            tracing::debug!(?signal, %error, "no process took the signal");
        }
    }

    /// Whether there is anything left of it.
    #[must_use]
    pub fn lives(self) -> bool {
        test_kill_process_group(self.0).is_ok()
    }

    /// Asks all of it by a signal to end, and kills it where `child`, its leader, has not ended after `grace`.
    pub async fn end(self, child: &mut Child, by: Signal, grace: Duration) {
        self.signal(by);
        if timeout(grace, child.wait()).await.is_err() {
            self.signal(Signal::KILL);
            let _ = child.wait().await;
        }
    }
}

/// Kills a group when it is dropped, unless it was let go.
#[derive(Debug)]
pub struct KillOnDrop(Option<Group>);

impl KillOnDrop {
    /// For the group of a child that was not waited for.
    #[must_use]
    pub const fn new(group: Group) -> Self {
        Self(Some(group))
    }

    /// Lets the group live.
    pub fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            group.signal(Signal::KILL);
        }
    }
}

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndSignal {
    /// SIGINT
    Interrupt,
    /// SIGTERM
    Terminate,
    /// SIGHUP
    HangUp,
}

impl EndSignal {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::HangUp => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }
}

/// The signals that ask a command to end, as one stream.
#[derive(Debug)]
pub struct EndSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    outlives_hang_up: bool,
}

/// Whether this process was started with SIGHUP ignored, as `nohup` does. To be asked before a handler takes its place.
fn outlives_hang_up() -> bool {
    // No safe call tells; where there is no such file the signal ends the process as any other.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 << (EndSignal::HangUp.number() - 1) != 0)
}

impl EndSignals {
    /// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the process's life.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            outlives_hang_up: false,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The same for a service, which SIGHUP does not end where it was started to outlive its terminal.
    ///
    /// That signal is handled all the same: children begin with what the system does by default, so that what an agent under
    /// `nohup` runs ends with its own terminal.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn open_for_service() -> io::Result<Self> {
        let outlives_hang_up = outlives_hang_up();
        Ok(Self { outlives_hang_up, ..Self::open()? })
    }

    /// Waits for the next of them.
    ///
    /// # Cancel safety
    /// Safe: a signal that arrives meanwhile is reported by the next call.
    pub async fn next(&mut self) -> EndSignal {
        tokio::select! {
            _ = self.interrupt.recv() => EndSignal::Interrupt,
            _ = self.terminate.recv() => EndSignal::Terminate,
            _ = self.hang_up.recv(), if !self.outlives_hang_up => EndSignal::HangUp,
        }
    }
}

/// The signal that asks a server to read its files again: SIGUSR1, since a foreground server ends with its terminal's SIGHUP.
#[derive(Debug)]
pub struct ReloadSignal(tokio::signal::unix::Signal);

impl ReloadSignal {
    /// Takes over SIGUSR1 for the rest of the process's life.
    ///
    /// # Errors
    /// When the signal handler cannot be installed.
    pub fn open() -> io::Result<Self> {
        signal(SignalKind::user_defined1()).map(Self)
    }

    /// Waits for the next of them; several that come at once count as one.
    ///
    /// # Cancel safety
    /// Safe: a signal that arrives meanwhile is reported by the next call.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::fcntl_getfd;
    use std::os::{fd::AsFd as _, unix::process::ExitStatusExt as _};
    use tokio::process::Command;

    #[test]
    fn what_the_process_was_started_with_beside_its_streams_is_kept_from_children() {
        let (inherited, own) = rustix::pipe::pipe().unwrap();
        fcntl_setfd(&own, FdFlags::CLOEXEC).unwrap();
        assert!(fcntl_getfd(&inherited).unwrap().is_empty());
        let streams = || fcntl_getfd(io::stdout().as_fd()).unwrap();
        let before = streams();
        keep_descriptors();
        for fd in [&inherited, &own] {
            assert_eq!(fcntl_getfd(fd).unwrap(), FdFlags::CLOEXEC);
        }
        assert_eq!(streams(), before);
    }

    #[tokio::test]
    async fn a_group_that_is_not_let_go_is_killed() {
        let start = || Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let (mut killed, mut kept) = (start(), start());
        drop(KillOnDrop::new(Group::of(&killed).unwrap()));
        KillOnDrop::new(Group::of(&kept).unwrap()).let_go();
        assert_eq!(killed.wait().await.unwrap().signal(), Some(Signal::KILL.as_raw()));
        assert!(kept.try_wait().unwrap().is_none());
        kept.kill().await.unwrap();
    }
}
