//! Whether a port of this machine belongs to a JetBrains backend: its clients start hundreds of SSH sessions, so what counts
//! as one of theirs is the forwarded connection to the backend (agent.md §6.6). Linux alone tells.

use std::{fs, path::Path};

/// What the command line of a backend holds, in any case.
const MARKS: [&str; 3] = ["idea.vendor.name=jetbrains", "com.jetbrains.toolbox", "remote-dev-server"];

/// Whether the process that listens on `port` is a backend. Reads `/proc`, so it belongs on a thread that may block.
pub(crate) fn listens(port: u16) -> bool {
    command_line_behind(port).is_some_and(|line| is_backend(&line))
}

fn is_backend(command_line: &str) -> bool {
    let line = command_line.to_lowercase();
    MARKS.iter().any(|mark| line.contains(mark))
}

/// The command line of a process that listens on `port`, as far as this user may look.
fn command_line_behind(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| listener(&fs::read_to_string(table).ok()?, port))?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let owner = processes.filter(|p| is_process(p)).find(|process| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files.map(|file| file.path()).any(|file| fs::read_link(file).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
    })?;
    let line = fs::read(owner.join("cmdline")).ok()?;
    Some(String::from_utf8_lossy(&line).replace('\0', " "))
}

fn is_process(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// The inode of the socket that listens on `port` in one of the kernel's tables.
fn listener(table: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let end = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        (local.ends_with(&end) && state == LISTEN).then(|| fields.nth(5).map(str::to_owned))?
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_process_behind_a_port_is_found_and_known_by_its_command_line() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let own = std::env::args().next().unwrap();
        assert!(command_line_behind(port).unwrap().starts_with(&own));
        assert!(!listens(port), "these tests are no editor");
        drop(socket);
        assert_eq!(command_line_behind(port), None);
        for line in ["java -Didea.vendor.name=JetBrains x", "/opt/remote-dev-server.sh run", "com.JetBrains.toolbox.agent"] {
            assert!(is_backend(line), "{line}");
        }
        assert!(!is_backend("vim idea.txt"));
    }
}
