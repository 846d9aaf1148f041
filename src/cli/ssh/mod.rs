//! `coder ssh`: a shell, a command, or the raw SSH stream for OpenSSH (`cli.md` §2.4).

mod session;
mod stdio;

use super::{
    args::{Global, Ssh},
    connect::{SSH_PORT, Tunnel},
    deployment::Deployment,
    logs, output,
    target::{HostNames, Target},
};
use crate::driver::{
    process::{EndSignals, end_with_parent},
    stdio::{Stdin, Stdout},
    terminal::{self, RawMode, Resizes, Terminals},
};
use anyhow::{Context as _, bail};
use session::{Ending, Local, Request, Session};
use tracing::level_filters::LevelFilter;

/// What a terminal is called that does not say.
const TERM: &str = "xterm-256color";

pub(super) fn run(global: &Global, args: &Ssh) -> anyhow::Result<u8> {
    // OpenSSH that was killed never closes what we read; the kernel tells us. It may be gone already.
    if args.stdio && end_with_parent() {
        return Ok(0);
    }
    logs::start(logs::level(global.verbose, LevelFilter::ERROR));
    super::on_one_thread(async {
        let deployment = Deployment::open(global).await?;
        let names = HostNames { prefix: args.ssh_host_prefix.clone(), suffix: args.hostname_suffix.clone() };
        let target = Target::parse(&args.workspace, &names);
        if global.disable_direct_connections {
            output::note("Direct connections disabled.");
        }
        let direct = !global.disable_direct_connections;
        if args.stdio {
            return stdio::run(&deployment, &target, direct).await;
        }
        let request = request(args)?;
        interactive(&deployment, &target, direct, request).await
    })
}

/// What the flags ask of the agent: a terminal for a shell at a terminal, or where one is demanded.
fn request(args: &Ssh) -> anyhow::Result<Request> {
    let command = (!args.command.is_empty()).then(|| args.command.join(" "));
    let mut env = Vec::new();
    for setting in args.env.iter().filter(|s| !s.is_empty()) {
        let Some((name, value)) = setting.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            bail!("invalid environment variable setting {setting:?}: it has to be NAME=VALUE");
        };
        env.push((name.to_owned(), value.to_owned()));
    }
    Ok(Request { terminal: terminal_for(args.tty || command.is_none() && Terminals::of_process().input), command, env })
}

fn terminal_for(wanted: bool) -> Option<(terminal::Size, String)> {
    let name = || std::env::var("TERM").ok().filter(|t| !t.is_empty()).unwrap_or_else(|| TERM.to_owned());
    wanted.then(|| (terminal::size(), name()))
}

/// What `coder quickstart` asks: a shell at this terminal, or a command.
pub(super) async fn open(deployment: &Deployment, target: &Target, direct: bool, command: Option<String>) -> anyhow::Result<u8> {
    let terminal = terminal_for(command.is_none() && Terminals::of_process().input);
    interactive(deployment, target, direct, Request { command, terminal, env: Vec::new() }).await
}

/// Runs one session with the streams of this process.
async fn interactive(deployment: &Deployment, target: &Target, direct: bool, request: Request) -> anyhow::Result<u8> {
    let mut signals = EndSignals::open().context("cannot handle signals")?;
    let connecting = async {
        let tunnel = Tunnel::open(deployment, target, direct).await?;
        let stream = tunnel.dial(SSH_PORT).await?;
        Ok::<_, anyhow::Error>((tunnel, Session::open(stream).await?))
    };
    let (tunnel, session) = tokio::select! {
        connected = connecting => connected?,
        // Nothing has begun yet.
        _ = signals.next() => return Ok(1),
    };
    let at_terminal = request.terminal.is_some();
    let local = Local {
        stdin: Stdin::open(),
        stdout: Stdout::open(),
        stderr: Stdout::open_err(),
        resizes: if at_terminal { Some(Resizes::open()?) } else { None },
    };
    // A terminal that was demanded without having one stays as it is.
    let raw = if at_terminal && Terminals::of_process().input { Some(RawMode::enter()?) } else { None };
    let ending = tokio::select! {
        ending = session.run(request, local) => ending,
        signal = signals.next() => Ok(Ending::Signal(signal.number().into())),
    };
    drop(raw);
    tunnel.close().await;
    let ending = ending?;
    if let Ending::Lost(reason) = &ending {
        output::note(&format!("error: the connection to workspace {target} was lost: {reason}"));
    }
    Ok(ending.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser as _;

    fn args(line: &str) -> Ssh {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Ssh(args) => args,
            other => panic!("not ssh: {other:?}"),
        }
    }

    #[test]
    fn a_command_gets_a_terminal_only_when_it_is_demanded() {
        assert!(request(&args("coder ssh dev -- ls")).unwrap().terminal.is_none());
        assert!(request(&args("coder ssh -t dev -- ls")).unwrap().terminal.is_some());
        assert_eq!(request(&args("coder ssh dev -- ls -l /")).unwrap().command.as_deref(), Some("ls -l /"));
    }

    #[test]
    fn an_environment_setting_without_a_name_is_refused() {
        assert!(request(&args("coder ssh -e =x dev")).is_err());
        assert!(request(&args("coder ssh -e FOO dev")).is_err());
        assert_eq!(request(&args("coder ssh -e A=1,B=2=3 dev")).unwrap().env.len(), 2);
    }
}
