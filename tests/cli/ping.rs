//! `coder ping` as people and programs read it: diagnostics, pongs, summary, JSON.

use crate::{
    Lab,
    harness::{
        Server,
        process::{LIMIT, Process, run, text},
    },
};
use rustix::process::Signal;
use serde_json::Value;

/// Runs pings that succeed; what they printed on standard output and standard error.
fn ping(server: &Server, arguments: &[&str]) -> (String, String) {
    let arguments = [&["ping", "--wait", "100ms"], arguments].concat();
    let out = run(server.coder(&arguments), b"");
    assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

#[test]
fn a_ping_tells_way_and_time_in_the_words_that_programs_parse() {
    let lab = Lab::new();
    let out = run(lab.server.coder(&["ping", "dev", "-n", "3", "--wait", "200ms"]), b"");
    let shown = text(&out.stdout);
    assert!(out.status.success(), "{shown}{}", text(&out.stderr));
    let pongs: Vec<&str> = shown.lines().filter(|l| l.starts_with("pong from dev ")).collect();
    assert_eq!(pongs.len(), 3, "{shown}");
    for pong in &pongs {
        let direct = pong.starts_with("pong from dev p2p via 127.0.0.1:") && pong.contains(" in ");
        let relayed = pong.starts_with("pong from dev proxied via DERP(Coder Embedded Relay) in ");
        assert!((direct || relayed) && pong.ends_with('s'), "{pong:?}");
    }
    assert!(pongs[2].contains(" p2p via "), "two machines in one are not direct: {pongs:?}");
    let out = run(lab.server.coder(&["ping", "dev", "-n", "2", "--wait", "100ms", "--disable-direct-connections"]), b"");
    let shown = text(&out.stdout);
    let relayed = shown.lines().filter(|l| l.starts_with("pong from dev proxied via DERP(")).count();
    assert!(out.status.success() && relayed == 2, "{shown}{}", text(&out.stderr));
}

#[test]
fn the_state_of_the_connection_is_told_before_the_pongs() {
    let lab = Lab::new();
    let (_, said) = ping(&lab.server, &["dev", "-n", "3"]);
    // The vector's lines up to its first blank one; addresses and ages are others.
    let shape = |text: &str| {
        let lines = text.lines().take_while(|line| !line.is_empty());
        let cut = |line: &str| line.split_inclusive("endpoints: ").next().unwrap().replace(|c: char| c.is_ascii_digit(), "#");
        lines.map(cut).collect::<Vec<_>>()
    };
    let go = include_str!("../vectors/cli/ping_n3.txt").split("## stderr\n").nth(1).unwrap();
    assert_eq!(shape(&said), shape(go));
    let endpoints = said.lines().find_map(|line| line.strip_prefix("    endpoints: ")).unwrap();
    assert!(!endpoints.is_empty() && said.contains("\n\n✔ You are connected directly (p2p)"), "{said}");

    let (_, said) = ping(&lab.server, &["dev", "-n", "1", "--disable-direct-connections"]);
    let relayed = said.lines().find(|line| line.starts_with("❗ You are connected via a DERP relay"));
    assert!(relayed.is_some() && said.contains("CODER_DISABLE_DIRECT_CONNECTIONS"), "{said}");

    let server = Server::start(&["--block-direct-connections"]);
    let _agent = server.workspace("dev");
    let (_, said) = ping(&server, &["dev", "-n", "1"]);
    assert!(said.contains("#disabled-deployment-wide"), "{said}");
}

#[test]
fn the_pong_names_the_workspace_as_it_was_typed() {
    let lab = Lab::new();
    let (shown, _) = ping(&lab.server, &["me/dev.main", "-n", "1"]);
    assert!(shown.starts_with("pong from me/dev.main "), "{shown}");
    assert!(shown.lines().last().unwrap().starts_with("me/dev.main "), "{shown}");
}

#[test]
fn the_document_is_alone_on_standard_output() {
    let lab = Lab::new();
    let (shown, said) = ping(&lab.server, &["dev", "-n", "2", "-o", "json"]);
    let document: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&document["workspace"], &document["summary"]["total"]), (&Value::from("dev"), &Value::from(2)));
    let pongs = document["pongs"].as_array().unwrap();
    assert_eq!(pongs.iter().map(|pong| pong["sequence"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    for pong in pongs {
        let relay = pong["derp_region"].as_str();
        assert_eq!(pong["direct"].as_bool().unwrap(), relay.is_none(), "{pong}");
        assert!(pong["latency_ms"].as_f64().unwrap() > 0.0 && pong["time"].as_str().unwrap().ends_with('Z'), "{pong}");
    }
    assert_eq!(said.lines().filter(|line| line.starts_with("pong from dev ")).count(), 2, "{said}");
    let out = run(lab.server.coder(&["ping", "dev", "-o", "json"]), b"");
    assert!(out.status.code() == Some(1) && text(&out.stderr).contains("--num"), "{}", text(&out.stderr));
}

#[test]
fn the_summary_has_the_columns_that_were_asked_for() {
    let lab = Lab::new();
    let (shown, _) = ping(&lab.server, &["dev", "-n", "1", "-c", "Total,successful"]);
    let lines: Vec<&str> = shown.lines().skip(1).collect();
    assert_eq!(lines, ["-------------------", "TOTAL  SUCCESSFUL  ", "    1           1  "], "{shown}");
}

#[test]
fn an_interrupted_ping_gives_its_summary() {
    let lab = Lab::new();
    let mut process = Process::start("coder ping", lab.server.coder(&["ping", "dev", "--wait", "50ms"]));
    for _ in 0..2 {
        process.wait_for("pong from dev ");
    }
    process.signal(Signal::INT);
    let finished = process.finish(LIMIT);
    assert_eq!(finished.code(), Some(0), "{}", finished.said());
    // Lines of both streams, in the order in which they were read.
    assert!(finished.lines.iter().any(|line| line.starts_with("WORKSPACE  TOTAL  SUCCESSFUL  ")), "{}", finished.said());
    let row = finished.lines.iter().find(|line| line.starts_with("dev ")).unwrap_or_else(|| panic!("{}", finished.said()));
    let pongs = finished.lines.iter().filter(|line| line.starts_with("pong from dev ")).count();
    assert_eq!(row.split_whitespace().nth(2), Some(pongs.to_string().as_str()), "{}", finished.said());
}

#[test]
fn a_verbose_ping_logs_in_the_form_that_support_staff_know() {
    let lab = Lab::new();
    let (_, said) = ping(&lab.server, &["dev", "-n", "1", "-v"]);
    let line = said.lines().find(|line| line.contains("sending disco ping to [")).expect(&said);
    let (stamp, rest) = line.split_at("2026-11-22 23:16:17.634".len());
    assert!(stamp.chars().all(|c| c.is_ascii_digit() || "-: .".contains(c)), "{line}");
    assert!(rest.starts_with(" [debu]  net.wgengine: ping(fd7a:115c:a1e0:") && rest.ends_with("] ..."), "{line}");
}

#[test]
fn a_token_that_may_not_connect_is_told_which_scope_it_lacks() {
    let lab = Lab::new();
    let made = run(lab.server.coder(&["tokens", "create", "--scope", "workspace:read"]), b"");
    let token = text(&made.stdout);
    for arguments in [&["ping", "dev", "-n", "1"][..], &["speedtest", "dev"], &["ssh", "dev", "--", "true"]] {
        let out = run(lab.server.coder_as(token.trim(), arguments), b"");
        let said = text(&out.stderr);
        assert!(out.status.code() == Some(1) && said.contains("lacks the scope workspace:ssh"), "{arguments:?}: {said}");
    }
}
