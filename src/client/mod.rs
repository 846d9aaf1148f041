//! L6: typed calls of the server's REST interface (`http-api.md` §2–5). Only the fields that are used are read.

mod accounts;
mod types;

use crate::driver::{
    http::{Events, Http, HttpError, Io, Method, Token},
    websocket::WebSocket,
};
use serde::Deserialize;
use serde_json::json;
use std::fmt::Write as _;
use uuid::Uuid;

pub use accounts::{ApiKey, FirstUser, ListeningPort, TokenRequest};
pub use types::{
    Agent, AgentHealth, AgentStatus, Build, BuildLine, Connection, Job, Lifecycle, NewUser, NewWorkspace, Resource, Role, Script,
    SshConfig, Transition, User, Workspace,
};

/// The REST interface of one server as one user sees it.
#[derive(Debug, Clone)]
pub struct Client {
    http: Http,
}

/// Percent-encodes one segment of a path or one value of a query.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

impl Client {
    /// The interface behind `http`.
    #[must_use]
    pub const fn new(http: Http) -> Self {
        Self { http }
    }

    /// The HTTP client below.
    #[must_use]
    pub const fn http(&self) -> &Http {
        &self.http
    }

    /// Whether the server has its first user.
    ///
    /// # Errors
    /// When the server cannot be reached or answers something else than yes and no.
    pub async fn has_first_user(&self) -> Result<bool, HttpError> {
        match self.http.call(Method::Get, "/api/v2/users/first", None::<&()>).await {
            // Other servers answer everything with some page.
            Ok(reply) => reply.json::<serde_json::Map<_, _>>().map(|_| true),
            // A 404 with this message is the answer "no"; any other 404 comes from something that is no Coder server.
            Err(HttpError::Refused(r)) if r.status == 404 && r.message.contains("initial user") => Ok(false),
            Err(HttpError::Refused(r)) if r.status == 404 => {
                let reason = format!("{} is not known there (404): is this the URL of a Coder server?", r.request);
                Err(HttpError::Answer { host: r.host, reason })
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the server is one of ours, which says how it ends a socket; a Go server may hang up without a word.
    ///
    /// # Errors
    /// When the server cannot be reached or its answer cannot be read.
    pub async fn is_ours(&self) -> Result<bool, HttpError> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(default)]
            version: String,
        }
        let info: Info = self.http.get_json("/api/v2/buildinfo").await?;
        Ok(info.version.contains("+tailnet."))
    }

    /// The user whom the token belongs to.
    ///
    /// # Errors
    /// When the token is refused or the server cannot be reached.
    pub async fn me(&self) -> Result<User, HttpError> {
        self.http.get_json("/api/v2/users/me").await
    }

    /// A new session token of the user.
    ///
    /// # Errors
    /// When the token is refused or the server cannot be reached.
    pub async fn mint_key(&self) -> Result<Token, HttpError> {
        #[derive(Deserialize)]
        struct Key {
            key: String,
        }
        let made: Key = self.http.post_json("/api/v2/users/me/keys", &json!({})).await?;
        Ok(Token::new(made.key))
    }

    /// A workspace by its owner, or `me`, and name.
    ///
    /// # Errors
    /// Status 404 when there is none that the user may see.
    pub async fn workspace(&self, owner: &str, name: &str) -> Result<Workspace, HttpError> {
        let path = format!("/api/v2/users/{}/workspace/{}?include_deleted=false", encode(owner), encode(name));
        self.http.get_json(&path).await
    }

    /// A workspace by its id.
    ///
    /// # Errors
    /// Status 404 when there is none that the user may see, 410 when it was deleted.
    pub async fn workspace_by_id(&self, id: Uuid) -> Result<Workspace, HttpError> {
        self.http.get_json(&format!("/api/v2/workspaces/{id}")).await
    }

    /// A workspace as it is and at each change.
    ///
    /// # Errors
    /// As [`Client::workspace_by_id`]; status 404 also from a server that cannot tell.
    pub async fn watch_workspace(&self, id: Uuid) -> Result<WorkspaceEvents, HttpError> {
        self.http.events(&format!("/api/v2/workspaces/{id}/watch")).await.map(WorkspaceEvents)
    }

