//! Server-sent events as bytes (HTML standard, §9.2): what a browser calls an event stream.

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its kind; `message` when the server names none.
    pub name: String,
    /// Its lines, with line feeds between.
    pub data: String,
}

/// Bytes to events. Whoever feeds it looks at [`Parser::held`] first: it has no bound of its own.
#[derive(Debug, Default)]
pub struct Parser {
    /// The newest bytes.
    rest: Vec<u8>,
    /// So many of them are in lines that were taken.
    taken: usize,
    /// So many were looked at: no line ends between the taken ones and here.
    searched: usize,
    name: String,
    data: String,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes of the stream, cut anywhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.rest.drain(..self.taken);
        self.searched -= std::mem::take(&mut self.taken);
        self.rest.extend_from_slice(bytes);
    }

    /// How many bytes wait here for the end of their event.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.rest.len() - self.taken + self.name.len() + self.data.len()
    }

    /// The next event that is whole.
    pub fn next_event(&mut self) -> Option<Event> {
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
        let line = String::from_utf8_lossy(self.rest.get(self.taken..at).unwrap_or_default()).into_owned();
        self.taken = end;
        self.searched = end;
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
            while let Some(Event { name, data }) = parser.next_event() {
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
