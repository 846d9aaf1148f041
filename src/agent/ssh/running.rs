//! A session's process as the callbacks of its connection see it. What is asked of it before it runs is kept for it; what is
//! asked behind its end reaches nobody, since its number may be another's then.

use super::terminal::Size;
use crate::driver::process::Group;
use rustix::process::Signal;
use std::{
    future::{Future as _, poll_fn},
    io,
    os::fd::OwnedFd,
    pin::pin,
    process::ExitStatus,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Poll, ready},
};
use tokio::process::Child;

/// Most signals that wait for the process.
const MAX_SIGNALS: usize = 1024;

/// The process, from the channel's opening on.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<State>);

#[derive(Debug)]
enum State {
    Awaited {
        signals: Vec<Signal>,
        size: Option<Size>,
    },
    Runs {
        group: Group,
        /// Where its terminal's size is set.
        control: Option<OwnedFd>,
    },
    Ended,
}

impl Default for State {
    fn default() -> Self {
        Self::Awaited { signals: Vec::new(), size: None }
    }
}

impl Running {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It runs: what was asked for reaches it now.
    pub(super) fn begin(&self, group: Group, control: Option<OwnedFd>) {
        let mut state = self.state();
        if let State::Awaited { signals, size } = &mut *state {
            if let (Some(size), Some(control)) = (size, &control) {
                // The terminal is ours and new.
                let _ = size.apply(control);
            }
            signals.drain(..).for_each(|signal| group.signal(signal));
            *state = State::Runs { group, control };
        }
    }

    /// Sends a signal to its group.
    pub(super) fn signal(&self, signal: Signal) {
        match &mut *self.state() {
            State::Awaited { signals, .. } if signals.len() < MAX_SIGNALS => signals.push(signal),
            State::Runs { group, .. } => group.signal(signal),
            State::Awaited { .. } | State::Ended => {}
        }
    }

    /// Sets the size of its terminal; false where that fails.
    pub(super) fn resize(&self, to: Size) -> bool {
        match &mut *self.state() {
            State::Awaited { size, .. } => {
                *size = Some(to);
                true
            }
            State::Runs { control: Some(control), .. } => to.apply(control).is_ok(),
            State::Runs { control: None, .. } | State::Ended => true,
        }
    }

    /// Waits for its end, with which it ends here.
    ///
    /// # Cancel safety
    /// Safe: the end is kept for the next call.
    pub(super) async fn wait(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let mut wait = pin!(child.wait());
        poll_fn(|context| {
            // No signal is sent between the look, which gives its number back, and the note of it.
            let mut state = self.state();
            let status = ready!(wait.as_mut().poll(context));
            *state = State::Ended;
            Poll::Ready(status)
        })
        .await
    }

    /// Nothing is to reach it any more, and its terminal is held no longer.
    pub(super) fn end(&self) {
        *self.state() = State::Ended;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::{io::Read as _, os::unix::process::ExitStatusExt as _, process::Stdio};
    use tokio::process::Command;

    fn start(script: &str) -> (Child, Group) {
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        let group = Group::of(&child).unwrap();
        (child, group)
    }

    #[tokio::test]
    async fn behind_its_end_a_process_is_sent_nothing_and_its_terminal_is_not_held() {
        let (mut child, group) = start("read x; exit 3");
        let (mut terminal, control) = io::pipe().unwrap();
        let running = Running::default();
        running.begin(group, Some(control.into()));
        assert!(poll!(pin!(running.wait(&mut child))).is_pending());
        assert!(matches!(*running.state(), State::Runs { .. }));
        drop(child.stdin.take());
        let status = running.wait(&mut child).await.unwrap();
        assert_eq!(status.code(), Some(3));
        // From here on the number may be another's.
        assert!(matches!(*running.state(), State::Ended));
        assert_eq!(terminal.read(&mut [0]).unwrap(), 0, "the handle to its terminal is closed");
        running.signal(Signal::KILL);
        assert!(running.resize(Size::default()));
    }

    #[tokio::test]
    async fn a_signal_that_comes_before_the_process_is_kept_for_it() {
        let running = Running::default();
        running.signal(Signal::TERM);
        let (mut child, group) = start("read x");
        running.begin(group, None);
        assert_eq!(running.wait(&mut child).await.unwrap().signal(), Some(Signal::TERM.as_raw()));
    }
}
