//! Starting the process behind a session (agent.md §6.4).

use super::terminal::{self, Request};
use crate::agent::{
    account::Account,
    environment::{Profile, Sources, Terminal, prefer_utf8},
};
use pty_process::Pty;
use rustix::process::{Pid, Signal, kill_process_group, setsid, test_kill_process_group};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::Path,
    process::Stdio,
};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// What a process is started with.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) profile: &'a Profile,
    pub(super) account: &'a Account,
    pub(super) process: &'a [(OsString, OsString)],
    pub(super) client: &'a [(String, String)],
    pub(super) executable: &'a Path,
    /// `None` or blank for a login shell.
    pub(super) command: Option<&'a [u8]>,
    pub(super) terminal: Option<&'a Request>,
    pub(super) key_agent: Option<&'a Path>,
    pub(super) display: Option<&'a str>,
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

/// The process group of a session's command.
#[derive(Debug, Clone, Copy)]
pub(in crate::agent) struct Group(Pid);

impl Group {
    /// That of a child which leads its own session.
    pub(in crate::agent) fn of(child: &Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        id.map(Self).ok_or_else(|| io::Error::other("the process has no id"))
    }

    /// Sends a signal to all of it; a group that is gone needs none.
    pub(in crate::agent) fn signal(self, signal: Signal) {
        if let Err(error) = kill_process_group(self.0, signal) {
            tracing::debug!(?signal, %error, "no process took the signal");
        }
    }

    /// Whether there is anything left of it.
    pub(in crate::agent) fn lives(self) -> bool {
        test_kill_process_group(self.0).is_ok()
    }
}

impl Launch<'_> {
    pub(super) fn start(&self) -> io::Result<Process> {
        let (program, arguments) = command_line(&self.account.shell, self.command);
        let folder = self.profile.folder(self.account);
        match self.terminal {
            Some(request) => self.start_in_terminal(request, &program, &arguments, folder),
            None => self.start_with_pipes(&program, &arguments, folder),
        }
    }

    fn environment(&self, terminal: Option<Terminal<'_>>) -> BTreeMap<OsString, OsString> {
        let &Launch { profile, account, process, client, executable, key_agent, display, utf8, .. } = self;
        let mut out = Sources { profile, account, process, client, executable, terminal, key_agent, display }.build();
        if utf8 {
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
        let (pty, pts) = pty_process::open().map_err(into_io)?;
        terminal::set_modes(&pts, &request.modes)?;
        request.size.apply(&pty)?;
        let device = rustix::termios::ttyname(&pts, Vec::new())?;
        let device = OsStr::from_bytes(device.as_bytes());
        let environment = self.environment(Some(Terminal { kind: &request.kind, device }));
        let child = pty_process::Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(environment)
            .current_dir(folder)
            .spawn(pts)
            .map_err(into_io)?;
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

/// Without a terminal too the command leads its own session, so that nothing typed at the agent's terminal reaches it.
#[expect(unsafe_code, reason = "the standard library starts a process in its own group, but not in its own session")]
pub(in crate::agent) fn own_session(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call and neither allocates nor locks.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(())
        });
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
}
