//! Whether a port of this machine belongs to a JetBrains backend: its clients start hundreds of SSH sessions, so what counts
//! as one of theirs is the forwarded connection to the backend (agent.md §6.6). Linux alone tells.

use super::sockets;
use std::fs;

/// What the command line of a backend holds, in any case.
const MARKS: [&str; 3] = ["idea.vendor.name=jetbrains", "com.jetbrains.toolbox", "remote-dev-server"];

/// Whether a process that listens on `port` is a backend. Reads `/proc`, so it belongs on a thread that may block.
pub(crate) fn listens(port: u16) -> bool {
    command_lines_behind(port).iter().any(|line| is_backend(line))
}

fn is_backend(command_line: &str) -> bool {
    let line = command_line.to_lowercase();
    MARKS.iter().any(|mark| line.contains(mark))
}

/// The command lines of the processes that listen on `port`, as far as this user may look.
fn command_lines_behind(port: u16) -> Vec<String> {
    let sockets = sockets::listening().into_iter().filter(|socket| socket.port == port).map(|socket| socket.inode).collect();
    let lines = sockets::owners(&sockets).into_values().filter_map(|process| fs::read(process.join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_process_behind_a_port_is_found_and_known_by_its_command_line() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let own = std::env::args().next().unwrap();
        assert!(command_lines_behind(port)[0].starts_with(&own));
        assert!(!listens(port), "these tests are no editor");
        drop(socket);
        assert!(command_lines_behind(port).is_empty());
        for line in ["java -Didea.vendor.name=JetBrains x", "/opt/remote-dev-server.sh run", "com.JetBrains.toolbox.agent"] {
            assert!(is_backend(line), "{line}");
        }
        assert!(!is_backend("vim idea.txt"));
    }
}
