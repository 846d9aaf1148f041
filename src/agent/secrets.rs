//! Secrets of the user that commands of the workspace find in files (agent.md §3.1).

use std::{
    fmt,
    fs::{DirBuilder, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// One secret and its file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretFile {
    pub(crate) path: PathBuf,
    pub(crate) value: Vec<u8>,
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Writes all of them. One that cannot be written is told and keeps nothing else back.
pub(crate) fn write(secrets: &[SecretFile]) {
    for secret in secrets {
        if let Err(error) = secret.write() {
            tracing::warn!(path = %secret.path.display(), %error, "a secret's file cannot be written");
        }
    }
}

impl SecretFile {
    /// For this user alone, and whole at every moment.
    fn write(&self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut file =
            tempfile::Builder::new().prefix(".secret-").permissions(Permissions::from_mode(0o600)).tempfile_in(folder)?;
        file.write_all(&self.value)?;
        file.persist(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_secret_is_its_owners_alone_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/token");
        let secret = |value: &[u8]| SecretFile { path: path.clone(), value: value.to_vec() };
        let impossible = SecretFile { path: "/dev/null/x".into(), value: b"sesame".to_vec() };
        write(&[impossible.clone(), secret(b"one")]);
        write(&[secret(b"\0two")]);
        assert_eq!(fs::read(&path).unwrap(), b"\0two");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        assert!(!format!("{impossible:?}").contains("sesame"));
    }
}
