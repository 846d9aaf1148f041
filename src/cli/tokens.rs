//! `coder tokens`: long-lived tokens for scripts (`cli.md` §2.16).

use super::{
    args::{Global, Listing, go_bool, go_duration},
    deployment::{Deployment, explain},
    go_time::go_text,
    output,
};
use crate::client::{ApiKey, TokenRequest};
use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde_json::Value;
use std::time::Duration;

/// The columns by the names that `--column` takes; in capitals they are the table's heads.
const COLUMNS: [&str; 8] = ["id", "name", "scopes", "allow list", "last used", "expires at", "created at", "owner"];
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Flags of `coder tokens`.
#[derive(Debug, Args)]
pub(super) struct Tokens {
    #[command(subcommand)]
    pub(super) command: TokensCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum TokensCommand {
    /// Make a token and print it once
    #[command(alias = "new")]
    Create(Create),
    /// List tokens
    #[command(alias = "ls")]
    List(List),
    /// Show one token, but not its secret
    View(View),
    /// Delete a token
    #[command(aliases = ["delete", "rm"])]
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// How long it lives: 12h, 7d, 1y; by default as long as the server allows
    #[arg(long, env = "CODER_TOKEN_LIFETIME", value_name = "DURATION", value_parser = life, allow_hyphen_values = true)]
    lifetime: Option<Duration>,
    /// Name of the token
    #[arg(short, long, env = "CODER_TOKEN_NAME", value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
    /// Whose token it is; only the first user may make others'
    #[arg(short, long, env = "CODER_TOKEN_USER", value_name = "USER", default_value = "me", hide_default_value = true)]
    user: String,
    /// What it may do, such as coder:workspaces.access; may be repeated
    #[arg(long, value_name = "SCOPE", value_delimiter = ',')]
    scope: Vec<String>,
    /// A resource that it is for, as TYPE:UUID; may be repeated. Servers that cannot narrow a token so refuse it
    #[arg(long, value_name = "TYPE:UUID", value_delimiter = ',')]
    allow: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Everybody's tokens
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    all: bool,
    /// Also tokens that have ended
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    include_expired: bool,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, Args)]
pub(super) struct View {
    /// Name or id of the token, or the token itself
    #[arg(id = "wanted", value_name = "TOKEN")]
    token: String,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Name or id of the token, or the token itself
    #[arg(id = "wanted", value_name = "TOKEN")]
    token: String,
    /// Nothing but deletion is done to a token here
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool)]
    delete: bool,
}

/// How tokens are shown.
#[derive(Debug, Args)]
struct Shown {
    /// Columns of the table
    #[arg(short, long, value_name = "COLUMNS", value_delimiter = ',', ignore_case = true, value_parser = PossibleValuesParser::new(COLUMNS))]
    column: Vec<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Listing,
}

