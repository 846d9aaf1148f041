//! What the server tells an agent: `Manifest` and its parts (`agent.md` §3.1).
#![allow(missing_docs, reason = "fields carry the protocol's names; what is not obvious has a sentence")]

use super::super::tailnet;
use prost_types::{Duration, Timestamp};
use std::{collections::BTreeMap, fmt};

/// Everything an agent needs to know (`agent.md` §3.1). Its `Debug` leaves out environment, scripts and secrets.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct Manifest {
    /// 16 raw bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub agent_id: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub git_auth_configs: u32,
    #[prost(btree_map = "string, string", tag = "3")]
    pub environment_variables: BTreeMap<String, String>,
    #[prost(string, tag = "4")]
    pub directory: String,
    #[prost(string, tag = "5")]
    pub vs_code_port_proxy_uri: String,
    #[prost(string, tag = "6")]
    pub motd_path: String,
    #[prost(bool, tag = "7")]
    pub disable_direct_connections: bool,
    #[prost(bool, tag = "8")]
    pub derp_force_websockets: bool,
    /// With `home_params` present.
    #[prost(message, optional, tag = "9")]
    pub derp_map: Option<tailnet::DerpMap>,
    #[prost(message, repeated, tag = "10")]
    pub scripts: Vec<Script>,
    #[prost(message, repeated, tag = "11")]
    pub apps: Vec<WorkspaceApp>,
    #[prost(message, repeated, tag = "12")]
    pub metadata: Vec<MetadataDescription>,
    #[prost(string, tag = "13")]
    pub owner_username: String,
    #[prost(bytes = "vec", tag = "14")]
    pub workspace_id: Vec<u8>,
    #[prost(string, tag = "15")]
    pub agent_name: String,
    #[prost(string, tag = "16")]
    pub workspace_name: String,
    #[prost(message, repeated, tag = "17")]
    pub devcontainers: Vec<Devcontainer>,
    /// Set for sub-agents only; absent otherwise.
    #[prost(bytes = "vec", optional, tag = "18")]
    pub parent_id: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "19")]
    pub secrets: Vec<WorkspaceSecret>,
}

/// A secret for environment or file. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
#[prost(skip_debug)]
pub struct WorkspaceSecret {
    #[prost(string, tag = "1")]
    pub env_name: String,
    #[prost(string, tag = "2")]
    pub file_path: String,
    #[prost(bytes = "vec", tag = "3")]
    pub value: Vec<u8>,
}

/// A dev container of the workspace.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Devcontainer {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(string, tag = "2")]
    pub workspace_folder: String,
    #[prost(string, tag = "3")]
    pub config_path: String,
    #[prost(string, tag = "4")]
    pub name: String,
    #[prost(bytes = "vec", optional, tag = "5")]
    pub subagent_id: Option<Vec<u8>>,
}

/// A metadata script.
///
/// The Go implementation writes "N seconds" as N **nanoseconds** in `interval` and `timeout`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MetadataDescription {
    #[prost(string, tag = "1")]
    pub display_name: String,
    #[prost(string, tag = "2")]
    pub key: String,
    #[prost(string, tag = "3")]
    pub script: String,
    #[prost(message, optional, tag = "4")]
    pub interval: Option<Duration>,
    #[prost(message, optional, tag = "5")]
    pub timeout: Option<Duration>,
}

/// A value that a metadata script gave.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MetadataResult {
    #[prost(message, optional, tag = "1")]
    pub collected_at: Option<Timestamp>,
    #[prost(int64, tag = "2")]
    pub age: i64,
    #[prost(string, tag = "3")]
    pub value: String,
    #[prost(string, tag = "4")]
    pub error: String,
}

/// A metadata item with its value.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WorkspaceAgentMetadata {
    #[prost(message, optional, tag = "1")]
    pub result: Option<MetadataResult>,
    #[prost(message, optional, tag = "2")]
    pub description: Option<MetadataDescription>,
}

/// A script to run on start, stop or by the clock.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Script {
    #[prost(bytes = "vec", tag = "1")]
    pub log_source_id: Vec<u8>,
    #[prost(string, tag = "2")]
    pub log_path: String,
    #[prost(string, tag = "3")]
    pub script: String,
    #[prost(string, tag = "4")]
    pub cron: String,
    #[prost(bool, tag = "5")]
    pub run_on_start: bool,
    #[prost(bool, tag = "6")]
    pub run_on_stop: bool,
    #[prost(bool, tag = "7")]
    pub start_blocks_login: bool,
    #[prost(message, optional, tag = "8")]
    pub timeout: Option<Duration>,
    #[prost(string, tag = "9")]
    pub display_name: String,
    #[prost(bytes = "vec", tag = "10")]
    pub id: Vec<u8>,
}

/// How an application's health is found.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Healthcheck {
    #[prost(string, tag = "1")]
    pub url: String,
    #[prost(message, optional, tag = "2")]
    pub interval: Option<Duration>,
    #[prost(int32, tag = "3")]
    pub threshold: i32,
}

/// An application in the workspace. A Go agent wants sharing level, health and healthcheck set.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WorkspaceApp {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(string, tag = "2")]
    pub url: String,
    #[prost(bool, tag = "3")]
    pub external: bool,
    #[prost(string, tag = "4")]
    pub slug: String,
    #[prost(string, tag = "5")]
    pub display_name: String,
    #[prost(string, tag = "6")]
    pub command: String,
    #[prost(string, tag = "7")]
    pub icon: String,
    #[prost(bool, tag = "8")]
    pub subdomain: bool,
    #[prost(string, tag = "9")]
    pub subdomain_name: String,
    #[prost(enumeration = "SharingLevel", tag = "10")]
    pub sharing_level: i32,
    #[prost(message, optional, tag = "11")]
    pub healthcheck: Option<Healthcheck>,
    #[prost(enumeration = "WorkspaceAppHealth", tag = "12")]
    pub health: i32,
    #[prost(bool, tag = "13")]
    pub hidden: bool,
}

/// Who may open an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SharingLevel {
    Unspecified = 0,
    Owner = 1,
    Authenticated = 2,
    Public = 3,
    Organization = 4,
}

/// Health of an application in the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WorkspaceAppHealth {
    Unspecified = 0,
    Disabled = 1,
    Initializing = 2,
    Healthy = 3,
    Unhealthy = 4,
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest")
            .field("agent_id", &self.agent_id)
            .field("agent_name", &self.agent_name)
            .field("workspace_id", &self.workspace_id)
            .field("workspace_name", &self.workspace_name)
            .field("owner_username", &self.owner_username)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for WorkspaceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkspaceSecret(..)")
    }
}
