//! The web terminal's socket: bytes between a browser and the agent's terminals, port 2 (`http-api.md` §7).

use super::super::{
    access::{Me, query},
    answer::{Answer, ApiError},
    api::{agents, inside},
    app::App,
    tunnels::Reached,
    upgrade::{Socket, Upgrade, closed_by_peer, farewell},
};
use crate::{
    driver::websocket::Message,
    wire::pty::{Opening, Size},
};
use axum::{
    extract::{Path, Request, State},
    http::Uri,
    response::IntoResponse as _,
};
use bytes::{Buf as _, Bytes};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep_until, timeout},
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
        let dial = async {
            let mut stream = server.tunnels().dial(&server, agent.id, PORT).await.map_err(io::Error::other)?;
            // In one write: Go's agents read each part with a single call.
            stream.write_all(&opening).await?;
            Ok::<_, io::Error>(stream)
        };
        let dialled = tokio::select! {
            dialled = dial => dialled,
            () = stopping.cancelled() => return farewell(socket, 1001, "the server is shutting down").await,
        };
        let stream = match dialled {
            Ok(stream) => stream,
            Err(error) => return farewell(socket, 1011, &format!("dial workspace agent: {error}")).await,
        };
        let ended = tokio::select! {
            ended = talk(&mut socket, stream) => ended?,
            () = stopping.cancelled() => End::Stopping,
        };
        match ended {
            End::Browser => closed_by_peer(&mut socket).await,
            End::Terminal => return farewell(socket, 1000, "").await,
            End::Text => return farewell(socket, 1003, "binary messages only").await,
            End::Stopping => return farewell(socket, 1001, "the server is shutting down").await,
            End::Silent => {}
        }
        Ok(())
    }))
}

/// Why the socket ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Browser,
    /// The command ended, or the agent went away.
    Terminal,
    Text,
    Silent,
    Stopping,
}

/// Carries both directions. While the agent takes no input, no more is read; output goes on.
async fn talk(socket: &mut Socket, stream: Reached) -> io::Result<End> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut input = Bytes::new();
    let mut output = vec![0; OUTPUT];
    let mut ping_at = Instant::now() + PING;
    let mut answered = true;
    loop {
        tokio::select! {
            message = socket.next(), if input.is_empty() => match message.transpose()? {
                Some(Message::Binary(bytes)) => input = bytes,
                Some(Message::Ping) => {}
                Some(Message::Pong) => answered = true,
                Some(Message::Text(_)) => return Ok(End::Text),
                Some(Message::Close { .. }) | None => return Ok(End::Browser),
            },
            written = write.write(&input), if !input.is_empty() => match written {
                Ok(n) if n > 0 => input.advance(n),
                _ => return Ok(End::Terminal),
            },
            got = read.read(&mut output) => match got {
                Ok(n) if n > 0 => in_time(socket.send_binary(output.get(..n).unwrap_or_default().to_vec())).await?,
                _ => return Ok(End::Terminal),
            },
            () = sleep_until(ping_at) => {
                // While input waits for the agent nothing of the browser's is read, its answers neither.
                if !answered && input.is_empty() {
                    return Ok(End::Silent);
                }
                answered = false;
                in_time(socket.ping()).await?;
                ping_at = Instant::now() + PING;
            }
        }
    }
}

async fn in_time(step: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(WRITE, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
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
