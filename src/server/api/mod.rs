//! The REST calls (`http-api.md` §2–5), one file for each kind of resource.

pub(crate) mod agents;
pub(crate) mod builds;
pub(crate) mod info;
pub(crate) mod inside;
pub(crate) mod keys;
pub(crate) mod login;
pub(crate) mod users;
mod views;
pub(crate) mod watch;
pub(crate) mod workspaces;

use super::{
    access::Me,
    answer::{Answer, ApiError},
    app::App,
    store::{StoreError, User},
};
use axum::{
    body,
    extract::{FromRequest, Request},
    http::StatusCode,
};
use serde::de::DeserializeOwned;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// The longest request body. The longest that clients send is a list of scopes.
const MAX_BODY: usize = 64 << 10;
/// How long a client may take to send its body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// The longest name of a user, a workspace or a token.
const MAX_NAME: usize = 32;

/// A JSON body, of any content type.
pub(crate) struct Input<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Input<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self, ApiError> {
        let bytes = tokio::time::timeout(BODY_TIME, body::to_bytes(request.into_body(), MAX_BODY));
        let Ok(bytes) = bytes.await else {
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "Request body took too long."));
        };
        let bytes = bytes.map_err(|_| ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "Request body too large."))?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::bad_request("Request body must be valid JSON.").with_detail(e.to_string()))?;
        Ok(Self(value))
    }
}

/// Reads an id of the path.
pub(crate) fn id(text: &str) -> Answer<Uuid> {
    Uuid::try_parse(text).map_err(|_| {
        let detail = match text.len() {
            36 => "invalid UUID format".to_owned(),
            n => format!("invalid UUID length: {n}"),
        };
        ApiError::bad_request(format!("Invalid UUID {text:?}.")).with_detail(detail)
    })
}

fn no_user(text: &str) -> ApiError {
    ApiError::bad_request("\"user\" must be an existing uuid or username.").with_detail(format!("queried user={text:?}"))
}

/// Whom `{user}` in a path names, for calls about users: only oneself is visible.
fn visible_user(me: &Me, text: &str) -> Answer<Arc<User>> {
    let own =
        text == "me" || text.eq_ignore_ascii_case(&me.user.username) || Uuid::try_parse(text).is_ok_and(|id| id == me.user.id);
    if own { Ok(Arc::clone(&me.user)) } else { Err(no_user(text)) }
}

/// Whom `{user}` in a path names, for calls about keys: the first user cares for everybody's.
async fn key_owner(app: &App, me: &Me, text: &str) -> Answer<Arc<User>> {
    if let Ok(user) = visible_user(me, text) {
        return Ok(user);
    }
    if !me.user.is_first {
        return Err(no_user(text));
    }
    let found = match Uuid::try_parse(text) {
        Ok(id) => app.store().user(id).await,
        Err(_) => app.store().user_by_name(text).await,
    };
    match found {
        Ok(user) => Ok(Arc::new(user)),
        Err(StoreError::NotFound) => Err(no_user(text)),
        Err(error) => Err(error.into()),
    }
}

/// Whom `{user}` in a path names, for calls about a user's things: those of others do not exist for the caller.
async fn owner(app: &App, me: &Me, text: &str) -> Answer<Arc<User>> {
    if let Ok(user) = visible_user(me, text) {
        return Ok(user);
    }
    let found = match Uuid::try_parse(text) {
        Ok(id) => app.store().user(id).await,
        Err(_) => app.store().user_by_name(text).await,
    };
    match found {
        Ok(_) => Err(ApiError::not_found()),
        Err(StoreError::NotFound) => Err(no_user(text)),
        Err(error) => Err(error.into()),
    }
}

/// Whether `name` is words of letters and digits, joined by single hyphens.
fn is_name(name: &str) -> bool {
    let words = name.split('-').all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric()));
    words && name.len() <= MAX_NAME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_joined_by_single_hyphens() {
        for good in ["a", "dev", "my-Box-2", &"x".repeat(32)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a--b", "a.b", "a b", "ä", &"x".repeat(33)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
