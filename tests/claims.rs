//! `tests/README.md` holds a row for every line that must be shown, and names tests and commands that exist and run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path};

/// What must be shown: the first words of a row, and what its second column has to name at least. A row may say more; it may
/// not go.
const LINES: &[(&str, &str)] = &[
    ("In a fresh clone `cargo run --release -- quickstart -- uname -a`", "tests/cli/first.rs::"),
    ("`cargo test` passes", ".ci/run"),
    ("OpenSSH, `ProxyCommand … ssh --stdio`, direct, by `Upgrade: derp` and by WebSocket", "tests/openssh/tunnel.rs"),
    ("… `true` → 0", "tests/openssh/tunnel.rs::"),
    ("… `exit 7` → 7", "tests/openssh/tunnel.rs::"),
    ("… killed by a signal", "tests/openssh/tunnel.rs::"),
    ("… 100 MB each way byte-equal", "tests/openssh/tunnel.rs::"),
    ("… 20 × 100 MB through `cat` byte-equal", "tests/openssh/tunnel.rs::"),
    ("… `tty`", "tests/openssh/tunnel.rs::"),
    ("… resize", "tests/openssh/tunnel.rs::"),
    ("… `printf x \\| ssh … cat` ends at once", "tests/openssh/tunnel.rs::"),
    ("… 50 connects in a row, no repeated initiation, SYN or relay dial", "tests/openssh/tunnel.rs::"),
    ("… `kill -9` of the parent → our process gone in 2 s", "tests/openssh/tunnel.rs::"),
    ("`coder server --dev` in one terminal, `coder ssh dev` in another: colours and resize, a capture", "tests/cli/first.rs::"),
    ("`coder create two`, its agent started from the printed line", "tests/cli/users.rs::"),
    ("… in another namespace behind NAT, `coder ssh two`", "tests/netns/main.rs::"),
    ("Server restarted on the same data folder: same token, same workspaces", "tests/cli/users.rs::"),
    ("Two users do not see each other's workspaces", "tests/cli/users.rs::"),
    ("UDP cut under a stream that ticks every 100 ms", "tests/netns/main.rs::"),
    ("Hours of sessions, transfers, forwards, terminals and killed clients", "tests/soak/main.rs::"),
    ("Agent killed and back: the client ends with the reason ≤ 5 s after its return", "tests/netns/main.rs::"),
    ("`coder config-ssh`: the bytes", "tests/cli/config_ssh.rs::"),
    ("… OpenSSH reaches a workspace with that file", "tests/openssh/config.rs::"),
    ("Files", "tests/openssh/files.rs::"),
    ("… every other command of `sftp`", "tests/openssh/files.rs::"),
    ("… each request of SFTP by itself", "src/agent/ssh/sftp/tests.rs"),
    ("`ssh -R`", "tests/openssh/forwards.rs::"),
    ("Unix sockets with `-L` and `-R`", "tests/openssh/forwards.rs::"),
    ("Programs and libraries that use ssh, through the tunnel, direct and by relay", "tests/openssh/clients.rs::"),
    ("… `-L`, `-D` (curl through SOCKS), `-R`, unix sockets, `-A`", "tests/openssh/through.rs::"),
    ("… ControlMaster: a forward whose reader stopped", "tests/openssh/through.rs::"),
    ("… paramiko, asyncssh, ansible's ping", "tests/openssh/clients.rs::"),
    ("… `ServerAliveInterval=1` for 60 s", "tests/openssh/clients.rs::"),
    ("… 300 × start and `kill -9`", "tests/openssh/clients.rs::"),
    ("Terminals that outlive their connections", "src/agent/services/tests.rs::"),
    ("… no terminal left on the machine", "tests/cli/terminals.rs::"),
    ("… through the server", "src/server/tests/terminal.rs::"),
    ("… much input beside much output", "tests/cli/terminals.rs::"),
    ("Two agents with one token", "tests/cli/agents.rs::"),
    ("An agent under `nohup` outlives its terminal", "tests/cli/agents.rs::"),
    ("The agent's HTTP API in the shapes of the Go agent", "src/agent/services/tests.rs::"),
    ("Every other port leads to the workspace's loopback", "src/agent/services/tests.rs::"),
    ("An agent's rules", "tests/openssh/rules.rs::"),
    ("A workspace's start", "tests/cli/agents.rs::"),
    ("A file system of the workspace that hangs", "src/agent/ssh/tests/held.rs::"),
    ("An agent's end", "tests/cli/agents.rs::"),
    ("`ssh --network-info-dir`", "tests/cli/editors.rs::"),
    ("VS Code's and JetBrains' documented command lines run as written", "tests/cli/editor_lines.rs::"),
    ("Error matrix: fifty ways", "tests/cli/matrix.rs::"),
    ("… a full disk in the agent's folder, or the server's, an interrupted upload", "tests/cli/disk.rs::"),
    ("`coder netcheck`: keys and types", "tests/cli/netcheck.rs::"),
    ("`login`, `login token`, `logout`, `whoami`", "tests/cli/accounts.rs::"),
    ("A proxy with a password and a private authority as the only way", "tests/cli/proxies.rs::"),
    ("… an ingress that refuses `Upgrade: DERP`", "tests/cli/proxies.rs::"),
    ("… client certificates; headers and the header command", "tests/cli/proxies.rs::"),
    ("… the environment's proxies are not asked for loopback", "tests/cli/proxies.rs::"),
    ("`coder ssh -R` for ports and sockets", "tests/cli/remote_forward.rs::"),
    ("`~.`, `~~`, `~?`, Ctrl-C twice", "tests/cli/interactive.rs::"),
    ("`coder port-forward`", "tests/cli/port_forward.rs::"),
    ("… UDP", "tests/cli/port_forward.rs::"),
    ("… goes on through an agent killed and back", "tests/cli/port_forward.rs::"),
    ("… its specifications", "src/cli/port_forward/spec.rs"),
    ("`coder ping`", "tests/cli/ping.rs::"),
    ("`coder support bundle`", "tests/cli/support.rs"),
    ("`coder speedtest`", "tests/cli/speedtest.rs::"),
    ("Workspace stopped or deleted", "tests/cli/port_forward.rs::"),
    ("Errors: wrong token", "tests/cli/errors.rs::"),
    ("… unknown workspace", "tests/cli/errors.rs::"),
    ("… agent down", "tests/cli/errors.rs::"),
    ("… server gone", "tests/cli/errors.rs::"),
    ("… port taken", "tests/cli/errors.rs::"),
    ("… unreadable database", "tests/cli/errors.rs::"),
    ("Auth: every route walked without and with a foreign token", "src/server/tests/access.rs::"),
    ("… expired and scoped tokens", "src/server/tests/access.rs::"),
    ("TLS of the server's own", "src/server/tests/tls.rs::"),
    ("Tokens and passwords", "src/server/tests/keys.rs::"),
    ("Rate limits, audit lines, metrics", "src/server/tests/operation.rs::"),
    ("Browser-only mode", "src/server/tests/operation.rs::"),
    ("Workspaces started and stopped by commands", "src/server/tests/builds.rs::"),
    ("… a failed or hanging build", "tests/cli/life.rs::"),
    ("… what is kept", "src/server/store/tests.rs::"),
    ("Start and end: closed pipes, closed terminals, signals", "tests/cli/signals.rs::"),
    ("… a reader of standard error that has stopped", "tests/cli/signals.rs::"),
    ("… Ctrl-C while something is waited for", "tests/cli/signals.rs::"),
    ("No secret in a log", "tests/cli/secrets.rs::"),
    ("README: relay first, direct once full-size packets have passed", "src/sim/tests/direct.rs::"),
    ("… existing tunnels outlive the server", "src/server/tests/tunnel.rs::"),
    ("… `--block-direct-connections`", "src/server/tests/tunnel.rs::"),
    ("… relays that are read again reach everybody", "tests/cli/life.rs::"),
    ("… a stopped workspace is started", "tests/cli/editors.rs::"),
    ("… relative paths begin in the workspace's folder", "src/agent/ssh/sftp/tests.rs::"),
    ("… 256 sessions at most", "src/agent/ssh/tests/rules.rs::"),
    ("… `ssh --log-dir`", "tests/cli/editors.rs::"),
    ("Three mutations turn the suite red", ".ci/mutate"),
    ("Goodput direct and relayed, kernel TCP, ratios", "cargo bench --bench e2e"),
    ("`port-forward` beside a plain TCP proxy", "cargo bench --bench e2e"),
    ("First byte of `ssh --stdio`", "cargo bench --bench e2e"),
    ("Idle `ssh --stdio`: memory and context switches", "cargo bench --bench e2e"),
    ("An idle tunnel hardly wakes", "src/sim/tests/direct.rs::"),
    ("Memory of agent and server, size of the binary", "cargo bench --bench e2e"),
    ("A packet in steady state allocates nothing", "tests/packet_path.rs::"),
    ("`cargo check --no-default-features`, `clippy --all-targets -D warnings`, `cargo doc` without warnings", ".ci/run"),
    ("Go mix: relays", "cells `relay`"),
    ("… STUN and netcheck", "cells `STUN`"),
    ("… tunnel and TCP with a Go node", "cells `tunnel`"),
    ("… coordination", "cells `coordination`"),
    ("… whole sessions", "cells `cell`"),
    ("… answers and outputs beside the vectors", "cells `shapes`"),
    ("… speed beside speed", "cells `speed`"),
    ("A session's home is the agent's `$HOME`", "tests/cli/agents.rs::"),
];

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Both columns of every row.
fn rows(table: &str) -> Vec<(&str, &str)> {
    table.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")).collect()
}

