//! Users.

use super::{Result, Store, stamp};
use crate::server::time::Stamp;
use sqlx::{FromRow, Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

/// One user.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) id: Uuid,
    pub(crate) username: String,
    pub(crate) name: String,
    pub(crate) email: String,
    /// The first user may make others.
    pub(crate) is_first: bool,
    /// Has a password to log in with.
    pub(crate) has_password: bool,
    pub(crate) created_at: Stamp,
    pub(crate) updated_at: Stamp,
    pub(crate) last_seen_at: Stamp,
}

impl FromRow<'_, SqliteRow> for User {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            username: row.try_get("username")?,
            name: row.try_get("name")?,
            email: row.try_get("email")?,
            is_first: row.try_get("is_first")?,
            has_password: row.try_get::<Option<String>, _>("password_hash")?.is_some(),
            created_at: stamp(row, "created_at")?,
            updated_at: stamp(row, "updated_at")?,
            last_seen_at: stamp(row, "last_seen_at")?,
        })
    }
}

impl Store {
    /// The first user, if there is one yet.
    pub(crate) async fn first_user(&self) -> Result<Option<User>> {
        Ok(sqlx::query_as("SELECT * FROM users WHERE is_first = 1").fetch_optional(&self.pool).await?)
    }

    /// A user by id.
    pub(crate) async fn user(&self, id: Uuid) -> Result<User> {
        Ok(sqlx::query_as("SELECT * FROM users WHERE id = $1").bind(id).fetch_one(&self.pool).await?)
    }

    /// A user by name, in any case.
    pub(crate) async fn user_by_name(&self, username: &str) -> Result<User> {
        Ok(sqlx::query_as("SELECT * FROM users WHERE username = $1").bind(username).fetch_one(&self.pool).await?)
    }

    /// A user by e-mail address, in any case, and the hash of the password, if there is one.
    pub(crate) async fn user_by_email(&self, email: &str) -> Result<(User, Option<String>)> {
        let row = sqlx::query("SELECT * FROM users WHERE email = $1").bind(email).fetch_one(&self.pool).await?;
        Ok((User::from_row(&row)?, row.try_get("password_hash")?))
    }

    /// The hash of a user's password, if there is one.
    pub(crate) async fn password_of(&self, id: Uuid) -> Result<Option<String>> {
        let row = sqlx::query("SELECT password_hash FROM users WHERE id = $1").bind(id).fetch_one(&self.pool).await?;
        Ok(row.try_get("password_hash")?)
    }

    /// Gives a user a password by its hash, and ends all keys that came from the one before, but for the key `kept`: both or
    /// nothing.
    pub(crate) async fn set_password(&self, now: Stamp, id: Uuid, hash: &str, kept: &str) -> Result<()> {
        let mut turn = self.turn().await?;
        let done = sqlx::query("UPDATE users SET password_hash = $2, updated_at = $3 WHERE id = $1");
        done.bind(id).bind(hash).bind(now.micros()).execute(&mut *turn).await?;
        let done = sqlx::query("DELETE FROM keys WHERE user_id = $1 AND login_type = 'password' AND id <> $2");
        done.bind(id).bind(kept).execute(&mut *turn).await?;
        turn.commit().await
    }

    /// All users, by name.
    pub(crate) async fn users(&self) -> Result<Vec<User>> {
        Ok(sqlx::query_as("SELECT * FROM users ORDER BY username").fetch_all(&self.pool).await?)
    }

    /// How many users and how many living workspaces there are.
    pub(crate) async fn counts(&self) -> Result<(u64, u64)> {
        let sql =
            "SELECT (SELECT count(*) FROM users) AS users, (SELECT count(*) FROM workspaces WHERE deleted = 0) AS workspaces";
        let row = sqlx::query(sql).fetch_one(&self.pool).await?;
        let number = |column| row.try_get::<i64, _>(column).map(|n| u64::try_from(n).unwrap_or(0));
        Ok((number("users")?, number("workspaces")?))
    }

    /// Makes a user without a password.
    ///
    /// # Errors
    /// [`super::StoreError::Taken`] when the name or the address is in use, or a second first user is asked for.
    pub(crate) async fn insert_user(&self, now: Stamp, username: &str, name: &str, email: &str, is_first: bool) -> Result<User> {
        let mut connection = self.pool.acquire().await?;
        insert_user(&mut connection, now, username, name, email, is_first, None).await
    }

    /// Makes the first user with a password, by its hash.
    ///
    /// # Errors
    /// [`super::StoreError::Taken`] when there is a first user, or the name or the address is in use.
    pub(crate) async fn insert_first_user(
        &self,
        now: Stamp,
        username: &str,
        name: &str,
        email: &str,
        password: &str,
    ) -> Result<User> {
        let mut connection = self.pool.acquire().await?;
        insert_user(&mut connection, now, username, name, email, true, Some(password)).await
    }
}

/// One statement: nobody is left without a password who was to have one.
pub(super) async fn insert_user(
    connection: &mut SqliteConnection,
    now: Stamp,
    username: &str,
    name: &str,
    email: &str,
    is_first: bool,
    password: Option<&str>,
) -> Result<User> {
    let row = sqlx::query_as(
        "INSERT INTO users (id, username, name, email, is_first, created_at, updated_at, last_seen_at, password_hash)
         VALUES ($1, $2, $3, $4, $5, $6, $6, $6, $7) RETURNING *",
    )
    .bind(Uuid::new_v4())
    .bind(username)
    .bind(name)
    .bind(email)
    .bind(is_first)
    .bind(now.micros())
    .bind(password);
    Ok(row.fetch_one(connection).await?)
}
