//! The unary calls of clients and agents (`agent.md` §2–3, `coordination.md` §16–17).
//!
//! A Go agent ends its connection on the first error, so every call that one makes is answered, with nothing in it where
//! we keep nothing. Unknown calls get code 12.

use super::super::{
    access::Machine,
    app::App,
    resume,
    store::{Lifecycle, LogLine, StoreError},
    time::Stamp,
};
use crate::wire::coord::{
    agent::{self, ConnectionAction, LifecycleState, LogLevel},
    drpc::RpcError,
    tailnet,
};
use prost::Message;
use uuid::Uuid;

/// How often agents report their traffic.
const STATS_INTERVAL_SECONDS: i64 = 30;
/// What an agent is told about watching memory and volumes, none of which are named: a missing or zero interval crashes
/// Go agents.
const DATAPOINTS: i32 = 20;
const COLLECTION_SECONDS: i32 = 10;
/// Lines that are stored in one go: others want the store, too.
const MAX_LINES: usize = 10_000;
/// Most characters in our log of what an agent says of a session: its kind or where it came from, and why it ended.
const MAX_WORD: usize = 64;
const MAX_REASON: usize = 256;

type Reply = Result<Vec<u8>, RpcError>;

fn read<M: Message + Default>(body: &[u8]) -> Result<M, RpcError> {
    M::decode(body).map_err(|error| RpcError::plain(format!("bad request: {error}")))
}

fn failed(error: &StoreError) -> RpcError {
    tracing::error!(%error, "a call failed");
    RpcError::plain("an internal server error occurred")
}

/// Answers a call of a client.
pub(super) fn of_client(app: &App, peer: Uuid, path: &str, body: &[u8]) -> Reply {
    match path {
        tailnet::REFRESH_RESUME_TOKEN => {
            let (token, end) = app.resume().make(Stamp::now(), peer);
            let reply = tailnet::RefreshResumeTokenResponse {
                token,
                refresh_in: prost_types::Duration::try_from(resume::REFRESH).ok(),
                expires_at: Some(prost_types::Timestamp { seconds: end.seconds(), nanos: 0 }),
            };
            Ok(reply.encode_to_vec())
        }
        // Nobody reads telemetry here.
        tailnet::POST_TELEMETRY => read::<tailnet::TelemetryRequest>(body).map(|_| Vec::new()),
        unknown => Err(RpcError::unimplemented(unknown)),
    }
}

/// Answers a call of an agent that asked for API `version`.
pub(super) async fn of_agent(app: &App, machine: &Machine, version: &str, path: &str, body: &[u8]) -> Reply {
    match path {
        agent::GET_MANIFEST => Ok(manifest(app, machine).encode_to_vec()),
        agent::UPDATE_STARTUP => update_startup(app, machine, version, body).await,
        agent::UPDATE_LIFECYCLE => update_lifecycle(app, machine, body).await,
        agent::UPDATE_STATS => update_stats(app, machine, body).await,
        agent::BATCH_CREATE_LOGS => create_logs(app, machine, body).await,
        agent::GET_SERVICE_BANNER => Ok(agent::ServiceBanner::default().encode_to_vec()),
        agent::GET_ANNOUNCEMENT_BANNERS => Ok(agent::GetAnnouncementBannersResponse::default().encode_to_vec()),
        agent::GET_RESOURCES_MONITORING => {
            let config = agent::ResourcesConfig { num_datapoints: DATAPOINTS, collection_interval_seconds: COLLECTION_SECONDS };
            Ok(agent::ResourcesMonitoring { config: Some(config), ..Default::default() }.encode_to_vec())
        }
        agent::PUSH_RESOURCES_USAGE
        | agent::BATCH_UPDATE_METADATA
        | agent::BATCH_UPDATE_APP_HEALTHS
        | agent::SCRIPT_COMPLETED => Ok(Vec::new()),
        agent::REPORT_CONNECTION => report_connection(machine, body),
        unknown => Err(RpcError::unimplemented(unknown)),
    }
}

fn manifest(app: &App, machine: &Machine) -> agent::Manifest {
    let network = app.network();
    let mut manifest = agent::Manifest {
        agent_id: machine.agent.id.as_bytes().to_vec(),
        agent_name: machine.agent.name.clone(),
        workspace_id: machine.workspace.id.as_bytes().to_vec(),
        workspace_name: machine.workspace.name.clone(),
        owner_username: machine.workspace.owner_name.clone(),
        disable_direct_connections: network.block_direct,
        derp_force_websockets: network.force_websockets,
        derp_map: Some((&*app.map_for(&machine.workspace, app.relay_map())).into()),
        ..Default::default()
    };
    machine.agent.additions.add_to(&mut manifest, machine.agent.id);
    manifest
}

/// Whether a text is a version as Go's semver reads it: `vMAJOR[.MINOR[.PATCH[-PRE][+BUILD]]]`.
fn is_version(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('v') else { return false };
    let core = rest.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = core.split('.').collect();
    let numbers =
        parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) && (p.len() == 1 || !p.starts_with('0')));
    let tail = rest.get(core.len()..).unwrap_or_default();
    let clean = tail.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+.".contains(&b));
    numbers && parts.len() <= 3 && clean && (tail.is_empty() || parts.len() == 3) && text.len() <= 256
}

