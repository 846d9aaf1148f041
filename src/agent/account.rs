//! The account that commands run under: the agent's own (agent.md §6.4).

use std::{env, fs, path::PathBuf};

/// Name, home and login shell of the agent's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

impl Account {
    /// The user this process runs as: its passwd line, and where that is missing what the environment says.
    pub(crate) fn current() -> Self {
        let uid = rustix::process::getuid().as_raw();
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let var = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        Self::from_passwd(&passwd, uid).unwrap_or_else(|| Self {
            name: var("USER").unwrap_or_else(|| uid.to_string()),
            home: var("HOME").unwrap_or_else(|| "/".to_owned()).into(),
            shell: var("SHELL").unwrap_or_else(|| "/bin/sh".to_owned()).into(),
        })
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
}
