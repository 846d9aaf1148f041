//! The log file of one connection (`--log-dir`): editors find it by the process that started us.

use crate::driver::clock;
use anyhow::Context as _;
use std::{
    fs::{File, OpenOptions},
    os::unix::{fs::OpenOptionsExt as _, process::parent_id},
    path::Path,
};

/// Makes `coder-ssh-DATE-TIME-LETTERS[-PPID].log` in a folder that exists. The parent stands in it where that is OpenSSH.
///
/// # Errors
/// When the file cannot be made.
pub(super) fn create(dir: &Path, stdio: bool) -> anyhow::Result<File> {
    let letters: String = clock::random()?.bytes::<5>().map(|b| char::from(b'a' + b % 26)).iter().collect();
    let seconds = i64::try_from(clock::wall().since_unix().as_secs()).unwrap_or(0);
    let at = jiff::Timestamp::from_second(seconds).unwrap_or_default().to_zoned(jiff::tz::TimeZone::UTC);
    let parent = if stdio { format!("-{}", parent_id()) } else { String::new() };
    let path = dir.join(format!("coder-ssh-{}-{letters}{parent}.log", at.strftime("%Y%m%d-%H%M%S")));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.with_context(|| format!("cannot log to {}", path.display()))
}
