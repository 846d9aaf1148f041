//! `coder ssh --stdio`: the agent's SSH bytes between standard input and output, and nothing else on either.
//!
//! It ends with whoever reads its output. The parent's death is no measure: OpenSSH leaves its first process behind when
//! it goes to the background (`ControlPersist`, `-f`), and the kernel's signal follows the thread that started us.

use super::network_info::{self, NetworkInfo};
use crate::{
    cli::{
        connect::{SSH_PORT, Tunnel, Wishes},
        deployment::Deployment,
        target::Target,
    },
    driver::{
        clock,
        process::EndSignals,
        stdio::{Stdin, Stdout},
    },
    net::Stream,
};
use anyhow::{Context as _, anyhow};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

/// How long the good-bye may take when a signal ends us: OpenSSH waits for its ProxyCommand.
const HURRY: Duration = Duration::from_millis(300);
/// Bytes moved at once.
const CHUNK: usize = 64 * 1024;

pub(super) async fn run(
    deployment: &Deployment,
    target: &Target,
    wishes: Wishes,
    info: Option<NetworkInfo>,
) -> anyhow::Result<u8> {
    let mut signals = EndSignals::open().context("cannot handle signals")?;
    let stdout = Stdout::open();
    let tunnel = tokio::select! {
        tunnel = Tunnel::open(deployment, target, wishes) => tunnel?,
        _ = signals.next() => return Ok(0),
        () = stdout.closed() => return Ok(0),
    };
    let dialled = tokio::select! {
        stream = tunnel.dial(SSH_PORT) => stream.map(Some),
        _ = signals.next() => Ok(None),
        () = stdout.closed() => Ok(None),
    };
    let stream = match dialled {
        Ok(Some(stream)) => stream,
        unused => {
            tunnel.log_timeline(deployment.client.http()).await;
            tunnel.close_within(HURRY).await;
            return unused.map(|_| 0);
        }
    };
    // A handle of its own: the other one is busy writing.
    let reader = Stdout::open();
    let (first, opened) = (Notify::new(), clock::now());
    let passed = tokio::select! {
        () = reader.closed() => None,
        passed = pass(stream, Stdin::open(), stdout, &first) => Some(passed.map_err(anyhow::Error::from)),
        _ = signals.next() => None,
        never = network_info::keep(info, &tunnel) => match never {},
        never = super::tell_timeline(&tunnel, deployment, &first, opened) => match never {},
        fate = tunnel.fate() => Some(Err(anyhow!("{fate}"))),
    };
    super::tell_timeline_at_the_end(&tunnel, deployment, &first, opened).await;
    match passed {
        Some(Ok(())) => {
            tunnel.close().await;
            Ok(0)
        }
        Some(Err(error)) => {
            let why = tunnel.why_lost().await.map_or_else(|| error.to_string(), |fate| fate.to_string());
            tunnel.close().await;
            Err(anyhow!("the connection to workspace {target} was lost: {why}"))
        }
        None => {
            tunnel.close_within(HURRY).await;
            Ok(0)
        }
    }
}

/// Passes both directions until the agent has closed and all of its bytes are written, or nobody reads them any more.
async fn pass(stream: Stream, mut stdin: Stdin, mut stdout: Stdout, first: &Notify) -> std::io::Result<()> {
    let (mut from_agent, mut to_agent) = tokio::io::split(stream);
    let input = async {
        copy(&mut stdin, &mut to_agent, || {}).await?;
        to_agent.shutdown().await?;
        std::future::pending().await
    };
    let output = async {
        match copy(&mut from_agent, &mut stdout, || first.notify_one()).await {
            // Whoever started us has enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            done => done,
        }
    };
    tokio::select! {
        done = output => done,
        failed = input => failed,
    }
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), moved: impl Fn()) -> std::io::Result<()> {
    let mut buf = vec![0; CHUNK];
    loop {
        let n = from.read(&mut buf).await?;
        match buf.get(..n) {
            Some(bytes) if n > 0 => {
                to.write_all(bytes).await?;
                moved();
            }
            _ => return to.flush().await,
        }
    }
}
