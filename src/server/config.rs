//! What a server is to be.

use super::{origin::TrustedProxies, relays::RelayConfig, ssh_hosts::SshHosts, store::Transition, tls::TlsConfig};
use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);

/// The commands that start and stop workspaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Run when a workspace is started; it sees to it that the agent runs.
    pub start: Option<String>,
    /// Run when a workspace is stopped or deleted.
    pub stop: Option<String>,
    /// How long a command may take.
    pub limit: Duration,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { start: None, stop: None, limit: Duration::from_secs(600) }
    }
}

impl Hooks {
    pub(super) fn command(&self, transition: Transition) -> Option<&String> {
        match transition {
            Transition::Start => self.start.as_ref(),
            Transition::Stop | Transition::Delete => self.stop.as_ref(),
        }
    }
}

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

/// How long keys live, and who may have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRules {
    /// The life of a login by password.
    pub session: Duration,
    /// Each use of a login begins its life anew.
    pub refresh: bool,
    /// The life of a token that asks for none.
    pub default_token: Duration,
    /// The longest life of a token.
    pub max_token: Duration,
    /// The longest life of a token of the first user, who can do more.
    pub max_admin_token: Duration,
    /// Users may log in with passwords.
    pub passwords: bool,
}

impl Default for SessionRules {
    fn default() -> Self {
        Self {
            session: HOUR * 24,
            refresh: true,
            default_token: HOUR * 168,
            max_token: HOUR * 876_600,
            max_admin_token: HOUR * 168,
            passwords: true,
        }
    }
}

/// How many requests a minute a user, or a source without a login, may make to each route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// To the API.
    pub api: NonZeroU32,
    /// To what tries passwords.
    pub login: NonZeroU32,
}

impl Default for RateLimits {
    fn default() -> Self {
        let number = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Self { api: number(512), login: number(60) }
    }
}

/// Which requests are sent to the access URL instead of being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Redirect {
    /// None.
    #[default]
    Never,
    /// Those on the plain HTTP address, as far as the access URL is https.
    ToHttps,
    /// Those as well, and those under another host name.
    ToAccessUrl,
}

/// What a server is to be. [`Config::new`] has the usual choices.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where HTTP is served; port 0 for any free one.
    pub http_address: SocketAddr,
    /// Where HTTPS is served, and with what.
    pub tls: Option<TlsConfig>,
    /// Where users and agents reach the server; by default the HTTPS address, else the HTTP address.
    pub access_url: Option<String>,
    /// Which requests are sent to the access URL.
    pub redirect: Redirect,
    /// The value of `Strict-Transport-Security` where the access URL is https.
    pub transport_security: Option<String>,
    /// The folder of the database and of the first user's token.
    pub data_dir: PathBuf,
    /// Whoever asks first makes the first user; otherwise the server does, with a token in the data folder.
    pub first_user_by_request: bool,
    /// Where STUN is served.
    pub stun: StunAddress,
    /// The own binary, to run the agent of a workspace `dev` beside the server.
    pub dev: Option<PathBuf>,
    /// Nodes shall reach each other through the relay only.
    pub block_direct: bool,
    /// Nodes shall speak to the relay over WebSockets only.
    pub force_websockets: bool,
    /// Only browsers may connect to workspaces.
    pub browser_only: bool,
    /// The relays of the deployment.
    pub relays: RelayConfig,
    /// What users' SSH configurations shall hold.
    pub ssh_hosts: SshHosts,
    /// The host of workspace applications, with `*` in its first label.
    pub wildcard_host: Option<String>,
    /// How long keys live.
    pub sessions: SessionRules,
    /// How many requests a minute are answered; `None` for any number.
    pub rate_limits: Option<RateLimits>,
    /// Who is believed to ask for others.
    pub proxies: TrustedProxies,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// What starts and stops workspaces.
    pub hooks: Hooks,
}

impl Config {
    /// A server at `http_address` with its data in `data_dir`.
    #[must_use]
    pub fn new(http_address: SocketAddr, data_dir: PathBuf) -> Self {
        Self {
            http_address,
            tls: None,
            access_url: None,
            redirect: Redirect::default(),
            transport_security: None,
            data_dir,
            first_user_by_request: false,
            stun: StunAddress::default(),
            dev: None,
            block_direct: false,
            force_websockets: false,
            browser_only: false,
            relays: RelayConfig::default(),
            ssh_hosts: SshHosts::default(),
            wildcard_host: None,
            sessions: SessionRules::default(),
            rate_limits: Some(RateLimits::default()),
            proxies: TrustedProxies::default(),
            metrics: None,
            hooks: Hooks::default(),
        }
    }
}
