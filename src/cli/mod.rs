//! L7: the command line, one file per command.

mod agent;
mod agent_api;
mod args;
mod coder_connect;
mod config;
mod config_ssh;
mod connect;
mod create;
mod debug_options;
mod deployment;
mod escape;
mod go_time;
mod ignored;
mod interrupt;
mod life;
mod list;
mod log_file;
mod login;
mod logout;
mod logs;
mod memory;
mod netcheck;
mod output;
mod ping;
mod port_forward;
mod quickstart;
mod ready;
mod rpty;
mod server;
mod server_flags;
mod show;
mod speedtest;
mod ssh;
mod stat;
mod stderr;
mod support;
mod target;
mod timeline;
mod tokens;
mod version;
mod watch;
mod whoami;

use args::{Cli, Command, Global};
use interrupt::{Signalled, exit_code};
use std::process::ExitCode;

/// Runs the command line of this process and gives its exit code.
#[must_use]
pub fn main() -> ExitCode {
    memory::give_back_large_buffers();
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(e) if e.exit_code() == 0 => {
            return output::raw(&e.render().to_string()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
        }
        Err(e) => {
            output::note(&format!("error: {}; see 'coder --help'", args::explain(&e)));
            return ExitCode::FAILURE;
        }
    };
    if let Some(sources) = &cli.sources {
        return output::raw(sources).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let code = outcome(run(&cli));
    stderr::flush();
    code
}

fn outcome(ended: anyhow::Result<u8>) -> ExitCode {
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(e) if e.is::<Signalled>() => {
            e.downcast_ref().map_or(ExitCode::FAILURE, |Signalled(signal)| exit_code(*signal).into())
        }
        // Whoever read our output has enough of it.
        Err(e) if is_closed_output(&e) => ExitCode::FAILURE,
        Err(e) => {
            output::note(&format!("error: {}", format!("{e:#}").replace(['\n', '\r'], " ")));
            ExitCode::FAILURE
        }
    }
}

fn is_closed_output(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(cli: &Cli) -> anyhow::Result<u8> {
    let global = &cli.global;
    match &cli.command {
        Command::Version(args) => version::run(args),
        Command::Login(args) => briefly(global, login::run(global, args)),
        Command::Logout(args) => briefly(global, logout::run(global, args)),
        Command::Whoami(args) => briefly(global, whoami::run(global, args)),
        Command::Tokens(args) => briefly(global, tokens::run(global, &args.command)),
        Command::List(args) => briefly(global, list::run(global, args)),
        Command::Show(args) => briefly(global, show::run(global, args)),
        Command::Create(args) => briefly(global, create::workspace(global, args)),
        Command::Start(args) => briefly(global, life::start(global, args)),
        Command::Stop(args) => briefly(global, life::stop(global, args)),
        Command::Restart(args) => briefly(global, life::restart(global, args)),
        Command::Update(args) => briefly(global, life::update(global, args)),
        Command::Delete(args) => briefly(global, life::delete(global, args)),
        Command::Logs(args) => briefly(global, life::logs(global, args)),
        Command::Cancel(args) => briefly(global, life::cancel(global, args)),
        Command::Users(args) => briefly(global, create::user(global, &args.command)),
        Command::Ssh(args) => ssh::run(global, args),
        Command::ConfigSsh(args) => briefly(global, config_ssh::run(global, args)),
        Command::Connect(args) => on_one_thread(coder_connect::run(&args.command)),
        Command::Ping(args) => ping::run(global, args),
        Command::PortForward(args) => port_forward::run(global, args),
        Command::Speedtest(args) => speedtest::run(global, args),
        Command::Netcheck => netcheck::run(global),
        Command::Support(args) => support::run(global, args),
        Command::Stat(args) => on_one_thread(stat::run(args)),
        Command::Exp(args) => rpty::run(global, args),
        Command::Agent(args) => agent::run(global, args),
        Command::Server(args) => server::run(global, args),
        Command::Quickstart(args) => quickstart::run(global, args),
    }
}

/// Runs a command that knows of no signals: they end the process, and with it what it has started.
fn briefly(global: &Global, command: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    on_one_thread(async {
        if global.header_command.is_none() {
            return command.await;
        }
        // Whatever runs the header command takes the signals over.
        interrupt::or_signal(command).await
    })
}

/// Runs a command on one current-thread runtime: thread hops cost more than they give (DESIGN §3.2).
fn on_one_thread(command: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(command);
    // A thread that still reads a regular file must not hold the process back.
    runtime.shutdown_background();
    code
}

/// Runs a command whose process serves others too.
fn on_all_cores(command: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(command);
    runtime.shutdown_background();
    code
}
