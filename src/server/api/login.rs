//! Logging in with a password, and changing it (`http-api.md` §3).

use super::{
    super::{
        access::Me,
        answer::{Answer, ApiError, json, ok},
        app::App,
        audit::Who,
        password::Password,
        store::{KeyKind, NewKey, StoreError},
        time::Stamp,
    },
    Input, key_owner,
};
use axum::{
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;

/// The hash of a new password, if it is good enough.
pub(super) async fn hash(password: Password) -> Answer<String> {
    if let Some(weakness) = password.weakness() {
        return Err(ApiError::bad_request("Password is invalid").with_field("password", weakness));
    }
    Ok(password.hash().await?)
}

/// `GET /api/v2/users/authmethods`
pub(crate) async fn methods(State(app): State<App>) -> Response {
    ok(&json!({
        "password": { "enabled": app.settings().sessions.passwords },
        "github": { "enabled": false, "default_provider_configured": false },
        "oidc": { "enabled": false, "signInText": "", "iconUrl": "" },
    }))
}

/// What `POST /api/v2/users/login` looks at.
#[derive(Debug, Deserialize)]
pub(crate) struct Login {
    #[serde(default)]
    email: String,
    #[serde(default)]
    password: Password,
}

/// `POST /api/v2/users/login`: a wrong address and a wrong password are told alike and take alike.
pub(crate) async fn login(State(app): State<App>, Input(given): Input<Login>) -> Answer {
    let rules = &app.settings().sessions;
    if !rules.passwords {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "Password authentication is disabled."));
    }
    let (user, stored) = match app.store().user_by_email(&given.email).await {
        Ok((user, stored)) => (Some(user), stored),
        Err(StoreError::NotFound) => (None, None),
        Err(error) => return Err(error.into()),
    };
    let same = given.password.matches(stored).await?;
    // What was typed as an address may be a password.
    let shown = user.as_ref().map_or_else(|| "an unknown address".to_owned(), |user| format!("user {}", user.username));
    let Some(user) = user.filter(|_| same) else {
        let mut response = ApiError::new(StatusCode::UNAUTHORIZED, "Incorrect email or password.").into_response();
        response.extensions_mut().insert(Who(format!("nobody as {shown}")));
        return Ok(response);
    };
    let key =
        NewKey { user: user.id, kind: KeyKind::Session, name: "", lifetime: rules.session, scopes: None, by_password: true };
    let token = app.store().insert_key(Stamp::now(), key).await?;
    let mut response = json(StatusCode::CREATED, &json!({ "session_token": token.expose() }));
    if let Some(cookie) = cookie(&app, &token.expose(), "") {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response.extensions_mut().insert(Who(format!("user {} by key {}", user.username, token.id())));
    Ok(response)
}

/// What makes a browser forget its cookie.
pub(super) fn no_cookie(app: &App) -> Option<HeaderValue> {
    cookie(app, "", "; Max-Age=0")
}

/// The cookie of a browser. It goes to no script and not with requests that pages of other sites make.
fn cookie(app: &App, token: &str, more: &str) -> Option<HeaderValue> {
    let secure = if app.is_https() { "; Secure" } else { "" };
    let text = format!("coder_session_token={token}; Path=/; HttpOnly; SameSite=Lax{secure}{more}");
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What `PUT /api/v2/users/{user}/password` looks at.
#[derive(Debug, Deserialize)]
pub(crate) struct NewPassword {
    #[serde(default)]
    old_password: Password,
    #[serde(default)]
    password: Password,
}

/// `PUT /api/v2/users/{user}/password`: one's own with the old one, if there is one; the first user sets everybody's.
/// Logins that came from the old one end.
pub(crate) async fn set_password(
    State(app): State<App>,
    me: Me,
    Path(user): Path<String>,
    Input(new): Input<NewPassword>,
) -> Answer {
    let user = key_owner(&app, &me, &user).await?;
    if user.id == me.user.id
        && let stored @ Some(_) = app.store().password_of(user.id).await?
        && !new.old_password.matches(stored).await?
    {
        return Err(ApiError::bad_request("Old password is incorrect.").with_field("old_password", "It is not the current one."));
    }
    let hash = hash(new.password).await?;
    app.store().set_password(Stamp::now(), user.id, &hash, &me.key.id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
