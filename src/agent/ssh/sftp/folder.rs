//! An open folder, read a part at a time.

use super::{attributes, names::Accounts};
use crate::wire::sftp::Names;
use std::{
    fs::{self, ReadDir},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

/// Most names of one answer.
const NAMES: u32 = 128;
/// An answer that has grown to this gets no further name.
const BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// `.` and `..`, which the standard library leaves out.
    special: &'static [&'static str],
    entries: ReadDir,
    /// Met behind names that could still be told.
    failed: Option<io::Error>,
}

impl Folder {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let entries = fs::read_dir(&path)?;
        Ok(Self { path, special: &[".", ".."], entries, failed: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the next names; none at the end, or before an error that the next call tells.
    pub(super) fn list(&mut self, names: &mut Names<'_>, accounts: &Accounts, now: i64) -> io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut add = |name: &[u8], metadata: io::Result<fs::Metadata>| {
            // What was removed meanwhile, or may not be looked at, is listed without attributes.
            match metadata {
                Ok(metadata) => {
                    names.push(name, &attributes::line(name, &metadata, accounts, now), attributes::of(&metadata));
                }
                Err(_) => names.push(name, name, crate::wire::sftp::Attributes::default()),
            }
            names.len() >= BYTES
        };
        for _ in 0..NAMES {
            let full = match self.special {
                [first, rest @ ..] => {
                    self.special = rest;
                    add(first.as_bytes(), fs::symlink_metadata(self.path.join(first)))
                }
                [] => match self.entries.next() {
                    Some(Ok(entry)) => add(entry.file_name().as_bytes(), entry.metadata()),
                    Some(Err(error)) => {
                        self.failed = Some(error);
                        break;
                    }
                    None => break,
                },
            };
            if full {
                break;
            }
        }
        match self.failed.take_if(|_| names.is_empty()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
