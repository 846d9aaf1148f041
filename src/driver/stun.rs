//! Asks one STUN server from a socket of its own: for whoever wants to know whether it answers, not for tunnels.

use super::{clock, dns};
use crate::wire::{
    derp::{HostIp, RelayNode},
    stun::{TxId, parse_response, write_request},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

/// When requests leave after the first: lost ones are rare but not unheard of.
const AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(750)];
/// How long an answer is awaited after the last request.
const WAIT: Duration = Duration::from_secs(2);

/// What became of the requests to one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StunCheck {
    /// The address that the server sees, and how long its answer took, by IPv4.
    pub v4: Option<(SocketAddr, Duration)>,
    /// The same by IPv6.
    pub v6: Option<(SocketAddr, Duration)>,
    /// A request left by IPv4.
    pub sent_v4: bool,
    /// A request left by IPv6.
    pub sent_v6: bool,
    /// Why there is no answer at all.
    pub error: Option<String>,
}

impl StunCheck {
    /// Whether the server answered.
    #[must_use]
    pub const fn answered(&self) -> bool {
        self.v4.is_some() || self.v6.is_some()
    }
}

/// Asks the STUN server of a node by each family that it has; `None` when it has no STUN server.
///
/// # Cancel safety
/// Dropping the future ends the wait.
pub async fn check(node: &RelayNode) -> Option<StunCheck> {
    let port = node.stun_port?;
    let addresses = match addresses(node).await {
        Ok(addresses) => addresses,
        Err(error) => {
            let error = Some(format!("the name {:?} cannot be resolved: {error}", node.host));
            return Some(StunCheck { error, ..StunCheck::default() });
        }
    };
    let first = |v4: bool| addresses.iter().find(|ip| ip.is_ipv4() == v4).map(|ip| SocketAddr::new(*ip, port));
    let ask_by = async |to: Option<SocketAddr>| match to {
        Some(to) => Some(ask(to).await),
        None => None,
    };
    let (v4, v6) = tokio::join!(ask_by(first(true)), ask_by(first(false)));
    let mut check = StunCheck { sent_v4: has_left(v4.as_ref()), sent_v6: has_left(v6.as_ref()), ..StunCheck::default() };
    let mut reasons = Vec::new();
    let mut sort = |asked: Option<Result<(SocketAddr, Duration), AskError>>| match asked? {
        Ok(answer) => Some(answer),
        Err(error) => {
            reasons.push(error.to_string());
            None
        }
    };
    (check.v4, check.v6) = (sort(v4), sort(v6));
    if !check.answered() {
        reasons.extend(addresses.is_empty().then(|| format!("the relay map names no address for {:?}", node.name)));
        check.error = Some(reasons.join("; "));
    }
    Some(check)
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no request to {to} could be sent: {why}")]
    Unsent { to: SocketAddr, why: io::Error },
    #[error("{to} did not answer")]
    Silent { to: SocketAddr },
}

const fn has_left(asked: Option<&Result<(SocketAddr, Duration), AskError>>) -> bool {
    matches!(asked, Some(Ok(_) | Err(AskError::Silent { .. })))
}

/// What a node's STUN server is reached at (`stun-netcheck.md` §3).
async fn addresses(node: &RelayNode) -> io::Result<Vec<IpAddr>> {
    if let Some(ip) = node.stun_ip {
        return Ok(vec![ip]);
    }
    let (v4, v6) = (node.ipv4 == HostIp::Resolve, node.ipv6 == HostIp::Resolve);
    let mut out = Vec::new();
    if v4 || v6 {
        match dns::resolve(&node.host).await {
            Ok(found) => out.extend(found.into_iter().filter(|ip| if ip.is_ipv4() { v4 } else { v6 })),
            // One family may still be given.
            Err(error) if v4 && v6 => return Err(error),
            Err(_) => {}
        }
    }
    if let HostIp::Fixed(ip) = node.ipv4 {
        out.push(ip.into());
    }
    if let HostIp::Fixed(ip) = node.ipv6 {
        out.push(ip.into());
    }
    Ok(out)
}

async fn ask(to: SocketAddr) -> Result<(SocketAddr, Duration), AskError> {
    let unsent = |why| AskError::Unsent { to, why };
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.map_err(unsent)?;
    let tx = TxId(clock::random().map_err(unsent)?.bytes());
    let request = write_request(tx);
    let started = clock::now();
    socket.send_to(&request, to).await.map_err(unsent)?;
    let resend = async {
        for pause in AGAIN {
            sleep(pause).await;
            // The first one has left; what happens to these shows by the answer.
            let _ = socket.send_to(&request, to).await;
        }
        sleep(WAIT).await;
    };
    let receive = async {
        let mut datagram = [0; 2_048];
        loop {
            // An ICMP error reads as a failed call; the answer to another request may still come.
            let Ok((len, _)) = socket.recv_from(&mut datagram).await else { continue };
            match datagram.get(..len).map(parse_response) {
                Some(Ok((answered, public))) if answered == tx => return public,
                _ => {}
            }
        }
    };
    tokio::select! {
        public = receive => Ok((public, clock::now() - started)),
        () = resend => Err(AskError::Silent { to }),
    }
}

/// Whether this system has IPv6 at all: its loopback address can be bound.
pub async fn has_ipv6() -> bool {
    let bound = timeout(WAIT, UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))).await;
    bound.is_ok_and(|bound| bound.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::{parse_request, write_response};
    use serde_json::json;

    fn node(port: i64) -> RelayNode {
        let map = json!({ "Regions": { "1": { "RegionID": 1, "Nodes": [{ "Name": "1a", "HostName": "127.0.0.1", "STUNPort": port }] } } });
        let map = crate::wire::derp::RelayMap::from_json(&map).unwrap();
        map.regions.values().next().unwrap().nodes[0].clone()
    }

    #[tokio::test]
    async fn a_server_that_answers_tells_our_address() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let serve = async {
            let mut datagram = [0; 2_048];
            // The first request is lost.
            server.recv_from(&mut datagram).await.unwrap();
            let (len, from) = server.recv_from(&mut datagram).await.unwrap();
            let tx = parse_request(&datagram[..len]).unwrap();
            server.send_to(b"noise", from).await.unwrap();
            server.send_to(&write_response(TxId([7; 12]), "192.0.2.1:1".parse().unwrap()), from).await.unwrap();
            server.send_to(&write_response(tx, from), from).await.unwrap();
            from.port()
        };
        let node = node(port.into());
        let (check, seen) = tokio::join!(check(&node), serve);
        let check = check.unwrap();
        let (public, _) = check.v4.unwrap();
        assert_eq!((public.ip().to_string().as_str(), public.port()), ("127.0.0.1", seen));
        assert!(check.answered() && check.sent_v4 && !check.sent_v6 && check.error.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_named_and_one_without_stun_is_not_asked() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let told = check(&node(port.into())).await.unwrap();
        assert!(!told.answered() && told.sent_v4);
        assert_eq!(told.error, Some(format!("127.0.0.1:{port} did not answer")));
        assert_eq!(check(&node(-1)).await, None);
    }
}
