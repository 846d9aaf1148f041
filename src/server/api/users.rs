//! Users. The first user's token lies in the data folder, every other user's is made by the first user and shown once.
//! Who has a password can log in with it, too (`login.rs`).
//!
//! `POST /api/v2/users` takes Coder's body and looks at `username`, `name`, `email` and `password` alone. Its answer is the user's
//! JSON and, beside Coder's fields, `session_token`: the new user's token, which is shown nowhere else.

use super::{
    super::{
        access::Me,
        answer::{Answer, ApiError, json, ok, put},
        app::App,
        audit::Which,
        password::Password,
        store::{StoreError, User},
        time::Stamp,
    },
    Input, is_name, key_owner, login, visible_user,
};
use axum::{
    extract::{FromRequest as _, Path, Request, State},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

/// The life of the token that a new user gets, counted from its last use.
const FIRST_TOKEN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

fn view(app: &App, user: &User) -> Value {
    let owner = json!([{ "name": "owner", "display_name": "Owner" }]);
    let mut view = json!({
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "created_at": user.created_at,
        "updated_at": user.updated_at,
        "last_seen_at": user.last_seen_at,
        "status": "active",
        "login_type": if user.has_password { "password" } else { "token" },
        "organization_ids": [app.store().deployment().organization],
        "roles": if user.is_first { owner } else { json!([]) },
    });
    if !user.name.is_empty() {
        put(&mut view, "name", user.name.as_str());
    }
    view
}

/// `GET /api/v2/users/first`
pub(crate) async fn first(State(app): State<App>) -> Answer {
    match app.store().first_user().await? {
        Some(_) => Ok(ok(&json!({ "message": "The initial user has already been created!" }))),
        None => Err(ApiError::new(StatusCode::NOT_FOUND, "The initial user has not been created!")),
    }
}

/// `POST /api/v2/users/first`: where the server does not make the first user itself, whoever comes first may, once.
pub(crate) async fn create_first(State(app): State<App>, body: Request) -> Answer {
    let taken = || json(StatusCode::CONFLICT, &json!({ "message": "The initial user has already been created." }));
    if !app.settings().first_user_by_request || app.store().first_user().await?.is_some() {
        return Ok(taken());
    }
    let Input(new) = Input::<NewUser>::from_request(body, &app).await?;
    new.check()?;
    let hash = login::hash(new.password).await?;
    let user = match app.store().insert_first_user(Stamp::now(), &new.username, &new.name, &new.email, &hash).await {
        // Somebody was faster.
        Err(StoreError::Taken) => return Ok(taken()),
        other => other?,
    };
    let organization = app.store().deployment().organization;
    let mut response = json(StatusCode::CREATED, &json!({ "user_id": user.id, "organization_id": organization }));
    response.extensions_mut().insert(Which(format!("user {}", user.username)));
    Ok(response)
}

/// `GET /api/v2/users/{user}`
pub(crate) async fn get(State(app): State<App>, me: Me, Path(user): Path<String>) -> Answer {
    Ok(ok(&view(&app, &*key_owner(&app, &me, &user).await?)))
}

/// `GET /api/v2/users`: all of them, for the first user.
pub(crate) async fn list(State(app): State<App>, _me: Me) -> Answer {
    let users = app.store().users().await?;
    let views: Vec<_> = users.iter().map(|user| view(&app, user)).collect();
    Ok(ok(&json!({ "users": views, "count": users.len() })))
}

/// `GET /api/v2/users/{user}/organizations`: the one organization.
pub(crate) async fn organizations(State(app): State<App>, me: Me, Path(user): Path<String>) -> Answer {
    visible_user(&me, &user)?;
    let deployment = app.store().deployment();
    Ok(ok(&json!([{
        "id": deployment.organization,
        "name": super::views::ORGANIZATION,
        "display_name": "Coder",
        "icon": "",
        "description": "Builtin default organization.",
        "created_at": deployment.created_at,
        "updated_at": deployment.created_at,
        "is_default": true,
    }])))
}

/// What `POST /api/v2/users` looks at.
#[derive(Debug, Deserialize)]
pub(crate) struct NewUser {
    #[serde(default)]
    username: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    email: String,
    #[serde(default)]
    password: Password,
}

impl NewUser {
    /// Refuses names that cannot be had.
    fn check(&self) -> Answer<()> {
        let name = self.username.as_str();
        // A name that reads as an id would name another user in paths; `me` names the caller.
        if !is_name(name) || name == "me" || Uuid::try_parse(name).is_ok() {
            return Err(ApiError::invalid("username", "username", name));
        }
        if self.name.len() > 128 || self.email.len() > 254 {
            return Err(ApiError::bad_request("Validation failed.").with_field("name", "The name or the address is too long."));
        }
        Ok(())
    }
}

/// `POST /api/v2/users`
pub(crate) async fn create(State(app): State<App>, _me: Me, Input(new): Input<NewUser>) -> Answer {
    new.check()?;
    let name = new.username.as_str();
    let email = if new.email.is_empty() { format!("{name}@localhost") } else { new.email };
    let hash = if new.password.is_empty() { None } else { Some(login::hash(new.password).await?) };
    let (now, lifetime) = (Stamp::now(), FIRST_TOKEN_LIFE);
    let made = app.store().insert_user_with_key(now, name, &new.name, &email, hash.as_deref(), lifetime).await;
    let (user, token) = match made {
        Err(StoreError::Taken) => {
            return Err(ApiError::new(StatusCode::CONFLICT, "A user with this username or email already exists.")
                .with_field("username", "This value is already in use and should be unique."));
        }
        other => other?,
    };
    let mut answer = view(&app, &user);
    put(&mut answer, "session_token", token.expose());
    let mut response = json(StatusCode::CREATED, &answer);
    response.extensions_mut().insert(Which(format!("user {}", user.username)));
    Ok(response)
}
