//! `coder agent`: the workspace agent (`agent.md` §1).

use super::{
    args::{Global, Header, go_bool, go_duration, token},
    deployment,
    log_file::LogFile,
    logs,
};
use crate::{
    agent::{self, ssh::Rules},
    driver::{
        http::Token,
        process::{EndSignals, end_with_parent, keep_descriptors},
    },
    wire::coord::agent::Subsystem,
};
use anyhow::{Context as _, bail};
use clap::Args;
use std::{fs, path::PathBuf, time::Duration};
use tracing::level_filters::LevelFilter;

/// The one way in which an agent can prove here who it is.
const TOKEN: &str = "token";
/// The variable that tells what the agent runs inside of.
const SUBSYSTEM: &str = "CODER_AGENT_SUBSYSTEM";

/// Flags of `coder agent`.
#[derive(Debug, Args)]
pub(super) struct Agent {
    /// URL of the deployment as seen from the workspace
    #[arg(long, env = "CODER_AGENT_URL", value_name = "URL")]
    agent_url: Option<String>,
    /// The agent's token
    #[arg(long, env = "CODER_AGENT_TOKEN", hide_env_values = true, value_name = "TOKEN", value_parser = token)]
    agent_token: Option<Token>,
    /// File that holds the agent's token
    #[arg(long, env = "CODER_AGENT_TOKEN_FILE", value_name = "FILE")]
    agent_token_file: Option<PathBuf>,
    /// How the agent proves who it is: only by its token
    #[arg(long, env = "CODER_AGENT_AUTH", default_value = TOKEN, value_name = "TYPE", hide = true)]
    auth: String,
    /// Extra HTTP header NAME=VALUE on every request, relays included; may be repeated
    #[arg(long, env = "CODER_AGENT_HEADER", value_name = "NAME=VALUE", value_delimiter = ',', hide_env_values = true)]
    agent_header: Vec<Header>,
    /// Program whose output gives more headers, one NAME=VALUE a line
    #[arg(long, env = "CODER_AGENT_HEADER_COMMAND", hide_env_values = true, value_name = "COMMAND")]
    agent_header_command: Option<String>,
    /// Folder for coder-agent.log and the logs of scripts; by default there is none of the first, and those of scripts are in
    /// ~/.cache/coder-agent
    #[arg(long, env = "CODER_AGENT_LOG_DIR", value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// File for the log that people read; empty for none
    #[arg(long, env = "CODER_AGENT_LOGGING_HUMAN", default_value = "/dev/stderr", value_name = "FILE")]
    log_human: PathBuf,
    /// Folder for the data and programs of scripts; by default ~/.cache/coder-agent
    #[arg(long, env = "CODER_AGENT_SCRIPT_DATA_DIR", value_name = "DIR")]
    script_data_dir: Option<PathBuf>,
    /// Give an SSH client up that does not answer for so long; less than 3s limits the life of every connection, 0 nothing
    #[arg(long, env = "CODER_AGENT_SSH_MAX_TIMEOUT", default_value = "72h", value_name = "DURATION", value_parser = go_duration)]
    ssh_max_timeout: Duration,
    /// Refuse sftp and the commands nc, rsync, scp, sftp
    #[arg(long, env = "CODER_AGENT_BLOCK_FILE_TRANSFER", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    block_file_transfer: bool,
    /// Refuse to listen for SSH clients (ssh -R)
    #[arg(long, env = "CODER_AGENT_BLOCK_REVERSE_PORT_FORWARDING", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    block_reverse_port_forwarding: bool,
    /// Refuse to connect for SSH clients (ssh -L, -D, -W)
    #[arg(long, env = "CODER_AGENT_BLOCK_LOCAL_PORT_FORWARDING", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    block_local_port_forwarding: bool,
    /// UDP port of the tunnel; 0 takes any
    #[arg(long, env = "CODER_AGENT_TAILNET_LISTEN_PORT", default_value = "0", value_name = "PORT")]
    tailnet_listen_port: u16,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    exit_with_parent: bool,
    /// Log errors only: the terminal belongs to somebody else
    #[arg(long, hide = true)]
    quiet: bool,
    #[command(flatten)]
    ignored: Ignored,
}

/// Flags of the Go agent that have nothing to switch here: templates and start scripts pass them, so they are taken.
#[derive(Debug, Args)]
struct Ignored {
    /// Only chooses an agent by a cloud's identity document
    #[arg(long, hide = true, env = "CODER_AGENT_NAME")]
    agent_name: Option<String>,
    /// The log has one form
    #[arg(long, hide = true, env = "CODER_AGENT_LOGGING_JSON")]
    log_json: Option<String>,
    /// The log has one form
    #[arg(long, hide = true, env = "CODER_AGENT_LOGGING_STACKDRIVER")]
    log_stackdriver: Option<String>,
    /// Nothing listens for it
    #[arg(long, hide = true, env = "CODER_AGENT_PROMETHEUS_ADDRESS")]
    prometheus_address: Option<String>,
    /// Nothing listens for it
    #[arg(long, hide = true, env = "CODER_AGENT_DEBUG_ADDRESS")]
    debug_address: Option<String>,
    /// Nothing listens for it
    #[arg(long, hide = true, env = "CODER_AGENT_PPROF_ADDRESS")]
    pprof_address: Option<String>,
    /// There are no dev containers
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = go_bool)]
    devcontainers_enable: bool,
    /// There are no dev containers
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = go_bool)]
    devcontainers_project_discovery_enable: bool,
    /// There are no dev containers
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = go_bool)]
    devcontainers_discovery_autostart_enable: bool,
    /// There is no control socket
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = go_bool)]
    socket_server_enabled: bool,
    /// There is no control socket
    #[arg(long, hide = true)]
    socket_path: Option<String>,
    /// Nothing is reaped
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = go_bool)]
    no_reap: bool,
}

