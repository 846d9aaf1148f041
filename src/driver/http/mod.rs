//! The one HTTP client: REST calls, and the upgrades that become relay and coordination sockets.
//!
//! Proxy (environment, `CONNECT` with credentials, SOCKS), trust store and extra headers are the same for all of them
//! (`cli.md` §1.4, §1.5). Only HTTP/1.1 is spoken: HTTP/2 cannot carry an upgrade. There is no cookie jar: a stale
//! cookie would win over the token header (`coordination.md` §2.5). Every call has a time limit and a size limit.

mod error;
mod events;
mod proxy;
mod tls;

pub use crate::wire::events::Event;
pub use error::{HttpError, Refusal, Validation};
pub use events::Events;
pub use tls::{Identity, PemError, certificates};

use super::{
    clock,
    dns::{HttpResolver, Prescribed},
    websocket::{MAX_MESSAGE, WebSocket, accept_key},
};
use crate::base::Instant;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use error::host_of;
use proxy::Proxies;
use reqwest::{
    Client, StatusCode,
    header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE},
};
use rustls_pki_types::{CertificateDer, ServerName};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{error::Elapsed, timeout};
use url::Url;
use zeroize::Zeroizing;

/// How long a REST call may take, body included.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long an upgrade may take: name, TCP, TLS, proxy and answer (`derp.md` §5).
const UPGRADE_LIMIT: Duration = Duration::from_secs(10);
/// Largest answer read. A deployment's largest list stays far below.
const MAX_BODY: usize = 16 << 20;
/// Largest error body read.
const MAX_ERROR_BODY: usize = 64 << 10;
/// How long an idle connection is kept: the calls of one command follow each other closely.
const IDLE: Duration = Duration::from_secs(30);

/// How long sent bytes may stay unacknowledged before the kernel gives a connection up, upgraded ones included.
#[cfg(any(target_os = "linux", target_os = "android"))]
const STUCK: Duration = Duration::from_secs(30);

/// The header that carries the session or agent token.
const TOKEN_HEADER: HeaderName = HeaderName::from_static("coder-session-token");

/// A session or agent token. Never printed, wiped on drop.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Wraps a token's text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, to store it or hand it to a child process.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What a client is made with.
#[derive(Clone, Default)]
pub struct HttpOptions {
    /// Sent with every request, relays included: from `--header` and `--header-command`. Values may be secret.
    pub headers: Vec<(String, String)>,
    /// Trusted besides the system's roots.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// What this client shows to servers that ask who it is.
    pub identity: Option<Identity>,
    /// Where connections go first.
    pub proxy: ProxyChoice,
}

impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpOptions").field("headers", &self.headers.len()).finish_non_exhaustive()
    }
}

/// Which proxy is used.
#[derive(Clone, Default)]
pub enum ProxyChoice {
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in either case. Loopback is reached without.
    #[default]
    Environment,
    /// None.
    Direct,
    /// This one for everything; may hold credentials.
    Url(String),
}

impl fmt::Debug for ProxyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Environment => "Environment",
            Self::Direct => "Direct",
            Self::Url(_) => "Url(..)",
        })
    }
}

/// The method of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of HTTP")]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl From<Method> for reqwest::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Get => Self::GET,
            Method::Post => Self::POST,
            Method::Put => Self::PUT,
            Method::Patch => Self::PATCH,
            Method::Delete => Self::DELETE,
        }
    }
}

/// An upgraded connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A server as seen through the user's proxy, headers and trust store. Clones share connections.
#[derive(Clone)]
pub struct Http {
    shared: Arc<Shared>,
    base: Url,
    token: Option<Token>,
}

struct Shared {
    client: Client,
    resolver: HttpResolver,
    options: HttpOptions,
    proxies: Proxies,
    roots: Arc<tls::Roots>,
}

/// What a relay map prescribes for the host of one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Overlay {
    /// Its addresses; `None` leaves them to DNS.
    pub(super) addresses: Option<Prescribed>,
    /// The name on its certificate; empty for the host's own.
    pub(super) certificate: String,
    /// Its certificate is not checked.
    pub(super) unchecked: bool,
}

