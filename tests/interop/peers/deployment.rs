//! A server with users, workspaces, agents and command lines, each of them ours or Go's.

use super::{Context, Program, Programs};
use crate::harness::{self, LIMIT, Process, clean, namespace::command_in, run_within, text};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path, process::Command, sync::Arc, time::Duration};

/// Migrations of an empty database and the first start on a busy machine.
const SERVER_LIMIT: Duration = Duration::from_secs(120);

/// Whose program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Ours,
    Go,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Ours, Self::Go];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Go => "Go",
        }
    }
}

/// A workspace's agent.
#[derive(Debug, Clone)]
pub struct Workspace {
    pub name: String,
    pub token: String,
    pub id: uuid::Uuid,
}

/// A running server whose first user is logged in. It ends when this is dropped.
pub struct Deployment {
    pub side: Side,
    pub url: String,
    pub token: String,
    pub workspaces: BTreeMap<String, Workspace>,
    server: Running,
    programs: Arc<Programs>,
}

enum Running {
    Ours(Box<harness::Server>),
    Go { process: Process, dir: tempfile::TempDir },
}

impl Deployment {
    /// A server of either side with these workspaces.
    pub fn start(context: &Context, side: Side, workspaces: &[&str]) -> Self {
        match side {
            Side::Ours => Self::ours(context, workspaces, &[]),
            Side::Go => Self::go(context, workspaces, &[]),
        }
    }

    /// Our server with these flags.
    pub fn ours(context: &Context, workspaces: &[&str], flags: &[&str]) -> Self {
        let server = harness::Server::start(flags);
        let made = workspaces.iter().map(|name| ((*name).to_owned(), our_workspace(&server, name))).collect();
        let (url, token) = (server.url.clone(), server.token.clone());
        let programs = Arc::clone(&context.programs);
        Self { side: Side::Ours, url, token, workspaces: made, server: Running::Ours(Box::new(server)), programs }
    }

    /// A Go server with these settings beside the usual ones. Its relay map has no STUN unless they say so.
    pub fn go(context: &Context, workspaces: &[&str], settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", super::free_port());
        let url = format!("http://{address}");
        let mut command = context.program(Program::Server);
        clean(&mut command).arg("server").current_dir(dir.path());
        command.env("HOME", dir.path()).env("CODER_CONFIG_DIR", dir.path().join("server"));
        command.env("CODER_CACHE_DIRECTORY", dir.path().join("cache"));
        command.env("CODER_PG_CONNECTION_URL", context.postgres().database());
        command.env("CODER_HTTP_ADDRESS", &address).env("CODER_ACCESS_URL", &url);
        command.env("CODER_PROVISIONER_TYPES", "echo").env("CODER_PROVISIONER_DAEMON_POLL_INTERVAL", "200ms");
        command.env("CODER_TELEMETRY_ENABLE", "false").env("CODER_UPDATE_CHECK", "false");
        command.env("CODER_DERP_SERVER_STUN_ADDRESSES", "disable");
        command.envs(settings.iter().copied());
        let mut process = Process::start("the Go server", command);
        process.wait_within("View the Web UI", SERVER_LIMIT);

        let mut setup = context.program(Program::Setup);
        setup.args(["-url", &url]).args(workspaces);
        let out = run_within(setup, b"", SERVER_LIMIT);
        assert!(out.status.success(), "the Go server cannot be filled: {}", text(&out.stderr));
        let made: Value = serde_json::from_slice(&out.stdout).unwrap();
        let text = |value: &Value| value.as_str().expect("the set-up program prints text").to_owned();
        let agent = |made: &Value| {
            let workspace = Workspace {
                name: text(&made["name"]),
                token: text(&made["agent_token"]),
                id: text(&made["agent_id"]).parse().unwrap(),
            };
            (workspace.name.clone(), workspace)
        };
        let workspaces = made["workspaces"].as_array().unwrap().iter().map(agent).collect();
        let (token, server) = (text(&made["session_token"]), Running::Go { process, dir });
        Self { side: Side::Go, url, token, workspaces, server, programs: Arc::clone(&context.programs) }
    }

    /// The folder of the server, its clients and agents.
    pub fn dir(&self) -> &Path {
        match &self.server {
            Running::Ours(server) => server.dir.path(),
            Running::Go { dir, .. } => dir.path(),
        }
    }

    /// The server's process.
    pub fn process(&mut self) -> &mut Process {
        match &mut self.server {
            Running::Ours(server) => &mut server.process,
            Running::Go { process, .. } => process,
        }
    }

    pub fn workspace(&self, name: &str) -> &Workspace {
        &self.workspaces[name]
    }

    fn binary(&self, side: Side) -> std::path::PathBuf {
        match side {
            Side::Ours => harness::coder(),
            Side::Go => self.programs.path(Program::Coder).unwrap_or_else(|why| panic!("{why}")),
        }
    }

