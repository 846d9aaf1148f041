//! `coder login`: check a token and store it.

use super::{
    args::{Global, Login},
    config::ConfigDir,
    deployment::{Deployment, explain},
    output,
};
use crate::driver::{http::Token, terminal::Terminals};
use anyhow::{Context as _, anyhow, bail};
use std::io;

pub(super) async fn run(global: &Global, args: &Login) -> anyhow::Result<u8> {
    let stored = || ConfigDir::open(global.global_config.as_deref())?.url();
    let address = match args.address.clone().or_else(|| global.url.clone()) {
        Some(address) => address,
        None => stored()?.ok_or_else(|| anyhow!("no URL: run 'coder login <url>'"))?,
    };
    let url = with_scheme(&address);

    let anonymous = Deployment::at(global, &url, None).await?;
    if !anonymous.client.has_first_user().await.map_err(explain)? {
        bail!("{url} has no user yet: set up its first user there, then log in");
    }
    // A token on the command line is exchanged for one of this machine's own; a pasted one was made for it.
    let (given, pasted) = match global.token.clone() {
        Some(token) => (token, false),
        None => (ask_for_token(&url)?, true),
    };
    if given.expose().is_empty() {
        bail!("the token is empty");
    }
    let deployment = Deployment::at(global, &url, Some(given.clone())).await?;
    let user = deployment.client.me().await.map_err(|e| match e.status() {
        Some(401) => anyhow!("{e}. The token does not belong to {url}: get one there and log in again."),
        _ => e.into(),
    })?;
    let session =
        if pasted || args.use_token_as_session { given } else { deployment.client.mint_key().await.map_err(explain)? };
    deployment.config.store(&url, &session).context("the login was not stored")?;
    output::line(&format!("  Welcome to Coder, {}! You're authenticated.", user.username))?;
    Ok(0)
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

/// Reads a token: hidden from a terminal, else one line of standard input.
fn ask_for_token(url: &str) -> anyhow::Result<Token> {
    output::note(&format!("Open the following in your browser:\n\n  {}/cli-auth\n", url.trim_end_matches('/')));
    let text = if Terminals::of_process().input {
        rpassword::prompt_password("> Paste your token here: ").context("cannot read the token")?
    } else {
        let mut line = String::new();
        if io::stdin().read_line(&mut line).context("cannot read the token from standard input")? == 0 {
            bail!("no token: pass --token or write it to standard input");
        }
        line
    };
    Ok(Token::new(text.trim()))
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
