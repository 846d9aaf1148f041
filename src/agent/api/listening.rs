//! Which TCP ports of the machine are listened on, and by what.

use crate::agent::sockets::{self, Listening};
use serde::Serialize;
use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::Instant};

/// For so long an answer is given again: looking is work that grows with the machine.
const FRESH: Duration = Duration::from_secs(1);
/// Ports below are those of the agent's own services in the tunnel.
const FIRST: u16 = 9;

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ListeningPort {
    /// Empty where it is another user's process.
    process_name: String,
    network: &'static str,
    port: u16,
}

/// The ports as they were a moment ago.
#[derive(Debug, Default)]
pub(super) struct ListeningPorts(Mutex<Option<(Instant, Arc<Vec<ListeningPort>>)>>);

impl ListeningPorts {
    /// The ports. Whoever asks while somebody looks gets the same answer.
    pub(super) async fn list(&self) -> Arc<Vec<ListeningPort>> {
        let mut last = self.0.lock().await;
        if let Some((at, ports)) = &*last
            && at.elapsed() < FRESH
        {
            return Arc::clone(ports);
        }
        let ports = Arc::new(tokio::task::spawn_blocking(look).await.unwrap_or_default());
        *last = Some((Instant::now(), Arc::clone(&ports)));
        ports
    }
}

fn look() -> Vec<ListeningPort> {
    let found = unique(sockets::listening());
    let owners = sockets::owners(&found.iter().map(|socket| socket.inode).collect());
    let name = |inode| owners.get(&inode).and_then(|process| fs::read_to_string(process.join("comm")).ok()).unwrap_or_default();
    let port = |s: Listening| ListeningPort { process_name: name(s.inode).trim_end().to_owned(), network: "tcp", port: s.port };
    found.into_iter().map(port).collect()
}

/// Each port once, in the kernel's order, but for the agent's own.
fn unique(mut found: Vec<Listening>) -> Vec<Listening> {
    let mut seen = BTreeSet::new();
    found.retain(|socket| socket.port >= FIRST && seen.insert(socket.port));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn each_port_is_told_once_and_those_of_the_agent_are_not() {
        let sockets = [(55_480, 3201), (22, 77), (8, 8), (22, 78), (8080, 79)].map(|(port, inode)| Listening { port, inode });
        let found: Vec<_> = unique(sockets.into()).iter().map(|s| (s.port, s.inode)).collect();
        assert_eq!(found, [(55_480, 3201), (22, 77), (8080, 79)]);
    }

    #[tokio::test(start_paused = true)]
    #[cfg(target_os = "linux")]
    async fn a_port_of_ours_is_told_with_our_name_and_an_answer_is_good_for_a_second() {
        let ports = ListeningPorts::default();
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = |l: &TcpListener| l.local_addr().unwrap().port();
        let list = ports.list().await;
        let own = list.iter().find(|p| p.port == number(&first)).expect("our port is not told");
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!((own.process_name.as_str(), own.network), (name.trim_end(), "tcp"));
        let second = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(Arc::ptr_eq(&list, &ports.list().await));
        tokio::time::advance(FRESH).await;
        assert!(ports.list().await.iter().any(|p| p.port == number(&second)));
    }
}
