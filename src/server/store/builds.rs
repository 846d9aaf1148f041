//! Builds that take time, and what they say meanwhile.

use super::{Build, NewBuild, Result, Store, agents::drop_logs, stamp};
use crate::server::time::Stamp;
use sqlx::{FromRow, Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

/// All the log bytes that one build may store.
const MAX_LOG_BYTES: i64 = 1 << 20;
/// Most log lines of a build.
const MAX_LOG_LINES: i64 = 1 << 14;

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BuildStatus {
    Running,
    Succeeded,
    Failed,
    Canceled,
}

impl BuildStatus {
    /// The store's word, and the API's word for a job.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// Reads the word.
    pub(super) fn from_word(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "succeeded" => Self::Succeeded,
            "canceled" => Self::Canceled,
            _ => Self::Failed,
        }
    }
}

/// One line of a build's log.
#[derive(Debug, Clone)]
pub(crate) struct BuildLine {
    pub(crate) id: i64,
    pub(crate) created_at: Stamp,
    pub(crate) level: String,
    pub(crate) stage: String,
    pub(crate) output: String,
}

impl FromRow<'_, SqliteRow> for BuildLine {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            created_at: stamp(row, "created_at")?,
            level: row.try_get("level")?,
            stage: row.try_get("stage")?,
            output: row.try_get("output")?,
        })
    }
}

impl Store {
    /// Adds a build that is under way.
    ///
    /// # Errors
    /// [`super::StoreError::Busy`] while another build of the workspace is under way.
    pub(crate) async fn begin_build(&self, now: Stamp, build: NewBuild<'_>) -> Result<Build> {
        self.add_build(now, build, BuildStatus::Running).await
    }

    /// Ends a build that was under way, with why where that was not well; one that has deleted its workspace takes it out of
    /// sight.
    pub(crate) async fn end_build(&self, now: Stamp, id: Uuid, status: BuildStatus, error: &str) -> Result<()> {
        let mut turn = self.turn().await?;
        sqlx::query("UPDATE builds SET status = $2, error = $3, completed_at = $4 WHERE id = $1 AND status = 'running'")
            .bind(id)
            .bind(status.as_str())
            .bind(error)
            .bind(now.micros())
            .execute(&mut *turn)
            .await?;
        let deleted = sqlx::query(
            "UPDATE workspaces SET deleted = 1, updated_at = $2 WHERE id =
             (SELECT workspace_id FROM builds WHERE id = $1 AND transition = 'delete' AND status = 'succeeded') RETURNING id",
        );
        if let Some(row) = deleted.bind(id).bind(now.micros()).fetch_optional(&mut *turn).await? {
            drop_deleted_logs(&mut turn, row.try_get("id")?).await?;
        }
        turn.commit().await
    }

    /// Nothing is under way when a server starts, whatever the last one had begun before it died.
    pub(super) async fn end_stale_builds(&self, now: Stamp) -> Result<()> {
        let done = sqlx::query("UPDATE builds SET status = 'failed', error = $2, completed_at = $1 WHERE status = 'running'");
        done.bind(now.micros()).bind("the server ended while the build was under way").execute(&self.pool).await?;
        Ok(())
    }

    /// Adds lines to a build's log; what is beyond its share is left out. Whether all were taken.
    pub(crate) async fn insert_build_lines(&self, build: Uuid, lines: &[BuildLine]) -> Result<bool> {
        let mut turn = self.turn().await?;
        let sql = "SELECT count(*) AS n, coalesce(sum(length(output)), 0) AS bytes FROM build_logs WHERE build_id = $1";
        let row = sqlx::query(sql).bind(build).fetch_one(&mut *turn).await?;
        let (mut stored, mut bytes): (i64, i64) = (row.try_get("n")?, row.try_get("bytes")?);
        let mut all = true;
        for line in lines {
            stored += 1;
            bytes = bytes.saturating_add(i64::try_from(line.output.len()).unwrap_or(i64::MAX));
            if stored > MAX_LOG_LINES || bytes > MAX_LOG_BYTES {
                all = false;
                break;
            }
            let done =
                sqlx::query("INSERT INTO build_logs (build_id, created_at, level, stage, output) VALUES ($1, $2, $3, $4, $5)");
            done.bind(build)
                .bind(line.created_at.micros())
                .bind(&line.level)
                .bind(&line.stage)
                .bind(&line.output)
                .execute(&mut *turn)
                .await?;
        }
        turn.commit().await?;
        Ok(all)
    }

    /// The lines of a build's log after line `after`.
    pub(crate) async fn build_lines(&self, build: Uuid, after: i64) -> Result<Vec<BuildLine>> {
        let rows = sqlx::query_as("SELECT * FROM build_logs WHERE build_id = $1 AND id > $2 ORDER BY id");
        Ok(rows.bind(build).bind(after).fetch_all(&self.pool).await?)
    }
}

/// Drops the logs of a workspace's builds but for the newest `kept`.
pub(super) async fn keep_newest_logs(turn: &mut SqliteConnection, workspace: Uuid, kept: i64) -> Result<()> {
    sqlx::query(
        "DELETE FROM build_logs WHERE build_id IN
         (SELECT id FROM builds WHERE workspace_id = $1 ORDER BY number DESC LIMIT -1 OFFSET $2)",
    )
    .bind(workspace)
    .bind(kept)
    .execute(turn)
    .await?;
    Ok(())
}

/// Drops the logs of a workspace that was deleted just now. That of its deletion stays: somebody watches it.
pub(super) async fn drop_deleted_logs(turn: &mut SqliteConnection, workspace: Uuid) -> Result<()> {
    drop_logs(turn, workspace).await?;
    keep_newest_logs(turn, workspace, 1).await
}