impl Shared {
    fn new(
        options: HttpOptions,
        roots: Arc<tls::Roots>,
        addresses: Option<Prescribed>,
        expected: tls::Expected,
    ) -> Result<Self, HttpError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &options.headers {
            // The value is not shown: it may be a credential.
            let bad = || HttpError::Setting(format!("header {name:?} cannot be sent"));
            let name = HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
            let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        let trust = tls::Trust::new(Arc::clone(&roots), expected);
        let config = trust.client_config(options.identity.as_ref()).map_err(|e| HttpError::Setting(e.to_string()))?;
        let resolver = HttpResolver::new(addresses);
        let mut builder = Client::builder()
            .tls_backend_preconfigured(config)
            .http1_only()
            .dns_resolver(resolver.clone())
            .default_headers(headers)
            .user_agent(concat!("coder/", env!("CARGO_PKG_VERSION")))
            .redirect(same_origin())
            .connect_timeout(UPGRADE_LIMIT)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(2)
            .retry(reqwest::retry::never());
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            builder = builder.tcp_user_timeout(STUCK);
        }
        let proxies = Proxies::new(&options.proxy)?;
        builder = builder.no_proxy().proxy(proxies.clone().rule());
        let client = builder.build().map_err(|e| HttpError::Setting(e.to_string()))?;
        Ok(Self { client, resolver, options, proxies, roots })
    }
}

/// Redirects stay on the same scheme, host and port: the token header must not travel elsewhere.
fn same_origin() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let same = attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
        if attempt.previous().len() > 5 {
            attempt.error("too many redirects")
        } else if same {
            attempt.follow()
        } else {
            attempt.stop()
        }
    })
}

impl Http {
    /// A client of the server at `base`, which may have a path of its own.
    ///
    /// # Errors
    /// When the URL or a setting cannot be used. No connection is made yet.
    pub fn new(base: &str, token: Option<Token>, options: HttpOptions) -> Result<Self, HttpError> {
        let base = parse_base(base)?;
        let roots = tls::Roots::new(options.extra_roots.clone());
        let shared = Shared::new(options, roots, None, tls::Expected::default())?;
        shared.proxies.find(&base)?;
        Ok(Self { shared: Arc::new(shared), base, token })
    }

