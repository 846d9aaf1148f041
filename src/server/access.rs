//! Who may call what. Each route of [`super::routes::ROUTES`] names its class here; a handler sees its caller only
//! through [`Me`] or [`Machine`], which this module alone fills in.
//!
//! A token may come in the places of `coordination.md` §2.5, in that order: cookie, query, `Coder-Session-Token`,
//! `Authorization: Bearer`, query `access_token`.

use super::{
    answer::ApiError,
    app::App,
    audit,
    limits::{Counted, Told},
    origin::Origin,
    routes::Route,
    scopes::Action,
    store::{Agent, Key, Presented, User, Workspace},
    time::Stamp,
    token::{AgentToken, SessionToken},
};
use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use std::{net::IpAddr, sync::Arc};
use url::form_urlencoded;
use uuid::Uuid;

const TOKEN_NAME: &str = "coder_session_token";
const TOKEN_HEADER: &str = "coder-session-token";
/// The first user may ask not to be counted.
const BYPASS_HEADER: &str = "x-coder-bypass-ratelimit";

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody: what a client must reach before it can have a token, and the relay.
    Public,
    /// A user with a token that can do everything, for what is theirs.
    User,
    /// A user with a token that can do all of these, for what is theirs.
    Scoped(&'static [Action]),
    /// The first user alone, with a token that can do everything.
    FirstUser,
    /// An agent with the token of a started workspace.
    Agent,
}

/// The calling user and the key that proved it.
#[derive(Debug, Clone)]
pub(crate) struct Me {
    pub(crate) user: Arc<User>,
    pub(crate) key: Arc<Key>,
}

/// The calling agent and its workspace.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) agent: Arc<Agent>,
    pub(crate) workspace: Arc<Workspace>,
}

impl Me {
    /// Refuses what the key's scopes do not grant.
    pub(crate) fn may(&self, action: Action) -> Result<(), ApiError> {
        if self.key.scopes.grants(action) {
            return Ok(());
        }
        Err(ApiError::new(StatusCode::FORBIDDEN, "Forbidden.").with_detail(format!("This token lacks the scope {action}.")))
    }

    /// The first user with a token that can do everything.
    fn is_owner(&self) -> bool {
        self.user.is_first && self.key.scopes.is_all()
    }
}

