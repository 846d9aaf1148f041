//! A log file that is put aside when it has grown: `NAME`, `NAME.1` … `NAME.10`, the newest first.

use crate::driver::files::{Keep, make_folder, open_log};
use anyhow::Context as _;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// What a file may grow to.
const SIZE: u64 = 5 << 20;
/// How many old ones are kept; number 0 is one that is about to be.
const KEPT: u32 = 10;

/// An open log file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    written: u64,
    size: u64,
}

impl LogFile {
    /// Opens the file `name` in a folder, which is made where it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made or the file not written.
    pub(super) fn open(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let path = folder.join(name);
        make_folder(folder)
            .and_then(|()| Self::append(path.clone(), SIZE))
            .with_context(|| format!("cannot write the log {}: choose another folder with --log-dir", path.display()))
    }

    fn append(path: PathBuf, size: u64) -> io::Result<Self> {
        let file = open_log(&path, Keep::Old)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, size })
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Puts the file aside and begins a new one. Where that cannot be, the open one is written on, and it is tried again when
    /// as much more was written.
    fn put_aside(&mut self) {
        self.written = 0;
        if let Ok(begun) = self.begin_anew() {
            *self = begun;
        }
    }

    fn begin_anew(&self) -> io::Result<Self> {
        // To a name of its own first: the old ones move only where there is something to make room for.
        let aside = self.old(0);
        match fs::rename(&self.path, &aside) {
            Ok(()) => {
                for number in (0..KEPT).rev() {
                    // The older ones may not be there yet.
                    let _ = fs::rename(self.old(number), self.old(number + 1));
                }
            }
            // Somebody has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Self::append(self.path.clone(), self.size)
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.size {
            self.put_aside();
        }
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_grown_is_put_aside_and_the_oldest_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::append(path.clone(), 10).unwrap();
        for round in 0..14 {
            log.write_all(format!("line {round:02}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((read("log"), read("log.1"), read("log.10")), ("line 13\n".into(), "line 12\n".into(), "line 03\n".into()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 11);
        drop(log);
        LogFile::append(path, 100).unwrap().write_all(b"more").unwrap();
        assert_eq!(read("log"), "line 13\nmore");
    }

    #[test]
    fn a_log_that_somebody_removes_is_begun_anew_and_pushes_no_old_one_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::append(path.clone(), 10).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        for round in 0..12 {
            log.write_all(format!("line {round:02}\n").as_bytes()).unwrap();
        }
        fs::remove_file(&path).unwrap();
        for round in 12..14 {
            log.write_all(format!("line {round:02}\n").as_bytes()).unwrap();
        }
        assert_eq!((read("log"), read("log.1")), ("line 13\n".into(), "line 12\n".into()));
        assert_eq!(read("log.10"), "line 02\n", "one was made room for, not two");
    }

    #[test]
    fn a_log_that_cannot_be_begun_anew_is_written_on_and_tried_again_later() {
        let folder = tempfile::tempdir().unwrap();
        let (path, taken) = (folder.path().join("log"), folder.path().join("log.0"));
        let mut log = LogFile::append(path, 10).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        log.write_all(b"line 00\n").unwrap();
        log.write_all(b"line 01\n").unwrap();
        // No file takes the name of a folder.
        fs::create_dir(&taken).unwrap();
        log.write_all(b"line 02\n").unwrap();
        assert_eq!((read("log"), read("log.1")), ("line 01\nline 02\n".into(), "line 00\n".into()));
        fs::remove_dir(&taken).unwrap();
        log.write_all(b"line 03\n").unwrap();
        assert_eq!((read("log"), read("log.1")), ("line 03\n".into(), "line 01\nline 02\n".into()));
        assert_eq!(read("log.2"), "line 00\n");
    }

    #[test]
    fn a_log_that_leads_elsewhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", folder.path().join("log")).unwrap();
        let said = format!("{:#}", LogFile::open(folder.path(), "log").unwrap_err());
        assert!(said.contains("--log-dir") && said.contains("it is a link"), "{said}");
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let said = format!("{:#}", LogFile::open(Path::new("/dev/null/x"), "log").unwrap_err());
        assert!(said.contains("/dev/null/x/log") && said.contains("--log-dir"), "{said}");
    }
}
