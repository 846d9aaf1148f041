//! The embedded relay on both of its transports: `Upgrade: DERP` and a WebSocket with the subprotocol `derp`
//! (`derp.md` §2, §6, §10).
//!
//! Here is the HTTP side; what follows the upgrade is [`crate::driver::relay::RelayServer`].
//!
//! A client that sends `Derp-Fast-Start: 1` gets no HTTP answer at all, which no HTTP library can give: [`opening`]
//! looks for it before HTTP begins.

use super::{
    answer::text,
    app::App,
    places::RelayPlace,
    upgrade::{self, Stream, Upgrade, farewell, has_token, line},
};
use crate::driver::websocket::ByteStream;
use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest head that may announce a fast start.
const MAX_HEAD: usize = 16 << 10;
/// How every request to the relay begins.
const REQUEST: &[u8] = b"GET /derp ";

/// Relays for one client until it leaves or the server stops.
///
/// # Errors
/// When the stream fails, the client breaks the protocol or does not read.
pub(crate) async fn serve(app: &App, stream: Stream) -> io::Result<()> {
    tokio::select! {
        end = app.relay().serve(stream) => end,
        () = app.stopping().cancelled() => Ok(()),
    }
}

/// `GET /derp`
pub(crate) async fn open(State(app): State<App>, mut request: Request) -> Response {
    let wanted = line(request.headers(), &header::UPGRADE).to_ascii_lowercase();
    let protocols = line(request.headers(), &header::SEC_WEBSOCKET_PROTOCOL);
    // As the Go server: any name that holds "derp" becomes a WebSocket, anything else gets bare frames.
    let as_socket = wanted == "websocket" && protocols.contains("derp");
    if wanted != "websocket" && wanted != "derp" {
        return text(StatusCode::UPGRADE_REQUIRED, "DERP requires connection upgrade\n");
    }
    if !app.network().embedded {
        return off();
    }
    let Some(place) = app.places().at_relay() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "The relay has as many clients as it takes; try again later.\n");
    };
    if as_socket { open_socket(&app, &mut request, place) } else { open_bare(&app, &mut request, place) }
}

fn open_socket(app: &App, request: &mut Request, place: RelayPlace) -> Response {
    let agreed = has_token(request.headers(), &header::SEC_WEBSOCKET_PROTOCOL, "derp");
    // A relay needs no token, so pages of any site may use it.
    let upgrade = match Upgrade::from_anywhere(request) {
        Ok(upgrade) => upgrade,
        Err(refused) => return refused.into_plain_response(),
    };
    if !agreed {
        return upgrade.serve(app, "relay", move |socket| async move {
            farewell(socket, 1008, "client must speak the derp subprotocol").await
        });
    }
    let relayed = app.clone();
    upgrade.with_protocol("derp").serve(app, "relay", move |socket| async move {
        let _place = place;
        serve(&relayed, Box::new(ByteStream::new(socket))).await
    })
}

fn open_bare(app: &App, request: &mut Request, place: RelayPlace) -> Response {
    let on = hyper::upgrade::on(request);
    let relayed = app.clone();
    app.spawn(async move {
        let _place = place;
        let Some(stream) = upgrade::stream(on).await else { return };
        if let Err(error) = serve(&relayed, stream).await {
            tracing::debug!(%error, "a relay connection ended");
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("DERP"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(HeaderName::from_static("derp-version"), HeaderValue::from_static("2"));
    if let Ok(key) = HeaderValue::try_from(app.relay().public_key().to_hex()) {
        headers.insert(HeaderName::from_static("derp-public-key"), key);
    }
    response
}

/// `GET /derp/latency-check`: the answer's coming is the answer.
pub(crate) async fn latency_check(State(app): State<App>) -> Response {
    if app.network().embedded { StatusCode::OK.into_response() } else { off() }
}

/// The answer of a server that is no relay.
fn off() -> Response {
    text(StatusCode::NOT_FOUND, "This server is no relay.\n")
}

/// `HEAD` where only `GET` is meant.
pub(crate) async fn only_get() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")]).into_response()
}

/// What a new connection turned out to want.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// HTTP, of which this was read already.
    Http(Bytes),
    /// The relay without an HTTP answer; this came after the request's head.
    FastStart(Bytes),
}

/// Reads the beginning of a connection until it is clear whether it is a fast start.
pub(crate) async fn opening(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Opening> {
    let mut read = BytesMut::with_capacity(4 << 10);
    loop {
        if stream.read_buf(&mut read).await? == 0 || read.len() > MAX_HEAD {
            return Ok(Opening::Http(read.freeze()));
        }
        let known = read.len().min(REQUEST.len());
        if read.get(..known) != REQUEST.get(..known) {
            return Ok(Opening::Http(read.freeze()));
        }
        let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        return Ok(if is_fast_start(read.get(..end).unwrap_or_default()) {
            Opening::FastStart(read.split_off(end + 4).freeze())
        } else {
            Opening::Http(read.freeze())
        });
    }
}

fn is_fast_start(head: &[u8]) -> bool {
    let Ok(head) = str::from_utf8(head) else { return false };
    let has = |name: &str, value: &str| {
        let mut fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        fields.any(|(n, v)| n.eq_ignore_ascii_case(name) && v.trim().eq_ignore_ascii_case(value))
    };
    has("Upgrade", "derp") && has("Derp-Fast-Start", "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    async fn open(parts: &[&str]) -> Opening {
        let (mut ours, mut theirs) = tokio::io::duplex(64 << 10);
        let parts: Vec<String> = parts.iter().map(|p| (*p).to_owned()).collect();
        let writer = tokio::spawn(async move {
            for part in parts {
                theirs.write_all(part.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let opening = opening(&mut ours).await.unwrap();
        writer.await.unwrap();
        opening
    }

    #[tokio::test]
    async fn a_fast_start_is_seen_in_any_pieces_and_keeps_what_follows() {
        let head = ["GET ", "/derp HTTP/1.1\r\nHost: x\r\nUPGRADE: DERP\r\n", "derp-fast-start: 1\r\n\r", "\nrest"];
        assert_eq!(open(&head).await, Opening::FastStart(Bytes::from_static(b"rest")));
    }

    #[tokio::test]
    async fn anything_else_goes_on_as_http_with_all_its_bytes() {
        for request in [
            "GET /derp HTTP/1.1\r\nUpgrade: DERP\r\nDerp-Fast-Start: true\r\n\r\n",
            "GET /derp HTTP/1.1\r\nUpgrade: websocket\r\nDerp-Fast-Start: 1\r\n\r\n",
            "GET /derp/latency-check HTTP/1.1\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n",
            "POST / HTTP/1.1\r\n",
            "G",
            "",
        ] {
            assert_eq!(open(&[request]).await, Opening::Http(Bytes::copy_from_slice(request.as_bytes())), "{request}");
        }
    }

    #[tokio::test]
    async fn an_endless_head_ends_as_http() {
        let request = format!("GET /derp HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        assert!(matches!(open(&[&request]).await, Opening::Http(_)));
    }
}
