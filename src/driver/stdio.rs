//! Standard input and output as async streams, without touching the flags that other processes share.
//!
//! A pipe or a terminal is opened anew through `/proc/self/fd`: that gives a description of our own, which may be
//! non-blocking while the parent's terminal and our standard error stay as they are. A socket is used with
//! `MSG_DONTWAIT`. Only regular files, which never block for long, go through tokio's thread.

use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

enum Fd {
    /// A description of our own, non-blocking.
    Own(AsyncFd<OwnedFd>),
    /// A duplicate of a socket that others may hold.
    Socket(AsyncFd<OwnedFd>),
}

#[expect(unsafe_code, reason = "tokio offers no safe call for a descriptor that is known to be owned")]
fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same open descriptor on every `as_raw_fd` until it is dropped, and nothing below
    // takes it out of the `AsyncFd` or closes it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

impl Fd {
    fn open(fd: BorrowedFd<'_>, number: u8, flags: OFlags, interest: Interest) -> Option<Self> {
        match FileType::from_raw_mode(rustix::fs::fstat(fd).ok()?.st_mode) {
            FileType::Socket => {
                let socket = rustix::io::fcntl_dupfd_cloexec(fd, 3).ok()?;
                register(socket, interest).ok().map(Self::Socket)
            }
            FileType::Fifo | FileType::CharacterDevice => {
                let path = format!("/proc/self/fd/{number}");
                let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                let own = rustix::fs::open(path, flags, Mode::empty()).ok()?;
                // A device that cannot be polled (/dev/null) is refused here.
                register(own, interest).ok().map(Self::Own)
            }
            _ => None,
        }
    }

    fn io(&self) -> &AsyncFd<OwnedFd> {
        match self {
            Self::Own(fd) | Self::Socket(fd) => fd,
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.io().poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            let got = guard.try_io(|fd| {
                let n = match self {
                    Self::Own(_) => rustix::io::read(fd.get_ref(), unfilled),
                    Self::Socket(_) => rustix::net::recv(fd.get_ref(), unfilled, RecvFlags::DONTWAIT).map(|(n, _)| n),
                };
                n.map_err(io::Error::from)
            });
            match got {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // A terminal whose other side is gone reads as EIO: the end of input.
                Ok(Err(e)) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Poll::Ready(Ok(())),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.io().poll_write_ready(cx))?;
            let sent = guard.try_io(|fd| {
                let n = match self {
                    Self::Own(_) => rustix::io::write(fd.get_ref(), bytes),
                    Self::Socket(_) => rustix::net::send(fd.get_ref(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                };
                n.map_err(io::Error::from)
            });
            match sent {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) => {}
            }
        }
    }
}

/// Standard input.
pub(crate) struct Stdin(StdinKind);

enum StdinKind {
    Ready(Fd),
    Thread(tokio::io::Stdin),
}

impl Stdin {
    /// Opens standard input. Needs a tokio runtime with I/O.
    #[must_use]
    pub(crate) fn open() -> Self {
        let fd = Fd::open(io::stdin().as_fd(), 0, OFlags::RDONLY, Interest::READABLE);
        Self(fd.map_or_else(|| StdinKind::Thread(tokio::io::stdin()), StdinKind::Ready))
    }
}

impl AsyncRead for Stdin {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            StdinKind::Ready(fd) => fd.poll_read(cx, buf),
            StdinKind::Thread(stdin) => Pin::new(stdin).poll_read(cx, buf),
        }
    }
}

/// Standard output or standard error.
pub(crate) struct Stdout(StdoutKind);

enum StdoutKind {
    Ready(Fd),
    Out(tokio::io::Stdout),
    Err(tokio::io::Stderr),
}

impl Stdout {
    /// Opens standard output. Needs a tokio runtime with I/O.
    #[must_use]
    pub(crate) fn open() -> Self {
        let fd = Fd::open(io::stdout().as_fd(), 1, OFlags::WRONLY, Interest::WRITABLE | Interest::ERROR);
        Self(fd.map_or_else(|| StdoutKind::Out(tokio::io::stdout()), StdoutKind::Ready))
    }

    /// Opens standard error; the process's own descriptor 2 stays blocking.
    #[must_use]
    pub(crate) fn open_err() -> Self {
        let fd = Fd::open(io::stderr().as_fd(), 2, OFlags::WRONLY, Interest::WRITABLE | Interest::ERROR);
        Self(fd.map_or_else(|| StdoutKind::Err(tokio::io::stderr()), StdoutKind::Ready))
    }

    /// Waits until nobody can read what is written here any more. Never ends for a regular file.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub(crate) async fn closed(&self) {
        if let StdoutKind::Ready(fd) = &self.0
            && let Ok(_guard) = fd.io().ready(Interest::ERROR).await
        {
            return;
        }
        std::future::pending().await
    }
}

impl AsyncWrite for Stdout {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            StdoutKind::Ready(fd) => fd.poll_write(cx, bytes),
            StdoutKind::Out(out) => Pin::new(out).poll_write(cx, bytes),
            StdoutKind::Err(err) => Pin::new(err).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            StdoutKind::Ready(_) => Poll::Ready(Ok(())),
            StdoutKind::Out(out) => Pin::new(out).poll_flush(cx),
            StdoutKind::Err(err) => Pin::new(err).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

macro_rules! opaque_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
opaque_debug!(Stdin, Stdout);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn is_nonblocking(fd: impl AsFd) -> bool {
        rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
    }

    #[tokio::test]
    async fn a_socket_shared_with_the_parent_stays_blocking() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fd = Fd::open(ours.as_fd(), 0, OFlags::RDONLY, Interest::READABLE | Interest::WRITABLE).unwrap();
        let mut stdin = Stdin(StdinKind::Ready(fd));
        assert!(!is_nonblocking(&ours));
        io::Write::write_all(&mut &theirs, b"hello").unwrap();
        let mut buf = [0; 5];
        stdin.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"hello");
        drop(theirs);
        assert_eq!(stdin.read(&mut buf).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_pipe_shared_with_the_parent_stays_blocking_and_its_closing_is_seen() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&writer);
        let fd = Fd::open(writer.as_fd(), u8::try_from(number).unwrap(), OFlags::WRONLY, Interest::WRITABLE | Interest::ERROR)
            .unwrap();
        let mut stdout = Stdout(StdoutKind::Ready(fd));
        assert!(!is_nonblocking(&writer));
        stdout.write_all(b"x").await.unwrap();
        drop(reader);
        stdout.closed().await;
        assert_eq!(stdout.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
