//! Flags of `coder server` by what they are about, each with its variable of the environment.

use super::args::{go_bool, go_duration};
use crate::{
    base::RegionId,
    server::{
        ClientAuth, Hooks, RateLimits, Redirect, RelayConfig, RelaySource, SessionRules, Subnet, TlsConfig, TlsVersion,
        TrustedProxies,
    },
};
use anyhow::bail;
use clap::Args;
use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};
use url::Url;

/// Reads an address to listen on: `IP:PORT`, `localhost:PORT`, or `:PORT` for all addresses of this machine.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let whole = match text.rsplit_once(':') {
        Some(("", port)) => format!("0.0.0.0:{port}"),
        Some(("localhost", port)) => format!("127.0.0.1:{port}"),
        _ => text.to_owned(),
    };
    whole.parse().map_err(|_| "must be an address and a port, such as 127.0.0.1:3000".to_owned())
}

fn version(text: &str) -> Result<TlsVersion, String> {
    match text {
        "tls12" => Ok(TlsVersion::Tls12),
        "tls13" => Ok(TlsVersion::Tls13),
        "tls10" | "tls11" => Err("TLS 1.0 and 1.1 are broken and not spoken here: use tls12 or tls13".to_owned()),
        _ => Err("must be tls12 or tls13".to_owned()),
    }
}

fn client_auth(text: &str) -> Result<ClientAuth, String> {
    match text {
        "none" => Ok(ClientAuth::None),
        "request" => Ok(ClientAuth::Request),
        "require-any" => Ok(ClientAuth::RequireAny),
        "verify-if-given" => Ok(ClientAuth::VerifyIfGiven),
        "require-and-verify" => Ok(ClientAuth::RequireAndVerify),
        _ => Err("must be none, request, require-any, verify-if-given or require-and-verify".to_owned()),
    }
}

/// TLS of the server's own.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsFlags {
    /// Serve HTTPS, too
    #[arg(long, env = "CODER_TLS_ENABLE", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    tls_enable: bool,
    /// Address to serve HTTPS on
    #[arg(long, env = "CODER_TLS_ADDRESS", default_value = "127.0.0.1:3443", value_name = "ADDRESS", value_parser = address)]
    tls_address: SocketAddr,
    /// Files of certificates with their chains, in PEM; the name that a client asks for chooses one
    #[arg(long, env = "CODER_TLS_CERT_FILE", value_name = "FILES", value_delimiter = ',')]
    tls_cert_file: Vec<PathBuf>,
    /// Files of their keys, in the same order
    #[arg(long, env = "CODER_TLS_KEY_FILE", value_name = "FILES", value_delimiter = ',')]
    tls_key_file: Vec<PathBuf>,
    /// Oldest version of TLS that is spoken: tls12 or tls13
    #[arg(long, env = "CODER_TLS_MIN_VERSION", default_value = "tls12", value_name = "VERSION", value_parser = version)]
    tls_min_version: TlsVersion,
    /// What is asked of clients' certificates: none, request, require-any, verify-if-given or require-and-verify
    #[arg(long, env = "CODER_TLS_CLIENT_AUTH", default_value = "none", value_name = "MODE", value_parser = client_auth)]
    tls_client_auth: ClientAuth,
    /// File of the authorities that sign clients' certificates, in PEM
    #[arg(long, env = "CODER_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    tls_client_ca_file: Option<PathBuf>,
    /// Send browsers from HTTP to an https access URL
    #[arg(long, env = "CODER_TLS_REDIRECT_HTTP_TO_HTTPS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "true", default_missing_value = "true", value_parser = go_bool, hide = true)]
    tls_redirect_http_to_https: bool,
    /// Send requests under other hosts to the access URL
    #[arg(long, env = "CODER_REDIRECT_TO_ACCESS_URL", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    redirect_to_access_url: bool,
    /// Seconds for which browsers shall insist on HTTPS
    #[arg(long, env = "CODER_STRICT_TRANSPORT_SECURITY", default_value = "0", value_name = "SECONDS")]
    strict_transport_security: u64,
    /// Additions to it: includeSubDomains, preload
    #[arg(long, env = "CODER_STRICT_TRANSPORT_SECURITY_OPTIONS", value_name = "OPTIONS", value_delimiter = ',')]
    strict_transport_security_options: Vec<String>,
}

