//! Users' tokens, by key id. Only hashes of the secrets are stored.

use super::{Result, Store, User, stamp, users::insert_user};
use crate::server::{scopes::Scopes, time::Stamp, token::SessionToken};
use sqlx::{FromRow, Row as _, SqliteConnection, sqlite::SqliteRow};
use std::time::Duration;
use uuid::Uuid;

/// How stale `last_used` may be: at most one write a minute for each key.
const LAST_USED_EVERY: Duration = Duration::from_secs(60);
/// How long an expired key is kept, so that its user is told of the expiry and can list it.
const KEPT_EXPIRED: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// A login: its life starts anew at each use.
    Session,
    /// A named token: ends when its life is over.
    Token,
}

/// One key without its secret.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) user_id: Uuid,
    pub(crate) name: String,
    pub(crate) kind: KeyKind,
    pub(crate) lifetime: Duration,
    /// What it may be used for.
    pub(crate) scopes: Scopes,
    /// How its user logged in for it: `password` or `token`.
    pub(crate) login_type: String,
    pub(crate) created_at: Stamp,
    pub(crate) updated_at: Stamp,
    pub(crate) last_used: Stamp,
    pub(crate) expires_at: Stamp,
}

impl FromRow<'_, SqliteRow> for Key {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            user_id: row.try_get("user_id")?,
            name: row.try_get("name")?,
            kind: if row.try_get("is_token")? { KeyKind::Token } else { KeyKind::Session },
            lifetime: Duration::from_secs(u64::try_from(row.try_get::<i64, _>("lifetime_seconds")?).unwrap_or(0)),
            scopes: Scopes::from_stored(row.try_get("scopes")?),
            login_type: row.try_get("login_type")?,
            created_at: stamp(row, "created_at")?,
            updated_at: stamp(row, "updated_at")?,
            last_used: stamp(row, "last_used")?,
            expires_at: stamp(row, "expires_at")?,
        })
    }
}

/// What a new key shall be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewKey<'a> {
    pub(crate) user: Uuid,
    pub(crate) kind: KeyKind,
    /// Empty for keys without a name.
    pub(crate) name: &'a str,
    pub(crate) lifetime: Duration,
    /// What it may be used for; `None` for everything.
    pub(crate) scopes: Option<&'a Scopes>,
    /// Its user logged in with a password.
    pub(crate) by_password: bool,
}

/// What a presented token turned out to be.
#[derive(Debug)]
pub(crate) enum Presented {
    /// A valid key of this user.
    Valid(Box<User>, Key),
    /// No such key, or a wrong secret.
    Invalid,
    /// A key whose life is over since then.
    Expired(Stamp),
}

impl Store {
    /// Makes a key and returns its token, which exists nowhere else afterwards. Keys that expired long ago are deleted.
    ///
    /// # Errors
    /// [`super::StoreError::Taken`] when the user has a key of that name.
    pub(crate) async fn insert_key(&self, now: Stamp, key: NewKey<'_>) -> Result<SessionToken> {
        let over = now.micros().saturating_sub(i64::try_from(KEPT_EXPIRED.as_micros()).unwrap_or(i64::MAX));
        let mut connection = self.pool.acquire().await?;
        sqlx::query("DELETE FROM keys WHERE expires_at < $1").bind(over).execute(&mut *connection).await?;
        insert_key(&mut connection, now, key).await
    }

    /// Makes a user, with the hash of a password where there is one, and a login of this life: both or none.
    ///
    /// # Errors
    /// [`super::StoreError::Taken`] when the name or the address is in use.
    pub(crate) async fn insert_user_with_key(
        &self,
        now: Stamp,
        username: &str,
        name: &str,
        email: &str,
        password: Option<&str>,
        lifetime: Duration,
    ) -> Result<(User, SessionToken)> {
        let mut turn = self.turn().await?;
        let user = insert_user(&mut turn, now, username, name, email, false, password).await?;
        let key = NewKey { user: user.id, kind: KeyKind::Session, name: "", lifetime, scopes: None, by_password: false };
        let token = insert_key(&mut turn, now, key).await?;
        turn.commit().await?;
        Ok((user, token))
    }

    /// Checks a presented token and notes its use.
    pub(crate) async fn check_key(&self, now: Stamp, token: &SessionToken) -> Result<Presented> {
        let row = sqlx::query("SELECT * FROM keys WHERE id = $1").bind(token.id()).fetch_optional(&self.pool).await?;
        let stored: Vec<u8> = row.as_ref().map(|row| row.try_get("secret_hash")).transpose()?.unwrap_or_default();
        // Compared also when there is no such key, so that both refusals take alike.
        let same = token.hash().matches(&stored);
        let Some(row) = row.filter(|_| same) else { return Ok(Presented::Invalid) };
        let key = Key::from_row(&row)?;
        if key.expires_at <= now {
            return Ok(Presented::Expired(key.expires_at));
        }
        if now.since(key.last_used) >= LAST_USED_EVERY && !self.note_use(now, &key).await? {
            let row = sqlx::query("SELECT expires_at FROM keys WHERE id = $1").bind(&key.id).fetch_optional(&self.pool).await?;
            let ended = row.map(|row| stamp(&row, "expires_at")).transpose()?;
            return Ok(ended.map_or(Presented::Invalid, Presented::Expired));
        }
        Ok(Presented::Valid(Box::new(self.user(key.user_id).await?), key))
    }