    /// The same client for another server, without the token.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn at(&self, base: &str) -> Result<Self, HttpError> {
        let base = parse_base(base)?;
        self.shared.proxies.find(&base)?;
        Ok(Self { shared: Arc::clone(&self.shared), base, token: None })
    }

    /// The same server with another token.
    #[must_use]
    pub fn with_token(&self, token: Option<Token>) -> Self {
        Self { shared: Arc::clone(&self.shared), base: self.base.clone(), token }
    }

    /// The same client for another server, without the token, with what a relay map prescribes for that server. It counts
    /// for the new client alone.
    ///
    /// # Errors
    /// When the URL or the certificate's name cannot be used.
    pub(super) fn at_relay(&self, base: &str, overlay: Overlay) -> Result<Self, HttpError> {
        let http = self.at(base)?;
        if overlay == Overlay::default() {
            return Ok(http);
        }
        let Overlay { addresses, certificate, unchecked } = overlay;
        let bad = |_| HttpError::Setting(format!("the relay map's certificate name {certificate:?} is no host name"));
        let name = if certificate.is_empty() { None } else { Some(ServerName::try_from(certificate.clone()).map_err(bad)?) };
        let expected = tls::Expected { host: http.endpoint().0, name, anything: unchecked };
        let (options, roots) = (self.shared.options.clone(), Arc::clone(&self.shared.roots));
        Ok(Self { shared: Arc::new(Shared::new(options, roots, addresses, expected)?), ..http })
    }

    /// The same client with connections of its own: those that were made before a change of the network may be dead.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub(super) fn anew(&self) -> Result<Self, HttpError> {
        let (options, roots) = (self.shared.options.clone(), Arc::clone(&self.shared.roots));
        let shared = Shared::new(options, roots, None, tls::Expected::default())?;
        Ok(Self { shared: Arc::new(shared), base: self.base.clone(), token: self.token.clone() })
    }

    /// The server's URL.
    #[must_use]
    pub const fn base(&self) -> &Url {
        &self.base
    }

    /// When the first name was resolved and how long that took; `None` when no name had to be.
    #[must_use]
    pub fn first_lookup(&self) -> Option<(Instant, Duration)> {
        self.shared.resolver.first()
    }

    /// The token, if one is sent.
    #[must_use]
    pub const fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Host, port and "is plain HTTP": what embedded relay nodes are rewritten to.
    #[must_use]
    pub fn endpoint(&self) -> (String, u16, bool) {
        let host = self.base.host_str().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        (host.to_owned(), self.base.port_or_known_default().unwrap_or(443), self.base.scheme() == "http")
    }

    /// GETs JSON.
    ///
    /// # Errors
    /// As [`HttpError`] tells.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, HttpError> {
        self.call(Method::Get, path, None::<&()>).await?.json()
    }

    /// POSTs JSON and reads JSON.
    ///
    /// # Errors
    /// As [`HttpError`] tells.
    pub async fn post_json<B: Serialize + Sync, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, HttpError> {
        self.call(Method::Post, path, Some(body)).await?.json()
    }

    /// Makes a call and reads the whole answer. `path` begins with a slash and may hold a query.
    ///
    /// # Errors
    /// As [`HttpError`] tells; a status of 400 or more is [`HttpError::Refused`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the call; the server may have acted on it.
    pub async fn call<B: Serialize + Sync>(&self, method: Method, path: &str, body: Option<&B>) -> Result<Reply, HttpError> {
        let url = self.url(path)?;
        let mut request = self.shared.client.request(method.into(), url.clone());
        request = self.authorized(request)?;
        if let Some(body) = body {
            request = request.json(body);
        }
        let whole = async {
            let response = request.send().await.map_err(|e| HttpError::from_reqwest(&url, CALL_LIMIT, &e))?;
            read(&url, method, response).await
        };
        self.outcome(CALL_LIMIT, &url, timeout(CALL_LIMIT, whole).await)
    }

    /// Upgrades to the relay protocol. The bytes behind the 101 are the first that the connection yields.
    ///
    /// # Errors
    /// As [`HttpError`] tells; any status but 101 is [`HttpError::Refused`].
    pub async fn upgrade_derp(&self, path: &str) -> Result<Box<dyn Io>, HttpError> {
        let url = self.url(path)?;
        let request = self.shared.client.get(url.clone()).header(UPGRADE, "DERP");
        self.upgrade(&url, request, |_| Ok(())).await
    }

    /// Opens a WebSocket; [`ByteStream`](super::websocket::ByteStream) makes bytes of it.
    ///
    /// # Errors
    /// As [`HttpError`] tells; any status but 101 is [`HttpError::Refused`].
    pub async fn websocket(&self, path: &str, subprotocol: Option<&str>) -> Result<WebSocket<Box<dyn Io>>, HttpError> {
        let url = self.url(path)?;
        let host = host_of(&url);
        let random = clock::random().map_err(|e| HttpError::Setting(e.to_string()))?.bytes::<16>();
        let key = STANDARD.encode(random);
        let mut request = self.shared.client.get(url.clone()).header(UPGRADE, "websocket");
        request = request.header("Sec-WebSocket-Version", "13").header("Sec-WebSocket-Key", &key);
        if let Some(name) = subprotocol {
            request = request.header("Sec-WebSocket-Protocol", name);
        }
        let accept = accept_key(key.as_bytes());
        let check = |headers: &HeaderMap| {
            let is = |name: &str, value: &str| headers.get(name).is_some_and(|v| v.as_bytes() == value.as_bytes());
            let wrong = |reason: &str| HttpError::Answer { host: host.clone(), reason: reason.to_owned() };
            if !is("sec-websocket-accept", &accept) {
                return Err(wrong("it does not accept the WebSocket"));
            }
            if subprotocol.is_some_and(|name| !is("sec-websocket-protocol", name)) {
                return Err(wrong("it chose another WebSocket protocol"));
            }
            if headers.contains_key("sec-websocket-extensions") {
                return Err(wrong("it chose a WebSocket extension that was not offered"));
            }
            Ok(())
        };
        Ok(WebSocket::client(self.upgrade(&url, request, check).await?, MAX_MESSAGE))
    }

    async fn upgrade(
        &self,
        url: &Url,
        request: reqwest::RequestBuilder,
        check: impl Fn(&HeaderMap) -> Result<(), HttpError>,
    ) -> Result<Box<dyn Io>, HttpError> {
        let request = self.authorized(request.header(CONNECTION, "Upgrade"))?;
        let whole = async {
            let broken = |e: &reqwest::Error| HttpError::from_reqwest(url, UPGRADE_LIMIT, e);
            let response = request.send().await.map_err(|e| broken(&e))?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refused(url, Method::Get, response).await);
            }
            check(response.headers())?;
            let upgraded = response.upgrade().await.map_err(|e| broken(&e))?;
            Ok(Box::new(upgraded) as Box<dyn Io>)
        };
        self.outcome(UPGRADE_LIMIT, url, timeout(UPGRADE_LIMIT, whole).await)
    }

    /// What a call came to that may have been cut off, with the proxy on its way named in its failure.
    fn outcome<T>(&self, limit: Duration, url: &Url, done: Result<Result<T, HttpError>, Elapsed>) -> Result<T, HttpError> {
        done.unwrap_or_else(|_| Err(late(url, limit))).map_err(|error| match self.shared.proxies.find(url) {
            Ok(Some(proxy)) => error.through(proxy),
            _ => error,
        })
    }

    fn url(&self, path: &str) -> Result<Url, HttpError> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let mut url = self.base.clone();
        let joined = format!("{}/{}", self.base.path().trim_end_matches('/'), path.trim_start_matches('/'));
        url.set_path(&joined);
        url.set_query(query);
        Ok(url)
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> Result<reqwest::RequestBuilder, HttpError> {
        let Some(token) = &self.token else { return Ok(request) };
        let mut value = HeaderValue::try_from(token.expose())
            .map_err(|_| HttpError::Setting("the token holds characters that no token has".into()))?;
        value.set_sensitive(true);
        Ok(request.header(TOKEN_HEADER, value))
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("host", &host_of(&self.base)).field("token", &self.token.is_some()).finish()
    }
}

