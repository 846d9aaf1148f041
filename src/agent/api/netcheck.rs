//! The agent's view of the network, for `coder ping` (agent.md §5.3): the node's last report in Go's form.

use super::Answer;
use crate::{net::Report, net::Tailnet};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
};

/// An interface with a smaller packet size may not carry the tunnel's largest packets.
const LEAST_MTU: u64 = 1378;

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
    let interfaces = tokio::task::spawn_blocking(interfaces).await.unwrap_or_else(|e| Err(e.to_string()));
    match interfaces {
        Ok(interfaces) => Answer::json(StatusCode::OK, &document(&report, tailnet.udp_ports().1.is_some(), &interfaces)),
        Err(error) => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, format!("the interfaces cannot be listed: {error}")),
    }
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Interface {
    mtu: u64,
    addresses: Vec<String>,
}

fn interfaces() -> Result<BTreeMap<String, Interface>, String> {
    let mut out = BTreeMap::<String, Interface>::new();
    for found in if_addrs::get_if_addrs().map_err(|e| e.to_string())? {
        let prefix = match &found.addr {
            if_addrs::IfAddr::V4(v4) => v4.prefixlen,
            if_addrs::IfAddr::V6(v6) => v6.prefixlen,
        };
        let interface = out.entry(found.name.clone()).or_default();
        let mtu = fs::read_to_string(format!("/sys/class/net/{}/mtu", found.name)).ok();
        // Unknown where the system has no such file.
        interface.mtu = mtu.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        interface.addresses.push(format!("{}/{prefix}", found.addr.ip()));
    }
    Ok(out)
}

fn document(report: &Report, has_v6_socket: bool, interfaces: &BTreeMap<String, Interface>) -> Value {
    let small: Vec<_> = (interfaces.iter())
        .filter(|(_, i)| (1..LEAST_MTU).contains(&i.mtu))
        .map(|(name, i)| {
            let message = format!("interface {name} carries packets of {} bytes at most, a direct path wants {LEAST_MTU}", i.mtu);
            json!({ "code": "EIF01", "message": message })
        })
        .collect();
    let severity = if small.is_empty() { "ok" } else { "warning" };
    let listed = |(name, i): (&String, &Interface)| json!({ "name": name, "mtu": i.mtu, "addresses": i.addresses });
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
        let interface = |mtu| Interface { mtu, addresses: vec!["192.0.2.1/24".to_owned()] };
        let of = |mtu| document(&Report::default(), true, &[("tun0".to_owned(), interface(mtu))].into());
        assert_eq!(of(1378)["interfaces"]["warnings"], Value::Null);
        assert_eq!(of(0)["severity"], "ok");
        let small = of(1280);
        assert_eq!((&small["severity"], &small["interfaces"]["severity"]), (&json!("warning"), &json!("warning")));
        assert!(small["interfaces"]["warnings"][0]["message"].as_str().unwrap().contains("tun0"));
    }

    #[test]
    fn this_machine_has_interfaces_with_addresses() {
        let found = interfaces().unwrap();
        let all: Vec<_> = found.values().flat_map(|i| &i.addresses).collect();
        assert!(all.iter().any(|a| *a == "127.0.0.1/8"), "{found:?}");
    }
}
