//! A unified diff of two texts, as `diff -u` and `patch` know it.

use std::ops::Range;

/// Unchanged lines around a change.
const CONTEXT: usize = 3;
/// Beyond so many pairs of lines the changed part is shown as a whole: it is for people, and time is short.
const PAIRS: usize = 1 << 20;

/// Lines of both sides that are not alike.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    old: Range<usize>,
    new: Range<usize>,
}

/// What turns `old` into `new`; nothing when they are equal.
pub(super) fn unified(name: &str, old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.split_inclusive('\n').collect(), new.split_inclusive('\n').collect());
    let changes = changes(&a, &b);
    if changes.is_empty() {
        return String::new();
    }
    let mut out = format!("--- {name}\n+++ {name}\n");
    // Changes whose context would touch stand in one hunk.
    for hunk in changes.chunk_by(|one, next| next.old.start - one.old.end <= 2 * CONTEXT) {
        let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else { continue };
        let before = CONTEXT.min(first.old.start);
        let behind = CONTEXT.min(a.len() - last.old.end);
        let of_old = first.old.start - before..last.old.end + behind;
        let of_new = first.new.start - before..last.new.end + behind;
        out += &format!("@@ -{} +{} @@\n", place(&of_old), place(&of_new));
        let mut at = of_old.start;
        for change in hunk {
            write(&mut out, ' ', a.get(at..change.old.start));
            write(&mut out, '-', a.get(change.old.clone()));
            write(&mut out, '+', b.get(change.new.clone()));
            at = change.old.end;
        }
        write(&mut out, ' ', a.get(at..of_old.end));
    }
    out
}

/// Where lines stand: the first one's number and how many; an empty range is named by the line before it.
fn place(lines: &Range<usize>) -> String {
    match lines.len() {
        0 => format!("{},0", lines.start),
        1 => format!("{}", lines.start + 1),
        len => format!("{},{len}", lines.start + 1),
    }
}

fn write(out: &mut String, mark: char, lines: Option<&[&str]>) {
    for line in lines.unwrap_or_default() {
        out.push(mark);
        out.push_str(line);
        if !line.ends_with('\n') {
            out.push_str("\n\\ No newline at end of file\n");
        }
    }
}

