//! Workspaces and their builds.

use super::{
    Agent, BuildStatus, Result, Store, StoreError,
    agents::drop_logs,
    builds::{drop_deleted_logs, keep_newest_logs},
    maybe_stamp, stamp,
};
use crate::server::{manifest::Additions, time::Stamp, token::AgentToken};
use sqlx::{FromRow, Row as _, sqlite::SqliteRow};
use std::time::Duration;
use uuid::Uuid;

/// Of how many builds of a workspace the logs are kept, each of which may have a MiB.
const KEPT_LOGS: i64 = 20;
/// How long what is left of a deleted workspace is kept, so that whoever watches its deletion sees the end of it.
const KEPT_DELETED: Duration = Duration::from_secs(24 * 3600);

/// The name of a workspace's one agent.
pub(crate) const AGENT_NAME: &str = "main";

/// One workspace with its owner's name.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    pub(crate) id: Uuid,
    pub(crate) owner_id: Uuid,
    pub(crate) owner_name: String,
    pub(crate) name: String,
    pub(crate) deleted: bool,
    /// Where its agent reaches the server; empty for the access URL.
    pub(crate) agent_url: String,
    pub(crate) created_at: Stamp,
    pub(crate) updated_at: Stamp,
    pub(crate) last_used_at: Stamp,
}

impl FromRow<'_, SqliteRow> for Workspace {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            owner_id: row.try_get("owner_id")?,
            owner_name: row.try_get("owner_name")?,
            name: row.try_get("name")?,
            deleted: row.try_get("deleted")?,
            agent_url: row.try_get("agent_url")?,
            created_at: stamp(row, "created_at")?,
            updated_at: stamp(row, "updated_at")?,
            last_used_at: stamp(row, "last_used_at")?,
        })
    }
}

/// What a build does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transition {
    Start,
    Stop,
    Delete,
}

impl Transition {
    /// The API's and the store's word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
        }
    }

    /// What a build's log calls its one stage.
    pub(crate) const fn stage(self) -> &'static str {
        match self {
            Self::Start => "Starting workspace",
            Self::Stop => "Stopping workspace",
            Self::Delete => "Deleting workspace",
        }
    }

    /// Reads the word.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        [Self::Start, Self::Stop, Self::Delete].into_iter().find(|t| t.as_str() == word)
    }
}

/// One build.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    pub(crate) id: Uuid,
    pub(crate) workspace_id: Uuid,
    pub(crate) number: i64,
    pub(crate) transition: Transition,
    pub(crate) reason: String,
    pub(crate) initiator_id: Uuid,
    pub(crate) job_id: Uuid,
    pub(crate) resource_id: Uuid,
    pub(crate) status: BuildStatus,
    /// Why it failed; empty where it did not.
    pub(crate) error: String,
    pub(crate) created_at: Stamp,
    pub(crate) completed_at: Option<Stamp>,
}

impl FromRow<'_, SqliteRow> for Build {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let transition: String = row.try_get("transition")?;
        let unknown = || sqlx::Error::Decode(format!("a build with the transition {transition:?}").into());
        Ok(Self {
            id: row.try_get("id")?,
            workspace_id: row.try_get("workspace_id")?,
            number: row.try_get("number")?,
            transition: Transition::from_word(&transition).ok_or_else(unknown)?,
            reason: row.try_get("reason")?,
            initiator_id: row.try_get("initiator_id")?,
            job_id: row.try_get("job_id")?,
            resource_id: row.try_get("resource_id")?,
            status: BuildStatus::from_word(row.try_get("status")?),
            error: row.try_get("error")?,
            created_at: stamp(row, "created_at")?,
            completed_at: maybe_stamp(row, "completed_at")?,
        })
    }
}

/// What a new build shall be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewBuild<'a> {
    pub(crate) workspace: Uuid,
    pub(crate) transition: Transition,
    pub(crate) reason: &'a str,
    pub(crate) initiator: Uuid,
}

const SELECT: &str = "SELECT w.*, u.username AS owner_name FROM workspaces w JOIN users u ON u.id = w.owner_id";

impl Store {
    /// Makes a workspace with its first build and one agent, whose token is returned and exists nowhere else. What is left of
    /// workspaces that were deleted long ago goes.
    ///
    /// # Errors
    /// [`StoreError::Taken`] when the owner has a workspace of that name.
    pub(crate) async fn insert_workspace(&self, now: Stamp, owner: Uuid, name: &str) -> Result<(Workspace, AgentToken)> {
        self.insert_workspace_with(now, owner, name, &Additions::default()).await
    }

