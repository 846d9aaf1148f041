//! The database's shape, step by step. A step that has shipped is never edited.

use futures::future::BoxFuture;
use sqlx::{
    SqlSafeStr as _, SqlitePool,
    error::BoxDynError,
    migrate::{MigrateError, Migration, MigrationSource, MigrationType, Migrator},
};

const STEPS: &[(i64, &str, &str)] = &[
    (
        1,
        "users, keys, workspaces, builds, agents",
        "
    CREATE TABLE deployment (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id BLOB NOT NULL,
        organization BLOB NOT NULL,
        template BLOB NOT NULL,
        template_version BLOB NOT NULL,
        created_at INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE users (
        id BLOB PRIMARY KEY,
        username TEXT NOT NULL UNIQUE COLLATE NOCASE,
        name TEXT NOT NULL,
        email TEXT NOT NULL UNIQUE COLLATE NOCASE,
        is_first INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        last_seen_at INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX one_first_user ON users (is_first) WHERE is_first = 1;

    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        user_id BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        secret_hash BLOB NOT NULL,
        name TEXT NOT NULL,
        is_token INTEGER NOT NULL,
        lifetime_seconds INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        last_used INTEGER NOT NULL,
        expires_at INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX key_names ON keys (user_id, name) WHERE name <> '';

    CREATE TABLE workspaces (
        id BLOB PRIMARY KEY,
        owner_id BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        name TEXT NOT NULL COLLATE NOCASE,
        deleted INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        last_used_at INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX workspace_names ON workspaces (owner_id, name) WHERE deleted = 0;

    CREATE TABLE builds (
        id BLOB PRIMARY KEY,
        workspace_id BLOB NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        transition TEXT NOT NULL,
        reason TEXT NOT NULL,
        initiator_id BLOB NOT NULL,
        job_id BLOB NOT NULL,
        resource_id BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        UNIQUE (workspace_id, number)
    ) STRICT;

    CREATE TABLE agents (
        id BLOB PRIMARY KEY,
        workspace_id BLOB NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
        name TEXT NOT NULL COLLATE NOCASE,
        token_hash BLOB NOT NULL UNIQUE,
        lifecycle TEXT NOT NULL DEFAULT 'created',
        version TEXT NOT NULL DEFAULT '',
        api_version TEXT NOT NULL DEFAULT '',
        expanded_directory TEXT NOT NULL DEFAULT '',
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        first_connected_at INTEGER,
        last_connected_at INTEGER,
        disconnected_at INTEGER,
        started_at INTEGER,
        ready_at INTEGER,
        logs_bytes INTEGER NOT NULL DEFAULT 0,
        logs_overflowed INTEGER NOT NULL DEFAULT 0,
        UNIQUE (workspace_id, name)
    ) STRICT;

    CREATE TABLE agent_logs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        agent_id BLOB NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
        source_id BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        level TEXT NOT NULL,
        output TEXT NOT NULL
    ) STRICT;
    CREATE INDEX logs_of_agent ON agent_logs (agent_id, id);
    ",
    ),
    (2, "additions to the manifest", "ALTER TABLE agents ADD COLUMN additions TEXT NOT NULL DEFAULT '{}';"),
    (
        3,
        "scopes, passwords, agents' own URLs, builds that take time",
        "
    ALTER TABLE keys ADD COLUMN scopes TEXT NOT NULL DEFAULT 'coder:all';
    ALTER TABLE keys ADD COLUMN login_type TEXT NOT NULL DEFAULT 'token';
    ALTER TABLE users ADD COLUMN password_hash TEXT;
    ALTER TABLE workspaces ADD COLUMN agent_url TEXT NOT NULL DEFAULT '';
    ALTER TABLE builds ADD COLUMN status TEXT NOT NULL DEFAULT 'succeeded';
    ALTER TABLE builds ADD COLUMN error TEXT NOT NULL DEFAULT '';
    ALTER TABLE builds ADD COLUMN completed_at INTEGER;
    UPDATE builds SET completed_at = created_at;

    CREATE TABLE build_logs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        build_id BLOB NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
        created_at INTEGER NOT NULL,
        level TEXT NOT NULL,
        stage TEXT NOT NULL,
        output TEXT NOT NULL
    ) STRICT;
    CREATE INDEX logs_of_build ON build_logs (build_id, id);
    ",
    ),
    (
        4,
        "logs of one process of an agent",
        "
    -- When the process began whose log is kept; NULL from a start of the workspace to the first process.
    ALTER TABLE agents ADD COLUMN logs_since INTEGER;
    UPDATE agents SET logs_since = started_at;
    ",
    ),
];

#[derive(Debug)]
struct Steps;

impl MigrationSource<'static> for Steps {
    fn resolve(self) -> BoxFuture<'static, Result<Vec<Migration>, BoxDynError>> {
        let step = |(version, description, sql): &(i64, &'static str, &'static str)| {
            Migration::new(*version, (*description).into(), MigrationType::Simple, sql.into_sql_str(), false)
        };
        let steps = STEPS.iter().map(step).collect();
        Box::pin(std::future::ready(Ok(steps)))
    }
}

/// Brings the database to the newest shape.
pub(super) async fn run(pool: &SqlitePool) -> Result<(), MigrateError> {
    Migrator::new(Steps).await?.run(pool).await
}
