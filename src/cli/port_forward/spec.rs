//! What `--tcp` and `--udp` ask for (`cli.md` §2.7):
//!
//! ```text
//! specs = spec *("," spec)             blanks around a spec are ignored
//! spec  = [address ":"] range [":" range]
//! address = dotted IPv4 / "[" IPv6 "]"
//! range = port ["-" port]              1 to 65535, the end not below the start
//! ```
//!
//! The local side stands first, and the remote one is the same without a word. The texts of errors are those that programs
//! know from the Go command line.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

/// What is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One local port and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forward {
    pub(super) protocol: Protocol,
    /// The address to listen on; both loopback addresses without one.
    pub(super) host: Option<IpAddr>,
    /// The port to listen on.
    pub(super) port: u16,
    /// The port of the workspace.
    pub(super) remote: u16,
}

/// One address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listen {
    pub(super) at: SocketAddr,
    /// It may be missing on this machine, and another one is there.
    pub(super) optional: bool,
}

impl Forward {
    /// Where to listen, in this order.
    pub(super) fn listens(&self) -> Vec<Listen> {
        let at = |ip: IpAddr, optional| Listen { at: SocketAddr::new(ip, self.port), optional };
        match self.host {
            Some(ip) => vec![at(ip, false)],
            None => vec![at(Ipv6Addr::LOCALHOST.into(), true), at(Ipv4Addr::LOCALHOST.into(), false)],
        }
    }

    /// Where it leads, for messages.
    pub(super) fn target(&self) -> String {
        format!("{}://127.0.0.1:{}", self.protocol, self.remote)
    }
}

/// Why a specification is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpecError {
    #[error("no port-forwards requested")]
    None,
    #[error("parse port-forward specs: failed to parse {} port-forward specification \"{spec}\": {why}",
            protocol.to_string().to_uppercase())]
    Spec { protocol: Protocol, spec: String, why: Why },
    #[error("parse port-forward specs: local {protocol} host:{host} port:{port} is specified twice")]
    Twice { protocol: Protocol, host: String, port: u16 },
}

/// What is wrong with one of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Why {
    #[error("invalid port specification \"{0}\"")]
    Shape(String),
    #[error("invalid IP address \"{0}\"")]
    Address(String),
    #[error("parse {side} port range from \"{range}\": {why}")]
    Range { side: &'static str, range: String, why: RangeError },
    #[error("port ranges must be the same length, got {local} ports forwarded to {remote} ports")]
    Lengths { local: usize, remote: usize },
}

/// What is wrong with a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RangeError {
    #[error("parse range {end} port from \"{text}\": port cannot be 0")]
    Zero { end: &'static str, text: String },
    #[error("parse range {end} port from \"{text}\": a port is 65535 at most")]
    TooLarge { end: &'static str, text: String },
    #[error("range end port {end} is less than start port {start}")]
    Backwards { start: u16, end: u16 },
}

/// Everything that the flags ask for, in their order, TCP first.
pub(super) fn parse(tcp: &[String], udp: &[String]) -> Result<Vec<Forward>, SpecError> {
    let mut forwards = Vec::new();
    for (protocol, flags) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
        // A flag or variable that is set to nothing asks for nothing.
        for spec in flags.iter().filter(|flag| !flag.trim().is_empty()).flat_map(|flag| flag.split(',')) {
            let spec = spec.trim();
            let found = parse_one(protocol, spec);
            forwards.extend(found.map_err(|why| SpecError::Spec { protocol, spec: spec.to_owned(), why })?);
        }
    }
    let mut seen = HashSet::new();
    for Forward { protocol, host, port, .. } in &forwards {
        if !seen.insert((*protocol, *host, *port)) {
            let host = host.map_or_else(|| "localhost".to_owned(), |ip| ip.to_string());
            return Err(SpecError::Twice { protocol: *protocol, host, port: *port });
        }
    }
    if forwards.is_empty() { Err(SpecError::None) } else { Ok(forwards) }
}

fn parse_one(protocol: Protocol, spec: &str) -> Result<Vec<Forward>, Why> {
    let shape = || Why::Shape(spec.to_owned());
    let (host, ranges) = split_address(spec);
    let (local, remote) = ranges.split_once(':').unwrap_or((ranges, ranges));
    if !is_range(local) || !is_range(remote) {
        return Err(shape());
    }
    let host = host.map(|text| text.parse().map_err(|_| Why::Address(text.to_owned()))).transpose()?;
    let range = |side, text: &str| parse_range(text).map_err(|why| Why::Range { side, range: text.to_owned(), why });
    let (local, remote) = (range("local", local)?, range("remote", remote)?);
    if local.len() != remote.len() {
        return Err(Why::Lengths { local: local.len(), remote: remote.len() });
    }
    Ok(local.zip(remote).map(|(port, remote)| Forward { protocol, host, port, remote }).collect())
}

/// Cuts the address off, if something of the shape of one stands there.
fn split_address(spec: &str) -> (Option<&str>, &str) {
    if let Some((address, rest)) = spec.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return (Some(address), rest);
    }
    match spec.split_once(':') {
        Some((address, rest)) if address.split('.').count() == 4 && address.split('.').all(is_number) => (Some(address), rest),
        _ => (None, spec),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_range(text: &str) -> bool {
    text.split_once('-').map_or_else(|| is_number(text), |(start, end)| is_number(start) && is_number(end))
}

fn parse_range(text: &str) -> Result<RangeInclusive<u16>, RangeError> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (parse_port("start", start)?, parse_port("end", end)?);
    if end < start { Err(RangeError::Backwards { start, end }) } else { Ok(start..=end) }
}

