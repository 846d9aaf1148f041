//! A terminal as a person sits before it: what is typed, what shows, its size and its modes.

use super::process::{LIMIT, gone_within, pidfd, readable_within, text};
use pty_process::blocking::{Command as PtyCommand, Pts, Pty, open};
use rustix::{
    process::Pid,
    termios::{LocalModes, Termios, tcgetattr},
};
use std::{
    io::{Read as _, Write as _},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

/// A terminal with one program in it.
pub struct Terminal {
    pty: Pty,
    /// Keeps the modes readable after the program's end.
    pts: Pts,
    pub child: Child,
    shown: Vec<u8>,
    /// Up to where [`Terminal::wait_for`] has looked.
    looked: usize,
    before: Termios,
}

impl Terminal {
    /// Starts a program in a terminal of 80 × 24.
    pub fn start(command: Command) -> Self {
        let (pty, pts) = open().unwrap();
        pty.resize(pty_process::Size::new(24, 80)).unwrap();
        let before = tcgetattr(&pts).unwrap();
        let child = PtyCommand::from(command).spawn_borrowed(&pts).unwrap();
        Self { pty, pts, child, shown: Vec::new(), looked: 0, before }
    }

    pub fn type_in(&mut self, keys: &str) {
        self.pty.write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        self.pty.resize(pty_process::Size::new(rows, columns)).unwrap();
    }

    /// Waits until `what` shows behind everything that was waited for before.
    pub fn wait_for(&mut self, what: &str) {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = find(&self.shown[self.looked..], what.as_bytes()) {
                self.looked += at + what.len();
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            let mut bytes = [0; 4096];
            let n = if readable_within(&self.pty, left) { self.pty.read(&mut bytes).unwrap_or(0) } else { 0 };
            assert!(n > 0, "{what:?} does not show within {LIMIT:?}; the terminal shows:\n{}", self.shown());
            self.shown.extend_from_slice(&bytes[..n]);
        }
    }

    /// Everything that was shown until the last wait.
    pub fn shown(&self) -> String {
        text(&self.shown)
    }

    /// Whether the terminal itself echoes: not in raw mode.
    pub fn echoes(&self) -> bool {
        tcgetattr(&self.pts).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// Whether all modes are as they were before the program.
    pub fn is_restored(&self) -> bool {
        let now = tcgetattr(&self.pts).unwrap();
        (now.input_modes, now.output_modes, now.control_modes, now.local_modes)
            == (self.before.input_modes, self.before.output_modes, self.before.control_modes, self.before.local_modes)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for the program's end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let gone = gone_within(pidfd(self.pid()), limit);
        assert!(gone, "the program still runs after {limit:?}; the terminal shows:\n{}", self.shown());
        self.child.wait().unwrap()
    }

    /// Closes the terminal as a window that is closed does, and gives the program to wait for.
    pub fn hang_up(self) -> Child {
        let Self { child, pty, pts, .. } = self;
        drop((pty, pts));
        child
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}
