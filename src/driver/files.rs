//! Folders and log files that other users of the machine can neither lead elsewhere nor read, and files that are read whole.

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};
use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

/// Makes a folder and those above it that are missing, for this user alone. One that is there stays as it is.
///
/// # Errors
/// When one of them cannot be made.
pub fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The same for a folder whose content is trusted: one that is there has to be this user's, and nobody else may write to it.
///
/// # Errors
/// When it cannot be made, or is no such folder.
pub fn own_folder(path: &Path) -> io::Result<()> {
    make_folder(path)?;
    let found = fs::symlink_metadata(path)?;
    let path = path.display();
    let wrong = if !found.is_dir() {
        format!("{path} is a link")
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        format!("{path} belongs to another user, number {}", found.uid())
    } else if found.mode() & 0o022 != 0 {
        format!("other users may write to {path}: take that away with chmod go-w")
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, wrong))
}

/// What happens to a log that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It goes on.
    Old,
    /// It starts anew.
    New,
}

/// Opens a log to write to, which is made readable for this user alone. A link is not followed, and what is no regular file
/// is refused: a pipe would hold up whoever writes.
///
/// # Errors
/// When it cannot be opened or is no regular file.
pub fn open_log(path: &Path, keep: Keep) -> io::Result<File> {
    let start = match keep {
        Keep::Old => OFlags::APPEND,
        Keep::New => OFlags::TRUNC,
    };
    let how = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let refused = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    let file = match open(path, how | start, Mode::RUSR | Mode::WUSR) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) => return Err(refused("it is a link, and a log is not written through one")),
        // A pipe that nobody reads.
        Err(Errno::NXIO) => return Err(refused("it is no regular file")),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(refused("it is no regular file"));
    }
    Ok(file)
}

/// Reads a regular file of at most so many bytes. Anything else is refused before it is opened: a pipe would never end.
///
/// # Errors
/// When it cannot be read, is no regular file or is larger.
pub fn read_regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if found.len() > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write as _,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_folder_that_is_trusted_is_ours_alone_and_no_link() {
        let base = tempfile::tempdir().unwrap();
        let own = base.path().join("a/b");
        own_folder(&own).unwrap();
        own_folder(&own).unwrap();
        assert_eq!((mode(&own), mode(own.parent().unwrap())), (0o700, 0o700));
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        own_folder(&own).unwrap();
        let refused = |path: &Path| own_folder(path).unwrap_err().to_string();
        for open in [0o775, 0o757, 0o1777] {
            fs::set_permissions(&own, fs::Permissions::from_mode(open)).unwrap();
            assert!(refused(&own).contains("chmod go-w"), "{open:o}");
        }
        let (link, to) = (base.path().join("link"), base.path().join("a"));
        symlink(&to, &link).unwrap();
        assert!(refused(&link).contains("is a link"));
        // Nobody gives folders away but root, whose the system's are.
        if !rustix::process::geteuid().is_root() {
            assert!(refused(Path::new("/usr")).contains("belongs to another user"));
        } else {
            std::os::unix::fs::chown(&to, Some(1), None).unwrap();
            assert!(refused(&to).contains("belongs to another user, number 1"));
        }
    }

    #[test]
    fn a_file_is_read_whole_if_it_is_regular_and_no_larger_than_allowed() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("file");
        fs::write(&file, "four").unwrap();
        assert_eq!(read_regular(&file, 4).unwrap(), b"four");
        assert!(read_regular(&file, 3).unwrap_err().to_string().contains("larger than 3 bytes"));
        let pipe = base.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), base.path()] {
            assert!(read_regular(path, 4).unwrap_err().to_string().contains("not a regular file"), "{}", path.display());
        }
        assert_eq!(read_regular(&base.path().join("none"), 4).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_log_is_a_regular_file_for_its_user_alone() {
        let base = tempfile::tempdir().unwrap();
        let log = base.path().join("log");
        for (keep, text) in [(Keep::New, "a"), (Keep::Old, "ab"), (Keep::New, "c")] {
            open_log(&log, keep).unwrap().write_all(&text.as_bytes()[text.len() - 1..]).unwrap();
            assert_eq!(fs::read_to_string(&log).unwrap(), text);
        }
        assert_eq!(mode(&log), 0o600);
        let link = base.path().join("link");
        symlink(base.path().join("elsewhere"), &link).unwrap();
        let pipe = base.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for (path, words) in [(link.as_path(), "link"), (&pipe, "no regular file"), (Path::new("/dev/null"), "no regular file")] {
            assert!(open_log(path, Keep::Old).unwrap_err().to_string().contains(words), "{}", path.display());
        }
        // A pipe that somebody reads opens, and would stop its writer once it is full.
        let _reader = open(&pipe, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        assert!(open_log(&pipe, Keep::New).unwrap_err().to_string().contains("no regular file"));
        assert!(!base.path().join("elsewhere").exists());
    }
}
