//! `coder logout`: ends the stored login here and at the server.

use super::{
    args::{Global, go_bool},
    deployment::Deployment,
    output,
};
use anyhow::{Context as _, bail};
use clap::Args;
use std::time::Duration;
use tokio::time::timeout;

/// How long the server may take to hear of it: the login here ends anyhow.
const LIMIT: Duration = Duration::from_secs(5);

/// Flags of `coder logout`.
#[derive(Debug, Args)]
pub(super) struct Logout {
    /// Ask nothing
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    yes: bool,
}

pub(super) async fn run(global: &Global, args: &Logout) -> anyhow::Result<u8> {
    let deployment = Deployment::open(global).await?;
    if !args.yes {
        output::raw("> Are you sure you want to log out? (yes/no) ")?;
        let Some(answer) = output::answer().await.context("cannot read the answer")? else {
            bail!("there is nobody to ask: pass --yes to agree");
        };
        if !matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            return Ok(1);
        }
    }
    let client = &deployment.client;
    let given = client.http().token().map(|token| deployment.config.is_given(token)).transpose()?;
    if given == Some(true) {
        output::note("The token of this login was given to it and is left as it is: 'coder tokens remove' ends it.");
    } else if given == Some(false) {
        match timeout(LIMIT, client.log_out()).await {
            Ok(Ok(())) => {}
            // It has ended already.
            Ok(Err(error)) if error.status() == Some(401) => {}
            Ok(Err(error)) => output::note(&format!("The server still takes the token until it expires: {error}")),
            Err(_) => output::note("The server still takes the token until it expires: it did not answer."),
        }
    }
    deployment.config.forget()?;
    output::line("  You are no longer logged in. You can log in using 'coder login <url>'.")?;
    Ok(0)
}
