//! The speed test over a stream, both ends: what `coder speedtest` and the agent's port 3 do with it (`agent.md` §5.4).
//!
//! A connection on which nothing moves any more is given up; how long a whole test may last is the callers' matter.

pub use crate::wire::speedtest::{Direction, MAX_TIME, Opening};

use crate::{
    driver::clock,
    wire::speedtest::{Answer, BLOCK_BYTES, MAX_MESSAGE, Reject},
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

/// What the peer gets for its message.
const MESSAGE_LIMIT: Duration = Duration::from_secs(15);
/// How long nothing may move: longer than what any path recovers from.
const STALL: Duration = Duration::from_secs(30);
/// Bytes written or read at once. A block is one piece over and over: it stays in the processor's cache, and nobody below
/// the encryption sees that it repeats.
const PIECE: usize = 128 << 10;
const _: () = assert!(BLOCK_BYTES.is_multiple_of(PIECE));

/// Why a test failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpeedtestError {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer sent something else than a message.
    #[error(transparent)]
    Reject(#[from] Reject),
    /// The peer does not serve the test.
    #[error("refused: {0}")]
    Refused(String),
    /// The peer closed in front of the data.
    #[error("the connection was closed before the test began")]
    Closed,
    /// The peer did not say anything.
    #[error("no message within {} s", MESSAGE_LIMIT.as_secs())]
    Silent,
}

/// Asks the peer for a test. Returns how many bytes of data came along with its answer.
///
/// # Errors
/// When the peer refuses, or does not speak this protocol.
///
/// # Cancel safety
/// The stream is of no use after the future was dropped.
pub async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), opening: &Opening) -> Result<usize, SpeedtestError> {
    stream.write_all(&opening.write()).await?;
    match read_message(stream, Answer::parse).await? {
        (Answer::Accept, data) => Ok(data),
        (Answer::Refuse(why), _) => Err(SpeedtestError::Refused(why)),
    }
}

/// Takes what a client asks for and accepts it, or says why not.
///
/// # Errors
/// When it asks for something that is not served, or the connection breaks.
///
/// # Cancel safety
/// The stream is of no use after the future was dropped.
pub async fn accept(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Opening, SpeedtestError> {
    match read_message(stream, Opening::parse).await {
        // Data of an upload follows only the answer.
        Ok((opening, _)) => {
            stream.write_all(&Answer::Accept.write()).await?;
            Ok(opening)
        }
        Err(SpeedtestError::Reject(why)) => {
            refuse(stream, &why.to_string()).await?;
            Err(why.into())
        }
        Err(error) => Err(error),
    }
}

/// Tells a client why there is no test, and closes our half.
///
/// # Errors
/// When the connection breaks.
///
/// # Cancel safety
/// The stream is of no use after the future was dropped.
pub async fn refuse(stream: &mut (impl AsyncWrite + Unpin), why: &str) -> io::Result<()> {
    stream.write_all(&Answer::Refuse(why.to_owned()).write()).await?;
    stream.shutdown().await
}

/// The least that is sent. A Go client loses what arrives together with the answer to its question, counts whole blocks only,
/// and fails when it has counted none: on a slow link one block is not enough.
const LEAST_BLOCKS: usize = 2;

/// Sends whole blocks until `time` has passed, two at least; `sent` is told of every piece. Closing is left to the caller.
///
/// # Errors
/// When the connection breaks or stands still, or the system has no randomness.
///
/// # Cancel safety
/// `sent` has been told of everything that the stream took.
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), time: Duration, mut sent: impl FnMut(usize)) -> io::Result<()> {
    let piece = noise()?;
    let start = clock::now();
    for blocks in 1.. {
        for _ in 0..BLOCK_BYTES / PIECE {
            let mut rest = piece.as_slice();
            while !rest.is_empty() {
                let n = moving(stream.write(rest)).await?;
                if n == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                sent(n);
                rest = rest.get(n..).unwrap_or_default();
            }
        }
        if blocks >= LEAST_BLOCKS && clock::now() - start > time {
            break;
        }
    }
    Ok(())
}

/// Reads to the end; `received` is told of every piece.
///
/// # Errors
/// When the connection breaks or stands still.
///
/// # Cancel safety
/// `received` has been told of everything that was read.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin), mut received: impl FnMut(usize)) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match moving(stream.read(&mut piece)).await? {
            0 => return Ok(()),
            n => received(n),
        }
    }
}

/// The next step of a transfer, unless it takes too long.
async fn moving(step: impl Future<Output = io::Result<usize>>) -> io::Result<usize> {
    let stalled = || io::Error::new(io::ErrorKind::TimedOut, format!("no data moved for {} s", STALL.as_secs()));
    timeout(STALL, step).await.map_err(|_| stalled())?
}

