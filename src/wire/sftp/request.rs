//! What a client asks.

use super::{Attributes, Broken, Reader, begin_packet, end_packet, put_string, put_u32, put_u64};

const INIT: u8 = 1;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const FSTAT: u8 = 8;
const SETSTAT: u8 = 9;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const REALPATH: u8 = 16;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const READLINK: u8 = 19;
const SYMLINK: u8 = 20;
const EXTENDED: u8 = 200;

const POSIX_RENAME: &[u8] = b"posix-rename@openssh.com";
const HARD_LINK: &[u8] = b"hardlink@openssh.com";
const FSYNC: &[u8] = b"fsync@openssh.com";
const LSETSTAT: &[u8] = b"lsetstat@openssh.com";
const STATVFS: &[u8] = b"statvfs@openssh.com";
const FSTATVFS: &[u8] = b"fstatvfs@openssh.com";
const LIMITS: &[u8] = b"limits@openssh.com";
const EXPAND_PATH: &[u8] = b"expand-path@openssh.com";

/// A request, borrowed from its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the fields are those of the draft")]
pub enum Request<'a> {
    /// The first one; its number is the client's version.
    Init,
    /// Opens a file; see [`super::flags`].
    Open {
        path: &'a [u8],
        flags: u32,
        attributes: Attributes,
    },
    /// Closes a file or a folder.
    Close {
        handle: &'a [u8],
    },
    Read {
        handle: &'a [u8],
        offset: u64,
        length: u32,
    },
    Write {
        handle: &'a [u8],
        offset: u64,
        data: &'a [u8],
    },
    /// Attributes of what a link points to.
    Stat {
        path: &'a [u8],
    },
    /// Attributes of the link itself.
    Lstat {
        path: &'a [u8],
    },
    Fstat {
        handle: &'a [u8],
    },
    /// Changes attributes; `follow` is false in OpenSSH's extension for links.
    SetStat {
        path: &'a [u8],
        attributes: Attributes,
        follow: bool,
    },
    FsetStat {
        handle: &'a [u8],
        attributes: Attributes,
    },
    OpenFolder {
        path: &'a [u8],
    },
    ReadFolder {
        handle: &'a [u8],
    },
    Remove {
        path: &'a [u8],
    },
    MakeFolder {
        path: &'a [u8],
        attributes: Attributes,
    },
    RemoveFolder {
        path: &'a [u8],
    },
    /// The path without links, `.` and `..`.
    RealPath {
        path: &'a [u8],
    },
    /// Renames; only OpenSSH's extension replaces what has the new name.
    Rename {
        from: &'a [u8],
        to: &'a [u8],
        replace: bool,
    },
    ReadLink {
        path: &'a [u8],
    },
    /// Makes a symbolic link. The draft has the two the other way round; every client does as OpenSSH.
    Symlink {
        target: &'a [u8],
        link: &'a [u8],
    },
    HardLink {
        from: &'a [u8],
        to: &'a [u8],
    },
    /// Waits until a file is on the disk.
    Sync {
        handle: &'a [u8],
    },
    /// Size and room of the file system that holds `path`.
    FileSystem {
        path: &'a [u8],
    },
    FileSystemOf {
        handle: &'a [u8],
    },
    /// What the server can take at once.
    Limits,
    /// As [`Request::RealPath`], with `~` and `~user` expanded.
    ExpandPath {
        path: &'a [u8],
    },
    /// An extension that is not known here, or a type.
    Unknown,
}

impl<'a> Request<'a> {
    /// The number of a packet and what it asks, `None` where its body does not hold what its type says.
    ///
    /// # Errors
    /// When there is not even a number.
    pub fn parse(packet: &'a [u8]) -> Result<(u32, Option<Self>), Broken> {
        let mut reader = Reader { rest: packet };
        let kind = reader.u8().unwrap_or_default();
        let number = reader.u32().ok_or(Broken::NoNumber(kind))?;
        Ok((number, Self::body(kind, &mut reader)))
    }

