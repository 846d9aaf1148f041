//! Row 6: what our server answers and what our command line prints, beside the vectors that were taken from Go. A Go
//! server and a Go command line are asked the same: they show that the comparison hides nothing that it should not.

use crate::{
    harness::{
        LIMIT, Process, run_within,
        shapes::{self, ALIKE, LOST_AGENT, NOT_SERVED, World, output},
        text, until,
    },
    peers::{Context, Deployment, GO_SERVER, Need, Program, Side, socket_address},
    table::{Cell, Outcome},
};
use anyhow::{Context as _, ensure};
use std::time::Duration;

const ROW: &str = "shapes";
const CELL_LIMIT: Duration = Duration::from_secs(300);

/// A command line, the vector of its output and how it is compared.
type Printed = (&'static [&'static str], &'static str, fn(&str, &str) -> Vec<String>);

const PRINTED: &[Printed] = &[
    (&["list"], "list", table),
    (&["list", "--output", "json"], "list_json", |ours, theirs| output::json(ours, theirs, &[shapes::FOLDER])),
    (&["version"], "version", version),
    (&["version", "--output", "json"], "version_json", |ours, theirs| output::json(ours, theirs, &[])),
    (&["ping", "dev", "-n", "3", "--wait", "200ms"], "ping_n3", ping),
    (&["ping", "dev", "-n", "3", "--wait", "200ms", "--utc"], "ping_utc", ping),
    (&["--disable-direct-connections", "ping", "dev", "-n", "2", "--wait", "100ms"], "ping_relayed", ping),
    (&["speedtest", "dev", "-t", "1s"], "speedtest_t3", output::texts),
    (&["speedtest", "dev", "-t", "1s", "-d", "--direction", "up"], "speedtest_direct", output::texts),
    (&["speedtest", "dev", "-t", "1s", "-c", "throughput"], "speedtest_column", output::texts),
    (&["speedtest", "dev", "-t", "1s", "-o", "json"], "speedtest_t3_json", |ours, theirs| output::json(ours, theirs, &[])),
    (&["--disable-direct-connections", "speedtest", "dev", "-t", "1s"], "speedtest_relayed", output::texts),
];

pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for side in Side::BOTH {
        let (who, server) = match side {
            Side::Ours => ("our", Vec::new()),
            Side::Go => ("Go", GO_SERVER.to_vec()),
        };
        cells
            .push(Cell::new(ROW, format!("HTTP answers of {who} server"), &server, move |c| answers(c, side)).within(CELL_LIMIT));
        let needs = [server, vec![Need::Program(Program::Coder)]].concat();
        cells.push(Cell::new(ROW, format!("output of {who} CLI"), &needs, move |c| printed(c, side)).within(CELL_LIMIT));
    }
    cells.push(Cell::new(ROW, "config-ssh of both CLIs, byte for byte", &[Need::Program(Program::Coder)], config_ssh));
    cells
}

fn answers(context: &Context, side: Side) -> Outcome {
    let deployment = Deployment::start(context, side, &["dev", "st"]);
    let address = socket_address(&deployment.url);
    let mut agent = deployment.agent(side, "dev");
    let bob = match side {
        Side::Ours => {
            let out = text(&succeeded(&deployment, side, &["users", "create", "bob"])?);
            crate::harness::coder::printed_token(&out)
        }
        Side::Go => shapes::member_of_go_server(address, &deployment.token),
    };
    let world = World::new(address, &deployment.token, &bob, &deployment.workspace("st").token);
    world.until_agent_is_there();
    let mut found = world.differences(ALIKE);
    agent.kill();
    world.until_agent_is_gone();
    found.extend(world.difference(LOST_AGENT));
    ensure!(found.is_empty(), "{}", found.join("; "));
    let reasons = ALIKE.iter().flat_map(|(_, slack)| *slack).count();
    Ok(format!("{} alike, {reasons} fields with a reason, {} routes not served", ALIKE.len() + 1, NOT_SERVED.len()))
}

fn printed(context: &Context, side: Side) -> Outcome {
    let deployment = Deployment::start(context, side, &["dev"]);
    let _agent: Process = deployment.agent(side, "dev");
    let mut found = Vec::new();
    for (args, vector, compare) in PRINTED {
        let ours = text(&succeeded(&deployment, side, args)?);
        found.extend(compare(&ours, &output::section(vector, "stdout")).into_iter().map(|line| format!("{vector}: {line}")));
    }
    found.extend(network_info(&deployment, side)?);
    ensure!(found.is_empty(), "{}", found.join("; "));
    Ok(format!("{} outputs and the network-info file alike", PRINTED.len()))
}

