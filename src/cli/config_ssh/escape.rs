//! Words inside an SSH configuration, where several readers come one after the other: OpenSSH, which replaces `%` tokens
//! and minds quotes, and then the user's shell.

/// A word cannot stand in an SSH configuration, as its lines end where it has a line break.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineBreak;

/// Nothing that a shell or OpenSSH would take for something else. Blanks have to be quoted and double quotes escaped.
fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || "-_./:=@+,".contains(c)
}

fn one_line(word: &str) -> Result<String, LineBreak> {
    if word.contains(['\n', '\r']) { Err(LineBreak) } else { Ok(word.replace('%', "%%")) }
}

/// A path as a word of a `ProxyCommand`, in quotes only where it needs them.
pub(super) fn proxy_word(path: &str) -> Result<String, LineBreak> {
    let word = one_line(path)?;
    if word.chars().all(|c| is_plain(c) || c == '%' || c == '"') && !word.is_empty() {
        return Ok(word.replace('"', "\\\""));
    }
    let mut quoted = String::from('"');
    let mut letters = word.chars().peekable();
    while let Some(letter) = letters.next() {
        let escaped = match letter {
            '"' | '$' | '`' => true,
            // Between double quotes a backslash means itself, except in front of these.
            '\\' => matches!(letters.peek(), None | Some('"' | '$' | '`' | '\\')),
            _ => false,
        };
        if escaped {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('"');
    Ok(quoted)
}

/// Free text as a word of a `ProxyCommand`, always in quotes.
pub(super) fn proxy_text(text: &str) -> Result<String, LineBreak> {
    let mut quoted = String::from('"');
    for letter in one_line(text)?.chars() {
        if matches!(letter, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('"');
    Ok(quoted)
}

/// A path as the first word of the command in `Match … exec "…"`. Quotes do not nest there, so `None` for a path that
/// holds one.
pub(super) fn exec_word(path: &str) -> Result<Option<String>, LineBreak> {
    let word = one_line(path)?;
    if word.contains(['"', '\'']) {
        return Ok(None);
    }
    let mut escaped = String::new();
    for letter in word.chars() {
        if !is_plain(letter) && letter != '%' {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    Ok(Some(escaped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const PATHS: &[&str] = &[
        "/usr/bin/coder",
        "/opt/my apps/co\\der",
        "/opt/tab\there",
        "/a/$HOME/`id`",
        "/o'brien/(x)",
        "/a;b&c|d",
        "/a\"b",
        "/a \"b\\\"",
        "/end\\",
        "/~/#x",
        "/zoë/{a,b}*?[c]",
    ];

    /// What a shell makes of a word.
    fn shell(word: &str) -> String {
        let out = Command::new("sh").args(["-c", &format!("printf %s {word}")]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    }

    #[test]
    fn paths_are_quoted_where_go_quotes_them() {
        assert_eq!(proxy_word("/usr/bin/coder").unwrap(), "/usr/bin/coder");
        assert_eq!(proxy_word("/opt/my apps/co\\der").unwrap(), "\"/opt/my apps/co\\der\"");
        assert_eq!(proxy_word("/a\tb").unwrap(), "\"/a\tb\"");
        assert_eq!(proxy_word("/a\"b").unwrap(), "/a\\\"b");
        assert_eq!(proxy_word("/a \"b").unwrap(), "\"/a \\\"b\"");
        assert_eq!(exec_word("/usr/bin/coder").unwrap().unwrap(), "/usr/bin/coder");
        assert_eq!(exec_word("/opt/my apps/co\\der").unwrap().unwrap(), "/opt/my\\ apps/co\\\\der");
        assert_eq!(proxy_text("X-Foo=bar baz").unwrap(), "\"X-Foo=bar baz\"");
        assert_eq!(proxy_text("/bin/echo \"X=1\\\"").unwrap(), "\"/bin/echo \\\"X=1\\\\\\\"\"");
    }

    #[test]
    fn a_shell_reads_every_word_as_it_was() {
        for path in PATHS {
            assert_eq!(shell(&proxy_word(path).unwrap()), *path);
            assert_eq!(shell(&proxy_text(path).unwrap()), *path);
            if let Some(word) = exec_word(path).unwrap() {
                assert_eq!(shell(&word), *path);
            }
        }
    }

    #[test]
    fn percent_signs_are_doubled_and_line_breaks_refused() {
        assert_eq!(proxy_word("/a%20b").unwrap(), "/a%%20b");
        assert_eq!(proxy_text("X=%h").unwrap(), "\"X=%%h\"");
        assert_eq!(exec_word("/a%b").unwrap().unwrap(), "/a%%b");
        for bad in ["a\nb", "a\rb"] {
            assert_eq!((proxy_word(bad), proxy_text(bad), exec_word(bad)), (Err(LineBreak), Err(LineBreak), Err(LineBreak)));
        }
    }

    #[test]
    fn what_cannot_stand_in_an_exec_clause_is_told() {
        assert_eq!(exec_word("/a\"b"), Ok(None));
        assert_eq!(exec_word("/o'brien/coder"), Ok(None));
    }
}
