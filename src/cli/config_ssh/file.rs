//! The configuration file itself: read whole, replaced in one step.

use anyhow::{Context as _, bail};
use std::{
    fs::{self, Permissions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

/// Links that may lead from one to the next, as in Linux.
const LINKS: usize = 40;
/// No configuration of a person is so long; anything longer is another file by mistake.
const LONGEST: u64 = 16 << 20;

/// An SSH configuration, which need not exist.
#[derive(Debug)]
pub(super) struct ConfigFile {
    /// As the user named it.
    pub(super) name: PathBuf,
    /// Where it lies, links followed.
    real: PathBuf,
    /// Mode and owner of what is there.
    old: Option<(u32, u32, u32)>,
    pub(super) content: Vec<u8>,
}

impl ConfigFile {
    /// Reads the file, or finds that there is none.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub(super) fn read(name: &Path) -> anyhow::Result<Self> {
        let name = with_home(name)?;
        let real = follow(&name)?;
        let failed = || format!("cannot read {}", name.display());
        let (old, content) = match fs::metadata(&real) {
            Ok(meta) if !meta.is_file() => {
                bail!("{} is not a regular file: choose another with --ssh-config-file", name.display())
            }
            Ok(meta) if meta.len() > LONGEST => bail!("{} is too long for an SSH configuration", name.display()),
            Ok(meta) => (Some((meta.mode(), meta.uid(), meta.gid())), fs::read(&real).with_context(failed)?),
            Err(e) if e.kind() == ErrorKind::NotFound => (None, Vec::new()),
            Err(e) => return Err(e).with_context(failed),
        };
        Ok(Self { name, real, old, content })
    }

    /// Replaces the content: whoever reads sees the old or the new one. Mode and owner stay; a new file is the user's alone.
    ///
    /// # Errors
    /// When it cannot be written, or is no longer what was read; then what is there stays.
    pub(super) fn replace(&self, content: &[u8]) -> anyhow::Result<()> {
        let now = Self::read(&self.name)?;
        if now.content != self.content || now.real != self.real {
            bail!("{} was changed by another program meanwhile and was left as it is: try again", self.name.display());
        }
        let failed = || format!("cannot write {}", self.name.display());
        let dir = self.real.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(dir).with_context(failed)?;
        file.write_all(content).with_context(failed)?;
        let mode = match self.old {
            Some((mode, user, group)) => {
                let made = file.as_file().metadata().with_context(failed)?;
                if (made.uid(), made.gid()) != (user, group) {
                    chown(file.path(), Some(user), Some(group)).with_context(failed)?;
                }
                mode & 0o7777
            }
            None => 0o600,
        };
        file.as_file().set_permissions(Permissions::from_mode(mode)).with_context(failed)?;
        file.as_file().sync_all().with_context(failed)?;
        file.persist(&self.real).map_err(|e| e.error).with_context(failed)?;
        Ok(())
    }
}

/// `~/` as a shell reads it.
fn with_home(name: &Path) -> anyhow::Result<PathBuf> {
    match name.strip_prefix("~") {
        Ok(rest) => {
            let home = etcetera::home_dir().context("no home folder is known: set HOME or pass --ssh-config-file")?;
            Ok(home.join(rest))
        }
        Err(_) => Ok(name.to_owned()),
    }
}

/// Where a chain of links ends, whether something is there or not.
fn follow(name: &Path) -> anyhow::Result<PathBuf> {
    let mut path = name.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            // No link, or nothing at all.
            Err(_) => return Ok(path),
        }
    }
    bail!("{} is a chain of links without an end", name.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_new_file_and_its_folder_are_the_users_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/config");
        let file = ConfigFile::read(&path).unwrap();
        assert_eq!(file.content, b"");
        file.replace(b"x").unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path), mode(path.parent().unwrap())), (b"x".to_vec(), 0o600, 0o700));
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_link_stays_one_and_the_mode_behind_it_too() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link, far) = (folder.path().join("real"), folder.path().join("link"), folder.path().join("far"));
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        symlink("real", &link).unwrap();
        symlink(&link, &far).unwrap();
        ConfigFile::read(&far).unwrap().replace(b"new").unwrap();
        assert_eq!((fs::read(&real).unwrap(), mode(&real)), (b"new".to_vec(), 0o640));
        assert_eq!((fs::read_link(&link).unwrap(), fs::read_link(&far).unwrap()), (PathBuf::from("real"), link));
        // A link to what is not there yet.
        let dangling = folder.path().join("dangling");
        symlink("made", &dangling).unwrap();
        ConfigFile::read(&dangling).unwrap().replace(b"new").unwrap();
        assert!(fs::symlink_metadata(&dangling).unwrap().is_symlink());
        assert_eq!(fs::read(folder.path().join("made")).unwrap(), b"new");
        symlink(folder.path().join("one"), folder.path().join("two")).unwrap();
        symlink(folder.path().join("two"), folder.path().join("one")).unwrap();
        assert!(ConfigFile::read(&folder.path().join("one")).is_err());
    }

    #[test]
    fn what_another_program_wrote_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, "old").unwrap();
        let file = ConfigFile::read(&path).unwrap();
        fs::write(&path, "theirs").unwrap();
        let error = file.replace(b"ours").unwrap_err().to_string();
        assert!(error.contains("meanwhile"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", ConfigFile::read(folder.path()).unwrap_err());
        assert!(error.contains("--ssh-config-file"), "{error}");
    }
}
