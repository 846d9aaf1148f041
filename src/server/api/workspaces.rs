//! Workspaces.
//!
//! `POST /api/v2/users/{user}/workspaces` takes Coder's body and looks at `name` alone: there is one template, a
//! workspace that is only an agent. Beside it, `agent_url` says where the agent reaches the server if not at the access
//! URL, and `manifest` what is added to the agent's. The answer is the workspace's JSON and, beside Coder's fields,
//! `agent_url` and `agent_token`: the token of the workspace's agent, which is shown nowhere else.

use super::{
    super::{
        access::{Me, query},
        answer::{Answer, ApiError, json, ok, put},
        app::App,
        audit::Which,
        builds,
        manifest::Additions,
        start::access_url,
        store::{NewBuild, StoreError, Transition, Workspace},
        time::Stamp,
    },
    Input, id, is_name, owner, views, visible_user,
};
use axum::{
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::IntoResponse as _,
};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

/// What is told of a URL for an agent that cannot be used.
const AGENT_URL_RULE: &str = "It must be http or https with a host and nothing more, such as https://coder.internal:3000.";

/// `GET /api/v2/users/{user}/workspace/{name}`
pub(crate) async fn by_name(State(app): State<App>, me: Me, Path((user, name)): Path<(String, String)>) -> Answer {
    let owner = owner(&app, &me, &user).await?;
    let workspace = app.store().workspace_by_name(owner.id, &name).await?;
    Ok(ok(&views::workspace(&app, &workspace).await?))
}

/// A living workspace of the caller by the id in a path.
pub(crate) async fn mine(app: &App, me: &Me, text: &str) -> Answer<Workspace> {
    let workspace = app.store().workspace(me.user.id, id(text)?).await?;
    if workspace.deleted { Err(ApiError::not_found()) } else { Ok(workspace) }
}

/// `GET /api/v2/workspaces/{id}`
pub(crate) async fn get(State(app): State<App>, me: Me, Path(id): Path<String>) -> Answer {
    let workspace = mine(&app, &me, &id).await?;
    Ok(ok(&views::workspace(&app, &workspace).await?))
}

/// `GET /api/v2/workspaces?q=&limit=&offset=`: the caller's own.
pub(crate) async fn list(State(app): State<App>, me: Me, uri: Uri) -> Answer {
    let (limit, offset) = (number(&uri, "limit")?, number(&uri, "offset")?.unwrap_or(0));
    let terms = terms(&query(&uri, "q").unwrap_or_default())?;
    let all = app.store().workspaces(me.user.id).await?;
    let found: Vec<_> = all.iter().filter(|w| terms.iter().all(|term| term.matches(w))).collect();
    // A limit of 0 means none, as in Go.
    let limit = limit.filter(|n| *n > 0).unwrap_or(usize::MAX);
    let mut page = Vec::new();
    for workspace in found.iter().skip(offset).take(limit) {
        page.push(views::workspace(&app, workspace).await?);
    }
    Ok(ok(&json!({ "workspaces": page, "count": found.len() })))
}

fn number(uri: &Uri, name: &'static str) -> Answer<Option<usize>> {
    let Some(text) = query(uri, name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let number = text.parse::<i32>().ok().and_then(|n| usize::try_from(n).ok());
    number.map(Some).ok_or_else(|| {
        ApiError::bad_request("Query parameters have invalid values.").with_field(
            name,
            format!(
                "Query param {name:?} must be a valid 32-bit positive integer: strconv.ParseInt: parsing {text:?}: invalid syntax"
            ),
        )
    })
}

/// One condition of a search.
#[derive(Debug, PartialEq, Eq)]
enum Term {
    Owner(String),
    Name(String),
    Template(String),
    Part(String),
}

impl Term {
    fn matches(&self, workspace: &Workspace) -> bool {
        let contains = |text: &str, part: &str| text.to_ascii_lowercase().contains(&part.to_ascii_lowercase());
        match self {
            Self::Owner(name) => name == "me" || name.eq_ignore_ascii_case(&workspace.owner_name),
            Self::Name(name) => contains(&workspace.name, name),
            Self::Template(name) => name == "agent",
            Self::Part(text) => match text.split_once('/') {
                Some((owner, name)) => owner.eq_ignore_ascii_case(&workspace.owner_name) && contains(&workspace.name, name),
                None => contains(&workspace.name, text),
            },
        }
    }
}

/// Reads a search: `key:value` pairs and free words, either in quotes where they hold spaces.
fn terms(text: &str) -> Answer<Vec<Term>> {
    let refuse = |detail: String| ApiError::bad_request("Invalid workspace search query.").with_field("q", detail);
    let mut terms = Vec::new();
    let mut quoted = false;
    for element in text.split(|c: char| {
        quoted ^= c == '"';
        c == ' ' && !quoted
    }) {
        let element = element.replace('"', "");
        let mut parts = element.split(':');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(""), None, _) | (None, _, _) => {}
            (Some(word), None, _) => terms.push(Term::Part(word.to_owned())),
            (_, _, Some(_)) => return Err(refuse(format!("Query element {element:?} can only contain 1 ':'"))),
            (Some(key), Some(value), None) => terms.push(match key {
                "owner" => Term::Owner(value.to_owned()),
                "name" => Term::Name(value.to_owned()),
                "template" => Term::Template(value.to_owned()),
                _ => return Err(refuse(format!("{key:?} is not a valid query param"))),
            }),
        }
    }
    Ok(terms)
}