fn parse_port(end: &'static str, text: &str) -> Result<u16, RangeError> {
    match text.parse() {
        Ok(0) => Err(RangeError::Zero { end, text: text.to_owned() }),
        Ok(port) => Ok(port),
        // Digits alone came here.
        Err(_) => Err(RangeError::TooLarge { end, text: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(flags: &[&str]) -> Result<Vec<Forward>, String> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        parse(&flags, &[]).map_err(|error| error.to_string())
    }

    /// `HOST PORT>REMOTE` of each, without a host `- PORT>REMOTE`.
    fn shown(flags: &[&str]) -> Vec<String> {
        let host = |ip: Option<IpAddr>| ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        tcp(flags).unwrap().iter().map(|f| format!("{} {}>{}", host(f.host), f.port, f.remote)).collect()
    }

    #[test]
    fn every_form_of_a_specification_is_read() {
        for (flags, want) in [
            (&["8080"][..], &["- 8080>8080"][..]),
            (&["9000:3000"], &["- 9000>3000"]),
            (&["1-5:6-10"], &["- 1>6", "- 2>7", "- 3>8", "- 4>9", "- 5>10"]),
            (&["[::1]:8080:8081"], &["::1 8080>8081"]),
            (&["[::]:8080"], &[":: 8080>8080"]),
            (&["127.0.0.1:4000-4002"], &["127.0.0.1 4000>4000", "127.0.0.1 4001>4001", "127.0.0.1 4002>4002"]),
            (&["0.0.0.0:80:8080"], &["0.0.0.0 80>8080"]),
            (&["80, 81:82 ,83", "84"], &["- 80>80", "- 81>82", "- 83>83", "- 84>84"]),
            (&["", "80", " "], &["- 80>80"]),
            (&["65535"], &["- 65535>65535"]),
            (&["80", "127.0.0.1:80", "[::1]:80"], &["- 80>80", "127.0.0.1 80>80", "::1 80>80"]),
        ] {
            assert_eq!(shown(flags), want, "{flags:?}");
        }
        let both = parse(&["53".to_owned()], &["53".to_owned()]).unwrap();
        assert_eq!(both.iter().map(|f| f.protocol).collect::<Vec<_>>(), [Protocol::Tcp, Protocol::Udp]);
    }

    /// The error line of a vector, with what is another text here on purpose.
    fn vector(text: &str) -> &str {
        text.lines().find_map(|line| line.strip_prefix("error: ")).unwrap()
    }

    #[test]
    fn bad_specifications_are_told_in_the_words_of_the_go_command_line() {
        macro_rules! go {
            ($name:literal) => {
                vector(include_str!(concat!("../../../tests/vectors/cli/", $name, ".txt")))
            };
        }
        for (flags, want) in [
            (&["0"][..], go!("port_forward_bad_spec_0")),
            (&["1-2:1-3"], go!("port_forward_bad_spec_1_2_1_3")),
            (&["1.2.3.4.5:80"], go!("port_forward_bad_spec_1_2_3_4_5_80")),
            (&["5-1"], go!("port_forward_bad_spec_5_1")),
            (&["8080x"], go!("port_forward_bad_spec_8080x")),
            (&["999.1.1.1:80:80"], go!("port_forward_bad_spec_999_1_1_1_80_80")),
            (&[""], go!("port_forward_bad_spec_empty")),
            (&["host:1"], go!("port_forward_bad_spec_host_1")),
            (&[], go!("port_forward_none")),
        ] {
            assert_eq!(tcp(flags).unwrap_err(), want, "{flags:?}");
        }
        // Our own words where the Go ones speak of its inside.
        let large = tcp(&["70000"]).unwrap_err();
        assert_eq!(large.split(": a port").next(), go!("port_forward_bad_spec_70000").split(": parse port").next());
        let twice = tcp(&["80,80"]).unwrap_err();
        assert_eq!(twice, go!("port_forward_twice").replace("invalid IP", "localhost"));
        for (flags, part) in [
            (&["80,,81"][..], "specification \"\": invalid port specification \"\""),
            (&["80:81:82"], "invalid port specification \"80:81:82\""),
            (&["[zz]:80"], "invalid IP address \"zz\""),
            (&["[::1:80"], "invalid port specification"),
            (&["1-70000"], "parse local port range from \"1-70000\": parse range end port from \"70000\""),
            (&["80:0"], "parse remote port range from \"0\": parse range start port from \"0\": port cannot be 0"),
            (&["1-2-3"], "invalid port specification"),
            (&["-1"], "invalid port specification"),
            (&["127.0.0.1:80,127.0.0.1:80:81"], "local tcp host:127.0.0.1 port:80 is specified twice"),
            (&["1-3,2"], "port:2 is specified twice"),
        ] {
            let error = tcp(flags).unwrap_err();
            assert!(error.contains(part), "{flags:?}: {error}");
        }
        let udp = parse(&[], &["x".to_owned()]).unwrap_err().to_string();
        assert!(udp.contains("failed to parse UDP port-forward specification \"x\""), "{udp}");
    }

    #[test]
    fn without_an_address_both_loopbacks_are_listened_on() {
        let listens = |flag: &str| -> Vec<_> {
            tcp(&[flag]).unwrap()[0].listens().iter().map(|l| (l.at.to_string(), l.optional)).collect()
        };
        assert_eq!(listens("80"), [("[::1]:80".to_owned(), true), ("127.0.0.1:80".to_owned(), false)]);
        assert_eq!(listens("[::1]:80"), [("[::1]:80".to_owned(), false)]);
    }
}
