//! The fields of the server's answers that we use.

use crate::{driver::http::Token, wire::derp::RelayMap};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A user.
#[derive(Debug, Clone, Deserialize)]
pub struct User {
    /// Id
    pub id: Uuid,
    /// Login name
    pub username: String,
    /// The organizations it belongs to
    #[serde(default, deserialize_with = "null_as_default")]
    pub organization_ids: Vec<Uuid>,
    /// What it is in the deployment
    #[serde(default, deserialize_with = "null_as_default")]
    pub roles: Vec<Role>,
}

/// A role of a user.
#[derive(Debug, Clone, Deserialize)]
pub struct Role {
    /// What programs call it
    pub name: String,
    /// What people call it
    #[serde(default)]
    pub display_name: String,
    /// The organization it counts in; empty or missing for the whole deployment
    #[serde(default)]
    pub organization_id: Option<String>,
}

/// A workspace.
#[derive(Debug, Clone, Deserialize)]
pub struct Workspace {
    /// Id
    pub id: Uuid,
    /// Name, unique for its owner
    pub name: String,
    /// Owner's login name
    pub owner_name: String,
    /// The template it was made from
    #[serde(default)]
    pub template_name: String,
    /// The version of the template that is in use now
    #[serde(default)]
    pub template_active_version_id: Option<Uuid>,
    /// The newest build
    pub latest_build: Build,
    /// Whether its agents are well
    #[serde(default)]
    pub health: Health,
    /// Whether a newer version of the template exists
    #[serde(default)]
    pub outdated: bool,
}

impl Workspace {
    /// All its agents, sub-agents left out.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.latest_build.resources.iter().flat_map(|r| &r.agents).filter(|a| a.parent_id.is_none())
    }
}

/// Health of a workspace.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Health {
    /// No agent fails
    #[serde(default)]
    pub healthy: bool,
}

/// One build of a workspace.
#[derive(Debug, Clone, Deserialize)]
pub struct Build {
    /// Id
    pub id: Uuid,
    /// Counts the workspace's builds
    #[serde(default)]
    pub build_number: i64,
    /// How far it is
    #[serde(default)]
    pub job: Job,
    /// When it was made, RFC 3339
    pub created_at: String,
    /// What it does
    pub transition: Transition,
    /// `running`, `stopped`, `failed` …
    pub status: String,
    /// Version of the template
    #[serde(default)]
    pub template_version_name: String,
    /// What it made
    #[serde(default, deserialize_with = "null_as_default")]
    pub resources: Vec<Resource>,
}

/// How far a build is.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Job {
    /// `pending`, `running`, `succeeded`, `failed` …
    #[serde(default)]
    pub status: String,
    /// Why it failed
    #[serde(default)]
    pub error: String,
    /// When it began, RFC 3339
    #[serde(default)]
    pub started_at: Option<String>,
    /// When it ended, RFC 3339
    #[serde(default)]
    pub completed_at: Option<String>,
}

impl Job {
    /// Whether it has ended, well or not.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.completed_at.is_some()
    }
}

/// A line of a build's log.
#[derive(Debug, Clone, Deserialize)]
pub struct BuildLine {
    /// Rising
    pub id: i64,
    /// When it was written, RFC 3339
    #[serde(default)]
    pub created_at: String,
    /// What the build is doing
    #[serde(default)]
    pub stage: String,
    /// The text; empty for the beginning of a stage
    #[serde(default)]
    pub output: String,
}

/// What a build does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transition {
    /// Starts the workspace
    Start,
    /// Stops it
    Stop,
    /// Deletes it
    Delete,
    /// Something newer than we are
    #[serde(other)]
    Unknown,
}

impl Transition {
    /// The API's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Unknown => "unknown",
        }
    }
}

/// A resource of a build.
#[derive(Debug, Clone, Deserialize)]
pub struct Resource {
    /// What kind of thing it is
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Its name in the template
    #[serde(default)]
    pub name: String,
    /// Not for people
    #[serde(default)]
    pub hide: bool,
    /// The agents in it
    #[serde(default, deserialize_with = "null_as_default")]
    pub agents: Vec<Agent>,
}

/// A workspace agent.
#[derive(Debug, Clone, Deserialize)]
pub struct Agent {
    /// Id: the source of its overlay addresses
    pub id: Uuid,
    /// Set for a sub-agent
    #[serde(default)]
    pub parent_id: Option<Uuid>,
    /// Name
    pub name: String,
    /// Whether the server hears from it
    pub status: AgentStatus,
    /// How far its start-up is
    pub lifecycle_state: Lifecycle,
    /// The system it runs on
    #[serde(default)]
    pub operating_system: String,
    /// The processor it runs on
    #[serde(default)]
    pub architecture: String,
    /// Its version; empty before it first connected
    #[serde(default)]
    pub version: String,
    /// When the workspace got it, RFC 3339
    #[serde(default)]
    pub created_at: String,
    /// When it was last there, unless it is
    #[serde(default)]
    pub disconnected_at: Option<String>,
    /// Whether it is well
    #[serde(default)]
    pub health: AgentHealth,
    /// What it runs at its start and end
    #[serde(default, deserialize_with = "null_as_default")]
    pub scripts: Vec<Script>,
}

