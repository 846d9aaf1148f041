//! A workspace as it changes: server-sent events, and the same on a WebSocket (`http-api.md` §1).

use super::{
    super::{
        access::Me,
        answer::Answer,
        app::App,
        store::StoreError,
        upgrade::{Socket, Upgrade, closed_by_peer, farewell},
    },
    views, workspaces,
};
use crate::driver::websocket::Message;
use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use futures::stream;
use serde_json::{Value, json};
use std::{io, time::Duration};
use uuid::Uuid;

/// How often a quiet stream shows that it lives.
const PING: Duration = Duration::from_secs(15);

/// One event.
enum Event {
    Ping,
    Data(Value),
}

/// The events of one workspace: a ping, the workspace, then the workspace at each change and pings between.
struct Events {
    app: App,
    owner: Uuid,
    workspace: Uuid,
    changes: super::super::changes::Changes,
    step: Step,
}

enum Step {
    Begin,
    Show,
    Wait,
}

impl Events {
    fn new(app: &App, owner: Uuid, workspace: Uuid) -> Self {
        Self { app: app.clone(), owner, workspace, changes: app.changes(workspace), step: Step::Begin }
    }

    /// The next event; `None` when the server shuts down or the workspace is gone.
    async fn next(&mut self) -> Option<Event> {
        match self.step {
            Step::Begin => {
                self.step = Step::Show;
                return Some(Event::Ping);
            }
            Step::Show => {}
            Step::Wait => match tokio::time::timeout(PING, self.changes.next()).await {
                Err(_) => return Some(Event::Ping),
                Ok(true) => {}
                Ok(false) => return None,
            },
        }
        self.step = Step::Wait;
        match self.show().await {
            Ok(view) => Some(Event::Data(view)),
            Err(error) => {
                tracing::debug!(%error, "a watched workspace cannot be shown");
                None
            }
        }
    }

    async fn show(&self) -> Result<Value, StoreError> {
        let workspace = self.app.store().workspace(self.owner, self.workspace).await?;
        views::workspace(&self.app, &workspace).await
    }
}

/// `GET /api/v2/workspaces/{id}/watch`
pub(crate) async fn events(State(app): State<App>, me: Me, Path(id): Path<String>) -> Answer {
    let workspace = workspaces::mine(&app, &me, &id).await?;
    let events = Events::new(&app, me.user.id, workspace.id);
    let texts = stream::unfold(events, async |mut events| {
        let text = match events.next().await? {
            Event::Ping => "event: ping\n\n".to_owned(),
            Event::Data(view) => format!("event: data\ndata: {view}\n\n"),
        };
        Some((Ok::<_, io::Error>(text), events))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONNECTION, "keep-alive"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(texts)).into_response())
}

/// `GET /api/v2/workspaces/{id}/watch-ws`
pub(crate) async fn socket(State(app): State<App>, me: Me, Path(id): Path<String>, mut request: Request) -> Answer<Response> {
    let workspace = workspaces::mine(&app, &me, &id).await?;
    let upgrade = match Upgrade::new(&app, &mut request) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return Ok(refusal.into_response()),
    };
    let mut events = Events::new(&app, me.user.id, workspace.id);
    Ok(upgrade.serve(&app, "workspace watch", move |mut socket| async move {
        loop {
            tokio::select! {
                event = events.next() => {
                    let text = match event {
                        Some(Event::Ping) => json!({ "type": "ping", "data": null }),
                        Some(Event::Data(view)) => json!({ "type": "data", "data": view }),
                        None => return farewell(socket, 1001, "the server is shutting down").await,
                    };
                    socket.send_text(text.to_string()).await?;
                }
                end = ended(&mut socket) => return end,
            }
        }
    }))
}

/// Waits for the end of a socket on which the client has nothing to say.
pub(crate) async fn ended(socket: &mut Socket) -> io::Result<()> {
    while let Some(message) = socket.next().await.transpose()? {
        if let Message::Close { .. } = message {
            closed_by_peer(socket).await;
            break;
        }
    }
    Ok(())
}
