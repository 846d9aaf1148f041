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

/// The token of a login.
#[derive(Debug, Clone, Copy)]
pub(super) enum Session<'a> {
    /// It belongs to the login and ends with it.
    Own(&'a Token),
    /// Others may use it too: it outlives the login.
    Given(&'a Token),
}

/// Holds the public id of a stored token that outlives its login. Whoever stores another one does not have to know of it.
const GIVEN: &str = "given";

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
    pub(super) fn store(&self, url: &str, session: Session<'_>) -> anyhow::Result<()> {
        let token = match session {
            Session::Own(token) => {
                self.remove(GIVEN)?;
                token
            }
            Session::Given(token) => {
                self.write(GIVEN, public_id(token))?;
                token
            }
        };
        self.write("session", token.expose())?;
        self.write("url", url)
    }

    /// Whether `token` was stored as one that outlives its login.
    pub(super) fn is_given(&self, token: &Token) -> anyhow::Result<bool> {
        Ok(self.read(GIVEN)?.is_some_and(|id| id == public_id(token)))
    }

    /// Removes all that belongs to a login; what is not there is fine.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        // The token first: whatever happens then, it is gone.
        ["session", "url", "organization", GIVEN].into_iter().try_for_each(|name| self.remove(name))
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(e) if e.kind() != ErrorKind::NotFound => bail!("cannot remove {}: {e}", self.0.join(name).display()),
            _ => Ok(()),
        }
    }
}

/// The part of a token that is no secret.
fn public_id(token: &Token) -> &str {
    token.expose().split('-').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_stored_for_the_owner_alone_and_read_trimmed() {
        let dir = tempfile::tempdir().unwrap();
        let config = ConfigDir::open(Some(&dir.path().join("sub"))).unwrap();
        assert_eq!(config.url().unwrap(), None);
        config.store("http://localhost:3000", Session::Own(&Token::new("abc-def"))).unwrap();
        assert_eq!(config.session().unwrap().unwrap().expose(), "abc-def");
        let mode = |name: &str| fs::metadata(config.0.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("url"), mode("session")), (0o600, 0o600));
        fs::write(config.0.join("url"), " http://example.com \n").unwrap();
        assert_eq!(config.url().unwrap().as_deref(), Some("http://example.com"));
        config.store("http://localhost:3000", Session::Given(&Token::new("ghi-jkl"))).unwrap();
        // Another program stores another token and knows nothing of the mark.
        assert_eq!(["ghi-jkl", "abc-def"].map(|t| config.is_given(&Token::new(t)).unwrap()), [true, false]);
        assert_eq!(fs::read_to_string(config.0.join(GIVEN)).unwrap(), "ghi", "nothing of the secret");
        config.forget().unwrap();
        assert!(fs::read_dir(&config.0).unwrap().next().is_none());
        config.forget().unwrap();
    }
}
