//! The one sink for what a command prints. Standard output carries results, standard error everything for people.

use std::io::{self, Write as _};

/// Prints a result line to standard output.
///
/// # Errors
/// When standard output is closed or full.
pub(super) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints text as it is to standard output.
pub(super) fn raw(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a line for a person to standard error. A closed standard error is nobody's problem.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Columns as the Go command line prints them: upper-case heads, two blanks between and behind, no rules.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count());
        cells.chain(heads.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let write = |cells: &mut dyn Iterator<Item = &str>| {
        cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect::<String>()
    };
    let mut lines = vec![write(&mut heads.iter().copied())];
    lines.extend(rows.iter().map(|row| write(&mut row.iter().map(String::as_str))));
    lines.join("\n")
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
