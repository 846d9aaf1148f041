//! Starting the process behind a session (agent.md §6.4).

use super::{
    Shared,
    terminal::{self, Request},
};
use crate::{
    agent::environment::{Profile, Sources, Terminal, prefer_utf8},
    driver::{
        blocking,
        process::{Group, KillOnDrop},
    },
};
use pty_process::{Pts, Pty};
use rustix::{
    fs::{Mode, OFlags},
    process::setsid,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// The last of the signals that have names; those above belong to the C library.
const LAST_SIGNAL: i32 = 31;

/// What a process is started with.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) shared: Arc<Shared>,
    pub(super) profile: Arc<Profile>,
    pub(super) client: Vec<(String, String)>,
    /// `None` or blank for a login shell.
    pub(super) command: Option<Vec<u8>>,
    pub(super) terminal: Option<Request>,
    pub(super) key_agent: Option<PathBuf>,
    pub(super) display: Option<String>,
    /// Whether text shall be UTF-8 where nobody chose otherwise.
    pub(super) utf8: bool,
}

/// A started process.
#[derive(Debug)]
pub(in crate::agent) struct Process {
    pub(in crate::agent) child: Child,
    pub(in crate::agent) group: Group,
    pub(in crate::agent) io: Io,
}

/// Where its bytes come from and go to.
#[derive(Debug)]
pub(in crate::agent) enum Io {
    Pipes { stdin: ChildStdin, stdout: ChildStdout, stderr: ChildStderr },
    Terminal { pty: Terminals },
}

/// The master end of a terminal, and a second handle to it for changes of size.
#[derive(Debug)]
pub(in crate::agent) struct Terminals {
    pub(in crate::agent) reader: pty_process::OwnedReadPty,
    pub(in crate::agent) writer: pty_process::OwnedWritePty,
    pub(in crate::agent) control: OwnedFd,
}

impl Launch {
    /// Starts the process. Its folder and its program may be a network's, so that a thread waits for them.
    ///
    /// # Cancel safety
    /// What a cancelled call starts is killed.
    pub(super) async fn start(self) -> io::Result<Process> {
        let start = move || self.start_here().map(|process| (KillOnDrop::new(process.group), process));
        let (kill, process) = blocking::run(start).await??;
        kill.let_go();
        Ok(process)
    }

    fn start_here(&self) -> io::Result<Process> {
        let account = &self.shared.account;
        let (program, arguments) = command_line(&account.shell, self.command.as_deref());
        let folder = self.profile.folder(account);
        match &self.terminal {
            Some(request) => self.start_in_terminal(request, &program, &arguments, folder),
            None => self.start_with_pipes(&program, &arguments, folder),
        }
    }

    fn environment(&self, terminal: Option<Terminal<'_>>) -> BTreeMap<OsString, OsString> {
        let Self { shared, profile, client, key_agent, display, .. } = self;
        let sources = Sources {
            profile,
            account: &shared.account,
            process: &shared.process,
            client,
            executable: &shared.executable,
            terminal,
            key_agent: key_agent.as_deref(),
            display: display.as_deref(),
        };
        let mut out = sources.build();
        if self.utf8 {
            prefer_utf8(&mut out);
        }
        out
    }

    fn start_with_pipes(&self, program: &OsStr, arguments: &[OsString], folder: &Path) -> io::Result<Process> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.environment(None)).current_dir(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        own_session(&mut command);
        let mut child = command.spawn()?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("the process has no pipes"));
        };
        Ok(Process { group: Group::of(&child)?, child, io: Io::Pipes { stdin, stdout, stderr } })
    }

    fn start_in_terminal(
        &self,
        request: &Request,
        program: &OsStr,
        arguments: &[OsString],
        folder: &Path,
    ) -> io::Result<Process> {
        let (pty, pts) = open_terminal()?;
        terminal::set_modes(&pts, &request.modes)?;
        request.size.apply(&pty)?;
        let device = rustix::termios::ttyname(&pts, Vec::new())?;
        let device = OsStr::from_bytes(device.as_bytes());
        let environment = self.environment(Some(Terminal { kind: &request.kind, device }));
        let command = pty_process::Command::new(program).args(arguments).env_clear().envs(environment).current_dir(folder);
        let child = with_default_signals(command).spawn(pts).map_err(into_io)?;
        let pty = Terminals::new(pty)?;
        Ok(Process { group: Group::of(&child)?, child, io: Io::Terminal { pty } })
    }
}

impl Terminals {
    fn new(pty: Pty) -> io::Result<Self> {
        let control = pty.as_fd().try_clone_to_owned()?;
        let (reader, writer) = pty.into_split();
        Ok(Self { reader, writer, control })
    }
}

