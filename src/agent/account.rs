//! The account that commands run under: the agent's own (agent.md §6.4).

use std::{env, ffi::OsString, fs, path::PathBuf};

/// Name, home and login shell of the agent's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

impl Account {
    /// The user this process runs as: its passwd line, and where that is missing what the environment says. The home is
    /// `$HOME` where that is an absolute path, as shells and the Go agent take it, so that `~` means one folder everywhere.
    pub(crate) fn current() -> Self {
        let uid = rustix::process::getuid().as_raw();
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::of(&passwd, uid, |name| env::var_os(name))
    }

    fn of(passwd: &str, uid: u32, var: impl Fn(&str) -> Option<OsString>) -> Self {
        let var = |name: &str| var(name).filter(|v| !v.is_empty());
        let account = Self::from_passwd(passwd, uid).unwrap_or_else(|| Self {
            name: var("USER").and_then(|v| v.into_string().ok()).unwrap_or_else(|| uid.to_string()),
            home: "/".into(),
            shell: var("SHELL").unwrap_or_else(|| "/bin/sh".into()).into(),
        });
        match var("HOME").map(PathBuf::from).filter(|home| home.is_absolute()) {
            Some(home) => Self { home, ..account },
            None => account,
        }
    }

    /// The line of `uid` in a passwd file. An empty shell field means `/bin/sh` (passwd(5)).
    fn from_passwd(passwd: &str, uid: u32) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let id = fields.nth(1)?.parse::<u32>().ok()?;
            let home = fields.nth(2)?;
            let shell = fields.next().unwrap_or_default();
            (id == uid && !name.is_empty()).then(|| Self {
                name: name.to_owned(),
                home: if home.is_empty() { "/" } else { home }.into(),
                shell: if shell.is_empty() { "/bin/sh" } else { shell }.into(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_passwd_line_of_the_user_is_found_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\ndev:x:1000:1000:,,,:/home/dev:/usr/bin/zsh\nbare:x:7:7:::\n";
        let dev = Account::from_passwd(passwd, 1000).unwrap();
        assert_eq!((dev.name.as_str(), dev.home.to_str(), dev.shell.to_str()), ("dev", Some("/home/dev"), Some("/usr/bin/zsh")));
        let bare = Account::from_passwd(passwd, 7).unwrap();
        assert_eq!((bare.home.to_str(), bare.shell.to_str()), (Some("/"), Some("/bin/sh")));
        assert_eq!(Account::from_passwd(passwd, 8), None);
    }

    #[test]
    fn the_home_is_the_agents_variable_where_that_is_an_absolute_path() {
        let home = |passwd: &str, home: Option<&str>| {
            Account::of(passwd, 1000, |name| home.filter(|_| name == "HOME").map(Into::into)).home.to_str().unwrap().to_owned()
        };
        let passwd = "dev:x:1000:1000::/home/dev:/bin/sh\n";
        assert_eq!(home(passwd, Some("/x")), "/x");
        for unusable in [None, Some(""), Some("x/y")] {
            assert_eq!((home(passwd, unusable), home("", unusable)), ("/home/dev".into(), "/".into()), "{unusable:?}");
        }
        let account = Account::of("", 1000, |name| (name != "HOME").then(|| name.to_lowercase().into()));
        assert_eq!((account.name.as_str(), account.shell.to_str()), ("user", Some("shell")));
    }
}
