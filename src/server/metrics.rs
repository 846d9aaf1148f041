//! What the server counts, as Prometheus reads it: `GET /metrics` on an address of its own, without a token.

use super::app::App;
use axum::{
    body::Body,
    http::{HeaderValue, Method, StatusCode, header},
};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Readers at once.
const MAX_READERS: usize = 16;
/// How long a reader may take for its request and the answer.
const READER_TIME: Duration = Duration::from_secs(30);
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// Requests by method, route and status.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<BTreeMap<(String, &'static str, u16), u64>>);

impl Requests {
    /// Counts an answered request. `route` is the route's pattern: there are few of them.
    pub(crate) fn count(&self, method: &Method, route: &'static str, status: StatusCode) {
        // Methods of nobody's are one: a client may invent any number.
        let method = match method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known,
            _ => "other",
        };
        let key = (method.to_owned(), route, status.as_u16());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    }
}

/// One metric in the text format.
struct Page(String);

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str, values: impl IntoIterator<Item = (String, u64)>) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.metric(name, kind, help, [(String::new(), value)]);
    }
}

fn number(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// The page.
pub(crate) async fn page(app: &App) -> String {
    let mut page = Page(String::new());
    page.one("coderd_agents_connected", "gauge", "Agents that are connected now.", number(app.agents().count()));
    page.one(
        "coderd_coordinator_peers",
        "gauge",
        "Peers that are connected to the coordinator now.",
        number(app.coordination().peers()),
    );
    match app.store().counts().await {
        Ok((users, workspaces)) => {
            page.one("coderd_users", "gauge", "Users of the deployment.", users);
            page.one("coderd_workspaces", "gauge", "Workspaces that are not deleted.", workspaces);
        }
        Err(error) => tracing::warn!(%error, "the metrics lack users and workspaces"),
    }
    let relay = app.relay().counters();
    page.one("coderd_relay_clients", "gauge", "Clients that are connected to the relay now.", number(app.relay().clients()));
    page.one("coderd_relay_logins_total", "counter", "Logins that the relay accepted.", relay.logins);
    page.one("coderd_relay_packets_total", "counter", "Packets that came to the relay.", relay.packets_in);
    page.one("coderd_relay_bytes_total", "counter", "Bytes of these packets.", relay.bytes_in);
    let dropped = [
        ("receiver_unknown", relay.dropped_unknown),
        ("disco_overflow", relay.dropped_disco),
        ("overflow", relay.dropped_other),
        ("notice_overflow", relay.dropped_notices),
    ];
    let dropped = dropped.map(|(reason, n)| (format!("{{reason=\"{reason}\"}}"), n));
    page.metric("coderd_relay_dropped_total", "counter", "What the relay dropped.", dropped);
    let requests: Vec<_> = {
        let counts = app.requests().0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|((m, route, code), n)| (format!("{{method=\"{m}\",path=\"{route}\",code=\"{code}\"}}"), *n)).collect()
    };
    page.metric("coderd_api_requests_processed_total", "counter", "Answered requests by route and status.", requests);
    page.0
}

async fn answer(app: App, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, page(&app).await),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "the metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}

async fn serve_one(app: App, stream: TcpStream) {
    let service = service_fn(move |request| answer(app.clone(), request));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(READER_TIME).keep_alive(false);
    if let Ok(Err(error)) = timeout(READER_TIME, builder.serve_connection(TokioIo::new(stream), service)).await {
        tracing::debug!(%error, "a reader of the metrics went");
    }
}

/// Serves the metrics until the server stops.
pub(crate) async fn serve(app: App, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_READERS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = app.stopping().cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (reader, stop) = (app.clone(), app.stopping().clone());
                app.spawn(async move {
                    let _place = place;
                    tokio::select! {
                        () = serve_one(reader, stream) => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a reader of the metrics");
                sleep(PAUSE).await;
            }
        }
    }
}
