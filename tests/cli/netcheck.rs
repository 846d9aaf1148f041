//! `coder netcheck` as people and editors run it.

use crate::{
    Lab,
    harness::{
        Server,
        process::{run, run_within, text},
    },
};
use serde_json::Value;
use std::{net::UdpSocket, process::Command, time::Duration};

/// Longest that the command may take, whatever does not answer.
const LIMIT: Duration = Duration::from_secs(30);

/// The document that a command prints, and what it says beside.
pub(crate) fn document(command: Command) -> Value {
    let out = run_within(command, b"", LIMIT);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stderr).starts_with("Gathering a network report."), "{}", text(&out.stderr));
    let shown = text(&out.stdout);
    assert!(shown.ends_with("\n}\n"), "{shown}");
    serde_json::from_str(&shown).unwrap_or_else(|e| panic!("{e}: {shown}"))
}

#[test]
fn netcheck_finds_the_embedded_relay_well_and_takes_it_as_home() {
    let server = Server::start(&[]);
    let found = document(server.coder(&["netcheck"]));
    println!("{found:#}");
    let (derp, region) = (&found["derp"], &found["derp"]["regions"]["999"]);
    assert_eq!((&derp["healthy"], &region["healthy"], &derp["severity"]), (&true.into(), &true.into(), &"ok".into()));
    assert_eq!(derp["netcheck"]["PreferredDERP"], 999);
    assert_eq!(region["region"]["EmbeddedRelay"], true);
    let node = &region["node_reports"][0];
    assert_eq!((&node["can_exchange_messages"], &node["uses_websocket"]), (&true.into(), &false.into()));
    assert!(node["round_trip_ping"].as_str().unwrap().ends_with('s') && node["round_trip_ping_ms"].is_u64(), "{node}");
    assert_eq!((node["client_logs"].as_array().unwrap().len(), &node["client_errs"]), (2, &serde_json::json!([[], []])));
    let latency = derp["netcheck"]["RegionLatency"]["999"].as_u64().unwrap();
    assert!((1_000..5_000_000_000).contains(&latency), "nanoseconds: {latency}");
    assert_eq!(derp["netcheck"]["RegionV4Latency"].as_object().unwrap().len(), 1);
}

/// What the editor's schema demands (`vscode-coder`, the view of a network check).
#[test]
fn the_document_passes_the_editors_schema() {
    let lab = Lab::new();
    let found = document(lab.server.coder(&["netcheck", "--global-config", "/nowhere"]));
    let is = |value: &Value, path: &str, kind: fn(&Value) -> bool| {
        assert!(value.pointer(path).is_some_and(kind), "{path} in {value:#}");
    };
    for name in ["UDP", "IPv4", "IPv6"] {
        is(&found, &format!("/derp/netcheck/{name}"), Value::is_boolean);
    }
    is(&found, "/derp/netcheck/PreferredDERP", Value::is_u64);
    for region in found["derp"]["regions"].as_object().unwrap().values() {
        is(region, "/region/RegionID", Value::is_u64);
        is(region, "/region/RegionName", Value::is_string);
        is(region, "/region/EmbeddedRelay", Value::is_boolean);
        for node in region["node_reports"].as_array().unwrap() {
            is(node, "/round_trip_ping_ms", Value::is_u64);
            for path in ["/can_exchange_messages", "/stun/Enabled", "/stun/CanSTUN"] {
                is(node, path, Value::is_boolean);
            }
        }
    }
    for severity in ["/derp/severity", "/interfaces/severity"] {
        is(&found, severity, |s| matches!(s.as_str(), Some("ok" | "warning" | "error")));
    }
    let interfaces = found["interfaces"]["interfaces"].as_array().unwrap();
    assert!(interfaces.iter().any(|i| i["name"] == "lo" && i["mtu"].as_u64() > Some(1_000)), "{interfaces:?}");
    interfaces.iter().for_each(|i| is(i, "/addresses", Value::is_array));
}

#[test]
fn a_stun_server_that_never_answers_is_named_and_bounds_the_check() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let server = Server::start(&["--derp-server-stun-addresses", &address]);
    let began = std::time::Instant::now();
    let found = document(server.coder(&["netcheck"]));
    println!("netcheck with a silent STUN server took {:?}", began.elapsed());
    let derp = &found["derp"];
    assert_eq!(
        (&derp["healthy"], &derp["severity"], &derp["regions"]["999"]["healthy"]),
        (&false.into(), &"error".into(), &true.into())
    );
    let silent = derp["regions"].as_object().unwrap().values().find(|r| r["healthy"] == false).unwrap();
    let stun = &silent["node_reports"][0]["stun"];
    assert_eq!((&stun["Enabled"], &stun["CanSTUN"]), (&true.into(), &false.into()));
    assert!(stun["Error"].as_str().unwrap().contains(&address), "{stun}");
    assert_eq!(silent["node_reports"][0]["client_logs"], serde_json::json!([]));
}

#[test]
fn netcheck_without_a_login_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(crate::harness::coder());
    crate::harness::clean(&mut command).arg("netcheck").env("CODER_CONFIG_DIR", folder.path()).env("HOME", folder.path());
    let out = run(command, b"");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), String::new()));
    assert!(text(&out.stderr).contains("login") && text(&out.stderr).lines().count() == 1, "{}", text(&out.stderr));
}
