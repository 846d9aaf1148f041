//! The one sink for what a command prints. Standard output carries results, standard error everything for people.

use super::stderr;
use std::io::{self, Write as _};
use zeroize::Zeroizing;

/// Prints a result line to standard output.
///
/// # Errors
/// When standard output is closed or full.
pub(super) fn line(text: &str) -> io::Result<()> {
    raw(&format!("{text}\n"))
}

/// Prints text as it is to standard output.
///
/// # Errors
/// As [`line`].
pub(super) fn raw(text: &str) -> io::Result<()> {
    // In the order in which a terminal shows both.
    stderr::flush();
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| io::Error::new(e.kind(), format!("cannot write to standard output: {e}")))
}

/// Prints a line that holds a secret which is to be had only once. `made` tells whoever does not get it what there is now.
///
/// # Errors
/// As [`line`]; also a closed standard output is worth a word here.
pub(super) fn once(text: &str, made: &str) -> anyhow::Result<()> {
    line(text).map_err(|e| anyhow::anyhow!("{e}; {made}"))
}

/// Reads a line of standard input, which may be a person's answer; `None` at its end. Reading blocks a thread of its own:
/// signals are heard meanwhile.
pub(super) async fn answer() -> io::Result<Option<Zeroizing<String>>> {
    let read = || {
        let mut line = Zeroizing::new(String::new());
        let length = io::stdin().read_line(&mut line)?;
        Ok((length > 0).then_some(line))
    };
    tokio::task::spawn_blocking(read).await?
}

/// Prints a line for a person to standard error.
pub(super) fn note(text: &str) {
    stderr::write(&format!("{text}\n"));
}

/// One word for a POSIX shell.
pub(super) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// Columns as the Go command line prints them: upper-case heads, two blanks between and behind, no rules.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    table_with(heads, rows, &[])
}

/// The same with numbers: the cells of a column marked `true` stand on the right.
pub(super) fn table_with(heads: &[&str], rows: &[Vec<String>], right: &[bool]) -> String {
    let visible = |row: &Vec<String>| row.iter().map(|cell| stderr::visible(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(visible).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count());
        cells.chain(heads.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let head = heads.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
    let body = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).enumerate();
        let write = |(at, (cell, width)): (usize, (&String, &usize))| match right.get(at) {
            Some(true) => format!("{cell:>width$}  "),
            _ => format!("{cell:width$}  "),
        };
        cells.map(write).collect::<String>()
    });
    std::iter::once(head).chain(body).collect::<Vec<_>>().join("\n")
}

/// The rule between the rows of a table, as wide as its lines are.
pub(super) fn rule(table: &str) -> String {
    "-".repeat(table.lines().map(|l| l.chars().count()).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_looks_as_the_go_one_does() {
        let got = table(
            &[
                "WORKSPACE",
                "TEMPLATE",
                "STATUS",
                "HEALTHY",
                "LAST BUILT",
                "CURRENT VERSION",
                "OUTDATED",
                "STARTS AT",
                "STOPS AFTER",
            ],
            &[["  admin/dev", "t-dev", "Started", "true", "1m", "gifted_bhabha1", "false", "", ""].map(str::to_owned).to_vec()],
        );
        let vector = include_str!("../../tests/vectors/cli/list.txt");
        let want: Vec<&str> =
            vector.lines().skip_while(|l| *l != "## stdout").skip(1).take_while(|l| *l != "## stderr").collect();
        assert_eq!(got, want.join("\n"));
    }
}
