//! Where requests come from: the other end of the connection, or whom a trusted proxy there names.

use axum::http::{HeaderMap, HeaderName};
use std::{net::IpAddr, str::FromStr};

/// Where a proxy says by which scheme it was asked.
const SCHEME_HEADER: &str = "x-forwarded-proto";

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Who sent it.
    pub(crate) ip: IpAddr,
    /// Whether the client spoke TLS, to us or to a proxy; `None` where that is not known.
    pub(crate) secure: Option<bool>,
}

/// A network of proxies, such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    bits: u8,
}

/// A text that is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an address or a network, such as 10.0.0.0/8")]
pub struct ParseSubnetError;

impl FromStr for Subnet {
    type Err = ParseSubnetError;

    fn from_str(text: &str) -> Result<Self, ParseSubnetError> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| ParseSubnetError)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| ParseSubnetError)?;
        if bits > most { Err(ParseSubnetError) } else { Ok(Self { address, bits }) }
    }
}

impl Subnet {
    fn holds(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => (own.to_bits() ^ ip.to_bits()).leading_zeros() >= u32::from(self.bits),
            (IpAddr::V6(own), IpAddr::V6(ip)) => (own.to_bits() ^ ip.to_bits()).leading_zeros() >= u32::from(self.bits),
            _ => false,
        }
    }
}

/// Which proxies are believed, and in which headers they say for whom they ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Where they are.
    pub networks: Vec<Subnet>,
    /// The headers by their names, the most telling first.
    pub headers: Vec<String>,
}

impl TrustedProxies {
    fn hold(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|network| network.holds(ip))
    }

    /// Whether the client behind `peer` spoke TLS. `seen` is what the connection itself tells, where it does.
    pub(crate) fn secure(&self, peer: IpAddr, headers: &HeaderMap, seen: Option<bool>) -> Option<bool> {
        let told = headers.get(SCHEME_HEADER).map(|value| value.to_str().unwrap_or_default());
        match (seen, told) {
            (_, Some(told)) if self.hold(peer) => {
                // The first of several is the client's; some proxies name the scheme of a WebSocket.
                match told.split(',').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
                    "https" | "wss" => Some(true),
                    "http" | "ws" => Some(false),
                    _ => None,
                }
            }
            (Some(true), _) => Some(true),
            (seen, None) if !self.hold(peer) => seen,
            // A proxy that does not say, or one that is not believed.
            _ => None,
        }
    }

    /// Who stands behind `peer`: the last address of a header that is not itself a trusted proxy's. Whatever stands before
    /// it may be the client's invention.
    pub(crate) fn behind(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.hold(peer) {
            return peer;
        }
        for name in &self.headers {
            let Ok(name) = HeaderName::try_from(name.as_str()) else { continue };
            let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
            let named: Vec<_> = lines.flat_map(|line| line.split(',')).map(|text| text.trim().parse::<IpAddr>()).collect();
            for ip in named.into_iter().rev() {
                match ip.map(|ip| ip.to_canonical()) {
                    Ok(ip) if self.hold(ip) => {}
                    Ok(ip) => return ip,
                    // What stands before something unreadable cannot be relied upon.
                    Err(_) => break,
                }
            }
        }
        peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.1.2.3", "11.0.0.0"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("fd00::/8", "fd12::1", "fe80::1"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
        ] {
            let network: Subnet = network.parse().unwrap();
            assert!(network.holds(inside.parse().unwrap()) && !network.holds(outside.parse().unwrap()), "{network:?}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "x", "::/129", "10.0.0.0/"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_what_they_saw_themselves() {
        let proxies = TrustedProxies {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            headers: vec!["X-Real-Ip".into(), "X-Forwarded-For".into()],
        };
        let behind = |peer: &str, name: &'static str, value: &str| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
            proxies.behind(peer.parse().unwrap(), &headers).to_string()
        };
        assert_eq!(behind("10.0.0.1", "x-forwarded-for", "192.0.2.7"), "192.0.2.7");
        assert_eq!(behind("10.0.0.1", "x-real-ip", "192.0.2.8"), "192.0.2.8");
        assert_eq!(behind("10.0.0.1", "x-forwarded-for", "1.2.3.4, 192.0.2.7, 10.0.0.2"), "192.0.2.7");
        assert_eq!(behind("10.0.0.1", "x-forwarded-for", "1.2.3.4, junk"), "10.0.0.1");
        assert_eq!(behind("10.0.0.1", "x-client", "192.0.2.7"), "10.0.0.1");
        assert_eq!(behind("192.0.2.1", "x-forwarded-for", "192.0.2.7"), "192.0.2.1", "not trusted");
    }

    #[test]
    fn a_trusted_proxy_tells_the_scheme_and_any_other_makes_it_unknown() {
        let proxies = TrustedProxies { networks: vec!["10.0.0.0/8".parse().unwrap()], headers: Vec::new() };
        let (proxy, other) = ("10.0.0.1", "192.0.2.1");
        let (plain, tls) = (Some(false), Some(true));
        for (peer, told, seen, secure) in [
            (proxy, Some("https"), plain, tls),
            (proxy, Some("WSS, http"), None, tls),
            (proxy, Some("http"), None, plain),
            (proxy, Some("http"), tls, plain),
            (proxy, Some("gopher"), plain, None),
            (proxy, None, plain, None),
            (proxy, None, tls, tls),
            (other, Some("http"), tls, tls),
            (other, Some("https"), plain, None),
            (other, None, plain, plain),
            (other, None, None, None),
        ] {
            let lines = told.map(|told| (HeaderName::from_static(SCHEME_HEADER), told.parse().unwrap()));
            let found = proxies.secure(peer.parse().unwrap(), &lines.into_iter().collect(), seen);
            assert_eq!(found, secure, "{peer} {told:?} {seen:?}");
        }
    }
}
