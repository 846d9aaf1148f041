//! What `coder ping` tells before the first answer: how far the connection is, and what may keep it from being direct.

use crate::{
    cli::{agent_api, args::Global, connect::Tunnel, go_time::go_text, output},
    driver::interfaces,
    net::{ControlStatus, PathState, Report},
};
use serde::Deserialize;
use std::time::Duration;
use tokio::time::timeout;

/// Where the agent tells of its network.
const NETCHECK: &str = "/api/v0/netcheck";
/// How long our own report, and the agent's, are waited for: the first answer to a ping waits behind them.
const LIMIT: Duration = Duration::from_secs(3);
/// A session that is older has not been renewed as it should.
const OLD_HANDSHAKE: Duration = Duration::from_secs(300);
/// Smallest interface that takes the packets of a direct path: 1,280 bytes within the tunnel, its heads and the ping that
/// proves a path.
const NEEDED_MTU: u32 = 1378;
/// The pages that help.
const DOCS: &str = "https://coder.com/docs/admin/networking/troubleshooting";

/// Tells what is found out soon, on standard error.
pub(super) async fn show(tunnel: &Tunnel, global: &Global) {
    let state = State::of(tunnel).await;
    let path = tunnel.tailnet.watch_path(tunnel.address).await;
    let direct = path.is_ok_and(|path| path.borrow().is_some_and(|path| path.state == PathState::Direct));
    // Nobody looks for what is wrong with a direct path, unless he asks.
    let wanted = !direct || global.verbose;
    let (own, agent) = if wanted { tokio::join!(own_report(tunnel), agent_report(tunnel)) } else { (None, None) };
    let situation = Situation {
        wanted,
        disabled_here: global.disable_direct_connections,
        disabled_there: tunnel.relayed_only,
        has_stun: tunnel.relays.regions.values().flat_map(|region| &region.nodes).any(|node| node.stun_port.is_some()),
        own: own.map(|report| Network { udp: report.udp(), mapping_varies: report.mapping_varies }),
        own_mtus: interfaces::list().unwrap_or_default().into_iter().filter_map(|i| i.mtu.map(|mtu| (i.name, mtu))).collect(),
        agent_mtus: agent.as_ref().map_or_else(Vec::new, AgentReport::mtus),
        agent: agent.and_then(|report| report.net_info).map(Network::from),
    };
    for line in state.lines().into_iter().chain(situation.lines()) {
        output::note(&line);
    }
}

/// Our own view of the network, once there is one.
async fn own_report(tunnel: &Tunnel) -> Option<std::sync::Arc<Report>> {
    let mut report = tunnel.tailnet.report();
    timeout(LIMIT, report.wait_for(Option::is_some)).await.ok()?.ok()?.clone()
}

/// The agent's view; none from an agent that tells nothing.
async fn agent_report(tunnel: &Tunnel) -> Option<AgentReport> {
    let answer = agent_api::get(tunnel, NETCHECK, LIMIT).await;
    let report = answer.and_then(|body| Ok(serde_json::from_slice(&body)?));
    report.inspect_err(|error| tracing::debug!(%error, "the agent tells nothing of its network")).ok()
}

/// The part of an agent's report that is used.
#[derive(Debug, Deserialize)]
struct AgentReport {
    net_info: Option<NetInfo>,
    #[serde(default)]
    interfaces: Interfaces,
}

#[derive(Debug, Deserialize)]
struct NetInfo {
    #[serde(rename = "MappingVariesByDestIP")]
    mapping_varies: Option<bool>,
    #[serde(rename = "WorkingUDP")]
    udp: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
struct Interfaces {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    name: String,
    mtu: u32,
}

impl AgentReport {
    fn mtus(&self) -> Vec<(String, u32)> {
        let printable = |name: &str| name.chars().filter(|c| !c.is_control()).collect();
        self.interfaces.interfaces.iter().flatten().map(|i| (printable(&i.name), i.mtu)).collect()
    }
}

/// One side's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    udp: bool,
    mapping_varies: Option<bool>,
}

impl From<NetInfo> for Network {
    fn from(info: NetInfo) -> Self {
        Self { udp: info.udp.unwrap_or_default(), mapping_varies: info.mapping_varies }
    }
}

/// How far the connection is.
#[derive(Debug, Default)]
struct State {
    /// Number and name of our home relay.
    home: Option<String>,
    announced: bool,
    peer: Option<Peer>,
}