/// A piece that does not compress.
fn noise() -> io::Result<Vec<u8>> {
    let mut rng = clock::random()?;
    Ok((0..PIECE / 1024).flat_map(|_| rng.bytes::<1024>()).collect())
}

type Parse<T> = fn(&[u8]) -> Result<Option<(T, usize)>, Reject>;

/// The message at the beginning of a stream, and how many bytes behind it were read along.
async fn read_message<T>(stream: &mut (impl AsyncRead + Unpin), parse: Parse<T>) -> Result<(T, usize), SpeedtestError> {
    let reading = async {
        let mut bytes = Vec::with_capacity(MAX_MESSAGE);
        loop {
            // The parser refuses what is longer.
            if (&mut *stream).take((MAX_MESSAGE - bytes.len()) as u64).read_buf(&mut bytes).await? == 0 {
                return Err(SpeedtestError::Closed);
            }
            if let Some((message, used)) = parse(&bytes)? {
                return Ok((message, bytes.len() - used));
            }
        }
    };
    timeout(MESSAGE_LIMIT, reading).await.map_err(|_| SpeedtestError::Silent)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    const AT_ONCE: Opening = Opening { time: Duration::ZERO, direction: Direction::Download };

    #[tokio::test]
    async fn a_test_of_no_time_is_two_blocks_that_do_not_compress() {
        let (mut near, mut far) = duplex(1 << 16);
        let mut sent = 0;
        let sending = async {
            assert_eq!(accept(&mut far).await.unwrap(), AT_ONCE);
            send(&mut far, Duration::ZERO, |n| sent += n).await.unwrap();
            drop(far);
        };
        let receiving = async {
            let mut received = ask(&mut near, &AT_ONCE).await.unwrap();
            receive(&mut near, |n| received += n).await.unwrap();
            received
        };
        let ((), received) = tokio::join!(sending, receiving);
        assert_eq!((sent, received), (2 * BLOCK_BYTES, 2 * BLOCK_BYTES));
        let piece = noise().unwrap();
        let mut counts = [0_usize; 256];
        piece.iter().for_each(|b| counts[usize::from(*b)] += 1);
        let mean = piece.len() / 256;
        assert!(counts.iter().all(|n| n.abs_diff(mean) < mean / 2), "{counts:?}");
        assert_eq!(piece.len(), PIECE);
    }

    #[tokio::test]
    async fn messages_that_come_byte_by_byte_are_read_and_data_behind_them_is_counted() {
        let (mut near, mut far) = duplex(1);
        let writing = async {
            near.write_all(b" {\"version\":2,\"time\":7,\"direction\":1}").await.unwrap();
            let mut answer = [0; 3];
            near.read_exact(&mut answer).await.unwrap();
            answer
        };
        let (answer, opening) = tokio::join!(writing, accept(&mut far));
        assert_eq!(&answer, b"{}\n");
        assert_eq!(opening.unwrap(), Opening { time: Duration::from_nanos(7), direction: Direction::Upload });

        let (mut near, mut far) = duplex(64);
        far.write_all(b"{}\nabc").await.unwrap();
        assert_eq!(ask(&mut near, &AT_ONCE).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn what_is_not_served_is_answered_with_the_reason_and_the_end() {
        let (mut near, mut far) = duplex(1 << 10);
        near.write_all(b"{\"version\":1}\n").await.unwrap();
        assert!(matches!(accept(&mut far).await, Err(SpeedtestError::Reject(Reject::Version(1)))));
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        let (parsed, _) = Answer::parse(answer.as_bytes()).unwrap().unwrap();
        assert_eq!(parsed, Answer::Refuse(Reject::Version(1).to_string()));

        let (mut near, mut far) = duplex(1 << 10);
        refuse(&mut far, "busy").await.unwrap();
        assert_eq!(ask(&mut near, &AT_ONCE).await.unwrap_err().to_string(), "refused: busy");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_ends_or_talks_without_an_end_is_given_up() {
        let (mut near, _far) = duplex(1 << 10);
        assert!(matches!(accept(&mut near).await, Err(SpeedtestError::Silent)));
        let (mut near, far) = duplex(1 << 10);
        drop(far);
        assert!(matches!(accept(&mut near).await, Err(SpeedtestError::Closed)));
        let (mut near, mut far) = duplex(2 * MAX_MESSAGE);
        far.write_all(&vec![b' '; 2 * MAX_MESSAGE - 100]).await.unwrap();
        assert!(matches!(accept(&mut near).await, Err(SpeedtestError::Reject(Reject::NoObject))));
    }
}