impl TlsFlags {
    pub(super) fn config(&self) -> anyhow::Result<Option<TlsConfig>> {
        if !self.tls_enable {
            return Ok(None);
        }
        let (certificates, keys) = (self.tls_cert_file.len(), self.tls_key_file.len());
        if certificates != keys {
            bail!("--tls-cert-file names {certificates} files and --tls-key-file {keys}: each certificate needs its key");
        }
        Ok(Some(TlsConfig {
            address: self.tls_address,
            pairs: self.tls_cert_file.iter().cloned().zip(self.tls_key_file.iter().cloned()).collect(),
            min_version: self.tls_min_version,
            client_auth: self.tls_client_auth,
            client_ca: self.tls_client_ca_file.clone(),
        }))
    }

    pub(super) const fn redirect(&self) -> Redirect {
        match (self.redirect_to_access_url, self.tls_enable && self.tls_redirect_http_to_https) {
            (true, _) => Redirect::ToAccessUrl,
            (false, true) => Redirect::ToHttps,
            (false, false) => Redirect::Never,
        }
    }

    pub(super) fn transport_security(&self) -> anyhow::Result<Option<String>> {
        if self.strict_transport_security == 0 {
            return Ok(None);
        }
        let mut text = format!("max-age={}", self.strict_transport_security);
        for option in &self.strict_transport_security_options {
            match option.to_ascii_lowercase().as_str() {
                "includesubdomains" => text.push_str("; includeSubDomains"),
                "preload" => text.push_str("; preload"),
                _ => bail!("--strict-transport-security-options knows includeSubDomains and preload, not {option:?}"),
            }
        }
        Ok(Some(text))
    }
}

fn stun_servers(text: &str) -> Result<Option<(String, u16)>, String> {
    if text == "disable" {
        return Ok(None);
    }
    let bad = || "must be HOST:PORT, or disable for none".to_owned();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().map_err(|_| bad())?),
        _ => return Err(bad()),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b));
    if host.is_empty() || !plain || port == 0 { Err(bad()) } else { Ok(Some((host.to_owned(), port))) }
}

/// Relays and STUN.
#[derive(Debug, Args)]
#[command(next_help_heading = "Relays")]
pub(super) struct RelayFlags {
    /// Be a relay
    #[arg(long, env = "CODER_DERP_SERVER_ENABLE", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    derp_server_enable: bool,
    /// Number of the relay's region
    #[arg(long, env = "CODER_DERP_SERVER_REGION_ID", default_value = "999", value_name = "NUMBER", hide = true)]
    derp_server_region_id: RegionId,
    /// Code of the relay's region
    #[arg(long, env = "CODER_DERP_SERVER_REGION_CODE", default_value = "coder", value_name = "CODE", hide = true)]
    derp_server_region_code: String,
    /// Name of the relay's region
    #[arg(long, env = "CODER_DERP_SERVER_REGION_NAME", default_value = "Coder Embedded Relay", value_name = "NAME")]
    derp_server_region_name: String,
    /// STUN servers beside this one, HOST:PORT; one or several, or "disable" for none
    #[arg(long, env = "CODER_DERP_SERVER_STUN_ADDRESSES", value_name = "ADDRESSES", value_delimiter = ',', value_parser = stun_servers)]
    derp_server_stun_addresses: Vec<Option<(String, u16)>>,
    /// File with more relays, a relay map in JSON; SIGUSR1 makes the server read it again
    #[arg(long, env = "CODER_DERP_CONFIG_PATH", value_name = "FILE", conflicts_with = "derp_config_url")]
    derp_config_path: Option<PathBuf>,
    /// URL with more relays, fetched again at SIGUSR1
    #[arg(long, env = "CODER_DERP_CONFIG_URL", value_name = "URL")]
    derp_config_url: Option<Url>,
}

impl RelayFlags {
    pub(super) fn config(&self) -> anyhow::Result<RelayConfig> {
        let source = match (&self.derp_config_path, &self.derp_config_url) {
            (Some(path), _) => Some(RelaySource::File(path.clone())),
            (None, Some(url)) if !matches!(url.scheme(), "http" | "https") => {
                bail!("--derp-config-url must begin with http:// or https://")
            }
            (None, Some(url)) => Some(RelaySource::Url(url.clone())),
            (None, None) => None,
        };
        Ok(RelayConfig {
            embedded: self.derp_server_enable,
            region: self.derp_server_region_id,
            code: self.derp_server_region_code.clone(),
            name: self.derp_server_region_name.clone(),
            stun_servers: self.derp_server_stun_addresses.iter().flatten().cloned().collect(),
            source,
        })
    }
}

/// A Go duration of a second at least.
fn life(text: &str) -> Result<Duration, String> {
    match go_duration(text)? {
        short if short < Duration::from_secs(1) => Err("must be 1s at least".to_owned()),
        life => Ok(life),
    }
}

