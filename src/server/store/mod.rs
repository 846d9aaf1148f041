//! What the server remembers: users, hashed tokens, workspaces, builds and agents, in one SQLite file.
//!
//! The data folder belongs to one server at a time: an advisory lock on `<data folder>/lock`, held as long as the
//! [`Store`] lives, makes a second one fail at once. Times are microseconds since the epoch, ids are 16-byte blobs.

mod agents;
mod builds;
mod keys;
mod migrations;
mod turn;
mod users;
mod workspaces;

pub(crate) use agents::{Agent, Lifecycle, LogLine};
pub(crate) use builds::{BuildLine, BuildStatus};
pub(crate) use keys::{Key, KeyKind, NewKey, Presented};
pub(crate) use users::User;
pub(crate) use workspaces::{Build, NewBuild, Transition, Workspace};

use super::{time::Stamp, token::NoRandomness};
use sqlx::{
    Row as _, SqlitePool,
    error::ErrorKind,
    migrate::MigrateError,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

/// The database file inside the data folder.
const DATABASE: &str = "coder.sqlite";
/// The file whose lock says that a server runs on the folder.
const LOCK: &str = "lock";
/// How long a statement waits for another connection's write.
const BUSY: Duration = Duration::from_secs(5);
/// SQLite's result code for a damaged file.
const SQLITE_CORRUPT: &str = "11";
/// SQLite's result code for a write that found no room.
const SQLITE_FULL: &str = "13";
/// SQLite's result code for a file that is no database.
const SQLITE_NOTADB: &str = "26";

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another server holds the folder.
    #[error("another coder server is using the data folder {0:?}: stop it, or choose another folder with --data-dir")]
    Locked(PathBuf),
    /// The folder cannot be made or written.
    #[error("cannot use {folder:?}: {error}; choose another data folder with --data-dir")]
    Folder {
        /// The folder, or the file in it.
        folder: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The file is damaged or no database.
    #[error("the database {0:?} is unreadable: restore it from a backup, or move it away to start afresh")]
    Corrupt(PathBuf),
    /// A newer version wrote the file.
    #[error("the database {0:?} was written by a newer version of coder: update this one, or choose another --data-dir")]
    TooNew(PathBuf),
    /// Anything else SQLite reports.
    #[error("cannot open the database {file:?}: {error}")]
    Database {
        /// The file.
        file: PathBuf,
        /// What SQLite says.
        error: sqlx::Error,
    },
}

/// Why a request to the store failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// No such row, or not one that the caller may see.
    #[error("not found")]
    NotFound,
    /// A unique value is in use.
    #[error("already in use")]
    Taken,
    /// A build of the workspace is under way.
    #[error("a build is under way")]
    Busy,
    /// No token could be made.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// SQLite failed.
    #[error("database: {0}")]
    Database(sqlx::Error),
}

impl StoreError {
    /// Whether there was no room on the disk.
    pub(crate) fn is_full(&self) -> bool {
        let Self::Database(error) = self else { return false };
        error.as_database_error().and_then(|e| e.code()).as_deref() == Some(SQLITE_FULL)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::RowNotFound => Self::NotFound,
            sqlx::Error::Database(e) if e.kind() == ErrorKind::UniqueViolation => Self::Taken,
            other => Self::Database(other),
        }
    }
}

pub(crate) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Ids that stay the same for the life of a deployment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deployment {
    /// The deployment itself.
    pub(crate) id: Uuid,
    /// The one organization.
    pub(crate) organization: Uuid,
    /// The one template: a workspace that is only an agent.
    pub(crate) template: Uuid,
    /// Its one version.
    pub(crate) template_version: Uuid,
    /// When the data folder was first used.
    pub(crate) created_at: Stamp,
}

/// The open store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pool: SqlitePool,
    deployment: Deployment,
    /// Each use of a login begins its life anew.
    refresh: bool,
    /// Held for its lock.
    _lock: Arc<File>,
}

impl Store {
    /// Opens the data folder, making what is missing.
    ///
    /// # Errors
    /// When the folder is in use, cannot be written, or holds a database that this version cannot read.
    pub(crate) async fn open(folder: &Path) -> std::result::Result<Self, OpenError> {
        let lock = lock(folder)?;
        let file = folder.join(DATABASE);
        make_private_file(&file).map_err(|error| OpenError::Folder { folder: file.clone(), error })?;
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        // A connection is a thread: one for writes, one for reads beside them.
        let pool =
            SqlitePoolOptions::new().max_connections(2).connect_with(options).await.map_err(|error| unreadable(&file, error))?;
        migrations::run(&pool).await.map_err(|error| match error {
            MigrateError::VersionMissing(_) => OpenError::TooNew(file.clone()),
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => unreadable(&file, error),
            _ => OpenError::Corrupt(file.clone()),
        })?;
        let deployment = deployment(&pool).await.map_err(|error| unreadable(&file, error))?;
        let store = Self { pool, deployment, refresh: true, _lock: Arc::new(lock) };
        let stale = async {
            store.end_stale_connections(Stamp::now()).await?;
            store.end_stale_builds(Stamp::now()).await
        };
        stale.await.map_err(|error| match error {
            StoreError::Database(error) => unreadable(&file, error),
            _ => OpenError::Corrupt(file.clone()),
        })?;
        Ok(store)
    }

    /// The same store; whether each use of a login begins its life anew.
    pub(crate) fn with_refresh(self, refresh: bool) -> Self {
        Self { refresh, ..self }
    }

    /// The deployment's ids.
    pub(crate) const fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// Waits for running statements and closes the file.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

fn lock(folder: &Path) -> std::result::Result<File, OpenError> {
    let failed = |error| OpenError::Folder { folder: folder.to_owned(), error };
    make_private(folder).map_err(failed)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join(LOCK)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Makes the folder for its owner alone; one that exists keeps its mode.
fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Makes the database file for its owner alone; SQLite gives its companions the same mode.
fn make_private_file(file: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(file).map(drop)
}

fn unreadable(file: &Path, error: sqlx::Error) -> OpenError {
    let code = error.as_database_error().and_then(|e| e.code());
    match code.as_deref() {
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => OpenError::Corrupt(file.to_owned()),
        _ => OpenError::Database { file: file.to_owned(), error },
    }
}

async fn deployment(pool: &SqlitePool) -> std::result::Result<Deployment, sqlx::Error> {
    sqlx::query(
        "INSERT INTO deployment (one, id, organization, template, template_version, created_at)
         VALUES (1, $1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
    )
    .bind(Uuid::new_v4())
    .bind(Uuid::new_v4())
    .bind(Uuid::new_v4())
    .bind(Uuid::new_v4())
    .bind(Stamp::now().micros())
    .execute(pool)
    .await?;
    let row = sqlx::query("SELECT * FROM deployment").fetch_one(pool).await?;
    Ok(Deployment {
        id: row.try_get("id")?,
        organization: row.try_get("organization")?,
        template: row.try_get("template")?,
        template_version: row.try_get("template_version")?,
        created_at: stamp(&row, "created_at")?,
    })
}

fn stamp(row: &SqliteRow, column: &str) -> std::result::Result<Stamp, sqlx::Error> {
    row.try_get(column).map(Stamp::from_micros)
}

fn maybe_stamp(row: &SqliteRow, column: &str) -> std::result::Result<Option<Stamp>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Stamp::from_micros))
}

#[cfg(test)]
mod tests;
