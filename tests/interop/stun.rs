//! Row 2: STUN in both directions, and netcheck's verdicts.

use crate::{
    peers::{
        Context, Deployment, Front, GO_SERVER, Kind, Lines, Need, Program, Relay, Side, free_port, netcheck, region, region_id,
        runtime,
    },
    table::{Cell, Outcome},
};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};
use tailnet::{
    base::RegionId,
    driver::http::{Http, HttpOptions, ProxyChoice, Token},
    net::{Config, Report, Tailnet},
    wire::{
        derp::{Region, RelayMap, RelayNode},
        stun,
    },
};

const ROW: &str = "STUN";
const LIMIT: Duration = Duration::from_secs(30);

pub fn cells() -> Vec<Cell> {
    let go_stun = [Need::Program(Program::Stun)];
    let go_cli = [Need::Program(Program::Coder)];
    let both_clis = [&GO_SERVER[..], &go_cli].concat();
    let verdicts = [Need::Program(Program::Netcheck), Need::Program(Program::Derper)];
    let mut cells = vec![
        Cell::new(ROW, "Go client asks our server, IPv4", &go_stun, |c| go_asks(c, "127.0.0.1:0")),
        Cell::new(ROW, "Go client asks our server, IPv6", &go_stun, |c| go_asks(c, "[::1]:0")),
        Cell::new(ROW, "our client asks the Go server, IPv4", &go_stun, |c| we_ask(c, "127.0.0.1:0")),
        Cell::new(ROW, "our client asks the Go server, IPv6", &go_stun, |c| we_ask(c, "[::1]:0")),
        Cell::new(ROW, "coder netcheck (Go) finds our server healthy", &go_cli, go_netcheck),
        Cell::new(ROW, "coder netcheck (Go) and ours agree about the Go server", &both_clis, |c| on_server(c, Side::Go)),
        Cell::new(ROW, "coder netcheck (Go) and ours agree about our server", &go_cli, |c| on_server(c, Side::Ours)),
        Cell::new(ROW, "upstream's netcheck finds our server", &[Need::Program(Program::UpstreamNetcheck)], upstream_netcheck),
    ];
    for situation in Situation::ALL {
        let name = format!("netcheck, same verdicts: {}", situation.name());
        cells.push(Cell::new(ROW, name, &verdicts, move |c| same_verdicts(c, situation)));
    }
    cells
}

fn go_asks(context: &Context, address: &str) -> Outcome {
    let server = crate::harness::Server::start(&["--http-address", address]);
    let map = relay_map(&server.url, &server.token)?;
    let node = map.regions.values().flat_map(|r| &r.nodes).next().context("our map has no relay")?;
    let port = node.stun_port.context("our server serves no STUN")?;
    let mut to: SocketAddr = address.parse()?;
    to.set_port(port);
    let mut command = context.program(Program::Stun);
    command.args(["-ask", &to.to_string()]);
    let mapped = Lines::start("the STUN client", command).event("mapped");
    ensure!(mapped["mapped"] == mapped["local"], "our server told another address: {mapped}");
    Ok(String::new())
}

fn we_ask(context: &Context, address: &str) -> Outcome {
    let mut command = context.program(Program::Stun);
    command.args(["-serve", address]);
    let mut server = Lines::start("the STUN server", command);
    let server: SocketAddr = server.event("listening")["address"].as_str().context("no address")?.parse()?;
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(LIMIT))?;
    let id = stun::TxId(*b"interop test");
    socket.send_to(&stun::write_request(id), server)?;
    let mut buffer = [0; 1_500];
    let n = socket.recv(&mut buffer).context("the Go server does not answer our request")?;
    let (answered, mapped) =
        stun::parse_response(&buffer[..n]).map_err(|e| anyhow::anyhow!("{e}: {}", hex::encode(&buffer[..n])))?;
    ensure!(answered == id, "the answer is to another request");
    ensure!(mapped == socket.local_addr()?, "the Go server tells {mapped}");
    Ok(String::new())
}

/// The relay map that a server gives to clients.
fn relay_map(url: &str, token: &str) -> Result<RelayMap, anyhow::Error> {
    let runtime = runtime();
    let info: Value = runtime.block_on(async {
        http(url, Some(token))?.get_json("/api/v2/workspaceagents/connection").await.map_err(anyhow::Error::from)
    })?;
    Ok(RelayMap::from_json(&info["derp_map"])?)
}

