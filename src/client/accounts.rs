//! Logins and tokens (`http-api.md` §3).

use super::{Client, encode};
use crate::driver::http::{HttpError, Method, Token};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{fmt, time::Duration};

/// The first user of a deployment, who is made by whoever sets it up.
#[derive(Serialize)]
pub struct FirstUser {
    /// Mail address, by which they log in
    pub email: String,
    /// Login name
    pub username: String,
    /// Full name; may be empty
    pub name: String,
    /// Password
    pub password: String,
    /// Ask the maker of the server for a trial licence
    pub trial: bool,
}

impl fmt::Debug for FirstUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstUser").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What a new token is asked to be.
#[derive(Debug, Clone, Default)]
pub struct TokenRequest {
    /// How long it lives
    pub lifetime: Duration,
    /// Name, unique for its owner; empty leaves the choice to the server
    pub name: String,
    /// What it may do; empty for everything
    pub scopes: Vec<String>,
    /// Resources it is for, as `TYPE:ID`; empty for all
    pub allow_list: Vec<String>,
}

/// A token or session as its owner sees it: everything but the token.
#[derive(Debug, Clone, Deserialize)]
pub struct ApiKey {
    /// Public id, the first part of the token
    pub id: String,
    /// Name of a named token
    #[serde(default)]
    pub token_name: String,
    /// What it may do, in words of old servers
    #[serde(default)]
    pub scope: String,
    /// What it may do
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// Resources it is for
    #[serde(default)]
    pub allow_list: Option<Vec<Value>>,
    /// RFC 3339, as all times
    pub last_used: String,
    /// When it ends
    pub expires_at: String,
    /// When it was made
    pub created_at: String,
    /// Whose it is; in lists of all users' tokens only
    #[serde(default)]
    pub username: String,
}

impl Client {
    /// Makes the first user of a new deployment.
    ///
    /// # Errors
    /// Status 409 when there is one.
    pub async fn create_first_user(&self, user: &FirstUser) -> Result<(), HttpError> {
        self.http.call(Method::Post, "/api/v2/users/first", Some(user)).await.map(drop)
    }

    /// Logs in with a password.
    ///
    /// # Errors
    /// Status 401 when mail address and password do not belong together.
    pub async fn log_in(&self, email: &str, password: &str) -> Result<Token, HttpError> {
        #[derive(Deserialize)]
        struct Session {
            session_token: String,
        }
        let body = json!({ "email": email, "password": password });
        let made: Session = self.http.post_json("/api/v2/users/login", &body).await?;
        Ok(Token::new(made.session_token))
    }

    /// Ends the login whose token this client sends.
    ///
    /// # Errors
    /// Status 401 when it has ended already.
    pub async fn log_out(&self) -> Result<(), HttpError> {
        self.http.call(Method::Post, "/api/v2/users/logout", None::<&()>).await.map(drop)
    }

    /// The longest life of a token of this user.
    ///
    /// # Errors
    /// When the user is not visible.
    pub async fn longest_token_life(&self, user: &str) -> Result<Duration, HttpError> {
        #[derive(Deserialize)]
        struct Config {
            max_token_lifetime: u64,
        }
        let config: Config = self.http.get_json(&format!("{}/tokenconfig", tokens_of(user))).await?;
        Ok(Duration::from_nanos(config.max_token_lifetime))
    }

    /// Makes a token.
    ///
    /// # Errors
    /// Status 409 when the name is taken, 400 for a life, scope or resource that is not to be had.
    pub async fn create_token(&self, user: &str, request: &TokenRequest) -> Result<Token, HttpError> {
        #[derive(Deserialize)]
        struct Made {
            key: String,
        }
        let mut body = json!({
            "lifetime": u64::try_from(request.lifetime.as_nanos()).unwrap_or(u64::MAX),
            "token_name": request.name,
        });
        // An old server does not know the empty lists.
        if let Some(body) = body.as_object_mut() {
            for (name, list) in [("scopes", &request.scopes), ("allow_list", &request.allow_list)] {
                if !list.is_empty() {
                    body.insert(name.to_owned(), json!(list));
                }
            }
        }
        let made: Made = self.http.post_json(&tokens_of(user), &body).await?;
        Ok(Token::new(made.key))
    }

    /// The user's tokens, or everybody's, as the server writes them; expired ones too if wished.
    ///
    /// # Errors
    /// When the token is refused or the server cannot be reached.
    pub async fn tokens(&self, all: bool, expired: bool) -> Result<Vec<Value>, HttpError> {
        let list: Option<Vec<Value>> =
            self.http.get_json(&format!("{}?include_all={all}&include_expired={expired}", tokens_of("me"))).await?;
        Ok(list.unwrap_or_default())
    }

    /// One of the user's tokens, by its name or else its id.
    ///
    /// # Errors
    /// Status 404 when there is none.
    pub async fn token(&self, name_or_id: &str) -> Result<Value, HttpError> {
        match self.http.get_json(&format!("{}/{}", tokens_of("me"), encode(name_or_id))).await {
            Err(error) if error.status() == Some(404) => self.token_by_id(name_or_id).await,
            done => done,
        }
    }

    /// One of the user's tokens, by its id alone.
    ///
    /// # Errors
    /// Status 404 when there is none.
    pub async fn token_by_id(&self, id: &str) -> Result<Value, HttpError> {
        self.http.get_json(&format!("/api/v2/users/me/keys/{}", encode(id))).await
    }

    /// Deletes one of the user's tokens by its id.
    ///
    /// # Errors
    /// Status 404 when there is none.
    pub async fn delete_token(&self, id: &str) -> Result<(), HttpError> {
        self.http.call(Method::Delete, &format!("/api/v2/users/me/keys/{}", encode(id)), None::<&()>).await.map(drop)
    }

    /// The TCP ports that programs listen on beside a connected agent.
    ///
    /// # Errors
    /// Status 404 from a server that cannot ask its agents, 400 when the agent is not connected.
    pub async fn listening_ports(&self, agent: uuid::Uuid) -> Result<Vec<ListeningPort>, HttpError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            ports: Option<Vec<ListeningPort>>,
        }
        let list: List = self.http.get_json(&format!("/api/v2/workspaceagents/{agent}/listening-ports")).await?;
        Ok(list.ports.unwrap_or_default())
    }
}

/// A port that a program in a workspace listens on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ListeningPort {
    /// The program
    #[serde(default)]
    pub process_name: String,
    /// `tcp`
    #[serde(default)]
    pub network: String,
    /// The port
    pub port: u16,
}

fn tokens_of(user: &str) -> String {
    format!("/api/v2/users/{}/keys/tokens", encode(user))
}
