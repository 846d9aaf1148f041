//! The proxies that the environment names, and for whom.
//!
//! `HTTP_PROXY` counts for `http://`, `HTTPS_PROXY` for `https://`, `ALL_PROXY` for what has none of its own, each also in
//! small letters; `NO_PROXY` lists exceptions. This machine is always one: no proxy reaches a server on somebody else's
//! loopback.

use super::{HttpError, ProxyChoice, without_secrets};
use std::{fmt, net::IpAddr};
use url::{Host, Url};
use zeroize::Zeroizing;

/// What a proxy may speak.
const SCHEMES: [&str; 6] = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];

/// One proxy.
#[derive(Clone)]
pub(super) struct Proxy {
    /// May hold a password.
    url: Zeroizing<String>,
    /// Scheme, host and port, and the variable that names it.
    shown: String,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Proxy").field(&self.shown).finish()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Proxy {
    /// Reads a proxy's URL, which may lack its scheme.
    fn parse(text: &str, variable: Option<&str>) -> Result<Self, HttpError> {
        let bad = || {
            let named = variable.map_or_else(|| "the proxy".to_owned(), |variable| format!("the proxy of {variable}"));
            HttpError::Setting(format!(
                "{named} is {:?}: it has to be a URL that begins with http://, https://, socks4://, socks5:// or socks5h:// \
                 and names a host",
                without_secrets(text)
            ))
        };
        let whole = Zeroizing::new(if text.contains("://") { text.to_owned() } else { format!("http://{text}") });
        let url = Url::parse(&whole).map_err(|_| bad())?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        if !SCHEMES.contains(&url.scheme()) {
            return Err(bad());
        }
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let origin = variable.map(|variable| format!(" of {variable}")).unwrap_or_default();
        Ok(Self { shown: format!("{}://{host}{port}{origin}", url.scheme()), url: whole })
    }
}

/// Which proxy is used for which server.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies {
    http: Option<Result<Proxy, HttpError>>,
    https: Option<Result<Proxy, HttpError>>,
    exceptions: Vec<Exception>,
    /// This machine is reached without them.
    spare_loopback: bool,
}

impl Proxies {
    /// Those that were chosen.
    ///
    /// # Errors
    /// When a chosen one is none. A variable that is wrong counts where it would be used.
    pub(super) fn new(choice: &ProxyChoice) -> Result<Self, HttpError> {
        match choice {
            ProxyChoice::Environment => Ok(Self::of(|name| std::env::var(name).ok())),
            ProxyChoice::Direct => Ok(Self::default()),
            ProxyChoice::Url(url) => {
                let proxy = Some(Ok(Proxy::parse(url, None)?));
                Ok(Self { http: proxy.clone(), https: proxy, ..Self::default() })
            }
        }
    }

    /// Those of an environment.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        // Behind a web server's CGI a visitor chooses HTTP_PROXY.
        if variable("REQUEST_METHOD").is_some() {
            return Self::default();
        }
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| Some((name, variable(name).filter(|value| !value.trim().is_empty())?)))
        };
        let proxy = |names| first(names).map(|(name, value)| Proxy::parse(value.trim(), Some(name)));
        let all = || proxy(["ALL_PROXY", "all_proxy"]);
        let exceptions = first(["NO_PROXY", "no_proxy"]).map(|(_, list)| list).unwrap_or_default();
        Self {
            http: proxy(["HTTP_PROXY", "http_proxy"]).or_else(all),
            https: proxy(["HTTPS_PROXY", "https_proxy"]).or_else(all),
            exceptions: exceptions.split(',').filter_map(Exception::parse).collect(),
            spare_loopback: true,
        }
    }

    /// The proxy for a server, if there is one.
    ///
    /// # Errors
    /// When the variable that counts for it names none.
    pub(super) fn find(&self, server: &Url) -> Result<Option<&Proxy>, HttpError> {
        let proxy = if server.scheme() == "https" { &self.https } else { &self.http };
        let (Some(proxy), Some(host)) = (proxy, server.host()) else { return Ok(None) };
        let (host, port) = (host.to_owned(), server.port_or_known_default());
        if self.spare_loopback && is_loopback(&host) || self.exceptions.iter().any(|e| e.covers(&host, port)) {
            return Ok(None);
        }
        proxy.as_ref().map(Some).map_err(Clone::clone)
    }

    /// The rule for the HTTP library.
    pub(super) fn rule(self) -> reqwest::Proxy {
        reqwest::Proxy::custom(move |server| {
            let proxy = self.find(server).ok()??;
            Url::parse(&proxy.url).ok()
        })
    }
}

fn is_loopback(host: &Host<String>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => IpAddr::from(*ip).to_canonical().is_loopback(),
    }
}

/// One item of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    /// Addresses whose first bits are these.
    Net(IpAddr, u32),
    /// A name with those below it, and the port if one is given.
    Domain(String, Option<u16>),
}

