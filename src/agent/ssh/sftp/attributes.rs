//! Attributes of files: read, changed, and shown as a line of a listing.

use super::names::Accounts;
use crate::wire::sftp::Attributes;
use jiff::{Timestamp, tz::TimeZone};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, fchmod, fchown, futimens, utimensat,
};
use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// A listing shows the time of day of what is younger than this, in seconds, and the year of what is older.
const RECENT: i64 = 365 * 86_400 / 2;
/// The bits of a mode that can be changed.
const CHANGEABLE: u32 = 0o7777;

/// A mode as far as it can be given to a file.
pub(super) fn mode(permissions: u32) -> Mode {
    Mode::from_bits_truncate(permissions & CHANGEABLE)
}

pub(super) fn of(metadata: &Metadata) -> Attributes {
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    Attributes {
        size: Some(metadata.size()),
        owner: Some((metadata.uid(), metadata.gid())),
        permissions: Some(metadata.mode()),
        times: Some((seconds(metadata.atime()), seconds(metadata.mtime()))),
    }
}

fn timestamps((access, change): (u32, u32)) -> Timestamps {
    let of = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    Timestamps { last_access: of(access), last_modification: of(change) }
}

/// Changes an open file. The owner comes last: giving a file away can take the right to the rest.
pub(super) fn change(file: &File, to: Attributes) -> io::Result<()> {
    if let Some(size) = to.size {
        file.set_len(size)?;
    }
    if let Some(permissions) = to.permissions {
        fchmod(file, mode(permissions))?;
    }
    if let Some(times) = to.times {
        futimens(file, &timestamps(times))?;
    }
    if let Some((user, group)) = to.owner {
        fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    Ok(())
}

/// Changes what a path names, or the link itself when it is not to be followed.
pub(super) fn change_path(path: &Path, to: Attributes, follow: bool) -> io::Result<()> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    if let Some(size) = to.size {
        // Never waits, whatever kind of file it is.
        let open = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = if follow { open } else { open | OFlags::NOFOLLOW };
        File::from(rustix::fs::open(path, open, Mode::empty())?).set_len(size)?;
    }
    if let Some(permissions) = to.permissions {
        chmodat(CWD, path, mode(permissions), flags)?;
    }
    if let Some(times) = to.times {
        utimensat(CWD, path, &timestamps(times), flags)?;
    }
    if let Some((user, group)) = to.owner {
        chownat(CWD, path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)), flags)?;
    }
    Ok(())
}

/// The line of `ls -l` for a file, its times in the machine's zone.
pub(super) fn line(name: &[u8], metadata: &Metadata, accounts: &Accounts, now: i64) -> Vec<u8> {
    let changed = metadata.mtime();
    let format = if (now - RECENT..=now).contains(&changed) { "%b %e %H:%M" } else { "%b %e  %Y" };
    let time = Timestamp::from_second(changed).unwrap_or_default().to_zoned(TimeZone::system());
    let mut line = format!(
        "{} {:>4} {:<8} {:<8} {:>8} {} ",
        kind_and_permissions(metadata.mode()),
        metadata.nlink(),
        accounts.user(metadata.uid()),
        accounts.group(metadata.gid()),
        metadata.size(),
        time.strftime(format),
    )
    .into_bytes();
    line.extend_from_slice(name);
    line
}

/// The ten characters of `ls -l`.
fn kind_and_permissions(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o100_000 => '-',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_shown_as_ls_shows_it() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "lrwxrwxrwx"),
            (0o104_755, "-rwsr-xr-x"),
            (0o102_644, "-rw-r-Sr--"),
            (0o041_777, "drwxrwxrwt"),
            (0o041_776, "drwxrwxrwT"),
            (0o140_600, "srw-------"),
        ] {
            assert_eq!(kind_and_permissions(mode), text);
        }
    }

    #[test]
    fn a_line_shows_the_time_of_a_young_file_and_the_year_of_an_old_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(12).unwrap();
        let day = 86_400;
        let noon = 10 * 365 * day + day / 2;
        change(file.as_file(), Attributes { times: Some((1, noon)), ..Attributes::default() }).unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let shown = |now: u32| String::from_utf8(line(b"name", &metadata, &Accounts::read(), now.into())).unwrap();
        let young = shown(noon + day);
        assert!(young.starts_with("-rw-------    1 ") && young.contains("      12 ") && young.ends_with(" name"), "{young}");
        let clock = young.split_whitespace().nth(7).unwrap();
        assert!(clock.contains(':'), "{young}");
        assert_eq!(shown(noon + 200 * day).split_whitespace().nth(7), Some("1979"));
        assert_eq!(shown(noon - 1).split_whitespace().nth(7), Some("1979"), "it lies in the future");
    }
}
