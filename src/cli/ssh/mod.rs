//! `coder ssh`: a shell, a command, or the raw SSH stream for OpenSSH (`cli.md` §2.4).

mod key_agent;
mod log_file;
mod network_info;
mod remote_forward;
mod session;
mod silence;
mod stdio;

use super::{
    args::{Global, Ssh, Wait},
    connect::{SSH_PORT, Tunnel, Usage, Wishes},
    deployment::Deployment,
    interrupt::exit_code,
    logs, output,
    ready::Readiness,
    target::{HostNames, Target},
};
use crate::{
    base::Instant,
    driver::{
        clock,
        process::EndSignals,
        stdio::{Stdin, Stdout},
        terminal::{self, RawMode, Resizes, Terminals},
    },
    net::PingKind,
};
use anyhow::{Context as _, bail};
use futures::FutureExt as _;
pub(super) use key_agent::KeyAgentArgs;
use network_info::NetworkInfo;
pub(super) use remote_forward::RemoteForwardArgs;
use session::{Ending, Local, Request, Session};
use silence::Silence;
use std::{rc::Rc, time::Duration};
use tokio::sync::Notify;
use tracing::level_filters::LevelFilter;

/// How long the good-bye of a session may take that never began.
const HURRY: Duration = Duration::from_millis(300);
/// How long a good-bye may take.
const GOOD_BYE: Duration = Duration::from_secs(3);
/// What a terminal is called that does not say.
const TERM: &str = "xterm-256color";

pub(super) fn run(global: &Global, args: &Ssh) -> anyhow::Result<u8> {
    match &args.log_dir {
        // A file is for whoever looks for a fault later; standard error is OpenSSH's user's.
        Some(dir) => logs::start_in(log_file::create(dir, args.stdio)?, logs::level(global.verbose, LevelFilter::INFO)),
        None => logs::start(logs::level(global.verbose, LevelFilter::ERROR)),
    }
    if args.stdio && !args.forwards.list().is_empty() {
        bail!("remote-forward can't be enabled in the stdio mode");
    }
    if args.stdio && !args.command.is_empty() {
        bail!("with --stdio whoever speaks SSH chooses the command: leave out {:?}, or --stdio", args.command.join(" "));
    }
    if args.no_wait {
        output::note("--no-wait is an old name of --wait=no.");
    }
    let info = args.network_info_dir.as_deref().map(|dir| NetworkInfo::open(dir, args.network_info_interval)).transpose()?;
    super::on_one_thread(async {
        let deployment = Deployment::open(global).await?;
        let names = HostNames { prefix: args.ssh_host_prefix.clone(), suffix: args.hostname_suffix.clone() };
        let target = Target::parse(&args.workspace, &names);
        if global.disable_direct_connections {
            output::note("Direct connections disabled.");
        }
        let wishes = wishes(global, args);
        if args.stdio {
            return stdio::run(&deployment, &target, wishes, info).await;
        }
        let request = request(args, global.force_tty)?;
        interactive(&deployment, &target, wishes, info, request).await
    })
}

/// What the flags ask of the tunnel.
fn wishes(global: &Global, args: &Ssh) -> Wishes {
    let usage = match args.usage_app.as_str() {
        "disable" => None,
        "vscode" => Some(Usage::App("vscode")),
        "jetbrains" => Some(Usage::App("jetbrains")),
        _ => Some(Usage::App("ssh")),
    };
    let wait = if args.no_wait { Wait::No } else { args.wait };
    let readiness = Readiness { start: !args.disable_autostart, wait };
    Wishes { direct: !global.disable_direct_connections, usage, watch: true, readiness, ..Wishes::default() }
}

