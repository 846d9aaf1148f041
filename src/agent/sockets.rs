//! The TCP sockets of the machine that listen, and the processes behind them (Linux: `/proc`; elsewhere none are told). All
//! of it reads files, so it belongs on a thread that may block.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Code of the state LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listening {
    pub(super) port: u16,
    pub(super) inode: u64,
}

/// All of them, in the kernel's order: a port may have several.
pub(super) fn listening() -> Vec<Listening> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    tables.iter().flat_map(|table| in_table(table)).collect()
}

fn in_table(table: &str) -> impl Iterator<Item = Listening> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (_, port) = fields.nth(1)?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        (state == LISTEN).then_some(Listening { port: u16::from_str_radix(port, 16).ok()?, inode })
    })
}

/// The folders in `/proc` of the processes that hold these sockets, as far as we may see them.
pub(super) fn owners(wanted: &BTreeSet<u64>) -> BTreeMap<u64, PathBuf> {
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()).filter(|p| is_process(p)) {
        if found.len() == wanted.len() {
            break;
        }
        // Those of other users cannot be read.
        let Ok(open) = fs::read_dir(process.join("fd")) else { continue };
        for file in open.flatten() {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode.filter(|inode| wanted.contains(inode)) {
                found.entry(inode).or_insert_with(|| process.clone());
            }
        }
    }
    found
}

fn is_process(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_read_from_the_kernels_tables() {
        let four = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             \x20  0: 0100007F:D8B8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3201 1 ff 100 0 0 10 0\n\
             \x20  1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 ff 100 0 0 10 0\n\
             \x20  2: 0100007F:D8B8 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 9 1 ff 100 0 0 10 0\n\
             broken\n";
        let six = "head\n   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A \
             00000000:00000000 00:00000000 00000000     0        0 78 1 ff 100 0 0 10 0\n   1: \
             00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A \
             00000000:00000000 00:00000000 00000000     0        0 79 1 ff 100 0 0 10 0\n";
        let found: Vec<_> = [four, six].into_iter().flat_map(in_table).map(|s| (s.port, s.inode)).collect();
        assert_eq!(found, [(55_480, 3201), (22, 77), (22, 78), (8080, 79)]);
    }
}
