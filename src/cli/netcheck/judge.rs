//! What a finding means: severities and codes are those of the Go command line, the words are ours.

use super::document::{NodeReport, RegionReport};
use crate::driver::interfaces::Interface;
use serde::Serialize;
use std::collections::BTreeMap;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    Ok,
    Warning,
    Error,
}

/// What a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Warning {
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// Below this, datagrams of direct paths do not fit: 1,280 bytes inside the tunnel and what goes around them.
const SAFE_MTU: u32 = 1_378;

fn warning(code: &'static str, message: impl Into<String>) -> Warning {
    Warning { code, message: message.into() }
}

/// One node. What it offers has to work.
pub(super) fn node(report: &NodeReport, relays: bool) -> (Severity, Vec<Warning>) {
    let mut warnings = Vec::new();
    if report.uses_websocket {
        warnings.push(warning(
            "EDERP01",
            "This relay is reached by WebSocket only: something on the way does not let \"Upgrade: DERP\" pass.",
        ));
    }
    let broken = relays && !report.can_exchange_messages || report.stun.enabled && !report.stun.can;
    let severity = match broken {
        true => Severity::Error,
        false if warnings.is_empty() => Severity::Ok,
        false => Severity::Warning,
    };
    (severity, warnings)
}

/// A region. Of several nodes one may fail; without any it is of no use to anybody.
pub(super) fn region(nodes: &[NodeReport]) -> (Severity, Vec<Warning>) {
    if nodes.is_empty() {
        return (Severity::Error, vec![warning("EDERP03", "This region has no node: nothing can go by it.")]);
    }
    let mut warnings: Vec<Warning> = nodes.iter().flat_map(|n| n.warnings.clone()).collect();
    let worst = nodes.iter().map(|n| n.severity).max().unwrap_or(Severity::Ok);
    let broken = nodes.iter().filter(|n| n.severity == Severity::Error).count();
    if nodes.len() > 1 && broken == 1 {
        warnings.push(warning("EDERP02", "One node of this region does not work; the others take its place."));
        return (Severity::Warning, warnings);
    }
    (worst, warnings)
}

/// All regions together, and what they say about the NAT in front of us.
pub(super) fn all(regions: &BTreeMap<String, RegionReport>, mapping_varies: Option<bool>) -> (Severity, Vec<Warning>) {
    let mut warnings: Vec<Warning> = regions.values().flat_map(|r| r.warnings.clone()).collect();
    let mut severity = regions.values().map(|r| r.severity).max().unwrap_or(Severity::Error);
    if regions.is_empty() {
        warnings.push(warning("EDERP03", "The deployment has no relay: workspaces are not reached by any."));
    }
    let stun = || regions.values().flat_map(|r| &r.node_reports).map(|n| &n.stun);
    if stun().any(|s| s.enabled) && !stun().any(|s| s.can) {
        warnings.push(warning("ESTUN01", "No STUN server answers: direct connections work inside this network only."));
        severity = severity.max(Severity::Error);
    } else if mapping_varies == Some(true) {
        warnings.push(warning(
            "ESTUN02",
            "STUN servers see different addresses: a NAT in front of this machine makes direct connections hard.",
        ));
        severity = severity.max(Severity::Warning);
    }
    (severity, warnings)
}

/// The interfaces with less room than a direct path wants.
pub(super) fn interfaces(found: &[Interface]) -> Vec<Warning> {
    let narrow = |i: &Interface| i.mtu.is_some_and(|mtu| mtu < SAFE_MTU);
    let told = |i: &Interface| {
        let mtu = i.mtu.unwrap_or_default();
        warning("EIF01", format!("Interface {} has an MTU of {mtu}, below the {SAFE_MTU} that direct connections want.", i.name))
    };
    found.iter().filter(|i| narrow(i)).map(told).collect()
}
