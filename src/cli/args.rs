//! What the command line accepts (`cli.md` §1.1–1.2). Global flags may stand before and after the command.

use super::{
    agent::Agent,
    config_ssh::ConfigSsh,
    debug_options,
    deployment::TlsFlags,
    ignored::Ignored,
    life,
    list::COLUMNS,
    login, logout,
    ping::Ping,
    port_forward::PortForward,
    rpty::Exp,
    server::Server,
    show,
    speedtest::Speedtest,
    ssh::{KeyAgentArgs, RemoteForwardArgs},
    stat,
    support::Support,
    tokens, whoami,
};
use crate::driver::http::Token;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum, error::ContextKind, error::ErrorKind};
use std::{fmt, path::PathBuf, time::Duration};

/// Work with remote workspaces over an encrypted network inside this process.
#[derive(Debug, Parser)]
#[command(name = "coder", version = crate::VERSION, disable_version_flag = true, disable_help_subcommand = true, args_override_self = true)]
pub(super) struct Cli {
    /// Print the version
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(flatten)]
    pub(super) global: Global,
    /// Show where each option's value comes from, and do nothing
    #[arg(long, global = true)]
    debug_options: bool,
    /// What that shows, if it is asked for
    #[arg(skip)]
    pub(super) sources: Option<String>,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Reads the command line of this process. A variable that is set to nothing counts as not set.
pub(super) fn parse() -> Result<Cli, clap::Error> {
    let mut command = without_empty_variables(Cli::command());
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    cli.sources = cli.debug_options.then(|| debug_options::table(&command, &matches));
    Ok(cli)
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(None) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

/// Reads a boolean as Go's `ParseBool` does.
pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" | "" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

pub(super) fn token(text: &str) -> Result<Token, std::convert::Infallible> {
    Ok(Token::new(text.trim()))
}

/// Reads a Go duration such as `1h2m3.5s` or `200ms`.
pub(super) fn go_duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| format!("invalid duration {text:?}"))?;
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        if unit.is_empty() {
            return Err(format!("missing unit in duration {text:?}"));
        }
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| format!("unknown unit {unit:?}"))?;
        seconds += number * factor;
        rest = tail;
    }
    if text.is_empty() {
        Err("empty duration".to_owned())
    } else {
        Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
    }
}

/// A header as it was typed. Its value is often a secret, so `Debug` shows nothing of it.
#[derive(Clone)]
pub(super) struct Header(pub(super) String);

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Header(..)")
    }
}

impl std::str::FromStr for Header {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// URL of the deployment; wins over the stored login
    #[arg(long, global = true, env = "CODER_URL")]
    pub(super) url: Option<String>,
    /// Session token; wins over the stored login
    #[arg(long, global = true, env = "CODER_SESSION_TOKEN", hide_env_values = true, value_parser = token)]
    pub(super) token: Option<Token>,
    /// Folder of the stored login
    #[arg(long, global = true, env = "CODER_CONFIG_DIR", value_name = "DIR")]
    pub(super) global_config: Option<PathBuf>,
    /// Extra HTTP header NAME=VALUE on every request, relays included; may be repeated
    #[arg(long, global = true, env = "CODER_HEADER", value_name = "NAME=VALUE", value_delimiter = ',', hide_env_values = true)]
    pub(super) header: Vec<Header>,
    /// Program whose output gives more headers, one NAME=VALUE a line
    #[arg(long, global = true, env = "CODER_HEADER_COMMAND", hide_env_values = true, value_name = "COMMAND")]
    pub(super) header_command: Option<String>,
    /// Log what happens to standard error
    #[arg(short, long, global = true, env = "CODER_VERBOSE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true, hide_possible_values = true)]
    pub(super) verbose: bool,
    /// Use relays only: neither gather nor try direct addresses
    #[arg(long, global = true, env = "CODER_DISABLE_DIRECT_CONNECTIONS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) disable_direct_connections: bool,
    /// Take the standard streams for a terminal
    #[arg(long, global = true, env = "CODER_FORCE_TTY", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) force_tty: bool,
    #[command(flatten)]
    pub(super) tls: TlsFlags,
    #[command(flatten)]
    pub(super) ignored: Ignored,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Store a login
    Login(Box<login::Login>),
    /// End the stored login
    Logout(logout::Logout),
    /// Show as whom you are logged in, and where
    Whoami(whoami::Whoami),
    /// Work with tokens
    #[command(alias = "token")]
    Tokens(tokens::Tokens),
    /// List your workspaces
    #[command(alias = "ls")]
    List(List),
    /// Show what a workspace is made of
    Show(show::Show),
    /// Make a workspace and print the line that starts its agent
    Create(Create),
    /// Start a workspace
    Start(life::Start),
    /// Stop a workspace; sessions in it end
    Stop(life::Change),
    /// Stop a workspace and start it again
    Restart(life::Change),
    /// Bring a workspace to the newest version of its template
    Update(life::Change),
    /// Delete a workspace
    #[command(alias = "rm")]
    Delete(life::Delete),
    /// Show the log of a workspace's newest build
    Logs(life::BuildLogs),
    /// Cancel the build of a workspace that is under way
    Cancel(life::Cancel),
    /// Work with users
    Users(Users),
    /// Open a shell in a workspace or run a command there
    Ssh(Ssh),
    /// Let OpenSSH and editors reach your workspaces by name
    ConfigSsh(ConfigSsh),
    /// Ask about Coder Connect
    #[command(hide = true)]
    Connect(Connect),
    /// Measure the way to a workspace
    Ping(Ping),
    /// Let ports of this machine lead to ports of a workspace
    #[command(alias = "tunnel")]
    PortForward(PortForward),
    /// Measure how fast data goes to or from a workspace
    Speedtest(Speedtest),
    /// Look at the network between here and the relays
    Netcheck,
    /// Collect what helps to find a fault
    Support(Support),
    /// Show how busy this machine is
    Stat(stat::Stat),
    /// Try what may change or go
    #[command(hide = true)]
    Exp(Exp),
    /// Show the version
    Version(Version),
    /// Run the workspace agent
    Agent(Box<Agent>),
    /// Run the server: API, coordinator, relay and STUN on one port
    Server(Box<Server>),
    /// Try it all: a server and an agent in a temporary folder, and a shell through the tunnel
    Quickstart(Quickstart),
}