/// A Go duration that also knows days and years: `7d`, `1y`, `1d12h`.
fn life(text: &str) -> Result<Duration, String> {
    if text.strip_prefix('-').is_some_and(|rest| life(rest).is_ok()) {
        return Err("a lifetime has to be positive".to_owned());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    for (unit, length) in [('y', YEAR), ('d', DAY)] {
        let Some((number, tail)) = rest.split_once(unit) else { continue };
        let number: u32 = number.parse().map_err(|_| format!("invalid duration {text:?}"))?;
        total = length.checked_mul(number).and_then(|t| total.checked_add(t)).ok_or_else(|| format!("{text:?} is too long"))?;
        rest = tail;
    }
    let rest = if rest.is_empty() && !total.is_zero() { Duration::ZERO } else { go_duration(rest)? };
    total.checked_add(rest).ok_or_else(|| format!("{text:?} is too long"))
}

pub(super) async fn run(global: &Global, command: &TokensCommand) -> anyhow::Result<u8> {
    let deployment = Deployment::open(global).await?;
    match command {
        TokensCommand::Create(args) => create(&deployment, args).await,
        TokensCommand::List(args) => list(&deployment, args).await,
        TokensCommand::View(args) => {
            let found = find(&deployment, &args.token).await?;
            show(&[found], &args.shown, &COLUMNS, false)
        }
        TokensCommand::Remove(args) => remove(&deployment, args).await,
    }
}

async fn create(deployment: &Deployment, args: &Create) -> anyhow::Result<u8> {
    let client = &deployment.client;
    let longest = client.longest_token_life(&args.user).await.map_err(explain)?;
    let lifetime = args.lifetime.unwrap_or(longest);
    if lifetime.is_zero() {
        bail!(
            "a token of lifetime 0 has ended before it is used: give a time, or leave --lifetime out for the longest ({})",
            go_text(longest)
        );
    }
    if lifetime > longest {
        bail!("lifetime ({}) is greater than the maximum allowed lifetime ({})", go_text(lifetime), go_text(longest));
    }
    let request = TokenRequest { lifetime, name: args.name.clone(), scopes: args.scope.clone(), allow_list: args.allow.clone() };
    let token = client.create_token(&args.user, &request).await.map_err(explain).context("no token was made")?;
    let id = token.expose().split('-').next().unwrap_or_default();
    output::once(token.expose(), &format!("token {id} was made and is lost: 'coder tokens remove {id}' ends it"))?;
    Ok(0)
}

async fn list(deployment: &Deployment, args: &List) -> anyhow::Result<u8> {
    let found = deployment.client.tokens(args.all, args.include_expired).await.map_err(explain)?;
    if found.is_empty() && args.shown.output == Listing::Table {
        output::note("You have no tokens. Make one with 'coder tokens create'.");
        return Ok(0);
    }
    let columns = if args.all { &COLUMNS[..] } else { &COLUMNS[..7] };
    show(&found, &args.shown, columns, true)
}

/// Prints tokens in the columns that were asked for, or in the usual ones.
fn show(found: &[Value], shown: &Shown, usual: &[&str], is_list: bool) -> anyhow::Result<u8> {
    if shown.output == Listing::Json {
        let json = match found {
            [one] if !is_list => serde_json::to_string_pretty(one)?,
            all => serde_json::to_string_pretty(all)?,
        };
        output::line(&json)?;
        return Ok(0);
    }
    output::line(&table(found, &shown.column, usual)?)?;
    Ok(0)
}

fn table(found: &[Value], chosen: &[String], usual: &[&str]) -> anyhow::Result<String> {
    let chosen: Vec<String> = chosen.iter().map(|c| c.to_ascii_lowercase()).collect();
    let columns: Vec<&str> = if chosen.is_empty() { usual.to_vec() } else { chosen.iter().map(String::as_str).collect() };
    let heads: Vec<String> = columns.iter().map(|c| c.to_uppercase()).collect();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let mut rows = Vec::new();
    for key in found {
        let key: ApiKey = serde_json::from_value(key.clone()).context("the server's answer about a token cannot be read")?;
        rows.push(columns.iter().map(|column| cell(&key, column)).collect());
    }
    Ok(output::table(&heads, &rows))
}

fn cell(key: &ApiKey, column: &str) -> String {
    match column {
        "id" => key.id.clone(),
        "name" => key.token_name.clone(),
        "scopes" => key.scopes.as_ref().map_or_else(|| key.scope.clone(), |scopes| scopes.join(", ")),
        "allow list" => {
            let one = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            key.allow_list.iter().flatten().map(one).collect::<Vec<_>>().join(", ")
        }
        "last used" => to_the_second(&key.last_used),
        "expires at" => to_the_second(&key.expires_at),
        "created at" => to_the_second(&key.created_at),
        _ => key.username.clone(),
    }
}

/// A time without its fraction.
fn to_the_second(time: &str) -> String {
    let whole = |t: jiff::Timestamp| jiff::Timestamp::from_second(t.as_second()).ok();
    time.parse().ok().and_then(whole).map_or_else(|| time.to_owned(), |t| t.to_string())
}

/// The token that the user named.
async fn find(deployment: &Deployment, wanted: &str) -> anyhow::Result<Value> {
    let (name, found) = match id_of(wanted) {
        Some(id) => (id, deployment.client.token_by_id(id).await),
        None => (wanted, deployment.client.token(wanted).await),
    };
    found.map_err(|error| match error.status() {
        Some(404) => anyhow!("you have no token {name:?}: {error}"),
        _ => explain(error),
    })
}

/// Whoever pastes a whole token means the one with its id; its secret goes into no URL, log or error.
fn id_of(wanted: &str) -> Option<&str> {
    let (id, secret) = wanted.trim().split_once('-')?;
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
    (id.len() == 10 && secret.len() == 22 && plain(id) && plain(secret)).then_some(id)
}

async fn remove(deployment: &Deployment, args: &Remove) -> anyhow::Result<u8> {
    let found = find(deployment, &args.token).await?;
    let id = found.get("id").and_then(Value::as_str).context("the server's answer about a token cannot be read")?;
    deployment.client.delete_token(id).await.map_err(explain)?;
    output::line("Token has been deleted.")?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, explain as explain_arguments};
    use clap::Parser as _;

    fn stdout(vector: &str) -> String {
        let lines = vector.lines().skip_while(|l| *l != "## stdout").skip(1);
        lines.take_while(|l| *l != "## stderr").collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_life_may_be_given_in_days_and_years() {
        for (text, seconds) in [("1d", 86_400), ("1y", 31_536_000), ("1y2d", 31_708_800), ("1d12h", 129_600), ("90m", 5_400)] {
            assert_eq!(life(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "5", "d", "xd", "1d5", "-1d", "1.5d", "99999999999999999999d", "5000000000y"] {
            assert!(life(bad).is_err(), "{bad}");
        }
        assert_eq!(go_text(YEAR), "8760h0m0s");
    }

    #[test]
    fn a_lifetime_below_zero_is_told_as_such_and_not_as_a_flag() {
        for line in [&["--lifetime", "-5s"][..], &["--lifetime=-1d"]] {
            let error = Cli::try_parse_from([&["coder", "tokens", "create"], line].concat()).unwrap_err();
            let said = explain_arguments(&error);
            assert!(said.contains("--lifetime") && said.ends_with("a lifetime has to be positive"), "{said}");
        }
        assert_eq!(life("--name"), Err("invalid duration \"--name\"".to_owned()));
    }

    #[test]
    fn of_a_whole_token_only_the_id_is_asked_for() {
        assert_eq!(id_of("abcdefghij-0123456789abcdefghijkl"), Some("abcdefghij"));
        assert_eq!(id_of(" abcdefghij-0123456789abcdefghijkl\n"), Some("abcdefghij"));
        for name in [
            "abcdefghij",
            "ci",
            "abcdefghij-0123456789abcdefghijk",
            "abcdefghij-0123456789abcdefghij-l",
            "a/cdefghij-0123456789abcdefghijkl",
        ] {
            assert_eq!(id_of(name), None, "{name}");
        }
    }

    #[test]
    fn the_table_is_that_of_the_go_command_line() {
        let mut keys: Vec<Value> =
            serde_json::from_str(&stdout(include_str!("../../tests/vectors/cli/tokens_list_json.txt"))).unwrap();
        // The Go server gives them in another order for the table.
        keys.reverse();
        let want = stdout(include_str!("../../tests/vectors/cli/tokens_list.txt"));
        assert_eq!(table(&keys, &[], &COLUMNS[..7]).unwrap(), want);
        let want = stdout(include_str!("../../tests/vectors/cli/tokens_view.txt"));
        assert_eq!(table(&keys[..1], &[], &COLUMNS).unwrap(), want);
        let some = table(&keys[..1], &["NAME".to_owned(), "Id".to_owned()], &COLUMNS).unwrap();
        assert!(some.starts_with("NAME  ID  "), "{some}");
    }
}
