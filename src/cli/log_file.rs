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
/// How many old ones are kept.
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

    fn put_aside(&mut self) -> io::Result<()> {
        for number in (1..KEPT).rev() {
            // The older ones may not be there yet.
            let _ = fs::rename(self.old(number), self.old(number + 1));
        }
        fs::rename(&self.path, self.old(1))?;
        *self = Self::append(self.path.clone(), self.size)?;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.size {
            self.put_aside()?;
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
