//! Names to addresses, for relays, STUN servers and the HTTP client.
//!
//! hickory asks the servers of the system's configuration without a thread. It knows neither NSS nor mDNS, so whatever
//! it cannot answer is asked again through the platform's own resolver. The configuration is read for each lookup: on
//! a laptop it changes with the network, and lookups are rare.

use super::clock;
use crate::base::Instant;
use hickory_resolver::{TokioResolver, config::LookupIpStrategy};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
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
    let out = ask_platform(bare, LIMIT).await?;
    if out.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(out)
}

/// What the platform's own resolver says to a name, at most `limit` long.
///
/// # Errors
/// When it does not know the name or does not answer in time.
///
/// # Cancel safety
/// Dropping the future ends the wait; the resolver's thread goes on until it has its answer.
pub async fn ask_platform(host: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "name resolution took too long");
    let found = tokio::time::timeout(limit, tokio::net::lookup_host((host, 0))).await.map_err(late)??;
    let mut out = Vec::new();
    for address in found {
        if !out.contains(&address.ip()) {
            out.push(address.ip());
        }
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

/// How long DNS is waited for when the relay map already gives an address of the other family.
const BESIDE: Duration = Duration::from_millis(500);

/// Where a relay map says that a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prescribed {
    /// The host that this is about.
    pub(super) host: String,
    /// Its addresses.
    pub(super) fixed: Vec<IpAddr>,
    /// Whether DNS may add IPv4 addresses.
    pub(super) v4: bool,
    /// Whether DNS may add IPv6 addresses.
    pub(super) v6: bool,
}

impl Prescribed {
    async fn resolve(&self) -> io::Result<Vec<IpAddr>> {
        let mut out = self.fixed.clone();
        if !self.v4 && !self.v6 {
            return Ok(out);
        }
        let found = if out.is_empty() {
            resolve(&self.host).await?
        } else {
            tokio::time::timeout(BESIDE, resolve(&self.host)).await.ok().and_then(Result::ok).unwrap_or_default()
        };
        out.extend(found.into_iter().filter(|ip| if ip.is_ipv4() { self.v4 } else { self.v6 }));
        if out.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address of a family that the relay map allows"));
        }
        Ok(out)
    }
}

/// The same resolution for one HTTP client, but for the host whose addresses a relay map prescribes to it.
#[derive(Debug, Default, Clone)]
pub(super) struct HttpResolver {
    prescribed: Option<Arc<Prescribed>>,
    /// How long the first look-up took, and when it ended.
    first: Arc<OnceLock<(Instant, Duration)>>,
}

impl HttpResolver {
    pub(super) fn new(prescribed: Option<Prescribed>) -> Self {
        Self { prescribed: prescribed.map(Arc::new), first: Arc::default() }
    }

    /// When the first look-up ended and how long it took.
    pub(super) fn first(&self) -> Option<(Instant, Duration)> {
        self.first.get().copied()
    }
}

impl reqwest::dns::Resolve for HttpResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let (began, first) = (clock::now(), Arc::clone(&self.first));
        let prescribed = self.prescribed.clone().filter(|prescribed| prescribed.host.eq_ignore_ascii_case(name.as_str()));
        Box::pin(async move {
            let found = match prescribed {
                Some(prescribed) => prescribed.resolve().await?,
                None => resolve(name.as_str()).await?,
            };
            let now = clock::now();
            // A later one is of another connection.
            let _ = first.set((now, now - began));
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

    fn prescribe(host: &str, fixed: &[&str], v4: bool, v6: bool) -> HttpResolver {
        let fixed = fixed.iter().map(|ip| ip.parse().unwrap()).collect();
        HttpResolver::new(Some(Prescribed { host: host.to_owned(), fixed, v4, v6 }))
    }

    async fn ask(resolver: &HttpResolver, name: &str) -> Result<Vec<IpAddr>, String> {
        use reqwest::dns::Resolve as _;
        let found = resolver.resolve(name.parse().unwrap()).await.map_err(|e| e.to_string())?;
        Ok(found.map(|address| address.ip()).collect())
    }

    #[tokio::test]
    async fn prescribed_addresses_count_for_their_host_and_their_resolver_alone() {
        let resolver = prescribe("localhost", &["192.0.2.9"], false, false);
        assert_eq!(ask(&resolver, "LOCALHOST").await, Ok(vec!["192.0.2.9".parse().unwrap()]));
        let other = ask(&HttpResolver::default(), "localhost").await.unwrap();
        assert!(other.iter().all(IpAddr::is_loopback));
        let resolver = prescribe("relay.invalid", &["192.0.2.9"], false, false);
        assert!(ask(&resolver, "localhost").await.unwrap().iter().all(IpAddr::is_loopback));
    }

    #[tokio::test]
    async fn a_family_that_is_off_is_not_taken_from_dns() {
        let v4 = ask(&prescribe("localhost", &[], true, false), "localhost").await.unwrap();
        assert!(!v4.is_empty() && v4.iter().all(IpAddr::is_ipv4), "{v4:?}");
        let both = ask(&prescribe("localhost", &["2001:db8::1"], true, false), "localhost").await.unwrap();
        assert_eq!(both[0], "2001:db8::1".parse::<IpAddr>().unwrap());
        assert!(both.len() > 1 && both[1..].iter().all(IpAddr::is_ipv4), "{both:?}");
    }
}