/// The file that editors read, as it is first written.
fn network_info(deployment: &Deployment, side: Side) -> anyhow::Result<Vec<String>> {
    let dir = deployment.dir().join("network-info");
    let dir_text = dir.to_str().context("a path of text")?;
    let args = ["ssh", "--stdio", "--usage-app=vscode", "--network-info-dir", dir_text, "--network-info-interval", "1s", "dev"];
    let mut session = Process::start_with_output("ssh --stdio", deployment.cli(side, &args));
    let file = dir.join(format!("{}.json", std::process::id()));
    let mut ours = String::new();
    until("the network-info file was never written", || {
        ours = std::fs::read_to_string(&file).unwrap_or_default();
        // Go rewrites it in place: it may be empty for a moment.
        serde_json::from_str::<serde_json::Value>(&ours).is_ok()
    });
    session.kill();
    let found = output::json(&ours, &output::section("ssh_network_info", "file D/<PPID>.json, write 1"), &[]);
    Ok(found.into_iter().map(|line| format!("network-info file: {line}")).collect())
}

/// Both write the same block for the same flags, into a file that holds something already.
fn config_ssh(context: &Context) -> Outcome {
    const FLAGS: [&[&str]; 3] = [
        &[],
        &["--ssh-option", "ForwardAgent=yes", "--wait", "no", "--disable-autostart", "--hostname-suffix", "corp"],
        &["--skip-proxy-command", "--ssh-host-prefix", "mine.", "--header", "X-Foo=bar baz"],
    ];
    // One option of the deployment: Go writes several in any order.
    let deployment = Deployment::ours(context, &["dev"], &["--ssh-config-options", "ServerAliveInterval=7"]);
    for flags in FLAGS {
        let mut files = Vec::new();
        for side in Side::BOTH {
            let file = deployment.dir().join(format!("ssh-config-{}", side.name()));
            std::fs::write(&file, "Host other\n\tUser me\n")?;
            let path = file.to_str().context("a path of text")?;
            let place = ["--coder-binary-path", "/opt/my coder/coder", "--ssh-config-file", path, "--yes"];
            let mut command = deployment.cli(side, &[&["config-ssh"], &place[..], flags].concat());
            command.env("CODER_CONFIG_DIR", deployment.dir().join("login"));
            let out = run_within(command, b"", LIMIT);
            ensure!(out.status.success(), "{} {flags:?}: {}: {}", side.name(), out.status, text(&out.stderr));
            files.push(std::fs::read_to_string(&file)?);
        }
        ensure!(files[0].contains("START-CODER") && files[0] == files[1], "{flags:?}: ours {:?}, Go's {:?}", files[0], files[1]);
    }
    Ok(format!("{} files", FLAGS.len()))
}

/// Templates and their versions have other names.
fn table(ours: &str, theirs: &str) -> Vec<String> {
    let plain = |text: &str| {
        let row = |line: &str| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            if words.first().is_some_and(|first| first.contains('/')) {
                words[1] = "<template>";
                words[5] = "<version>";
            }
            words.join(" ")
        };
        text.lines().map(row).collect::<Vec<_>>().join("\n")
    };
    output::texts(&plain(ours), &plain(theirs))
}

/// The first line alone is for programs.
fn version(ours: &str, theirs: &str) -> Vec<String> {
    let first = |text: &str| text.lines().next().unwrap_or_default().split(" v").next().unwrap_or_default().to_owned();
    output::texts(&first(ours), &first(theirs))
}

/// The first pongs come by relay where the direct path is not proved yet.
fn ping(ours: &str, theirs: &str) -> Vec<String> {
    let settled = |text: &str| {
        let last = text.lines().collect::<Vec<_>>().iter().rposition(|line| line.contains("pong from "));
        let rest = text.lines().enumerate().filter(|(at, line)| !line.contains("pong from ") || Some(*at) == last);
        rest.map(|(_, line)| line).collect::<Vec<_>>().join("\n")
    };
    output::texts(&settled(ours), &settled(theirs))
}

fn succeeded(deployment: &Deployment, side: Side, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let out = run_within(deployment.cli(side, args), b"", LIMIT);
    ensure!(out.status.success(), "{args:?}: {}: {}", out.status, text(&out.stderr));
    Ok(out.stdout)
}
