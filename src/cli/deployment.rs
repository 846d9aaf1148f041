//! The server that a command talks to: its URL, the login, extra headers.

use super::{args::Global, config::ConfigDir, interrupt::Signalled};
use crate::{
    client::Client,
    driver::{
        http::{Http, HttpError, HttpOptions, Identity, Token, certificates},
        process::EndSignals,
        terminal::Terminals,
    },
};
use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};
use tokio::{process::Command, time::timeout};
use zeroize::Zeroizing;

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
        let client = Client::new(Http::new(&url, token, http_options(global, &url).await?)?);
        Ok(Self { url, client, config })
    }
}

/// Certificates of the flags: for API, sockets and relays alike.
#[derive(Debug, Clone, Args)]
pub(super) struct TlsFlags {
    /// Certificates of authorities to trust besides the system's
    #[arg(long, global = true, env = "CODER_CLIENT_TLS_CA_FILE", value_name = "FILE")]
    client_tls_ca_file: Option<PathBuf>,
    /// Certificate to show to a server that asks for one
    #[arg(long, global = true, env = "CODER_CLIENT_TLS_CERT_FILE", value_name = "FILE", requires = "client_tls_key_file")]
    client_tls_cert_file: Option<PathBuf>,
    /// Its private key
    #[arg(long, global = true, env = "CODER_CLIENT_TLS_KEY_FILE", value_name = "FILE", requires = "client_tls_cert_file")]
    client_tls_key_file: Option<PathBuf>,
}

impl TlsFlags {
    /// Authorities, certificate and key.
    pub(super) fn files(&self) -> [Option<&Path>; 3] {
        [&self.client_tls_ca_file, &self.client_tls_cert_file, &self.client_tls_key_file].map(|file| file.as_deref())
    }
}

/// How this command line wants HTTP to be spoken to anybody.
pub(super) async fn http_options(global: &Global, url: &str) -> anyhow::Result<HttpOptions> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let tls = &global.tls;
    let extra_roots = match &tls.client_tls_ca_file {
        Some(path) => certificates(&read(path)?).with_context(|| format!("{} cannot be used", path.display()))?,
        None => Vec::new(),
    };
    let identity = match (&tls.client_tls_cert_file, &tls.client_tls_key_file) {
        (Some(chain), Some(key)) => {
            let unusable = || format!("{} and {} cannot be used", chain.display(), key.display());
            Some(Identity::from_pem(&read(chain)?, &Zeroizing::new(read(key)?)).with_context(unusable)?)
        }
        _ => None,
    };
    Ok(HttpOptions { headers: headers(global, url).await?, extra_roots, identity, ..HttpOptions::default() })
}

/// The extra headers of the flags and of the header command (`cli.md` §1.4), which runs once a process.
///
/// # Cancel safety
/// Dropping the future kills the command.
async fn headers(global: &Global, url: &str) -> anyhow::Result<Vec<(String, String)>> {
    headers_within(global, url, HEADER_COMMAND_LIMIT).await
}

async fn headers_within(global: &Global, url: &str, limit: Duration) -> anyhow::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    for (at, header) in global.header.iter().enumerate() {
        // The text itself may hold a secret.
        headers.push(split(&header.0).with_context(|| format!("--header number {} is not of the form NAME=VALUE", at + 1))?);
    }
    if let Some(command) = global.header_command.as_deref().filter(|c| !c.is_empty()) {
        let mut signals = EndSignals::open().context("cannot handle signals")?;
        let output = tokio::select! {
            output = timeout(limit, output(command, url)) => output,
            signal = signals.next() => return Err(Signalled(signal).into()),
        };
        // Neither its text nor what it printed is shown: both may hold secrets.
        let output = output
            .with_context(|| format!("the header command did not end within {} s", limit.as_secs()))?
            .context("cannot run the header command")?;
        if !output.status.success() {
            bail!("the header command failed: {}", output.status);
        }
        for (at, line) in String::from_utf8_lossy(&output.stdout).lines().enumerate() {
            headers.push(split(line).with_context(|| format!("line {} of the header command's output has no \"=\"", at + 1))?);
        }
    }
    Ok(headers)
}

/// Runs the header command. Dropping the future ends it with all that it started.
async fn output(command: &str, url: &str) -> io::Result<Output> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("CODER_URL", url);
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    // At a terminal it stays in our group: it may ask a person, and hears of Ctrl-C as we do.
    let alone = !Terminals::of_process().input;
    if alone {
        shell.process_group(0);
    }
    let child = shell.spawn()?;
    let group = child.id().filter(|_| alone).and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let mut group = Group(group);
    let output = child.wait_with_output().await;
    // What it left behind on purpose stays.
    group.0 = None;
    output
}

/// Processes that end with this.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
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
        for (command, told) in [(": hunter2; exit 3", "failed: exit status: 3"), ("echo a=1; echo hunter2", "line 2 of ")] {
            let error = text(&["--header-command", command]).await;
            assert!(error.contains("header command") && error.contains(told) && !error.contains("hunter2"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_header_command_that_does_not_end_is_given_up() {
        let global = global(&["--header-command", "sleep 1000"]);
        let error = headers_within(&global, "http://h", Duration::from_millis(50)).await.unwrap_err().to_string();
        assert_eq!(error, "the header command did not end within 0 s");
    }
}