    fn body(kind: u8, r: &mut Reader<'a>) -> Option<Self> {
        Some(match kind {
            INIT => Self::Init,
            OPEN => Self::Open { path: r.string()?, flags: r.u32()?, attributes: Attributes::read(r)? },
            CLOSE => Self::Close { handle: r.string()? },
            READ => Self::Read { handle: r.string()?, offset: r.u64()?, length: r.u32()? },
            WRITE => Self::Write { handle: r.string()?, offset: r.u64()?, data: r.string()? },
            LSTAT => Self::Lstat { path: r.string()? },
            FSTAT => Self::Fstat { handle: r.string()? },
            SETSTAT => Self::SetStat { path: r.string()?, attributes: Attributes::read(r)?, follow: true },
            FSETSTAT => Self::FsetStat { handle: r.string()?, attributes: Attributes::read(r)? },
            OPENDIR => Self::OpenFolder { path: r.string()? },
            READDIR => Self::ReadFolder { handle: r.string()? },
            REMOVE => Self::Remove { path: r.string()? },
            MKDIR => Self::MakeFolder { path: r.string()?, attributes: Attributes::read(r)? },
            RMDIR => Self::RemoveFolder { path: r.string()? },
            REALPATH => Self::RealPath { path: r.string()? },
            STAT => Self::Stat { path: r.string()? },
            RENAME => Self::Rename { from: r.string()?, to: r.string()?, replace: false },
            READLINK => Self::ReadLink { path: r.string()? },
            SYMLINK => Self::Symlink { target: r.string()?, link: r.string()? },
            EXTENDED => match r.string()? {
                POSIX_RENAME => Self::Rename { from: r.string()?, to: r.string()?, replace: true },
                HARD_LINK => Self::HardLink { from: r.string()?, to: r.string()? },
                FSYNC => Self::Sync { handle: r.string()? },
                LSETSTAT => Self::SetStat { path: r.string()?, attributes: Attributes::read(r)?, follow: false },
                STATVFS => Self::FileSystem { path: r.string()? },
                FSTATVFS => Self::FileSystemOf { handle: r.string()? },
                LIMITS => Self::Limits,
                EXPAND_PATH => Self::ExpandPath { path: r.string()? },
                _ => Self::Unknown,
            },
            _ => Self::Unknown,
        })
    }

    /// Appends the packet. [`Request::Unknown`] becomes an extension of no name.
    pub fn write(&self, number: u32, out: &mut Vec<u8>) {
        let (kind, extension, strings): (u8, &[u8], [Option<&[u8]>; 2]) = match *self {
            Self::Init => (INIT, b"", [None, None]),
            Self::Open { path, .. } => (OPEN, b"", [Some(path), None]),
            Self::Close { handle } => (CLOSE, b"", [Some(handle), None]),
            Self::Read { handle, .. } => (READ, b"", [Some(handle), None]),
            Self::Write { handle, .. } => (WRITE, b"", [Some(handle), None]),
            Self::Stat { path } => (STAT, b"", [Some(path), None]),
            Self::Lstat { path } => (LSTAT, b"", [Some(path), None]),
            Self::Fstat { handle } => (FSTAT, b"", [Some(handle), None]),
            Self::SetStat { path, follow: true, .. } => (SETSTAT, b"", [Some(path), None]),
            Self::SetStat { path, follow: false, .. } => (EXTENDED, LSETSTAT, [Some(path), None]),
            Self::FsetStat { handle, .. } => (FSETSTAT, b"", [Some(handle), None]),
            Self::OpenFolder { path } => (OPENDIR, b"", [Some(path), None]),
            Self::ReadFolder { handle } => (READDIR, b"", [Some(handle), None]),
            Self::Remove { path } => (REMOVE, b"", [Some(path), None]),
            Self::MakeFolder { path, .. } => (MKDIR, b"", [Some(path), None]),
            Self::RemoveFolder { path } => (RMDIR, b"", [Some(path), None]),
            Self::RealPath { path } => (REALPATH, b"", [Some(path), None]),
            Self::Rename { from, to, replace: false } => (RENAME, b"", [Some(from), Some(to)]),
            Self::Rename { from, to, replace: true } => (EXTENDED, POSIX_RENAME, [Some(from), Some(to)]),
            Self::ReadLink { path } => (READLINK, b"", [Some(path), None]),
            Self::Symlink { target, link } => (SYMLINK, b"", [Some(target), Some(link)]),
            Self::HardLink { from, to } => (EXTENDED, HARD_LINK, [Some(from), Some(to)]),
            Self::Sync { handle } => (EXTENDED, FSYNC, [Some(handle), None]),
            Self::FileSystem { path } => (EXTENDED, STATVFS, [Some(path), None]),
            Self::FileSystemOf { handle } => (EXTENDED, FSTATVFS, [Some(handle), None]),
            Self::Limits => (EXTENDED, LIMITS, [None, None]),
            Self::ExpandPath { path } => (EXTENDED, EXPAND_PATH, [Some(path), None]),
            Self::Unknown => (EXTENDED, b"", [None, None]),
        };
        let start = begin_packet(out, kind);
        put_u32(out, number);
        if kind == EXTENDED {
            put_string(out, extension);
        }
        strings.into_iter().flatten().for_each(|s| put_string(out, s));
        match *self {
            Self::Open { flags, attributes, .. } => {
                put_u32(out, flags);
                attributes.write(out);
            }
            Self::Read { offset, length, .. } => {
                put_u64(out, offset);
                put_u32(out, length);
            }
            Self::Write { offset, data, .. } => {
                put_u64(out, offset);
                put_string(out, data);
            }
            Self::SetStat { attributes, .. } | Self::FsetStat { attributes, .. } | Self::MakeFolder { attributes, .. } => {
                attributes.write(out);
            }
            _ => {}
        }
        end_packet(out, start);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HEADER, first_packet};
    use super::*;
    use proptest::prelude::*;

