//! What a command prints beside what was taken from the Go command line, `tests/vectors/cli`: times, rates, ids and
//! addresses count by their kind alone.

use super::compare::compare;
use serde_json::Value;
use std::{fs, path::Path};

/// A vector's part: `stdout`, or the name of a file.
pub fn section(name: &str, part: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/cli/{name}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (_, rest) = text.split_once(&format!("## {part}\n")).unwrap_or_else(|| panic!("{name} has no {part}"));
    rest.split("\n## ").next().unwrap_or_default().to_owned()
}

/// How two texts differ: line by line, of equal lines that follow each other one.
pub fn texts(ours: &str, theirs: &str) -> Vec<String> {
    let (ours, theirs) = (kinds(ours), kinds(theirs));
    let lines = ours.len().max(theirs.len());
    let pairs = (0..lines).map(|line| (ours.get(line), theirs.get(line)));
    pairs.filter(|(own, their)| own != their).map(|(own, their)| format!("{own:?}, the vector's {their:?}")).collect()
}

/// How the names and types of two JSON texts differ.
pub fn json(ours: &str, theirs: &str, slack: &[super::Slack]) -> Vec<String> {
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("no JSON: {e}: {text}"));
    let mut out = Vec::new();
    compare(&parse(ours), &parse(theirs), slack, "", &mut out);
    out
}

fn kinds(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('%'));
    let mut lines: Vec<String> = lines.map(|line| line.split_whitespace().map(kind).collect::<Vec<_>>().join(" ")).collect();
    lines.dedup();
    lines
}

/// A word as it is, or its kind in angle brackets.
fn kind(word: &str) -> String {
    const UNITS: [&str; 7] = ["ns", "µs", "ms", "s", "m", "h", "d"];
    let number = |text: &str| !text.is_empty() && text.parse::<f64>().is_ok();
    let unit = |text: &str| UNITS.iter().filter_map(|unit| text.strip_suffix(unit)).any(number);
    let range = |text: &str| text.split_once('-').is_some_and(|(from, to)| number(from) && number(to));
    let stamp = word.strip_prefix('[').and_then(|word| word.strip_suffix("Z]"));
    match word {
        _ if word.chars().all(|c| c == '-') => "<line>",
        _ if number(word) => "<number>",
        _ if unit(word) || ["<nil>", "<1m"].contains(&word) => "<time>",
        _ if range(word) => "<interval>",
        _ if word.parse::<std::net::SocketAddr>().is_ok() => "<address>",
        _ if stamp.is_some_and(|stamp| stamp.len() == "2026-11-22T23:16:17".len() && stamp.contains('T')) => "<date>",
        word => word,
    }
    .to_owned()
}
