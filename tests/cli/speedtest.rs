//! `coder speedtest` as its users and editors run it: both directions and ways, table and JSON, and a capture of it all.

use crate::{
    Lab,
    harness::{
        Server,
        process::{LIMIT, Process, run, run_within, text},
    },
};
use serde_json::Value;
use std::{fs, time::Duration};

/// Runs a test that succeeds; what it printed on standard output and standard error.
fn speedtest(lab: &Lab, arguments: &[&str]) -> (String, String) {
    let arguments: Vec<&str> = ["speedtest", "dev"].iter().chain(arguments).copied().collect();
    let out = run(lab.server.coder(&arguments), b"");
    assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

/// The numbers of one interval: begin, end, throughput.
fn interval(value: &Value) -> (f64, f64, f64) {
    let fields = value.as_object().unwrap();
    assert_eq!(fields.len(), 3, "{value}");
    let number = |name: &str| fields[name].as_f64().unwrap();
    (number("start_time_seconds"), number("end_time_seconds"), number("throughput_mbits"))
}

#[test]
fn each_direction_and_way_gives_figures_that_add_up() {
    let lab = Lab::new();
    for direction in ["down", "up"] {
        for (ways, told) in [(&["-d"][..], "direct via 127.0.0.1:"), (&["--disable-direct-connections"], "relayed via DERP(")] {
            let arguments = [&["-t", "1200ms", "--output", "json", "--direction", direction], ways].concat();
            let (stdout, stderr) = speedtest(&lab, &arguments);
            assert!(stdout.ends_with("\n}\n"), "{stdout}");
            let figures: Value = serde_json::from_str(&stdout).unwrap();
            let (start, end, throughput) = interval(&figures["overall"]);
            assert!(start == 0.0 && (1.0..20.0).contains(&end) && throughput > 1.0, "{arguments:?}: {stdout}");
            let intervals: Vec<_> = figures["intervals"].as_array().unwrap().iter().map(interval).collect();
            let (mut reached, mut bits) = (0.0, 0.0);
            for (from, to, throughput) in &intervals {
                assert_eq!(*from, reached, "{stdout}");
                reached = *to;
                bits += throughput * (to - from);
            }
            // A last piece of 10 ms is left out, whatever it held.
            assert!(end - reached <= 0.010_001 && bits <= throughput * end * 1.001, "{stdout}");
            assert!(reached < end || (bits - throughput * end).abs() < bits * 1e-6, "{stdout}");
            let line = stderr.lines().find(|l| l.starts_with("Testing the ")).unwrap();
            assert!(line.contains(told) && line.contains("for 1.2s"), "{line}");
            // Way and time of each second, in the words of the Go command line.
            let way = if ways[0] == "-d" { "ms via direct" } else { "ms via coder" };
            assert!(stderr.lines().skip_while(|l| !l.starts_with("Testing the ")).any(|l| l.ends_with(way)), "{stderr}");
            assert_eq!(stderr.lines().next() == Some("Direct connections disabled."), ways[0] != "-d", "{stderr}");
        }
    }
}

#[test]
fn the_table_has_the_columns_that_were_asked_for_and_a_row_for_all() {
    let lab = Lab::new();
    let (stdout, _) = speedtest(&lab, &["-t", "100ms"]);
    let lines: Vec<&str> = stdout.lines().collect();
    let [head, first, rule, all] = lines.as_slice() else { panic!("{stdout}") };
    assert!(head.starts_with("INTERVAL       THROUGHPUT "), "{stdout}");
    assert!(first.starts_with("0.00-0.") && first.ends_with(" Mbits/sec  "), "{stdout}");
    assert_eq!(*rule, "-".repeat(head.len()), "{stdout}");
    assert!(all.starts_with("0.00-0.") && lines.iter().all(|l| l.len() == head.len()), "{stdout}");
    let (stdout, _) = speedtest(&lab, &["-t", "100ms", "-c", "Transfer", "--direction=up"]);
    assert!(stdout.starts_with("TRANSFER ") && stdout.lines().last().unwrap().ends_with(" MBits  "), "{stdout}");
}

#[test]
fn a_direct_path_that_cannot_come_is_told_at_once() {
    let lab = Lab::new();
    let refused = |server: &Server, arguments: &[&str], named: &str| {
        let out = run_within(server.coder(arguments), b"", Duration::from_secs(15));
        let said = text(&out.stderr);
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), String::new()), "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.starts_with("error: ") && last.contains(named), "{said}");
    };
    let both = ["speedtest", "-d", "--disable-direct-connections", "dev"];
    refused(&lab.server, &both, "--disable-direct-connections");
    let server = Server::start(&["--block-direct-connections"]);
    let _agent = server.workspace("dev");
    refused(&server, &["speedtest", "-d", "dev"], "relayed connections only");
}

