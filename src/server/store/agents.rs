//! Agents: who they are, whether they are there, what they said.

use super::{Result, Store, Workspace, maybe_stamp, stamp};
use crate::server::{manifest::Additions, time::Stamp, token::AgentToken};
use sqlx::{FromRow, Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

/// All the log bytes that one process of an agent may store (`agent.md` §3.3).
const MAX_LOG_BYTES: i64 = 1 << 20;
/// Most log lines of a process: a line costs memory beside its text.
const MAX_LOG_LINES: i64 = 1 << 14;

/// Where an agent stands in its life (`agent.md` §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    Created,
    Starting,
    StartTimeout,
    StartError,
    Ready,
    ShuttingDown,
    ShutdownTimeout,
    ShutdownError,
    Off,
}

impl Lifecycle {
    const ALL: [Self; 9] = [
        Self::Created,
        Self::Starting,
        Self::StartTimeout,
        Self::StartError,
        Self::Ready,
        Self::ShuttingDown,
        Self::ShutdownTimeout,
        Self::ShutdownError,
        Self::Off,
    ];

    /// The API's and the store's word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::StartTimeout => "start_timeout",
            Self::StartError => "start_error",
            Self::Ready => "ready",
            Self::ShuttingDown => "shutting_down",
            Self::ShutdownTimeout => "shutdown_timeout",
            Self::ShutdownError => "shutdown_error",
            Self::Off => "off",
        }
    }
}

/// One agent.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) id: Uuid,
    pub(crate) workspace_id: Uuid,
    pub(crate) name: String,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) version: String,
    pub(crate) api_version: String,
    pub(crate) expanded_directory: String,
    pub(crate) created_at: Stamp,
    pub(crate) updated_at: Stamp,
    pub(crate) first_connected_at: Option<Stamp>,
    pub(crate) last_connected_at: Option<Stamp>,
    pub(crate) disconnected_at: Option<Stamp>,
    pub(crate) started_at: Option<Stamp>,
    pub(crate) ready_at: Option<Stamp>,
    pub(crate) logs_bytes: i64,
    pub(crate) logs_overflowed: bool,
    /// What its workspace adds to its manifest.
    pub(crate) additions: Additions,
}

impl FromRow<'_, SqliteRow> for Agent {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let word: String = row.try_get("lifecycle")?;
        let unknown = || sqlx::Error::Decode(format!("an agent with the lifecycle {word:?}").into());
        let additions: String = row.try_get("additions")?;
        Ok(Self {
            id: row.try_get("id")?,
            workspace_id: row.try_get("workspace_id")?,
            name: row.try_get("name")?,
            lifecycle: Lifecycle::ALL.into_iter().find(|l| l.as_str() == word).ok_or_else(unknown)?,
            version: row.try_get("version")?,
            api_version: row.try_get("api_version")?,
            expanded_directory: row.try_get("expanded_directory")?,
            created_at: stamp(row, "created_at")?,
            updated_at: stamp(row, "updated_at")?,
            first_connected_at: maybe_stamp(row, "first_connected_at")?,
            last_connected_at: maybe_stamp(row, "last_connected_at")?,
            disconnected_at: maybe_stamp(row, "disconnected_at")?,
            started_at: maybe_stamp(row, "started_at")?,
            ready_at: maybe_stamp(row, "ready_at")?,
            logs_bytes: row.try_get("logs_bytes")?,
            logs_overflowed: row.try_get("logs_overflowed")?,
            additions: serde_json::from_str(&additions).map_err(|e| sqlx::Error::Decode(e.into()))?,
        })
    }
}

/// One line of an agent's log.
#[derive(Debug, Clone)]
pub(crate) struct LogLine {
    /// Rising; 0 before it is stored.
    pub(crate) id: i64,
    pub(crate) source_id: Uuid,
    pub(crate) created_at: Stamp,
    pub(crate) level: String,
    pub(crate) output: String,
}

impl FromRow<'_, SqliteRow> for LogLine {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            source_id: row.try_get("source_id")?,
            created_at: stamp(row, "created_at")?,
            level: row.try_get("level")?,
            output: row.try_get("output")?,
        })
    }
}

impl Store {
    /// An agent by id, if its workspace belongs to `owner` and lives.
    pub(crate) async fn agent(&self, owner: Uuid, id: Uuid) -> Result<Agent> {
        let row = sqlx::query_as(
            "SELECT a.* FROM agents a JOIN workspaces w ON w.id = a.workspace_id
             WHERE a.id = $2 AND w.owner_id = $1 AND w.deleted = 0",
        );
        Ok(row.bind(owner).bind(id).fetch_one(&self.pool).await?)
    }

