//! The task behind a control socket: it dials, carries bytes between socket and engine, and hands out what comes.

use super::{Ask, CLOSE_LIMIT, ControlRole, ControlStatus, REPLACED, Update};
use crate::{
    base::Rng,
    driver::{
        clock,
        http::{Http, HttpError, Io},
        websocket::{ByteStream, ClosedByPeer, WebSocket},
    },
    proto::coord::{Backoff, CallError, CallId, ClientEvent, ClientSession, CloseReason},
    wire::derp::RelayMap,
};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot, watch},
    time::{sleep_until, timeout},
};

/// Calls that may wait for the first connection.
const WAITING: usize = 256;
/// A connection that lasts so long is a success: longer than the longest wait between two dials.
const LASTING: Duration = Duration::from_secs(30);
/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;
/// Refusals that end the first dial (`coordination.md` §2.6).
const FINAL: [u16; 6] = [400, 401, 403, 404, 409, 500];

type Reply = oneshot::Sender<Result<Vec<u8>, CallError>>;

pub(super) struct Task {
    http: Http,
    role: ControlRole,
    asks: mpsc::UnboundedReceiver<Ask>,
    status: watch::Sender<ControlStatus>,
    updates: mpsc::Sender<Update>,
    session: ClientSession,
    /// How often the socket stood.
    connections: u64,
    /// Calls made before the first connection.
    waiting: VecDeque<(&'static str, Vec<u8>, Reply)>,
    calls: BTreeMap<CallId, Reply>,
    /// News that the loop has not taken yet.
    news: VecDeque<Update>,
    /// What the server said when it closed the last connection.
    closed: Option<ClosedByPeer>,
    closing: bool,
}

impl Task {
    pub(super) fn new(
        http: Http,
        role: ControlRole,
        asks: mpsc::UnboundedReceiver<Ask>,
        status: watch::Sender<ControlStatus>,
        updates: mpsc::Sender<Update>,
    ) -> Self {
        let mut session = ClientSession::new(role.engine(), clock::now());
        if let ControlRole::Client { agent } = role {
            session.add_tunnel(agent);
        }
        let (waiting, calls, news) = (VecDeque::new(), BTreeMap::new(), VecDeque::new());
        Self { http, role, asks, status, updates, session, connections: 0, waiting, calls, news, closed: None, closing: false }
    }

    pub(super) async fn run(mut self) {
        let last = self.run_inner().await;
        for (_, _, reply) in self.waiting.drain(..) {
            let _ = reply.send(Err(CallError::Closed));
        }
        self.calls.clear();
        self.status.send_replace(last);
    }

    async fn run_inner(&mut self) -> ControlStatus {
        let mut backoff = Backoff::control();
        // Only jitter comes from it: a machine without randomness gets none.
        let mut rng = clock::random().unwrap_or_else(|_| Rng::from_u64(0));
        while !self.closing {
            match self.dial().await {
                Some(Ok(socket)) => {
                    self.connections += 1;
                    self.status.send_replace(ControlStatus::Connected(self.connections));
                    let began = clock::now();
                    let why = self.connected(socket).await;
                    if clock::now() - began >= LASTING {
                        backoff.reset();
                    }
                    tracing::debug!(%why, "the control connection ended");
                    if why == CloseReason::Disconnected {
                        break;
                    }
                    if !matches!(self.news.back(), Some(Update::Lost)) {
                        self.news.push_back(Update::Lost);
                    }
                    let lost = self.lost(&why);
                    self.status.send_replace(lost);
                }
                Some(Err(error)) if is_resume_refused(&error) && self.session.resume_token(clock::wall()).is_some() => {
                    self.session.forget_resume_token();
                    continue;
                }
                Some(Err(error)) => {
                    let refused = error.status().is_some_and(|status| FINAL.contains(&status));
                    if self.connections == 0 && refused {
                        return ControlStatus::Refused(error);
                    }
                    tracing::debug!(%error, "the control connection cannot be made");
                    let why = error.to_string();
                    let status = match self.connections {
                        0 => ControlStatus::Connecting(Some(why)),
                        _ => ControlStatus::Lost { why, replaced: false },
                    };
                    self.status.send_replace(status);
                }
                None => break,
            }
            let until = clock::timer(clock::now(), clock::now() + backoff.next(&mut rng));
            while !self.closing && tokio::time::Instant::now() < until {
                self.idle(sleep_until(until)).await;
            }
        }
        ControlStatus::Closed
    }

    /// What is told of a connection that ended.
    fn lost(&mut self, why: &CloseReason) -> ControlStatus {
        let closed = self.closed.take().filter(|closed| !closed.reason.is_empty());
        let by_code = closed.as_ref().is_some_and(|closed| closed.code == REPLACED);
        // These are a Go server's words.
        let by_text = matches!(why, CloseReason::Coordinate(text) if text.contains("overwritten by new connection"));
        let why = closed.map_or_else(|| why.to_string(), |closed| format!("the server closed it: {}", closed.reason));
        ControlStatus::Lost { why, replaced: by_code || by_text }
    }

    /// Dials once; `None` when it is time to close.
    async fn dial(&mut self) -> Option<Result<WebSocket<Box<dyn Io>>, HttpError>> {
        let mut path = self.role.path();
        if let Some(token) = self.session.resume_token(clock::wall()) {
            let escaped: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
            path = format!("{path}&resume_token={escaped}");
        }
        let http = self.http.clone();
        let mut dialing = std::pin::pin!(async move { http.websocket(&path, None).await });
        while !self.closing {
            if let Some(done) = self.idle(&mut dialing).await {
                return Some(done);
            }
        }
        None
    }

