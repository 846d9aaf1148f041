//! The reconnecting terminal's messages (`agent.md` §5.2): an opening with a length in front, then JSON objects one after
//! another without any framing. The other direction is the terminal's bytes and needs no codec.
//!
//! Keys are read in any case, unknown ones are skipped, and absent ones count as zero, as in Go.

use serde_json::{Map, Value};
use uuid::Uuid;

/// Longest opening that its length can tell.
pub const MAX_OPENING: usize = u16::MAX as usize;
/// Longest request that is read: more than a browser pastes at once.
pub const MAX_REQUEST: usize = 1 << 20;

/// Rows and columns in characters. Both zero where the client names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

impl Size {
    /// Whether a terminal can have it.
    #[must_use]
    pub const fn is_real(self) -> bool {
        self.height > 0 && self.width > 0
    }
}

/// What a client sends first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opening {
    /// Names the terminal: whoever says the same comes to the same one.
    pub id: Uuid,
    /// Its size from now on.
    pub size: Size,
    /// What shall run in it if it has to be made; empty for a login shell.
    pub command: String,
    /// The container in which it shall run; empty for none.
    pub container: String,
    /// The user in that container.
    pub container_user: String,
    /// `buffered`, `screen`, or empty for the agent's choice.
    pub backend: String,
}

/// What a client sends from then on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// What was typed.
    pub data: String,
    /// The new size.
    pub size: Size,
}

/// Why a message is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// Longer than it may be.
    #[error("a terminal message of more than {0} bytes")]
    TooLong(usize),
    /// Something else than an object.
    #[error("not a terminal message: a JSON object is expected")]
    NoObject,
    /// Not JSON.
    #[error("not a terminal message: {0}")]
    Syntax(String),
    /// A value of another type than the field has.
    #[error("the field {0:?} of a terminal message is not {1}")]
    Type(&'static str, &'static str),
}

impl Opening {
    /// Writes the opening with its length; a receiver may count on getting it in one piece.
    ///
    /// # Errors
    /// When the command is too long for it.
    pub fn write(&self) -> Result<Vec<u8>, Reject> {
        let text = |name: &str, value: &str| format!(",\"{name}\":{}", quoted(value));
        let mut json = format!("{{\"ID\":\"{}\",\"Height\":{},\"Width\":{}", self.id, self.size.height, self.size.width);
        json += &text("Command", &self.command);
        json += &text("Container", &self.container);
        json += &text("ContainerUser", &self.container_user);
        json += &text("BackendType", &self.backend);
        json.push('}');
        let length = u16::try_from(json.len()).map_err(|_| Reject::TooLong(MAX_OPENING))?;
        Ok([length.to_le_bytes().as_slice(), json.as_bytes()].concat())
    }

    /// Reads the opening at the beginning of `bytes`: it and its length, or `None` while it is incomplete.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Reject> {
        let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
        let length = usize::from(u16::from_le_bytes(*length));
        let Some(json) = rest.get(..length) else { return Ok(None) };
        let fields = fields(json)?;
        let id = match field(&fields, "ID") {
            None | Some(Value::Null) => Uuid::nil(),
            Some(Value::String(id)) => Uuid::parse_str(id).map_err(|_| Reject::Type("ID", "a UUID"))?,
            Some(_) => return Err(Reject::Type("ID", "a UUID")),
        };
        let opening = Self {
            id,
            size: size(&fields)?,
            command: text(&fields, "Command")?,
            container: text(&fields, "Container")?,
            container_user: text(&fields, "ContainerUser")?,
            backend: text(&fields, "BackendType")?,
        };
        Ok(Some((opening, 2 + length)))
    }
}

impl Request {
    /// Writes the object; what is empty is left out.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut parts = Vec::new();
        if !self.data.is_empty() {
            parts.push(format!("\"data\":{}", quoted(&self.data)));
        }
        for (name, n) in [("height", self.size.height), ("width", self.size.width)] {
            if n > 0 {
                parts.push(format!("\"{name}\":{n}"));
            }
        }
        format!("{{{}}}", parts.join(",")).into_bytes()
    }

    fn parse(json: &[u8]) -> Result<Self, Reject> {
        let fields = fields(json)?;
        Ok(Self { data: text(&fields, "data")?, size: size(&fields)? })
    }
}

