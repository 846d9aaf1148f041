//! The TCP side: accepting connections, plain or with TLS, and HTTP/1.1 on each.
//!
//! Bounds: connections at once, and of one source ([`super::places`]); time for a request's head, the head's size. A peer that
//! takes nothing of what we write is dropped by the kernel after [`STUCK`].

use super::{app::App, origin::Origin, places::Place, relay, routes, tls::Tls};
use axum::Router;
use bytes::{Buf as _, Bytes};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

/// How long a client may take for the head of a request, and may keep a connection open between two.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// The longest head of a request.
const MAX_HEAD: usize = 64 << 10;
/// How long written data may stay unacknowledged before the kernel gives a connection up.
const STUCK: Duration = Duration::from_secs(30);
/// How long requests may go on after the server was asked to end.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Pause after a failed accept, which mostly means that no file is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A stream of which some bytes were read already. It holds its place among the connections, whatever it carries.
#[derive(Debug)]
pub(crate) struct Prefixed<S> {
    prefix: Bytes,
    io: S,
    place: Place,
}

impl<S> Prefixed<S> {
    /// `io` with `prefix` before what it still holds.
    const fn new(prefix: Bytes, io: S, place: Place) -> Self {
        Self { prefix, io, place }
    }

    /// The same stream with `more`, which another layer has read, before what is left.
    pub(crate) fn with_more(self, more: Bytes) -> Self {
        let prefix = if self.prefix.is_empty() { more } else { [more, self.prefix].concat().into() };
        Self { prefix, io: self.io, place: self.place }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(self.prefix.get(..n).unwrap_or_default());
        self.prefix.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// The routes, which see of each request where it came from.
#[derive(Debug, Clone)]
struct FromOrigin {
    routes: TowerToHyperService<Router>,
    app: App,
    /// The other end of the connection.
    peer: IpAddr,
    secure: bool,
}

impl Service<Request<Incoming>> for FromOrigin {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let settings = self.app.settings();
        // Without TLS of our own only a proxy can serve https, and each plain request may come through it.
        let seen = (self.secure || settings.has_tls).then_some(self.secure);
        let ip = settings.proxies.behind(self.peer, request.headers());
        let secure = settings.proxies.secure(self.peer, request.headers(), seen);
        request.extensions_mut().insert(Origin { ip, secure });
        self.routes.call(request)
    }
}

/// Accepts connections until the server stops.
pub(crate) async fn accept(app: App, listener: TcpListener, tls: Option<Arc<Tls>>) {
    let router = routes::router(&app);
    let stopping = app.stopping().clone();
    let mut crowded = false;
    loop {
        let Some(place) = app.places().free().await else { return };
        let accepted = tokio::select! {
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = place.give(from.ip()) else {
            // The address may be a user's: it is not logged above debug.
            if !std::mem::replace(&mut crowded, true) {
                tracing::warn!("one source holds half of all connections; more of its are refused");
            }
            tracing::debug!(%from, "a source holds as many connections as one may");
            continue;
        };
        let (peer, secure) = (from.ip().to_canonical(), tls.is_some());
        let service = FromOrigin { routes: TowerToHyperService::new(router.clone()), app: app.clone(), peer, secure };
        let connection = open(app.clone(), service, stream, place, tls.clone());
        app.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(STUCK).with_interval(STUCK / 3))?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(STUCK))?;
    Ok(())
}

async fn open(app: App, service: FromOrigin, stream: TcpStream, place: Place, tls: Option<Arc<Tls>>) -> io::Result<()> {
    tune(&stream)?;
    match tls {
        None => serve(app, service, stream, place).await,
        Some(tls) => {
            let stream = tokio::select! {
                stream = tls.accept(stream) => stream?,
                () = app.stopping().cancelled() => return Ok(()),
            };
            serve(app, service, stream, place).await
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    app: App,
    service: FromOrigin,
    mut stream: S,
    place: Place,
) -> io::Result<()> {
    let opening = timeout(HEAD_TIME, relay::opening(&mut stream));
    let stream = match opening.await.map_err(|_| io::ErrorKind::TimedOut)?? {
        relay::Opening::FastStart(rest) => {
            // There is no HTTP answer to say it with.
            if !app.network().embedded {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let Some(_place) = app.places().at_relay() else { return Err(io::ErrorKind::ConnectionRefused.into()) };
            return relay::serve(&app, Box::new(Prefixed::new(rest, stream, place))).await;
        }
        relay::Opening::Http(read) => Prefixed::new(read, stream, place),
    };
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(MAX_HEAD);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = app.stopping().cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
        }
    };
    done.map_err(io::Error::other)
}
