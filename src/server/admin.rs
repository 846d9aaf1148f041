//! The first user and the file with its token.

use super::{
    store::{KeyKind, NewKey, Presented, Result, Store, User},
    time::Stamp,
    token::SessionToken,
};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// The first user's name.
const USERNAME: &str = "admin";
/// The file in the data folder.
const FILE: &str = "admin-token";
/// A hundred years: the file lies beside the database, so who can read it can do anything here anyway.
const LIFE: Duration = Duration::from_secs(876_600 * 3600);

/// Where the first user's token lies.
pub(super) fn token_path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// The first user, made where there is none yet.
pub(super) async fn ensure_user(store: &Store) -> Result<User> {
    match store.first_user().await? {
        Some(user) => Ok(user),
        None => store.insert_user(Stamp::now(), USERNAME, "", "admin@localhost", true).await,
    }
}

/// Sees to it that the file holds a token that counts. One that does is left alone.
pub(super) async fn ensure_token(store: &Store, user: &User, path: &Path) -> Result<io::Result<()>> {
    let held = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<SessionToken>().ok());
    if let Some(token) = held
        && let Presented::Valid(owner, _) = store.check_key(Stamp::now(), &token).await?
        && owner.id == user.id
    {
        return Ok(keep_private(path));
    }
    let key = NewKey { user: user.id, kind: KeyKind::Session, name: "", lifetime: LIFE, scopes: None, by_password: false };
    let token = store.insert_key(Stamp::now(), key).await?;
    Ok(write(path, &token))
}

/// Takes a file that somebody opened up away from everybody but its owner.
fn keep_private(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "others could read the first user's token");
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// Writes the file at once and whole, readable by its owner alone from the first moment.
fn write(path: &Path, token: &SessionToken) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    // Temporary files are made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{}", token.expose())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    #[tokio::test]
    async fn the_token_counts_stays_and_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let user = ensure_user(&store).await.unwrap();
        let path = token_path(folder.path());
        ensure_token(&store, &user, &path).await.unwrap().unwrap();
        let first = fs::read_to_string(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let token = first.trim().parse().unwrap();
        assert!(matches!(store.check_key(Stamp::now(), &token).await.unwrap(), Presented::Valid(..)));

        assert_eq!(ensure_user(&store).await.unwrap().id, user.id);
        ensure_token(&store, &user, &path).await.unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), first);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        ensure_token(&store, &user, &path).await.unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        fs::remove_file(&path).unwrap();
        ensure_token(&store, &user, &path).await.unwrap().unwrap();
        assert_ne!(fs::read_to_string(&path).unwrap(), first);
    }
}