/// Lets a request through to its handler, or answers it here. Each is counted; those that matter are noted.
pub(crate) async fn admit(State((app, route)): State<(App, &'static Route)>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let ip = parts.extensions.get::<Origin>().map(|origin| origin.ip);
    // Who has used up its requests gets no token looked at for the header's sake: it is refused below in any case.
    let spent = |ip| app.limits().is_spent(Stamp::now(), Counted::source(ip), route.path, route.class());
    let known = if asks_for_no_limit(&parts) && ip.is_some_and(spent) {
        Err(ApiError::forbidden())
    } else {
        identify(&app, route.access, &mut parts).await
    };
    let call = audit::is_noted(route).then(|| audit::Call::of(&parts, ip));
    let (told, refusal) = limited(&app, route, &parts, ip);
    let mut response = match refusal.map_or(known, Err) {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(error) => error.into_response(),
    };
    if let Some(told) = told {
        told.tell(Stamp::now(), response.headers_mut());
    }
    app.requests().count(&route.method, route.path, response.status());
    if let Some(call) = call {
        call.note(route, response.status(), response.extensions().get(), response.extensions().get());
    }
    response
}

fn asks_for_no_limit(parts: &Parts) -> bool {
    parts.headers.get(BYPASS_HEADER).is_some_and(|v| v == "true")
}

/// Counts a request, if its route has a limit; and why it is refused.
fn limited(app: &App, route: &Route, parts: &Parts, ip: Option<IpAddr>) -> (Option<Told>, Option<ApiError>) {
    if !route.path.starts_with("/api/") {
        return (None, None);
    }
    let me = parts.extensions.get::<Me>();
    let bypass = asks_for_no_limit(parts);
    if bypass && me.is_some_and(Me::is_owner) {
        return (None, None);
    }
    let agent = parts.extensions.get::<Machine>().map(|machine| machine.agent.id);
    let who = match (me.map(|me| me.user.id).or(agent), ip) {
        (Some(id), _) => Counted::Known(id),
        (None, Some(ip)) => Counted::source(ip),
        (None, None) => Counted::Others,
    };
    let told = app.limits().count(Stamp::now(), who, route.path, route.class());
    let text = "Only the first user may ask for no rate limit: leave the header X-Coder-Bypass-Ratelimit out.";
    let refusal = told.and_then(|told| told.refusal());
    (told, refusal.or_else(|| bypass.then(|| ApiError::new(StatusCode::PRECONDITION_REQUIRED, text))))
}

/// Notes in a request who calls.
async fn identify(app: &App, access: Access, parts: &mut Parts) -> Result<(), ApiError> {
    match access {
        Access::Public => {}
        Access::User | Access::FirstUser | Access::Scoped(_) => {
            let me = user(app, parts).await?;
            // Whoever is refused below is counted and noted as this user.
            parts.extensions.insert(me.clone());
            match access {
                Access::Scoped(actions) => actions.iter().try_for_each(|action| me.may(*action))?,
                _ if !me.key.scopes.is_all() => {
                    let detail = "This token has only some scopes; the call needs one that can do everything.";
                    return Err(ApiError::new(StatusCode::FORBIDDEN, "Forbidden.").with_detail(detail));
                }
                Access::FirstUser if !me.user.is_first => return Err(ApiError::forbidden()),
                _ => {}
            }
        }
        Access::Agent => {
            let machine = machine(app, parts).await?;
            parts.extensions.insert(machine);
        }
    }
    Ok(())
}

async fn user(app: &App, parts: &Parts) -> Result<Me, ApiError> {
    let refuse = |detail: String| ApiError::signed_out(app.access_url(), detail);
    let Some(found) = Presentation::find(&parts.headers, &parts.uri) else {
        return Err(refuse("Cookie \"coder_session_token\" or query parameter must be provided.".to_owned()));
    };
    // A browser attaches cookies to other sites' requests, too.
    if found.by_browser && !is_read(&parts.method) && !own_origin(app, &parts.headers) {
        return Err(ApiError::forbidden());
    }
    let token: SessionToken = found.text.parse().map_err(|e| refuse(format!("Invalid API key format: {e}")))?;
    match app.store().check_key(Stamp::now(), &token).await? {
        Presented::Valid(user, key) => Ok(Me { user: Arc::from(user), key: Arc::new(key) }),
        Presented::Invalid => Err(refuse("API key is invalid.".to_owned())),
        Presented::Expired(at) => Err(refuse(format!("API key expired at \"{at}\""))),
    }
}

async fn machine(app: &App, parts: &Parts) -> Result<Machine, ApiError> {
    let refuse = |message: &str| ApiError::new(StatusCode::UNAUTHORIZED, message);
    let Some(found) = Presentation::find(&parts.headers, &parts.uri) else {
        return Err(refuse("Cookie \"coder_session_token\" must be provided."));
    };
    let Ok(token) = Uuid::try_parse(&found.text) else {
        let detail = format!("An agent token must be a valid UUIDv4. (len {})", found.text.len());
        return Err(refuse("Workspace agent token invalid.").with_detail(detail));
    };
    match app.store().agent_by_token(&AgentToken::from(token)).await? {
        Some((agent, workspace)) => Ok(Machine { agent: Arc::new(agent), workspace: Arc::new(workspace) }),
        None => Err(refuse("Workspace agent not authorized.").with_detail(
            "The agent cannot authenticate until the workspace provision job has been completed. If the job is no longer \
             running, this agent is invalid.",
        )),
    }
}

/// A token as it came. No `Debug`: it is a secret.
struct Presentation {
    text: String,
    by_browser: bool,
}

impl Presentation {
    fn find(headers: &HeaderMap, uri: &Uri) -> Option<Self> {
        let native = |text: String| Self { text, by_browser: false };
        let header = |name| headers.get(name).and_then(|v| v.to_str().ok());
        let bearer = || header(header::AUTHORIZATION.as_str())?.strip_prefix("Bearer ");
        cookie(headers)
            .map(|text| Self { text, by_browser: true })
            .or_else(|| query(uri, TOKEN_NAME).map(native))
            .or_else(|| header(TOKEN_HEADER).map(str::to_owned).map(native))
            .or_else(|| bearer().map(str::to_owned).map(native))
            .or_else(|| query(uri, "access_token").map(native))
            .filter(|found| !found.text.is_empty())
    }
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|v| v.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == TOKEN_NAME).map(|(_, value)| value.trim_matches('"').to_owned())
}

/// A parameter of the query.
pub(crate) fn query(uri: &Uri, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// Whether a request comes from no web page, or from one of this deployment.
pub(crate) fn own_origin(app: &App, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Some(authority) = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, rest)| rest) else {
        return false;
    };
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    host.is_some_and(|host| host.eq_ignore_ascii_case(authority)) || app.authority().eq_ignore_ascii_case(authority)
}

impl FromRequestParts<App> for Me {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        // Missing only where the table gives a route the wrong class: nobody gets in.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::signed_out(app.access_url(), "API key is invalid."))
    }
}

impl FromRequestParts<App> for Machine {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let refuse = || ApiError::new(StatusCode::UNAUTHORIZED, "Workspace agent not authorized.");
        parts.extensions.get::<Self>().cloned().ok_or_else(refuse)
    }
}
