//! `coder server`: everything that a deployment needs in one process.

use super::{
    args::{Global, go_bool, part_of_host, suffix},
    config::{ConfigDir, Session},
    config_ssh::split_option,
    logs,
    output::{self, quote},
    server_flags::{OperationFlags, RelayFlags, SessionFlags, TlsFlags, address},
};
use crate::{
    driver::{
        http::Token,
        process::{EndSignals, ReloadSignal},
    },
    server::{self, Running, SshHosts, StunAddress},
};
use anyhow::{Context as _, bail};
use clap::Args;
use etcetera::BaseStrategy as _;
use std::{fs, net::SocketAddr, path::PathBuf};
use tracing::level_filters::LevelFilter;

/// Flags of `coder server`.
#[derive(Debug, Args)]
pub(super) struct Server {
    /// Address to listen on
    #[arg(long, env = "CODER_HTTP_ADDRESS", default_value = "127.0.0.1:3000", value_name = "ADDRESS", value_parser = address)]
    pub(super) http_address: SocketAddr,
    /// URL under which users and agents reach the server; by default the HTTP address
    #[arg(long, env = "CODER_ACCESS_URL", value_name = "URL")]
    pub(super) access_url: Option<String>,
    /// Folder of the database and the first user's token
    #[arg(long, env = "CODER_DATA_DIR", value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// UDP address of the STUN server; by default the HTTP address
    #[arg(long, env = "CODER_STUN_ADDRESS", value_name = "ADDRESS")]
    pub(super) stun_address: Option<SocketAddr>,
    /// Let agents and users reach each other through relays only
    #[arg(long, env = "CODER_BLOCK_DIRECT", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) block_direct_connections: bool,
    /// Make agents and users reach the relay by WebSocket
    #[arg(long, env = "CODER_DERP_FORCE_WEBSOCKETS", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) derp_force_websockets: bool,
    /// Prefix of the workspaces' names for OpenSSH
    #[arg(long, env = "CODER_SSH_HOSTNAME_PREFIX", default_value = "coder.", value_name = "PREFIX", value_parser = part_of_host)]
    pub(super) ssh_hostname_prefix: String,
    /// Suffix of the workspaces' names for OpenSSH, without its dot
    #[arg(long, env = "CODER_WORKSPACE_HOSTNAME_SUFFIX", default_value = "coder", value_name = "SUFFIX", value_parser = suffix)]
    pub(super) workspace_hostname_suffix: String,
    /// Options of OpenSSH for every workspace, KEY=VALUE or "KEY VALUE"; one or several
    #[arg(long, env = "CODER_SSH_CONFIG_OPTIONS", value_name = "OPTIONS", value_delimiter = ',', value_parser = ssh_option)]
    pub(super) ssh_config_options: Vec<(String, String)>,
    /// On loopback, with a workspace named dev whose agent runs beside the server
    #[arg(long)]
    pub(super) dev: bool,
    #[command(flatten)]
    tls: TlsFlags,
    #[command(flatten)]
    relays: RelayFlags,
    #[command(flatten)]
    sessions: SessionFlags,
    #[command(flatten)]
    operation: OperationFlags,
}

