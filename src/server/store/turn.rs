//! Writes that happen whole or not at all.

use super::{Result, Store};
use sqlx::{Sqlite, SqliteConnection, pool::PoolConnection};
use std::ops::{Deref, DerefMut};

/// A transaction that holds the write lock from its beginning.
///
/// SQLite ends a transaction by itself when the disk is full, which sqlx's own count of open ones does not follow: its
/// connection would refuse every later transaction. Here a connection whose transaction was not committed is closed.
pub(super) struct Turn {
    connection: PoolConnection<Sqlite>,
    committed: bool,
}

impl Store {
    /// Begins a transaction, when no other one is writing any more.
    pub(super) async fn turn(&self) -> Result<Turn> {
        let mut turn = Turn { connection: self.pool.acquire().await?, committed: false };
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *turn).await?;
        Ok(turn)
    }
}

impl Turn {
    /// Makes it all last. Dropped without this, nothing has happened.
    pub(super) async fn commit(mut self) -> Result<()> {
        sqlx::query("COMMIT").execute(&mut *self.connection).await?;
        self.committed = true;
        Ok(())
    }
}

impl Deref for Turn {
    type Target = SqliteConnection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl DerefMut for Turn {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.committed {
            self.connection.close_on_drop();
        }
    }
}