    /// A command line of either side, logged in as the first user, in a network namespace or here.
    pub fn cli_in(&self, namespace: Option<&str>, side: Side, args: &[&str]) -> Command {
        let mut command = command_in(namespace, self.binary(side));
        clean(&mut command).args(args);
        command.env("CODER_URL", &self.url).env("CODER_SESSION_TOKEN", &self.token);
        command.env("CODER_CONFIG_DIR", self.dir().join(format!("config-{}", side.name()))).env("HOME", self.dir());
        command.env("CODER_NO_VERSION_WARNING", "true").env("CODER_NO_FEATURE_WARNING", "true");
        command
    }

    pub fn cli(&self, side: Side, args: &[&str]) -> Command {
        self.cli_in(None, side, args)
    }

    /// OpenSSH through `coder ssh --stdio` of either side; `flags` go to `coder`, `ssh_flags` to OpenSSH.
    pub fn ssh(&self, side: Side, flags: &[&str], ssh_flags: &[&str], workspace: &str, remote: &str) -> Command {
        let mut ssh = self.openssh(side, "ssh", flags, workspace);
        // Of several values of an option OpenSSH takes the first, but these are others than those of every program.
        ssh.args(ssh_flags).args([workspace, remote]);
        ssh
    }

    /// One of OpenSSH's programs, with the options that lead it into the workspace.
    pub fn openssh(&self, side: Side, program: &str, flags: &[&str], workspace: &str) -> Command {
        let proxy = format!("ProxyCommand={} ssh --stdio {} {workspace}", self.binary(side).display(), flags.join(" "));
        let mut command = Command::new(program);
        // The environment is that of the command line, for OpenSSH hands its own on.
        let cli = self.cli(side, &[]);
        clean(&mut command).args(["-F", "none", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", &proxy]);
        for (name, value) in cli.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command
    }

    /// Starts the agent of a workspace, of either side, and waits until it is connected.
    pub fn agent(&self, side: Side, workspace: &str) -> Process {
        self.agent_in(None, side, workspace, &[])
    }

    /// As [`Deployment::agent`], in a network namespace or with settings of its own.
    pub fn agent_in(&self, namespace: Option<&str>, side: Side, workspace: &str, settings: &[(&str, &str)]) -> Process {
        let mut command = command_in(namespace, self.binary(side));
        clean(&mut command).arg("agent");
        command.env("CODER_AGENT_URL", &self.url).env("CODER_AGENT_TOKEN", &self.workspace(workspace).token);
        command.env("HOME", self.dir()).current_dir(self.dir());
        let connected = match side {
            Side::Ours => {
                command.arg("-v");
                "connected to the coordinator"
            }
            Side::Go => {
                command.env("CODER_AGENT_LOG_DIR", self.dir()).env("CODER_AGENT_SCRIPT_DATA_DIR", self.dir());
                // Two agents on one machine would want the same ports.
                command.env("CODER_AGENT_PPROF_ADDRESS", "127.0.0.1:0").env("CODER_AGENT_DEBUG_ADDRESS", "127.0.0.1:0");
                command.env("CODER_AGENT_PROMETHEUS_ADDRESS", "127.0.0.1:0");
                "connected to coordination RPC"
            }
        };
        command.envs(settings.iter().copied());
        let mut agent = Process::start(&format!("the agent ({})", side.name()), command);
        agent.wait_within(connected, LIMIT);
        agent
    }

    /// Ends our server without a good-bye.
    pub fn kill_server(&mut self) {
        match &mut self.server {
            Running::Ours(server) => server.process.kill(),
            Running::Go { process, .. } => process.kill(),
        }
    }

    /// Starts our server again, on the same data and port.
    pub fn revive_our_server(&mut self, flags: &[&str]) {
        let Running::Ours(server) = &mut self.server else { panic!("only our server is started again") };
        let command = harness::coder::server_command(None, server.dir.path(), server.address(), flags);
        server.process = Process::start("the server", command);
        server.process.wait_for("admin-token");
    }
}

fn our_workspace(server: &harness::Server, name: &str) -> Workspace {
    let token = server.create(name);
    let list = harness::run(server.coder(&["list", "--output", "json"]), b"");
    let list: Value = serde_json::from_slice(&list.stdout).unwrap_or_default();
    let mut id = None;
    find_agent(&list, name, &mut id);
    let id = id.unwrap_or_else(|| panic!("the list holds no agent of {name}: {list}"));
    Workspace { name: name.to_owned(), token, id }
}

/// The agent's id in the list of workspaces.
fn find_agent(list: &Value, name: &str, id: &mut Option<uuid::Uuid>) {
    let workspace = list.as_array().into_iter().flatten().find(|w| w["name"] == name);
    let agents = workspace.and_then(|w| w["latest_build"]["resources"].as_array()).into_iter().flatten();
    *id = agents
        .flat_map(|resource| resource["agents"].as_array().into_iter().flatten())
        .find_map(|agent| agent["id"].as_str()?.parse().ok());
}
