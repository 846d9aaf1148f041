//! The signals that end a command, and what a shell sees of that.

use crate::driver::process::{EndSignal, EndSignals};
use anyhow::Context as _;
use std::cell::Cell;

/// A signal ended the command before it had begun.
#[derive(Debug, thiserror::Error)]
#[error("a signal came first")]
pub(super) struct Signalled(pub(super) EndSignal);

/// What a shell sees of a command that a signal ended.
pub(super) const fn exit_code(signal: EndSignal) -> u8 {
    128 + signal.number()
}

thread_local! {
    /// How many parts of the command of this thread care for signals themselves.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// Signals for a part of a command that does something about them: while this lives, [`or_signal`] leaves them to it.
#[derive(Debug)]
pub(super) struct OwnSignals(EndSignals);

impl OwnSignals {
    pub(super) fn open() -> anyhow::Result<Self> {
        let signals = EndSignals::open().context("cannot handle signals")?;
        OWN.set(OWN.get() + 1);
        Ok(Self(signals))
    }

    /// Waits for the next of them. Cancel safe.
    pub(super) async fn next(&mut self) -> EndSignal {
        self.0.next().await
    }
}

impl Drop for OwnSignals {
    fn drop(&mut self) {
        OWN.set(OWN.get() - 1);
    }
}

/// Runs a command that a signal ends, but for those of its parts that care for signals.
pub(super) async fn or_signal(command: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let mut signals = EndSignals::open().context("cannot handle signals")?;
    let first = async {
        loop {
            let signal = signals.next().await;
            if OWN.get() == 0 {
                return signal;
            }
        }
    };
    tokio::select! {
        // First: a part that ends because of a signal cares for it no longer.
        biased;
        signal = first => Ok(exit_code(signal)),
        done = command => done,
    }
}
