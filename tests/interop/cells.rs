//! Row 5: whole sessions in every mix of command line, server and agent, each on every way.

mod services;

use crate::{
    harness::{LIMIT, Process, noise, run_within, terminal::Terminal, text},
    peers::{Context, Deployment, Front, GO_SERVER, Need, Program, Side, runtime, socket_address},
    table::{Cell, Outcome, step},
};
use anyhow::{Context as _, anyhow, bail, ensure};
use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

const ROW: &str = "cell";
/// What goes through OpenSSH, there and back.
const BULK: usize = 50_000_000;
/// On a busy machine; the first cell of a server waits for the server too.
const CELL_LIMIT: Duration = Duration::from_secs(300);
/// How long our command line may hang on after the agent that it talked to is back as another process.
const LOST_LIMIT: Duration = Duration::from_secs(5);

/// How the bytes of a cell travel, and what makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing is set: nodes find each other on loopback.
    Direct,
    /// `CODER_DISABLE_DIRECT_CONNECTIONS` at the command line alone: the agent is left without an address to try.
    Derp,
    /// `CODER_BLOCK_DIRECT` and `CODER_DERP_FORCE_WEBSOCKETS` at the server, which tells both ends.
    WebSocket,
}

impl Way {
    const ALL: [Self; 3] = [Self::Direct, Self::Derp, Self::WebSocket];

    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Derp => "relayed by Upgrade: derp",
            Self::WebSocket => "relayed by WebSocket",
        }
    }
}

/// A server that cells share: started by the first, ended with the last.
type Shared = Arc<Mutex<Option<Arc<Deployment>>>>;

pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for server in Side::BOTH {
        let (plain, forced) = (Shared::default(), Shared::default());
        for way in Way::ALL {
            for agent in Side::BOTH {
                for cli in Side::BOTH {
                    let name = format!("{} CLI, {} server, {} agent, {}", cli.name(), server.name(), agent.name(), way.name());
                    let mut needs = ["ssh", "scp", "sftp"].map(Need::Tool).to_vec();
                    if cli == Side::Go || agent == Side::Go {
                        needs.push(Need::Program(Program::Coder));
                    }
                    if server == Side::Go {
                        needs.extend(GO_SERVER);
                    }
                    let shared = Arc::clone(if way == Way::WebSocket { &forced } else { &plain });
                    let number = cells.len();
                    let run = move |context: &Context| {
                        let deployment = step("server", || Ok(started(context, server, way, &shared)))?;
                        Session::open(deployment, cli, agent, way, number)?.run()
                    };
                    cells.push(Cell::new(ROW, name, &needs, run).within(CELL_LIMIT));
                }
            }
        }
    }
    cells
}

fn started(context: &Context, server: Side, way: Way, shared: &Shared) -> Arc<Deployment> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let forced = way == Way::WebSocket;
    let workspaces = Side::BOTH.map(workspace);
    let start = || match server {
        Side::Ours if forced => {
            Deployment::ours(context, &workspaces, &["--block-direct-connections", "--derp-force-websockets"])
        }
        Side::Go if forced => {
            let settings = [("CODER_BLOCK_DIRECT", "true"), ("CODER_DERP_FORCE_WEBSOCKETS", "true")];
            Deployment::go(context, &workspaces, &settings)
        }
        side => Deployment::start(context, side, &workspaces),
    };
    Arc::clone(shared.get_or_insert_with(|| Arc::new(start())))
}

/// Each side's agents have a workspace of their own: no state of the other's is left there.
const fn workspace(agent: Side) -> &'static str {
    match agent {
        Side::Ours => "box-ours",
        Side::Go => "box-go",
    }
}

/// One cell: a command line with a login of its own, an agent, and a proxy before each that counts.
struct Session {
    deployment: Arc<Deployment>,
    cli: Side,
    agent_side: Side,
    way: Way,
    config: PathBuf,
    agent: Process,
    cli_front: Front,
    agent_front: Front,
    _runtime: tokio::runtime::Runtime,
}

impl Session {
    fn open(deployment: Arc<Deployment>, cli: Side, agent_side: Side, way: Way, number: usize) -> anyhow::Result<Self> {
        let runtime = runtime();
        let server = socket_address(&deployment.url);
        let front = || runtime.block_on(Front::open(server, false));
        let (cli_front, agent_front) = (front(), front());
        let agent = step("agent", || Ok(agent(&deployment, agent_side, &agent_front)))?;
        let config = deployment.dir().join(format!("login-{number}"));
        Ok(Self { deployment, cli, agent_side, way, config, agent, cli_front, agent_front, _runtime: runtime })
    }

