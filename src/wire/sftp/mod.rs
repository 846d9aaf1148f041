//! SFTP version 3 (draft-ietf-secsh-filexfer-02) and those of OpenSSH's extensions that the agent serves.
//!
//! A packet is its length (u32), its type (u8) and its body; nearly every body begins with the request's number, which
//! the answer repeats. Names are bytes, not text: a file whose name is not UTF-8 keeps its name.

mod reply;
mod request;

pub use reply::{Answer, FileSystem, Names, Reply};
pub use request::Request;

/// The version spoken here.
pub const VERSION: u32 = 3;
/// Longest packet, without its length: what OpenSSH's programs accept.
pub const MAX_PACKET: usize = 256 << 10;
/// Most bytes of one read or write, so that their packet stays below [`MAX_PACKET`].
pub const MAX_DATA: u32 = (256 << 10) - 1024;

/// Flags of an open request.
pub mod flags {
    /// Reading is asked for.
    pub const READ: u32 = 0x01;
    /// Writing is asked for.
    pub const WRITE: u32 = 0x02;
    /// Every write goes to the end.
    pub const APPEND: u32 = 0x04;
    /// The file is made if it is not there.
    pub const CREATE: u32 = 0x08;
    /// The file loses its content.
    pub const TRUNCATE: u32 = 0x10;
    /// With [`CREATE`]: the file must not be there.
    pub const EXCLUSIVE: u32 = 0x20;
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Nothing more to read.
    EndOfFile = 1,
    /// No such file.
    NoSuchFile = 2,
    /// Not allowed.
    PermissionDenied = 3,
    /// Anything else.
    Failure = 4,
    /// The request makes no sense.
    BadMessage = 5,
    /// Not served here.
    Unsupported = 8,
}

/// Attributes of a file; what is absent is not told or not to be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Length in bytes.
    pub size: Option<u64>,
    /// User and group.
    pub owner: Option<(u32, u32)>,
    /// Kind of file and permissions, as in `st_mode`.
    pub permissions: Option<u32>,
    /// Last access and last change of content, in seconds since 1970.
    pub times: Option<(u32, u32)>,
}

const HAS_SIZE: u32 = 0x01;
const HAS_OWNER: u32 = 0x02;
const HAS_PERMISSIONS: u32 = 0x04;
const HAS_TIMES: u32 = 0x08;
const HAS_EXTENDED: u32 = 0x8000_0000;

impl Attributes {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let has = reader.u32()?;
        let mut this = Self::default();
        if has & HAS_SIZE != 0 {
            this.size = Some(reader.u64()?);
        }
        if has & HAS_OWNER != 0 {
            this.owner = Some((reader.u32()?, reader.u32()?));
        }
        if has & HAS_PERMISSIONS != 0 {
            this.permissions = Some(reader.u32()?);
        }
        if has & HAS_TIMES != 0 {
            this.times = Some((reader.u32()?, reader.u32()?));
        }
        if has & HAS_EXTENDED != 0 {
            // Each pair takes bytes of the packet, which ends a lie about their number.
            for _ in 0..reader.u32()? {
                reader.string()?;
                reader.string()?;
            }
        }
        Some(this)
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut has = 0;
        for (there, flag) in [
            (self.size.is_some(), HAS_SIZE),
            (self.owner.is_some(), HAS_OWNER),
            (self.permissions.is_some(), HAS_PERMISSIONS),
            (self.times.is_some(), HAS_TIMES),
        ] {
            has |= if there { flag } else { 0 };
        }
        put_u32(out, has);
        if let Some(size) = self.size {
            put_u64(out, size);
        }
        if let Some((user, group)) = self.owner {
            put_u32(out, user);
            put_u32(out, group);
        }
        if let Some(permissions) = self.permissions {
            put_u32(out, permissions);
        }
        if let Some((access, change)) = self.times {
            put_u32(out, access);
            put_u32(out, change);
        }
    }
}

/// A stream that is not SFTP: nothing behind it can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The length of a packet is 0 or beyond [`MAX_PACKET`].
    #[error("not SFTP: a packet of {0} bytes, where 1 to {MAX_PACKET} are possible")]
    Length(u32),
    /// A packet without a number, so that it cannot be answered.
    #[error("not SFTP: a packet of type {0} without a number")]
    NoNumber(u8),
}

/// The first packet in `buffer` without its length, `None` while it is not all there.
///
/// # Errors
/// When the length is impossible.
pub fn first_packet(buffer: &[u8]) -> Result<Option<&[u8]>, Broken> {
    let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length);
    match usize::try_from(length) {
        Ok(bytes @ 1..=MAX_PACKET) => Ok(rest.get(..bytes)),
        _ => Err(Broken::Length(length)),
    }
}

/// Length of the packet's length.
pub const HEADER: usize = 4;

/// Reads the parts of a body; `None` where it ends early.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u64::from_be_bytes(*bytes))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(bytes)
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a string; no packet holds one that is longer than u32.
fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(bytes);
}

/// Begins a packet of type `kind`; [`end_packet`] fills in its length.
fn begin_packet(out: &mut Vec<u8>, kind: u8) -> usize {
    let start = out.len();
    put_u32(out, 0);
    out.push(kind);
    start
}

fn end_packet(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start - HEADER).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start..).and_then(|p| p.first_chunk_mut()) {
        *place = length.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_found_once_it_is_all_there() {
        let mut out = Vec::new();
        Request::Remove { path: b"/x" }.write(7, &mut out);
        for end in 0..out.len() {
            assert_eq!(first_packet(&out[..end]), Ok(None), "{end} bytes");
        }
        out.extend_from_slice(b"more");
        let packet = first_packet(&out).unwrap().unwrap();
        assert_eq!(packet.len() + HEADER + 4, out.len());
        assert_eq!(Request::parse(packet), Ok((7, Some(Request::Remove { path: b"/x" }))));
    }

    #[test]
    fn an_impossible_length_is_refused_before_its_bytes_come() {
        assert_eq!(first_packet(&[0, 0, 0, 0]), Err(Broken::Length(0)));
        assert_eq!(first_packet(&[0, 4, 0, 1]), Err(Broken::Length(262_145)));
        assert_eq!(first_packet(&[0, 4, 0, 0]), Ok(None));
        assert_eq!(first_packet(b"GET "), Err(Broken::Length(u32::from_be_bytes(*b"GET "))));
    }

    #[test]
    fn extended_attributes_are_skipped_and_their_number_is_not_believed() {
        let mut body = Vec::new();
        put_u32(&mut body, HAS_EXTENDED | HAS_PERMISSIONS);
        put_u32(&mut body, 0o644);
        put_u32(&mut body, 1);
        put_string(&mut body, b"name@example.com");
        put_string(&mut body, b"value");
        let expected = Attributes { permissions: Some(0o644), ..Attributes::default() };
        assert_eq!(Attributes::read(&mut Reader { rest: &body }), Some(expected));
        body[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(Attributes::read(&mut Reader { rest: &body }), None);
    }
}
