//! Users' keys and named tokens (`http-api.md` §3).

use super::{
    super::{
        access::{Me, query},
        answer::{Answer, ApiError, json, ok, put},
        app::App,
        audit::Which,
        config::SessionRules,
        scopes::Scopes,
        store::{Key, KeyKind, NewKey, StoreError, User},
        time::Stamp,
        token::SessionToken,
    },
    Input, key_owner, login, visible_user,
};
use axum::{
    extract::{Path, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

const HOUR: Duration = Duration::from_secs(3600);
/// The life of a login made from another token, counted from its last use.
const SESSION_LIFE: Duration = Duration::from_secs(168 * 3600);
const MAX_TOKEN_NAME: usize = 64;
/// Most scopes of one token.
const MAX_SCOPES: usize = 64;

/// The longest life of a user's token: the first user's can do more, so they live shorter.
fn max_life(rules: &SessionRules, user: &User) -> Duration {
    if user.is_first { rules.max_admin_token } else { rules.max_token }
}

/// A duration as Go writes it.
fn go_text(life: Duration) -> String {
    let seconds = life.as_secs();
    format!("{}h{}m{}s", seconds / HOUR.as_secs(), seconds / 60 % 60, seconds % 60)
}

fn view(key: &Key) -> Value {
    json!({
        "id": key.id,
        "user_id": key.user_id,
        "last_used": key.last_used,
        "expires_at": key.expires_at,
        "created_at": key.created_at,
        "updated_at": key.updated_at,
        "login_type": key.login_type,
        "scope": key.scopes.old_word(),
        "scopes": key.scopes.words(),
        "token_name": key.name,
        "lifetime_seconds": key.lifetime.as_secs(),
        "allow_list": ["*:*"],
    })
}

/// `POST /api/v2/users/{user}/keys`: a login of its own, made from another token.
pub(crate) async fn create_session(State(app): State<App>, me: Me, Path(user): Path<String>) -> Answer {
    let user = visible_user(&me, &user)?.id;
    // What came from a password ends with it, at whatever remove.
    let by_password = me.key.login_type == "password";
    let key = NewKey { user, kind: KeyKind::Session, name: "", lifetime: SESSION_LIFE, scopes: None, by_password };
    let token = app.store().insert_key(Stamp::now(), key).await?;
    Ok(made(&token))
}

/// The answer to who made a token. The log gets its public id.
fn made(token: &SessionToken) -> Response {
    let mut response = json(StatusCode::CREATED, &json!({ "key": token.expose() }));
    response.extensions_mut().insert(Which(format!("key {}", token.id())));
    response
}

/// `GET /api/v2/users/{user}/keys/{id}`
pub(crate) async fn get(State(app): State<App>, me: Me, Path((user, id)): Path<(String, String)>) -> Answer {
    let user = key_owner(&app, &me, &user).await?;
    Ok(ok(&view(&app.store().key(user.id, &id).await?)))
}

/// `DELETE /api/v2/users/{user}/keys/{id}`
pub(crate) async fn delete(State(app): State<App>, me: Me, Path((user, id)): Path<(String, String)>) -> Answer {
    let user = key_owner(&app, &me, &user).await?;
    app.store().delete_key(user.id, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /api/v2/users/logout`
pub(crate) async fn logout(State(app): State<App>, me: Me) -> Answer {
    app.store().delete_key(me.user.id, &me.key.id).await?;
    let mut response = ok(&json!({ "message": "Logged out!" }));
    if let Some(cookie) = login::no_cookie(&app) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// `PUT /api/v2/users/{user}/keys/{id}/expire`
pub(crate) async fn expire(State(app): State<App>, me: Me, Path((user, id)): Path<(String, String)>) -> Answer {
    let user = key_owner(&app, &me, &user).await?;
    app.store().expire_key(Stamp::now(), user.id, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What `POST …/keys/tokens` looks at.
#[derive(Debug, Deserialize)]
pub(crate) struct NewToken {
    /// Nanoseconds; 0 for the default.
    #[serde(default)]
    lifetime: i64,
    #[serde(default)]
    token_name: String,
    /// The one scope that older clients name.
    #[serde(default)]
    scope: String,
    #[serde(default)]
    scopes: Option<Vec<String>>,
    /// Which resources the token is for, as `TYPE:ID`. Only "all of them" can be had.
    #[serde(default)]
    allow_list: Option<Vec<String>>,
}

impl NewToken {
    /// The scopes asked for, which must not go beyond those of the caller.
    fn scopes(&self, me: &Me) -> Answer<Scopes> {
        let refuse =
            |detail: String| ApiError::bad_request("Failed to validate create API key request.").with_field("scopes", detail);
        let several = self.scopes.iter().flatten().map(String::as_str);
        let words: Vec<_> = std::iter::once(self.scope.as_str()).filter(|word| !word.is_empty()).chain(several).collect();
        if words.len() > MAX_SCOPES {
            return Err(refuse(format!("A token has at most {MAX_SCOPES} scopes.")));
        }
        let scopes = Scopes::read(words).map_err(|error| refuse(format!("{error}.")))?;
        if !me.key.scopes.contains(&scopes) {
            let detail = "A token cannot make another one that can do more than itself.";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "Forbidden.").with_detail(detail));
        }
        if self.allow_list.iter().flatten().any(|entry| entry != "*:*") {
            return Err(ApiError::bad_request("Failed to validate create API key request.")
                .with_field("allow_list", "Tokens for single resources cannot be had here: leave the list out."));
        }
        Ok(scopes)
    }
}

/// `POST /api/v2/users/{user}/keys/tokens`
pub(crate) async fn create_token(
    State(app): State<App>,
    me: Me,
    Path(user): Path<String>,
    Input(new): Input<NewToken>,
) -> Answer {
    let user = key_owner(&app, &me, &user).await?;
    let rules = &app.settings().sessions;
    let longest = max_life(rules, &user);
    let refuse = |detail| Err(ApiError::bad_request("Failed to validate create API key request.").with_detail(detail));
    let lifetime = match u64::try_from(new.lifetime).map(Duration::from_nanos) {
        Err(_) => return refuse("lifetime must be positive number greater than 0".to_owned()),
        Ok(Duration::ZERO) => rules.default_token.min(longest),
        Ok(life) if life > longest => return refuse(format!("lifetime must be less than {}", go_text(longest))),
        Ok(life) => life,
    };
    if new.token_name.chars().any(char::is_control) {
        return Err(ApiError::bad_request("Validation failed.").with_field("token_name", "A name has no control characters."));
    }
    if new.token_name.len() > MAX_TOKEN_NAME {
        return Err(ApiError::invalid("token_name", "max", &format!("{} bytes", new.token_name.len())));
    }
    let name = match new.token_name.as_str() {
        "" => format!("token-{}", Uuid::new_v4().simple()),
        name => name.to_owned(),
    };
    let scopes = new.scopes(&me)?;
    let by_password = false;
    let key = NewKey { user: user.id, kind: KeyKind::Token, name: &name, lifetime, scopes: Some(&scopes), by_password };
    match app.store().insert_key(Stamp::now(), key).await {
        Ok(token) => Ok(made(&token)),
        Err(StoreError::Taken) => Err(ApiError::new(StatusCode::CONFLICT, format!("A token with name {name:?} already exists."))
            .with_field("name", "This value is already in use and should be unique.")),
        Err(error) => Err(error.into()),
    }
}

/// `GET /api/v2/users/{user}/keys/tokens`
pub(crate) async fn tokens(State(app): State<App>, me: Me, Path(user): Path<String>, uri: Uri) -> Answer {
    let user = key_owner(&app, &me, &user).await?;
    let asks = |name| query(&uri, name).is_some_and(|v| v == "true");
    let now = Stamp::now();
    let keys = if asks("include_all") && me.user.is_first {
        app.store().all_tokens(now, asks("include_expired")).await?
    } else {
        let keys = app.store().tokens(now, user.id, asks("include_expired")).await?;
        keys.into_iter().map(|key| (key, user.username.clone())).collect()
    };
    let views = keys.iter().map(|(key, username)| {
        let mut view = view(key);
        put(&mut view, "username", username.as_str());
        view
    });
    Ok(ok(&views.collect::<Vec<_>>()))
}

/// `GET /api/v2/users/{user}/keys/tokens/tokenconfig`
pub(crate) async fn token_config(State(app): State<App>, me: Me, Path(user): Path<String>) -> Answer<Response> {
    let user = key_owner(&app, &me, &user).await?;
    let longest = max_life(&app.settings().sessions, &user);
    Ok(ok(&json!({ "max_token_lifetime": i64::try_from(longest.as_nanos()).unwrap_or(i64::MAX) })))
}

/// `GET /api/v2/users/{user}/keys/tokens/{name}`
pub(crate) async fn token_by_name(State(app): State<App>, me: Me, Path((user, name)): Path<(String, String)>) -> Answer {
    let user = key_owner(&app, &me, &user).await?;
    Ok(ok(&view(&app.store().token_by_name(user.id, &name).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_written_as_go_does() {
        assert_eq!(go_text(Duration::from_secs(168 * 3600)), "168h0m0s");
        assert_eq!(go_text(Duration::from_secs(90 * 60 + 5)), "1h30m5s");
    }
}