#[test]
fn an_agent_that_dies_in_a_test_ends_it_with_the_reason() {
    for direction in ["down", "up"] {
        let mut lab = Lab::new();
        let arguments = ["speedtest", "dev", "-t", "10s", "--direction", direction];
        let mut process = Process::start("the speed test", lab.server.coder(&arguments));
        process.wait_for("Testing the ");
        lab.agent.kill();
        let line = process.wait_within("error: ", Duration::from_secs(60));
        assert!(line.contains("the agent of dev broke off"), "{line}");
        assert_eq!(process.wait(LIMIT).code(), Some(1));
    }
}

#[test]
fn two_tests_at_once_both_end_well() {
    let lab = Lab::new();
    let start = |direction| {
        let command = lab.server.coder(&["speedtest", "dev", "-t", "300ms", "--direction", direction]);
        Process::start("the speed test", command)
    };
    for mut process in ["down", "up"].map(start) {
        process.wait_for("INTERVAL");
        let status = process.wait(LIMIT);
        assert!(status.success(), "{status}: {:?}", process.drain());
    }
}

#[test]
fn a_capture_holds_every_packet_of_the_connection() {
    let lab = Lab::new();
    let path = lab.server.dir.path().join("test.pcap");
    speedtest(&lab, &["-t", "0", "--pcap-file", path.to_str().unwrap()]);
    let file = fs::read(&path).unwrap();
    // Little-endian microseconds, version 2.4, link type 147.
    assert_eq!((&file[..8], &file[20..24]), (&b"\xd4\xc3\xb2\xa1\x02\0\x04\0"[..], &[147, 0, 0, 0][..]));
    let (mut rest, mut syns, mut payload) = (&file[24..], Vec::new(), [0, 0]);
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let (record, next) = rest[16..].split_at(length);
        rest = next;
        let (from_peer, packet) = (usize::from(record[0]), &record[4..]);
        assert!(from_peer < 2 && record[1..4] == [0, 0, 0], "{record:?}");
        assert_eq!((packet[0] >> 4, 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]))), (6, packet.len()));
        if packet[6] == 6 {
            let tcp = &packet[40..];
            let ports = [[tcp[0], tcp[1]], [tcp[2], tcp[3]]].map(u16::from_be_bytes);
            assert_eq!(ports[1 - from_peer], 3, "{ports:?}");
            if tcp[13] & 2 != 0 {
                syns.push(from_peer);
            }
            payload[from_peer] += tcp.len() - usize::from(tcp[12] >> 4) * 4;
        }
    }
    assert_eq!(syns, [0, 1], "one SYN from here, one answer");
    assert!(payload[1] >= (2 << 20) + 3 && (1..1000).contains(&payload[0]), "{payload:?}");
    let out = run(lab.server.coder(&["speedtest", "dev", "--pcap-file", "/nowhere/x.pcap"]), b"");
    assert!(text(&out.stderr).starts_with("error: ") && text(&out.stderr).contains("/nowhere/x.pcap"), "{}", text(&out.stderr));
}
