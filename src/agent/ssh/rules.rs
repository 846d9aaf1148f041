//! What the agent's owner forbids its clients, and when silent ones are given up (agent.md §1, §6.8, §6.9).

use std::time::Duration;

/// What a session that may carry no file ends with.
pub(super) const TRANSFER_BLOCKED: u32 = 65;
/// What a forbidden command writes first: `scp` reads the byte 2 as a fatal error and shows the line behind it.
pub(super) const TRANSFER_TEXT: &str = "\u{2}File transfer has been disabled.\n";
/// Programs that carry files. `sftp-server` is what `sftp -s` asks for instead of the subsystem.
const TRANSFERS: [&[u8]; 5] = [b"nc", b"rsync", b"scp", b"sftp", b"sftp-server"];
/// Limits from here on are looked after by keepalives, shorter ones by the clock alone.
const LEAST_KEEPALIVE: Duration = Duration::from_secs(3);
/// Keepalives without an answer after which a client is given up.
const UNANSWERED: u32 = 3;

/// What the agent's owner forbids its clients, and when a client that does not answer is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// No `sftp` subsystem and no command that carries files.
    pub block_file_transfer: bool,
    /// No listening for a client (`ssh -R`).
    pub block_reverse_forwarding: bool,
    /// No connections for a client (`ssh -L`, `-D`, `-W`).
    pub block_local_forwarding: bool,
    /// A client that does not answer for so long is given up. Less than three seconds is the longest life of any
    /// connection instead, and zero is no limit.
    pub max_timeout: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            block_file_transfer: false,
            block_reverse_forwarding: false,
            block_local_forwarding: false,
            max_timeout: Duration::from_secs(72 * 3600),
        }
    }
}

impl Rules {
    /// How often a client is asked whether it is there, and how many times before it is given up.
    pub(super) fn keepalive(&self) -> Option<(Duration, usize)> {
        // The library gives up when one more than that many are without an answer.
        (self.max_timeout >= LEAST_KEEPALIVE).then(|| (self.max_timeout / UNANSWERED, UNANSWERED as usize - 1))
    }

    /// The longest life of a connection, whatever it does.
    pub(super) fn lifetime(&self) -> Option<Duration> {
        (!self.max_timeout.is_zero() && self.max_timeout < LEAST_KEEPALIVE).then_some(self.max_timeout)
    }

    /// Whether a command must not run, judged by the name of its program.
    ///
    /// This keeps people from what their organization does not want, not a determined one from anything: a shell is still
    /// a shell.
    pub(super) fn forbids(&self, command: Option<&[u8]>) -> bool {
        let Some(command) = command.filter(|_| self.block_file_transfer) else { return false };
        let word = first_word(command);
        let name = word.rsplit(|b| *b == b'/').next().unwrap_or_default();
        TRANSFERS.contains(&name)
    }
}

/// The first word of a command as a shell reads it: without its quotes and backslashes.
fn first_word(command: &[u8]) -> Vec<u8> {
    let command = command.trim_ascii_start();
    let mut word = Vec::new();
    let mut quote = None;
    let mut bytes = command.iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, quote) {
            (b'\\', None | Some(b'"')) => word.extend(bytes.next()),
            (b'\'' | b'"', None) => quote = Some(byte),
            (byte, Some(open)) if byte == open => quote = None,
            (b' ' | b'\t' | b'\n' | b';' | b'&' | b'|' | b'<' | b'>', None) => break,
            (byte, _) => word.push(byte),
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_carry_files_are_known_by_their_base_names() {
        let rules = Rules { block_file_transfer: true, ..Rules::default() };
        for command in
            ["scp -t /x", "  rsync --server", "/usr/bin/sftp", "'/opt/a b/nc' -l 1", "\"scp\"", "s\\cp x", "nc", "scp;true"]
        {
            assert!(rules.forbids(Some(command.as_bytes())), "{command}");
            assert!(!Rules::default().forbids(Some(command.as_bytes())), "{command}");
        }
        for command in ["echo scp", "scp2", "/scp/ls", "", "ncat", "./rsync.sh"] {
            assert!(!rules.forbids(Some(command.as_bytes())), "{command}");
        }
        assert!(!rules.forbids(None));
    }

    #[test]
    fn a_limit_is_three_keepalives_or_when_short_the_whole_life() {
        let of = |seconds| Rules { max_timeout: Duration::from_secs(seconds), ..Rules::default() };
        assert_eq!(Rules::default().keepalive(), Some((Duration::from_secs(24 * 3600), 2)));
        assert_eq!((of(3).keepalive(), of(3).lifetime()), (Some((Duration::from_secs(1), 2)), None));
        assert_eq!((of(2).keepalive(), of(2).lifetime()), (None, Some(Duration::from_secs(2))));
        assert_eq!((of(0).keepalive(), of(0).lifetime()), (None, None));
    }
}