#[derive(Debug)]
struct Peer {
    home: String,
    endpoints: Vec<String>,
    handshake_age: Option<Duration>,
}

impl State {
    async fn of(tunnel: &Tunnel) -> Self {
        let name = |region| format!("{region} ({})", tunnel.region_name(region));
        let own = tunnel.tailnet.own_node().borrow().clone();
        let home = own.as_ref().and_then(|own| i64::from(own.preferred_derp).try_into().ok());
        let connected = |status: &ControlStatus| matches!(status, ControlStatus::Connected(_));
        let announced = own.is_some() && tunnel.tailnet.control().is_some_and(|control| connected(&control.status().borrow()));
        let peer = tunnel.tailnet.peer_info(tunnel.address).await.ok().flatten();
        let peer = peer.map(|peer| Peer {
            home: name(peer.home),
            endpoints: peer.endpoints.iter().map(ToString::to_string).collect(),
            handshake_age: peer.handshake_age,
        });
        Self { home: home.map(name), announced, peer }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            match &self.home {
                Some(home) => format!("✔ preferred DERP region: {home}"),
                None => "✘ not connected to DERP".to_owned(),
            },
            if self.announced {
                "✔ sent local data to Coder networking coordinator".to_owned()
            } else {
                "✘ have not sent local data to Coder networking coordinator".to_owned()
            },
        ];
        match &self.peer {
            Some(peer) => lines.extend([
                "✔ received remote agent data from Coder networking coordinator".to_owned(),
                format!("    preferred DERP region: {}", peer.home),
                format!("    endpoints: {}", peer.endpoints.join(", ")),
            ]),
            None => lines.push("✘ have not received remote agent data from Coder networking coordinator".to_owned()),
        }
        let whole = |age: Duration| go_text(Duration::from_secs(age.as_secs()));
        lines.push(match self.peer.as_ref().and_then(|peer| peer.handshake_age) {
            Some(age) if age > OLD_HANDSHAKE => format!("⚠ Wireguard handshake {} ago", whole(age)),
            Some(age) => format!("✔ Wireguard handshake {} ago", whole(age)),
            None => "✘ Wireguard is not connected".to_owned(),
        });
        lines
    }
}

/// What may keep a connection from being direct.
#[derive(Debug, Default)]
struct Situation {
    /// More than the interfaces is wanted.
    wanted: bool,
    disabled_here: bool,
    disabled_there: bool,
    has_stun: bool,
    own: Option<Network>,
    agent: Option<Network>,
    own_mtus: Vec<(String, u32)>,
    agent_mtus: Vec<(String, u32)>,
}

impl Situation {
    /// Blocks with a blank line in front of each.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for finding in self.general() {
            lines.extend([String::new(), format!("❗ {}", finding.text), format!("   {}", finding.link())]);
        }
        for (side, network, mtus) in [("this machine", self.own, &self.own_mtus), ("the workspace", self.agent, &self.agent_mtus)]
        {
            let findings = self.of_side(side, network, mtus);
            if findings.is_empty() {
                continue;
            }
            lines.extend([String::new(), format!("What may keep {side} from a direct connection:"), String::new()]);
            for finding in findings {
                lines.extend([format!(" - {}", finding.text), format!("   {}", finding.link())]);
            }
        }
        lines
    }

    fn general(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if !self.wanted {
            return found;
        }
        if self.disabled_here {
            let text = "Direct connections are off here, by --disable-direct-connections or CODER_DISABLE_DIRECT_CONNECTIONS";
            found.push(Finding { text: text.to_owned(), anchor: "common-problems-with-direct-connections" });
        }
        if self.disabled_there {
            let text = "This deployment allows no direct connections".to_owned();
            found.push(Finding { text, anchor: "disabled-deployment-wide" });
        } else if !self.has_stun {
            let text = "No relay of this deployment answers STUN, so that nobody learns his public address".to_owned();
            found.push(Finding { text, anchor: "no-stun-servers" });
        }
        found
    }

    fn of_side(&self, side: &str, network: Option<Network>, mtus: &[(String, u32)]) -> Vec<Finding> {
        let small = mtus.iter().filter(|(_, mtu)| *mtu < NEEDED_MTU);
        let mut found: Vec<_> = small
            .map(|(name, mtu)| Finding {
                text: format!("Interface {name} takes packets of {mtu} bytes at most, and a direct path needs {NEEDED_MTU}"),
                anchor: "low-mtu",
            })
            .collect();
        let Some(network) = network.filter(|_| self.wanted) else { return found };
        // Without a server to ask nothing is known.
        if self.has_stun && !network.udp {
            let text = format!("No answer to STUN reaches {side} over UDP: a firewall may block it");
            found.push(Finding { text, anchor: "udp-blocked" });
        }
        if network.mapping_varies == Some(true) {
            let text = format!("The NAT in front of {side} uses another address for each destination");
            found.push(Finding { text, anchor: "endpoint-dependent-nat-hard-nat" });
        }
        found
    }
}