pub(super) fn run(global: &Global, args: &Agent) -> anyhow::Result<u8> {
    if args.exit_with_parent && end_with_parent() {
        return Ok(0);
    }
    keep_descriptors();
    let level = logs::level(global.verbose, if args.quiet { LevelFilter::ERROR } else { LevelFilter::INFO });
    let file = args.log_dir.as_deref().map(|folder| LogFile::open(folder, agent::LOG_FILE)).transpose()?;
    logs::start_for_agent(level, &args.log_human, file)?;
    if args.auth != TOKEN {
        bail!("--auth {:?} is not there: this agent proves who it is by its token; leave the flag out", args.auth);
    }
    let Some(url) = args.agent_url.clone().filter(|u| !u.is_empty()) else {
        bail!("no server: set CODER_AGENT_URL or pass --agent-url");
    };
    let token = agents_token(args)?;
    if let Some(folder) = &args.script_data_dir {
        let why = || format!("--script-data-dir {}: no folder can be made or used there; choose another one", folder.display());
        fs::create_dir_all(folder).with_context(why)?;
    }
    super::on_one_thread(async {
        let options = deployment::http_options(&headers_of(global, args)?, &url).await?;
        let config = agent::Config {
            port: args.tailnet_listen_port,
            rules: Rules {
                block_file_transfer: args.block_file_transfer,
                block_reverse_forwarding: args.block_reverse_port_forwarding,
                block_local_forwarding: args.block_local_port_forwarding,
                max_timeout: args.ssh_max_timeout,
            },
            log_dir: args.log_dir.clone(),
            script_data_dir: args.script_data_dir.clone(),
            subsystems: subsystems(&std::env::var(SUBSYSTEM).unwrap_or_default()),
            ..agent::Config::new(url, token, options)
        };
        let mut signals = EndSignals::open_for_service().context("cannot handle signals")?;
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

/// The global flags with the agent's own headers.
fn headers_of(global: &Global, args: &Agent) -> anyhow::Result<Global> {
    if let Some(at) = args.agent_header.iter().position(|h| !h.0.contains('=')) {
        // The text itself may hold a secret.
        bail!("--agent-header number {} is not of the form NAME=VALUE", at + 1);
    }
    let mut global = global.clone();
    global.header.extend(args.agent_header.iter().cloned());
    if let Some(command) = &args.agent_header_command {
        global.header_command = Some(command.clone());
    }
    Ok(global)
}

/// Reads the list of what the agent runs inside of; what is not known is left out.
fn subsystems(list: &str) -> Vec<Subsystem> {
    let known = |word: &str| match word {
        "envbox" => Some(Subsystem::Envbox),
        "envbuilder" => Some(Subsystem::Envbuilder),
        "exectrace" => Some(Subsystem::Exectrace),
        _ => {
            tracing::warn!(word, "{SUBSYSTEM} names something unknown");
            None
        }
    };
    list.split(',').map(str::trim).filter(|word| !word.is_empty()).filter_map(known).collect()
}

fn agents_token(args: &Agent) -> anyhow::Result<Token> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command, explain};
    use clap::Parser as _;

    fn parse(line: &str) -> Result<(Global, Agent), String> {
        let cli = Cli::try_parse_from(format!("coder agent {line}").split_whitespace()).map_err(|e| explain(&e))?;
        let Command::Agent(agent) = cli.command else { panic!("not agent") };
        Ok((cli.global, *agent))
    }

    #[test]
    fn the_flags_of_the_go_agent_are_read_or_taken() {
        let (_, args) = parse("--block-file-transfer --block-local-port-forwarding=true --ssh-max-timeout 30s").unwrap();
        assert!(args.block_file_transfer && args.block_local_port_forwarding && !args.block_reverse_port_forwarding);
        assert_eq!(args.ssh_max_timeout, Duration::from_secs(30));
        assert_eq!(parse("").unwrap().1.ssh_max_timeout, Rules::default().max_timeout);
        parse(
            "--auth token --agent-name main --log-human /dev/stderr --log-json /x --log-stackdriver /y --no-reap \
             --prometheus-address 127.0.0.1:2112 --debug-address= --pprof-address 127.0.0.1:6060 --devcontainers-enable=false \
             --devcontainers-project-discovery-enable --devcontainers-discovery-autostart-enable=true --socket-path /s \
             --socket-server-enabled --script-data-dir /d --log-dir /l --tailnet-listen-port 4000",
        )
        .unwrap();
        assert!(parse("--ssh-max-timeout 5").unwrap_err().contains("missing unit"));
    }

    #[test]
    fn the_agents_headers_join_the_global_ones_and_a_bad_one_is_counted() {
        let (global, args) = parse("--header A=1 --agent-header B=2,C=3 --agent-header-command mine").unwrap();
        let all = headers_of(&global, &args).unwrap();
        let names: Vec<_> = all.header.iter().map(|h| h.0.as_str()).collect();
        assert_eq!((names, all.header_command.as_deref()), (vec!["A=1", "B=2", "C=3"], Some("mine")));
        let (global, args) = parse("--agent-header B=2 --agent-header hunter2").unwrap();
        let said = headers_of(&global, &args).unwrap_err().to_string();
        assert!(said.contains("--agent-header number 2") && !said.contains("hunter2"), "{said}");
    }

    #[test]
    fn subsystems_are_words_between_commas() {
        assert_eq!(subsystems("envbox, exectrace,other,"), [Subsystem::Envbox, Subsystem::Exectrace]);
    }
}