    /// The workspaces that match a search query; an empty one matches all that the user may see.
    ///
    /// # Errors
    /// When the query is refused or the server cannot be reached.
    pub async fn workspaces(&self, query: &str) -> Result<Vec<serde_json::Value>, HttpError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            workspaces: Vec<serde_json::Value>,
        }
        let list: List = self.http.get_json(&format!("/api/v2/workspaces?q={}", encode(query))).await?;
        Ok(list.workspaces)
    }

    /// Starts a stopped workspace with the parameters of its last build. `version` chooses a version of its template.
    ///
    /// # Errors
    /// Status 409 when a build is under way already, 403 when the last build's version may not be used any more.
    pub async fn start_workspace(&self, id: Uuid, version: Option<Uuid>) -> Result<(), HttpError> {
        let mut body = json!({ "transition": "start", "reason": "ssh_connection" });
        if let (Some(version), Some(body)) = (version, body.as_object_mut()) {
            body.insert("template_version_id".to_owned(), json!(version));
        }
        self.http.call(Method::Post, &format!("/api/v2/workspaces/{id}/builds"), Some(&body)).await.map(drop)
    }

    /// What the deployment wants in its users' SSH configurations.
    ///
    /// # Errors
    /// Status 404 from an old server, which wants nothing.
    pub async fn ssh_config(&self) -> Result<SshConfig, HttpError> {
        self.http.get_json("/api/v2/deployment/ssh").await
    }

    /// Makes a workspace with one agent; `manifest` is what it adds to the manifest of that. Only our own server has this
    /// call: a Go server makes workspaces from templates.
    ///
    /// # Errors
    /// Status 409 when the name is taken, 400 when it is no name or the manifest is of no use.
    pub async fn create_workspace(
        &self,
        name: &str,
        agent_url: Option<&str>,
        manifest: Option<serde_json::Value>,
    ) -> Result<NewWorkspace, HttpError> {
        let mut body = json!({ "name": name, "agent_url": agent_url.unwrap_or_default() });
        if let (Some(manifest), Some(body)) = (manifest, body.as_object_mut()) {
            body.insert("manifest".to_owned(), manifest);
        }
        self.http.post_json("/api/v2/users/me/workspaces", &body).await
    }

    /// Makes a build of a workspace. `version` chooses a version of its template; `orphan` deletes without the work that
    /// belongs to it.
    ///
    /// # Errors
    /// Status 409 when a build is under way already.
    pub async fn build_workspace(
        &self,
        id: Uuid,
        transition: Transition,
        reason: &str,
        version: Option<Uuid>,
        orphan: bool,
    ) -> Result<Build, HttpError> {
        let mut body = json!({ "transition": transition.as_str(), "reason": reason });
        if let (true, Some(body)) = (orphan, body.as_object_mut()) {
            body.insert("orphan".to_owned(), json!(true));
        }
        if let (Some(version), Some(body)) = (version, body.as_object_mut()) {
            body.insert("template_version_id".to_owned(), json!(version));
        }
        // Only a start has a reason.
        if transition != Transition::Start
            && let Some(body) = body.as_object_mut()
        {
            body.remove("reason");
        }
        self.http.post_json(&format!("/api/v2/workspaces/{id}/builds"), &body).await
    }

    /// A build by id.
    ///
    /// # Errors
    /// Status 404 when there is none that the user may see.
    pub async fn build(&self, id: Uuid) -> Result<Build, HttpError> {
        self.http.get_json(&format!("/api/v2/workspacebuilds/{id}")).await
    }

    /// The newest builds of a workspace, newest first.
    ///
    /// # Errors
    /// Status 404 when there is no such workspace that the user may see.
    pub async fn builds(&self, workspace: Uuid) -> Result<Vec<Build>, HttpError> {
        self.http.get_json(&format!("/api/v2/workspaces/{workspace}/builds?limit=100")).await
    }

    /// Cancels a build that is under way.
    ///
    /// # Errors
    /// Status 400 when it has ended already.
    pub async fn cancel_build(&self, id: Uuid) -> Result<(), HttpError> {
        self.http.call(Method::Patch, &format!("/api/v2/workspacebuilds/{id}/cancel"), None::<&()>).await.map(drop)
    }

    /// The log of a build after line `after`.
    ///
    /// # Errors
    /// Status 404 when there is no such build that the user may see.
    pub async fn build_lines(&self, id: Uuid, after: i64) -> Result<Vec<BuildLine>, HttpError> {
        self.http.get_json(&format!("/api/v2/workspacebuilds/{id}/logs?after={after}")).await
    }

    /// The log of a build after line `after` as it grows: a [`BuildLine`] in JSON a message, closed at the build's end.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn follow_build(&self, id: Uuid, after: i64) -> Result<WebSocket<Box<dyn Io>>, HttpError> {
        self.http.websocket(&format!("/api/v2/workspacebuilds/{id}/logs?follow&after={after}"), None).await
    }

    /// Makes a user.
    ///
    /// # Errors
    /// Status 403 unless the caller is the first user, 409 when the name is taken.
    pub async fn create_user(&self, name: &str) -> Result<NewUser, HttpError> {
        self.http.post_json("/api/v2/users", &json!({ "username": name })).await
    }

    /// What is needed to reach any agent: the relay map and the deployment's limits.
    ///
    /// # Errors
    /// When the token is refused or the server cannot be reached.
    pub async fn connection(&self) -> Result<Connection, HttpError> {
        self.http.get_json("/api/v2/workspaceagents/connection").await
    }

    /// The state of an agent.
    ///
    /// # Errors
    /// Status 404 when there is none that the user may see.
    pub async fn agent(&self, id: Uuid) -> Result<Agent, HttpError> {
        self.http.get_json(&format!("/api/v2/workspaceagents/{id}")).await
    }

    /// Tells the server that the workspace is in use, and if there is a name for it, by which kind of program.
    ///
    /// # Errors
    /// When the token is refused or the server cannot be reached.
    pub async fn report_usage(&self, workspace: Uuid, agent: Uuid, app: Option<&str>) -> Result<(), HttpError> {
        let body = app.map(|app| json!({ "agent_id": agent, "app_name": app }));
        self.http.call(Method::Post, &format!("/api/v2/workspaces/{workspace}/usage"), body.as_ref()).await.map(drop)
    }
}

/// A workspace as it changes.
#[derive(Debug)]
pub struct WorkspaceEvents(Events);

impl WorkspaceEvents {
    /// How the workspace is now, or next time that something about it changes; `None` when the server tells no more.
    ///
    /// # Errors
    /// When the connection breaks or an event cannot be read.
    ///
    /// # Cancel safety
    /// No event is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Workspace>, HttpError> {
        while let Some(event) = self.0.next().await? {
            // The others are signs of life and complaints.
            if event.name == "data" {
                return self.0.json(&event).map(Some);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_their_place_in_a_path() {
        assert_eq!(encode("a/b?c#d e%"), "a%2Fb%3Fc%23d%20e%25");
        assert_eq!(encode("dev-1_x.y~"), "dev-1_x.y~");
    }
}
