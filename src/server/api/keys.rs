//! Users' keys and named tokens (`http-api.md` §3).

use super::{
    super::{
        access::{Me, query},
        answer::{Answer, ApiError, json, ok, put},
        app::App,
        store::{Key, KeyKind, NewKey, StoreError},
        time::Stamp,
    },
    Input, visible_user,
};
use axum::{
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

const HOUR: Duration = Duration::from_secs(3600);
/// The life of a login made from another token, counted from its last use.
const SESSION_LIFE: Duration = Duration::from_secs(168 * 3600);
/// The life of a named token unless it asks for another.
const DEFAULT_TOKEN_LIFE: Duration = SESSION_LIFE;
/// The longest life of a token: the first user's tokens can do more, so they live shorter.
const MAX_FIRST_USER_LIFE: Duration = SESSION_LIFE;
const MAX_LIFE: Duration = Duration::from_secs(876_600 * 3600);
const MAX_TOKEN_NAME: usize = 64;

fn max_life(me: &Me) -> Duration {
    if me.user.is_first { MAX_FIRST_USER_LIFE } else { MAX_LIFE }
}

fn view(key: &Key) -> Value {
    json!({
        "id": key.id,
        "user_id": key.user_id,
        "last_used": key.last_used,
        "expires_at": key.expires_at,
        "created_at": key.created_at,
        "updated_at": key.updated_at,
        "login_type": "token",
        "scope": "all",
        "scopes": ["coder:all"],
        "token_name": key.name,
        "lifetime_seconds": key.lifetime.as_secs(),
        "allow_list": ["*:*"],
    })
}

/// `POST /api/v2/users/{user}/keys`: a login of its own, made from another token.
pub(crate) async fn create_session(State(app): State<App>, me: Me, Path(user): Path<String>) -> Answer {
    let user = visible_user(&me, &user)?.id;
    let key = NewKey { user, kind: KeyKind::Session, name: "", lifetime: SESSION_LIFE };
    let token = app.store().insert_key(Stamp::now(), key).await?;
    Ok(json(StatusCode::CREATED, &json!({ "key": token.expose() })))
}

/// `GET /api/v2/users/{user}/keys/{id}`
pub(crate) async fn get(State(app): State<App>, me: Me, Path((user, id)): Path<(String, String)>) -> Answer {
    let user = visible_user(&me, &user)?;
    Ok(ok(&view(&app.store().key(user.id, &id).await?)))
}

/// `DELETE /api/v2/users/{user}/keys/{id}`
pub(crate) async fn delete(State(app): State<App>, me: Me, Path((user, id)): Path<(String, String)>) -> Answer {
    let user = visible_user(&me, &user)?;
    app.store().delete_key(user.id, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /api/v2/users/logout`
pub(crate) async fn logout(State(app): State<App>, me: Me) -> Answer {
    app.store().delete_key(me.user.id, &me.key.id).await?;
    Ok(ok(&json!({ "message": "Logged out!" })))
}

/// What `POST …/keys/tokens` looks at. Scopes are not narrowed: a token can do what its user can.
#[derive(Debug, Deserialize)]
pub(crate) struct NewToken {
    /// Nanoseconds; 0 for the default.
    #[serde(default)]
    lifetime: i64,
    #[serde(default)]
    token_name: String,
}

/// `POST /api/v2/users/{user}/keys/tokens`
pub(crate) async fn create_token(
    State(app): State<App>,
    me: Me,
    Path(user): Path<String>,
    Input(new): Input<NewToken>,
) -> Answer {
    let user = visible_user(&me, &user)?.id;
    let refuse = |detail| Err(ApiError::bad_request("Failed to validate create API key request.").with_detail(detail));
    let lifetime = match u64::try_from(new.lifetime).map(Duration::from_nanos) {
        Err(_) => return refuse("lifetime must be positive number greater than 0".to_owned()),
        Ok(Duration::ZERO) => DEFAULT_TOKEN_LIFE,
        Ok(life) if life > max_life(&me) => {
            let hours = max_life(&me).as_secs() / HOUR.as_secs();
            return refuse(format!("lifetime must be less than {hours}h0m0s"));
        }
        Ok(life) => life,
    };
    if new.token_name.len() > MAX_TOKEN_NAME || new.token_name.chars().any(char::is_control) {
        return Err(ApiError::invalid("token_name", "max", &format!("{} bytes", new.token_name.len())));
    }
    let name = match new.token_name.as_str() {
        "" => format!("token-{}", Uuid::new_v4().simple()),
        name => name.to_owned(),
    };
    match app.store().insert_key(Stamp::now(), NewKey { user, kind: KeyKind::Token, name: &name, lifetime }).await {
        Ok(token) => Ok(json(StatusCode::CREATED, &json!({ "key": token.expose() }))),
        Err(StoreError::Taken) => Err(ApiError::new(StatusCode::CONFLICT, format!("A token with name {name:?} already exists."))
            .with_field("name", "This value is already in use and should be unique.")),
        Err(error) => Err(error.into()),
    }
}

/// `GET /api/v2/users/{user}/keys/tokens`
pub(crate) async fn tokens(State(app): State<App>, me: Me, Path(user): Path<String>, uri: Uri) -> Answer {
    let user = visible_user(&me, &user)?;
    let with_expired = query(&uri, "include_expired").is_some_and(|v| v == "true");
    let keys = app.store().tokens(Stamp::now(), user.id, with_expired).await?;
    let views = keys.iter().map(|key| {
        let mut view = view(key);
        put(&mut view, "username", user.username.as_str());
        view
    });
    Ok(ok(&views.collect::<Vec<_>>()))
}

/// `GET /api/v2/users/{user}/keys/tokens/tokenconfig`
pub(crate) async fn token_config(me: Me, Path(user): Path<String>) -> Answer<Response> {
    visible_user(&me, &user)?;
    Ok(ok(&json!({ "max_token_lifetime": i64::try_from(max_life(&me).as_nanos()).unwrap_or(i64::MAX) })))
}

/// `GET /api/v2/users/{user}/keys/tokens/{name}`
pub(crate) async fn token_by_name(State(app): State<App>, me: Me, Path((user, name)): Path<(String, String)>) -> Answer {
    let user = visible_user(&me, &user)?;
    Ok(ok(&view(&app.store().token_by_name(user.id, &name).await?)))
}