    /// The same with additions to its agent's manifest.
    pub(crate) async fn insert_workspace_with(
        &self,
        now: Stamp,
        owner: Uuid,
        name: &str,
        additions: &Additions,
    ) -> Result<(Workspace, AgentToken)> {
        let additions = serde_json::to_string(additions).map_err(|e| StoreError::Database(sqlx::Error::Encode(e.into())))?;
        let (id, token) = (Uuid::new_v4(), AgentToken::generate()?);
        let over = now.micros().saturating_sub(i64::try_from(KEPT_DELETED.as_micros()).unwrap_or(i64::MAX));
        let mut turn = self.turn().await?;
        sqlx::query("DELETE FROM workspaces WHERE deleted = 1 AND updated_at < $1").bind(over).execute(&mut *turn).await?;
        sqlx::query(
            "INSERT INTO workspaces (id, owner_id, name, created_at, updated_at, last_used_at)
             VALUES ($1, $2, $3, $4, $4, $5)",
        )
        .bind(id)
        .bind(owner)
        .bind(name)
        .bind(now.micros())
        .bind(Stamp::NEVER.micros())
        .execute(&mut *turn)
        .await?;
        let build = NewBuild { workspace: id, transition: Transition::Start, reason: "initiator", initiator: owner };
        insert_build(&mut turn, now, build, BuildStatus::Succeeded).await?;
        sqlx::query(
            "INSERT INTO agents (id, workspace_id, name, token_hash, created_at, updated_at, additions)
             VALUES ($1, $2, $3, $4, $5, $5, $6)",
        )
        .bind(Uuid::new_v4())
        .bind(id)
        .bind(AGENT_NAME)
        .bind(token.hash().as_bytes())
        .bind(now.micros())
        .bind(additions)
        .execute(&mut *turn)
        .await?;
        turn.commit().await?;
        Ok((self.workspace(owner, id).await?, token))
    }

    /// A workspace of `owner` by id, deleted ones too.
    pub(crate) async fn workspace(&self, owner: Uuid, id: Uuid) -> Result<Workspace> {
        let row = sqlx::query_as(concat_select(" WHERE w.owner_id = $1 AND w.id = $2"));
        Ok(row.bind(owner).bind(id).fetch_one(&self.pool).await?)
    }

    /// A living workspace of `owner` by name, in any case.
    pub(crate) async fn workspace_by_name(&self, owner: Uuid, name: &str) -> Result<Workspace> {
        let row = sqlx::query_as(concat_select(" WHERE w.owner_id = $1 AND w.name = $2 AND w.deleted = 0"));
        Ok(row.bind(owner).bind(name).fetch_one(&self.pool).await?)
    }

    /// The living workspaces of `owner`, by name.
    pub(crate) async fn workspaces(&self, owner: Uuid) -> Result<Vec<Workspace>> {
        let rows = sqlx::query_as(concat_select(" WHERE w.owner_id = $1 AND w.deleted = 0 ORDER BY w.name"));
        Ok(rows.bind(owner).fetch_all(&self.pool).await?)
    }

    /// Notes that a workspace is in use.
    pub(crate) async fn touch_workspace(&self, now: Stamp, id: Uuid) -> Result<()> {
        let done = sqlx::query("UPDATE workspaces SET last_used_at = max(last_used_at, $2) WHERE id = $1");
        done.bind(id).bind(now.micros()).execute(&self.pool).await?;
        Ok(())
    }

    /// The newest build of a workspace.
    pub(crate) async fn latest_build(&self, workspace: Uuid) -> Result<Build> {
        let row = sqlx::query_as("SELECT * FROM builds WHERE workspace_id = $1 ORDER BY number DESC LIMIT 1");
        Ok(row.bind(workspace).fetch_one(&self.pool).await?)
    }

    /// The newest builds of a workspace, newest first.
    pub(crate) async fn builds(&self, workspace: Uuid, limit: i64) -> Result<Vec<Build>> {
        let rows = sqlx::query_as("SELECT * FROM builds WHERE workspace_id = $1 ORDER BY number DESC LIMIT $2");
        Ok(rows.bind(workspace).bind(limit).fetch_all(&self.pool).await?)
    }

    /// A build by id, if its workspace belongs to `owner`.
    pub(crate) async fn build(&self, owner: Uuid, id: Uuid) -> Result<Build> {
        let row = sqlx::query_as(
            "SELECT b.* FROM builds b JOIN workspaces w ON w.id = b.workspace_id WHERE b.id = $2 AND w.owner_id = $1",
        );
        Ok(row.bind(owner).bind(id).fetch_one(&self.pool).await?)
    }

    /// Adds a build that is done at once; one that deletes takes the workspace out of sight, one that starts it begins its
    /// agents' logs anew. The logs of old builds go.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while another build of the workspace is under way.
    pub(crate) async fn insert_build(&self, now: Stamp, build: NewBuild<'_>) -> Result<Build> {
        self.add_build(now, build, BuildStatus::Succeeded).await
    }