impl Exception {
    fn parse(item: &str) -> Option<Self> {
        let item = item.trim().to_ascii_lowercase();
        if item == "*" {
            return Some(Self::Everything);
        }
        let (address, length) = item.split_once('/').map_or((item.as_str(), None), |(ip, length)| (ip, length.parse().ok()));
        let address = address.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = address.parse::<IpAddr>() {
            return Some(Self::Net(ip, length.unwrap_or(u32::MAX)));
        }
        let (name, port) = match item.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
            Some((name, Ok(port))) => (name, Some(port)),
            _ => (item.as_str(), None),
        };
        let name = name.trim_matches('.');
        (!name.is_empty()).then(|| match name.parse() {
            Ok(ip) => Self::Net(ip, u32::MAX),
            Err(_) => Self::Domain(name.to_owned(), port),
        })
    }

    fn covers(&self, host: &Host<String>, port: Option<u16>) -> bool {
        match (self, host) {
            (Self::Everything, _) => true,
            (Self::Net(IpAddr::V4(net), length), Host::Ipv4(ip)) => {
                let other = u32::from(*net) ^ u32::from(*ip);
                other.leading_zeros() >= (*length).min(u32::BITS)
            }
            (Self::Net(IpAddr::V6(net), length), Host::Ipv6(ip)) => {
                let other = u128::from(*net) ^ u128::from(*ip);
                other.leading_zeros() >= (*length).min(u128::BITS)
            }
            (Self::Domain(name, wanted), Host::Domain(host)) => {
                let host = host.trim_end_matches('.');
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                below && (wanted.is_none() || *wanted == port)
            }
            (Self::Net(..) | Self::Domain(..), _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Proxies {
        let variables: Vec<(String, String)> = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Proxies::of(|name| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
    }

    fn used(proxies: &Proxies, server: &str) -> String {
        match proxies.find(&Url::parse(server).unwrap()) {
            Ok(proxy) => proxy.map(Proxy::to_string).unwrap_or_default(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn no_proxy_of_the_environment_is_asked_for_this_machine() {
        for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            let proxies = of(&[(name, "http://proxy.test:3128")]);
            let here =
                ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.8.9.1:3000", "[::1]:3000", "[::ffff:127.0.0.1]"];
            for host in here {
                assert_eq!(used(&proxies, &format!("http://{host}/")), "", "{name} {host}");
            }
            for host in ["coder.test", "localhost.test", "128.0.0.1", "[::2]", "10.0.0.1"] {
                let proxy = format!("http://proxy.test:3128 of {name}");
                assert_eq!(used(&proxies, &format!("http://{host}/")), proxy, "{host}");
            }
        }
        // One that was chosen for everything is for everything.
        let chosen = Proxies::new(&ProxyChoice::Url("socks5h://u:p@proxy.test".to_owned())).unwrap();
        assert_eq!(used(&chosen, "http://127.0.0.1"), "socks5h://proxy.test");
    }

    #[test]
    fn each_scheme_has_its_variable_and_wrong_ones_are_named_where_they_count() {
        let proxies = of(&[("HTTPS_PROXY", "user:hidden@p.test:1"), ("ALL_PROXY", "socks5://q.test"), ("HTTP_PROXY", " ")]);
        assert_eq!(used(&proxies, "https://x.test"), "http://p.test:1 of HTTPS_PROXY");
        assert_eq!(used(&proxies, "http://x.test"), "socks5://q.test of ALL_PROXY");
        assert!(!format!("{proxies:?}").contains("hidden"));
        for bad in ["foo://", "foo://p.test", "http://", "http://u:hidden@", "://"] {
            let proxies = of(&[("HTTP_PROXY", bad)]);
            let said = used(&proxies, "http://x.test");
            assert!(said.contains("the proxy of HTTP_PROXY is ") && said.contains("socks5h://"), "{bad}: {said}");
            assert!(!said.contains("hidden"), "{said}");
            assert_eq!(used(&proxies, "https://x.test") + &used(&proxies, "http://localhost"), "");
        }
        assert!(Proxies::new(&ProxyChoice::Url("foo://x".to_owned())).is_err());
        assert_eq!(used(&of(&[("HTTP_PROXY", "http://p.test"), ("REQUEST_METHOD", "GET")]), "http://x.test"), "");
    }

    #[test]
    fn exceptions_are_names_with_those_below_them_addresses_and_networks() {
        for (list, spared, not) in [
            ("x.test", &["x.test", "a.x.test", "X.TEST."][..], &["ax.test", "x.test.de", "1.2.3.4"][..]),
            (".x.test, y.test:81", &["x.test", "a.x.test", "y.test:81"], &["y.test"]),
            ("10.0.0.0/8,192.168.1.7", &["10.255.0.1", "192.168.1.7"], &["11.0.0.1", "192.168.1.8", "[fd00::1]"]),
            ("fd00::/8,[fe80::1]", &["[fd12::1]", "[fe80::1]"], &["[fe80::2]", "0.0.0.0"]),
            ("0.0.0.0/0", &["1.2.3.4"], &["[fd00::1]", "x.test"]),
            ("*", &["x.test", "1.2.3.4", "[fd00::1]"], &[]),
            ("", &[], &["x.test"]),
        ] {
            let proxies = of(&[("all_proxy", "http://p.test"), ("no_proxy", list)]);
            let goes = |host: &&str| used(&proxies, &format!("http://{host}/"));
            assert!(spared.iter().all(|host| goes(host).is_empty()), "{list}");
            assert!(not.iter().all(|host| !goes(host).is_empty()), "{list}");
        }
    }
}
