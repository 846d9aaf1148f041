//! The agent's view of the network, for `coder ping` (agent.md §5.3): the node's last report in Go's form.

use super::Answer;
use crate::{
    driver::interfaces::{self, Interface},
    net::{Report, Tailnet},
};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
};

/// An interface with a smaller packet size may not carry the tunnel's largest packets.
const LEAST_MTU: u32 = 1378;

/// Answers with the last report. At the start of an agent the first one is waited for.
pub(super) async fn answer(tailnet: &Tailnet) -> Answer {
    let mut reports = tailnet.report();
    // The caller's limit is ours.
    let report = match reports.wait_for(Option::is_some).await {
        Ok(report) => report.clone(),
        Err(_) => None,
    };
    let Some(report) = report else {
        return Answer::error(StatusCode::INTERNAL_SERVER_ERROR, "the agent's tunnel is closed");
    };
    let interfaces = tokio::task::spawn_blocking(interfaces::list).await.unwrap_or_else(|e| Err(io::Error::other(e)));
    match interfaces {
        Ok(interfaces) => Answer::json(StatusCode::OK, &document(&report, tailnet.udp_ports().1.is_some(), &interfaces)),
        Err(error) => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, format!("the interfaces cannot be listed: {error}")),
    }
}

fn document(report: &Report, has_v6_socket: bool, interfaces: &[Interface]) -> Value {
    let small: Vec<_> = (interfaces.iter())
        .filter_map(|i| i.mtu.filter(|mtu| (1..LEAST_MTU).contains(mtu)).map(|mtu| (&i.name, mtu)))
        .map(|(name, mtu)| {
            let message = format!("interface {name} carries packets of {mtu} bytes at most, a direct path wants {LEAST_MTU}");
            json!({ "code": "EIF01", "message": message })
        })
        .collect();
    let severity = if small.is_empty() { "ok" } else { "warning" };
    // 0 where the system does not tell.
    let listed = |i: &Interface| json!({ "name": i.name, "mtu": i.mtu.unwrap_or(0), "addresses": i.addresses });
    json!({
        "severity": severity,
        "warnings": null,
        "dismissed": false,
        "net_info": net_info(report, has_v6_socket),
        "interfaces": {
            "severity": severity,
            "warnings": if small.is_empty() { Value::Null } else { json!(small) },
            "dismissed": false,
            "interfaces": interfaces.iter().map(listed).collect::<Vec<_>>(),
        },
    })
}

/// What is not measured is unknown (null) or false, as in Go where nothing was found.
fn net_info(report: &Report, has_v6_socket: bool) -> Value {
    let shown = |address: Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    let by_region: BTreeMap<String, f64> =
        report.relay_latency.iter().map(|(id, latency)| (id.to_string(), latency.as_secs_f64())).collect();
    let is_v4 = |address: Option<SocketAddr>| address.is_some_and(|a| matches!(a.ip(), IpAddr::V4(_)));
    json!({
        "MappingVariesByDestIP": report.mapping_varies,
        "HairPinning": null,
        "WorkingIPv6": report.global_v6.is_some(),
        "OSHasIPv6": has_v6_socket,
        "WorkingUDP": report.udp(),
        "WorkingICMPv4": false,
        "UPnP": false,
        "PMP": false,
        "PCP": false,
        "PreferredDERP": report.home.map_or(0, |id| i64::from(id.get())),
        "DERPLatency": report.latency_by_name(),
        "DERPLatencyV4": by_region,
        "IPv4": is_v4(report.global_v4) || !report.relay_latency.is_empty(),
        "ICMPv4": false,
        "GlobalV4": shown(report.global_v4),
        "GlobalV6": shown(report.global_v6),
        "CaptivePortal": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_with_small_packets_is_a_warning() {
        let interface = |mtu| Interface { name: "tun0".to_owned(), mtu, addresses: vec!["192.0.2.1/24".to_owned()] };
        let of = |mtu| document(&Report::default(), true, &[interface(mtu)]);
        assert_eq!(of(Some(1378))["interfaces"]["warnings"], Value::Null);
        let unknown = of(None);
        let listed = json!([{ "name": "tun0", "mtu": 0, "addresses": ["192.0.2.1/24"] }]);
        assert_eq!((&unknown["severity"], &unknown["interfaces"]["interfaces"]), (&json!("ok"), &listed));
        let small = of(Some(1280));
        assert_eq!((&small["severity"], &small["interfaces"]["severity"]), (&json!("warning"), &json!("warning")));
        assert!(small["interfaces"]["warnings"][0]["message"].as_str().unwrap().contains("tun0"));
    }
}