#[test]
fn every_line_that_must_be_shown_has_a_row_that_names_its_proof() {
    let table = read("tests/README.md");
    let rows = rows(&table);
    for (line, proof) in LINES {
        let row = rows.iter().find(|(what, _)| what.starts_with(line)).unwrap_or_else(|| panic!("no row for: {line}"));
        assert!(row.1.contains(proof), "{line}: shown by {:?}, not by {proof}", row.1);
    }
    // Behind the head of the table.
    for (what, _) in &rows[1..] {
        assert!(LINES.iter().any(|(line, _)| what.starts_with(line)), "this row may go without a word: {what}");
    }
}

#[test]
fn every_test_that_the_table_names_exists_and_is_not_ignored() {
    let table = read("tests/README.md");
    let named: Vec<(&str, &str)> = table.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs::")).collect();
    for (file, name) in named {
        let source = read(&format!("{file}.rs"));
        let function = format!("fn {name}()");
        let at = source.find(&function).unwrap_or_else(|| panic!("{file}.rs has no {name}"));
        let line = source[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let attributes: Vec<&str> = source[..line].lines().rev().take_while(|l| l.trim().starts_with("#[")).collect();
        let is_test = attributes.iter().any(|a| a.contains("#[test]") || a.contains("#[tokio::test"));
        assert!(is_test && !attributes.iter().any(|a| a.contains("ignore")), "{name} does not run: {attributes:?}");
    }
}

#[test]
fn every_command_that_the_table_names_is_run_by_ci() {
    let ci = read(".ci/run");
    let lines: Vec<&str> = ci.lines().map(str::trim).collect();
    let table = read("tests/README.md");
    let named = rows(&table).into_iter().flat_map(|(_, proof)| proof.split('`').skip(1).step_by(2).collect::<Vec<_>>());
    let commands: BTreeSet<&str> = named.filter(|code| code.starts_with("cargo ") || code.starts_with(".ci/")).collect();
    assert!(commands.len() > 2, "{commands:?}");
    for command in commands {
        let runs = |line: &&str| line.starts_with(command) || command == ".ci/run";
        assert!(lines.iter().any(runs), ".ci/run does not run {command}");
    }
    let tests = lines.iter().find(|line| line.contains("cargo test --release")).expect(".ci/run runs the tests");
    assert!(tests.starts_with("TAILNET_INTEROP=1 "), ".ci/run does not run the cells against Go peers");
}

#[test]
fn every_row_of_cells_that_the_table_names_has_a_file_that_makes_cells_of_it() {
    let table = read("tests/README.md");
    let named: Vec<(&str, &str)> = rows(&table).into_iter().filter_map(|(_, proof)| proof.split_once("`, cells `")).collect();
    assert_eq!(named.len(), 7, "{named:?}");
    for (file, row) in named {
        let (file, row) = (file.trim_start_matches('`'), row.split('`').next().unwrap());
        assert!(read(file).contains(&format!("const ROW: &str = \"{row}\"")), "{file} makes no cells {row}");
    }
}

#[test]
fn every_program_and_library_is_tried_direct_and_by_relay() {
    for file in ["tests/openssh/clients.rs", "tests/openssh/through.rs"] {
        for test in read(file).split("#[test]\n").skip(1) {
            let (name, body) = test.split_once(" {\n").unwrap();
            let ways = ["direct_and_relayed(", "direct_and_relayed_at_once(", "library("];
            assert!(ways.iter().any(|way| body.contains(way)), "{name} takes one way only");
        }
    }
}

#[test]
fn every_openssh_test_through_the_tunnel_takes_all_three_ways() {
    let source = read("tests/openssh/tunnel.rs");
    for test in source.split("#[test]\n").skip(1) {
        let (name, body) = test.split_once(" {\n").unwrap();
        assert!(body.trim_start().starts_with("on_every_way(|lab|"), "{name} takes one way only");
    }
}
