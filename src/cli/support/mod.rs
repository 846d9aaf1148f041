//! `coder support bundle`: one zip archive of what helps to find out why a workspace is not reached (`cli.md` §2.12).
//!
//! The entries are those of the Go command line. What is not to be had is left out, and `logs.txt` says why: a bundle is
//! wanted most when something is broken.

mod archive;
mod gather;
mod secrets;

use super::{
    args::Global,
    deployment::Deployment,
    interrupt::exit_code,
    life::{Yes, confirm},
    logs, output,
    target::{HostNames, Target},
};
use crate::driver::{clock, process::EndSignals};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use std::{
    io::{Read as _, Seek as _},
    path::{Path, PathBuf},
};
use tracing::level_filters::LevelFilter;

/// Flags of `coder support`.
#[derive(Debug, Args)]
pub(super) struct Support {
    #[command(subcommand)]
    pub(super) command: SupportCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum SupportCommand {
    /// Write what helps to find a fault to a zip file
    Bundle(Bundle),
}

#[derive(Debug, Args)]
pub(super) struct Bundle {
    /// [OWNER/]WORKSPACE[.AGENT]
    workspace: String,
    /// Agent, if the workspace has several
    agent: Option<String>,
    #[command(flatten)]
    yes: Yes,
    /// File to write; by default coder-support-TIME.zip in this folder
    #[arg(short = 'O', long, env = "CODER_SUPPORT_BUNDLE_OUTPUT_FILE", value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// URL of the server to ask instead of the deployment's: to look at one of several replicas
    #[arg(long, env = "CODER_SUPPORT_BUNDLE_URL_OVERRIDE", value_name = "URL")]
    url_override: Option<String>,
}

pub(super) fn run(global: &Global, args: &Support) -> anyhow::Result<u8> {
    let SupportCommand::Bundle(args) = &args.command;
    super::on_one_thread(bundle(global, args))
}

async fn bundle(global: &Global, args: &Bundle) -> anyhow::Result<u8> {
    let mut log = tempfile::tempfile().context("cannot make a temporary file for the log")?;
    logs::start_beside(logs::level(global.verbose, LevelFilter::ERROR), log.try_clone()?);
    let path = args.output_file.clone().unwrap_or_else(|| {
        let now = clock::wall().since_unix().as_secs();
        PathBuf::from(format!("coder-support-{now}.zip"))
    });
    let mut target = Target::parse(&args.workspace, &HostNames::default());
    if args.agent.is_some() {
        target.agent.clone_from(&args.agent);
    }
    let question = format!(
        "Write what is known of the workspace {target} to {}? That includes names, addresses, logs and settings of the \
         deployment; tokens, variables' values and scripts are left out.",
        path.display()
    );
    confirm(&args.yes, &question).await?;
    // Whoever cannot write it shall not wait for it.
    let unwritten = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(unwritten)?;

    let global = Global { url: args.url_override.clone().or_else(|| global.url.clone()), ..global.clone() };
    let mut signals = EndSignals::open().context("cannot handle signals")?;
    let gathered = async {
        let deployment = Deployment::open(&global).await?;
        gather::everything(&deployment, &global, &target).await
    };
    let mut parts = tokio::select! {
        parts = gathered => parts?,
        signal = signals.next() => return Ok(exit_code(signal)),
    };
    let mut told = Vec::new();
    log.rewind().and_then(|()| log.read_to_end(&mut told)).context("cannot read the log of this command")?;
    parts.add("cli_logs.txt", Ok(told));
    archive::write(file.as_file_mut(), &parts.finish()).with_context(unwritten)?;
    file.persist(&path).with_context(unwritten)?;
    output::note(&format!("Wrote support bundle to {}", path.display()));
    Ok(0)
}
