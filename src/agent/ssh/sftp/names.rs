//! Names of users and groups, for the lines of a listing.

use std::{collections::HashMap, fs};

/// What `/etc/passwd` and `/etc/group` say; a number without a name is shown as it is.
#[derive(Debug)]
pub(super) struct Accounts {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Accounts {
    pub(super) fn read() -> Self {
        Self { users: table("/etc/passwd"), groups: table("/etc/group") }
    }

    pub(super) fn user(&self, id: u32) -> String {
        self.users.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    pub(super) fn group(&self, id: u32) -> String {
        self.groups.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
}

fn table(file: &str) -> HashMap<u32, String> {
    let text = fs::read(file).unwrap_or_default();
    parse(&String::from_utf8_lossy(&text))
}

/// The first and third fields; of two names for a number the first one counts.
fn parse(text: &str) -> HashMap<u32, String> {
    let mut out = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(id))) = (fields.next(), fields.nth(1).map(str::parse)) {
            out.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts() {
        let table = parse("root:x:0:0::/:\ntoor:x:0:0::/:\n# no\nbroken:x\ndev:x:1000:\n");
        assert_eq!(table, [(0, "root".to_owned()), (1000, "dev".to_owned())].into());
        let accounts = Accounts { users: table, groups: HashMap::new() };
        assert_eq!((accounts.user(1000), accounts.user(7), accounts.group(0)), ("dev".into(), "7".into(), "0".into()));
    }
}
