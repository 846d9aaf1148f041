//! What the SSH server counts (agent.md §3.2, §6.10).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The longest kind of client that is kept apart.
const MAX_KIND: usize = 64;
/// The most kinds that are kept apart; the rest counts as `ssh`.
const MAX_KINDS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Stats {
    sessions: Arc<Mutex<BTreeMap<String, u64>>>,
    connections: AtomicU64,
    forwards: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    input_waits: AtomicU64,
}

/// A reading of the server's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sessions running now, by kind of client (`ssh`, `vscode`, …).
    pub sessions: BTreeMap<String, u64>,
    /// Connections served since the start.
    pub connections: u64,
    /// Forwarded connections since the start.
    pub forwards: u64,
    /// Bytes of output sent to clients.
    pub sent: u64,
    /// Bytes of input that reached a process or a forwarded connection.
    pub received: u64,
    /// How often a connection's task waited because a channel's input was full.
    pub input_waits: u64,
}

/// A session that counts as running until this is dropped.
#[derive(Debug)]
pub(in crate::agent) struct ActiveSession {
    sessions: Arc<Mutex<BTreeMap<String, u64>>>,
    kind: String,
}

impl Stats {
    pub(super) fn start_session(&self, kind: &str) -> ActiveSession {
        let mut kind: String = kind.to_lowercase().replace('-', "_").chars().take(MAX_KIND).collect();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if kind.is_empty() || (sessions.len() >= MAX_KINDS && !sessions.contains_key(&kind)) {
            "ssh".clone_into(&mut kind);
        }
        *sessions.entry(kind.clone()).or_default() += 1;
        drop(sessions);
        ActiveSession { sessions: Arc::clone(&self.sessions), kind }
    }

    pub(super) fn connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(super) fn forward(&self) {
        self.forwards.fetch_add(1, Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn input_wait(&self) {
        self.input_waits.fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> Counters {
        Counters {
            sessions: self.sessions.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            connections: self.connections.load(Relaxed),
            forwards: self.forwards.load(Relaxed),
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            input_waits: self.input_waits.load(Relaxed),
        }
    }
}

impl Drop for ActiveSession {
    fn drop(&mut self) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = sessions.get_mut(&self.kind) {
            *running -= 1;
            if *running == 0 {
                sessions.remove(&self.kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_counted_by_kind_while_they_run() {
        let stats = Stats::default();
        let first = stats.start_session("");
        let second = stats.start_session("VSCode-Insiders");
        assert_eq!(stats.read().sessions, [("ssh".to_owned(), 1), ("vscode_insiders".to_owned(), 1)].into());
        drop(first);
        drop(second);
        assert!(stats.read().sessions.is_empty());
    }

    #[test]
    fn a_client_that_invents_kinds_does_not_grow_the_table() {
        let stats = Stats::default();
        let active: Vec<_> = (0..1000).map(|i| stats.start_session(&format!("kind{i}"))).collect();
        assert!(stats.read().sessions.len() <= MAX_KINDS + 1);
        assert_eq!(stats.read().sessions.values().sum::<u64>(), 1000);
        drop(active);
    }
}