    /// Notes the use of a key as it was read; false if it was ended or deleted since then, and stays so. What was read at `now`
    /// may have been ended a moment after `now`: not the clock but an earlier end than the one that was read shows it.
    pub(super) async fn note_use(&self, now: Stamp, key: &Key) -> Result<bool> {
        let lives_until = match key.kind {
            KeyKind::Session if self.refresh => now + key.lifetime,
            KeyKind::Session | KeyKind::Token => key.expires_at,
        };
        let mut turn = self.turn().await?;
        let noted = sqlx::query(
            "UPDATE keys SET last_used = max(last_used, $2), expires_at = max(expires_at, $3)
             WHERE id = $1 AND expires_at >= $4",
        )
        .bind(&key.id)
        .bind(now.micros())
        .bind(lives_until.micros())
        .bind(key.expires_at.micros())
        .execute(&mut *turn)
        .await?
        .rows_affected();
        if noted > 0 {
            sqlx::query("UPDATE users SET last_seen_at = $2 WHERE id = $1")
                .bind(key.user_id)
                .bind(now.micros())
                .execute(&mut *turn)
                .await?;
        }
        turn.commit().await?;
        Ok(noted > 0)
    }

    /// A key of `user` by id.
    pub(crate) async fn key(&self, user: Uuid, id: &str) -> Result<Key> {
        let row = sqlx::query_as("SELECT * FROM keys WHERE user_id = $1 AND id = $2").bind(user).bind(id);
        Ok(row.fetch_one(&self.pool).await?)
    }

    /// A named token of `user`.
    pub(crate) async fn token_by_name(&self, user: Uuid, name: &str) -> Result<Key> {
        let row = sqlx::query_as("SELECT * FROM keys WHERE user_id = $1 AND name = $2 AND is_token = 1");
        Ok(row.bind(user).bind(name).fetch_one(&self.pool).await?)
    }

    /// The tokens of `user`, oldest first; expired ones on request.
    pub(crate) async fn tokens(&self, now: Stamp, user: Uuid, with_expired: bool) -> Result<Vec<Key>> {
        let rows = sqlx::query_as(
            "SELECT * FROM keys WHERE user_id = $1 AND is_token = 1 AND ($2 OR expires_at > $3) ORDER BY created_at, id",
        );
        Ok(rows.bind(user).bind(with_expired).bind(now.micros()).fetch_all(&self.pool).await?)
    }

    /// The tokens of all users with their users' names, oldest first; expired ones on request.
    pub(crate) async fn all_tokens(&self, now: Stamp, with_expired: bool) -> Result<Vec<(Key, String)>> {
        let rows = sqlx::query(
            "SELECT k.*, u.username FROM keys k JOIN users u ON u.id = k.user_id
             WHERE k.is_token = 1 AND ($1 OR k.expires_at > $2) ORDER BY k.created_at, k.id",
        );
        let rows = rows.bind(with_expired).bind(now.micros()).fetch_all(&self.pool).await?;
        Ok(rows.iter().map(|row| Ok((Key::from_row(row)?, row.try_get("username")?))).collect::<sqlx::Result<_>>()?)
    }

    /// Ends the life of a key of `user` now and keeps it in the list of expired ones.
    pub(crate) async fn expire_key(&self, now: Stamp, user: Uuid, id: &str) -> Result<()> {
        let done =
            sqlx::query("UPDATE keys SET expires_at = min(expires_at, $3), updated_at = $3 WHERE user_id = $1 AND id = $2");
        match done.bind(user).bind(id).bind(now.micros()).execute(&self.pool).await?.rows_affected() {
            0 => Err(super::StoreError::NotFound),
            _ => Ok(()),
        }
    }

    /// Ends a key of `user`.
    pub(crate) async fn delete_key(&self, user: Uuid, id: &str) -> Result<()> {
        let done = sqlx::query("DELETE FROM keys WHERE user_id = $1 AND id = $2").bind(user).bind(id);
        match done.execute(&self.pool).await?.rows_affected() {
            0 => Err(super::StoreError::NotFound),
            _ => Ok(()),
        }
    }
}

/// The key alone, on a connection that may be in the middle of something.
async fn insert_key(connection: &mut SqliteConnection, now: Stamp, key: NewKey<'_>) -> Result<SessionToken> {
    let token = SessionToken::generate()?;
    let lifetime = i64::try_from(key.lifetime.as_secs()).unwrap_or(i64::MAX);
    sqlx::query(
        "INSERT INTO keys (id, user_id, secret_hash, name, is_token, lifetime_seconds,
                           created_at, updated_at, last_used, expires_at, scopes, login_type)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9, $10, $11)",
    )
    .bind(token.id())
    .bind(key.user)
    .bind(token.hash().as_bytes())
    .bind(key.name)
    .bind(key.kind == KeyKind::Token)
    .bind(lifetime)
    .bind(now.micros())
    .bind(Stamp::NEVER.micros())
    .bind((now + key.lifetime).micros())
    .bind(key.scopes.cloned().unwrap_or_default().stored())
    .bind(if key.by_password { "password" } else { "token" })
    .execute(connection)
    .await?;
    Ok(token)
}