/// What `POST /api/v2/users/{user}/workspaces` looks at.
#[derive(Debug, Deserialize)]
pub(crate) struct NewWorkspace {
    #[serde(default)]
    name: String,
    #[serde(default)]
    manifest: Option<serde_json::Value>,
    /// Where the agent reaches the server; empty for the access URL.
    #[serde(default)]
    agent_url: String,
}

/// `POST /api/v2/users/{user}/workspaces`
pub(crate) async fn create(State(app): State<App>, me: Me, Path(user): Path<String>, Input(new): Input<NewWorkspace>) -> Answer {
    let owner = visible_user(&me, &user)?;
    // A name that reads as an id would name another workspace on command lines.
    if !is_name(&new.name) || Uuid::try_parse(&new.name).is_ok() {
        return Err(ApiError::invalid("name", "workspace_name", &new.name));
    }
    let additions = new.manifest.map(Additions::parse).transpose();
    let additions = additions
        .map_err(|why| ApiError::bad_request("The manifest is of no use.").with_field("manifest", why))?
        .unwrap_or_default();
    let url = match new.agent_url.as_str() {
        "" => None,
        text => {
            let refuse = |_| ApiError::bad_request("Validation failed.").with_field("agent_url", AGENT_URL_RULE);
            Some(access_url(text).map_err(refuse)?.as_str().trim_end_matches('/').to_owned())
        }
    };
    let (workspace, token) = match app.store().insert_workspace_with(Stamp::now(), owner.id, &new.name, &additions).await {
        Err(StoreError::Taken) => {
            return Err(ApiError::new(StatusCode::CONFLICT, format!("Workspace {:?} already exists.", new.name))
                .with_field("name", "This value is already in use and should be unique."));
        }
        other => other?,
    };
    if let Some(url) = &url {
        app.store().set_agent_url(workspace.id, url).await?;
    }
    let workspace = app.store().workspace(owner.id, workspace.id).await?;
    if app.settings().hooks.start.is_some() {
        let (transition, reason) = (Transition::Start, "initiator");
        let build = NewBuild { workspace: workspace.id, transition, reason, initiator: me.user.id };
        builds::begin(&app, &workspace, build, builds::Work::With(token)).await?;
    }
    let mut view = views::workspace(&app, &workspace).await?;
    put(&mut view, "agent_token", token.expose());
    if let Some(url) = url {
        put(&mut view, "agent_url", url);
    }
    let mut response = json(StatusCode::CREATED, &view);
    response.extensions_mut().insert(Which(format!("workspace {}", workspace.name)));
    Ok(response)
}

/// `POST /api/v2/workspaces/{id}/usage`: whatever the body says, the workspace is in use.
pub(crate) async fn usage(State(app): State<App>, me: Me, Path(id): Path<String>) -> Answer {
    let workspace = mine(&app, &me, &id).await?;
    app.store().touch_workspace(Stamp::now(), workspace.id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_pairs_and_words_with_quotes() {
        let read = |text| terms(text).unwrap();
        assert_eq!(read(""), []);
        assert_eq!(read("owner:\"me\""), [Term::Owner("me".into())]);
        assert_eq!(read("name:\"a b\"  dev"), [Term::Name("a b".into()), Term::Part("dev".into())]);
        assert!(terms("foo:bar:baz").is_err());
        assert!(terms("colour:red").is_err());
    }
}