fn http(url: &str, token: Option<&str>) -> Result<Http, anyhow::Error> {
    let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
    Ok(Http::new(url, token.map(Token::new), options)?)
}

/// Our node's report on a relay map.
fn our_report(map: RelayMap) -> Result<(Arc<Report>, Option<u16>), anyhow::Error> {
    runtime().block_on(async {
        let mut config = Config::client(http("http://127.0.0.1:9", None)?)?;
        config.relay_map = Some(map);
        let tailnet = Tailnet::start(config)?;
        let mut reports = tailnet.report();
        let report = tokio::time::timeout(LIMIT, reports.wait_for(Option::is_some)).await.context("no report in time")??;
        let report = report.clone().context("no report")?;
        Ok((report, tailnet.udp_ports().0))
    })
}

/// What both netchecks conclude.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    udp: bool,
    global_v4: Option<IpAddr>,
    mapping_varies: Option<bool>,
    home: Option<u64>,
    /// Regions whose relay answered.
    measured: BTreeSet<u64>,
}

impl Verdict {
    fn ours(report: &Report) -> Self {
        let number = |id: &RegionId| id.to_string().parse().unwrap_or(0);
        Self {
            udp: report.udp(),
            global_v4: report.global_v4.map(|a| a.ip()),
            mapping_varies: report.mapping_varies,
            home: report.home.as_ref().map(number),
            measured: report.relay_latency.keys().map(number).collect(),
        }
    }

    fn go(report: &Value) -> Result<Self, anyhow::Error> {
        let latencies = report["RegionLatency"].as_object().cloned().unwrap_or_default();
        let global = report["GlobalV4"].as_str().filter(|text| !text.is_empty());
        let global: Option<SocketAddr> = global.map(str::parse).transpose()?;
        Ok(Self {
            udp: report["UDP"].as_bool().context("the report does not say UDP")?,
            global_v4: global.map(|a| a.ip()),
            mapping_varies: report["MappingVariesByDestIP"].as_bool(),
            home: report["PreferredDERP"].as_u64().filter(|home| *home != 0),
            measured: latencies.keys().map(|id| id.parse()).collect::<Result<_, _>>()?,
        })
    }
}

