//! One session's open files, and each request done to the file system.

use super::{attributes, folder::Folder, names::Accounts, paths::Paths};
use crate::{
    driver::clock,
    wire::sftp::{Attributes, Broken, FileSystem, MAX_DATA, Names, Reply, Request, Status, flags},
};
use rustix::{
    fs::{CWD, Mode, OFlags, StatVfs, StatVfsMountFlags, fstatvfs, mkdir, statvfs},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
};

/// Most files and folders open at the same time in one session.
const MAX_HANDLES: u32 = 512;

#[derive(Debug)]
enum Opened {
    File(File),
    Folder(Folder),
}

/// The files of one session.
#[derive(Debug)]
pub(super) struct Files {
    paths: Paths,
    opened: BTreeMap<u32, Opened>,
    next: u32,
    /// What is read goes through here: a new one for each answer would cost more than the second copy.
    buffer: Vec<u8>,
    /// Read when the first folder is listed.
    accounts: Option<Accounts>,
}

/// Why a request was not done.
#[derive(Debug)]
struct Failure {
    status: Status,
    text: String,
}

impl Failure {
    fn new(status: Status, text: &str) -> Self {
        Self { status, text: text.to_owned() }
    }

    fn end() -> Self {
        Self::new(Status::EndOfFile, "end of file")
    }

    fn no_handle() -> Self {
        Self::new(Status::Failure, "nothing is open under this handle")
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let status = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::BADF | Errno::LOOP) => Status::NoSuchFile,
            Some(Errno::PERM | Errno::ACCESS | Errno::FAULT) => Status::PermissionDenied,
            Some(Errno::NAMETOOLONG | Errno::INVAL) => Status::BadMessage,
            Some(Errno::NOSYS | Errno::OPNOTSUPP) => Status::Unsupported,
            Some(_) => Status::Failure,
            None => match error.kind() {
                io::ErrorKind::NotFound => Status::NoSuchFile,
                // A path with a zero byte in it.
                io::ErrorKind::InvalidInput => Status::BadMessage,
                _ => Status::Failure,
            },
        };
        Self { status, text: error.to_string() }
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl Files {
    pub(super) fn new(paths: Paths) -> Self {
        Self { paths, opened: BTreeMap::new(), next: 0, buffer: Vec::new(), accounts: None }
    }

    /// Does what a packet asks and appends the answer.
    pub(super) fn answer(&mut self, packet: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let (number, request) = Request::parse(packet)?;
        let done = match request {
            Some(request) => self.perform(number, request, out),
            None => Err(Failure::new(Status::BadMessage, "the request ends too early")),
        };
        if let Err(Failure { status, text }) = done {
            Reply::Status(status, &text).write(number, out);
        }
        Ok(())
    }

    fn perform(&mut self, number: u32, request: Request<'_>, out: &mut Vec<u8>) -> Result<(), Failure> {
        let reply = match request {
            Request::Init => Reply::Version,
            Request::Read { handle, offset, length } => return self.read(handle, offset, length, number, out),
            Request::ReadFolder { handle } => return self.list(handle, number, out),
            Request::RealPath { path } => return name(&self.paths.real(path)?, number, out),
            Request::ExpandPath { path } => return name(&self.paths.real(&self.paths.expand(path)?)?, number, out),
            Request::ReadLink { path } => return name(&fs::read_link(self.paths.of(path))?, number, out),
            Request::Open { path, flags, attributes } => {
                self.room()?;
                let file = open(&self.paths.of(path), flags, attributes)?;
                Reply::Handle(self.keep(Opened::File(file)))
            }
            Request::OpenFolder { path } => {
                self.room()?;
                let folder = Folder::open(self.paths.of(path))?;
                Reply::Handle(self.keep(Opened::Folder(folder)))
            }
            Request::Stat { path } => Reply::Attributes(attributes::of(&fs::metadata(self.paths.of(path))?)),
            Request::Lstat { path } => Reply::Attributes(attributes::of(&fs::symlink_metadata(self.paths.of(path))?)),
            Request::Fstat { handle } => Reply::Attributes(attributes::of(&match self.opened(handle)? {
                Opened::File(file) => file.metadata()?,
                Opened::Folder(folder) => fs::metadata(folder.path())?,
            })),
            Request::FileSystem { path } => Reply::FileSystem(file_system(&statvfs(self.paths.of(path))?)),
            Request::FileSystemOf { handle } => Reply::FileSystem(file_system(&match self.opened(handle)? {
                Opened::File(file) => fstatvfs(file)?,
                Opened::Folder(folder) => statvfs(folder.path())?,
            })),
            Request::Limits => Reply::Limits(MAX_HANDLES),
            Request::Unknown => return Err(Failure::new(Status::Unsupported, "not served here")),
            change => {
                self.change(change)?;
                Reply::Status(Status::Ok, "")
            }
        };
        reply.write(number, out);
        Ok(())
    }

    /// What is answered by a status alone.
    fn change(&mut self, request: Request<'_>) -> Result<(), Failure> {
        let paths = &self.paths;
        match request {
            Request::Close { handle } => {
                self.opened.remove(&id(handle)?).ok_or_else(Failure::no_handle)?;
            }
            Request::Write { handle, offset, data } => self.file(handle)?.write_all_at(data, offset)?,
            Request::SetStat { path, attributes, follow } => attributes::change_path(&paths.of(path), attributes, follow)?,
            Request::FsetStat { handle, attributes } => match self.opened(handle)? {
                Opened::File(file) => attributes::change(file, attributes)?,
                Opened::Folder(folder) => attributes::change_path(folder.path(), attributes, true)?,
            },
            Request::Remove { path } => fs::remove_file(paths.of(path))?,
            Request::MakeFolder { path, attributes } => {
                mkdir(paths.of(path), attributes.permissions.map_or(Mode::from_bits_truncate(0o777), attributes::mode))?;
            }
            Request::RemoveFolder { path } => fs::remove_dir(paths.of(path))?,
            Request::Rename { from, to, replace: true } => fs::rename(paths.of(from), paths.of(to))?,
            Request::Rename { from, to, replace: false } => rename_to_new(&paths.of(from), &paths.of(to))?,
            Request::Symlink { target, link } => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), paths.of(link))?;
            }
            Request::HardLink { from, to } => fs::hard_link(paths.of(from), paths.of(to))?,
            Request::Sync { handle } => self.file(handle)?.sync_all()?,
            _ => return Err(Failure::new(Status::Unsupported, "not served here")),
        }
        Ok(())
    }

    fn room(&self) -> Result<(), Failure> {
        if self.opened.len() < MAX_HANDLES as usize {
            return Ok(());
        }
        Err(Failure::new(Status::Failure, "too many files are open in this session"))
    }

    /// A number that was not used before: a handle that was closed names nothing again.
    fn keep(&mut self, opened: Opened) -> u32 {
        while self.opened.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.opened.insert(id, opened);
        id
    }

    fn opened(&self, handle: &[u8]) -> Result<&Opened, Failure> {
        self.opened.get(&id(handle)?).ok_or_else(Failure::no_handle)
    }

    fn file(&self, handle: &[u8]) -> Result<&File, Failure> {
        match self.opened(handle)? {
            Opened::File(file) => Ok(file),
            Opened::Folder(_) => Err(Failure::new(Status::Failure, "the handle is that of a folder")),
        }
    }

    fn read(&mut self, handle: &[u8], offset: u64, length: u32, number: u32, out: &mut Vec<u8>) -> Result<(), Failure> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(MAX_DATA as usize, 0);
        let space = buffer.get_mut(..length.min(MAX_DATA) as usize).unwrap_or_default();
        let read = self.file(handle).and_then(|file| Ok(file.read_at(space, offset)?));
        let done = match read {
            Ok(0) if length > 0 => Err(Failure::end()),
            Ok(read) => {
                Reply::Data(space.get(..read).unwrap_or_default()).write(number, out);
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.buffer = buffer;
        done
    }

    fn list(&mut self, handle: &[u8], number: u32, out: &mut Vec<u8>) -> Result<(), Failure> {
        let accounts = self.accounts.get_or_insert_with(Accounts::read);
        let Some(Opened::Folder(folder)) = self.opened.get_mut(&id(handle)?) else { return Err(Failure::no_handle()) };
        let now = i64::try_from(clock::wall().since_unix().as_secs()).unwrap_or(i64::MAX);
        let mut names = Names::new(number, out);
        let listed = folder.list(&mut names, accounts, now);
        if listed.is_ok() && !names.is_empty() {
            names.finish();
            return Ok(());
        }
        names.discard();
        listed?;
        Err(Failure::end())
    }
}

