//! The speed test's two messages (`agent.md` §5.4): JSON objects in front of a stream of raw blocks.
//!
//! The client opens, the server answers, then one side sends whole blocks until the asked time has passed and closes.
//! Both messages are objects; the first byte behind the closing brace belongs to the data, but for a line feed that
//! writers put there. Keys are read in any case, unknown ones are skipped, and absent ones count as zero, as in Go.

use serde_json::{Map, Value, json};
use std::time::Duration;

/// The one version there is.
pub const VERSION: i64 = 2;
/// Length of a block. A sender stops only between blocks; Go's receiver leaves an incomplete one out.
pub const BLOCK_BYTES: usize = 2 << 20;
/// Longest message that is read.
pub const MAX_MESSAGE: usize = 4_096;
/// Longest test that we ask for or serve. The protocol knows no limit.
pub const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Which way the data goes, as the client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The server sends.
    Download,
    /// The client sends.
    Upload,
}

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// How long data is sent: at most [`MAX_TIME`].
    pub time: Duration,
    /// Who sends.
    pub direction: Direction,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The data follows.
    Accept,
    /// The connection ends, for this reason.
    Refuse(String),
}

/// Why a message is of no use. The text is for the peer and may go back as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// No object, or longer than [`MAX_MESSAGE`].
    #[error("not a speed test message: a JSON object of at most {MAX_MESSAGE} bytes is expected")]
    NoObject,
    /// Not JSON.
    #[error("not a speed test message: {0}")]
    Syntax(String),
    /// A value of another type than the field has.
    #[error("the field {0:?} has a value of another type than {1}")]
    Type(&'static str, &'static str),
    /// The client speaks another version.
    #[error("version mismatch: the server speaks version {VERSION}, the client version {0}")]
    Version(i64),
    /// A direction that does not exist.
    #[error("direction {0} does not exist: 0 is download, 1 is upload")]
    Direction(i64),
    /// Negative or too long.
    #[error("a test of {0} ns is not served: 0 to {max} ns are", max = MAX_TIME.as_nanos())]
    Time(i64),
}

impl Opening {
    /// Writes the line.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let direction = match self.direction {
            Direction::Download => 0,
            Direction::Upload => 1,
        };
        let time = i64::try_from(self.time.as_nanos()).unwrap_or(i64::MAX);
        format!("{{\"version\":{VERSION},\"time\":{time},\"direction\":{direction}}}\n").into_bytes()
    }

    /// Reads the opening at the beginning of `bytes`: it and its length, or `None` while it is incomplete.
    ///
    /// # Errors
    /// When the bytes are something else, or ask for something that is not served.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Reject> {
        let Some((fields, used)) = object(bytes)? else { return Ok(None) };
        let version = integer(&fields, "version")?;
        let nanos = integer(&fields, "time")?;
        let direction = integer(&fields, "direction")?;
        if version != VERSION {
            return Err(Reject::Version(version));
        }
        let direction = match direction {
            0 => Direction::Download,
            1 => Direction::Upload,
            // Go's server would send for ever.
            other => return Err(Reject::Direction(other)),
        };
        let time = u64::try_from(nanos).map(Duration::from_nanos).ok().filter(|t| *t <= MAX_TIME);
        let time = time.ok_or(Reject::Time(nanos))?;
        Ok(Some((Self { time, direction }, used)))
    }
}

impl Answer {
    /// Writes the line.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        match self {
            Self::Accept => b"{}\n".to_vec(),
            Self::Refuse(why) => format!("{}\n", json!({ "error": why })).into_bytes(),
        }
    }

    /// Reads the answer at the beginning of `bytes`: it and the place where the data begins, or `None` while it is
    /// incomplete. The line feed behind the object is waited for by nobody, but skipped where it is there.
    ///
    /// # Errors
    /// When the bytes are something else.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Reject> {
        let Some((fields, used)) = object(bytes)? else { return Ok(None) };
        let answer = match field(&fields, "error") {
            None | Some(Value::Null) => Self::Accept,
            Some(Value::String(why)) if why.is_empty() => Self::Accept,
            Some(Value::String(why)) => Self::Refuse(why.clone()),
            Some(_) => return Err(Reject::Type("error", "a text")),
        };
        Ok(Some((answer, used + usize::from(bytes.get(used) == Some(&b'\n')))))
    }
}

type Fields = Map<String, Value>;

/// The object at the beginning of `bytes` and where it ends. White space may stand in front.
fn object(bytes: &[u8]) -> Result<Option<(Fields, usize)>, Reject> {
    let Some(used) = end_of_object(bytes)? else { return Ok(None) };
    let fields = serde_json::from_slice(bytes.get(..used).unwrap_or_default());
    fields.map(|fields| Some((fields, used))).map_err(|e| Reject::Syntax(e.to_string()))
}

/// Where the object ends that begins here: the brace that closes it, whatever lies between. An incomplete one must be told
/// from a wrong one, and a JSON parser does that badly for bytes that stop anywhere.
fn end_of_object(bytes: &[u8]) -> Result<Option<usize>, Reject> {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (at, byte) in bytes.iter().enumerate().take(MAX_MESSAGE) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' if depth > 0 => quoted = !quoted,
            _ if quoted => {}
            b'{' => depth += 1,
            b'}' if depth > 1 => depth -= 1,
            b'}' if depth == 1 => return Ok(Some(at + 1)),
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ if depth == 0 => return Err(Reject::NoObject),
            _ => {}
        }
    }
    if bytes.len() < MAX_MESSAGE { Ok(None) } else { Err(Reject::NoObject) }
}

fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a Value> {
    fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn integer(fields: &Fields, name: &'static str) -> Result<i64, Reject> {
    match field(fields, name) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_i64().ok_or(Reject::Type(name, "a 64-bit integer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/wire/speedtest.json")).unwrap()
    }

    #[test]
    fn the_runs_of_the_go_implementation_are_read_and_written_byte_for_byte() {
        let vectors = vectors();
        assert_eq!(vectors["block_size"], BLOCK_BYTES);
        for run in vectors["runs"].as_array().unwrap() {
            let first = hex::decode(run["client_first_hex"].as_str().unwrap()).unwrap();
            let (opening, used) = Opening::parse(&first).unwrap().unwrap();
            assert_eq!(&first[used..], b"\n");
            assert_eq!(opening.write(), first);
            let uploads = run["client_writes"].is_array();
            assert_eq!(opening.direction, if uploads { Direction::Upload } else { Direction::Download });
            let mut answer = hex::decode(run["server_first_hex"].as_str().unwrap()).unwrap();
            assert_eq!(Answer::Accept.write(), answer);
            let end = answer.len();
            answer.push(b'\n');
            assert_eq!(Answer::parse(&answer), Ok(Some((Answer::Accept, end))), "one line feed, the next is data");
        }
    }

    #[test]
    fn odd_openings_are_taken_as_go_takes_them_but_for_a_direction_that_does_not_exist() {
        for odd in vectors()["odd_openings"].as_array().unwrap() {
            let opening = odd["opening"].as_str().unwrap();
            let read = Opening::parse(opening.as_bytes());
            let go = odd["answer"].as_str().unwrap();
            let endless = !odd["server_closes_within_700_ms"].as_bool().unwrap();
            let accepted = go == "{}\n" && !endless;
            assert_eq!(matches!(read, Ok(Some(_))), accepted, "{opening}: {read:?}");
            assert_eq!(matches!(read, Err(Reject::Version(_))), go.contains("version mismatch"), "{opening}: {read:?}");
        }
    }

    #[test]
    fn what_is_not_served_is_named() {
        let why = |text: &str| Opening::parse(text.as_bytes()).unwrap_err();
        assert_eq!(why(r#"{"version":2,"time":-1,"direction":0}"#), Reject::Time(-1));
        assert_eq!(why(r#"{"version":2,"time":86400000000001,"direction":0}"#), Reject::Time(86_400_000_000_001));
        assert_eq!(why(r#"{"version":2,"time":1,"direction":7}"#), Reject::Direction(7));
        assert_eq!(why(r#"{"version":2.5}"#), Reject::Type("version", "a 64-bit integer"));
        assert_eq!(why(r#"{"version":2,"time":1e30}"#), Reject::Type("time", "a 64-bit integer"));
        assert_eq!(why("[1]"), Reject::NoObject);
        assert_eq!(why("}"), Reject::NoObject);
        assert!(matches!(why("{\"a\":1]}"), Reject::Syntax(_)));
        assert!(matches!(why("{{}}"), Reject::Syntax(_)));
        assert_eq!(Answer::parse(b"{\"error\":7}\n"), Err(Reject::Type("error", "a text")));
    }

    #[test]
    fn a_message_without_an_end_is_waited_for_up_to_its_limit() {
        let mut endless = br#"{"later":"}"#.to_vec();
        endless.resize(MAX_MESSAGE - 1, b'x');
        assert_eq!(Opening::parse(&endless), Ok(None));
        endless.push(b'x');
        assert_eq!(Opening::parse(&endless), Err(Reject::NoObject));
        // Deep nesting is a reject, not a stack that overflows.
        let deep = [vec![b'{'; 1], br#""a":"#.repeat(500)].concat();
        assert_eq!(Opening::parse(&deep), Ok(None));
        let deep = format!("{}1{}", r#"{"a":"#.repeat(600), "}".repeat(600));
        assert!(matches!(Opening::parse(deep.as_bytes()), Err(Reject::Syntax(_))));
    }

    proptest! {
        #[test]
        fn messages_are_read_as_they_were_written(nanos in 0_u64..=86_400_000_000_000, upload: bool, why in "\\PC{1,200}") {
            let direction = if upload { Direction::Upload } else { Direction::Download };
            let opening = Opening { time: Duration::from_nanos(nanos), direction };
            let bytes = opening.write();
            prop_assert_eq!(Opening::parse(&bytes), Ok(Some((opening, bytes.len() - 1))));
            let answer = Answer::Refuse(why);
            let bytes = answer.write();
            prop_assert_eq!(Answer::parse(&bytes), Ok(Some((answer, bytes.len()))));
        }

        #[test]
        fn any_piece_of_a_message_is_incomplete(nanos in 0_u64..=86_400_000_000_000, why in "\\PC{1,60}") {
            let opening = Opening { time: Duration::from_nanos(nanos), direction: Direction::Download }.write();
            for cut in 0..opening.len() - 1 {
                prop_assert_eq!(Opening::parse(&opening[..cut]), Ok(None));
            }
            let answer = Answer::Refuse(why).write();
            for cut in 0..answer.len() - 1 {
                prop_assert_eq!(Answer::parse(&answer[..cut]), Ok(None));
            }
        }
    }
}
