//! `coder quickstart`: a server, an agent as its child and a shell through the tunnel, in a folder that goes away.

use super::{
    args::{Global, Quickstart},
    connect::{SSH_PORT, Tunnel, Wishes},
    deployment::Deployment,
    go_time::rounded,
    logs,
    output::{self, quote},
    ping::way,
    server::{self, DEV_WORKSPACE},
    ssh,
    target::{HostNames, Target},
};
use crate::{
    driver::{clock, process::EndSignals, terminal::Terminals},
    net::{PathState, PingKind},
    server::{Config, Running},
};
use anyhow::{Context as _, bail};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tracing::level_filters::LevelFilter;

/// How long the tunnel may take to become direct on one machine.
const DIRECT_LIMIT: Duration = Duration::from_secs(15);

pub(super) fn run(global: &Global, args: &Quickstart) -> anyhow::Result<u8> {
    logs::start(logs::level(global.verbose, LevelFilter::ERROR));
    let folder = tempfile::Builder::new().prefix("coder-quickstart-").tempdir().context("cannot make a temporary folder")?;
    let config = Config {
        dev: Some(server::own_binary()?),
        ..Config::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), folder.path().join("data"))
    };
    super::on_all_cores(async {
        let mut signals = EndSignals::open().context("cannot handle signals")?;
        let running = crate::server::serve(config).await?;
        let ended = tokio::select! {
            ended = use_it(&running, folder.path().join("login"), global, &args.command) => ended,
            _ = signals.next() => Ok(1),
        };
        running.shutdown().await;
        ended
    })
}

async fn use_it(running: &Running, login: std::path::PathBuf, global: &Global, command: &[String]) -> anyhow::Result<u8> {
    server::login(running, login.clone())?;
    // The user's own login and deployment have no part in this.
    let global = Global { url: None, token: None, global_config: Some(login.clone()), ..global.clone() };
    let deployment = Deployment::open(&global).await?;
    let target = Target::parse(DEV_WORKSPACE, &HostNames::default());
    let direct = !global.disable_direct_connections;
    if !command.is_empty() {
        let quoted: Vec<_> = command.iter().map(|word| quote(word)).collect();
        return ssh::open(&deployment, &target, direct, Some(quoted.join(" "))).await;
    }
    output::note(&format!(
        "A server and an agent run in a temporary folder. As long as they do, another terminal gets a shell with:\n\n  \
         CODER_CONFIG_DIR={} {} ssh {DEV_WORKSPACE}\n",
        login.display(),
        server::own_binary()?.display()
    ));
    if Terminals::of_process().input {
        return ssh::open(&deployment, &target, direct, None).await;
    }
    show(&deployment, &target, direct).await
}

/// Without a terminal and a command: how long the tunnel took by relay and directly, and a ping.
async fn show(deployment: &Deployment, target: &Target, direct: bool) -> anyhow::Result<u8> {
    let started = clock::now();
    // On one machine the direct path is often proven before a byte has left by relay: at first it is not looked for.
    let tunnel = Tunnel::open(deployment, target, Wishes::default()).await?;
    let stream = tunnel.dial(SSH_PORT).await?;
    output::line(&format!("by relay after {}", rounded(clock::now() - started)))?;
    if direct {
        let mut path = tunnel.tailnet.watch_path(tunnel.address).await?;
        let allowed = clock::now();
        tunnel.tailnet.set_direct(true);
        let upgraded = path.wait_for(|p| p.is_some_and(|p| p.state == PathState::Direct));
        match tokio::time::timeout(DIRECT_LIMIT, upgraded).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => bail!("the tunnel ended"),
            Err(_) => bail!("the tunnel did not become direct within {} s", DIRECT_LIMIT.as_secs()),
        }
        output::line(&format!("direct after {} more", rounded(clock::now() - allowed)))?;
    }
    let pong = tunnel
        .tailnet
        .ping(tunnel.address, PingKind::Disco, Duration::from_secs(5))
        .await
        .context("the agent did not answer a ping")?;
    output::line(&format!("pong from {target} {} in {}", way(&tunnel, &pong), rounded(pong.latency)))?;
    drop(stream);
    tunnel.close().await;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reaches_the_remote_shell_as_it_was_typed() {
        for word in ["", "a b", "it's", "$HOME", "*", "a\nb", "plain-1.2/x", "~"] {
            let output = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quote(word))]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }
}
