//! Starting and ending a server.

use super::{
    admin,
    app::{App, Network},
    dev::AgentChild,
    listen,
    relays::{RelayFileError, Relays, Stun},
    ssh_hosts::SshHosts,
    store::{OpenError, Store, StoreError},
    stun,
    time::Stamp,
    token::NoRandomness,
};
use crate::driver::http::without_secrets;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::{TcpListener, UdpSocket};
use url::Url;

/// The workspace of `--dev`.
const DEV_WORKSPACE: &str = "dev";
/// How long sockets and the dev agent may take for their end.
const END_TIME: Duration = Duration::from_secs(6);

/// Where STUN is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StunAddress {
    /// On UDP at the HTTP address, with the HTTP port.
    #[default]
    LikeHttp,
    /// Here.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// What a server is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where HTTP is served; port 0 for any free one.
    pub http_address: SocketAddr,
    /// Where users and agents reach the server; by default the HTTP address.
    pub access_url: Option<String>,
    /// The folder of the database and of the first user's token.
    pub data_dir: PathBuf,
    /// Where STUN is served.
    pub stun: StunAddress,
    /// The own binary, to run the agent of a workspace `dev` beside the server.
    pub dev: Option<PathBuf>,
    /// Nodes shall reach each other through the relay only.
    pub block_direct: bool,
    /// Nodes shall speak to the relay over WebSockets only.
    pub force_websockets: bool,
    /// A file with more relays, a relay map in JSON.
    pub derp_config: Option<PathBuf>,
    /// What users' SSH configurations shall hold.
    pub ssh_hosts: SshHosts,
}

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
    /// The file with more relays.
    #[error(transparent)]
    Relays(#[from] RelayFileError),
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
    stun: Option<SocketAddr>,
    admin_token_path: PathBuf,
}

impl Running {
    /// Where HTTP is served.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
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

    /// The file that holds the first user's token.
    #[must_use]
    pub fn admin_token_path(&self) -> &Path {
        &self.admin_token_path
    }

    /// Reads the file with more relays again. Agents and clients that are connected are told of another map at once.
    ///
    /// # Errors
    /// When the file cannot be used; the map stays what it was.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the map as it was, or the whole new one.
    pub async fn reload_relays(&self) -> Result<(), RelayFileError> {
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

/// Starts a server and returns when it can be reached.
///
/// # Errors
/// When it cannot run as configured; nothing is left running.
pub async fn serve(config: Config) -> Result<Running, StartError> {
    let given = config.access_url.as_deref().map(access_url).transpose()?;
    let (listener, stun) = bind(&config).await?;
    let unnamed = |error| StartError::listen("TCP", config.http_address, "--http-address", error);
    let address = listener.local_addr().map_err(unnamed)?;
    let url = match given {
        Some(url) => url,
        None => access_url(&format!("http://{}", reachable(address)))?,
    };
    let stun_address = stun.as_ref().and_then(|socket| socket.local_addr().ok());
    let stun_use = match stun_address {
        _ if config.block_direct => Stun::Forbidden,
        Some(address) => Stun::At(address.port()),
        None => Stun::Elsewhere,
    };
    let network = Network {
        relays: Relays::open(&url, stun_use, config.derp_config).await?,
        block_direct: config.block_direct,
        force_websockets: config.force_websockets,
        own_url: format!("http://{}", reachable(address)),
    };
    let store = Store::open(&config.data_dir).await?;
    let user = admin::ensure_user(&store).await?;
    let admin_token_path = admin::token_path(&config.data_dir);
    admin::ensure_token(&store, &user, &admin_token_path)
        .await?
        .map_err(|error| StartError::AdminToken { path: admin_token_path.clone(), error })?;

    let dev = match config.dev {
        None => None,
        Some(program) => {
            let token = store.ensure_dev_workspace(Stamp::now(), user.id, DEV_WORKSPACE).await?;
            // Beside the server, the HTTP address is nearer than whatever leads to the access URL.
            Some(AgentChild { program, url: format!("http://{}", reachable(address)), token })
        }
    };
    let authority = authority(&url);
    let app = App::new(store, network, config.ssh_hosts, url.as_str().trim_end_matches('/').to_owned(), authority)?;
    // Nothing below fails.
    if let Some(socket) = stun {
        app.spawn(stun::serve(socket, app.stopping().clone()));
    }
    app.spawn(listen::accept(app.clone(), listener));
    if let Some(child) = dev {
        app.spawn(child.keep(app.stopping().clone()));
    }
    app.tasks().close();
    tracing::info!(%address, "the server runs");
    Ok(Running { app, address, stun: stun_address, admin_token_path })
}

async fn bind(config: &Config) -> Result<(TcpListener, Option<UdpSocket>), StartError> {
    let http = config.http_address;
    let stun_address = match config.stun {
        _ if config.block_direct => None,
        StunAddress::Off => None,
        StunAddress::At(address) => Some(address),
        StunAddress::LikeHttp => Some(http),
    };
    let listener = TcpListener::bind(http).await.map_err(|error| StartError::listen("TCP", http, "--http-address", error))?;
    let Some(mut address) = stun_address else { return Ok((listener, None)) };
    if config.stun == StunAddress::LikeHttp
        && let Ok(bound) = listener.local_addr()
    {
        address.set_port(bound.port());
    }
    match UdpSocket::bind(address).await {
        Ok(socket) => Ok((listener, Some(socket))),
        // Any free TCP port was asked for; that its UDP twin is taken is chance.
        Err(_) if http.port() == 0 && config.stun == StunAddress::LikeHttp => {
            address.set_port(0);
            let socket = UdpSocket::bind(address).await;
            Ok((listener, Some(socket.map_err(|error| StartError::listen("UDP", address, "--stun-address", error))?)))
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

fn access_url(text: &str) -> Result<Url, StartError> {
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
}
