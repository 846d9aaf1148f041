//! Server-sent events: an answer that goes on as long as there is something to tell (HTML standard, §9.2).

use super::{Http, HttpError, MAX_BODY, Method, UPGRADE_LIMIT, host_of, late, refused};
use crate::wire::events::{Event, Parser};
use reqwest::{
    Response,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
};
use serde::de::DeserializeOwned;
use std::{fmt, time::Duration};
use tokio::time::timeout;
use url::Url;

/// How long a stream may be silent. Servers send a sign of life every 15 s.
const SILENCE: Duration = Duration::from_secs(60);

/// A stream of events. Dropping it ends the connection.
pub struct Events {
    response: Response,
    url: Url,
    parser: Parser,
}

impl Http {
    /// Opens a stream of events.
    ///
    /// # Errors
    /// As [`HttpError`] tells; also when the answer is something else.
    pub async fn events(&self, path: &str) -> Result<Events, HttpError> {
        let url = self.url(path)?;
        let request = self.shared.client.get(url.clone()).header(ACCEPT, "text/event-stream");
        let request = self.authorized(request)?;
        let opening = async {
            let response = request.send().await.map_err(|e| HttpError::from_reqwest(&url, UPGRADE_LIMIT, &e))?;
            if !response.status().is_success() {
                return Err(refused(&url, Method::Get, response).await);
            }
            let is_events = |kind: &HeaderValue| kind.as_bytes().starts_with(b"text/event-stream");
            if !response.headers().get(CONTENT_TYPE).is_some_and(is_events) {
                return Err(HttpError::Answer { host: host_of(&url), reason: "it is no stream of events".to_owned() });
            }
            Ok(response)
        };
        let response = self.outcome(UPGRADE_LIMIT, &url, timeout(UPGRADE_LIMIT, opening).await)?;
        Ok(Events { response, url, parser: Parser::default() })
    }
}

impl Events {
    /// The next event; `None` when the server has ended the stream.
    ///
    /// # Errors
    /// When the connection breaks, is silent for a minute, or an event is larger than any should be.
    ///
    /// # Cancel safety
    /// No event is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Event>, HttpError> {
        loop {
            if let Some(event) = self.parser.next_event() {
                return Ok(Some(event));
            }
            let chunk = timeout(SILENCE, self.response.chunk()).await.map_err(|_| late(&self.url, SILENCE))?;
            let Some(chunk) = chunk.map_err(|e| HttpError::from_reqwest(&self.url, SILENCE, &e))? else { return Ok(None) };
            if self.parser.held() + chunk.len() > MAX_BODY {
                let reason = format!("an event is longer than {MAX_BODY} bytes");
                return Err(HttpError::Answer { host: host_of(&self.url), reason });
            }
            self.parser.feed(&chunk);
        }
    }

    /// The data of one of its events as JSON.
    ///
    /// # Errors
    /// When it is none of the expected shape.
    pub fn json<T: DeserializeOwned>(&self, event: &Event) -> Result<T, HttpError> {
        let reason = |e| format!("not the expected JSON: {e}");
        serde_json::from_str(&event.data).map_err(|e| HttpError::Answer { host: host_of(&self.url), reason: reason(e) })
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("host", &host_of(&self.url)).finish_non_exhaustive()
    }
}
