//! The agent's HTTP API, port 4 of the tunnel (agent.md §5.3).
//!
//! There is no login: reaching the port is the authorisation. One request a connection, as its callers do; each step of it
//! (head, body, answer) has 20 seconds. What lies under `/debug` shows no value that may be a secret: no variables, no
//! scripts, no tokens.

mod debug;
mod folders;
mod listening;
mod manifest;
mod netcheck;

pub(crate) use manifest::describe;

use super::{account::Account, ssh::Server, traffic::Traffic};
use crate::net::Tailnet;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use listening::ListeningPorts;
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    fmt,
    future::poll_fn,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};

/// The port.
pub(crate) const PORT: u16 = 4;
/// What each step of a request may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest body that is read: a path.
const MAX_BODY: usize = 64 << 10;
/// Longest head that is read.
const MAX_HEAD: usize = 32 << 10;
/// Most requests at the same time.
const MAX_REQUESTS: usize = 64;

/// What the API tells of. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    shared: Arc<Shared>,
}

struct Shared {
    tailnet: Tailnet,
    traffic: Traffic,
    ssh: Server,
    home: PathBuf,
    /// The agent's own log, if it is kept in a file.
    log: Option<PathBuf>,
    manifest: RwLock<Arc<Value>>,
    ports: ListeningPorts,
    places: Semaphore,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// An answer.
#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    kind: &'static str,
    body: String,
}

impl Answer {
    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: body.into() }
    }

    fn json(status: StatusCode, body: &impl Serialize) -> Self {
        match serde_json::to_string(body) {
            Ok(body) => Self { status, kind: "application/json; charset=utf-8", body },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    fn error(status: StatusCode, message: impl Into<String>) -> Self {
        Self::json(status, &json!({ "message": message.into() }))
    }

    fn into_response(self) -> Response<String> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        response
    }
}

