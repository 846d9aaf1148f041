use super::{
    document::{Document, shape},
    judge::Severity,
    *,
};
use crate::wire::derp::ServerInfo;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

fn map(nodes: &[Value]) -> RelayMap {
    let region = json!({ "RegionID": 999, "RegionCode": "coder", "RegionName": "Relay", "EmbeddedRelay": true, "Nodes": nodes });
    RelayMap::from_json(&json!({ "Regions": { "999": region } })).unwrap()
}

fn node_of(name: &str, stun: i64) -> Value {
    json!({ "Name": name, "RegionID": 999, "HostName": "127.0.0.1", "STUNPort": stun, "DERPPort": 3100, "ForceHTTP": true })
}

fn well() -> RelayCheck {
    RelayCheck {
        latency: Some(Duration::from_micros(440)),
        address: Some("127.0.0.1:3100".parse().unwrap()),
        round_trip: Some(Duration::from_nanos(2_586_966)),
        info: ServerInfo { bytes_per_second: 7, bytes_burst: 8, ..ServerInfo::default() },
        logs: [vec!["a".into()], vec!["b".into()]],
        ..RelayCheck::default()
    }
}

fn sees_us() -> StunCheck {
    let public: SocketAddr = "192.0.2.1:7".parse().unwrap();
    StunCheck { v4: Some((public, Duration::from_millis(1))), sent_v4: true, ..StunCheck::default() }
}

fn silent() -> StunCheck {
    StunCheck { sent_v4: true, error: Some("127.0.0.1:3478 did not answer".into()), ..StunCheck::default() }
}

/// The document of one region whose nodes were found so.
fn document(found: Vec<(Option<RelayCheck>, Option<StunCheck>)>, own: &Report, interfaces: &[Interface]) -> (Document, Value) {
    let nodes: Vec<Value> = found
        .iter()
        .enumerate()
        .map(|(at, (_, stun))| node_of(&format!("999{at}"), if stun.is_some() { 3478 } else { -1 }))
        .collect();
    let map = map(&nodes);
    let id = *map.regions.keys().next().unwrap();
    let nodes: Vec<_> = found.into_iter().map(|(relay, stun)| (id, Node { relay, stun, late: false })).collect();
    let document = Document::new(&map, &nodes, Ok(own), true, &Ok(interfaces.to_vec()));
    let json = serde_json::to_value(&document).unwrap();
    (document, json)
}

use crate::driver::interfaces::Interface;

fn home() -> Report {
    let id = RegionId::new(999).unwrap();
    Report { relay_latency: [(id, Duration::from_micros(440))].into(), home: Some(id), ..Report::default() }
}

fn lo() -> Vec<Interface> {
    vec![Interface { name: "lo".into(), mtu: Some(65_536), addresses: vec!["127.0.0.1/8".into()] }]
}

fn codes(json: &Value) -> Vec<&str> {
    json.as_array().map(|list| list.iter().map(|w| w["code"].as_str().unwrap()).collect()).unwrap_or_default()
}

#[test]
fn the_document_has_the_keys_and_types_of_the_go_command_line() {
    let shape_of = |json: &Value| {
        let mut out: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        shape(json, "", &mut out);
        out
    };
    let ours = shape_of(&document(vec![(Some(well()), None)], &home(), &lo()).1);
    let vector = include_str!("../../../tests/vectors/cli/netcheck.txt");
    let body: Vec<&str> = vector.lines().skip_while(|l| *l != "## stdout").skip(1).take_while(|l| *l != "## stderr").collect();
    let theirs = shape_of(&serde_json::from_str(&body.join("\n")).unwrap());
    // The Go peer met an empty list where we have one too.
    let keys = |of: &BTreeMap<String, BTreeSet<&'static str>>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&ours), keys(&theirs));
    assert_eq!(ours, theirs);
}

