//! Messages and paths of `coder.agent.v2`, all unary (`agent.md` §2 and §3).
//!
//! Requests and responses without fields are `()`. Sub-agents, boundary logs, app status and context state are not here:
//! the server answers those calls with [`super::drpc::UNIMPLEMENTED`], and Go agents accept that.

mod manifest;
mod report;

pub use manifest::*;
pub use report::*;

/// What every path of the agent service begins with.
pub const SERVICE: &str = "/coder.agent.v2.Agent/";
/// `()` → [`Manifest`].
pub const GET_MANIFEST: &str = "/coder.agent.v2.Agent/GetManifest";
/// `()` → [`ServiceBanner`].
pub const GET_SERVICE_BANNER: &str = "/coder.agent.v2.Agent/GetServiceBanner";
/// [`UpdateStatsRequest`] → [`UpdateStatsResponse`].
pub const UPDATE_STATS: &str = "/coder.agent.v2.Agent/UpdateStats";
/// [`UpdateLifecycleRequest`] → [`Lifecycle`].
pub const UPDATE_LIFECYCLE: &str = "/coder.agent.v2.Agent/UpdateLifecycle";
/// [`BatchUpdateAppHealthRequest`] → `()`.
pub const BATCH_UPDATE_APP_HEALTHS: &str = "/coder.agent.v2.Agent/BatchUpdateAppHealths";
/// [`UpdateStartupRequest`] → [`Startup`].
pub const UPDATE_STARTUP: &str = "/coder.agent.v2.Agent/UpdateStartup";
/// [`BatchUpdateMetadataRequest`] → `()`.
pub const BATCH_UPDATE_METADATA: &str = "/coder.agent.v2.Agent/BatchUpdateMetadata";
/// [`BatchCreateLogsRequest`] → [`BatchCreateLogsResponse`].
pub const BATCH_CREATE_LOGS: &str = "/coder.agent.v2.Agent/BatchCreateLogs";
/// `()` → [`GetAnnouncementBannersResponse`].
pub const GET_ANNOUNCEMENT_BANNERS: &str = "/coder.agent.v2.Agent/GetAnnouncementBanners";
/// [`ScriptCompletedRequest`] → `()`.
pub const SCRIPT_COMPLETED: &str = "/coder.agent.v2.Agent/ScriptCompleted";
/// `()` → [`ResourcesMonitoring`].
pub const GET_RESOURCES_MONITORING: &str = "/coder.agent.v2.Agent/GetResourcesMonitoringConfiguration";
/// [`PushResourcesUsageRequest`] → `()`.
pub const PUSH_RESOURCES_USAGE: &str = "/coder.agent.v2.Agent/PushResourcesMonitoringUsage";
/// [`ReportConnectionRequest`] → `()`.
pub const REPORT_CONNECTION: &str = "/coder.agent.v2.Agent/ReportConnection";