    pub(super) async fn add_build(&self, now: Stamp, build: NewBuild<'_>, status: BuildStatus) -> Result<Build> {
        let mut turn = self.turn().await?;
        let running = sqlx::query("SELECT 1 FROM builds WHERE workspace_id = $1 AND status = 'running'").bind(build.workspace);
        if running.fetch_optional(&mut *turn).await?.is_some() {
            return Err(StoreError::Busy);
        }
        let row = insert_build(&mut turn, now, build, status).await?;
        let deleted = build.transition == Transition::Delete && status == BuildStatus::Succeeded;
        sqlx::query("UPDATE workspaces SET updated_at = $2, deleted = $3 WHERE id = $1")
            .bind(build.workspace)
            .bind(now.micros())
            .bind(deleted)
            .execute(&mut *turn)
            .await?;
        if deleted {
            drop_deleted_logs(&mut turn, build.workspace).await?;
        } else {
            keep_newest_logs(&mut turn, build.workspace, KEPT_LOGS).await?;
        }
        if build.transition == Transition::Start {
            drop_logs(&mut turn, build.workspace).await?;
        }
        turn.commit().await?;
        Ok(row)
    }

    /// Notes where the agent of a workspace reaches the server.
    pub(crate) async fn set_agent_url(&self, workspace: Uuid, url: &str) -> Result<()> {
        let done = sqlx::query("UPDATE workspaces SET agent_url = $2 WHERE id = $1").bind(workspace).bind(url);
        done.execute(&self.pool).await?;
        Ok(())
    }

    /// Gives the agent of a workspace a new token, which exists nowhere else; the old one is over.
    pub(crate) async fn renew_agent_token(&self, now: Stamp, workspace: Uuid) -> Result<AgentToken> {
        let token = AgentToken::generate()?;
        let done = sqlx::query("UPDATE agents SET token_hash = $2, updated_at = $3 WHERE workspace_id = $1 AND name = $4");
        done.bind(workspace).bind(token.hash().as_bytes()).bind(now.micros()).bind(AGENT_NAME).execute(&self.pool).await?;
        Ok(token)
    }

    /// Gives the agent of `owner`'s workspace `name` a new token, making the workspace where it is missing and starting
    /// it where it is stopped. For `--dev`, whose agent is a child of the server.
    pub(crate) async fn ensure_dev_workspace(&self, now: Stamp, owner: Uuid, name: &str) -> Result<AgentToken> {
        let workspace = match self.workspace_by_name(owner, name).await {
            Err(StoreError::NotFound) => return Ok(self.insert_workspace(now, owner, name).await?.1),
            other => other?,
        };
        if self.latest_build(workspace.id).await?.transition != Transition::Start {
            let (transition, reason) = (Transition::Start, "initiator");
            self.insert_build(now, NewBuild { workspace: workspace.id, transition, reason, initiator: owner }).await?;
        }
        self.renew_agent_token(now, workspace.id).await
    }

    /// The agents of a workspace, by name.
    pub(crate) async fn agents(&self, workspace: Uuid) -> Result<Vec<Agent>> {
        let rows = sqlx::query_as("SELECT * FROM agents WHERE workspace_id = $1 ORDER BY name").bind(workspace);
        Ok(rows.fetch_all(&self.pool).await?)
    }
}

fn concat_select(rest: &'static str) -> sqlx::AssertSqlSafe<String> {
    // Both halves are constants of this file.
    sqlx::AssertSqlSafe(format!("{SELECT}{rest}"))
}

async fn insert_build(turn: &mut sqlx::SqliteConnection, now: Stamp, build: NewBuild<'_>, status: BuildStatus) -> Result<Build> {
    let row = sqlx::query_as(
        "INSERT INTO builds (id, workspace_id, number, transition, reason, initiator_id, job_id, resource_id, created_at,
                             status, completed_at)
         SELECT $1, $2, coalesce(max(number), 0) + 1, $3, $4, $5, $6, $7, $8, $9, $10 FROM builds WHERE workspace_id = $2
         RETURNING *",
    )
    .bind(Uuid::new_v4())
    .bind(build.workspace)
    .bind(build.transition.as_str())
    .bind(build.reason)
    .bind(build.initiator)
    .bind(Uuid::new_v4())
    .bind(Uuid::new_v4())
    .bind(now.micros())
    .bind(status.as_str())
    .bind((status != BuildStatus::Running).then_some(now.micros()));
    let build: Build = row.fetch_one(&mut *turn).await?;
    sqlx::query("INSERT INTO build_logs (build_id, created_at, level, stage, output) VALUES ($1, $2, 'info', $3, '')")
        .bind(build.id)
        .bind(now.micros())
        .bind(build.transition.stage())
        .execute(turn)
        .await?;
    Ok(build)
}