#[test]
fn figures_are_in_the_units_that_readers_expect() {
    let (_, json) = document(vec![(Some(well()), Some(sees_us()))], &home(), &lo());
    let node = &json["derp"]["regions"]["999"]["node_reports"][0];
    assert_eq!((&node["round_trip_ping"], &node["round_trip_ping_ms"]), (&json!("2.586966ms"), &json!(2)));
    assert_eq!(node["node_info"], json!({ "TokenBucketBytesPerSecond": 7, "TokenBucketBytesBurst": 8 }));
    assert_eq!(node["stun"], json!({ "Enabled": true, "CanSTUN": true, "Error": null }));
    let netcheck = &json["derp"]["netcheck"];
    assert_eq!((&netcheck["RegionLatency"]["999"], &netcheck["RegionV4Latency"]["999"]), (&json!(440_000), &json!(440_000)));
    assert_eq!(
        (&netcheck["UDP"], &netcheck["GlobalV4"], &netcheck["IPv6"]),
        (&json!(true), &json!("192.0.2.1:7"), &json!(false))
    );
    assert_eq!(netcheck["PreferredDERP"], 999);
}

#[test]
fn each_fault_has_its_code_and_severity() {
    let websocket = || RelayCheck { websocket: true, ..well() };
    let dead = || RelayCheck { round_trip: None, errors: [vec!["no".into()], vec![]], ..well() };
    type Case = (&'static str, Vec<(Option<RelayCheck>, Option<StunCheck>)>, Severity, bool, &'static [&'static str]);
    let cases: Vec<Case> = vec![
        ("all well", vec![(Some(well()), Some(sees_us()))], Severity::Ok, true, &[]),
        ("no stun at all", vec![(Some(well()), None)], Severity::Ok, true, &[]),
        ("websocket", vec![(Some(websocket()), None)], Severity::Warning, true, &["EDERP01"]),
        ("dead", vec![(Some(dead()), None)], Severity::Error, false, &[]),
        ("one of two dead", vec![(Some(dead()), None), (Some(well()), None)], Severity::Warning, true, &["EDERP02"]),
        ("both dead", vec![(Some(dead()), None), (Some(dead()), None)], Severity::Error, false, &[]),
        ("no node", vec![], Severity::Error, false, &["EDERP03"]),
        ("no stun answers", vec![(None, Some(silent()))], Severity::Error, false, &["ESTUN01"]),
        ("one stun answers", vec![(None, Some(silent())), (None, Some(sees_us()))], Severity::Warning, true, &["EDERP02"]),
    ];
    for (name, found, severity, healthy, told) in cases {
        let (document, json) = document(found, &home(), &lo());
        assert_eq!((document.derp.severity, document.derp.healthy), (severity, healthy), "{name}: {json:#}");
        assert_eq!(codes(&json["derp"]["warnings"]), told, "{name}");
    }
    let none = RelayMap::from_json(&json!({ "Regions": {} })).unwrap();
    let json = serde_json::to_value(Document::new(&none, &[], Err("no region".into()), true, &Ok(lo().to_vec()))).unwrap();
    assert_eq!((codes(&json["derp"]["warnings"]), &json["derp"]["healthy"]), (vec!["EDERP03"], &json!(false)));
    let hard = Report { mapping_varies: Some(true), ..home() };
    let (_, json) = document(vec![(Some(well()), Some(sees_us()))], &hard, &lo());
    assert_eq!((codes(&json["derp"]["warnings"]), &json["derp"]["severity"]), (vec!["ESTUN02"], &json!("warning")));
}

#[test]
fn a_narrow_interface_is_named() {
    let narrow = vec![Interface { name: "wg0".into(), mtu: Some(1_377), addresses: Vec::new() }];
    let (_, json) = document(Vec::new(), &home(), &narrow);
    let interfaces = &json["interfaces"];
    assert_eq!((codes(&interfaces["warnings"]), &interfaces["severity"]), (vec!["EIF01"], &json!("warning")));
    assert!(interfaces["warnings"][0]["message"].as_str().unwrap().contains("wg0"));
    let unknown = vec![Interface { name: "en0".into(), mtu: None, addresses: Vec::new() }];
    assert_eq!(document(Vec::new(), &home(), &unknown).1["interfaces"]["warnings"], Value::Null);
}
