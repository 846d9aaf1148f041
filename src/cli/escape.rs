//! What a person types at the beginning of a line to talk to us and not to the session: `~.`, `~~` and `~?`, as with
//! OpenSSH; and Ctrl-C, twice, when nothing else answers.

/// What `~?` shows. The terminal is in raw mode.
pub(super) const HELP: &str =
    "\r\nAt the beginning of a line:\r\n  ~.  leave the session\r\n  ~~  type one ~\r\n  ~?  show this\r";
/// Ctrl-C
pub(super) const INTERRUPT: u8 = 3;

/// Where the next key stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum At {
    #[default]
    LineStart,
    Inside,
    /// Behind a `~` that nobody has seen yet.
    Tilde,
}

/// Reads keys as they come, however they are cut.
#[derive(Debug, Default)]
pub(super) struct Escapes {
    at: At,
    interrupts: u8,
}

/// What keys mean.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Typed {
    /// For the session.
    pub(super) pass: Vec<u8>,
    /// The person asks for help.
    pub(super) help: bool,
    /// The person leaves; keys behind that are gone.
    pub(super) leave: bool,
}

impl Escapes {
    /// Takes keys. In a session that is `silent` a second Ctrl-C leaves.
    pub(super) fn take(&mut self, keys: &[u8], silent: bool) -> Typed {
        let mut typed = Typed::default();
        for key in keys {
            self.interrupts = if silent && *key == INTERRUPT { self.interrupts + 1 } else { 0 };
            match (self.at, *key) {
                (At::Tilde, b'.') => typed.leave = true,
                _ if self.interrupts > 1 => typed.leave = true,
                (At::LineStart, b'~') => {
                    self.at = At::Tilde;
                    continue;
                }
                (At::Tilde, b'?') => {
                    typed.help = true;
                    self.at = At::LineStart;
                    continue;
                }
                (At::Tilde, b'~') => typed.pass.push(b'~'),
                (At::Tilde, other) => typed.pass.extend([b'~', other]),
                (_, other) => typed.pass.push(other),
            }
            if typed.leave {
                return typed;
            }
            self.at = if matches!(key, b'\r' | b'\n') { At::LineStart } else { At::Inside };
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the session gets of keys that come one by one, and whether the person left.
    fn types(keys: &str, silent: bool) -> (String, bool, bool) {
        let (mut escapes, mut all) = (Escapes::default(), Typed::default());
        for key in keys.bytes() {
            let typed = escapes.take(&[key], silent);
            all.pass.extend(typed.pass);
            all.help |= typed.help;
            all.leave |= typed.leave;
        }
        let whole = Escapes::default().take(keys.as_bytes(), silent);
        if !whole.leave {
            assert_eq!(whole, all, "{keys:?} at once and one by one");
        }
        (String::from_utf8(all.pass).unwrap(), all.help, all.leave)
    }

    #[test]
    fn a_tilde_at_the_beginning_of_a_line_is_for_us() {
        for (keys, pass, help, leave) in [
            ("ls\r", "ls\r", false, false),
            ("~.", "", false, true),
            ("ls\r~.", "ls\r", false, true),
            ("a~.", "a~.", false, false),
            ("cd ~\r", "cd ~\r", false, false),
            ("~~.x", "~.x", false, false),
            ("~?", "", true, false),
            ("~?~.", "", true, true),
            ("~a\r", "~a\r", false, false),
            ("~\r~.", "~\r", false, true),
            ("\x03\x03", "\x03\x03", false, false),
        ] {
            assert_eq!(types(keys, false), (pass.to_owned(), help, leave), "{keys:?}");
        }
    }

    #[test]
    fn the_second_interrupt_leaves_a_silent_session() {
        assert_eq!(types("\x03\x03", true), ("\x03".to_owned(), false, true));
        assert_eq!(types("\x03x\x03", true), ("\x03x\x03".to_owned(), false, false));
    }
}