/// The form of a result that is a line or a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Words for people
    Text,
    /// One JSON document
    Json,
}

/// The form of a result that has rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Listing {
    /// Columns for people
    #[value(alias = "text")]
    Table,
    /// One JSON document
    Json,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Search query
    #[arg(long, default_value = "owner:me")]
    pub(super) search: String,
    /// Every workspace that you may see
    #[arg(short, long)]
    pub(super) all: bool,
    /// Columns of the table, all by default
    #[arg(short, long, value_name = "COLUMNS", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(COLUMNS),
          ignore_case = true)]
    pub(super) column: Vec<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Listing,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name of the new workspace
    pub(super) name: String,
    /// JSON file with what its agent shall have: directory, motd_path, environment, scripts
    #[arg(long, value_name = "FILE")]
    pub(super) manifest: Option<PathBuf>,
    /// URL under which its agent reaches the server, if not the access URL
    #[arg(long, value_name = "URL")]
    pub(super) agent_url: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Users {
    #[command(subcommand)]
    pub(super) command: UsersCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum UsersCommand {
    /// Make a user and print a token once
    Create {
        /// Name of the new user
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Ssh {
    /// [OWNER/]WORKSPACE[.AGENT]
    pub(super) workspace: String,
    /// Command to run instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
    /// Pass the agent's SSH bytes between standard input and output: for OpenSSH's ProxyCommand
    #[arg(long, env = "CODER_SSH_STDIO", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) stdio: bool,
    /// Ask for a terminal also for a command
    #[arg(short, long, env = "CODER_SSH_TTY", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) tty: bool,
    /// Environment variable NAME=VALUE of the session; may be repeated
    #[arg(short, long, env = "CODER_SSH_ENV", hide_env_values = true, value_name = "NAME=VALUE", value_delimiter = ',')]
    pub(super) env: Vec<String>,
    /// Prefix that is cut from the workspace argument
    #[arg(long, env = "CODER_SSH_SSH_HOST_PREFIX", value_name = "PREFIX")]
    pub(super) ssh_host_prefix: Option<String>,
    /// Suffix that is cut from the workspace argument, without its dot
    #[arg(long, env = "CODER_SSH_HOSTNAME_SUFFIX", value_name = "SUFFIX")]
    pub(super) hostname_suffix: Option<String>,
    /// Whether to wait for the workspace's startup scripts; auto waits for those that ask for it
    #[arg(long, env = "CODER_SSH_WAIT", value_enum, default_value = "auto")]
    pub(super) wait: Wait,
    /// The same as --wait=no
    #[arg(long, env = "CODER_SSH_NO_WAIT", hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) no_wait: bool,
    /// Do not start a stopped workspace
    #[arg(long, env = "CODER_SSH_DISABLE_AUTOSTART", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) disable_autostart: bool,
    /// Folder for a file that tells every few seconds how the connection is: for editors
    #[arg(long, value_name = "DIR")]
    pub(super) network_info_dir: Option<PathBuf>,
    /// Time between two writes of that file
    #[arg(long, default_value = "5s", value_parser = interval, value_name = "DURATION", allow_hyphen_values = true)]
    pub(super) network_info_interval: Duration,
    /// Existing folder for a log file of this connection
    #[arg(short, long, env = "CODER_SSH_LOG_DIR", value_name = "DIR")]
    pub(super) log_dir: Option<PathBuf>,
    /// What the use of the workspace is reported as: ssh, vscode, jetbrains; disable reports nothing
    #[arg(long, env = "CODER_SSH_USAGE_APP", default_value = "ssh", value_name = "APP", hide = true)]
    pub(super) usage_app: String,
    #[command(flatten)]
    pub(super) key_agent: KeyAgentArgs,
    #[command(flatten)]
    pub(super) forwards: RemoteForwardArgs,
}

/// Whether a session waits for the startup scripts of its workspace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Wait {
    /// Always
    Yes,
    /// Never
    No,
    /// For scripts that ask for it
    #[default]
    Auto,
}

impl Wait {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Auto => "auto",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Yes, Self::No, Self::Auto].into_iter().find(|wait| wait.name() == name)
    }
}