/// Cuts the requests of one connection out of its bytes, in whatever pieces they come.
#[derive(Debug, Default)]
pub struct Requests {
    bytes: Vec<u8>,
    /// As far as `bytes` were looked at.
    seen: usize,
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Requests {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next bytes. [`Requests::read`] is to be called until it gives nothing before more come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next request that is complete.
    ///
    /// # Errors
    /// When something else came. Nothing that follows can be understood then.
    pub fn read(&mut self) -> Result<Option<Request>, Reject> {
        let Some(end) = self.end()? else { return Ok(None) };
        let request = Request::parse(self.bytes.get(..end).unwrap_or_default());
        self.bytes.drain(..end);
        self.seen = 0;
        request.map(Some)
    }

    /// Where the first object ends: the brace that closes it, whatever lies between. Each byte is looked at once.
    fn end(&mut self) -> Result<Option<usize>, Reject> {
        while let Some(byte) = self.bytes.get(self.seen) {
            self.seen += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.quoted => self.escaped = true,
                b'"' if self.depth > 0 => self.quoted = !self.quoted,
                _ if self.quoted => {}
                b'{' => self.depth += 1,
                b'}' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 && self.seen <= MAX_REQUEST {
                        return Ok(Some(self.seen));
                    }
                }
                b' ' | b'\t' | b'\r' | b'\n' => {}
                _ if self.depth == 0 => return Err(Reject::NoObject),
                _ => {}
            }
            if self.seen >= MAX_REQUEST {
                return Err(Reject::TooLong(MAX_REQUEST));
            }
        }
        Ok(None)
    }
}

type Fields = Map<String, Value>;

fn fields(json: &[u8]) -> Result<Fields, Reject> {
    match serde_json::from_slice(json) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Reject::NoObject),
        Err(error) => Err(Reject::Syntax(error.to_string())),
    }
}

fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a Value> {
    fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn text(fields: &Fields, name: &'static str) -> Result<String, Reject> {
    match field(fields, name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Reject::Type(name, "a text")),
    }
}

fn size(fields: &Fields) -> Result<Size, Reject> {
    let number = |name| match field(fields, name) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_u64().and_then(|n| u16::try_from(n).ok()).ok_or(Reject::Type(name, "a number up to 65535")),
    };
    Ok(Size { height: number("height")?, width: number("width")? })
}

