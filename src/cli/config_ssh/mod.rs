//! `coder config-ssh`: the block that lets OpenSSH and editors reach workspaces by name (`cli.md` §2.6).

mod ask;
mod block;
mod diff;
mod escape;
mod file;
mod flags;
mod options;

pub(super) use flags::ConfigSsh;
pub(super) use options::split_option;

use super::{
    args::{Global, Wait},
    deployment::{Deployment, explain},
    output,
};
use crate::client::{SshConfig, Workspace};
use anyhow::{Context as _, anyhow, bail};
use ask::{Answer, Questions};
use block::{Hosts, Parts, Program};
use file::ConfigFile;
use options::{Options, TLS_FILES};
use serde::Deserialize as _;
use std::{
    fs,
    path::{Path, PathBuf},
};

pub(super) async fn run(global: &Global, args: &ConfigSsh) -> anyhow::Result<u8> {
    if args.skip_proxy_command && args.wait != Wait::Auto {
        bail!("--wait is a flag of the ProxyCommand that --skip-proxy-command leaves out: drop one of them");
    }
    let mut questions = Questions::new(args.yes, args.dry_run);
    let file = ConfigFile::read(&args.ssh_config_file)?;
    let name = file.name.display().to_string();
    let parts = Parts::of(&file.content).map_err(|e| anyhow!("{name} {e}: repair it by hand, then try again"))?;
    let deployment = Deployment::open(global).await?;
    let options = choose(given(global, args)?, parts.stored_options(), args.use_previous_options, &mut questions).await?;

    let client = &deployment.client;
    let (hosts, workspaces) = tokio::join!(hosts(&deployment), client.workspaces("owner:me"));
    let SshConfig { hostname_prefix, hostname_suffix, ssh_config_options } = hosts?;
    let hosts = Hosts { prefix: &hostname_prefix, suffix: &hostname_suffix, options: &ssh_config_options };
    let binary = text(match &args.coder_binary_path {
        Some(path) => path.clone(),
        None => own_binary()?,
    })?;
    let config_dir = text(std::path::absolute(deployment.config.path())?)?;
    let program = Program { binary: &binary, config_dir: &config_dir, proxy: !args.skip_proxy_command };
    let content = parts.with(&block::block(&options, &hosts, &program)?);

    let say = |text: &str| {
        if args.dry_run {
            output::note(text);
            return Ok(());
        }
        output::line(text)
    };
    if content == file.content {
        say(&format!("{name} is up to date."))?;
        return Ok(0);
    }
    if args.dry_run {
        output::note(&format!("The coder section of {name} would change like this; nothing was written:"));
        let [old, new] = [&file.content, &content].map(|bytes| String::from_utf8_lossy(bytes));
        output::raw(&diff::unified(&name, &old, &new))?;
        return Ok(0);
    }
    match questions.ask(&format!("The coder section of {name} will be written anew. Go on?")).await? {
        Answer::Yes => {}
        Answer::No => {
            output::note(&format!("{name} was left as it is. Answer with yes, or pass --yes, to write it."));
            return Ok(0);
        }
        Answer::Nobody => bail!("{name} was left as it is, for there is nobody to ask: pass --yes to write it"),
    }
    file.replace(&content)?;
    say(&format!("Updated {name:?}"))?;
    // The work is done; a list that did not come is no failure of it.
    match workspaces.as_deref() {
        Ok([]) => say("You have no workspaces. Make one with 'coder create <name>'.")?,
        Ok([first, ..]) => {
            if let Ok(first) = Workspace::deserialize(first) {
                let host = block::example(&options, &hosts, &first.name);
                say(&format!("Your workspaces can be reached by name now, for instance:\n\n\tssh {host}\n"))?;
            }
        }
        Err(_) => {}
    }
    Ok(0)
}

/// The options of this command line.
fn given(global: &Global, args: &ConfigSsh) -> anyhow::Result<Options> {
    let mut tls_files = <[String; TLS_FILES.len()]>::default();
    for (file, path) in tls_files.iter_mut().zip(global.tls.files()) {
        if let Some(path) = path {
            // OpenSSH runs us wherever its user is.
            *file = text(std::path::absolute(path)?)?;
        }
    }
    Ok(Options {
        wait: args.wait,
        host_prefix: args.ssh_host_prefix.clone().unwrap_or_default(),
        hostname_suffix: args.hostname_suffix.clone().unwrap_or_default(),
        disable_autostart: args.disable_autostart,
        ssh_options: args.ssh_option.clone(),
        headers: global.header.clone(),
        header_command: global.header_command.clone().unwrap_or_default(),
        tls_files,
    })
}

/// The options to write: those of the command line, or those of the last run where somebody wants them.
async fn choose(given: Options, stored: Option<Options>, previous: bool, questions: &mut Questions) -> anyhow::Result<Options> {
    let Some(stored) = stored else { return Ok(given) };
    if previous {
        return Ok(stored);
    }
    if given.is_like(&stored) {
        return Ok(given);
    }
    let list = |options: &Options| match options.shown() {
        shown if shown.is_empty() => " none".to_owned(),
        shown => format!("\n    * {}", shown.join("\n    * ")),
    };
    let question = format!(
        "These are not the options of the last run:\n\n  New options:{}\n\n  Previous options:{}\n\n  Use the new ones?",
        list(&given),
        list(&stored)
    );
    Ok(if questions.ask(&question).await? == Answer::Yes { given } else { stored })
}

/// What the deployment says about host names and options. An old one says nothing.
async fn hosts(deployment: &Deployment) -> anyhow::Result<SshConfig> {
    match deployment.client.ssh_config().await {
        Ok(config) => Ok(config),
        Err(e) if e.status() == Some(404) => Ok(SshConfig { hostname_prefix: "coder.".to_owned(), ..SshConfig::default() }),
        Err(e) => Err(explain(e)),
    }
}

fn text(path: PathBuf) -> anyhow::Result<String> {
    path.into_os_string().into_string().map_err(|path| anyhow!("the path {path:?} is no UTF-8 text"))
}

/// The file of this program. A person is told when `coder` alone would be another one.
fn own_binary() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file: pass --coder-binary-path")?;
    if !own.exists() {
        bail!("this program's own file {} is gone: pass --coder-binary-path", own.display());
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found = own.file_name().and_then(|name| std::env::split_paths(&dirs).map(|dir| dir.join(name)).find(|p| p.is_file()));
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Some(other) = found.filter(|found| real(found) != real(&own)) {
        output::note(&format!("OpenSSH will run {}, not {}, which your PATH leads to.", own.display(), other.display()));
    }
    Ok(own)
}

#[cfg(test)]
mod tests;