/// A whole answer with a status below 300.
#[derive(Clone)]
pub struct Reply {
    host: String,
    status: u16,
    headers: HeaderMap,
    address: Option<SocketAddr>,
    body: Vec<u8>,
}

impl Reply {
    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// A header's value, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Where the connection went that brought it: to the server, or to a proxy.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none of the expected shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, HttpError> {
        serde_json::from_slice(&self.body).map_err(|e| {
            let reason = match self.body.trim_ascii_start().first() {
                Some(b'<') => "it is a page, not JSON: is this the URL of a Coder server?".to_owned(),
                _ => format!("not the expected JSON: {e}"),
            };
            HttpError::Answer { host: self.host.clone(), reason }
        })
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A body may hold a token.
        f.debug_struct("Reply").field("status", &self.status).field("len", &self.body.len()).finish_non_exhaustive()
    }
}

async fn read(url: &Url, method: Method, response: reqwest::Response) -> Result<Reply, HttpError> {
    if !response.status().is_success() {
        return Err(refused(url, method, response).await);
    }
    let (status, headers, address) = (response.status(), response.headers().clone(), response.remote_addr());
    let body = read_body(url, response, MAX_BODY).await?;
    Ok(Reply { host: host_of(url), status: status.as_u16(), headers, address, body })
}

/// What the server says instead of what was asked for.
async fn refused(url: &Url, method: Method, response: reqwest::Response) -> HttpError {
    let request = format!("{} {}", reqwest::Method::from(method), url.path());
    let (status, headers) = (response.status(), response.headers().clone());
    // An explanation that does not come whole is none.
    let body = read_body(url, response, MAX_ERROR_BODY).await.unwrap_or_default();
    HttpError::Refused(Box::new(Refusal::parse(url, request, status, &headers, &body)))
}

async fn read_body(url: &Url, mut response: reqwest::Response, max: usize) -> Result<Vec<u8>, HttpError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| HttpError::from_reqwest(url, CALL_LIMIT, &e))? {
        if body.len() + chunk.len() > max {
            return Err(HttpError::Answer { host: host_of(url), reason: format!("it is longer than {max} bytes") });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn late(url: &Url, after: Duration) -> HttpError {
    HttpError::Timeout { host: host_of(url), after }
}

/// A URL as far as it may be shown: without user, password, query and fragment, however broken it is.
#[must_use]
pub fn without_secrets(text: &str) -> &str {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    text.rsplit('@').next().unwrap_or_default()
}

fn parse_base(text: &str) -> Result<Url, HttpError> {
    let bad = || HttpError::Url(without_secrets(text).to_owned());
    let mut url = Url::parse(text.trim()).map_err(|_| bad())?;
    let usable = matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|h| !h.is_empty());
    if !usable || !url.username().is_empty() || url.password().is_some() {
        return Err(bad());
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests;
