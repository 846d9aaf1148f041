//! Which TCP ports of the machine are listened on, and by what (Linux: `/proc`; elsewhere none are told).

use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};

/// For so long an answer is given again: looking is work that grows with the machine.
const FRESH: Duration = Duration::from_secs(1);
/// Ports below are those of the agent's own services in the tunnel.
const FIRST: u16 = 9;
/// Code of the state LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

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
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let found = unique(tables.iter().flat_map(|table| listening(table)));
    let names = owners(found.iter().map(|(_, inode)| *inode).collect());
    let name = |inode| names.get(inode).cloned().unwrap_or_default();
    found.iter().map(|(port, inode)| ListeningPort { process_name: name(inode), network: "tcp", port: *port }).collect()
}

/// Port and inode of each listening socket in a table of the kernel.
fn listening(table: &str) -> impl Iterator<Item = (u16, u64)> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (_, port) = fields.nth(1)?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        (state == LISTEN).then_some((u16::from_str_radix(port, 16).ok()?, inode))
    })
}

/// Each port once, in the kernel's order.
fn unique(found: impl Iterator<Item = (u16, u64)>) -> Vec<(u16, u64)> {
    let mut seen = BTreeSet::new();
    found.filter(|(port, _)| *port >= FIRST && seen.insert(*port)).collect()
}

/// The names of the processes that hold these sockets, as far as we may see them.
fn owners(wanted: BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut names = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if names.len() == wanted.len() {
            break;
        }
        // Only processes have open files here; those of others cannot be read.
        let Ok(open) = fs::read_dir(process.path().join("fd")) else { continue };
        for file in open.flatten() {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode.filter(|inode| wanted.contains(inode)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                names.entry(inode).or_insert_with(|| name.trim_end().to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn listening_sockets_are_read_from_the_kernels_tables_each_port_once() {
        let four = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             \x20  0: 0100007F:D8B8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3201 1 ff 100 0 0 10 0\n\
             \x20  1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 ff 100 0 0 10 0\n\
             \x20  2: 0100007F:D8B8 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 9 1 ff 100 0 0 10 0\n\
             \x20  3: 00000000:0008 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8 1 ff 100 0 0 10 0\n\
             broken\n";
        let six = "head\n   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A \
             00000000:00000000 00:00000000 00000000     0        0 78 1 ff 100 0 0 10 0\n   1: \
             00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A \
             00000000:00000000 00:00000000 00000000     0        0 79 1 ff 100 0 0 10 0\n";
        let found = unique([four, six].into_iter().flat_map(listening));
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
