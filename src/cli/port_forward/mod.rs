//! `coder port-forward`: ports of this machine that lead to ports of a workspace (`cli.md` §2.7).
//!
//! It goes on through everything that may pass: a connection that cannot be made is one connection less, an agent that
//! restarts is dialled anew, a workspace that was built anew is looked up again. A workspace that was stopped or deleted
//! ends it.

mod spec;
mod tcp;
mod udp;
mod way;

use super::{
    args::{Global, Wait, go_bool},
    connect::{Tunnel, Usage, Wishes},
    deployment::Deployment,
    interrupt::exit_code,
    logs, output,
    ready::Readiness,
    target::{HostNames, Target},
    watch::Fate,
};
use crate::driver::process::{EndSignals, raise_file_limit};
use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use spec::{Forward, Listen, Protocol};
use std::{convert::Infallible, future::pending, io, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinSet,
};
use tracing::level_filters::LevelFilter;
use way::Way;

/// How long the good-bye may take: what is on its way through open connections gets as much.
const HURRY: Duration = Duration::from_secs(2);
/// After a new build: between two attempts to reach the new agent, and how many there are.
const REOPEN: Duration = Duration::from_secs(5);
const REOPENS: u32 = 12;

/// The flags.
#[derive(Debug, Args)]
pub(super) struct PortForward {
    /// [OWNER/]WORKSPACE[.AGENT]
    workspace: String,
    /// TCP ports [ADDRESS:]LOCAL[-END][:REMOTE[-END]], one or several with commas between; may be repeated
    #[arg(short = 'p', long, env = "CODER_PORT_FORWARD_TCP", value_name = "SPEC", allow_hyphen_values = true)]
    tcp: Vec<String>,
    /// UDP ports, in the same form
    #[arg(long, env = "CODER_PORT_FORWARD_UDP", value_name = "SPEC", allow_hyphen_values = true)]
    udp: Vec<String>,
    /// Do not start a stopped workspace
    #[arg(long, env = "CODER_SSH_DISABLE_AUTOSTART", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    disable_autostart: bool,
}

pub(super) fn run(global: &Global, args: &PortForward) -> anyhow::Result<u8> {
    logs::start(logs::level(global.verbose, LevelFilter::ERROR));
    let forwards = spec::parse(&args.tcp, &args.udp)?;
    raise_file_limit();
    super::on_one_thread(async {
        let deployment = Deployment::open(global).await?;
        let target = Target::parse(&args.workspace, &HostNames::default());
        let wishes = |start| Wishes {
            direct: !global.disable_direct_connections,
            usage: Some(Usage::Unnamed),
            watch: true,
            readiness: Readiness { start, wait: Wait::No },
            ..Wishes::default()
        };
        let mut signals = EndSignals::open().context("cannot handle signals")?;
        let tunnel = tokio::select! {
            tunnel = Tunnel::open(&deployment, &target, wishes(!args.disable_autostart)) => tunnel?,
            signal = signals.next() => return Ok(exit_code(signal)),
        };
        let way = Arc::new(Way::new(tunnel));
        let (ready, is_ready) = watch::channel(false);
        // Dropping them ends every connection.
        let listeners = listen(&forwards, &way, &is_ready).await;
        let ended = match &listeners {
            Ok(_) => tokio::select! {
                Err(why) = go_on(&deployment, &target, || wishes(false), &way, &ready) => Err(why),
                _ = signals.next() => Ok(0),
            },
            Err(_) => Ok(1),
        };
        if let (Ok(_), Ok(_)) = (&listeners, &ended) {
            output::note("");
            output::note("Received signal, closing all listeners and active connections");
        }
        let failed = listeners.err();
        way.tunnel().close_within(HURRY).await;
        failed.map_or(ended, Err)
    })
}

/// Opens every port, and serves it from now on as a task of the set.
async fn listen(forwards: &[Forward], way: &Arc<Way>, is_ready: &watch::Receiver<bool>) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for forward in forwards {
        for Listen { at, optional } in forward.listens() {
            let local = format!("{}://{at}", forward.protocol);
            let target = forward.target();
            let opened = match forward.protocol {
                Protocol::Tcp => TcpListener::bind(at).await.map(|listener| {
                    tasks.spawn(tcp::serve(listener, forward.remote, target.clone(), Arc::clone(way)));
                }),
                Protocol::Udp => UdpSocket::bind(at).await.map(|socket| {
                    let serving = udp::serve(socket, forward.remote, target.clone(), Arc::clone(way));
                    let mut is_ready = is_ready.clone();
                    tasks.spawn(async move {
                        // What comes before the tunnel stands waits in the socket instead of getting lost.
                        if is_ready.wait_for(|ready| *ready).await.is_ok() {
                            serving.await;
                        }
                    });
                }),
            };
            match opened {
                Ok(()) => output::note(&format!("Forwarding '{local}' locally to '{target}' in the workspace")),
                Err(error) if optional => without(&local, &error),
                Err(error) => return Err(cannot_listen(&local, &error)),
            }
        }
    }
    Ok(tasks)
}

/// One of the two loopback addresses is not there, or not ours.
fn without(local: &str, error: &io::Error) {
    if error.kind() == io::ErrorKind::AddrInUse {
        output::note(&format!("Warning: '{local}' is in use by another program and does not lead to the workspace"));
    } else {
        tracing::debug!(local, %error, "not listened on");
    }
}

fn cannot_listen(local: &str, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow!(
                "listen '{local}': address already in use: choose another local port, as in LOCAL:REMOTE, or end what uses it"
            )
        }
        io::ErrorKind::PermissionDenied => {
            anyhow!("listen '{local}': permission denied: choose a local port above 1023, as in LOCAL:REMOTE")
        }
        _ => anyhow!("listen '{local}': {error}"),
    }
}

/// Follows the workspace until there is a reason to end.
async fn go_on(
    deployment: &Deployment,
    target: &Target,
    wishes: impl Fn() -> Wishes,
    way: &Way,
    ready: &watch::Sender<bool>,
) -> anyhow::Result<Infallible> {
    loop {
        let tunnel = way.tunnel();
        let reached = async {
            if !*ready.borrow() {
                way::reach(&tunnel).await;
                output::note("Ready!");
                ready.send_replace(true);
            }
            pending::<Infallible>().await
        };
        let fate = tokio::select! {
            never = reached => match never {},
            error = tunnel.refused() => return Err(error),
            fate = tunnel.fate() => fate,
        };
        match fate {
            Fate::Rebuilt => {
                tracing::info!(workspace = tunnel.name, "built anew");
                way.replace(reopen(deployment, target, &wishes).await?);
            }
            ended => bail!("port forwarding to {} has ended: {ended}", tunnel.name),
        }
    }
}

/// A tunnel to the agent that the newest build has made.
async fn reopen(deployment: &Deployment, target: &Target, wishes: impl Fn() -> Wishes) -> anyhow::Result<Tunnel> {
    let mut attempt = 1;
    loop {
        match Tunnel::open(deployment, target, wishes()).await {
            Ok(tunnel) => return Ok(tunnel),
            Err(error) if attempt == REOPENS => return Err(error.context("the workspace was started anew")),
            Err(error) => tracing::debug!(%error, attempt, "the new agent cannot be reached yet"),
        }
        attempt += 1;
        tokio::time::sleep(REOPEN).await;
    }
}