/// Logins, tokens and limits.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logins and limits")]
pub(super) struct SessionFlags {
    /// Life of a login by password
    #[arg(long, env = "CODER_SESSION_DURATION", default_value = "24h", value_name = "DURATION", value_parser = life)]
    session_duration: Duration,
    /// End logins at their time, however much they are used
    #[arg(long, env = "CODER_DISABLE_SESSION_EXPIRY_REFRESH", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    disable_session_expiry_refresh: bool,
    /// Let whoever asks first make the first user, with a password; otherwise a token for that user lies in the data folder
    #[arg(long, env = "CODER_FIRST_USER_BY_REQUEST", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) first_user_by_request: bool,
    /// Take no passwords
    #[arg(long, env = "CODER_DISABLE_PASSWORD_AUTH", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    disable_password_auth: bool,
    /// Life of a token that asks for none
    #[arg(long, env = "CODER_DEFAULT_TOKEN_LIFETIME", default_value = "168h", value_name = "DURATION", value_parser = life)]
    default_token_lifetime: Duration,
    /// Longest life of a token
    #[arg(long, env = "CODER_MAX_TOKEN_LIFETIME", default_value = "876600h", value_name = "DURATION", value_parser = life)]
    max_token_lifetime: Duration,
    /// Longest life of a token of the first user
    #[arg(long, env = "CODER_MAX_ADMIN_TOKEN_LIFETIME", default_value = "168h", value_name = "DURATION", value_parser = life)]
    max_admin_token_lifetime: Duration,
    /// Requests a minute that a user may make to each call of the API
    #[arg(long, env = "CODER_API_RATE_LIMIT", default_value = "512", value_name = "NUMBER")]
    api_rate_limit: NonZeroU32,
    /// Answer any number of requests
    #[arg(long, env = "CODER_DANGEROUS_DISABLE_RATE_LIMITS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    dangerous_disable_rate_limits: bool,
    /// Networks of proxies that are believed when they tell for whom they ask
    #[arg(long, env = "CODER_PROXY_TRUSTED_ORIGINS", value_name = "NETWORKS", value_delimiter = ',')]
    proxy_trusted_origins: Vec<Subnet>,
    /// Headers in which they tell it, such as X-Forwarded-For
    #[arg(long, env = "CODER_PROXY_TRUSTED_HEADERS", value_name = "HEADERS", value_delimiter = ',')]
    proxy_trusted_headers: Vec<String>,
    /// Let only browsers connect to workspaces
    #[arg(long, env = "CODER_BROWSER_ONLY", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) browser_only: bool,
}

impl SessionFlags {
    pub(super) const fn rules(&self) -> SessionRules {
        SessionRules {
            session: self.session_duration,
            refresh: !self.disable_session_expiry_refresh,
            default_token: self.default_token_lifetime,
            max_token: self.max_token_lifetime,
            max_admin_token: self.max_admin_token_lifetime,
            passwords: !self.disable_password_auth,
        }
    }

    pub(super) fn proxies(&self) -> TrustedProxies {
        TrustedProxies { networks: self.proxy_trusted_origins.clone(), headers: self.proxy_trusted_headers.clone() }
    }

    pub(super) fn limits(&self) -> Option<RateLimits> {
        let limits = RateLimits { api: self.api_rate_limit, ..RateLimits::default() };
        (!self.dangerous_disable_rate_limits).then_some(limits)
    }
}

/// What starts and stops workspaces, and what is told of the server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Operation")]
pub(super) struct OperationFlags {
    /// Command that starts a workspace: it gets CODER_WORKSPACE_NAME, CODER_AGENT_URL, CODER_AGENT_TOKEN and more
    #[arg(long, env = "CODER_WORKSPACE_START_COMMAND", value_name = "COMMAND")]
    workspace_start_command: Option<String>,
    /// Command that stops a workspace, and is run before one is deleted
    #[arg(long, env = "CODER_WORKSPACE_STOP_COMMAND", value_name = "COMMAND")]
    workspace_stop_command: Option<String>,
    /// How long these commands may take
    #[arg(long, env = "CODER_WORKSPACE_COMMAND_TIMEOUT", default_value = "10m", value_name = "DURATION", value_parser = life)]
    workspace_command_timeout: Duration,
    /// Host of workspace applications, such as *.apps.example.com
    #[arg(long, env = "CODER_WILDCARD_ACCESS_URL", value_name = "HOST")]
    pub(super) wildcard_access_url: Option<String>,
    /// Serve metrics for Prometheus
    #[arg(long, env = "CODER_PROMETHEUS_ENABLE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    prometheus_enable: bool,
    /// Address to serve them on
    #[arg(long, env = "CODER_PROMETHEUS_ADDRESS", default_value = "127.0.0.1:2112", value_name = "ADDRESS", value_parser = address)]
    prometheus_address: SocketAddr,
}

