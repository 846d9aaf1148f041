//! What a server answers.

use super::{Attributes, MAX_DATA, MAX_PACKET, Reader, Status, VERSION, begin_packet, end_packet, put_string, put_u32, put_u64};

const VERSION_REPLY: u8 = 2;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRIBUTES: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

/// Each extension with its version, as the first answer names them.
const EXTENSIONS: [(&str, &str); 8] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

/// Size and room of a file system, as `statvfs(3)` tells them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Block size, fragment size; blocks, free ones, those free for ordinary users; the same three for files; id, flags
    /// (1 read-only, 2 no set-user-id), longest name.
    pub fields: [u64; 11],
}

/// An answer, all but [`Names`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The version and the extensions; it has no number.
    Version,
    /// How it went, and a text for people.
    Status(Status, &'a str),
    /// The name of something open.
    Handle(u32),
    /// What was read: at most [`MAX_DATA`] bytes.
    Data(&'a [u8]),
    /// Attributes.
    Attributes(Attributes),
    /// Size and room of a file system.
    FileSystem(FileSystem),
    /// Most handles at the same time, beside the fixed limits of this codec.
    Limits(u32),
}

impl Reply<'_> {
    /// Appends the packet.
    pub fn write(&self, number: u32, out: &mut Vec<u8>) {
        let kind = match self {
            Self::Version => VERSION_REPLY,
            Self::Status(..) => STATUS,
            Self::Handle(_) => HANDLE,
            Self::Data(_) => DATA,
            Self::Attributes(_) => ATTRIBUTES,
            Self::FileSystem(_) | Self::Limits(_) => EXTENDED_REPLY,
        };
        let start = begin_packet(out, kind);
        put_u32(out, if kind == VERSION_REPLY { VERSION } else { number });
        match *self {
            Self::Version => {
                for (name, version) in EXTENSIONS {
                    put_string(out, name.as_bytes());
                    put_string(out, version.as_bytes());
                }
            }
            Self::Status(status, text) => {
                put_u32(out, status as u32);
                put_string(out, text.as_bytes());
                put_string(out, b"en");
            }
            Self::Handle(handle) => put_string(out, &handle.to_be_bytes()),
            Self::Data(data) => put_string(out, data),
            Self::Attributes(attributes) => attributes.write(out),
            Self::FileSystem(system) => system.fields.iter().for_each(|f| put_u64(out, *f)),
            Self::Limits(handles) => {
                for limit in [MAX_PACKET as u64, MAX_DATA.into(), MAX_DATA.into(), handles.into()] {
                    put_u64(out, limit);
                }
            }
        }
        end_packet(out, start);
    }
}

/// A list of names: the answer to reading a folder, a link or a real path.
#[derive(Debug)]
pub struct Names<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    count: u32,
}

/// Type and number, behind the packet's length.
const NAMES_HEAD: usize = 4 + 1 + 4;

impl<'a> Names<'a> {
    /// Begins the packet.
    pub fn new(number: u32, out: &'a mut Vec<u8>) -> Self {
        let start = begin_packet(out, NAME);
        put_u32(out, number);
        put_u32(out, 0);
        Self { out, start, count: 0 }
    }