/// What the flags ask of the agent: a terminal for a shell at a terminal, or where one is demanded.
fn request(args: &Ssh, force_tty: bool) -> anyhow::Result<Request> {
    let command = (!args.command.is_empty()).then(|| args.command.join(" "));
    let mut env = Vec::new();
    for setting in args.env.iter().filter(|s| !s.is_empty()) {
        let Some((name, value)) = setting.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            bail!("invalid environment variable setting {setting:?}: it has to be NAME=VALUE");
        };
        env.push((name.to_owned(), value.to_owned()));
    }
    let terminal = terminal_for(args.tty || force_tty || command.is_none() && Terminals::of_process().input);
    let forwards = args.forwards.list().to_vec();
    Ok(Request { terminal, command, env, key_agent: args.key_agent.key_agent(), forwards })
}

fn terminal_for(wanted: bool) -> Option<(terminal::Size, String)> {
    let name = || std::env::var("TERM").ok().filter(|t| !t.is_empty()).unwrap_or_else(|| TERM.to_owned());
    wanted.then(|| (terminal::size(), name()))
}

/// What `coder quickstart` asks: a shell at this terminal, or a command.
pub(super) async fn open(deployment: &Deployment, target: &Target, direct: bool, command: Option<String>) -> anyhow::Result<u8> {
    let terminal = terminal_for(command.is_none() && Terminals::of_process().input);
    let wishes = Wishes { direct, ..Wishes::default() };
    interactive(deployment, target, wishes, None, Request { command, terminal, ..Request::default() }).await
}

/// Runs one session with the streams of this process.
async fn interactive(
    deployment: &Deployment,
    target: &Target,
    wishes: Wishes,
    info: Option<NetworkInfo>,
    mut request: Request,
) -> anyhow::Result<u8> {
    let mut signals = EndSignals::open().context("cannot handle signals")?;
    // From the beginning on: connecting may take a while, and the size change meanwhile.
    let resizes = if request.terminal.is_some() { Some(Resizes::open()?) } else { None };
    let tunnel = tokio::select! {
        tunnel = Tunnel::open(deployment, target, wishes) => tunnel?,
        // Nothing has begun yet.
        signal = signals.next() => return Ok(exit_code(signal)),
    };
    let connecting = async {
        let stream = tunnel.dial(SSH_PORT).await?;
        let began = clock::now();
        let session = Session::open(stream, &request).await?;
        tunnel.timeline.ended("ssh handshake", began);
        Ok::<_, anyhow::Error>(session)
    };
    let connected = tokio::select! {
        session = connecting => session.map(Ok),
        signal = signals.next() => Ok(Err(exit_code(signal))),
    };
    let session = match connected {
        Ok(Ok(session)) => session,
        unused => {
            tunnel.log_timeline(deployment.client.http()).await;
            tunnel.close_within(HURRY).await;
            return unused.map(|ended| ended.err().unwrap_or_default());
        }
    };
    let at_terminal = request.terminal.is_some();
    if let Some((size, _)) = &mut request.terminal {
        *size = terminal::size();
    }
    let (first, opened) = (Rc::new(Notify::new()), clock::now());
    // Only who types at a terminal of our own can say something to us, and wants to hear from us.
    let person = (at_terminal && Terminals::of_process().input).then(|| Rc::new(Silence::default()));
    let local = Local {
        stdin: Stdin::open(),
        stdout: Stdout::open(),
        stderr: Stdout::open_err(),
        resizes,
        person: person.clone(),
        first: Rc::clone(&first),
    };
    // A terminal that was demanded without having one stays as it is.
    let raw = if person.is_some() { Some(RawMode::enter()?) } else { None };
    let mut ending = tokio::select! {
        ending = session.run(request, local) => ending,
        never = network_info::keep(info, &tunnel) => match never {},
        never = watch_silence(person.as_deref(), &tunnel) => match never {},
        never = tell_timeline(&tunnel, deployment, &first, opened) => match never {},
        fate = tunnel.fate() => Ok(Ending::Lost(fate.to_string())),
        signal = signals.next() => Ok(Ending::Signal(signal.number().into())),
    };
    drop(raw);
    let left = matches!(ending, Ok(Ending::Left));
    let good_bye = async {
        tell_timeline_at_the_end(&tunnel, deployment, &first, opened).await;
        if let Ok(Ending::Lost(reason)) = &mut ending
            && let Some(fate) = tunnel.why_lost().await
        {
            *reason = fate.to_string();
        }
        tunnel.close_within(if left { HURRY } else { GOOD_BYE }).await;
    };
    tokio::select! {
        () = good_bye => {}
        // Whoever asks twice does not want to wait.
        _ = signals.next() => {}
    }
    let ending = ending?;
    if left {
        output::note(&format!("The session in workspace {target} was left."));
    }
    if let Ending::Lost(reason) = &ending {
        output::note(&format!("error: the connection to workspace {target} was lost: {reason}"));
    }
    Ok(ending.exit_code())
}

