//! The document as editors and scripts read it: keys, their order and their types are those of the Go command line.

use super::{
    Node,
    judge::{self, Severity, Warning},
    told,
};
use crate::{
    base::RegionId, cli::go_time::go_text, driver::interfaces::Interface, proto::netcheck::Report, wire::derp::RelayMap,
};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Document {
    pub(super) derp: Derp,
    pub(in crate::cli) interfaces: Interfaces,
}

#[derive(Debug, Serialize)]
pub(super) struct Derp {
    pub(super) severity: Severity,
    pub(super) warnings: Vec<Warning>,
    dismissed: bool,
    pub(super) healthy: bool,
    pub(super) regions: BTreeMap<String, RegionReport>,
    netcheck: Option<Netcheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netcheck_err: Option<String>,
    netcheck_logs: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct RegionReport {
    pub(super) healthy: bool,
    pub(super) severity: Severity,
    pub(super) warnings: Vec<Warning>,
    region: Value,
    pub(super) node_reports: Vec<NodeReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeReport {
    pub(super) healthy: bool,
    pub(super) severity: Severity,
    pub(super) warnings: Vec<Warning>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    node: Value,
    node_info: NodeInfo,
    pub(super) can_exchange_messages: bool,
    round_trip_ping: String,
    round_trip_ping_ms: u64,
    pub(super) uses_websocket: bool,
    client_logs: Vec<Vec<String>>,
    client_errs: Vec<Vec<String>>,
    pub(super) stun: Stun,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeInfo {
    token_bucket_bytes_per_second: u64,
    token_bucket_bytes_burst: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Stun {
    #[serde(rename = "Enabled")]
    pub(super) enabled: bool,
    #[serde(rename = "CanSTUN")]
    pub(super) can: bool,
    #[serde(rename = "Error")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Netcheck {
    #[serde(rename = "UDP")]
    udp: bool,
    #[serde(rename = "IPv6")]
    ipv6: bool,
    #[serde(rename = "IPv4")]
    ipv4: bool,
    #[serde(rename = "IPv6CanSend")]
    ipv6_can_send: bool,
    #[serde(rename = "IPv4CanSend")]
    ipv4_can_send: bool,
    #[serde(rename = "OSHasIPv6")]
    os_has_ipv6: bool,
    #[serde(rename = "ICMPv4")]
    icmp_v4: bool,
    #[serde(rename = "MappingVariesByDestIP")]
    mapping_varies: Option<bool>,
    #[serde(rename = "HairPinning")]
    hair_pinning: Option<bool>,
    #[serde(rename = "UPnP")]
    upnp: bool,
    #[serde(rename = "PMP")]
    pmp: bool,
    #[serde(rename = "PCP")]
    pcp: bool,
    #[serde(rename = "PreferredDERP")]
    preferred: u16,
    /// In nanoseconds, as the other two.
    #[serde(rename = "RegionLatency")]
    latency: BTreeMap<String, u64>,
    #[serde(rename = "RegionV4Latency")]
    latency_v4: BTreeMap<String, u64>,
    #[serde(rename = "RegionV6Latency")]
    latency_v6: BTreeMap<String, u64>,
    #[serde(rename = "GlobalV4")]
    global_v4: String,
    #[serde(rename = "GlobalV6")]
    global_v6: String,
    #[serde(rename = "CaptivePortal")]
    captive_portal: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Interfaces {
    pub(super) severity: Severity,
    /// Null when there are none, unlike all others.
    pub(super) warnings: Option<Vec<Warning>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    dismissed: bool,
    interfaces: Vec<InterfaceReport>,
}

#[derive(Debug, Serialize)]
struct InterfaceReport {
    name: String,
    /// 0 where the system does not tell.
    mtu: u32,
    addresses: Vec<String>,
}

impl Document {
    pub(super) fn new(
        map: &RelayMap,
        nodes: &[(RegionId, Node)],
        own: Result<&Report, String>,
        os_has_ipv6: bool,
        interfaces: &io::Result<Vec<Interface>>,
    ) -> Self {
        Self { derp: derp(map, nodes, own, os_has_ipv6), interfaces: interfaces_report(interfaces) }
    }
}

fn derp(map: &RelayMap, nodes: &[(RegionId, Node)], own: Result<&Report, String>, os_has_ipv6: bool) -> Derp {
    let json = map.to_json();
    let mut regions: BTreeMap<String, RegionReport> = BTreeMap::new();
    for id in map.regions.keys() {
        let region = json.pointer(&format!("/Regions/{id}")).cloned().unwrap_or_default();
        let of_region = nodes.iter().filter(|(of, _)| of == id).enumerate();
        let node_reports: Vec<_> =
            of_region.map(|(at, (_, node))| node_report(node, region.pointer(&format!("/Nodes/{at}")))).collect();
        let (severity, warnings) = judge::region(&node_reports);
        let healthy = severity != Severity::Error;
        regions.insert(id.to_string(), RegionReport { healthy, severity, warnings, region, node_reports });
    }
    let (severity, warnings) = judge::all(&regions, own.as_ref().ok().and_then(|report| report.mapping_varies));
    let healthy = !regions.is_empty() && regions.values().all(|region| region.healthy);
    let netcheck_logs = own.as_ref().map(|report| vec![told(report)]).unwrap_or_default();
    let netcheck = own.as_ref().ok().map(|report| netcheck(nodes, report, os_has_ipv6));
    Derp { severity, warnings, dismissed: false, healthy, regions, netcheck, netcheck_err: own.err(), netcheck_logs }
}

fn node_report(found: &Node, json: Option<&Value>) -> NodeReport {
    let relay = found.relay.as_ref();
    let round_trip = relay.and_then(|r| r.round_trip);
    let stun = Stun {
        enabled: found.stun.is_some(),
        can: found.stun.as_ref().is_some_and(crate::driver::stun::StunCheck::answered),
        error: found.stun.as_ref().and_then(|s| s.error.clone()),
    };
    let lists = |of: fn(&crate::driver::relay::RelayCheck) -> &[Vec<String>; 2]| relay.map_or_else(Vec::new, |r| of(r).to_vec());
    let mut report = NodeReport {
        healthy: true,
        severity: Severity::Ok,
        warnings: Vec::new(),
        error: found.late.then(|| "the time for this node was over before it had answered".to_owned()),
        node: json.cloned().unwrap_or_default(),
        node_info: NodeInfo {
            token_bucket_bytes_per_second: relay.map_or(0, |r| r.info.bytes_per_second),
            token_bucket_bytes_burst: relay.map_or(0, |r| r.info.bytes_burst),
        },
        can_exchange_messages: round_trip.is_some(),
        round_trip_ping: round_trip.map(go_text).unwrap_or_default(),
        round_trip_ping_ms: round_trip.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        uses_websocket: relay.is_some_and(|r| r.websocket),
        client_logs: lists(|r| &r.logs),
        client_errs: lists(|r| &r.errors),
        stun,
    };
    (report.severity, report.warnings) = judge::node(&report, relay.is_some());
    report.healthy = report.severity != Severity::Error;
    report
}

fn netcheck(nodes: &[(RegionId, Node)], own: &Report, os_has_ipv6: bool) -> Netcheck {
    let relays = || nodes.iter().filter_map(|(id, node)| Some((*id, node.relay.as_ref()?)));
    let stuns = || nodes.iter().filter_map(|(_, node)| node.stun.as_ref());
    // Through a proxy the family is that of the way to it, as with the Go command line.
    let by_family = |v4: bool| -> BTreeMap<String, u64> {
        let of_family = |address: Option<SocketAddr>| address.is_some_and(|a| is_v4(a.ip()) == v4);
        let mut best = BTreeMap::new();
        for (id, relay) in relays().filter(|(_, relay)| of_family(relay.address)) {
            let Some(latency) = relay.latency.map(nanos) else { continue };
            best.entry(id.to_string()).and_modify(|t: &mut u64| *t = latency.min(*t)).or_insert(latency);
        }
        best
    };
    let (latency_v4, latency_v6) = (by_family(true), by_family(false));
    let mut latency: BTreeMap<String, u64> = own.relay_latency.iter().map(|(id, t)| (id.to_string(), nanos(*t))).collect();
    for (id, time) in latency_v4.iter().chain(&latency_v6) {
        latency.entry(id.clone()).and_modify(|t| *t = (*t).min(*time)).or_insert(*time);
    }
    let global_v4 = own.global_v4.or_else(|| stuns().find_map(|s| s.v4).map(|(public, _)| public));
    let global_v6 = own.global_v6.or_else(|| stuns().find_map(|s| s.v6).map(|(public, _)| public));
    let text = |address: Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    Netcheck {
        udp: global_v4.is_some() || global_v6.is_some(),
        ipv6: global_v6.is_some() || !latency_v6.is_empty(),
        ipv4: global_v4.is_some() || !latency_v4.is_empty(),
        ipv6_can_send: global_v6.is_some() || stuns().any(|s| s.sent_v6),
        ipv4_can_send: global_v4.is_some() || stuns().any(|s| s.sent_v4),
        os_has_ipv6,
        // Neither ICMP nor the router's port mapping is asked for.
        icmp_v4: false,
        mapping_varies: own.mapping_varies,
        hair_pinning: None,
        upnp: false,
        pmp: false,
        pcp: false,
        preferred: own.home.map_or(0, RegionId::get),
        latency,
        latency_v4,
        latency_v6,
        global_v4: text(global_v4),
        global_v6: text(global_v6),
        captive_portal: None,
    }
}

const fn is_v4(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => ip.to_ipv4_mapped().is_some(),
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn interfaces_report(found: &io::Result<Vec<Interface>>) -> Interfaces {
    match found {
        Ok(found) => {
            let warnings = judge::interfaces(found);
            Interfaces {
                severity: if warnings.is_empty() { Severity::Ok } else { Severity::Warning },
                warnings: (!warnings.is_empty()).then_some(warnings),
                error: None,
                dismissed: false,
                interfaces: found.iter().map(InterfaceReport::of).collect(),
            }
        }
        Err(error) => Interfaces {
            severity: Severity::Error,
            warnings: None,
            error: Some(format!("the interfaces cannot be listed: {error}")),
            dismissed: false,
            interfaces: Vec::new(),
        },
    }
}

impl InterfaceReport {
    fn of(interface: &Interface) -> Self {
        Self { name: interface.name.clone(), mtu: interface.mtu.unwrap_or(0), addresses: interface.addresses.clone() }
    }
}

/// The kind of every value, by its path; what stands in lists and under region numbers counts once.
#[cfg(test)]
pub(super) fn shape(value: &Value, at: &str, out: &mut BTreeMap<String, std::collections::BTreeSet<&'static str>>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    out.entry(at.to_owned()).or_default().insert(kind);
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let name = if name.parse::<u16>().is_ok() { "N" } else { name };
                shape(inner, &format!("{at}.{name}"), out);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| shape(item, &format!("{at}[]"), out)),
        _ => {}
    }
}
