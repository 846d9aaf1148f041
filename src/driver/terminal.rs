//! The user's terminal: raw mode that always ends, and its size.

use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::{fmt, io};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Columns
    pub(crate) columns: u32,
    /// Rows
    pub(crate) rows: u32,
}

/// Which standard streams are terminals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminals {
    /// Standard input
    pub(crate) input: bool,
    /// Standard output
    pub(crate) output: bool,
}

impl Terminals {
    /// Looks at the standard streams of this process.
    #[must_use]
    pub(crate) fn of_process() -> Self {
        Self { input: isatty(io::stdin()), output: isatty(io::stdout()) }
    }
}

/// The size of the terminal behind standard input or output; 80 × 24 where there is none or it does not know.
#[must_use]
pub(crate) fn size() -> Size {
    let known = [tcgetwinsize(io::stdout()), tcgetwinsize(io::stdin())].into_iter().flatten();
    known
        .map(|s| Size { columns: s.ws_col.into(), rows: s.ws_row.into() })
        .find(|s| s.columns > 0 && s.rows > 0)
        .unwrap_or(Size { columns: 80, rows: 24 })
}

/// The modes of the terminal behind standard input, set again when this is dropped.
pub(crate) struct KeptModes(Termios);

impl KeptModes {
    /// Notes the modes as they are.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub(crate) fn keep() -> io::Result<Self> {
        Ok(Self(tcgetattr(io::stdin())?))
    }

    /// The same, and from now on what is typed is not shown.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub(crate) fn without_echo() -> io::Result<Self> {
        let old = Self::keep()?;
        let mut silent = old.0.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Now, &silent)?;
        Ok(old)
    }
}

impl Drop for KeptModes {
    fn drop(&mut self) {
        // Not after what is still to be shown: a terminal that was stopped would hold the end up.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

impl fmt::Debug for KeptModes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptModes")
    }
}

/// The terminal behind standard input in raw mode. Its old mode comes back when this is dropped, also by a panic.
#[derive(Debug)]
pub(crate) struct RawMode {
    _old: KeptModes,
}

impl RawMode {
    /// Turns raw mode on.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Self> {
        let old = KeptModes::keep()?;
        let mut raw = old.0.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self { _old: old })
    }
}

/// News of the terminal's size.
#[derive(Debug)]
pub(crate) struct Resizes(Signal);

impl Resizes {
    /// Starts listening to SIGWINCH.
    ///
    /// # Errors
    /// When the signal handler cannot be installed.
    pub(crate) fn open() -> io::Result<Self> {
        signal(SignalKind::window_change()).map(Self)
    }

    /// Waits for the next change.
    ///
    /// # Cancel safety
    /// Safe: a change that comes meanwhile is reported by the next call.
    pub(crate) async fn next(&mut self) -> Size {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        size()
    }
}