#[derive(Debug)]
struct Finding {
    text: String,
    anchor: &'static str,
}

impl Finding {
    fn link(&self) -> String {
        format!("{DOCS}#{}", self.anchor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first lines of a vector's standard error, up to a blank one.
    fn said(vector: &str) -> Vec<String> {
        let lines = vector.lines().skip_while(|line| *line != "## stderr").skip(1);
        lines.take_while(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn the_state_is_told_as_the_go_command_line_does() {
        let home = "999 (Coder Embedded Relay)".to_owned();
        let peer = Peer {
            home: home.clone(),
            endpoints: vec!["192.0.2.2:41881".into()],
            handshake_age: Some(Duration::from_millis(700)),
        };
        let state = State { home: Some(home), announced: true, peer: Some(peer) };
        assert_eq!(state.lines(), said(include_str!("../../../tests/vectors/cli/ping_n3.txt")));
        assert_eq!(
            State::default().lines(),
            [
                "✘ not connected to DERP",
                "✘ have not sent local data to Coder networking coordinator",
                "✘ have not received remote agent data from Coder networking coordinator",
                "✘ Wireguard is not connected",
            ]
        );
        let old = Peer { home: String::new(), endpoints: Vec::new(), handshake_age: Some(Duration::from_millis(311_900)) };
        assert_eq!(State { peer: Some(old), ..State::default() }.lines().last().unwrap(), "⚠ Wireguard handshake 5m11s ago");
    }

    #[test]
    fn each_obstacle_is_found_on_its_side_and_only_when_it_matters() {
        let good = Network { udp: true, mapping_varies: Some(false) };
        let bad = Network { udp: false, mapping_varies: Some(true) };
        let fine = || Situation { wanted: true, has_stun: true, own: Some(good), agent: Some(good), ..Situation::default() };
        let small = || vec![("eth0".to_owned(), 1500), ("tun0".to_owned(), 1377)];
        let cases: Vec<(Situation, &[&str])> = vec![
            (fine(), &[]),
            (Situation { disabled_here: true, ..fine() }, &["--disable-direct-connections"]),
            (Situation { disabled_there: true, ..fine() }, &["#disabled-deployment-wide"]),
            (Situation { has_stun: false, ..fine() }, &["#no-stun-servers"]),
            (Situation { own: Some(bad), ..fine() }, &["keep this machine", "#udp-blocked", "#endpoint-dependent-nat"]),
            (Situation { agent: Some(bad), ..fine() }, &["keep the workspace", "#udp-blocked", "#endpoint-dependent-nat"]),
            (Situation { own_mtus: small(), wanted: false, own: Some(bad), ..fine() }, &["keep this machine", "tun0", "1377"]),
            (Situation { agent_mtus: small(), ..fine() }, &["keep the workspace", "tun0"]),
            (Situation { wanted: false, disabled_there: true, agent: Some(bad), ..fine() }, &[]),
            (Situation { own: None, agent: None, ..fine() }, &[]),
        ];
        for (situation, parts) in cases {
            let text = situation.lines().join("\n");
            assert_eq!(text.is_empty(), parts.is_empty(), "{text}");
            for part in parts {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert!(!text.contains("eth0"), "{text}");
        }
    }

    #[test]
    fn an_agents_report_is_read() {
        let vector: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/http/agent_netcheck.json")).unwrap();
        let report: AgentReport = serde_json::from_value(vector["body"].clone()).unwrap();
        assert_eq!(report.mtus(), [("eth0".to_owned(), 1400), ("lo".to_owned(), 65_536)]);
        assert_eq!(Network::from(report.net_info.unwrap()), Network { udp: false, mapping_varies: None });
    }
}