/// By the longest common subsequence of what lies between equal beginnings and equal ends.
fn changes(a: &[&str], b: &[&str]) -> Vec<Change> {
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (rest_a, rest_b) = (a.get(head..).unwrap_or_default(), b.get(head..).unwrap_or_default());
    let tail = rest_a.iter().rev().zip(rest_b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (n, m) = (rest_a.len() - tail, rest_b.len() - tail);
    let (mid_a, mid_b) = (rest_a.get(..n).unwrap_or_default(), rest_b.get(..m).unwrap_or_default());
    if n == 0 && m == 0 {
        return Vec::new();
    }
    if n.saturating_mul(m) > PAIRS {
        return vec![Change { old: head..head + n, new: head..head + m }];
    }
    // `common[i * (m + 1) + j]`: how long the common subsequence of `mid_a[i..]` and `mid_b[j..]` is.
    let mut common = vec![0u32; (n + 1) * (m + 1)];
    let at = |i: usize, j: usize| i * (m + 1) + j;
    let look = |common: &[u32], i, j| common.get(at(i, j)).copied().unwrap_or(0);
    for (i, x) in mid_a.iter().enumerate().rev() {
        for (j, y) in mid_b.iter().enumerate().rev() {
            let length =
                if x == y { look(&common, i + 1, j + 1) + 1 } else { look(&common, i + 1, j).max(look(&common, i, j + 1)) };
            if let Some(cell) = common.get_mut(at(i, j)) {
                *cell = length;
            }
        }
    }
    let mut changes: Vec<Change> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < n || j < m {
        if i < n && j < m && mid_a.get(i) == mid_b.get(j) {
            (i, j) = (i + 1, j + 1);
            continue;
        }
        let drops_old = j == m || i < n && look(&common, i + 1, j) >= look(&common, i, j + 1);
        let (old, new) = (head + i, head + j);
        if drops_old {
            i += 1
        } else {
            j += 1
        }
        let (old, new) = (old..head + i, new..head + j);
        match changes.last_mut() {
            Some(last) if last.old.end == old.start && last.new.end == new.start => {
                (last.old.end, last.new.end) = (old.end, new.end);
            }
            _ => changes.push(Change { old, new }),
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(lines: impl IntoIterator<Item = usize>) -> String {
        lines.into_iter().map(|n| format!("line {n}\n")).collect()
    }

    #[test]
    fn equal_texts_have_no_diff() {
        assert_eq!(unified("f", "a\nb", "a\nb"), "");
        assert_eq!(unified("f", "", ""), "");
    }

    #[test]
    fn lines_at_the_end_are_added_behind_their_context() {
        assert_eq!(unified("f", "a\nb\n", "a\nb\nc\n"), "--- f\n+++ f\n@@ -1,2 +1,3 @@\n a\n b\n+c\n");
        assert_eq!(unified("f", "", "a\nb\n"), "--- f\n+++ f\n@@ -0,0 +1,2 @@\n+a\n+b\n");
        assert_eq!(unified("f", "a\n", ""), "--- f\n+++ f\n@@ -1 +0,0 @@\n-a\n");
    }

    #[test]
    fn a_missing_last_line_break_is_told() {
        let none = "\\ No newline at end of file\n";
        assert_eq!(unified("f", "a", "a\nb\n"), format!("--- f\n+++ f\n@@ -1 +1,2 @@\n-a\n{none}+a\n+b\n"));
    }

    #[test]
    fn distant_changes_have_hunks_of_their_own() {
        let old = numbered(1..=30);
        let new = old.replace("line 2\n", "line two\n").replace("line 29\n", "");
        let diff = unified("f", &old, &new);
        assert!(diff.contains("@@ -1,5 +1,5 @@") && diff.contains("@@ -26,5 +26,4 @@"), "{diff}");
        let near = unified("f", &old, &old.replace("line 2\n", "x\n").replace("line 9\n", "y\n"));
        assert_eq!(near.matches("@@ -").count(), 1, "{near}");
    }

    /// What `patch` does.
    fn apply(old: &str, diff: &str) -> String {
        let old: Vec<&str> = old.split_inclusive('\n').collect();
        let (mut out, mut at) = (String::new(), 0);
        let lines: Vec<&str> = diff.split_inclusive('\n').skip(2).collect();
        for (n, line) in lines.iter().enumerate() {
            let (mark, text) = line.split_at(1);
            let open_end = lines.get(n + 1).is_some_and(|next| next.starts_with('\\'));
            let text = if open_end { text.trim_end_matches('\n') } else { text };
            match mark {
                "@" => {
                    let (start, len) = text.split(['-', ' ']).nth(2).unwrap().split_once(',').unwrap();
                    let start: usize = start.parse().unwrap();
                    let start = if len == "0" { start } else { start - 1 };
                    out.extend(old[at..start].iter().copied());
                    at = start;
                }
                "+" => out.push_str(text),
                "\\" => {}
                _ => {
                    assert_eq!(old[at], text, "{diff}");
                    at += 1;
                    if mark == " " {
                        out.push_str(text);
                    }
                }
            }
        }
        out.extend(old[at..].iter().copied());
        out
    }

    #[test]
    fn applied_to_the_old_text_it_gives_the_new_one() {
        let old = numbered((1..40).chain(7..12));
        let texts = [
            numbered((3..20).chain(25..50)),
            numbered((1..40).rev()),
            old.replace("line 3\n", "").replace("line 35\n", "line x\nline y"),
            format!("{old}no end"),
            numbered([]),
        ];
        for new in texts {
            for (from, to) in [(&old, &new), (&new, &old)] {
                assert_eq!(&apply(from, &unified("f", from, to)), to);
            }
        }
    }

    #[test]
    fn texts_of_many_lines_are_shown_as_one_change() {
        let (old, new) = (numbered(0..1500), numbered(2000..3500));
        let diff = unified("f", &old, &new);
        assert_eq!((diff.matches("\n-").count(), diff.matches("\n+line").count()), (1500, 1500));
    }
}
