//! What the SSH server counts (agent.md §3.2, §6.10).

use crate::agent::connections::{Connections, Visit};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The longest kind of client that is kept apart.
const MAX_KIND: usize = 64;
/// The kind of the clients that count by their forwarded connection.
pub(super) const JETBRAINS: &str = "jetbrains";
/// The most kinds that are kept apart; the rest counts as `ssh`.
const MAX_KINDS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Stats {
    sessions: Arc<Mutex<BTreeMap<String, u64>>>,
    /// Where sessions are reported, if anywhere.
    pub(super) reports: OnceLock<Connections>,
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
    /// `None` for one that does not count.
    kind: Option<String>,
    visit: Option<Visit>,
}

impl ActiveSession {
    /// How it ended, for the report.
    pub(super) fn ended(&mut self, status: i32, reason: &str) {
        if let Some(visit) = &mut self.visit {
            visit.ended(status, reason);
        }
    }
}

impl Stats {
    /// A session that a client asked for. Those of JetBrains do not count: it starts hundreds, and what counts instead is
    /// the connection to its backend.
    pub(super) fn start_session(&self, kind: &str, from: Option<IpAddr>) -> ActiveSession {
        if kind.eq_ignore_ascii_case(JETBRAINS) {
            return ActiveSession { sessions: Arc::clone(&self.sessions), kind: None, visit: None };
        }
        self.count(kind, from)
    }

    /// Counts a session of this kind and reports it.
    pub(super) fn count(&self, kind: &str, from: Option<IpAddr>) -> ActiveSession {
        let mut kind: String = kind.to_lowercase().replace('-', "_").chars().take(MAX_KIND).collect();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if kind.is_empty() || (sessions.len() >= MAX_KINDS && !sessions.contains_key(&kind)) {
            "ssh".clone_into(&mut kind);
        }
        *sessions.entry(kind.clone()).or_default() += 1;
        drop(sessions);
        let visit = self.reports.get().map(|reports| reports.begin(&kind, from));
        ActiveSession { sessions: Arc::clone(&self.sessions), kind: Some(kind), visit }
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
        let Some(kind) = &self.kind else { return };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = sessions.get_mut(kind) {
            *running -= 1;
            if *running == 0 {
                sessions.remove(kind);
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
        let first = stats.start_session("", None);
        let second = stats.start_session("VSCode-Insiders", None);
        let _uncounted = stats.start_session("JetBrains", None);
        assert_eq!(stats.read().sessions, [("ssh".to_owned(), 1), ("vscode_insiders".to_owned(), 1)].into());
        drop(first);
        drop(second);
        assert!(stats.read().sessions.is_empty());
    }

    #[test]
    fn a_session_is_reported_at_its_beginning_and_its_end_under_one_id() {
        use crate::{
            agent::outbox::Outbox,
            wire::coord::agent::{ConnectionAction, REPORT_CONNECTION},
        };
        let stats = Stats::default();
        let outbox = Arc::new(Outbox::new(REPORT_CONNECTION));
        stats.reports.set(Connections(Arc::clone(&outbox))).unwrap();
        let mut session = stats.start_session("VSCode", Some("fd7a::1".parse().unwrap()));
        session.ended(7, "");
        session.ended(0, "later");
        drop(session);
        drop(stats.start_session("jetbrains", None));
        drop(stats.count("jetbrains", None));
        let reports: Vec<_> = outbox.waiting().into_iter().map(|r| r.connection.unwrap()).collect();
        let of = |n: usize| (reports[n].action(), reports[n].app_name.as_str(), reports[n].status_code);
        assert_eq!(of(0), (ConnectionAction::Connect, "vscode", 0));
        assert_eq!(of(1), (ConnectionAction::Disconnect, "vscode", 7));
        assert_eq!((reports[0].id.clone(), reports[0].ip.as_str()), (reports[1].id.clone(), "fd7a::1"));
        assert_eq!((of(2).1, of(3).0, reports.len()), ("jetbrains", ConnectionAction::Disconnect, 4));
    }

    #[test]
    fn a_client_that_invents_kinds_does_not_grow_the_table() {
        let stats = Stats::default();
        let active: Vec<_> = (0..1000).map(|i| stats.start_session(&format!("kind{i}"), None)).collect();
        assert!(stats.read().sessions.len() <= MAX_KINDS + 1);
        assert_eq!(stats.read().sessions.values().sum::<u64>(), 1000);
        drop(active);
    }
}
