//! `coder login`: check a token and store it, set up a new deployment's first user, or print the stored token.

use super::{
    args::{Global, go_bool},
    config::{ConfigDir, Session},
    deployment::{Deployment, explain},
    output,
};
use crate::{
    client::{Client, FirstUser, User},
    driver::{
        http::{HttpError, Token},
        process::EndSignals,
        terminal::{KeptModes, Terminals},
    },
};
use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use std::fmt;
use zeroize::Zeroizing;

/// How often a mistyped token may be pasted again.
const TRIES: usize = 3;

/// Flags of `coder login`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Login {
    /// URL of the deployment
    #[arg(value_name = "URL")]
    address: Option<String>,
    /// Store the given token itself instead of a new one made with it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    use_token_as_session: bool,
    #[command(flatten)]
    first: FirstUserFlags,
    #[command(subcommand)]
    command: Option<LoginCommand>,
}

#[derive(Debug, Subcommand)]
enum LoginCommand {
    /// Print the token of the stored login
    Token,
}

/// Who is made the first user of a deployment that has none.
#[derive(Args)]
struct FirstUserFlags {
    /// Mail address of a new deployment's first user
    #[arg(long, env = "CODER_FIRST_USER_EMAIL", value_name = "EMAIL")]
    first_user_email: Option<String>,
    /// Login name of a new deployment's first user
    #[arg(long, env = "CODER_FIRST_USER_USERNAME", value_name = "NAME")]
    first_user_username: Option<String>,
    /// Full name of a new deployment's first user
    #[arg(long, env = "CODER_FIRST_USER_FULL_NAME", value_name = "NAME")]
    first_user_full_name: Option<String>,
    /// Password of a new deployment's first user
    #[arg(long, env = "CODER_FIRST_USER_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    first_user_password: Option<String>,
    /// Whether a new deployment asks its maker for a trial licence
    #[arg(long, env = "CODER_FIRST_USER_TRIAL", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    first_user_trial: bool,
}

impl fmt::Debug for FirstUserFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstUserFlags").field("username", &self.first_user_username).finish_non_exhaustive()
    }
}

pub(super) async fn run(global: &Global, args: &Login) -> anyhow::Result<u8> {
    if let Some(LoginCommand::Token) = &args.command {
        return print_token(global);
    }
    let (address, origin) = address(global, args)?;
    let url = with_scheme(&address);
    let anonymous = Deployment::at(global, &url, None).await?;
    let has_user = anonymous.client.has_first_user().await.map_err(explain)?;
    output::line(&format!("Attempting to authenticate with {origin} URL: '{url}'"))?;
    if !has_user {
        return set_up(&anonymous, &url, &args.first).await;
    }
    let (given, user) = match global.token.clone() {
        Some(given) => {
            if given.expose().is_empty() {
                bail!("the token is empty");
            }
            let client = with_token(&anonymous.client, &given);
            let user = client.me().await.map_err(|e| not_of(&url, e))?;
            (given, user)
        }
        None => paste(&anonymous.client, &url).await?,
    };
    if args.use_token_as_session {
        return welcome(&anonymous.config, &url, Session::Own(&given), &user);
    }
    // Others may use the token that was given: this login gets one of its own, which ends with it.
    match with_token(&anonymous.client, &given).mint_key().await {
        Ok(made) => welcome(&anonymous.config, &url, Session::Own(&made), &user),
        Err(error) if matches!(error.status(), Some(403 | 404)) => {
            output::note("This token may make no other one, so it is stored itself; 'coder logout' will not end it.");
            welcome(&anonymous.config, &url, Session::Given(&given), &user)
        }
        Err(error) => Err(explain(error)),
    }
}

fn with_token(client: &Client, token: &Token) -> Client {
    Client::new(client.http().with_token(Some(token.clone())))
}

/// The URL and where it comes from.
fn address(global: &Global, args: &Login) -> anyhow::Result<(String, &'static str)> {
    if let Some(address) = &args.address {
        return Ok((address.clone(), "argument"));
    }
    if let Some(url) = &global.url {
        // Who says the same by both means does not mind which is named.
        let by_environment = std::env::var("CODER_URL").is_ok_and(|set| set == *url);
        return Ok((url.clone(), if by_environment { "environment" } else { "flag" }));
    }
    let stored = ConfigDir::open(global.global_config.as_deref())?.url()?;
    stored.map(|url| (url, "config")).ok_or_else(|| anyhow!("no url argument provided: run 'coder login <url>'"))
}

/// `coder login token`: for scripts and editors, so nothing else is printed.
fn print_token(global: &Global) -> anyhow::Result<u8> {
    let stored = || ConfigDir::open(global.global_config.as_deref())?.session();
    let token = match &global.token {
        Some(token) => Some(token.clone()),
        None => stored()?,
    };
    let token = token.filter(|t| !t.expose().is_empty());
    let token = token.ok_or_else(|| anyhow!("You are not logged in. Try logging in using 'coder login <url>'."))?;
    output::line(token.expose())?;
    Ok(0)
}

fn not_of(url: &str, error: HttpError) -> anyhow::Error {
    match error.status() {
        Some(401) => anyhow!("{error}. The token does not belong to {url}: get one there and log in again."),
        _ => error.into(),
    }
}

fn welcome(config: &ConfigDir, url: &str, session: Session<'_>, user: &User) -> anyhow::Result<u8> {
    config.store(url, session).context("the login was not stored")?;
    output::line(&format!("  Welcome to Coder, {}! You're authenticated.", user.username))?;
    Ok(0)
}