fn run_go_netcheck(deployment: &Deployment) -> Result<Value, anyhow::Error> {
    let out = crate::harness::run(deployment.cli(Side::Go, &["netcheck"]), b"");
    ensure!(out.status.success(), "coder netcheck: {}", crate::harness::text(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}

fn go_netcheck(context: &Context) -> Outcome {
    let server = Deployment::ours(context, &[], &[]);
    let report = run_go_netcheck(&server)?;
    let derp = &report["derp"];
    let regions = derp["regions"].as_object().context("the report has no regions")?;
    ensure!(regions.len() == 1, "{} regions", regions.len());
    for (id, region) in regions {
        ensure!(region["healthy"] == true && region["severity"] == "ok", "region {id}: {region}");
        let nodes = region["node_reports"].as_array().context("the region has no nodes")?;
        for node in nodes {
            ensure!(node["healthy"] == true && node["can_exchange_messages"] == true, "{node}");
            ensure!(node["stun"]["Enabled"] == true && node["stun"]["CanSTUN"] == true, "{}", node["stun"]);
            ensure!(node["uses_websocket"] == false, "the upgrade was not possible: {node}");
        }
        ensure!(derp["netcheck"]["RegionLatency"][id].as_u64().is_some(), "region {id} has no latency");
    }
    ensure!(derp["healthy"] == true && derp["severity"] == "ok", "{derp}");
    ensure!(derp["warnings"].as_array().is_none_or(Vec::is_empty), "warnings: {}", derp["warnings"]);
    Ok(String::new())
}

fn on_server(context: &Context, side: Side) -> Outcome {
    let (runtime, front, own, shared);
    runtime = crate::peers::runtime();
    let server = match side {
        Side::Ours => {
            let address = format!("127.0.0.1:{}", free_port());
            front = runtime.block_on(Front::far(address.parse()?));
            let access_url = format!("http://127.0.0.1:{}", front.port);
            own = Deployment::ours(context, &[], &["--http-address", &address, "--access-url", &access_url]);
            &own
        }
        Side::Go => {
            shared = context.go_server();
            &*shared
        }
    };
    let report = run_go_netcheck(server)?;
    let theirs = Verdict::go(&report["derp"]["netcheck"])?;
    let map = relay_map(&server.url, &server.token)?;
    let stun_servers = stun_servers(&map);
    let (report, _) = our_report(map)?;
    let ours = Verdict::ours(&report);
    agree(&ours, theirs, stun_servers)?;
    ensure!(ours.home.is_some(), "no home");
    Ok(format!("{ours:?}"))
}

fn upstream_netcheck(context: &Context) -> Outcome {
    let server = crate::harness::Server::start(&[]);
    let map = relay_map(&server.url, &server.token)?;
    let report = netcheck(context, Program::UpstreamNetcheck, &map)?;
    let verdict = Verdict::go(&report)?;
    ensure!(verdict.udp && verdict.home.is_some(), "{verdict:?}");
    ensure!(verdict.global_v4 == Some("127.0.0.1".parse()?), "{verdict:?}");
    Ok(String::new())
}

#[derive(Debug, Clone, Copy)]
enum Situation {
    OneRegion,
    TwoStunServers,
    DeadStun,
    DeadRelay,
}

impl Situation {
    const ALL: [Self; 4] = [Self::OneRegion, Self::TwoStunServers, Self::DeadStun, Self::DeadRelay];

    const fn name(self) -> &'static str {
        match self {
            Self::OneRegion => "one region with STUN",
            Self::TwoStunServers => "two STUN servers",
            Self::DeadStun => "STUN that does not answer",
            Self::DeadRelay => "a relay that does not answer",
        }
    }
}

/// Whether both conclude the same. Go asks one server several times and, when a second answer of the same server comes
/// early enough, says that the mapping does not vary; ours says so only when two servers have answered.
fn agree(ours: &Verdict, mut theirs: Verdict, stun_servers: usize) -> Result<(), anyhow::Error> {
    if stun_servers < 2 && theirs.mapping_varies == Some(false) {
        theirs.mapping_varies = None;
    }
    ensure!(*ours == theirs, "ours: {ours:?}, Go: {theirs:?}");
    Ok(())
}

fn stun_servers(map: &RelayMap) -> usize {
    map.regions.values().flat_map(|r| &r.nodes).filter(|node| node.stun_port.is_some()).count()
}

/// Both netchecks look at relays of both sides.
fn same_verdicts(context: &Context, situation: Situation) -> Outcome {
    let runtime = runtime();
    let far = |kind| {
        let relay = Relay::start(context, kind);
        let front = runtime.block_on(Front::far(relay.address));
        (relay, front)
    };
    let (go, ours) = (far(Kind::Derper), far(Kind::OurServer));
    let with_stun = |(relay, front): &(Relay, Front)| {
        let mut region = region(front.port);
        region.nodes.iter_mut().for_each(|node| node.stun_port = relay.stun);
        region
    };
    let second = RegionId::new(8).context("a region id")?;
    let mut words = Vec::new();
    for (near, other) in [(&go, &ours), (&ours, &go)] {
        let mut map = RelayMap { regions: [(region_id(), with_stun(near))].into(), ..RelayMap::default() };
        match situation {
            Situation::OneRegion => {}
            Situation::TwoStunServers => {
                let node = RelayNode {
                    name: "8stun".into(),
                    host: "127.0.0.1".into(),
                    stun_port: other.0.stun,
                    stun_only: true,
                    ..RelayNode::default()
                };
                map.regions.insert(second, Region { nodes: vec![node], ..Region::default() });
            }
            Situation::DeadStun => {
                let dead = Some(free_port());
                map.regions.values_mut().flat_map(|r| &mut r.nodes).for_each(|node| node.stun_port = dead);
            }
            Situation::DeadRelay => {
                let mut region = region(free_port());
                region.nodes.iter_mut().for_each(|node| node.name = "8a".into());
                map.regions.insert(second, region);
            }
        }
        let report = netcheck(context, Program::Netcheck, &map)?;
        let theirs = Verdict::go(&report["netcheck"])?;
        let stun_servers = stun_servers(&map);
        let (report, port) = our_report(map)?;
        let verdict = Verdict::ours(&report);
        agree(&verdict, theirs, stun_servers)?;
        ensure!(verdict.home == Some(7), "another home: {verdict:?}");
        ensure!(verdict.udp == !matches!(situation, Situation::DeadStun), "{verdict:?}");
        if verdict.udp {
            let mapped = report.global_v4.map(|a| a.port());
            ensure!(mapped == port, "we are told port {mapped:?}, ours is {port:?}");
        }
        words.push(format!("{:?}", verdict.mapping_varies));
    }
    Ok(format!("mapping varies: {}", crate::table::counted(words)))
}
