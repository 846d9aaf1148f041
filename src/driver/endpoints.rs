//! The addresses of this host's interfaces at which peers may try to reach it (`stun-netcheck.md` §7, point 5).

use crate::base::is_overlay;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The local endpoints for sockets on these ports: IPv4 first, sorted by address.
///
/// Loopback counts only when there is nothing else; IPv4 link-local and IPv6 unique-local addresses only when there are
/// no regular ones. Overlay addresses and IPv6 link-local ones never do.
#[must_use]
pub(crate) fn local(v4: Option<u16>, v6: Option<u16>) -> Vec<SocketAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
        tracing::warn!(%error, "the interfaces cannot be listed");
        Vec::new()
    });
    let found = interfaces.iter().filter(|i| i.is_oper_up());
    choose(found.map(|i| (i.name.as_str(), i.ip())), v4, v6)
}

fn choose<'a>(found: impl Iterator<Item = (&'a str, IpAddr)>, v4: Option<u16>, v6: Option<u16>) -> Vec<SocketAddr> {
    let (mut regular, mut fallback, mut loopback) = (Vec::new(), Vec::new(), Vec::new());
    for (name, ip) in found {
        let port = if ip.is_ipv4() { v4 } else { v6 };
        let Some(port) = port else { continue };
        // ZeroTier's interfaces: a tunnel inside a tunnel helps nobody.
        if name.starts_with("zt") || name.starts_with("ZeroTier") || ip.is_unspecified() || ip.is_multicast() {
            continue;
        }
        let class = match ip {
            _ if ip.is_loopback() => &mut loopback,
            IpAddr::V4(ip) if ip.is_link_local() => &mut fallback,
            IpAddr::V4(_) => &mut regular,
            IpAddr::V6(ip) if is_overlay(&ip) || is_link_local(&ip) => continue,
            IpAddr::V6(ip) if is_unique_local(&ip) => &mut fallback,
            IpAddr::V6(_) => &mut regular,
        };
        class.push(SocketAddr::new(ip, port));
    }
    let mut chosen = [regular, fallback, loopback].into_iter().find(|c| !c.is_empty()).unwrap_or_default();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

const fn is_link_local(ip: &Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

const fn is_unique_local(ip: &Ipv6Addr) -> bool {
    ip.segments()[0] & 0xfe00 == 0xfc00
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(found: &[(&str, &str)], v4: Option<u16>, v6: Option<u16>) -> Vec<String> {
        choose(found.iter().map(|(name, ip)| (*name, ip.parse().unwrap())), v4, v6).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn regular_addresses_win_and_overlay_tunnels_never_count() {
        let found = [
            ("lo", "127.0.0.1"),
            ("eth0", "2001:db8::2"),
            ("eth0", "192.168.1.5"),
            ("eth0", "fe80::1"),
            ("eth0", "169.254.1.1"),
            ("eth0", "fd00::1"),
            ("ts0", "fd7a:115c:a1e0::1"),
            ("cd0", "fd60:627a:a42b::1"),
            ("zt7", "10.9.0.1"),
            ("eth1", "10.0.0.2"),
        ];
        assert_eq!(chosen(&found, Some(4), Some(6)), ["10.0.0.2:4", "192.168.1.5:4", "[2001:db8::2]:6"]);
        assert_eq!(chosen(&found, Some(4), None), ["10.0.0.2:4", "192.168.1.5:4"]);
    }

    #[test]
    fn lesser_addresses_count_when_there_are_no_better_ones() {
        let found = [("lo", "127.0.0.1"), ("lo", "::1"), ("eth0", "fe80::1"), ("eth0", "169.254.1.1"), ("eth0", "fd00::1")];
        assert_eq!(chosen(&found, Some(4), Some(6)), ["169.254.1.1:4", "[fd00::1]:6"]);
        assert_eq!(chosen(&found[..3], Some(4), Some(6)), ["127.0.0.1:4", "[::1]:6"]);
        assert!(chosen(&found[2..3], Some(4), Some(6)).is_empty());
    }

    #[test]
    fn this_host_has_an_endpoint() {
        assert!(!local(Some(1), Some(1)).is_empty());
    }
}