/// Makes the first user of a new deployment and logs in as that one.
async fn set_up(deployment: &Deployment, url: &str, flags: &FirstUserFlags) -> anyhow::Result<u8> {
    output::line("  Your Coder deployment hasn't been set up!")?;
    let user = first_user(flags).await?;
    deployment.client.create_first_user(&user).await.map_err(explain).context("the first user was not made")?;
    let session = deployment.client.log_in(&user.email, &user.password).await.map_err(explain)?;
    let user = with_token(&deployment.client, &session).me().await.map_err(explain)?;
    welcome(&deployment.config, url, Session::Own(&session), &user)
}

/// The first user of the flags; what they leave open is asked for at a terminal.
async fn first_user(flags: &FirstUserFlags) -> anyhow::Result<FirstUser> {
    let asks = Terminals::of_process().input;
    let given = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
    let username = match given(&flags.first_user_username) {
        Some(name) => name,
        None if asks => ask("What username would you like?").await?,
        None => bail!(
            "the initial user cannot be created in non-interactive mode. use the API, or pass --first-user-username, \
             --first-user-email and --first-user-password"
        ),
    };
    let email = match given(&flags.first_user_email) {
        Some(email) => email,
        None if asks => ask("What's your email?").await?,
        None => bail!("the first user needs a mail address: pass --first-user-email"),
    };
    let password = match given(&flags.first_user_password) {
        Some(password) => password,
        None if asks => {
            let typed = hidden("> Enter a password: ").await?;
            if *typed != *hidden("> Confirm the password: ").await? {
                bail!("the two passwords differ: nobody was made");
            }
            typed.to_string()
        }
        None => bail!("the first user needs a password: pass it in CODER_FIRST_USER_PASSWORD"),
    };
    let name = flags.first_user_full_name.clone().unwrap_or_default();
    Ok(FirstUser { email, username, name, password, trial: flags.first_user_trial })
}

/// Asks at the terminal.
async fn ask(question: &str) -> anyhow::Result<String> {
    output::raw(&format!("> {question} "))?;
    let line = output::answer().await.context("cannot read the answer")?;
    let line = line.filter(|line| !line.trim().is_empty()).context("nothing was entered")?;
    Ok(line.trim().to_owned())
}

/// Asks at the terminal without showing what is typed.
async fn hidden(question: &'static str) -> anyhow::Result<Zeroizing<String>> {
    // Before the prompt is shown: who pastes at once is quicker than whatever comes behind it.
    let _modes = KeptModes::without_echo()?;
    let mut signals = EndSignals::open().context("cannot handle signals")?;
    let prompt = tokio::task::spawn_blocking(move || rpassword::prompt_password(question));
    tokio::select! {
        typed = prompt => Ok(Zeroizing::new(typed.context("cannot read from the terminal")?.context("cannot read from the terminal")?)),
        _ = signals.next() => bail!("nothing was entered"),
    }
}

/// Takes a token and looks whose it is: hidden from a terminal, where it may be tried again, else a line of standard input.
async fn paste(anonymous: &Client, url: &str) -> anyhow::Result<(Token, User)> {
    let page = format!("{}/cli-auth", url.trim_end_matches('/'));
    output::line(&format!("Open the following in your browser:\n\n\t{page}\n"))?;
    output::note("(A deployment without web pages has none there: whoever runs it gives you a token.)");
    let at_terminal = Terminals::of_process().input;
    // Between the tries too.
    let _modes = if at_terminal { Some(KeptModes::without_echo()?) } else { None };
    let mut tries = if at_terminal { TRIES } else { 1 };
    loop {
        tries -= 1;
        let text = if at_terminal { hidden("> Paste your token here: ").await? } else { piped().await? };
        let token = Token::new(text.trim());
        if token.expose().is_empty() {
            bail!("the token is empty");
        }
        match with_token(anonymous, &token).me().await {
            Ok(user) => return Ok((token, user)),
            Err(error) if tries > 0 && error.status() == Some(401) => output::note("That is no token of this deployment."),
            Err(error) => return Err(not_of(url, error)),
        }
    }
}

async fn piped() -> anyhow::Result<Zeroizing<String>> {
    output::raw("> Paste your token here: ")?;
    let line = output::answer().await.context("cannot read the token from standard input")?;
    line.context("no token: pass --token or write it to standard input")
}

/// `https://` unless a scheme is given; `http://` for this machine itself.
fn with_scheme(address: &str) -> String {
    if address.contains("://") {
        address.to_owned()
    } else if is_this_machine(address) {
        format!("http://{address}")
    } else {
        format!("https://{address}")
    }
}

/// Whether an address without scheme names this machine, so that nothing leaves it in clear.
fn is_this_machine(address: &str) -> bool {
    let authority = address.split('/').next().unwrap_or_default();
    let host = if authority.starts_with('[') { authority.split_inclusive(']').next() } else { authority.split(':').next() };
    matches!(host, Some("localhost" | "127.0.0.1" | "[::1]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_host_means_https_except_on_this_machine() {
        assert_eq!(with_scheme("coder.example.com"), "https://coder.example.com");
        assert_eq!(with_scheme("localhost:3000"), "http://localhost:3000");
        assert_eq!(with_scheme("[::1]:3000/x"), "http://[::1]:3000/x");
        assert_eq!(with_scheme("localhost.example.com"), "https://localhost.example.com");
        assert_eq!(with_scheme("http://127.0.0.1:3000"), "http://127.0.0.1:3000");
    }
}
