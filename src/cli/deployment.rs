//! The server that a command talks to: its URL, the login, extra headers.

use super::{args::Global, config::ConfigDir};
use crate::{
    client::Client,
    driver::http::{Http, HttpError, HttpOptions, Token},
};
use anyhow::{Context as _, anyhow, bail};
use std::{process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// How long the header command may take: it may fetch a ticket from somewhere, but a person waits for it.
const HEADER_COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// A deployment and the login for it.
#[derive(Debug)]
pub(super) struct Deployment {
    pub(super) url: String,
    pub(super) client: Client,
    pub(super) config: ConfigDir,
}

impl Deployment {
    /// The deployment of the flags, the environment or the stored login.
    pub(super) async fn open(global: &Global) -> anyhow::Result<Self> {
        let config = ConfigDir::open(global.global_config.as_deref())?;
        let stored = match &global.url {
            Some(url) => Some(url.clone()),
            None => config.url()?,
        };
        let url = stored.ok_or_else(|| anyhow!("You are not logged in. Try logging in using 'coder login <url>'."))?;
        let token = match &global.token {
            Some(token) => Some(token.clone()),
            None => config.session()?,
        };
        Self::with(global, config, url, token).await
    }

    /// The same for a URL that is given, as `login` needs it.
    pub(super) async fn at(global: &Global, url: &str, token: Option<Token>) -> anyhow::Result<Self> {
        Self::with(global, ConfigDir::open(global.global_config.as_deref())?, url.to_owned(), token).await
    }

    async fn with(global: &Global, config: ConfigDir, url: String, token: Option<Token>) -> anyhow::Result<Self> {
        let options = HttpOptions { headers: headers(global, &url).await?, ..HttpOptions::default() };
        let client = Client::new(Http::new(&url, token, options)?);
        Ok(Self { url, client, config })
    }
}

/// The extra headers of the flags and of the header command (`cli.md` §1.4), which runs once a process.
///
/// # Cancel safety
/// Dropping the future kills the command.
pub(super) async fn headers(global: &Global, url: &str) -> anyhow::Result<Vec<(String, String)>> {
    headers_within(global, url, HEADER_COMMAND_LIMIT).await
}

async fn headers_within(global: &Global, url: &str, limit: Duration) -> anyhow::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    for (at, header) in global.header.iter().enumerate() {
        // The text itself may hold a secret.
        headers.push(split(&header.0).with_context(|| format!("--header number {} is not of the form NAME=VALUE", at + 1))?);
    }
    if let Some(command) = global.header_command.as_deref().filter(|c| !c.is_empty()) {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).env("CODER_URL", url).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let output = timeout(limit, shell.output())
            .await
            .with_context(|| format!("the header command {command:?} did not end within {} s", limit.as_secs()))?
            .with_context(|| format!("cannot run the header command {command:?}"))?;
        if !output.status.success() {
            bail!("the header command {command:?} failed: {}", output.status);
        }
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            headers.push(split(line).with_context(|| format!("the header command {command:?} printed a line without \"=\""))?);
        }
    }
    Ok(headers)
}

fn split(header: &str) -> Option<(String, String)> {
    header.split_once('=').map(|(name, value)| (name.trim().to_owned(), value.to_owned()))
}

/// An answer of the server as a line for a person, with what to do about it.
pub(super) fn explain(error: HttpError) -> anyhow::Error {
    match error.status() {
        Some(401) => anyhow!("{error}. Try logging in using 'coder login'."),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use clap::Parser as _;

    fn global(line: &[&str]) -> Global {
        Cli::try_parse_from([&["coder"], line, &["version"]].concat()).unwrap().global
    }

    #[tokio::test]
    async fn headers_come_from_flags_and_from_the_command() {
        let global = global(&["--header", "X-A=1", "--header-command", "echo X-B=$CODER_URL=2"]);
        let got = headers(&global, "http://h").await.unwrap();
        assert_eq!(got, [("X-A".into(), "1".into()), ("X-B".into(), "http://h=2".into())]);
    }

    #[tokio::test]
    async fn a_bad_header_setting_is_named() {
        let text = async |line: &[&str]| format!("{:#}", headers(&global(line), "http://h").await.unwrap_err());
        let error = text(&["--header", "A=b", "--header", "Authorization: hunter2"]).await;
        assert!(error.contains("number 2") && !error.contains("hunter2"), "{error}");
        assert!(text(&["--header-command", "exit 3"]).await.contains("exit status: 3"));
        assert!(text(&["--header-command", "echo nope"]).await.contains("without \"=\""));
    }

    #[tokio::test]
    async fn a_header_command_that_does_not_end_is_given_up() {
        let global = global(&["--header-command", "sleep 1000"]);
        let error = headers_within(&global, "http://h", Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(error.contains("sleep 1000") && error.contains("did not end"), "{error}");
    }
}
