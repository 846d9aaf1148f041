//! Carries a connection of the tunnel to one of this machine and back.
//!
//! Nothing is kept between the two: what has arrived goes from the stream's ring into the socket, and what the socket has
//! goes through one buffer of the thread into the ring, as much as there is room for. So an idle connection costs nothing
//! but its rings, and a busy one stays in the cache.

use super::Stream;
use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{io::AsyncWrite as _, net::TcpStream};

/// Bytes taken from a socket at once.
const CHUNK: usize = 64 << 10;
/// Pieces moved in one direction before others get their turn.
const ROUNDS: usize = 8;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// Carries both directions until both have ended, each in its own time. `count` hears how many bytes came from the tunnel
/// and went into it.
///
/// # Errors
/// When either side breaks; the other should be reset then, so that it does not look like a proper end.
///
/// # Cancel safety
/// Bytes that were taken from one side are given to the other; dropping the future loses none in between.
pub(crate) async fn carry(tunnel: &mut Stream, local: &mut TcpStream, count: impl Fn(usize, usize)) -> io::Result<()> {
    let (mut down, mut up) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        // Both get their turn before the first one waits, and an error of either ends both.
        let down = down.poll(cx, |cx| poll_down(tunnel, local, &count, cx))?;
        let up = up.poll(cx, |cx| poll_up(tunnel, local, &count, cx))?;
        if down && up { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

#[derive(Default)]
struct Direction {
    ended: bool,
}

impl Direction {
    /// Moves what can be moved, one turn's worth of it; whether the direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Context<'_>) -> Poll<io::Result<bool>>,
    ) -> io::Result<bool> {
        for _ in 0..ROUNDS {
            if self.ended {
                return Ok(true);
            }
            match step(cx) {
                Poll::Ready(more) => self.ended = !more?,
                Poll::Pending => return Ok(false),
            }
        }
        if !self.ended {
            cx.waker().wake_by_ref();
        }
        Ok(self.ended)
    }
}

/// One piece from the tunnel to the socket; `false` after the last one.
fn poll_down(
    tunnel: &mut Stream,
    local: &mut TcpStream,
    count: impl Fn(usize, usize),
    cx: &mut Context<'_>,
) -> Poll<io::Result<bool>> {
    if !ready!(tunnel.poll_readable(cx))? {
        // A socket whose other side is gone has ended as well.
        let _ = ready!(Pin::new(local).poll_shutdown(cx));
        return Poll::Ready(Ok(false));
    }
    ready!(local.poll_write_ready(cx))?;
    match tunnel.read_with(|bytes| local.try_write(bytes)) {
        // It was not ready after all, and the next look says so.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Ok(true)),
        taken => Poll::Ready(taken.map(|n| {
            count(n, 0);
            true
        })),
    }
}

/// One piece from the socket to the tunnel; `false` after the last one.
fn poll_up(tunnel: &mut Stream, local: &TcpStream, count: impl Fn(usize, usize), cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
    // Once the other direction has ended, this is all that wakes us when the tunnel breaks; it comes before the look at the
    // room, so that no break falls in between.
    let _ = tunnel.poll_readable(cx);
    let room = ready!(tunnel.poll_room(cx))?;
    ready!(local.poll_read_ready(cx))?;
    SCRATCH.with_borrow_mut(|scratch| {
        let fits = room.min(scratch.len());
        match local.try_read(scratch.get_mut(..fits).unwrap_or_default()) {
            Ok(0) => Pin::new(tunnel).poll_shutdown(cx).map_ok(|()| false),
            // The room is ours alone, so all of it is taken.
            Ok(n) => {
                count(0, n);
                Pin::new(tunnel).poll_write(cx, scratch.get(..n).unwrap_or_default()).map_ok(|_| true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Ok(true)),
            Err(error) => Poll::Ready(Err(error)),
        }
    })
}