/// A JSON string in which, as Go writes it, nothing means something to HTML.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    for c in Value::from(text).to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out += &format!("\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/wire/pty.json")).unwrap()
    }

    fn framed(json: &str) -> Vec<u8> {
        [u16::try_from(json.len()).unwrap().to_le_bytes().as_slice(), json.as_bytes()].concat()
    }

    fn u16_of(value: &Value) -> u16 {
        u16::try_from(value.as_u64().unwrap()).unwrap()
    }

    #[test]
    fn the_openings_of_the_go_client_are_read_and_written_byte_for_byte() {
        for open in vectors()["open"].as_array().unwrap() {
            let wire = hex::decode(open["wire"].as_str().unwrap()).unwrap();
            let (opening, used) = Opening::parse(&wire).unwrap().unwrap();
            assert_eq!(used, wire.len(), "{}", open["name"]);
            assert_eq!(opening.write().unwrap(), wire, "{}", open["name"]);
            for cut in 0..used {
                assert_eq!(Opening::parse(&wire[..cut]), Ok(None));
            }
        }
    }

    #[test]
    fn odd_openings_are_taken_as_go_takes_them() {
        for odd in vectors()["open_parse"].as_array().unwrap() {
            let read = Opening::parse(&framed(odd["json"].as_str().unwrap()));
            if odd["ok"] == false {
                assert!(matches!(read, Err(Reject::Type(..))), "{odd}: {read:?}");
                continue;
            }
            let (opening, _) = read.unwrap().unwrap();
            assert_eq!(opening.id.to_string(), odd["id"].as_str().unwrap());
            assert_eq!(opening.command, odd["command"].as_str().unwrap());
            assert_eq!(opening.size, Size { height: u16_of(&odd["height"]), width: u16_of(&odd["width"]) });
        }
    }

    #[test]
    fn the_requests_of_the_go_client_are_read_and_written() {
        for sent in vectors()["requests"].as_array().unwrap() {
            let typed = hex::decode(sent["data_bytes"].as_str().unwrap()).unwrap();
            let request = Request {
                data: String::from_utf8_lossy(&typed).into_owned(),
                size: Size { height: u16_of(&sent["height"]), width: u16_of(&sent["width"]) },
            };
            let json = hex::decode(sent["json_bytes"].as_str().unwrap()).unwrap();
            let mut requests = Requests::new();
            requests.push(&json);
            assert_eq!(requests.read(), Ok(Some(request.clone())), "{sent}");
            assert_eq!(requests.read(), Ok(None));
            // Where bytes were no text, Go escapes what it puts in their place.
            if sent.get("parsed_data_bytes").is_none() {
                assert_eq!(request.write(), json, "{sent}");
            }
        }
    }

    #[test]
    fn requests_follow_each_other_without_framing_in_any_pieces() {
        let stream = "{\"data\":\"a}{\\\"\"} {\"height\":2,\"width\":3}\n{\"DATA\":\"b\",\"later\":{\"x\":[1]}}";
        for piece in 1..stream.len() {
            let mut requests = Requests::new();
            let mut read = Vec::new();
            for bytes in stream.as_bytes().chunks(piece) {
                requests.push(bytes);
                while let Some(request) = requests.read().unwrap() {
                    read.push(request);
                }
            }
            let of = |data: &str, height, width| Request { data: data.into(), size: Size { height, width } };
            assert_eq!(read, [of("a}{\"", 0, 0), of("", 2, 3), of("b", 0, 0)]);
        }
    }

    #[test]
    fn what_is_no_request_is_named_and_one_without_an_end_is_given_up() {
        let why = |text: &str| {
            let mut requests = Requests::new();
            requests.push(text.as_bytes());
            requests.read().unwrap_err()
        };
        assert_eq!(why("[1]"), Reject::NoObject);
        assert_eq!(why("}"), Reject::NoObject);
        assert_eq!(why("{\"data\":1}"), Reject::Type("data", "a text"));
        assert_eq!(why("{\"height\":-1}"), Reject::Type("height", "a number up to 65535"));
        assert_eq!(why("{\"height\":1.5}"), Reject::Type("height", "a number up to 65535"));
        assert!(matches!(why("{\"a\":1]}"), Reject::Syntax(_)));
        assert_eq!(why(&format!("{{\"data\":\"{}", "x".repeat(MAX_REQUEST))), Reject::TooLong(MAX_REQUEST));
        let long = Opening { command: "x".repeat(MAX_OPENING), ..Opening::default() };
        assert_eq!(long.write(), Err(Reject::TooLong(MAX_OPENING)));
        // Deep nesting is a reject, not a stack that overflows.
        assert!(matches!(why(&format!("{}1{}", "{\"a\":".repeat(600), "}".repeat(600))), Reject::Syntax(_)));
    }

    proptest! {
        #[test]
        fn messages_are_read_as_they_were_written(data in "\\PC{0,80}", command in "\\PC{0,80}", height: u16, width: u16) {
            let size = Size { height, width };
            let opening = Opening { id: Uuid::from_u128(7), size, command, ..Opening::default() };
            let bytes = opening.write().unwrap();
            prop_assert_eq!(Opening::parse(&bytes), Ok(Some((opening, bytes.len()))));
            let request = Request { data, size };
            let mut requests = Requests::new();
            requests.push(&request.write());
            prop_assert_eq!(requests.read(), Ok(Some(request)));
        }
    }
}
