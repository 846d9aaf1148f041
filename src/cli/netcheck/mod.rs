//! `coder netcheck`: what the network between here and the relays is like, as one JSON document (`cli.md` §2.10).
//!
//! Every node of the relay map is looked at for itself, all at once; beside that a node of the kind that tunnels have
//! runs its own check and says which relay it would choose.

mod document;
mod judge;

use super::{
    args::Global,
    deployment::{Deployment, explain},
    interrupt::exit_code,
    logs, output,
};
use crate::{
    base::RegionId,
    driver::{interfaces, process::EndSignals, relay, relay::RelayCheck, stun, stun::StunCheck},
    net::{Config, Tailnet},
    proto::netcheck::Report,
    wire::derp::{RelayMap, RelayNode},
};
use anyhow::Context as _;
use document::Document;
use futures::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;

/// How long the server may take to give the relay map, and how long one node may be looked at: together below the 30 s
/// that callers wait.
const MAP_LIMIT: Duration = Duration::from_secs(8);
const NODE_LIMIT: Duration = Duration::from_secs(20);
/// How long the check of our own node may take; by itself it ends after 3 s.
const OWN_LIMIT: Duration = Duration::from_secs(10);

pub(super) fn run(global: &Global) -> anyhow::Result<u8> {
    logs::start(logs::level(global.verbose, LevelFilter::ERROR));
    super::on_one_thread(async {
        let deployment = Deployment::open(global).await?;
        output::note("Gathering a network report. This may take a few seconds...");
        let mut signals = EndSignals::open().context("cannot handle signals")?;
        let document = tokio::select! {
            document = check(&deployment) => document?,
            signal = signals.next() => return Ok(exit_code(signal)),
        };
        output::line(&serde_json::to_string_pretty(&document)?)?;
        Ok(0)
    })
}

/// What was found about one node of the map.
#[derive(Debug)]
pub(super) struct Node {
    /// `None` for a node that does not relay.
    pub(super) relay: Option<RelayCheck>,
    /// `None` for a node without STUN.
    pub(super) stun: Option<StunCheck>,
    /// The time for it was over.
    pub(super) late: bool,
}

/// Looks at everything there is to look at.
pub(super) async fn check(deployment: &Deployment) -> anyhow::Result<Document> {
    let connection = timeout(MAP_LIMIT, deployment.client.connection()).await;
    let connection = connection.with_context(|| format!("{} did not answer within {} s", deployment.url, MAP_LIMIT.as_secs()))?;
    let connection = connection.map_err(explain)?;
    let http = deployment.client.http();
    let mut map = connection.derp_map;
    let (host, port, plain) = http.endpoint();
    map.rewrite_embedded(&host, port, plain);
    let every_node = map.regions.iter().flat_map(|(id, region)| region.nodes.iter().map(|node| (*id, node)));
    let nodes = join_all(every_node.map(|(id, node)| async move { (id, Box::pin(look_at(deployment, node)).await) }));
    let (nodes, own, ipv6) = tokio::join!(nodes, own_report(deployment, &map), stun::has_ipv6());
    Ok(Document::new(&map, &nodes, own.as_ref().map(|report| &**report).map_err(|e| format!("{e:#}")), ipv6, &interfaces::list()))
}

async fn look_at(deployment: &Deployment, node: &RelayNode) -> Node {
    let relay = async { if node.stun_only { None } else { Some(relay::check(deployment.client.http(), node).await) } };
    let found = timeout(NODE_LIMIT, Box::pin(async { tokio::join!(relay, stun::check(node)) })).await;
    let late = found.is_err();
    let (relay, stun) = found.unwrap_or_else(|_| {
        let relay = (!node.stun_only).then(RelayCheck::default);
        (relay, node.stun_port.map(|_| StunCheck::default()))
    });
    Node { relay, stun, late }
}

/// What a node of ours finds when it starts on this map.
async fn own_report(deployment: &Deployment, map: &RelayMap) -> anyhow::Result<Arc<Report>> {
    let http = deployment.client.http().clone();
    let config = Config { relay_map: Some(map.clone()), ..Config::client(http)? };
    let tailnet = Tailnet::start(config).context("cannot open the network of this process")?;
    let mut reports = tailnet.report();
    let report = timeout(OWN_LIMIT, reports.wait_for(Option::is_some)).await;
    let report = report.context("the check did not end")?.context("the check broke off")?.clone();
    tailnet.close().await;
    report.context("the check has found nothing")
}

/// The name of our own check's line in the document's logs.
pub(super) fn told(report: &Report) -> String {
    let address = |a: Option<std::net::SocketAddr>| a.map_or_else(|| "none".to_owned(), |a| a.to_string());
    let home = report.home.map_or(0, RegionId::get);
    let latencies: Vec<String> = report.relay_latency.iter().map(|(id, t)| format!("{id}:{}ms", t.as_millis())).collect();
    format!(
        "report: udp={} v4={} v6={} varies={} derp={home} latencies={} took={}ms",
        report.udp(),
        address(report.global_v4),
        address(report.global_v6),
        report.mapping_varies.map_or("unknown", |varies| if varies { "yes" } else { "no" }),
        latencies.join(","),
        report.took.as_millis(),
    )
}

#[cfg(test)]
mod tests;