/// Keeps the system's number: it tells a machine without free terminals from other troubles.
fn into_io(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        pty_process::Error::Rustix(error) => error.into(),
        other => io::Error::other(other),
    }
}

/// A new terminal, whose master end is marked as it is opened: a process that another thread starts in between would keep
/// it, and the terminal would not hang up before that process ends.
#[expect(unsafe_code, reason = "pty-process opens the master first and marks it later")]
pub(super) fn open_terminal() -> io::Result<(Pty, Pts)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let flags = flags | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    rustix::io::fcntl_setfd(&master, rustix::io::FdFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let device = ptsname(&master, Vec::new())?;
    let device = rustix::fs::open(device, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::ioctl_fionbio(&master, true)?;
    // SAFETY: both are open, belong to one terminal and are given away here; the master does not block.
    unsafe { Ok((Pty::from_fd(master).map_err(into_io)?, Pts::from_fd(device))) }
}

/// Without a terminal too the command leads its own session, so that nothing typed at the agent's terminal reaches it.
#[expect(unsafe_code, reason = "the standard library starts a process in its own group, but not in its own session")]
pub(in crate::agent) fn own_session(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes system calls and neither allocates nor locks.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            default_signals();
            Ok(())
        });
    }
}

#[expect(unsafe_code, reason = "only the child itself can set what its signals do")]
fn with_default_signals(command: pty_process::Command) -> pty_process::Command {
    // SAFETY: as above.
    unsafe {
        command.pre_exec(|| {
            default_signals();
            Ok(())
        })
    }
}

/// Gives each signal its default again. What the agent was started to ignore (below `nohup`, or behind a `&` of a script)
/// all its commands would ignore: SIGHUP when their terminal closes, SIGINT and SIGQUIT when somebody types them.
#[expect(unsafe_code, reason = "signal(2) has no safe wrapper")]
fn default_signals() {
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the default needs no handler. It fails for SIGKILL and SIGSTOP, which have no other.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Program and arguments: a login shell, the shell with a command, or the interpreter of a script.
pub(in crate::agent) fn command_line(shell: &Path, command: Option<&[u8]>) -> (OsString, Vec<OsString>) {
    let Some(command) = command.filter(|c| !c.trim_ascii().is_empty()) else {
        return (shell.into(), vec!["-l".into()]);
    };
    let script = || OsString::from_vec(command.to_vec());
    if let Some(after) = command.trim_ascii_start().strip_prefix(b"#!") {
        let line = after.split(|b| *b == b'\n').next().unwrap_or_default();
        let mut words = line.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).map(|w| OsString::from_vec(w.to_vec()));
        if let Some(interpreter) = words.next() {
            return (interpreter, words.chain(["-c".into(), script()]).collect());
        }
    }
    (shell.into(), vec!["-c".into(), script()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    fn line(command: Option<&str>) -> Vec<String> {
        let (program, arguments) = command_line(Path::new("/bin/zsh"), command.map(str::as_bytes));
        [program].into_iter().chain(arguments).map(|w| w.into_string().unwrap()).collect()
    }

    #[test]
    fn no_command_is_a_login_shell_and_a_command_goes_to_the_shell_whole() {
        assert_eq!(line(None), ["/bin/zsh", "-l"]);
        assert_eq!(line(Some("  ")), ["/bin/zsh", "-l"]);
        assert_eq!(line(Some("echo 'a b'; true")), ["/bin/zsh", "-c", "echo 'a b'; true"]);
    }

    #[test]
    fn a_script_runs_under_its_interpreter() {
        let script = " #! /usr/bin/env  -S python3 -u\nprint(1)";
        assert_eq!(line(Some(script)), ["/usr/bin/env", "-S", "python3", "-u", "-c", script]);
        assert_eq!(line(Some("#!\necho")), ["/bin/zsh", "-c", "#!\necho"]);
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn no_process_that_starts_meanwhile_inherits_the_master_of_a_terminal() {
        let (go_on, runtime) = (Arc::new(AtomicBool::new(true)), tokio::runtime::Handle::current());
        let opening = {
            let go_on = Arc::clone(&go_on);
            thread::spawn(move || {
                let _entered = runtime.enter();
                while go_on.load(Ordering::Relaxed) {
                    drop(open_terminal().unwrap());
                }
            })
        };
        for _ in 0..200 {
            let open = std::process::Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
            let open = String::from_utf8_lossy(&open.stdout);
            assert!(!open.contains("ptmx"), "{open}");
        }
        go_on.store(false, Ordering::Relaxed);
        opening.join().unwrap();
    }
}
