//! What both ends of a tunnel count, as `-v` prints it: the proof of the way that the bytes took.

use serde_json::Value;

/// One `counters {json}` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    pub sent_udp: u64,
    pub sent_relay: u64,
    pub received_udp: u64,
    pub received_relay: u64,
    pub initiations: u64,
    pub syns: u64,
    pub relay_dials: u64,
    pub path_changes: u64,
}

impl Counters {
    fn parse(line: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(line.split("counters {").nth(1).map(|rest| format!("{{{rest}"))?.trim()).unwrap();
        let number =
            |pointer: &str| json.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {line}"));
        Some(Self {
            sent_udp: number("/data_sent/udp"),
            sent_relay: number("/data_sent/relay"),
            received_udp: number("/data_received/udp"),
            received_relay: number("/data_received/relay"),
            initiations: number("/initiations_sent"),
            syns: number("/syns_sent"),
            relay_dials: number("/relay_dials"),
            path_changes: number("/path_changes"),
        })
    }

    /// All of them, oldest first.
    pub fn all(lines: &[String]) -> Vec<Self> {
        lines.iter().filter_map(|line| Self::parse(line)).collect()
    }

    /// The newest.
    pub fn last(lines: &[String]) -> Self {
        Self::all(lines).pop().unwrap_or_else(|| panic!("no counters were printed:\n{}", lines.join("\n")))
    }

    /// Those printed when the path of a session became direct for the first time; it may not go back to the relay later.
    /// The session's peer is the first that is new in `lines`: at an agent, others may still be on their way out.
    pub fn at_upgrade(lines: &[String]) -> Self {
        let changes = || lines.iter().enumerate().filter(|(_, line)| line.contains("path changed"));
        let all = || lines.join("\n");
        let (_, new) =
            changes().find(|(_, line)| line.contains("from=none")).unwrap_or_else(|| panic!("no new peer:\n{}", all()));
        let peer = new.split_whitespace().find(|word| word.starts_with("peer=")).expect("a change of a path names its peer");
        let mut after = changes().filter(|(_, line)| line.contains(peer)).skip_while(|(_, line)| !line.contains("to=direct"));
        let (upgrade, _) = after.next().unwrap_or_else(|| panic!("the path never became direct:\n{}", all()));
        let back = after.find(|(_, line)| line.contains("to=relay"));
        assert_eq!(back, None, "the path went back to the relay:\n{}", all());
        lines[upgrade..].iter().find_map(|line| Self::parse(line)).expect("counters follow the change of a path")
    }
}
