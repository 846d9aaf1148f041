//! The web terminal's socket: bytes between a browser and the agent's terminals, port 2 (`http-api.md` §7).

use super::super::{
    access::{Me, query},
    answer::{Answer, ApiError},
    api::{agents, inside},
    app::App,
    store::Transition,
    upgrade::{Socket, Upgrade, closed_by_peer, farewell},
};
use crate::{
    driver::websocket::{Message, Turn},
    wire::pty::{Opening, Size},
};
use axum::{
    extract::{Path, Request, State},
    http::Uri,
    response::IntoResponse as _,
};
use bytes::{Buf as _, Bytes};
use std::{io, pin::pin, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

/// The agent's terminals.
const PORT: u16 = 2;
/// The size of a terminal whose client names none, as in Go.
const DEFAULT: u16 = 80;
/// How often the browser is asked for a sign of life, and how long it may take for one.
const PING: Duration = Duration::from_secs(15);
/// How long a browser may take for one message of output.
const WRITE: Duration = Duration::from_secs(30);
/// Longest message of output.
const OUTPUT: usize = 32 << 10;

/// What the query asks for.
fn opening(uri: &Uri) -> Answer<Opening> {
    let invalid = |field, detail: String| ApiError::bad_request("Invalid query parameters.").with_field(field, detail);
    let text = |name| query(uri, name).unwrap_or_default();
    let reconnect = text("reconnect");
    if reconnect.is_empty() {
        return Err(invalid("reconnect", "Query param \"reconnect\" is required and cannot be empty".to_owned()));
    }
    let id = Uuid::parse_str(&reconnect)
        .map_err(|e| invalid("reconnect", format!("Query param \"reconnect\" must be a valid uuid: {e}")))?;
    let side = |name: &'static str| match text(name).as_str() {
        "" => Ok(DEFAULT),
        number => {
            let why = |e| invalid(name, format!("Query param {name:?} must be a number up to 65535: {e}"));
            number.parse::<u16>().map_err(why)
        }
    };
    Ok(Opening {
        id,
        size: Size { height: side("height")?, width: side("width")? },
        command: text("command"),
        container: text("container"),
        container_user: text("container_user"),
        backend: text("backend_type"),
    })
}

/// `GET /api/v2/workspaceagents/{id}/pty`
pub(crate) async fn open(State(app): State<App>, me: Me, Path(id): Path<String>, mut request: Request) -> Answer {
    let agent = agents::mine(&app, &me, &id).await?;
    let opening = opening(request.uri())?
        .write()
        .map_err(|e| ApiError::bad_request("Invalid query parameters.").with_field("command", e.to_string()))?;
    inside::connected(&agent)?;
    let upgrade = match Upgrade::new(&app, &mut request) {
        Ok(upgrade) => upgrade,
        Err(refused) => return Ok(refused.into_response()),
    };
    let server = app.clone();
    Ok(upgrade.serve(&app, "web terminal", async move |mut socket: Socket| {
        let stopping = server.stopping().clone();
        let mut gone = pin!(gone(&server, agent.workspace_id));
        let dial = async {
            let mut stream = server.tunnels().dial(&server, agent.id, PORT).await.map_err(io::Error::other)?;
            // In one write: Go's agents read each part with a single call.
            stream.write_all(&opening).await?;
            Ok::<_, io::Error>(stream)
        };
        let dialled = tokio::select! {
            dialled = dial => dialled,
            why = &mut gone => return farewell(socket, 1001, why).await,
            () = stopping.cancelled() => return farewell(socket, 1001, STOPPING).await,
        };
        let stream = match dialled {
            Ok(stream) => stream,
            Err(error) => return farewell(socket, 1011, &format!("dial workspace agent: {error}")).await,
        };
        let ended = tokio::select! {
            ended = talk(&mut socket, stream) => ended?,
            why = &mut gone => return farewell(socket, 1001, why).await,
            () = stopping.cancelled() => return farewell(socket, 1001, STOPPING).await,
        };
        match ended {
            End::Browser => closed_by_peer(&mut socket).await,
            // A stop may end the agent faster than we hear of it.
            End::Terminal => match what_became(&server, agent.workspace_id).await {
                Some(why) => return farewell(socket, 1001, why).await,
                None => return farewell(socket, 1000, "").await,
            },
            End::Lost(error) => return farewell(socket, 1011, &format!("the agent was lost: {error}")).await,
            End::Text => return farewell(socket, 1003, "binary messages only").await,
            End::Silent => {}
        }
        Ok(())
    }))
}