    fn run(mut self) -> Outcome {
        step("login", || self.log_in())?;
        step("list", || self.list())?;
        step("ssh", || self.ssh())?;
        step("ping", || self.ping())?;
        let bulk = step("ssh --stdio", || self.bulk())?;
        step("resize", || self.resize())?;
        let speed = step("speedtest", || self.speedtest())?;
        self.services()?;
        let back = step("agent killed and back", || self.agent_killed_and_back())?;
        step("way", || self.prove())?;
        Ok(format!("OpenSSH {bulk:.0} Mbit/s, speedtest {speed:.0} Mbit/s, back after {:.1} s", back.as_secs_f64()))
    }

    /// What its command line is told: nothing but where its login is.
    fn settle(&self, command: &mut Command) {
        command.env_remove("CODER_URL").env_remove("CODER_SESSION_TOKEN").env("CODER_CONFIG_DIR", &self.config);
        if self.way == Way::Derp {
            command.env("CODER_DISABLE_DIRECT_CONNECTIONS", "true");
        }
    }

    fn cli(&self, args: &[&str]) -> Command {
        let mut command = self.deployment.cli(self.cli, args);
        self.settle(&mut command);
        command
    }

    fn workspace(&self) -> &'static str {
        workspace(self.agent_side)
    }

    fn log_in(&self) -> anyhow::Result<()> {
        let url = format!("http://127.0.0.1:{}", self.cli_front.port);
        let mut command = self.cli(&["login", &url]);
        command.env("CODER_SESSION_TOKEN", &self.deployment.token);
        let out = succeeded(command)?;
        let said = text(&out.stdout);
        ensure!(said.contains("Welcome to Coder, admin!"), "it said {said:?}");
        let session = std::fs::read_to_string(self.config.join("session")).context("no stored token")?;
        ensure!(session.trim() != self.deployment.token, "the given token itself was stored");
        Ok(())
    }

    fn list(&self) -> anyhow::Result<()> {
        let out = text(&succeeded(self.cli(&["list"]))?.stdout);
        let row = out.lines().find(|line| line.contains(&format!("admin/{}", self.workspace())));
        let row = row.with_context(|| format!("no such row: {out}"))?;
        ensure!(row.contains("Started"), "the workspace is not started: {row}");
        ensure!(out.trim_start().starts_with("WORKSPACE"), "no heads: {out}");
        Ok(())
    }

    fn ssh(&self) -> anyhow::Result<()> {
        let out = run_within(self.cli(&["ssh", self.workspace(), "--", "echo to-out; exit 7"]), b"", LIMIT);
        ensure!(text(&out.stdout).trim_end() == "to-out", "output {:?}, errors {:?}", text(&out.stdout), text(&out.stderr));
        // Go's command form has no exit code of the command.
        let want = if self.cli == Side::Ours { 7 } else { 1 };
        ensure!(out.status.code() == Some(want), "{}, not {want}: {}", out.status, text(&out.stderr));
        Ok(())
    }

    /// The last of some pings names the way.
    fn ping(&self) -> anyhow::Result<()> {
        let out = text(&succeeded(self.cli(&["ping", self.workspace(), "-n", "4", "--wait", "300ms"]))?.stdout);
        let pong = out.lines().rfind(|line| line.starts_with("pong from ")).with_context(|| format!("no pong: {out}"))?;
        let named = if self.way == Way::Direct { " p2p via " } else { " proxied via DERP(Coder Embedded Relay) in " };
        ensure!(pong.contains(named), "{named:?} is not in {pong:?}");
        Ok(())
    }

    /// 50 MB there and back; gives Mbit/s of one direction.
    fn bulk(&self) -> anyhow::Result<f64> {
        let sent = noise(BULK, 5);
        let mut ssh = self.deployment.ssh(self.cli, &[], &[], self.workspace(), "cat");
        self.settle(&mut ssh);
        let before = self.cli_front.down();
        let begin = Instant::now();
        let out = run_within(ssh, &sent, 2 * LIMIT);
        let took = begin.elapsed();
        ensure!(out.status.success(), "{}: {}", out.status, text(&out.stderr));
        ensure!(out.stdout == sent, "{} of {BULK} bytes came back, or other ones", out.stdout.len());
        let relayed = self.cli_front.down() - before;
        match self.way {
            Way::Direct => ensure!(relayed < BULK as u64 / 2, "{relayed} bytes came by relay"),
            Way::Derp | Way::WebSocket => ensure!(relayed >= BULK as u64, "only {relayed} bytes came by relay"),
        }
        #[expect(clippy::cast_precision_loss, reason = "a number for people")]
        let bits = (BULK * 8) as f64;
        Ok(bits / 1e6 / took.as_secs_f64())
    }

    /// A window that changes its size under a program. Nothing is typed: a Go command line asks the terminal for its colours
    /// and takes what comes first for the answer.
    fn resize(&self) -> anyhow::Result<()> {
        let until = |size| format!("until [ \"$(stty size)\" = \"{size}\" ]; do sleep 0.05; done; echo size {size}");
        // Go's command form always has a terminal, of 128 × 128 until the window changes.
        let (flags, first) = if self.cli == Side::Ours { (&["-t"][..], "24 80") } else { (&[][..], "128 128") };
        let program = format!("{}; {}", until(first), until("50 132"));
        let args = [&["ssh"], flags, &[self.workspace(), "--", &program]].concat();
        let mut terminal = Terminal::start(self.cli(&args));
        terminal.wait_for(&format!("size {first}"));
        terminal.resize(132, 50);
        terminal.wait_for("size 50 132");
        let status = terminal.wait(LIMIT);
        ensure!(status.success(), "it ended with {status}: {}", terminal.shown());
        ensure!(terminal.is_restored(), "the terminal's modes are not what they were");
        Ok(())
    }

    /// Gives Mbit/s.
    fn speedtest(&self) -> anyhow::Result<f64> {
        let mut args = vec!["speedtest", self.workspace(), "-t", "1s", "--output", "json"];
        if self.way == Way::Direct {
            args.push("--direct");
        }
        let mut fastest = 0.0_f64;
        for direction in ["down", "up"] {
            let out = succeeded(self.cli(&[&args[..], &["--direction", direction]].concat()))?;
            let found: Value =
                serde_json::from_slice(&out.stdout).with_context(|| format!("{direction}: {}", text(&out.stdout)))?;
            let speed = found["overall"]["throughput_mbits"].as_f64().with_context(|| format!("no speed in {found}"))?;
            ensure!(speed > 1.0, "{direction}: {found}");
            fastest = fastest.max(speed);
        }
        Ok(fastest)
    }

    /// Gives how long a new session took after the agent was back.
    fn agent_killed_and_back(&mut self) -> anyhow::Result<Duration> {
        let command = "echo be''gun; cat";
        let mut old = Process::start("the session", self.cli(&["ssh", self.workspace(), "--", command]));
        old.wait_for("begun");
        self.agent.kill();
        self.agent = agent(&self.deployment, self.agent_side, &self.agent_front);
        let begin = Instant::now();
        let new = self.cli(&["ssh", self.workspace(), "--", "echo again"]);
        // Both at once: the limit of the old session counts from the agent's return.
        let new = std::thread::spawn(move || succeeded(new).map(|out| (text(&out.stdout), begin.elapsed())));
        if self.cli == Side::Ours {
            old.wait_within("error: ", LOST_LIMIT);
            let status = old.wait(LOST_LIMIT);
            ensure!(!status.success(), "the session of the dead agent ended with {status}");
        }
        let (out, took) = new.join().map_err(|_| anyhow!("the new session failed"))??;
        ensure!(out.trim_end() == "again", "the new session says {out:?}");
        Ok(took)
    }

    /// Both ends reached the relay as the cell says.
    fn prove(&self) -> anyhow::Result<()> {
        for (end, front) in [("the command line", &self.cli_front), ("the agent", &self.agent_front)] {
            let (upgrades, websockets) = (front.upgrades(), front.websockets());
            let holds = if self.way == Way::WebSocket { upgrades == 0 && websockets > 0 } else { upgrades > 0 };
            ensure!(holds, "{end} reached the relay {upgrades} times by Upgrade: derp, {websockets} times by WebSocket");
            if self.way == Way::Derp && websockets > 0 {
                bail!("{end} also reached the relay {websockets} times by WebSocket");
            }
        }
        Ok(())
    }
}

fn agent(deployment: &Deployment, side: Side, front: &Front) -> Process {
    let url = format!("http://127.0.0.1:{}", front.port);
    deployment.agent_in(None, side, workspace(side), &[("CODER_AGENT_URL", &url)])
}

/// Runs a command that must succeed.
fn succeeded(command: Command) -> anyhow::Result<Output> {
    let out = run_within(command, b"", LIMIT);
    ensure!(out.status.success(), "{}: {} {}", out.status, text(&out.stderr), text(&out.stdout));
    Ok(out)
}
