//! The zip file: a standard one with a central directory, since editors append files of their own.

use jiff::{Timestamp, tz::TimeZone};
use std::{
    collections::BTreeMap,
    io::{Seek, Write},
};
use zip::{CompressionMethod, DateTime, ZipWriter, write::SimpleFileOptions};

/// Writes each entry by its name.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(file: impl Write + Seek, entries: &BTreeMap<&'static str, Vec<u8>>) -> anyhow::Result<()> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .unix_permissions(0o600)
        .last_modified_time(now().unwrap_or_default());
    let mut zip = ZipWriter::new(file);
    for (name, bytes) in entries {
        zip.start_file(*name, options)?;
        zip.write_all(bytes)?;
    }
    zip.finish()?.flush()?;
    Ok(())
}

/// The local time, in the archive's steps of two seconds; `None` before 1980.
fn now() -> Option<DateTime> {
    let since = crate::driver::clock::wall().since_unix();
    let at = Timestamp::from_second(i64::try_from(since.as_secs()).ok()?).ok()?.to_zoned(TimeZone::system());
    let small = |n: i8| u8::try_from(n).ok();
    DateTime::from_date_and_time(
        u16::try_from(at.year()).ok()?,
        small(at.month())?,
        small(at.day())?,
        small(at.hour())?,
        small(at.minute())?,
        small(at.second())?,
    )
    .ok()
}