/// How often a file may be written: more would load the disk and tell nobody more.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = go_duration(text)?;
    if interval < Duration::from_millis(100) { Err("it has to be 100ms at least".to_owned()) } else { Ok(interval) }
}

#[derive(Debug, Args)]
pub(super) struct Connect {
    #[command(subcommand)]
    pub(super) command: ConnectCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConnectCommand {
    /// End with status 0 if Coder Connect serves a host name on this machine, else with 1; print nothing
    Exists {
        /// The host name
        host: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Version {
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    pub(super) output: Output,
}

/// What may stand in a host name that goes to a shell.
pub(super) fn part_of_host(text: &str) -> Result<String, String> {
    let fits = text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) && !text.starts_with('-');
    if fits { Ok(text.to_owned()) } else { Err("it may hold letters, digits, dots, dashes and underscores".to_owned()) }
}

/// The same for what stands behind a dot.
pub(super) fn suffix(text: &str) -> Result<String, String> {
    if text.starts_with('.') { Err("write it without its dot".to_owned()) } else { part_of_host(text) }
}

#[derive(Debug, Args)]
pub(super) struct Quickstart {
    /// Command to run in the workspace instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

/// One line for a command line that cannot be read. `unknown flag: --name` is what editors look for.
pub(super) fn explain(error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let flag = context(ContextKind::InvalidArg);
    match error.kind() {
        ErrorKind::UnknownArgument if flag.starts_with('-') => format!("unknown flag: {flag}"),
        ErrorKind::UnknownArgument => format!("unexpected argument {flag:?}"),
        ErrorKind::InvalidSubcommand => format!("unrecognized subcommand {:?}", context(ContextKind::InvalidSubcommand)),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "expected a command".to_owned(),
        _ => {
            let text = error.to_string();
            let lines = text.lines().take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more"));
            let line = lines.map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
            line.strip_prefix("error: ").unwrap_or(&line).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn global_flags_stand_before_and_after_the_command() {
        for line in [
            "coder --global-config /d -v ssh dev",
            "coder ssh dev -v --global-config /d",
            "coder ssh --verbose=true --global-config=/d dev",
        ] {
            let cli = parse(line).unwrap();
            assert!(cli.global.verbose, "{line}");
            assert_eq!(cli.global.global_config, Some("/d".into()), "{line}");
        }
    }

    #[test]
    fn a_command_after_two_dashes_keeps_its_flags() {
        let Command::Ssh(ssh) = parse("coder ssh dev -- ls -la --color").unwrap().command else { panic!("not ssh") };
        assert_eq!((ssh.workspace.as_str(), ssh.command.join(" ").as_str()), ("dev", "ls -la --color"));
    }

    #[test]
    fn an_unknown_flag_is_named_in_the_words_that_editors_look_for() {
        assert_eq!(explain(&parse("coder version --output2 json").unwrap_err()), "unknown flag: --output2");
        assert_eq!(explain(&parse("coder nope").unwrap_err()), "unrecognized subcommand \"nope\"");
        assert!(!explain(&parse("coder ping dev --wait 5").unwrap_err()).contains('\n'));
    }

    #[test]
    fn flags_of_the_go_command_line_without_meaning_here_are_taken() {
        parse("coder --no-version-warning --use-keyring=false ssh dev --no-feature-warning --disable-network-telemetry").unwrap();
        let Command::List(list) = parse("coder list -c workspace,STATUS").unwrap().command else { panic!("not list") };
        assert_eq!(list.column, ["workspace", "STATUS"]);
        assert!(explain(&parse("coder ping dev --wait -1s").unwrap_err()).contains("invalid duration \"-1s\""));
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(go_duration("1h2m3.5s"), Ok(Duration::from_millis(3_723_500)));
        assert_eq!(go_duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(go_duration("5"), Err("missing unit in duration \"5\"".to_owned()));
        assert!(go_duration("").is_err() && go_duration("1x").is_err());
    }

    #[test]
    fn results_with_rows_are_tables_and_others_text_as_in_the_go_command_line() {
        let help = |line: &str| {
            let help = Cli::try_parse_from(line.split(' ').chain(["-h"])).unwrap_err().to_string();
            help.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        for command in ["list", "tokens list", "ping", "speedtest", "stat"] {
            assert!(help(&format!("coder {command}")).contains("possible values: table, json"), "{command}");
        }
        for command in ["version", "stat cpu"] {
            assert!(help(&format!("coder {command}")).contains("possible values: text, json"), "{command}");
        }
        // What was taken for long stays.
        for line in ["coder list -o text", "coder ping -o text dev", "coder list -o table"] {
            parse(line).unwrap();
        }
        assert!(
            help("coder server").contains("--api-rate-limit") && help("coder server").contains("--dangerous-disable-rate-limits")
        );
    }

    #[test]
    fn each_flag_of_a_server_has_a_variable_but_the_one_for_trying_it() {
        let coder = Cli::command();
        let server = coder.find_subcommand("server").unwrap();
        let mut without = server.get_arguments().filter(|flag| flag.get_env().is_none()).map(|flag| flag.get_id().as_str());
        assert_eq!((without.next(), without.next()), (Some("dev"), None));
    }

    #[test]
    fn the_command_lines_of_editors_are_read() {
        let line = "coder --global-config /d --header-command c ssh --disable-autostart --stdio --usage-app=vscode \
                    --network-info-dir /n --log-dir /l -v --ssh-host-prefix coder-vscode.h-- coder-vscode.h--admin--dev.main";
        let Command::Ssh(ssh) = parse(line).unwrap().command else { panic!("not ssh") };
        assert!(ssh.stdio && ssh.disable_autostart && !ssh.no_wait && ssh.wait == Wait::Auto);
        assert_eq!((ssh.usage_app.as_str(), ssh.network_info_interval), ("vscode", Duration::from_secs(5)));
        assert_eq!((ssh.network_info_dir, ssh.log_dir), (Some("/n".into()), Some("/l".into())));
        let line = "coder --global-config /d --url http://h ssh --stdio --disable-autostart --log-dir /l --usage-app=jetbrains \
                    --ssh-host-prefix coder-jetbrains-h-- coder-jetbrains-h--admin--dev";
        assert!(matches!(parse(line).unwrap().command, Command::Ssh(ssh) if ssh.usage_app == "jetbrains"));
        let line = "coder ssh --stdio --wait=no --disable-autostart=true --hostname-suffix coder dev.coder";
        assert!(matches!(parse(line).unwrap().command, Command::Ssh(ssh) if ssh.wait == Wait::No && ssh.disable_autostart));
        assert!(matches!(parse("coder connect exists dev.coder").unwrap().command, Command::Connect(_)));
        for (line, named) in [
            ("coder ssh --network-info-interval 5 dev", "missing unit"),
            ("coder ssh --network-info-interval 0 dev", "100ms"),
            ("coder ssh --wait maybe dev", "maybe"),
            ("coder config-ssh --coder-binary-path bin/coder", "absolute"),
            ("coder config-ssh -o Foo", "KEY=VALUE"),
            ("coder config-ssh --ssh-host-prefix a;b", "letters"),
            ("coder config-ssh --hostname-suffix .coder", "without its dot"),
            ("coder server --workspace-hostname-suffix .x", "without its dot"),
            ("coder server --ssh-config-options A=b,C", "KEY=VALUE"),
        ] {
            let said = explain(&parse(line).unwrap_err());
            assert!(said.contains(named), "{line}: {said}");
        }
    }

    #[test]
    fn no_secret_shows_when_the_command_line_is_printed() {
        let cli = parse("coder --token hunter2-hunter2 --header X=hunter2 agent --agent-token hunter2").unwrap();
        assert!(!format!("{cli:?}").contains("hunter2"));
    }
}