fn id(handle: &[u8]) -> Result<u32, Failure> {
    let bytes: [u8; 4] = handle.try_into().map_err(|_| Failure::no_handle())?;
    Ok(u32::from_be_bytes(bytes))
}

/// Answers with one path.
fn name(path: &Path, number: u32, out: &mut Vec<u8>) -> Result<(), Failure> {
    let path = path.as_os_str().as_bytes();
    let mut names = Names::new(number, out);
    names.push(path, path, Attributes::default());
    names.finish();
    Ok(())
}

/// Never waits: without `NONBLOCK` a pipe would hold the session until somebody opens its other end.
fn open(path: &Path, asked: u32, attributes: Attributes) -> Result<File, Failure> {
    let has = |flag| asked & flag != 0;
    let mut how = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    how |= match (has(flags::READ), has(flags::WRITE) || has(flags::APPEND)) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    for (flag, adds) in [
        (flags::APPEND, OFlags::APPEND),
        (flags::CREATE, OFlags::CREATE),
        (flags::TRUNCATE, OFlags::TRUNC),
        (flags::EXCLUSIVE, OFlags::EXCL),
    ] {
        if has(flag) {
            how |= adds;
        }
    }
    let mode = attributes.permissions.map_or(Mode::from_bits_truncate(0o666), attributes::mode);
    Ok(rustix::fs::open(path, how, mode)?.into())
}

/// Renames, unless the new name is taken.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    match rustix::fs::renameat_with(CWD, from, CWD, to, rustix::fs::RenameFlags::NOREPLACE) {
        // The file system or the kernel cannot do it in one step.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        done => return Ok(done?),
    }
    match fs::symlink_metadata(to) {
        Ok(_) => Err(Errno::EXIST.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

fn file_system(of: &StatVfs) -> FileSystem {
    let flag = |set: StatVfsMountFlags, value: u64| if of.f_flag.contains(set) { value } else { 0 };
    let flags = flag(StatVfsMountFlags::RDONLY, 1) | flag(StatVfsMountFlags::NOSUID, 2);
    let StatVfs { f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_fsid, f_namemax, .. } = *of;
    let fields = [f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_fsid, flags, f_namemax];
    FileSystem { fields }
}
