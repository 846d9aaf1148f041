//! The configuration folder (`cli.md` §1.3): `url` and `session`, one plain value a file.

use crate::driver::http::Token;
use anyhow::{Context as _, bail};
use etcetera::BaseStrategy as _;
use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// A configuration folder, which need not exist.
#[derive(Debug, Clone)]
pub(super) struct ConfigDir(PathBuf);

impl ConfigDir {
    /// The folder that was asked for, or the user's `coderv2`.
    pub(super) fn open(chosen: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(dir) = chosen {
            return Ok(Self(dir.to_owned()));
        }
        let strategy = etcetera::choose_base_strategy().context("no home folder is known: set HOME or pass --global-config")?;
        Ok(Self(strategy.config_dir().join("coderv2")))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn read(&self, name: &str) -> anyhow::Result<Option<String>> {
        let path = self.0.join(name);
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().lines().count() > 1 => bail!("{} holds more than one line; log in again", path.display()),
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty())),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => bail!("cannot read {}: {e}", path.display()),
        }
    }

    /// Replaces a file in one step: a reader sees the old value or the new one.
    fn write(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let dir = &self.0;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let mut file = tempfile::NamedTempFile::new_in(dir).with_context(|| format!("cannot write in {}", dir.display()))?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(value.as_bytes())?;
        file.persist(dir.join(name)).with_context(|| format!("cannot write {}", dir.join(name).display()))?;
        Ok(())
    }

    pub(super) fn url(&self) -> anyhow::Result<Option<String>> {
        self.read("url")
    }

    pub(super) fn session(&self) -> anyhow::Result<Option<Token>> {
        Ok(self.read("session")?.map(Token::new))
    }

    /// Stores a login.
    pub(super) fn store(&self, url: &str, session: &Token) -> anyhow::Result<()> {
        self.write("session", session.expose())?;
        self.write("url", url)
    }

    /// Removes all that belongs to a login; what is not there is fine.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        // The token first: whatever happens then, it is gone.
        for name in ["session", "url", "organization"] {
            match fs::remove_file(self.0.join(name)) {
                Err(e) if e.kind() != ErrorKind::NotFound => bail!("cannot remove {}: {e}", self.0.join(name).display()),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_stored_for_the_owner_alone_and_read_trimmed() {
        let dir = tempfile::tempdir().unwrap();
        let config = ConfigDir::open(Some(&dir.path().join("sub"))).unwrap();
        assert_eq!(config.url().unwrap(), None);
        config.store("http://localhost:3000", &Token::new("abc-def")).unwrap();
        assert_eq!(config.session().unwrap().unwrap().expose(), "abc-def");
        let mode = |name: &str| fs::metadata(config.0.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("url"), mode("session")), (0o600, 0o600));
        fs::write(config.0.join("url"), " http://example.com \n").unwrap();
        assert_eq!(config.url().unwrap().as_deref(), Some("http://example.com"));
        config.forget().unwrap();
        assert!(fs::read_dir(&config.0).unwrap().next().is_none());
        config.forget().unwrap();
    }
}