    /// Adds a name with its line as `ls -l` shows it.
    pub fn push(&mut self, name: &[u8], line: &[u8], attributes: Attributes) {
        put_string(self.out, name);
        put_string(self.out, line);
        attributes.write(self.out);
        self.count += 1;
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Whether no name was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Ends the packet.
    pub fn finish(self) {
        if let Some(place) = self.out.get_mut(self.start + NAMES_HEAD..).and_then(|p| p.first_chunk_mut()) {
            *place = self.count.to_be_bytes();
        }
        end_packet(self.out, self.start);
    }

    /// Takes the packet back: nothing was appended.
    pub fn discard(self) {
        self.out.truncate(self.start);
    }
}

/// An answer as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The server's version and its extensions.
    Version(u32, Vec<(&'a [u8], &'a [u8])>),
    /// The code of a status and its text.
    Status(u32, &'a [u8]),
    /// The name of something open.
    Handle(&'a [u8]),
    /// What was read.
    Data(&'a [u8]),
    /// Each name with its line and its attributes.
    Names(Vec<(&'a [u8], &'a [u8], Attributes)>),
    /// Attributes.
    Attributes(Attributes),
    /// The answer to an extension.
    Extended(&'a [u8]),
}

impl<'a> Answer<'a> {
    /// The number of a packet and its answer; `None` when it is none.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Option<(u32, Self)> {
        let mut r = Reader { rest: packet };
        let (kind, number) = (r.u8()?, r.u32()?);
        let answer = match kind {
            VERSION_REPLY => {
                let mut extensions = Vec::new();
                while !r.rest.is_empty() {
                    extensions.push((r.string()?, r.string()?));
                }
                Self::Version(number, extensions)
            }
            STATUS => Self::Status(r.u32()?, r.string().unwrap_or_default()),
            HANDLE => Self::Handle(r.string()?),
            DATA => Self::Data(r.string()?),
            NAME => {
                let mut names = Vec::new();
                for _ in 0..r.u32()? {
                    names.push((r.string()?, r.string()?, Attributes::read(&mut r)?));
                }
                Self::Names(names)
            }
            ATTRIBUTES => Self::Attributes(Attributes::read(&mut r)?),
            EXTENDED_REPLY => Self::Extended(r.rest),
            _ => return None,
        };
        Some((number, answer))
    }
}

#[cfg(test)]
mod tests {
    use super::super::first_packet;
    use super::*;

    fn written(reply: Reply<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        reply.write(9, &mut out);
        first_packet(&out).unwrap().unwrap().to_vec()
    }

    #[test]
    fn every_answer_is_read_as_it_was_written() {
        let attributes =
            Attributes { size: Some(1 << 40), owner: Some((1, 2)), permissions: Some(0o10_0644), times: Some((3, 4)) };
        let (packet, number) = (written(Reply::Attributes(attributes)), 9);
        assert_eq!(Answer::parse(&packet), Some((number, Answer::Attributes(attributes))));
        let packet = written(Reply::Status(Status::NoSuchFile, "gone"));
        assert_eq!(Answer::parse(&packet), Some((number, Answer::Status(2, b"gone"))));
        let packet = written(Reply::Handle(258));
        assert_eq!(Answer::parse(&packet), Some((number, Answer::Handle(&[0, 0, 1, 2]))));
        let packet = written(Reply::Data(b"bytes"));
        assert_eq!(Answer::parse(&packet), Some((number, Answer::Data(b"bytes"))));
        let packet = written(Reply::Version);
        let Some((3, Answer::Version(3, extensions))) = Answer::parse(&packet) else { panic!("{packet:?}") };
        assert_eq!(extensions.len(), EXTENSIONS.len());
        assert_eq!(extensions[0], (&b"posix-rename@openssh.com"[..], &b"1"[..]));
        let packet = written(Reply::Limits(7));
        let Some((_, Answer::Extended(body))) = Answer::parse(&packet) else { panic!("{packet:?}") };
        assert_eq!(body, [262_144u64, 261_120, 261_120, 7].map(u64::to_be_bytes).concat());
        let system = FileSystem { fields: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] };
        let packet = written(Reply::FileSystem(system));
        let Some((_, Answer::Extended(body))) = Answer::parse(&packet) else { panic!("{packet:?}") };
        assert_eq!(body, system.fields.map(u64::to_be_bytes).concat());
    }

    #[test]
    fn names_are_counted_and_vanish_when_taken_back() {
        let mut out = Vec::new();
        Names::new(3, &mut out).discard();
        assert!(out.is_empty());
        let mut names = Names::new(4, &mut out);
        assert!(names.is_empty());
        names.push(b"a\xff", b"line", Attributes::default());
        names.push(b"b", b"", Attributes::default());
        names.finish();
        let packet = first_packet(&out).unwrap().unwrap();
        let expected = vec![(&b"a\xff"[..], &b"line"[..], Attributes::default()), (&b"b"[..], &b""[..], Attributes::default())];
        assert_eq!(Answer::parse(packet), Some((4, Answer::Names(expected))));
    }
}
