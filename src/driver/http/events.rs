//! Server-sent events: an answer that goes on as long as there is something to tell (HTML standard, §9.2).

use super::{Http, HttpError, MAX_BODY, Method, UPGRADE_LIMIT, host_of, late, refused};
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

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its kind; `message` when the server names none.
    pub name: String,
    /// Its lines, with line feeds between.
    pub data: String,
}

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
        let response = timeout(UPGRADE_LIMIT, opening).await.unwrap_or_else(|_| Err(late(&url, UPGRADE_LIMIT)))?;
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
            if let Some(event) = self.parser.next() {
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

/// Bytes to events.
#[derive(Debug, Default)]
struct Parser {
    /// Bytes whose line has not ended.
    rest: Vec<u8>,
    /// Looked at already, without an end of line.
    searched: usize,
    name: String,
    data: String,
    has_data: bool,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    fn held(&self) -> usize {
        self.rest.len() + self.data.len()
    }

    fn next(&mut self) -> Option<Event> {
        while let Some(line) = self.line() {
            if line.is_empty() {
                let name = std::mem::take(&mut self.name);
                let data = std::mem::take(&mut self.data);
                // An event without any field is only a blank line.
                if std::mem::take(&mut self.has_data) || !name.is_empty() {
                    let name = if name.is_empty() { "message".to_owned() } else { name };
                    return Some(Event { name, data });
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.name),
                "data" => {
                    if self.has_data {
                        self.data.push('\n');
                    }
                    self.data.push_str(value);
                    self.has_data = true;
                }
                // Comments, and fields for those who come back to a stream.
                _ => {}
            }
        }
        None
    }

    /// Takes the next whole line, which ends with CR LF, LF or CR.
    fn line(&mut self) -> Option<String> {
        let is_end = |b: &u8| matches!(b, b'\n' | b'\r');
        let Some(at) = self.rest.get(self.searched..)?.iter().position(is_end).map(|at| at + self.searched) else {
            self.searched = self.rest.len();
            return None;
        };
        let end = match (self.rest.get(at), self.rest.get(at + 1)) {
            // A LF may follow.
            (Some(b'\r'), None) => {
                self.searched = at;
                return None;
            }
            (Some(b'\r'), Some(b'\n')) => at + 2,
            _ => at + 1,
        };
        let line = String::from_utf8_lossy(self.rest.get(..at).unwrap_or_default()).into_owned();
        self.rest.drain(..end);
        self.searched = 0;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let mut got = Vec::new();
        for piece in pieces {
            parser.feed(piece.as_bytes());
            while let Some(Event { name, data }) = parser.next() {
                got.push((name, data));
            }
        }
        got
    }

    #[test]
    fn events_are_read_however_they_are_cut_and_ended() {
        let event = |name: &str, data: &str| (name.to_owned(), data.to_owned());
        for (pieces, want) in [
            (&["event: ping\n\nevent: data\ndata: {}\n\n"][..], vec![event("ping", ""), event("data", "{}")]),
            (&["eve", "nt: data\nda", "ta: {\"a\"", ":1}\n", "\n"], vec![event("data", "{\"a\":1}")]),
            (&["data:a\r", "\ndata: b\r\n\r\n\r"], vec![event("message", "a\nb")]),
            (&[": comment\n\nid: 7\nretry: 3\n\n"], vec![]),
            (&["data\n\ndata: not ended"], vec![event("message", "")]),
        ] {
            assert_eq!(read(pieces), want, "{pieces:?}");
        }
    }
}