const STOPPING: &str = "the server is shutting down";

/// What became of a workspace that is started no more: terminals end with it.
async fn what_became(app: &App, workspace: Uuid) -> Option<&'static str> {
    match app.store().latest_build(workspace).await.ok()?.transition {
        Transition::Start => None,
        Transition::Stop => Some("the workspace was stopped"),
        Transition::Delete => Some("the workspace was deleted"),
    }
}

/// Waits until a workspace is stopped or deleted.
async fn gone(app: &App, workspace: Uuid) -> &'static str {
    let mut changes = app.changes(workspace);
    loop {
        if let Some(why) = what_became(app, workspace).await {
            return why;
        }
        if !changes.next().await {
            return STOPPING;
        }
    }
}

/// Why the socket ends.
#[derive(Debug)]
enum End {
    Browser,
    /// The command ended.
    Terminal,
    /// The agent went away.
    Lost(io::Error),
    Text,
    Silent,
}

/// Carries both directions, neither of which waits for the other. While the agent takes no input, no more is read; while the
/// browser takes no output, none is asked of the agent.
async fn talk(socket: &mut Socket, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<End> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut input = Bytes::new();
    let mut output = vec![0; OUTPUT];
    let mut ping_at = Instant::now() + PING;
    let mut answered = true;
    // Until when the browser is to take what is on its way.
    let mut taken_by = None;
    loop {
        let sending = socket.is_sending();
        tokio::select! {
            turn = socket.turn(input.is_empty()), if sending || input.is_empty() => match turn {
                Turn::Sent(sent) => {
                    sent?;
                    taken_by = None;
                }
                Turn::Came(message) => match message.transpose()? {
                    Some(Message::Binary(bytes)) => input = bytes,
                    Some(Message::Ping) => {}
                    Some(Message::Pong) => answered = true,
                    Some(Message::Text(_)) => return Ok(End::Text),
                    Some(Message::Close { .. }) | None => return Ok(End::Browser),
                },
            },
            written = write.write(&input), if !input.is_empty() => match written {
                Ok(n) if n > 0 => input.advance(n),
                // What it had to say comes all the same, and then its end.
                _ => input.clear(),
            },
            got = read.read(&mut output), if !sending => match got {
                Ok(0) => return Ok(End::Terminal),
                Ok(n) => {
                    socket.queue_binary(output.get(..n).unwrap_or_default().to_vec())?;
                    taken_by = Some(Instant::now() + WRITE);
                }
                Err(error) => return Ok(End::Lost(error)),
            },
            () = sleep_until(taken_by.unwrap_or(ping_at)), if taken_by.is_some() => return Err(io::ErrorKind::TimedOut.into()),
            () = sleep_until(ping_at) => {
                // While input waits for the agent nothing of the browser's is read, its answers neither.
                if !answered && input.is_empty() {
                    return Ok(End::Silent);
                }
                answered = false;
                socket.queue_ping()?;
                taken_by = taken_by.or(Some(Instant::now() + WRITE));
                ping_at = Instant::now() + PING;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_names_the_terminal_and_what_is_wrong_with_it_is_told() {
        let uri = |text: &str| format!("/pty?{text}").parse::<Uri>().unwrap();
        let id = "6c1fbbe5-4c4b-4d5e-9b7a-0d6a8d1c2e3f";
        let full = opening(&uri(&format!("reconnect={id}&height=24&width=100&command=echo+a%26b"))).unwrap();
        assert_eq!((full.id.to_string().as_str(), full.command.as_str()), (id, "echo a&b"));
        assert_eq!(full.size, Size { height: 24, width: 100 });
        assert_eq!(opening(&uri(&format!("reconnect={id}"))).unwrap().size, Size { height: 80, width: 80 });
        for bad in ["", "reconnect=", "reconnect=x", &format!("reconnect={id}&height=-1"), &format!("reconnect={id}&width=65536")]
        {
            assert!(opening(&uri(bad)).is_err(), "{bad}");
        }
    }
}