/// Watches the other end for the person at the terminal, if there is one.
async fn watch_silence(person: Option<&Silence>, tunnel: &Tunnel) -> network_info::Never {
    match person {
        Some(silence) => {
            let ping = async |wait| tunnel.tailnet.ping(tunnel.address, PingKind::Tsmp, wait).await.map(drop);
            silence.watch(&tunnel.name, clock::now, ping, output::note).await
        }
        None => std::future::pending().await,
    }
}

/// The stage that ends with the first byte of the session.
const FIRST_BYTE: &str = "first byte";

/// Tells once how long connecting took, with `-v`.
async fn tell_timeline(tunnel: &Tunnel, deployment: &Deployment, first: &Notify, since: Instant) -> network_info::Never {
    first.notified().await;
    tunnel.timeline.ended(FIRST_BYTE, since);
    tunnel.log_timeline(deployment.client.http()).await;
    std::future::pending().await
}

/// The same for a session that was over before that could be told, or without a byte.
async fn tell_timeline_at_the_end(tunnel: &Tunnel, deployment: &Deployment, first: &Notify, since: Instant) {
    if first.notified().now_or_never().is_some() {
        tunnel.timeline.ended(FIRST_BYTE, since);
    }
    if tunnel.timeline.is_untold() {
        tunnel.log_timeline(deployment.client.http()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser as _;

    fn ask(args: &Ssh) -> anyhow::Result<Request> {
        request(args, false)
    }

    fn args(line: &str) -> Ssh {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Ssh(args) => args,
            other => panic!("not ssh: {other:?}"),
        }
    }

    #[test]
    fn the_flags_of_editors_say_what_the_tunnel_is_for() {
        let wishes = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            wishes(&cli.global, &args(line))
        };
        for (flag, usage) in [
            ("--usage-app=vscode", Some("vscode")),
            ("--usage-app=jetbrains", Some("jetbrains")),
            ("--usage-app=ssh", Some("ssh")),
            ("--usage-app=new", Some("ssh")),
            ("--usage-app=disable", None),
            ("--stdio", Some("ssh")),
        ] {
            assert_eq!(wishes(&format!("coder ssh {flag} dev")).usage, usage.map(Usage::App), "{flag}");
        }
        let ready = |flags: &str| wishes(&format!("coder ssh {flags} dev")).readiness;
        assert!(ready("-t").start && !ready("--disable-autostart").start);
        assert_eq!([ready("-t").wait, ready("--wait=yes").wait, ready("--no-wait").wait], [Wait::Auto, Wait::Yes, Wait::No]);
    }

    #[test]
    fn a_command_gets_a_terminal_only_when_it_is_demanded() {
        assert!(ask(&args("coder ssh dev -- ls")).unwrap().terminal.is_none());
        assert!(ask(&args("coder ssh -t dev -- ls")).unwrap().terminal.is_some());
        assert!(request(&args("coder ssh dev -- ls"), true).unwrap().terminal.is_some());
        assert_eq!(ask(&args("coder ssh dev -- ls -l /")).unwrap().command.as_deref(), Some("ls -l /"));
    }

    #[test]
    fn an_environment_setting_without_a_name_is_refused() {
        assert!(ask(&args("coder ssh -e =x dev")).is_err());
        assert!(ask(&args("coder ssh -e FOO dev")).is_err());
        assert_eq!(ask(&args("coder ssh -e A=1,B=2=3 dev")).unwrap().env.len(), 2);
    }
}
