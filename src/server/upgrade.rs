//! From an HTTP request to a WebSocket or to a bare stream.

use super::{
    access::own_origin,
    answer::{ApiError, text},
    app::App,
    listen::Prefixed,
};
use crate::driver::{
    http::Io,
    websocket::{MAX_MESSAGE, WebSocket, accept_key},
};
use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{future::Future, io, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::server::TlsStream;

/// A stream that carries something other than HTTP from now on.
pub(crate) type Stream = Box<dyn Io>;
/// A WebSocket on it.
pub(crate) type Socket = WebSocket<Stream>;

/// Why a request does not become a WebSocket. The texts are those of the Go library, which some clients show.
#[derive(Debug)]
pub(crate) enum Refused {
    /// No upgrade was asked for.
    NoUpgrade(String),
    /// Another version of the protocol.
    Version(String),
    /// A broken handshake.
    Malformed(&'static str),
    /// A page of another site.
    Origin(String),
}

impl Refused {
    fn parts(self) -> (StatusCode, String) {
        match self {
            Self::NoUpgrade(line) => (StatusCode::UPGRADE_REQUIRED, line),
            Self::Version(line) => (StatusCode::BAD_REQUEST, line),
            Self::Malformed(line) => (StatusCode::BAD_REQUEST, line.to_owned()),
            Self::Origin(line) => (StatusCode::FORBIDDEN, line),
        }
    }

    /// The answer outside the API: the line alone.
    pub(crate) fn into_plain_response(self) -> Response {
        let (status, line) = self.parts();
        Self::respond(status, format!("{line}\n"))
    }

    fn respond(status: StatusCode, body: String) -> Response {
        let mut response = text(status, body);
        let headers = response.headers_mut();
        match status {
            StatusCode::UPGRADE_REQUIRED => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            }
            StatusCode::BAD_REQUEST => {
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            _ => {}
        }
        response
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, line) = self.parts();
        let error = ApiError::new(status, "Failed to accept websocket.")
            .with_detail(format!("failed to accept WebSocket connection: {line}"));
        let body = serde_json::to_string(&error.body()).unwrap_or_default();
        Self::respond(status, format!("{line}\n{body}\n"))
    }
}

/// Whether the list in header `name` holds `token`, in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// The first line of header `name`, empty where there is none.
pub(crate) fn line<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// A checked handshake. The answer is made by [`Upgrade::serve`].
#[derive(Debug)]
pub(crate) struct Upgrade {
    on: OnUpgrade,
    accept: HeaderValue,
    protocol: Option<&'static str>,
}

impl Upgrade {
    /// Checks a handshake as far as a page of another site may not pass.
    pub(crate) fn new(app: &App, request: &mut Request) -> Result<Self, Refused> {
        let upgrade = Self::from_anywhere(request)?;
        let headers = request.headers();
        if own_origin(app, headers) {
            return Ok(upgrade);
        }
        let origin = line(headers, &header::ORIGIN);
        let origin = origin.split_once("://").map_or(origin, |(_, rest)| rest);
        let host = line(headers, &header::HOST);
        Err(Refused::Origin(format!("request Origin {origin:?} is not authorized for Host {host:?}")))
    }

    /// Checks a handshake that may come from any site.
    pub(crate) fn from_anywhere(request: &mut Request) -> Result<Self, Refused> {
        let headers = request.headers();
        let lacks = |name: &HeaderName, title, token| {
            let found = line(headers, name);
            Refused::NoUpgrade(format!("WebSocket protocol violation: {title} header {found:?} does not contain {token}"))
        };
        if request.version() < Version::HTTP_11 {
            return Err(Refused::NoUpgrade("WebSocket protocol violation: handshake request must be at least HTTP/1.1".into()));
        }
        if !has_token(headers, &header::CONNECTION, "upgrade") {
            return Err(lacks(&header::CONNECTION, "Connection", "Upgrade"));
        }
        if !has_token(headers, &header::UPGRADE, "websocket") {
            return Err(lacks(&header::UPGRADE, "Upgrade", "websocket"));
        }
        let version = line(headers, &header::SEC_WEBSOCKET_VERSION);
        if version != "13" {
            let line = format!("unsupported WebSocket protocol version (only 13 is supported): {version:?}");
            return Err(Refused::Version(line));
        }
        let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
            return Err(Refused::Malformed("WebSocket protocol violation: missing Sec-WebSocket-Key"));
        };
        if STANDARD.decode(key.as_bytes()).ok().is_none_or(|key| key.len() != 16) {
            return Err(Refused::Malformed("WebSocket protocol violation: invalid Sec-WebSocket-Key"));
        }
        let Ok(accept) = HeaderValue::try_from(accept_key(key.as_bytes())) else {
            return Err(Refused::Malformed("WebSocket protocol violation: invalid Sec-WebSocket-Key"));
        };
        Ok(Self { on: hyper::upgrade::on(request), accept, protocol: None })
    }

    /// Agrees on a subprotocol.
    pub(crate) fn with_protocol(self, protocol: &'static str) -> Self {
        Self { protocol: Some(protocol), ..self }
    }

    /// Answers 101 and runs `talk` on the socket in a task of the server.
    pub(crate) fn serve<F, T>(self, app: &App, what: &'static str, talk: F) -> Response
    where
        F: FnOnce(Socket) -> T + Send + 'static,
        T: Future<Output = io::Result<()>> + Send,
    {
        let on = self.on;
        app.spawn(async move {
            let Some(stream) = stream(on).await else { return };
            if let Err(error) = talk(WebSocket::server(stream, MAX_MESSAGE)).await {
                tracing::debug!(what, %error, "a socket ended");
            }
        });
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = self.protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        response
    }
}

/// How long a peer may take to answer a close.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Closes a socket and waits a moment for the peer's answer: hanging up on what it just wrote could cost it our last
/// words.
pub(crate) async fn farewell(mut socket: Socket, code: u16, reason: &str) -> io::Result<()> {
    let closing = async {
        socket.close(code, reason).await?;
        while let Some(Ok(_)) = socket.next().await {}
        Ok(())
    };
    // Too late to matter whether the peer still takes it.
    timeout(CLOSE_TIME, closing).await.unwrap_or(Ok(()))
}

/// Lets the answer to a peer's close go out.
pub(crate) async fn closed_by_peer(socket: &mut Socket) {
    let _ = timeout(CLOSE_TIME, async { while let Some(Ok(_)) = socket.next().await {} }).await;
}

/// The stream below a connection whose upgrade was answered with 101.
pub(crate) async fn stream(on: OnUpgrade) -> Option<Stream> {
    let upgraded = on.await.ok()?;
    // Without the HTTP layer's own box around each read and write, where that is what lies below.
    let upgraded = match upgraded.downcast::<TokioIo<Prefixed<TcpStream>>>() {
        Ok(parts) => return Some(Box::new(parts.io.into_inner().with_more(parts.read_buf))),
        Err(upgraded) => upgraded,
    };
    match upgraded.downcast::<TokioIo<Prefixed<TlsStream<TcpStream>>>>() {
        Ok(parts) => Some(Box::new(parts.io.into_inner().with_more(parts.read_buf))),
        Err(upgraded) => Some(Box::new(TokioIo::new(upgraded))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn request(headers: &[(&str, &str)]) -> Request {
        let mut request = Request::new(Body::empty());
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        request
    }

    const GOOD: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn a_handshake_needs_each_of_its_headers() {
        assert!(Upgrade::from_anywhere(&mut request(&GOOD)).is_ok());
        for missing in GOOD {
            let headers: Vec<_> = GOOD.into_iter().filter(|header| *header != missing).collect();
            assert!(Upgrade::from_anywhere(&mut request(&headers)).is_err(), "without {missing:?}");
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let mut headers = GOOD;
        headers[3].1 = "c2hvcnQ=";
        assert!(matches!(Upgrade::from_anywhere(&mut request(&headers)), Err(Refused::Malformed(_))));
    }
}
