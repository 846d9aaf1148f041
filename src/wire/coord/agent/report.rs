//! What an agent reports and asks (`agent.md` §3.2 and §3.3).
#![allow(missing_docs, reason = "fields carry the protocol's names; what is not obvious has a sentence")]

use super::manifest::MetadataResult;
use prost_types::{Duration, Timestamp};
use std::collections::BTreeMap;

/// The banner of agents before 2.1.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ServiceBanner {
    #[prost(bool, tag = "1")]
    pub enabled: bool,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(string, tag = "3")]
    pub background_color: String,
}

/// Traffic inside the tunnel since the last report.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stats {
    #[prost(btree_map = "string, int64", tag = "1")]
    pub connections_by_proto: BTreeMap<String, i64>,
    #[prost(int64, tag = "2")]
    pub connection_count: i64,
    /// −0.001 when nothing was measured.
    #[prost(double, tag = "3")]
    pub connection_median_latency_ms: f64,
    #[prost(int64, tag = "4")]
    pub rx_packets: i64,
    #[prost(int64, tag = "5")]
    pub rx_bytes: i64,
    #[prost(int64, tag = "6")]
    pub tx_packets: i64,
    #[prost(int64, tag = "7")]
    pub tx_bytes: i64,
    #[prost(int64, tag = "8")]
    pub session_count_vscode: i64,
    #[prost(int64, tag = "9")]
    pub session_count_jetbrains: i64,
    #[prost(int64, tag = "10")]
    pub session_count_reconnecting_pty: i64,
    #[prost(int64, tag = "11")]
    pub session_count_ssh: i64,
    #[prost(message, repeated, tag = "12")]
    pub metrics: Vec<Metric>,
    #[prost(btree_map = "string, int64", tag = "13")]
    pub session_counts: BTreeMap<String, i64>,
}

/// One metric of the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metric {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(enumeration = "MetricType", tag = "2")]
    pub r#type: i32,
    #[prost(double, tag = "3")]
    pub value: f64,
    #[prost(message, repeated, tag = "4")]
    pub labels: Vec<MetricLabel>,
}

/// A label of a metric.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MetricLabel {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Reports traffic; without `stats` it only asks for the interval.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateStatsRequest {
    #[prost(message, optional, tag = "1")]
    pub stats: Option<Stats>,
}

/// When to report next; must be above zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct UpdateStatsResponse {
    #[prost(message, optional, tag = "1")]
    pub report_interval: Option<Duration>,
}

/// A step in the agent's life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Lifecycle {
    #[prost(enumeration = "LifecycleState", tag = "1")]
    pub state: i32,
    #[prost(message, optional, tag = "2")]
    pub changed_at: Option<Timestamp>,
}

/// Reports one step; none is skipped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct UpdateLifecycleRequest {
    #[prost(message, optional, tag = "1")]
    pub lifecycle: Option<Lifecycle>,
}

/// Reports changed health.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BatchUpdateAppHealthRequest {
    #[prost(message, repeated, tag = "1")]
    pub updates: Vec<HealthUpdate>,
}

/// Health of one application.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct HealthUpdate {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(enumeration = "AppHealth", tag = "2")]
    pub health: i32,
}

/// What the agent tells of itself at the start. The version needs a leading `v`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Startup {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub expanded_directory: String,
    #[prost(enumeration = "Subsystem", repeated, tag = "3")]
    pub subsystems: Vec<i32>,
}

/// Reports the start.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct UpdateStartupRequest {
    #[prost(message, optional, tag = "1")]
    pub startup: Option<Startup>,
}

/// A metadata value under its key.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Metadata {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub result: Option<MetadataResult>,
}

/// Reports metadata. The field number is 2.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BatchUpdateMetadataRequest {
    #[prost(message, repeated, tag = "2")]
    pub metadata: Vec<Metadata>,
}

/// One line of log, valid UTF-8 without NUL.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Log {
    #[prost(message, optional, tag = "1")]
    pub created_at: Option<Timestamp>,
    #[prost(string, tag = "2")]
    pub output: String,
    #[prost(enumeration = "LogLevel", tag = "3")]
    pub level: i32,
}

/// Sends log lines of one source.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BatchCreateLogsRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub log_source_id: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub logs: Vec<Log>,
}

/// Whether to stop sending logs for good.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct BatchCreateLogsResponse {
    #[prost(bool, tag = "1")]
    pub log_limit_exceeded: bool,
}

/// The banners to show at login.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GetAnnouncementBannersResponse {
    #[prost(message, repeated, tag = "1")]
    pub announcement_banners: Vec<BannerConfig>,
}

/// One banner.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BannerConfig {
    #[prost(bool, tag = "1")]
    pub enabled: bool,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(string, tag = "3")]
    pub background_color: String,
}