async fn update_startup(app: &App, machine: &Machine, api_version: &str, body: &[u8]) -> Reply {
    let startup = read::<agent::UpdateStartupRequest>(body)?.startup.unwrap_or_default();
    if !is_version(&startup.version) {
        return Err(RpcError::plain(format!("invalid agent semver version {:?}", startup.version)));
    }
    if startup.expanded_directory.len() > 4096 || startup.subsystems.len() > 16 {
        return Err(RpcError::plain("startup message too large"));
    }
    let (version, directory) = (&startup.version, &startup.expanded_directory);
    let done = app.store().agent_started(Stamp::now(), machine.agent.id, version, api_version, directory).await;
    done.map_err(|e| failed(&e))?;
    app.announce(machine.workspace.id);
    Ok(startup.encode_to_vec())
}

const fn lifecycle(state: LifecycleState) -> Option<Lifecycle> {
    Some(match state {
        LifecycleState::Unspecified => return None,
        LifecycleState::Created => Lifecycle::Created,
        LifecycleState::Starting => Lifecycle::Starting,
        LifecycleState::StartTimeout => Lifecycle::StartTimeout,
        LifecycleState::StartError => Lifecycle::StartError,
        LifecycleState::Ready => Lifecycle::Ready,
        LifecycleState::ShuttingDown => Lifecycle::ShuttingDown,
        LifecycleState::ShutdownTimeout => Lifecycle::ShutdownTimeout,
        LifecycleState::ShutdownError => Lifecycle::ShutdownError,
        LifecycleState::Off => Lifecycle::Off,
    })
}

async fn update_lifecycle(app: &App, machine: &Machine, body: &[u8]) -> Reply {
    let report = read::<agent::UpdateLifecycleRequest>(body)?.lifecycle.unwrap_or_default();
    let state = LifecycleState::try_from(report.state).ok().and_then(lifecycle);
    let state = state.ok_or_else(|| RpcError::plain(format!("unknown lifecycle state {}", report.state)))?;
    let now = Stamp::now();
    let at = report.changed_at.as_ref().and_then(|t| Stamp::from_proto(t.seconds, t.nanos)).unwrap_or(now);
    app.store().agent_lifecycle(now, machine.agent.id, state, at).await.map_err(|e| failed(&e))?;
    app.announce(machine.workspace.id);
    Ok(report.encode_to_vec())
}

async fn update_stats(app: &App, machine: &Machine, body: &[u8]) -> Reply {
    if let Some(stats) = read::<agent::UpdateStatsRequest>(body)?.stats
        && stats.connection_count > 0
    {
        let done = app.store().touch_workspace(Stamp::now(), machine.workspace.id).await;
        done.map_err(|e| failed(&e))?;
    }
    let interval = prost_types::Duration { seconds: STATS_INTERVAL_SECONDS, nanos: 0 };
    Ok(agent::UpdateStatsResponse { report_interval: Some(interval) }.encode_to_vec())
}

/// Sessions stand in the log alone.
fn report_connection(machine: &Machine, body: &[u8]) -> Reply {
    let session = read::<agent::ReportConnectionRequest>(body)?.connection.unwrap_or_default();
    let (workspace, owner) = (&machine.workspace.name, &machine.workspace.owner_name);
    let (app, ip) = (loggable(&session.app_name, MAX_WORD), loggable(&session.ip, MAX_WORD));
    match session.action() {
        ConnectionAction::Connect => tracing::info!(owner, workspace, app, ip, "a session began"),
        _ => {
            let reason = loggable(session.reason(), MAX_REASON);
            tracing::info!(owner, workspace, app, ip, status = session.status_code, reason, "a session ended");
        }
    }
    Ok(Vec::new())
}

/// An agent's text as it may stand in our log: cut, and nothing in it that moves a terminal's cursor or begins a line.
fn loggable(text: &str, most: usize) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(most).map(shown).collect()
}

async fn create_logs(app: &App, machine: &Machine, body: &[u8]) -> Reply {
    let batch = read::<agent::BatchCreateLogsRequest>(body)?;
    let source_id = Uuid::from_slice(&batch.log_source_id).map_err(|_| RpcError::plain("invalid log source id"))?;
    let now = Stamp::now();
    let lines = batch.logs.into_iter().map(|log| LogLine {
        id: 0,
        source_id,
        created_at: log.created_at.as_ref().and_then(|t| Stamp::from_proto(t.seconds, t.nanos)).unwrap_or(now),
        level: level(log.level).to_owned(),
        output: log.output,
    });
    let lines: Vec<_> = lines.collect();
    let mut fits = true;
    // None is left out without a word: the agent is told when its share is used up.
    for part in lines.chunks(MAX_LINES) {
        fits = fits && app.store().insert_logs(machine.agent.id, part).await.map_err(|e| failed(&e))?;
    }
    app.announce(machine.workspace.id);
    Ok(agent::BatchCreateLogsResponse { log_limit_exceeded: !fits }.encode_to_vec())
}

fn level(number: i32) -> &'static str {
    match LogLevel::try_from(number) {
        Ok(LogLevel::Trace) => "trace",
        Ok(LogLevel::Debug) => "debug",
        Ok(LogLevel::Warn) => "warn",
        Ok(LogLevel::Error) => "error",
        _ => "info",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_go_semver() {
        for good in ["v2.29.1", "v0.0.0-devel+abc", "v2", "v2.1", crate::VERSION] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "2.29.1", "v", "v2.", "v02.1.0", "v2.1-x", "v1.2.3.4", "v1.2.3-a b"] {
            assert!(!is_version(bad), "{bad}");
        }
    }
}