    fn all<'a>(a: &'a [u8], b: &'a [u8], wide: u64, narrow: u32, attributes: Attributes) -> Vec<Request<'a>> {
        vec![
            Request::Init,
            Request::Open { path: a, flags: narrow, attributes },
            Request::Close { handle: a },
            Request::Read { handle: a, offset: wide, length: narrow },
            Request::Write { handle: a, offset: wide, data: b },
            Request::Stat { path: a },
            Request::Lstat { path: a },
            Request::Fstat { handle: a },
            Request::SetStat { path: a, attributes, follow: true },
            Request::SetStat { path: a, attributes, follow: false },
            Request::FsetStat { handle: a, attributes },
            Request::OpenFolder { path: a },
            Request::ReadFolder { handle: a },
            Request::Remove { path: a },
            Request::MakeFolder { path: a, attributes },
            Request::RemoveFolder { path: a },
            Request::RealPath { path: a },
            Request::Rename { from: a, to: b, replace: false },
            Request::Rename { from: a, to: b, replace: true },
            Request::ReadLink { path: a },
            Request::Symlink { target: a, link: b },
            Request::HardLink { from: a, to: b },
            Request::Sync { handle: a },
            Request::FileSystem { path: a },
            Request::FileSystemOf { handle: a },
            Request::Limits,
            Request::ExpandPath { path: a },
            Request::Unknown,
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_and_a_shorter_body_is_not(
            a in proptest::collection::vec(any::<u8>(), 0..40),
            b in proptest::collection::vec(any::<u8>(), 1..40),
            wide: u64,
            narrow: u32,
            size: Option<u64>,
            owner: Option<(u32, u32)>,
            permissions: Option<u32>,
            times: Option<(u32, u32)>,
        ) {
            let attributes = Attributes { size, owner, permissions, times };
            for request in all(&a, &b, wide, narrow, attributes) {
                let mut out = Vec::new();
                request.write(narrow, &mut out);
                let packet = first_packet(&out).unwrap().unwrap();
                prop_assert_eq!(packet.len() + HEADER, out.len());
                prop_assert_eq!(Request::parse(packet), Ok((narrow, Some(request))));
                let short = Request::parse(&packet[..packet.len() - 1]);
                prop_assert!(!matches!(short, Ok((_, Some(r))) if r == request && request != Request::Init), "{:?}", request);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..22) {
            let _ = Request::parse(&bytes);
            for kind in [kind, EXTENDED] {
                let packet = [&[kind], bytes.as_slice()].concat();
                prop_assert_eq!(Request::parse(&packet).is_err(), bytes.len() < 4);
            }
        }
    }

    #[test]
    fn an_unknown_type_or_extension_still_has_its_number() {
        assert_eq!(Request::parse(&[99, 0, 0, 1, 2]), Ok((258, Some(Request::Unknown))));
        assert_eq!(Request::parse(&[EXTENDED, 0, 0, 0, 5, 0, 0, 0, 1, b'x']), Ok((5, Some(Request::Unknown))));
        assert_eq!(Request::parse(&[STAT, 0, 0, 0, 6, 0, 0, 1, 0]), Ok((6, None)), "a path that is not there");
        assert_eq!(Request::parse(&[STAT, 0, 0]), Err(Broken::NoNumber(STAT)));
    }
}