impl Api {
    pub(crate) fn new(tailnet: Tailnet, traffic: Traffic, ssh: Server, manifest: Value, log: Option<PathBuf>) -> Self {
        let shared = Shared {
            tailnet,
            traffic,
            ssh,
            home: Account::current().home,
            log,
            manifest: RwLock::new(Arc::new(manifest)),
            ports: ListeningPorts::default(),
            places: Semaphore::new(MAX_REQUESTS),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Another manifest has come.
    pub(crate) fn set_manifest(&self, manifest: Value) {
        *self.shared.manifest.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(manifest);
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let Ok(_place) = self.shared.places.try_acquire() else {
            return tracing::debug!(most = MAX_REQUESTS, "too many requests of the agent's API at a time");
        };
        let route = |method: Method, path: String, body: Vec<u8>| {
            let this = self.clone();
            async move { this.route(&method, &path, &body).await }
        };
        exchange(stream, route).await;
    }

    async fn route(&self, method: &Method, path: &str, body: &[u8]) -> Answer {
        let shared = &self.shared;
        let allowed = if path == "/api/v0/list-directory" { Method::POST } else { Method::GET };
        let is_containers = path == "/api/v0/containers" || path.starts_with("/api/v0/containers/");
        if is_containers {
            return Answer::error(StatusCode::FORBIDDEN, "This agent has no support for dev containers.");
        }
        let known = [
            "/",
            "/api/v0/listening-ports",
            "/api/v0/netcheck",
            "/api/v0/list-directory",
            "/debug/logs",
            "/debug/manifest",
            "/debug/magicsock",
            "/debug/prometheus",
        ];
        if !known.contains(&path) {
            return Answer::text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        if *method != allowed {
            return Answer::text(StatusCode::METHOD_NOT_ALLOWED, "");
        }
        match path {
            "/" => Answer::json(StatusCode::OK, &json!({ "message": "Hello from the agent!" })),
            "/api/v0/listening-ports" => Answer::json(StatusCode::OK, &json!({ "ports": *shared.ports.list().await })),
            "/api/v0/netcheck" => netcheck::answer(&shared.tailnet).await,
            "/api/v0/list-directory" => folders::answer(body, &shared.home).await,
            "/debug/logs" => debug::logs(shared.log.clone()).await,
            "/debug/manifest" => {
                let manifest = Arc::clone(&shared.manifest.read().unwrap_or_else(PoisonError::into_inner));
                Answer::text(StatusCode::OK, format!("{manifest:#}\n"))
            }
            "/debug/magicsock" => debug::network(&shared.tailnet).await,
            _ => debug::metrics(&shared.tailnet, shared.traffic.read(), &shared.ssh.counters()).await,
        }
    }
}

/// Carries one request and its answer, each step of it for [`LIMIT`] at most.
async fn exchange<F>(stream: impl AsyncRead + AsyncWrite + Unpin, route: impl Fn(Method, String, Vec<u8>) -> F)
where
    F: Future<Output = Answer>,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(LIMIT).max_buf_size(MAX_HEAD).keep_alive(false);
    let route = &route;
    let answer = service_fn(|request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        let answering = async {
            match read(body).await {
                Ok(body) => route(head.method, head.uri.path().to_owned(), body).await,
                Err(refused) => refused,
            }
        };
        let late = |_| Answer::error(StatusCode::GATEWAY_TIMEOUT, format!("no answer within {} s", LIMIT.as_secs()));
        Ok::<_, Infallible>(timeout(LIMIT, answering).await.unwrap_or_else(late).into_response())
    });
    match timeout(3 * LIMIT, http.serve_connection(TokioIo::new(stream), answer)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request of the agent's API broke off"),
        Err(_) => tracing::debug!("a client of the agent's API did not take its answer"),
    }
}

/// A request's whole body.
async fn read(mut body: Incoming) -> Result<Vec<u8>, Answer> {
    let mut bytes = Vec::new();
    loop {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            None => return Ok(bytes),
            Some(Err(error)) => return Err(Answer::error(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
        }
        if bytes.len() > MAX_BODY {
            let why = format!("the body is longer than {MAX_BODY} bytes");
            return Err(Answer::error(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::Instant,
    };

    /// Sends bytes and nothing more; what came back, and after how long the connection ended.
    async fn say(bytes: &[u8], answer: &str, buffer: usize) -> (String, Duration) {
        let (mut near, far) = duplex(buffer);
        let begin = Instant::now();
        let route = |_, path: String, _| async move {
            if path == "/never" {
                std::future::pending::<()>().await;
            }
            Answer::text(StatusCode::OK, answer)
        };
        let talking = async {
            near.write_all(bytes).await.unwrap();
            let mut all = String::new();
            // Who has no room for the answer stops reading.
            if answer.len() < buffer {
                near.read_to_string(&mut all).await.unwrap();
            }
            all
        };
        let ((), all) = tokio::join!(exchange(far, route), talking);
        (all, begin.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn each_step_of_a_request_has_twenty_seconds() {
        let whole = say(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "fine", 4096).await;
        assert!(whole.0.starts_with("HTTP/1.1 200 OK") && whole.0.ends_with("fine") && whole.1 < LIMIT, "{whole:?}");
        let (_, head) = say(b"GET /x HTTP/1.1\r\nHos", "fine", 4096).await;
        assert_eq!(head.as_secs(), LIMIT.as_secs());
        for request in ["POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\nab", "GET /never HTTP/1.1\r\n\r\n"] {
            let (answer, after) = say(request.as_bytes(), "fine", 4096).await;
            assert!(answer.starts_with("HTTP/1.1 504") && after.as_secs() == LIMIT.as_secs(), "{answer} after {after:?}");
        }
        let (_, unread) = say(b"GET /x HTTP/1.1\r\n\r\n", &"x".repeat(100_000), 4096).await;
        assert_eq!(unread.as_secs(), 3 * LIMIT.as_secs());
    }

    #[tokio::test]
    async fn what_is_not_http_or_too_long_is_ended() {
        let (answer, _) = say(b"hello\r\n\r\n", "fine", 4096).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(8 * MAX_HEAD));
        let (answer, _) = say(long.as_bytes(), "fine", 1 << 20).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        let body = format!("POST /x HTTP/1.1\r\nContent-Length: 70000\r\n\r\n{}", "x".repeat(70_000));
        let (answer, _) = say(body.as_bytes(), "fine", 1 << 20).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}
