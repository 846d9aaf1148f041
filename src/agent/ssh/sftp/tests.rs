//! What each request does to the file system.

use super::{files::Files, paths::Paths};
use crate::{
    agent::{Profile, account::Account},
    wire::sftp::{Answer, Attributes, MAX_DATA, Request, first_packet, flags},
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::PathBuf,
};
use tempfile::TempDir;

const OK: u32 = 0;
const END: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const FAILURE: u32 = 4;
const BAD_MESSAGE: u32 = 5;
const UNSUPPORTED: u32 = 8;

/// A session in a folder of its own; relative paths begin there.
struct Session {
    files: Files,
    folder: TempDir,
    out: Vec<u8>,
}

impl Session {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let profile = Profile { directory: folder.path().to_owned(), ..Profile::default() };
        let paths = Paths::new(&profile, &Account::current());
        Self { files: Files::new(paths), folder, out: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ask(&mut self, request: Request<'_>) -> Answer<'_> {
        let mut packet = Vec::new();
        request.write(5, &mut packet);
        self.out.clear();
        self.files.answer(first_packet(&packet).unwrap().unwrap(), &mut self.out).unwrap();
        let packet = first_packet(&self.out).unwrap().unwrap();
        assert_eq!(packet.len() + 4, self.out.len(), "one answer");
        let (number, answer) = Answer::parse(packet).unwrap();
        assert_eq!(number, if request == Request::Init { 3 } else { 5 });
        answer
    }

    fn status(&mut self, request: Request<'_>) -> u32 {
        match self.ask(request) {
            Answer::Status(code, _) => code,
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self, path: &str, flags: u32) -> Result<Vec<u8>, u32> {
        match self.ask(Request::Open { path: path.as_bytes(), flags, attributes: Attributes::default() }) {
            Answer::Handle(handle) => Ok(handle.to_vec()),
            Answer::Status(code, _) => Err(code),
            other => panic!("{other:?}"),
        }
    }

    fn attributes(&mut self, request: Request<'_>) -> Attributes {
        match self.ask(request) {
            Answer::Attributes(attributes) => attributes,
            other => panic!("{other:?}"),
        }
    }

    fn name(&mut self, request: Request<'_>) -> Vec<u8> {
        match self.ask(request) {
            Answer::Names(names) => names[0].0.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn read(&mut self, handle: &[u8], offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        match self.ask(Request::Read { handle, offset, length }) {
            Answer::Data(data) => Ok(data.to_vec()),
            Answer::Status(code, _) => Err(code),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn bytes_are_written_and_read_where_they_belong_beyond_4_gb_too() {
    let mut s = Session::new();
    let handle = s.open("big", flags::READ | flags::WRITE | flags::CREATE).unwrap();
    let far = 5 << 30;
    assert_eq!(s.status(Request::Write { handle: &handle, offset: far, data: b"far" }), OK);
    assert_eq!(s.status(Request::Write { handle: &handle, offset: 0, data: b"near" }), OK);
    assert_eq!(s.read(&handle, far, 100), Ok(b"far".to_vec()));
    assert_eq!(s.read(&handle, 1, 3), Ok(b"ear".to_vec()));
    assert_eq!(s.read(&handle, far + 3, 1), Err(END));
    assert_eq!(s.read(&handle, 0, u32::MAX).unwrap().len(), MAX_DATA as usize, "more is asked than one answer holds");
    assert_eq!(s.attributes(Request::Fstat { handle: &handle }).size, Some(far + 3));
    assert_eq!(s.status(Request::Sync { handle: &handle }), OK);
    let size = |size| Attributes { size: Some(size), ..Attributes::default() };
    assert_eq!(s.status(Request::FsetStat { handle: &handle, attributes: size(2) }), OK);
    assert_eq!(fs::read(s.path("big")).unwrap(), b"ne");
    assert_eq!(s.status(Request::SetStat { path: b"big", attributes: size(1), follow: true }), OK);
    assert_eq!(fs::read(s.path("big")).unwrap(), b"n");
    assert_eq!(s.status(Request::Close { handle: &handle }), OK);
    assert_eq!(s.status(Request::Close { handle: &handle }), FAILURE, "it is closed already");
}

#[test]
fn the_flags_of_an_open_request_mean_what_they_say() {
    let mut s = Session::new();
    assert_eq!(s.open("f", flags::READ), Err(NO_SUCH_FILE));
    assert_eq!(s.open("f", flags::WRITE), Err(NO_SUCH_FILE));
    let new = flags::WRITE | flags::CREATE | flags::EXCLUSIVE;
    let handle = s.open("f", new).unwrap();
    assert_eq!(s.open("f", new), Err(FAILURE), "it is there already");
    assert_eq!(s.status(Request::Write { handle: &handle, offset: 0, data: b"0123" }), OK);
    assert_ne!(s.read(&handle, 0, 1), Ok(b"0".to_vec()), "not opened for reading");

    let end = s.open("f", flags::WRITE | flags::APPEND).unwrap();
    assert_eq!(s.status(Request::Write { handle: &end, offset: 0, data: b"45" }), OK);
    assert_eq!(fs::read(s.path("f")).unwrap(), b"012345");
    s.open("f", flags::WRITE | flags::CREATE | flags::TRUNCATE).unwrap();
    assert_eq!(fs::read(s.path("f")).unwrap(), b"");
    let read = s.open("f", flags::READ).unwrap();
    assert_eq!(s.read(&read, 0, 1), Err(END));
    assert_ne!(s.status(Request::Write { handle: &read, offset: 0, data: b"x" }), OK, "not opened for writing");

    let private = Attributes { permissions: Some(0o600), ..Attributes::default() };
    s.ask(Request::Open { path: b"p", flags: new, attributes: private });
    assert_eq!(fs::metadata(s.path("p")).unwrap().mode(), 0o100_600);
}

#[test]
fn a_pipe_without_its_other_end_holds_nobody_up() {
    let mut s = Session::new();
    mknodat(CWD, s.path("pipe"), FileType::Fifo, Mode::from_bits_truncate(0o600), 0).unwrap();
    assert_eq!(s.open("pipe", flags::WRITE), Err(FAILURE));
    let handle = s.open("pipe", flags::READ).unwrap();
    assert_eq!(s.read(&handle, 0, 1), Err(FAILURE));
    let truncate = Attributes { size: Some(0), ..Attributes::default() };
    assert_ne!(s.status(Request::SetStat { path: b"pipe", attributes: truncate, follow: true }), OK);
}

#[test]
fn attributes_are_changed_and_told_by_path_and_by_handle() {
    let mut s = Session::new();
    fs::write(s.path("f"), "x").unwrap();
    std::os::unix::fs::symlink("f", s.path("link")).unwrap();
    let meta = fs::metadata(s.path("f")).unwrap();
    let to = Attributes {
        permissions: Some(0o4711),
        times: Some((1_000_000_000, 3_000_000_000)),
        owner: Some((meta.uid(), meta.gid())),
        ..Attributes::default()
    };
    assert_eq!(s.status(Request::SetStat { path: b"link", attributes: to, follow: true }), OK);
    let told = s.attributes(Request::Stat { path: b"link" });
    assert_eq!((told.size, told.times, told.owner), (Some(1), to.times, to.owner), "beyond 2038 too");
    // Giving a file away, even to its owner, takes the bit that lends his rights.
    assert_eq!(told.permissions.map(|p| p & !0o4000), Some(0o100_711));
    assert_eq!(told, s.attributes(Request::Lstat { path: b"f" }));
    assert_eq!(s.attributes(Request::Lstat { path: b"link" }).permissions, Some(0o120_777));

    let handle = s.open("f", flags::READ).unwrap();
    let to = Attributes { permissions: Some(0o640), times: Some((5, 6)), ..Attributes::default() };
    assert_eq!(s.status(Request::FsetStat { handle: &handle, attributes: to }), OK);
    let told = s.attributes(Request::Fstat { handle: &handle });
    assert_eq!((told.permissions, told.times), (Some(0o100_640), Some((5, 6))));

    let to = Attributes { times: Some((7, 8)), ..Attributes::default() };
    assert_eq!(s.status(Request::SetStat { path: b"link", attributes: to, follow: false }), OK);
    assert_eq!(s.attributes(Request::Lstat { path: b"link" }).times, Some((7, 8)));
    assert_eq!(s.attributes(Request::Stat { path: b"link" }).times, Some((5, 6)), "what it points to kept its own");
}

#[test]
fn folders_are_made_listed_and_removed() {
    let mut s = Session::new();
    let private = Attributes { permissions: Some(0o700), ..Attributes::default() };
    assert_eq!(s.status(Request::MakeFolder { path: b"d", attributes: private }), OK);
    assert_eq!(fs::metadata(s.path("d")).unwrap().mode(), 0o040_700);
    assert_eq!(s.status(Request::MakeFolder { path: b"d", attributes: private }), FAILURE);
    let mut expected: BTreeSet<Vec<u8>> = [b".".to_vec(), b"..".to_vec()].into();
    for i in 0..1000 {
        let name = [format!("{i}-").as_bytes(), b"\xff"].concat();
        fs::write(s.path("d").join(OsStr::from_bytes(&name)), "12").unwrap();
        expected.insert(name);
    }
    let Answer::Handle(handle) = s.ask(Request::OpenFolder { path: b"d" }) else { panic!() };
    let handle = handle.to_vec();
    let mut listed = BTreeSet::new();
    loop {
        match s.ask(Request::ReadFolder { handle: &handle }) {
            Answer::Names(names) => {
                for (name, line, attributes) in names {
                    assert!(line.ends_with(name) && line.len() > name.len() + 50, "{}", line.escape_ascii());
                    let (kind, size) = if name.starts_with(b".") { (0o4, attributes.size) } else { (0o10, Some(2)) };
                    assert_eq!((attributes.permissions.map(|p| p >> 12), attributes.size), (Some(kind), size));
                    assert!(listed.insert(name.to_vec()), "twice");
                }
            }
            Answer::Status(code, _) => break assert_eq!(code, END),
            other => panic!("{other:?}"),
        }
    }
    assert!(listed == expected, "{} of {}", listed.len(), expected.len());
    assert_eq!(s.status(Request::ReadFolder { handle: &handle }), END, "and again");
    assert_eq!(s.read(&handle, 0, 1), Err(FAILURE), "not a file");
    assert_eq!(s.attributes(Request::Fstat { handle: &handle }).permissions, Some(0o040_700));
    assert_eq!(
        s.status(Request::FsetStat { handle: &handle, attributes: Attributes { permissions: Some(0o755), ..private } }),
        OK
    );
    assert_eq!(fs::metadata(s.path("d")).unwrap().mode(), 0o040_755);

    assert_eq!(s.status(Request::RemoveFolder { path: b"d" }), FAILURE, "not empty");
    let names: Vec<Vec<u8>> = expected.into_iter().filter(|n| !n.starts_with(b".")).collect();
    for name in names {
        let path = [b"d/".as_slice(), &name].concat();
        assert_eq!(s.status(Request::Remove { path: &path }), OK);
    }
    assert_eq!(s.status(Request::Remove { path: b"d/none" }), NO_SUCH_FILE);
    assert_ne!(s.status(Request::Remove { path: b"d" }), OK, "a folder is no file");
    assert_eq!(s.status(Request::RemoveFolder { path: b"d" }), OK);
    assert_eq!(s.status(Request::OpenFolder { path: b"d" }), NO_SUCH_FILE);
}

#[test]
fn names_change_and_only_the_extension_replaces() {
    let mut s = Session::new();
    for name in ["a", "b"] {
        fs::write(s.path(name), name).unwrap();
    }
    let rename = |replace| Request::Rename { from: b"a", to: b"b", replace };
    assert_eq!(s.status(rename(false)), FAILURE);
    assert_eq!((fs::read(s.path("a")).unwrap(), fs::read(s.path("b")).unwrap()), (b"a".to_vec(), b"b".to_vec()));
    assert_eq!(s.status(Request::Rename { from: b"a", to: b"c", replace: false }), OK);
    assert_eq!(s.status(Request::Rename { from: b"c", to: b"a", replace: true }), OK);
    assert_eq!(s.status(rename(true)), OK);
    assert_eq!((s.path("a").exists(), fs::read(s.path("b")).unwrap()), (false, b"a".to_vec()));
    assert_eq!(s.status(rename(true)), NO_SUCH_FILE);

    assert_eq!(s.status(Request::HardLink { from: b"b", to: b"same" }), OK);
    assert_eq!(fs::metadata(s.path("same")).unwrap().nlink(), 2);
    assert_eq!(s.status(Request::HardLink { from: b"b", to: b"same" }), FAILURE);
    assert_eq!(s.status(Request::Symlink { target: b"gone\xfe", link: b"link" }), OK);
    assert_eq!(s.name(Request::ReadLink { path: b"link" }), b"gone\xfe");
    assert_eq!(s.status(Request::Stat { path: b"link" }), NO_SUCH_FILE);
    assert_eq!(s.status(Request::ReadLink { path: b"b" }), BAD_MESSAGE, "it is no link");
}

#[test]
fn paths_begin_in_the_working_folder() {
    let mut s = Session::new();
    let root = fs::canonicalize(s.folder.path()).unwrap().as_os_str().as_bytes().to_vec();
    for path in [&b""[..], b".", b"./x/.."] {
        fs::create_dir_all(s.path("x")).unwrap();
        assert_eq!(s.name(Request::RealPath { path }), root);
    }
    assert_eq!(s.name(Request::RealPath { path: b"/" }), b"/");
    let home = fs::canonicalize(Account::current().home).unwrap();
    assert_eq!(s.name(Request::ExpandPath { path: b"~" }), home.as_os_str().as_bytes());
    assert_eq!(s.status(Request::ExpandPath { path: b"~no such user/x" }), NO_SUCH_FILE);
    assert_eq!(s.status(Request::Stat { path: b"a\0b" }), BAD_MESSAGE);
}

#[test]
fn the_room_of_the_file_system_and_the_limits_are_told() {
    let mut s = Session::new();
    let handle = s.open("f", flags::WRITE | flags::CREATE).unwrap();
    let u64s = |answer: Answer<'_>| -> Vec<u64> {
        let Answer::Extended(body) = answer else { panic!("{answer:?}") };
        body.chunks(8).map(|c| u64::from_be_bytes(c.try_into().unwrap())).collect()
    };
    let by_path = u64s(s.ask(Request::FileSystem { path: b"f" }));
    let by_handle = u64s(s.ask(Request::FileSystemOf { handle: &handle }));
    assert_eq!((by_path.len(), by_handle.len()), (11, 11));
    assert_eq!((by_path[0], by_path[2], by_path[10]), (by_handle[0], by_handle[2], by_handle[10]));
    assert!(by_path[0] > 0 && by_path[2] > 0 && by_path[10] >= 255, "{by_path:?}");
    assert_eq!(u64s(s.ask(Request::Limits)), [256 << 10, MAX_DATA.into(), MAX_DATA.into(), 512]);
}

#[test]
fn what_is_open_is_bounded_and_makes_room_when_closed() {
    let mut s = Session::new();
    let handles: Vec<_> = (0..512).map(|_| s.open("f", flags::WRITE | flags::CREATE).unwrap()).collect();
    assert_eq!(s.open("f", flags::READ), Err(FAILURE));
    assert_eq!(s.open("not made", flags::WRITE | flags::CREATE), Err(FAILURE));
    assert!(!s.path("not made").exists());
    assert_eq!(s.status(Request::OpenFolder { path: b"." }), FAILURE);
    assert_eq!(s.status(Request::Close { handle: &handles[7] }), OK);
    let next = s.open("f", flags::READ).unwrap();
    assert!(!handles.contains(&next), "a handle never names something else later");
}

#[test]
fn requests_that_make_no_sense_are_answered() {
    let mut s = Session::new();
    assert_eq!(s.status(Request::Unknown), UNSUPPORTED);
    for handle in [&b""[..], b"x", b"\0\0\0\x09", b"longer than ours"] {
        assert_eq!(s.read(handle, 0, 1), Err(FAILURE));
    }
    let mut packet = Vec::new();
    Request::Stat { path: b"name" }.write(9, &mut packet);
    let mut out = Vec::new();
    s.files.answer(&packet[4..packet.len() - 1], &mut out).unwrap();
    assert!(matches!(Answer::parse(&out[4..]), Some((9, Answer::Status(BAD_MESSAGE, _)))));
    s.files.answer(&[17, 0], &mut out).unwrap_err();
}
