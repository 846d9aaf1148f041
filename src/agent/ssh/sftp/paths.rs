//! What a client's paths mean: the root is the machine's, relative ones begin where commands begin.

use crate::agent::{account::Account, environment::Profile};
use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

/// Where paths begin.
#[derive(Debug)]
pub(super) struct Paths {
    folder: PathBuf,
    home: PathBuf,
}

impl Paths {
    /// Looks where commands begin, which may block.
    pub(super) fn new(profile: &Profile, account: &Account) -> Self {
        Self { folder: profile.folder(account).to_owned(), home: account.home.clone() }
    }

    /// An empty path is the folder itself.
    pub(super) fn of(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.folder.clone() } else { self.folder.join(OsStr::from_bytes(path)) }
    }

    /// The path without links, `.` and `..`. The last name need not be there: clients ask before they make a file.
    pub(super) fn real(&self, path: &[u8]) -> io::Result<PathBuf> {
        let path = self.of(path);
        match fs::canonicalize(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
                Ok(fs::canonicalize(parent)?.join(name))
            }
            real => real,
        }
    }

    /// The path with a leading `~` or `~user` replaced by that home.
    pub(super) fn expand(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        let Some(after) = path.strip_prefix(b"~") else { return Ok(path.to_vec()) };
        let end = after.iter().position(|b| *b == b'/').unwrap_or(after.len());
        let (user, rest) = after.split_at(end);
        let home = if user.is_empty() { Some(self.home.clone()) } else { home_of(user) };
        let home = home.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such user"))?;
        Ok([home.as_os_str().as_bytes(), rest].concat())
    }
}

fn home_of(user: &[u8]) -> Option<PathBuf> {
    let passwd = fs::read("/etc/passwd").ok()?;
    passwd.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        (fields.next()? == user).then(|| fields.nth(4))?.map(|home| Path::new(OsStr::from_bytes(home)).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(folder: &Path) -> Paths {
        Paths { folder: folder.to_owned(), home: "/home/dev".into() }
    }

    #[test]
    fn a_relative_path_begins_in_the_folder_and_an_absolute_one_at_the_root() {
        let paths = paths(Path::new("/srv/dev"));
        for (path, expected) in [("", "/srv/dev"), ("a/b", "/srv/dev/a/b"), ("/etc", "/etc")] {
            assert_eq!(paths.of(path.as_bytes()), Path::new(expected));
        }
        assert_eq!(paths.of(b"\xff").as_os_str().as_bytes(), b"/srv/dev/\xff");
    }

    #[test]
    fn a_real_path_has_no_links_and_its_last_name_need_not_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        let paths = paths(&root);
        assert_eq!(paths.real(b".").unwrap(), root);
        assert_eq!(paths.real(b"link/../link/new").unwrap(), root.join("real/new"));
        assert_eq!(paths.real(b"missing/new").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_tilde_is_a_home() {
        let paths = paths(Path::new("/srv/dev"));
        for (path, expected) in [("~", "/home/dev"), ("~/x/~", "/home/dev/x/~"), ("a/~", "a/~"), ("", "")] {
            assert_eq!(paths.expand(path.as_bytes()).unwrap(), expected.as_bytes());
        }
        // Whoever stands first in the table of accounts.
        let accounts = fs::read_to_string("/etc/passwd").unwrap();
        let fields: Vec<&str> = accounts.lines().next().unwrap().split(':').collect();
        let (path, expected) = (format!("~{}/x", fields[0]), Path::new(fields[5]).join("x"));
        assert_eq!(paths.expand(path.as_bytes()).unwrap(), expected.as_os_str().as_bytes());
        assert_eq!(paths.expand(b"~no such user").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