/// Reports that a script ended.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ScriptCompletedRequest {
    #[prost(message, optional, tag = "1")]
    pub timing: Option<Timing>,
}

/// When and how a script ran.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Timing {
    #[prost(bytes = "vec", tag = "1")]
    pub script_id: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub start: Option<Timestamp>,
    #[prost(message, optional, tag = "3")]
    pub end: Option<Timestamp>,
    #[prost(int32, tag = "4")]
    pub exit_code: i32,
    #[prost(enumeration = "TimingStage", tag = "5")]
    pub stage: i32,
    #[prost(enumeration = "TimingStatus", tag = "6")]
    pub status: i32,
}

/// What to measure. A Go agent crashes without `config` or with zeros in it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ResourcesMonitoring {
    #[prost(message, optional, tag = "1")]
    pub config: Option<ResourcesConfig>,
    #[prost(message, optional, tag = "2")]
    pub memory: Option<ResourcesMemory>,
    #[prost(message, repeated, tag = "3")]
    pub volumes: Vec<ResourcesVolume>,
}

/// How often to measure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ResourcesConfig {
    #[prost(int32, tag = "1")]
    pub num_datapoints: i32,
    #[prost(int32, tag = "2")]
    pub collection_interval_seconds: i32,
}

/// Whether to measure memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ResourcesMemory {
    #[prost(bool, tag = "1")]
    pub enabled: bool,
}

/// A volume to measure.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ResourcesVolume {
    #[prost(bool, tag = "1")]
    pub enabled: bool,
    #[prost(string, tag = "2")]
    pub path: String,
}

/// Reports measured usage.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct PushResourcesUsageRequest {
    #[prost(message, repeated, tag = "1")]
    pub datapoints: Vec<Datapoint>,
}

/// One measurement.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Datapoint {
    #[prost(message, optional, tag = "1")]
    pub collected_at: Option<Timestamp>,
    #[prost(message, optional, tag = "2")]
    pub memory: Option<MemoryUsage>,
    #[prost(message, repeated, tag = "3")]
    pub volumes: Vec<VolumeUsage>,
}

/// Memory in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct MemoryUsage {
    #[prost(int64, tag = "1")]
    pub used: i64,
    #[prost(int64, tag = "2")]
    pub total: i64,
}

/// A volume's use in bytes.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VolumeUsage {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(int64, tag = "2")]
    pub used: i64,
    #[prost(int64, tag = "3")]
    pub total: i64,
}

/// The beginning or end of one session.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Connection {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(enumeration = "ConnectionAction", tag = "2")]
    pub action: i32,
    #[prost(enumeration = "ConnectionType", tag = "3")]
    pub r#type: i32,
    #[prost(message, optional, tag = "4")]
    pub timestamp: Option<Timestamp>,
    /// Without a port.
    #[prost(string, tag = "5")]
    pub ip: String,
    #[prost(int32, tag = "6")]
    pub status_code: i32,
    #[prost(string, optional, tag = "7")]
    pub reason: Option<String>,
    #[prost(string, tag = "8")]
    pub app_name: String,
}

/// Reports a session's beginning or end.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ReportConnectionRequest {
    #[prost(message, optional, tag = "1")]
    pub connection: Option<Connection>,
}

/// Health of an application in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AppHealth {
    Unspecified = 0,
    Disabled = 1,
    Initializing = 2,
    Healthy = 3,
    Unhealthy = 4,
}

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MetricType {
    Unspecified = 0,
    Counter = 1,
    Gauge = 2,
}

/// Where the agent stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum LifecycleState {
    Unspecified = 0,
    Created = 1,
    Starting = 2,
    StartTimeout = 3,
    StartError = 4,
    Ready = 5,
    ShuttingDown = 6,
    ShutdownTimeout = 7,
    ShutdownError = 8,
    Off = 9,
}

/// What wraps the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Subsystem {
    Unspecified = 0,
    Envbox = 1,
    Envbuilder = 2,
    Exectrace = 3,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum LogLevel {
    Unspecified = 0,
    Trace = 1,
    Debug = 2,
    Info = 3,
    Warn = 4,
    Error = 5,
}

/// When a script is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TimingStage {
    Start = 0,
    Stop = 1,
    Cron = 2,
}

/// How a script ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TimingStatus {
    Ok = 0,
    ExitFailure = 1,
    TimedOut = 2,
    PipesLeftOpen = 3,
}

/// Beginning or end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConnectionAction {
    Unspecified = 0,
    Connect = 1,
    Disconnect = 2,
}

/// Kind of session, deprecated from API 2.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConnectionType {
    Unspecified = 0,
    Ssh = 1,
    Vscode = 2,
    Jetbrains = 3,
    ReconnectingPty = 4,
}
