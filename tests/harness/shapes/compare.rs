//! One answer beside another.

use super::{super::http::Opened, Slack};
use serde_json::Value;
use std::net::SocketAddr;

/// Headers that no client of ours or Go's needs from us.
const NOT_OURS: [&str; 2] = [
    // Go clients would warn of a version that is not theirs.
    "x-coder-build-version",
    // How a body is cut is HTTP's matter.
    "transfer-encoding",
];

/// Where the server of the vectors listened.
const VECTOR_ADDRESS: &str = "127.0.0.1:3100";

/// What differs between an answer of a server at `address` and a vector.
pub fn answer(ours: &mut Opened, theirs: &Value, address: SocketAddr, slack: &[Slack]) -> Vec<String> {
    let mut out = Vec::new();
    let status = theirs["status"].as_u64().expect("a vector has a status");
    if u64::from(ours.answer.status) != status {
        out.push(format!("status {}, the vector's {status}: {}", ours.answer.status, ours.answer.text()));
        return out;
    }
    headers(ours, theirs, slack, &mut out);
    if status == 101 {
        messages(ours, theirs, slack, &mut out);
    } else if ours.answer.header("content-type") == Some("text/event-stream") {
        events(ours, theirs, slack, &mut out);
    } else {
        body(ours, theirs, address, slack, &mut out);
    }
    out
}

fn headers(ours: &Opened, theirs: &Value, slack: &[Slack], out: &mut Vec<String>) {
    for (name, value) in theirs["headers"].as_object().into_iter().flatten() {
        let (value, own) = (value.as_str().expect("a header is text"), ours.answer.header(name));
        let alike = match name.as_str() {
            name if NOT_OURS.contains(&name) || slack.iter().any(|(field, _)| field.strip_prefix("header ") == Some(name)) => {
                true
            }
            // Differs in the host alone.
            "www-authenticate" => own.is_some_and(|own| own.split("http").next() == value.split("http").next()),
            "derp-public-key" => own.is_some_and(|own| own.len() == value.len()),
            _ => own == Some(value),
        };
        if !alike {
            out.push(format!("header {name} is {own:?}, the vector's {value:?}"));
        }
    }
}

/// What a socket says first: relays their key, terminals what a command shows, others JSON.
fn messages(ours: &mut Opened, theirs: &Value, slack: &[Slack], out: &mut Vec<String>) {
    /// Type, length and magic of a relay's first frame (`derp.md` §2.2); the key follows.
    const GREETING: &str = "0100000028444552 50f09f9491";
    let greeting = GREETING.replace(' ', "");
    let relay = |bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let differs = !hex.starts_with(&greeting) || bytes.len() != 45;
        differs.then(|| format!("the relay begins with {hex}"))
    };
    if ours.answer.header("upgrade") == Some("DERP") {
        out.extend(relay(&ours.first_bytes(45)));
        return;
    }
    let Some(first) = theirs["frames"].get(0) else { return };
    let (opcode, mut message) = ours.message();
    if let Some(text) = first["text"].as_str().filter(|_| opcode == 2) {
        // How a terminal's bytes are cut is the kernel's matter.
        while message.len() < text.len() {
            message.extend(ours.message().1);
        }
        if message != text.as_bytes() {
            out.push(format!("shown is {:?}, the vector's {text:?}", String::from_utf8_lossy(&message)));
        }
        return;
    }
    if opcode != first["opcode"] {
        out.push(format!("the first message has opcode {opcode}, the vector's {}", first["opcode"]));
    }
    if first["opcode"] == 2 {
        out.extend(relay(&message));
        return;
    }
    // A watcher's first message is a ping without data.
    let data = |value: &Value| value["type"] == "data";
    let mut own: Value = serde_json::from_slice(&message).expect("a text message is JSON");
    compare(&own, &first["json"], slack, "", out);
    if let Some(next) = theirs["frames"].as_array().into_iter().flatten().map(|frame| &frame["json"]).find(|json| data(json)) {
        while !data(&own) {
            own = serde_json::from_slice(&ours.message().1).expect("a text message is JSON");
        }
        compare(&own, next, slack, "", out);
    }
}

/// The first event with data.
fn events(ours: &mut Opened, theirs: &Value, slack: &[Slack], out: &mut Vec<String>) {
    const MARK: &str = "event: data\ndata: ";
    let stream = theirs["body"].as_str().expect("a vector of a stream is text");
    let theirs = stream.split(MARK).nth(1).and_then(|rest| rest.split("\n\n").next()).expect("the vector holds an event");
    ours.until(MARK.as_bytes());
    let own = ours.until(b"\n\n");
    let parse =
        |text: &str| serde_json::from_str::<Value>(text.trim()).unwrap_or_else(|e| panic!("an event is JSON: {e}: {text}"));
    compare(&parse(&String::from_utf8_lossy(&own)), &parse(theirs), slack, "", out);
}

fn body(ours: &Opened, theirs: &Value, address: SocketAddr, slack: &[Slack], out: &mut Vec<String>) {
    match &theirs["body"] {
        Value::Null => {}
        Value::String(text) => {
            let own = ours.answer.text().replace(&address.to_string(), VECTOR_ADDRESS);
            if own != *text {
                out.push(format!("body is {own:?}, the vector's {text:?}"));
            }
        }
        body => {
            let own = ours.answer.json();
            compare(&own, body, slack, "", out);
            if ours.answer.status >= 400 {
                texts(&own, body, slack, out);
            }
        }
    }
}

/// Texts of errors: clients look for them.
fn texts(ours: &Value, theirs: &Value, slack: &[Slack], out: &mut Vec<String>) {
    for field in ["message", "detail", "validations"] {
        if ours.get(field) != theirs.get(field) && !free(slack, field) {
            out.push(format!("{field} is {:?}, the vector's {:?}", ours.get(field), theirs.get(field)));
        }
    }
}

fn free(slack: &[Slack], field: &str) -> bool {
    slack.iter().any(|(name, _)| *name == field)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// Names and types of two JSON values; of lists the first entries.
pub fn compare(ours: &Value, theirs: &Value, slack: &[Slack], path: &str, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (name, value) in theirs.iter().filter(|(name, _)| !free(slack, name)) {
                match ours.get(name) {
                    Some(own) => compare(own, value, slack, &format!("{path}.{name}"), out),
                    None => out.push(format!("{path}.{name} is missing")),
                }
            }
            let more = ours.keys().filter(|name| !theirs.contains_key(*name) && !free(slack, name));
            out.extend(more.map(|name| format!("{path}.{name} is not in the vector")));
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            if let (Some(ours), Some(theirs)) = (ours.first(), theirs.first()) {
                compare(ours, theirs, slack, &format!("{path}[]"), out);
            } else if ours.is_empty() != theirs.is_empty() {
                out.push(format!("{path} has {} entries, the vector's {}", ours.len(), theirs.len()));
            }
        }
        _ if kind(ours) == kind(theirs) => {}
        _ => out.push(format!("{path} is a {}, the vector's a {}", kind(ours), kind(theirs))),
    }
}
