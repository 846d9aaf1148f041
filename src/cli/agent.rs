//! `coder agent`: the workspace agent (`agent.md` §1).

use super::{
    args::{Agent, Global},
    deployment, logs,
};
use crate::{
    agent,
    driver::{
        http::Token,
        process::{EndSignals, end_with_parent},
    },
};
use anyhow::{Context as _, bail};
use std::fs;
use tracing::level_filters::LevelFilter;

pub(super) fn run(global: &Global, args: &Agent) -> anyhow::Result<u8> {
    if args.exit_with_parent && end_with_parent() {
        return Ok(0);
    }
    logs::start(logs::level(global.verbose, if args.quiet { LevelFilter::ERROR } else { LevelFilter::INFO }));
    let Some(url) = args.agent_url.clone().filter(|u| !u.is_empty()) else {
        bail!("no server: set CODER_AGENT_URL or pass --agent-url");
    };
    let token = token(args)?;
    super::on_one_thread(async {
        let config =
            agent::Config { token, options: deployment::http_options(global, &url).await?, port: args.tailnet_listen_port, url };
        let mut signals = EndSignals::open().context("cannot handle signals")?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = agent::run(config, async { drop(stopped.await) });
        tokio::pin!(running);
        tokio::select! {
            ended = &mut running => return ended.map(|()| 0).map_err(Into::into),
            _ = signals.next() => drop(stop),
        }
        tokio::select! {
            ended = running => ended.map(|()| 0).map_err(Into::into),
            // Whoever asks twice does not want to wait.
            _ = signals.next() => Ok(1),
        }
    })
}

fn token(args: &Agent) -> anyhow::Result<Token> {
    if let Some(token) = args.agent_token.clone().filter(|t| !t.expose().is_empty()) {
        return checked(token, "CODER_AGENT_TOKEN");
    }
    let Some(file) = &args.agent_token_file else {
        bail!("no agent token: set CODER_AGENT_TOKEN or pass --agent-token-file");
    };
    let text = fs::read_to_string(file).with_context(|| format!("cannot read the agent's token from {}", file.display()))?;
    checked(Token::new(text.trim()), &file.display().to_string())
}

/// No server would ever take anything but a UUID.
fn checked(token: Token, from: &str) -> anyhow::Result<Token> {
    if uuid::Uuid::try_parse(token.expose()).is_err() {
        bail!("the agent's token in {from} is none: it has the form 00000000-0000-0000-0000-000000000000");
    }
    Ok(token)
}
