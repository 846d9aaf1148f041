//! One question to an agent's HTTP API.

use super::{super::app::App, ReachError};
use axum::http::{Request, StatusCode, header};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use std::{future::poll_fn, pin::Pin, time::Duration};
use tokio::time::timeout;
use uuid::Uuid;

/// The port of the agent's API.
const PORT: u16 = 4;
/// What all of it may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Longest answer that is read.
const MAX_ANSWER: usize = 4 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Reach(#[from] ReachError),
    #[error("the agent's API broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("the agent's API answers with more than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("the agent's API answers with {0}")]
    Status(StatusCode),
    #[error("no answer of the agent's API within {} s", LIMIT.as_secs())]
    Late,
}

/// Asks an agent for a path; a whole answer with status 200.
pub(crate) async fn get(app: &App, agent: Uuid, path: &'static str) -> Result<Vec<u8>, AskError> {
    timeout(LIMIT, ask(app, agent, path)).await.unwrap_or(Err(AskError::Late))
}

async fn ask(app: &App, agent: Uuid, path: &'static str) -> Result<Vec<u8>, AskError> {
    let stream = app.tunnels().dial(app, agent, PORT).await?;
    let (mut sender, connection) = http1::handshake::<_, String>(TokioIo::new(stream)).await?;
    let answer = async {
        let mut request = Request::new(String::new());
        *request.uri_mut() = axum::http::Uri::from_static(path);
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("agent"));
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = read(response.into_body()).await?;
        if status == StatusCode::OK { Ok(body) } else { Err(AskError::Status(status)) }
    };
    // The connection's own end is seen by the answer.
    let drive = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer,
        never = drive => never,
    }
}

async fn read(mut body: Incoming) -> Result<Vec<u8>, AskError> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        bytes.extend_from_slice(frame?.data_ref().map_or(&[], |data| data));
        if bytes.len() > MAX_ANSWER {
            return Err(AskError::TooLong);
        }
    }
    Ok(bytes)
}
