//! Starting and ending a server.

use super::{
    admin,
    app::{App, Network, Settings},
    config::{Config, Redirect, StunAddress},
    dev::AgentChild,
    limits::Limits,
    listen, metrics,
    relays::{RelayMapError, Relays, Stun},
    store::{OpenError, Store, StoreError},
    stun,
    time::Stamp,
    tls::{Tls, TlsError},
    token::NoRandomness,
};
use crate::driver::http::without_secrets;
use axum::http::HeaderValue;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::net::{TcpListener, UdpSocket};
use url::Url;

/// The workspace of `--dev`.
const DEV_WORKSPACE: &str = "dev";
/// How long sockets and the dev agent may take for their end.
const END_TIME: Duration = Duration::from_secs(6);

/// Why a server did not start. Each text is one line that names what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another process has the port.
    #[error("{what} port {address} is taken: stop what listens there, or choose another one with {flag}")]
    PortTaken {
        /// TCP or UDP.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The option that changes it.
        flag: &'static str,
    },
    /// The system does not let us have the port.
    #[error("no permission to listen on {what} {address}: choose a port from 1024 on with {flag}")]
    PortDenied {
        /// TCP or UDP.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The option that changes it.
        flag: &'static str,
    },
    /// The address is not this machine's, or something rarer.
    #[error("cannot listen on {what} {address}: {error}; choose another address with {flag}")]
    Listen {
        /// TCP or UDP.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The option that changes it.
        flag: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The access URL is none.
    #[error("the access URL {url:?} cannot be used: {why}; give one like https://coder.example.com with --access-url")]
    AccessUrl {
        /// The URL.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The data folder.
    #[error(transparent)]
    Data(#[from] OpenError),
    /// The first user's token cannot be written.
    #[error("cannot write the first user's token to {path:?}: {error}; choose another folder with --data-dir")]
    AdminToken {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The database failed after it was opened.
    #[error("the database failed: {0}")]
    Database(String),
    /// The relay map.
    #[error(transparent)]
    Relays(#[from] RelayMapError),
    /// Certificates, keys, or what is asked of clients.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The host of applications is none.
    #[error("the wildcard host {0:?} cannot be used: give one like *.apps.example.com with --wildcard-access-url")]
    Wildcard(String),
    /// The value of a header is none.
    #[error("{0:?} cannot be sent as Strict-Transport-Security: look at --strict-transport-security-options")]
    TransportSecurity(String),
    /// No keys can be made.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self::Database(error.to_string())
    }
}

impl StartError {
    fn listen(what: &'static str, address: SocketAddr, flag: &'static str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::PortTaken { what, address, flag },
            io::ErrorKind::PermissionDenied => Self::PortDenied { what, address, flag },
            _ => Self::Listen { what, address, flag, error },
        }
    }
}

/// A server that runs. Dropping it leaves the server running; end it with [`Running::shutdown`].
#[derive(Debug)]
pub struct Running {
    pub(super) app: App,
    address: SocketAddr,
    https: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    stun: Option<SocketAddr>,
    admin_token_path: PathBuf,
    tls: Option<Arc<Tls>>,
}

impl Running {
    /// Where HTTP is served.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where HTTPS is served.
    #[must_use]
    pub const fn https_address(&self) -> Option<SocketAddr> {
        self.https
    }

    /// Where metrics are served.
    #[must_use]
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Where STUN is served.
    #[must_use]
    pub const fn stun_address(&self) -> Option<SocketAddr> {
        self.stun
    }

    /// Where users and agents reach the server; no slash at the end.
    #[must_use]
    pub fn access_url(&self) -> &str {
        self.app.access_url()
    }

    /// The file that holds the first user's token, unless that user was made by request.
    #[must_use]
    pub fn admin_token_path(&self) -> &Path {
        &self.admin_token_path
    }

    /// Reads certificates and keys again; changed files are seen without it, too.
    ///
    /// # Errors
    /// When a file cannot be used; the certificates stay what they were.
    pub fn reload_certificates(&self) -> Result<(), TlsError> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.reload())
    }

    /// Reads the file or the URL with more relays again. Agents and clients that are connected are told of another map at once.
    ///
    /// # Errors
    /// When it cannot be used; the map stays what it was.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the map as it was, or the whole new one.
    pub async fn reload_relays(&self) -> Result<(), RelayMapError> {
        self.app.network().relays.reload().await
    }

    /// Waits until the server has ended, which it does only by [`Running::shutdown`].
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn wait(&self) {
        self.app.tasks().wait().await;
    }

    /// Ends the server: peers are told that the coordinator closes, sockets and the dev agent end, the store is closed.
    pub async fn shutdown(self) {
        self.app.coordination().close();
        self.app.stopping().cancel();
        if tokio::time::timeout(END_TIME, self.app.tasks().wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        self.app.store().close().await;
    }
}

/// The sockets of a server.
struct Bound {
    http: TcpListener,
    https: Option<TcpListener>,
    metrics: Option<TcpListener>,
    stun: Option<UdpSocket>,
}

/// Starts a server and returns when it can be reached.
///
/// # Errors
/// When it cannot run as configured; nothing is left running.
pub async fn serve(config: Config) -> Result<Running, StartError> {
    let given = config.access_url.as_deref().map(access_url).transpose()?;
    let tls = config.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
    let bound = bind(&config).await?;
    let unnamed = |error| StartError::listen("TCP", config.http_address, "--http-address", error);
    let address = bound.http.local_addr().map_err(unnamed)?;
    let https = bound.https.as_ref().and_then(|listener| listener.local_addr().ok());
    let metrics_address = bound.metrics.as_ref().and_then(|listener| listener.local_addr().ok());
    let url = match (given, https) {
        (Some(url), _) => url,
        (None, Some(https)) => access_url(&format!("https://{}", reachable(https)))?,
        (None, None) => access_url(&format!("http://{}", reachable(address)))?,
    };
    let settings = settings(&config, &url)?;
    let stun_address = bound.stun.as_ref().and_then(|socket| socket.local_addr().ok());
    let stun_use = match stun_address {
        _ if config.block_direct => Stun::Forbidden,
        Some(address) => Stun::At(address.port()),
        None => Stun::Elsewhere,
    };
    let network = Network {
        embedded: config.relays.embedded,
        relays: Relays::open(&url, stun_use, config.relays).await?,
        block_direct: config.block_direct,
        force_websockets: config.force_websockets,
        own_url: format!("http://{}", reachable(address)),
    };
    let store = Store::open(&config.data_dir).await?.with_refresh(config.sessions.refresh);
    let admin_token_path = admin::token_path(&config.data_dir);
    if !config.first_user_by_request {
        let user = admin::ensure_user(&store).await?;
        admin::ensure_token(&store, &user, &admin_token_path)
            .await?
            .map_err(|error| StartError::AdminToken { path: admin_token_path.clone(), error })?;
    }

    let dev = match config.dev {
        None => None,
        Some(program) => {
            let user = admin::ensure_user(&store).await?;
            let token = store.ensure_dev_workspace(Stamp::now(), user.id, DEV_WORKSPACE).await?;
            // Beside the server, the HTTP address is nearer than whatever leads to the access URL, if it answers.
            let url = match settings.redirect {
                Redirect::Never => format!("http://{}", reachable(address)),
                Redirect::ToHttps | Redirect::ToAccessUrl => settings.access_url.clone(),
            };
            Some(AgentChild { program, url, token })
        }
    };
    let app = App::new(store, network, settings, Limits::new(config.rate_limits))?;
    // Nothing below fails.
    if let Some(socket) = bound.stun {
        app.spawn(stun::serve(socket, app.stopping().clone()));
    }
    app.spawn(listen::accept(app.clone(), bound.http, None));
    if let (Some(listener), Some(tls)) = (bound.https, &tls) {
        app.spawn(listen::accept(app.clone(), listener, Some(Arc::clone(tls))));
    }
    if let Some(listener) = bound.metrics {
        app.spawn(metrics::serve(app.clone(), listener));
    }
    if let Some(child) = dev {
        app.spawn(child.keep(app.stopping().clone()));
    }
    app.tasks().close();
    tracing::info!(%address, "the server runs");
    Ok(Running { app, address, https, metrics: metrics_address, stun: stun_address, admin_token_path, tls })
}

fn settings(config: &Config, url: &Url) -> Result<Settings, StartError> {
    let transport_security = config
        .transport_security
        .as_deref()
        .map(|text| HeaderValue::from_str(text).map_err(|_| StartError::TransportSecurity(text.to_owned())));
    Ok(Settings {
        access_url: url.as_str().trim_end_matches('/').to_owned(),
        authority: authority(url),
        ssh_hosts: config.ssh_hosts.clone(),
        redirect: config.redirect,
        has_tls: config.tls.is_some(),
        transport_security: transport_security.transpose()?,
        browser_only: config.browser_only,
        wildcard_host: config.wildcard_host.as_deref().map(|host| wildcard(host, url)).transpose()?.unwrap_or_default(),
        sessions: config.sessions,
        first_user_by_request: config.first_user_by_request,
        proxies: config.proxies.clone(),
        hooks: config.hooks.clone(),
    })
}

/// The host of applications with the access URL's port.
fn wildcard(host: &str, url: &Url) -> Result<String, StartError> {
    let plain = host.replacen('*', "x", 1);
    let labels = plain
        .split('.')
        .all(|label| !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    let first = host.split('.').next().unwrap_or_default();
    if !labels || !first.starts_with('*') || !host.contains('.') {
        return Err(StartError::Wildcard(without_secrets(host).to_owned()));
    }
    Ok(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::listen("TCP", address, flag, error))
}

async fn bind(config: &Config) -> Result<Bound, StartError> {
    let address = config.http_address;
    let http = listen(address, "--http-address").await?;
    let https = match &config.tls {
        Some(tls) => Some(listen(tls.address, "--tls-address").await?),
        None => None,
    };
    let metrics = match config.metrics {
        Some(address) => Some(listen(address, "--prometheus-address").await?),
        None => None,
    };
    let stun = bind_stun(config, &http).await?;
    Ok(Bound { http, https, metrics, stun })
}

async fn bind_stun(config: &Config, listener: &TcpListener) -> Result<Option<UdpSocket>, StartError> {
    let http = config.http_address;
    let mut address = match config.stun {
        // Without a region of its own nobody would be told of it.
        _ if config.block_direct || !config.relays.embedded => return Ok(None),
        StunAddress::Off => return Ok(None),
        StunAddress::At(address) => address,
        StunAddress::LikeHttp => http,
    };
    if config.stun == StunAddress::LikeHttp
        && let Ok(bound) = listener.local_addr()
    {
        address.set_port(bound.port());
    }
    match UdpSocket::bind(address).await {
        Ok(socket) => Ok(Some(socket)),
        // Any free TCP port was asked for; that its UDP twin is taken is chance.
        Err(_) if http.port() == 0 && config.stun == StunAddress::LikeHttp => {
            address.set_port(0);
            let socket = UdpSocket::bind(address).await;
            Ok(Some(socket.map_err(|error| StartError::listen("UDP", address, "--stun-address", error))?))
        }
        Err(error) => Err(StartError::listen("UDP", address, "--stun-address", error)),
    }
}

/// The address under which this machine itself reaches `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

pub(super) fn access_url(text: &str) -> Result<Url, StartError> {
    let refuse = |why: String| StartError::AccessUrl { url: without_secrets(text).to_owned(), why };
    let url = Url::parse(text).map_err(|error| refuse(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("its scheme is neither http nor https".to_owned()));
    }
    if url.host().is_none() {
        return Err(refuse("it has no host".to_owned()));
    }
    let more = !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some();
    if more || url.path() != "/" {
        return Err(StartError::AccessUrl {
            // What else is in it may be a secret.
            url: url.host_str().unwrap_or_default().to_owned(),
            why: "it holds more than scheme, host and port".to_owned(),
        });
    }
    Ok(url)
}

/// Host and port as a browser writes them in `Host` and `Origin`: without the scheme's own port.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_url_is_http_with_a_host_and_nothing_secret() {
        for good in ["http://127.0.0.1:3000", "https://coder.example.com/", "http://[::1]:3000"] {
            assert!(access_url(good).is_ok(), "{good}");
        }
        for bad in ["", "coder.example.com", "ftp://x", "http://", "https://x/?a=b", "https://u:hunter2@x", "https://x/path"] {
            let error = access_url(bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("--access-url"), "{error}");
        }
    }

    #[test]
    fn a_server_on_all_addresses_is_reached_on_loopback() {
        let at = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(at("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(at("[::]:80"), "[::1]:80");
        assert_eq!(at("192.0.2.1:80"), "192.0.2.1:80");
    }

    #[test]
    fn a_wildcard_host_has_its_star_in_the_first_label_and_the_access_urls_port() {
        let url = Url::parse("http://coder.example.com:3100").unwrap();
        assert_eq!(wildcard("*.apps.example.com", &url).unwrap(), "*.apps.example.com:3100");
        let url = Url::parse("https://coder.example.com").unwrap();
        assert_eq!(wildcard("*-x.example.com", &url).unwrap(), "*-x.example.com");
        for bad in ["", "*", "apps.example.com", "apps.*.example.com", "https://*.example.com", "*.*.example.com", "*.a b"] {
            assert!(wildcard(bad, &url).unwrap_err().to_string().contains("--wildcard-access-url"), "{bad}");
        }
    }
}