    /// The agent that owns `token` and its workspace, if that is started.
    pub(crate) async fn agent_by_token(&self, token: &AgentToken) -> Result<Option<(Agent, Workspace)>> {
        let hash = token.hash();
        let row = sqlx::query("SELECT * FROM agents WHERE token_hash = $1").bind(hash.as_bytes());
        let Some(row) = row.fetch_optional(&self.pool).await? else { return Ok(None) };
        // The look-up went through an index; what decides is the comparison in constant time.
        if !hash.matches(row.try_get("token_hash")?) {
            return Ok(None);
        }
        let agent = Agent::from_row(&row)?;
        let workspace: Workspace = sqlx::query_as(
            "SELECT w.*, u.username AS owner_name FROM workspaces w JOIN users u ON u.id = w.owner_id WHERE w.id = $1",
        )
        .bind(agent.workspace_id)
        .fetch_one(&self.pool)
        .await?;
        Ok(self.is_started(workspace.id).await?.then_some((agent, workspace)))
    }

    /// Whether agents of a workspace may be connected: it lives, and a start is its newest build, commands or not.
    pub(crate) async fn is_started(&self, workspace: Uuid) -> Result<bool> {
        let row = sqlx::query(
            "SELECT 1 FROM workspaces w WHERE w.id = $1 AND w.deleted = 0 AND 'start' =
             (SELECT transition FROM builds WHERE workspace_id = w.id ORDER BY number DESC LIMIT 1)",
        );
        Ok(row.bind(workspace).fetch_optional(&self.pool).await?.is_some())
    }

    /// Notes that an agent has connected, or is still there.
    pub(crate) async fn agent_connected(&self, now: Stamp, id: Uuid) -> Result<()> {
        let done = sqlx::query(
            "UPDATE agents SET first_connected_at = coalesce(first_connected_at, $2), last_connected_at = $2,
                               disconnected_at = NULL, updated_at = $2 WHERE id = $1",
        );
        done.bind(id).bind(now.micros()).execute(&self.pool).await?;
        Ok(())
    }

    /// Notes that an agent has gone.
    pub(crate) async fn agent_disconnected(&self, now: Stamp, id: Uuid) -> Result<()> {
        let done = sqlx::query("UPDATE agents SET disconnected_at = $2, updated_at = $2 WHERE id = $1");
        done.bind(id).bind(now.micros()).execute(&self.pool).await?;
        Ok(())
    }

    /// Nobody is connected when a server starts, whatever the last one wrote before it died.
    pub(super) async fn end_stale_connections(&self, now: Stamp) -> Result<()> {
        let done = sqlx::query(
            "UPDATE agents SET disconnected_at = $1 WHERE first_connected_at IS NOT NULL AND disconnected_at IS NULL",
        );
        done.bind(now.micros()).execute(&self.pool).await?;
        Ok(())
    }

    /// Notes what an agent tells of itself at its start.
    pub(crate) async fn agent_started(
        &self,
        now: Stamp,
        id: Uuid,
        version: &str,
        api_version: &str,
        directory: &str,
    ) -> Result<()> {
        let done = sqlx::query(
            "UPDATE agents SET version = $2, api_version = $3, expanded_directory = $4, updated_at = $5 WHERE id = $1",
        );
        done.bind(id).bind(version).bind(api_version).bind(directory).bind(now.micros()).execute(&self.pool).await?;
        Ok(())
    }

    /// Notes a step in an agent's life, which happened at `at`. With the start of another process the log begins anew.
    pub(crate) async fn agent_lifecycle(&self, now: Stamp, id: Uuid, state: Lifecycle, at: Stamp) -> Result<()> {
        // A second start begins anew; what follows a start keeps it.
        let times = match state {
            Lifecycle::Starting => "started_at = $4, ready_at = NULL",
            Lifecycle::Ready | Lifecycle::StartTimeout | Lifecycle::StartError => {
                "started_at = coalesce(started_at, $4), ready_at = $4"
            }
            _ => "started_at = started_at",
        };
        let sql = format!("UPDATE agents SET lifecycle = $2, updated_at = $3, {times} WHERE id = $1");
        let mut turn = self.turn().await?;
        if state == Lifecycle::Starting {
            begin_process(&mut turn, id, at).await?;
        }
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .bind(state.as_str())
            .bind(now.micros())
            .bind(at.micros())
            .execute(&mut *turn)
            .await?;
        turn.commit().await
    }