    /// Waits for `done` while there is no connection, and takes what is asked meanwhile. `None`: something was asked.
    async fn idle<T>(&mut self, done: impl Future<Output = T>) -> Option<T> {
        let updates = self.updates.clone();
        let has_news = !self.news.is_empty();
        tokio::select! {
            done = done => return Some(done),
            ask = self.asks.recv() => match ask {
                Some(Ask::Call { path, body, reply }) if self.connections == 0 && self.waiting.len() < WAITING => {
                    self.waiting.push_back((path, body, reply));
                }
                Some(Ask::Call { reply, .. }) => {
                    let _ = reply.send(Err(CallError::Closed));
                }
                Some(ask) => self.take(ask),
                None => self.closing = true,
            },
            permit = updates.reserve(), if has_news => deliver(permit, &mut self.news),
        }
        None
    }

    /// Carries one connection to its end.
    async fn connected(&mut self, socket: WebSocket<Box<dyn Io>>) -> CloseReason {
        let (mut read, mut write) = tokio::io::split(ByteStream::new(socket));
        self.session.restart(clock::now());
        // What the engine says of the socket before this one is known already.
        let _ = self.take_events();
        for (path, body, reply) in std::mem::take(&mut self.waiting) {
            self.take(Ask::Call { path, body, reply });
        }
        let updates = self.updates.clone();
        let mut buffer = Vec::with_capacity(READ_BYTES);
        let (mut out, mut written, mut unflushed) = (Vec::new(), 0, false);
        let why = loop {
            if let Some(why) = self.take_events() {
                break why;
            }
            if written >= out.len() {
                out.clear();
                written = 0;
                self.session.poll_output(&mut out);
            }
            let rest = out.get(written..).unwrap_or_default();
            let now = clock::now();
            let deadline = self.session.poll_timeout().map(|d| clock::timer(now, d.at));
            tokio::select! {
                n = read.read_buf(&mut buffer) => match n {
                    Ok(0) => self.session.handle_closed(),
                    Err(error) => {
                        self.closed = error.get_ref().and_then(|inner| inner.downcast_ref::<ClosedByPeer>()).cloned();
                        self.session.handle_closed();
                    }
                    Ok(_) => {
                        self.session.handle_bytes(clock::now(), &buffer);
                        buffer.clear();
                    }
                },
                done = step(&mut write, rest), if !rest.is_empty() || unflushed => match done {
                    Ok(n) => {
                        written += n;
                        unflushed = n > 0;
                    }
                    Err(_) => self.session.handle_closed(),
                },
                ask = self.asks.recv(), if !self.closing => match ask {
                    Some(ask) => self.take(ask),
                    None => self.take(Ask::Close),
                },
                permit = updates.reserve(), if !self.news.is_empty() => deliver(permit, &mut self.news),
                () = sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    self.session.handle_timeout(clock::now());
                }
            }
        };
        // The last bytes and the close frame, if the other end still takes them.
        let farewell = async {
            out.drain(..written);
            self.session.poll_output(&mut out);
            write.write_all(&out).await?;
            write.shutdown().await
        };
        let _ = timeout(CLOSE_LIMIT, farewell).await;
        why
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Call { path, body, reply } => {
                let call = self.session.call(clock::now(), path, &body);
                self.calls.insert(call, reply);
            }
            Ask::Announce(mut node) => {
                node.set_as_of(clock::wall());
                self.session.set_self(Some(*node));
            }
            Ask::AddTunnel(agent) => self.session.add_tunnel(agent),
            Ask::RemoveTunnel(agent) => self.session.remove_tunnel(agent),
            Ask::Ready(peers) => self.session.ready(peers),
            Ask::OpenCoordination => self.session.open_coordination(),
            Ask::Close => {
                self.closing = true;
                self.session.disconnect(clock::now());
            }
        }
    }

    /// Takes what the engine has to say, as far as the loop keeps up; the reason when the socket is to be closed.
    fn take_events(&mut self) -> Option<CloseReason> {
        while self.news.len() < super::UPDATES {
            match self.session.poll_event()? {
                ClientEvent::PeerUpdate(update) => self.news.push_back(Update::Peer(update)),
                ClientEvent::RelayMap(map) => match RelayMap::try_from(&*map) {
                    Ok(mut map) => {
                        let (host, port, plain) = self.http.endpoint();
                        map.rewrite_embedded(&host, port, plain);
                        self.news.push_back(Update::RelayMap(map));
                    }
                    Err(error) => tracing::warn!(%error, "the server sent an unusable relay map"),
                },
                ClientEvent::Reply { call, result } => {
                    if let Some(reply) = self.calls.remove(&call) {
                        // The caller may have lost interest.
                        let _ = reply.send(result);
                    }
                }
                ClientEvent::CoordinatorError(text) => tracing::warn!(text, "the coordinator reports an error"),
                ClientEvent::Closed(why) => return Some(why),
            }
        }
        None
    }
}

/// Writes a part of `rest`, or flushes when there is none. Nothing is lost when the future is dropped.
async fn step(write: &mut (impl AsyncWrite + Unpin), rest: &[u8]) -> io::Result<usize> {
    if rest.is_empty() {
        write.flush().await?;
        return Ok(0);
    }
    match write.write(rest).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        n => Ok(n),
    }
}

fn deliver(permit: Result<mpsc::Permit<'_, Update>, mpsc::error::SendError<()>>, news: &mut VecDeque<Update>) {
    match permit {
        Ok(permit) => {
            if let Some(update) = news.pop_front() {
                permit.send(update);
            }
        }
        // Nobody listens any more.
        Err(_) => news.clear(),
    }
}

/// Whether the server only dislikes the resume token.
fn is_resume_refused(error: &HttpError) -> bool {
    match error {
        HttpError::Refused(refusal) => refusal.status == 401 && refusal.validations.iter().any(|v| v.field == "resume_token"),
        _ => false,
    }
}
