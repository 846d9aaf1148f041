//! Files that hang as those of a dead network file system do: whoever opens or runs one waits until it is let go.

use rustix::io::Errno;
use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

/// The kernel takes a lease away after 45 s: what a test sees earlier than this was seen while the file hung.
pub(in crate::agent) const HOLDS: Duration = Duration::from_secs(40);

/// Linux's number of the command that chooses the signal; the crate `libc` has no name for it.
const F_SETSIG: i32 = 10;

/// A file on which this process has a lease.
pub(in crate::agent) struct HeldFile {
    path: PathBuf,
    lease: File,
    _folder: TempDir,
}

impl HeldFile {
    /// A copy of a file.
    pub(in crate::agent) fn copy_of(original: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("held");
        fs::copy(original, &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let held = Self { lease: File::open(&path).unwrap(), path, _folder: folder };
        // The holder is told that somebody waits by a signal, which would end it; this one does nothing.
        held.fcntl(F_SETSIG, libc::SIGURG).unwrap();
        loop {
            match held.fcntl(libc::F_SETLEASE, libc::F_WRLCK) {
                Ok(_) => return held,
                // A process that another test starts has the copy open for writing, until it runs its program.
                Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => std::thread::yield_now(),
                Err(error) => panic!("no lease: {error}"),
            }
        }
    }

    #[expect(unsafe_code, reason = "fcntl(2) has no safe wrapper for leases")]
    fn fcntl(&self, command: i32, argument: i32) -> io::Result<i32> {
        // SAFETY: the file is open, and the commands take a number or none.
        let done = unsafe { libc::fcntl(self.lease.as_raw_fd(), command, argument) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
    }

    /// Returns when somebody waits for it. A program that does is a process already, with all that was open when it began.
    pub(in crate::agent) async fn is_waited_for(&self) {
        while self.fcntl(libc::F_GETLEASE, 0).unwrap() == libc::F_WRLCK {
            tokio::task::yield_now().await;
        }
    }

    pub(in crate::agent) fn path(&self) -> &Path {
        &self.path
    }

    /// Whoever waits for it goes on.
    pub(in crate::agent) fn let_go(&self) {
        self.fcntl(libc::F_SETLEASE, libc::F_UNLCK).unwrap();
    }
}
