//! Names to addresses, for relays, STUN servers and the HTTP client.
//!
//! hickory asks the servers of the system's configuration without a thread. It knows neither NSS nor mDNS, so whatever
//! it cannot answer is asked again through the platform's own resolver. The configuration is read for each lookup: on
//! a laptop it changes with the network, and lookups are rare.

use hickory_resolver::{TokioResolver, config::LookupIpStrategy};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// How long one of the two resolvers may take. Beyond it a dial has failed anyway.
const LIMIT: Duration = Duration::from_secs(5);

/// All addresses of `host`, which may be a literal (brackets allowed). Never an empty list.
///
/// # Errors
/// When neither resolver knows the name or answers in time.
///
/// # Cancel safety
/// Dropping the future ends the lookup.
pub async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse() {
        return Ok(vec![ip]);
    }
    // The name itself may be private: it is told to the caller, never logged above debug.
    match tokio::time::timeout(LIMIT, ask_servers(bare)).await {
        Ok(Some(found)) => return Ok(found),
        Ok(None) => tracing::debug!("the DNS servers do not know a name; asking the platform"),
        Err(_) => tracing::debug!("the DNS servers did not answer; asking the platform"),
    }
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "name resolution took too long");
    let found = tokio::time::timeout(LIMIT, tokio::net::lookup_host((bare, 0))).await.map_err(late)??;
    let mut out = Vec::new();
    for address in found {
        if !out.contains(&address.ip()) {
            out.push(address.ip());
        }
    }
    if out.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(out)
}

async fn ask_servers(host: &str) -> Option<Vec<IpAddr>> {
    let mut builder = TokioResolver::builder_tokio().ok()?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let found = builder.build().ok()?.lookup_ip(host).await.ok()?;
    let mut out: Vec<IpAddr> = found.iter().collect();
    out.dedup();
    (!out.is_empty()).then_some(out)
}

/// The same resolution for the HTTP client, with addresses that a relay map prescribes for some names.
#[derive(Debug, Default, Clone)]
pub(super) struct HttpResolver {
    fixed: Arc<std::sync::Mutex<std::collections::BTreeMap<String, Vec<IpAddr>>>>,
}

impl HttpResolver {
    /// From now on `host` has these addresses; an empty list gives it back to DNS.
    pub(super) fn fix(&self, host: &str, addresses: Vec<IpAddr>) {
        let mut fixed = self.fixed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if addresses.is_empty() {
            fixed.remove(host);
        } else {
            fixed.insert(host.to_owned(), addresses);
        }
    }

    fn fixed(&self, host: &str) -> Option<Vec<IpAddr>> {
        self.fixed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(host).cloned()
    }
}

impl reqwest::dns::Resolve for HttpResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let fixed = self.fixed(name.as_str());
        Box::pin(async move {
            let found = match fixed {
                Some(found) => found,
                None => resolve(name.as_str()).await?,
            };
            let addresses = found.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literals_need_no_resolver_and_localhost_is_loopback() {
        assert_eq!(resolve("192.0.2.7").await.unwrap(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(resolve("[2001:db8::1]").await.unwrap(), ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        assert!(resolve("localhost").await.unwrap().iter().all(IpAddr::is_loopback));
    }

    #[tokio::test]
    async fn prescribed_addresses_win_over_dns() {
        use reqwest::dns::Resolve as _;
        let resolver = HttpResolver::default();
        resolver.fix("relay.invalid", vec!["192.0.2.9".parse().unwrap()]);
        let found: Vec<_> = resolver.resolve("relay.invalid".parse().unwrap()).await.unwrap().collect();
        assert_eq!(found, ["192.0.2.9:0".parse().unwrap()]);
    }
}