    /// Stores log lines, all or none; false once they are beyond the process's share, and nothing more is taken from then on:
    /// a smaller batch that still fits would hide a hole.
    pub(crate) async fn insert_logs(&self, id: Uuid, lines: &[LogLine]) -> Result<bool> {
        let bytes: usize = lines.iter().map(|l| l.output.len()).sum();
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut turn = self.turn().await?;
        let row = sqlx::query("SELECT logs_bytes, logs_overflowed FROM agents WHERE id = $1").bind(id);
        let row = row.fetch_one(&mut *turn).await?;
        let (used, full): (i64, bool) = (row.try_get("logs_bytes")?, row.try_get("logs_overflowed")?);
        let row = sqlx::query("SELECT count(*) AS n FROM agent_logs WHERE agent_id = $1").bind(id).fetch_one(&mut *turn).await?;
        let stored: i64 = row.try_get("n")?;
        let more = i64::try_from(lines.len()).unwrap_or(i64::MAX);
        let fits = !full && used.saturating_add(bytes) <= MAX_LOG_BYTES && stored.saturating_add(more) <= MAX_LOG_LINES;
        if fits {
            for line in lines {
                sqlx::query(
                    "INSERT INTO agent_logs (agent_id, source_id, created_at, level, output) VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(id)
                .bind(line.source_id)
                .bind(line.created_at.micros())
                .bind(&line.level)
                .bind(&line.output)
                .execute(&mut *turn)
                .await?;
            }
        }
        sqlx::query("UPDATE agents SET logs_bytes = logs_bytes + $2, logs_overflowed = $3 WHERE id = $1")
            .bind(id)
            .bind(if fits { bytes } else { 0 })
            .bind(!fits)
            .execute(&mut *turn)
            .await?;
        turn.commit().await?;
        Ok(fits)
    }

    /// The log lines of an agent after line `after`: [`MAX_LOG_LINES`] and [`MAX_LOG_BYTES`] at most.
    pub(crate) async fn logs(&self, id: Uuid, after: i64) -> Result<Vec<LogLine>> {
        let rows = sqlx::query_as("SELECT * FROM agent_logs WHERE agent_id = $1 AND id > $2 ORDER BY id");
        Ok(rows.bind(id).bind(after).fetch_all(&self.pool).await?)
    }
}

/// Makes room for the log of a process that began at `at`. What came since the workspace was started and before its first
/// process stays where there is room beside it, such as the lines of whatever made its machine; a start that is told once more
/// changes nothing.
async fn begin_process(turn: &mut SqliteConnection, id: Uuid, at: Stamp) -> Result<()> {
    let row = sqlx::query("SELECT logs_since, logs_overflowed FROM agents WHERE id = $1").bind(id);
    let Some(row) = row.fetch_optional(&mut *turn).await? else { return Ok(()) };
    let (since, full): (Option<i64>, bool) = (row.try_get("logs_since")?, row.try_get("logs_overflowed")?);
    if since.map_or(full, |since| since != at.micros()) {
        sqlx::query("DELETE FROM agent_logs WHERE agent_id = $1").bind(id).execute(&mut *turn).await?;
        let empty = sqlx::query("UPDATE agents SET logs_bytes = 0, logs_overflowed = 0 WHERE id = $1");
        empty.bind(id).execute(&mut *turn).await?;
    }
    sqlx::query("UPDATE agents SET logs_since = $2 WHERE id = $1").bind(id).bind(at.micros()).execute(turn).await?;
    Ok(())
}

/// Drops the logs of the agents of a workspace; the line numbers of new ones go on rising.
pub(super) async fn drop_logs(turn: &mut SqliteConnection, workspace: Uuid) -> Result<()> {
    sqlx::query("DELETE FROM agent_logs WHERE agent_id IN (SELECT id FROM agents WHERE workspace_id = $1)")
        .bind(workspace)
        .execute(&mut *turn)
        .await?;
    sqlx::query("UPDATE agents SET logs_bytes = 0, logs_overflowed = 0, logs_since = NULL WHERE workspace_id = $1")
        .bind(workspace)
        .execute(turn)
        .await?;
    Ok(())
}