fn ssh_option(text: &str) -> Result<(String, String), String> {
    split_option(text).map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// The workspace of `--dev`.
pub(super) const DEV_WORKSPACE: &str = "dev";

pub(super) fn run(global: &Global, args: &Server) -> anyhow::Result<u8> {
    logs::start_with_audit(logs::level(global.verbose, LevelFilter::WARN));
    if args.dev && !args.http_address.ip().is_loopback() {
        bail!("--dev gives a shell on this machine and listens on loopback only, not on {}", args.http_address);
    }
    let hooks = args.operation.hooks();
    if args.dev && hooks.start.is_some() {
        bail!("--dev runs the agent of its workspace itself: leave --workspace-start-command out");
    }
    if args.dev && args.sessions.first_user_by_request {
        bail!("--dev logs the first user in at once: leave --first-user-by-request out");
    }
    let config = server::Config {
        access_url: args.access_url.clone(),
        tls: args.tls.config()?,
        redirect: args.tls.redirect(),
        transport_security: args.tls.transport_security()?,
        stun: args.stun_address.map_or(StunAddress::LikeHttp, StunAddress::At),
        dev: if args.dev { Some(own_binary()?) } else { None },
        block_direct: args.block_direct_connections,
        force_websockets: args.derp_force_websockets,
        first_user_by_request: args.sessions.first_user_by_request,
        browser_only: args.sessions.browser_only,
        relays: args.relays.config()?,
        ssh_hosts: SshHosts {
            prefix: args.ssh_hostname_prefix.clone(),
            suffix: args.workspace_hostname_suffix.clone(),
            options: args.ssh_config_options.iter().cloned().collect(),
        },
        wildcard_host: args.operation.wildcard_access_url.clone(),
        sessions: args.sessions.rules(),
        rate_limits: args.sessions.limits(),
        proxies: args.sessions.proxies(),
        metrics: args.operation.metrics(),
        hooks,
        ..server::Config::new(args.http_address, data_dir(args)?)
    };
    let login_dir = config.data_dir.join("login");
    super::on_all_cores(async {
        let mut signals = EndSignals::open_for_service().context("cannot handle signals")?;
        let reloads = ReloadSignal::open().context("cannot handle signals")?;
        let read_again = Again { relays: config.relays.source.is_some(), certificates: config.tls.is_some() };
        let running = server::serve(config).await?;
        if args.http_address.ip().is_unspecified() && args.access_url.is_none() {
            output::note(
                "Other machines cannot use the URL below: pass --access-url with the one under which they reach this server.",
            );
        }
        let greeting = greet(&running, args.dev.then_some(login_dir), args.sessions.first_user_by_request);
        if greeting.is_ok() {
            tokio::select! {
                _ = signals.next() => {}
                () = reload_when_told(&running, reloads, read_again) => {}
            }
        }
        tokio::select! {
            () = running.shutdown() => {}
            // Whoever asks twice does not want to wait.
            _ = signals.next() => {}
        }
        greeting.map(|()| 0)
    })
}

/// What a server has that can be read again.
#[derive(Debug, Clone, Copy)]
struct Again {
    relays: bool,
    certificates: bool,
}

/// Reads relay map and certificates again whenever the process is told to; never ends.
async fn reload_when_told(running: &Running, mut reloads: ReloadSignal, again: Again) {
    loop {
        reloads.next().await;
        if again.relays {
            match running.reload_relays().await {
                Ok(()) => output::note("The relay map was read again."),
                Err(error) => output::note(&format!("The relay map stays what it was: {error}")),
            }
        }
        if again.certificates {
            match running.reload_certificates() {
                Ok(()) => output::note("The certificates were read again."),
                Err(error) => output::note(&format!("The certificates stay what they were: {error}")),
            }
        }
        if !again.relays && !again.certificates {
            output::note(
                "There is nothing to read again: relays come with --derp-config-path or --derp-config-url, certificates with --tls-cert-file.",
            );
        }
    }
}

/// Tells where the server is and how to log in; never the token itself.
fn greet(running: &Running, dev_login: Option<PathBuf>, first_user_by_request: bool) -> anyhow::Result<()> {
    let (url, token) = (running.access_url(), quote(&running.admin_token_path().to_string_lossy()));
    output::line(&format!("Coder {} listening on {url}", crate::VERSION))?;
    if let Some(dir) = dev_login {
        login(running, dir.clone())?;
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        let (dir, program) = (quote(&dir.to_string_lossy()), quote(&own_binary()?.to_string_lossy()));
        return Ok(output::line(&format!(
            "Open a shell in the workspace {DEV_WORKSPACE} from another terminal:\n\n  CODER_CONFIG_DIR={dir} {program} ssh {DEV_WORKSPACE}\n",
        ))?);
    }
    if first_user_by_request {
        output::line(&format!("Whoever asks first makes the first user, unless there is one: POST {url}/api/v2/users/first"))?;
        return Ok(());
    }
    output::line(&format!("The first user's token is in {token}. Log in with:\n\n  coder login {url} < {token}\n"))?;
    Ok(())
}

/// Stores the first user's login in a folder of its own: an existing login stays as it is.
pub(super) fn login(running: &Running, dir: PathBuf) -> anyhow::Result<ConfigDir> {
    let path = running.admin_token_path();
    let token = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = ConfigDir::open(Some(&dir))?;
    // Ending this login must not end the token of the file.
    config.store(running.access_url(), Session::Given(&Token::new(token.trim())))?;
    Ok(config)
}

pub(super) fn own_binary() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file to start the agent from")
}

/// The folder that was asked for, or the user's own; `--dev` has one to itself.
fn data_dir(args: &Server) -> anyhow::Result<PathBuf> {
    if let Some(dir) = &args.data_dir {
        return Ok(dir.clone());
    }
    let strategy = etcetera::choose_base_strategy().context("no home folder is known: set HOME or pass --data-dir")?;
    Ok(strategy.data_dir().join(if args.dev { "coder-dev" } else { "coder-server" }))
}