impl OperationFlags {
    pub(super) fn hooks(&self) -> Hooks {
        Hooks {
            start: self.workspace_start_command.clone(),
            stop: self.workspace_stop_command.clone(),
            limit: self.workspace_command_timeout,
        }
    }

    pub(super) fn metrics(&self) -> Option<SocketAddr> {
        self.prometheus_enable.then_some(self.prometheus_address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct All {
        #[command(flatten)]
        tls: TlsFlags,
        #[command(flatten)]
        relays: RelayFlags,
        #[command(flatten)]
        sessions: SessionFlags,
        #[command(flatten)]
        operation: OperationFlags,
    }

    fn parse(line: &str) -> Result<All, String> {
        All::try_parse_from(format!("server {line}").split_whitespace()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_address_may_leave_its_host_out() {
        for (text, whole) in [(":80", "0.0.0.0:80"), ("localhost:80", "127.0.0.1:80"), ("[::1]:80", "[::1]:80")] {
            assert_eq!(address(text).unwrap().to_string(), whole);
        }
        for bad in ["", "80", "host:80", ":x"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let all = parse("").unwrap();
        assert_eq!(all.tls.config().unwrap().map(|tls| tls.address), None);
        assert_eq!((all.tls.redirect(), all.tls.transport_security().unwrap()), (Redirect::Never, None));
        assert_eq!(all.relays.config().unwrap(), RelayConfig::default());
        assert_eq!(all.sessions.rules(), SessionRules::default());
        assert_eq!(all.sessions.limits(), Some(RateLimits::default()));
        assert_eq!(all.sessions.proxies(), TrustedProxies::default());
        assert_eq!((all.operation.hooks(), all.operation.metrics()), (Hooks::default(), None));
    }

    #[test]
    fn certificates_and_keys_come_in_pairs_and_tls_sends_http_to_https() {
        let all = parse("--tls-enable --tls-cert-file a,b --tls-key-file c --tls-key-file d --tls-min-version tls13").unwrap();
        let tls = all.tls.config().unwrap().unwrap();
        let pairs = [("a", "c"), ("b", "d")].map(|(certificate, key)| (certificate.into(), key.into()));
        assert_eq!((tls.pairs.as_slice(), tls.min_version), (pairs.as_slice(), TlsVersion::Tls13));
        assert_eq!(all.tls.redirect(), Redirect::ToHttps);
        let all = parse("--tls-enable --tls-cert-file a,b --tls-key-file c --redirect-to-access-url").unwrap();
        assert!(all.tls.config().unwrap_err().to_string().contains("--tls-key-file 1"));
        assert_eq!(all.tls.redirect(), Redirect::ToAccessUrl);
        let hsts = "--strict-transport-security 300 --strict-transport-security-options includeSubDomains,preload";
        let value = parse(hsts).unwrap().tls.transport_security().unwrap();
        assert_eq!(value.as_deref(), Some("max-age=300; includeSubDomains; preload"));
    }

    #[test]
    fn stun_servers_are_hosts_with_ports_and_disable_is_none() {
        let servers = |line: &str| parse(line).map(|all| all.relays.config().unwrap().stun_servers);
        assert_eq!(servers("--derp-server-stun-addresses disable").unwrap(), []);
        let several = servers("--derp-server-stun-addresses stun.example.com:19302,[::1]:1,10.0.0.1:3478").unwrap();
        let expected = [("stun.example.com", 19302), ("::1", 1), ("10.0.0.1", 3478)].map(|(h, p)| (h.to_owned(), p));
        assert_eq!(several, expected);
        for bad in ["foo", "10.0.0.1", "[::1]", "::1", "x:0", "x:y", ":1", "a/b:1"] {
            assert!(servers(&format!("--derp-server-stun-addresses {bad}")).unwrap_err().contains("HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        for (line, named) in [
            ("--tls-min-version tls10", "tls12"),
            ("--tls-client-auth maybe", "require-and-verify"),
            ("--session-duration 0", "1s"),
            ("--api-rate-limit 0", "zero"),
            ("--derp-server-region-id 0", "65535"),
            ("--proxy-trusted-origins x", "10.0.0.0/8"),
            ("--derp-config-path a --derp-config-url http://b", "cannot be used"),
        ] {
            let said = parse(line).unwrap_err();
            assert!(said.contains(named), "{line}: {said}");
        }
    }
}