/// Whether an agent is well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct AgentHealth {
    /// It is
    #[serde(default)]
    pub healthy: bool,
    /// Why not
    #[serde(default)]
    pub reason: String,
}

/// A script of an agent.
#[derive(Debug, Clone, Deserialize)]
pub struct Script {
    /// Users shall wait for its end before they log in
    #[serde(default)]
    pub start_blocks_login: bool,
}

/// Whether the server hears from an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentStatus {
    /// Never connected yet
    Connecting,
    /// Connected
    Connected,
    /// Was connected
    Disconnected,
    /// Did not connect in time
    Timeout,
    /// Something newer than we are
    #[serde(other)]
    Unknown,
}

/// How far an agent's start-up is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// Not started
    Created,
    /// Start-up scripts run
    Starting,
    /// They take too long
    StartTimeout,
    /// One failed
    StartError,
    /// Ready
    Ready,
    /// Stop scripts run
    ShuttingDown,
    /// They take too long
    ShutdownTimeout,
    /// One failed
    ShutdownError,
    /// Stopped
    Off,
    /// Something newer than we are
    #[serde(other)]
    Unknown,
}

/// What is needed to reach an agent.
#[derive(Debug, Clone, Deserialize)]
pub struct Connection {
    /// The relays
    pub derp_map: RelayMap,
    /// Only WebSocket passes the way to the relays
    #[serde(default)]
    pub derp_force_websockets: bool,
    /// The deployment forbids direct paths
    #[serde(default)]
    pub disable_direct_connections: bool,
}

/// What a deployment wants in its users' SSH configurations.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SshConfig {
    /// In front of a workspace's name
    #[serde(default)]
    pub hostname_prefix: String,
    /// Behind a workspace's name and a dot; empty on old servers
    #[serde(default)]
    pub hostname_suffix: String,
    /// Options of OpenSSH by their names
    #[serde(default, deserialize_with = "null_as_default")]
    pub ssh_config_options: BTreeMap<String, String>,
}

/// A workspace that was just made.
#[derive(Debug, Deserialize)]
pub struct NewWorkspace {
    /// The workspace
    #[serde(flatten)]
    pub workspace: Workspace,
    /// Where its agent reaches the server, if not at the access URL
    #[serde(default)]
    pub agent_url: Option<String>,
    /// Its agent's token, shown this once
    #[serde(deserialize_with = "token")]
    pub agent_token: Token,
}

/// A user who was just made.
#[derive(Debug, Deserialize)]
pub struct NewUser {
    /// The user
    #[serde(flatten)]
    pub user: User,
    /// A session token, shown this once
    #[serde(deserialize_with = "token")]
    pub session_token: Token,
}

fn token<'de, D: Deserializer<'de>>(from: D) -> Result<Token, D::Error> {
    String::deserialize(from).map(Token::new)
}

/// Go writes an empty list as null.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body<T: serde::de::DeserializeOwned>(vector: &str) -> T {
        let vector: serde_json::Value = serde_json::from_str(vector).unwrap();
        serde_json::from_value(vector["body"].clone()).unwrap()
    }

    #[test]
    fn the_answers_of_a_go_server_are_read() {
        let workspace: Workspace = body(include_str!("../../tests/vectors/http/workspace_by_owner_and_name.json"));
        assert_eq!((workspace.name.as_str(), workspace.owner_name.as_str()), ("dev", "admin"));
        assert_eq!(workspace.agents().count(), 1);
        assert_eq!(workspace.latest_build.transition, Transition::Start);
        let connection: Connection = body(include_str!("../../tests/vectors/http/workspace_agent_connection.json"));
        assert!(!connection.derp_force_websockets && !connection.disable_direct_connections);
        let ssh: SshConfig = body(include_str!("../../tests/vectors/http/deployment_ssh_options.json"));
        assert_eq!((ssh.hostname_prefix.as_str(), ssh.hostname_suffix.as_str()), ("acme.", "acme"));
        assert_eq!(ssh.ssh_config_options["LogLevel"], "DEBUG");
        let user: User = body(include_str!("../../tests/vectors/http/users_me.json"));
        assert_eq!(user.username, "admin");
    }

    #[test]
    fn a_newer_state_of_an_agent_is_no_error() {
        assert_eq!(serde_json::from_str::<AgentStatus>("\"teleported\"").unwrap(), AgentStatus::Unknown);
        assert_eq!(serde_json::from_str::<Lifecycle>("\"shutdown_error\"").unwrap(), Lifecycle::ShutdownError);
    }
}
