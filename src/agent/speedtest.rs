//! The speed test server, port 3 of the tunnel (agent.md §5.4).

use crate::{
    driver::clock,
    net::speedtest::{self, Direction, Opening, SpeedtestError},
};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::Semaphore,
    time::timeout,
};

/// The port.
pub(crate) const PORT: u16 = 3;
/// Most tests at the same time: more of them measure each other.
const MAX_TESTS: usize = 16;
/// A test may last so many times what was asked for, as in Go, and this on top: a slow link takes a while for one block.
const STRETCH: u32 = 4;
const SLACK: Duration = Duration::from_secs(60);

/// Serves tests, a bounded number at the same time. Clones share the bound.
#[derive(Debug, Clone)]
pub(crate) struct Speedtests {
    places: Arc<Semaphore>,
}

impl Speedtests {
    pub(crate) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_TESTS)) }
    }

    /// Serves one connection. An error means that the test did not come to its end and the connection is to be reset.
    pub(crate) async fn serve(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
        let Ok(_place) = self.places.try_acquire() else {
            return speedtest::refuse(stream, "other speed tests of this workspace are running: try again when they have ended")
                .await;
        };
        let opening = match speedtest::accept(stream).await {
            Ok(opening) => opening,
            Err(SpeedtestError::Reject(why)) => {
                tracing::debug!(%why, "a speed test was refused");
                return Ok(());
            }
            Err(SpeedtestError::Io(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        };
        let limit = opening.time * STRETCH + SLACK;
        timeout(limit, run(stream, opening)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

async fn run(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), Opening { time, direction }: Opening) -> io::Result<()> {
    let start = clock::now();
    let mut bytes = 0_u64;
    match direction {
        Direction::Download => {
            speedtest::send(stream, time, |n| bytes += n as u64).await?;
            stream.shutdown().await?;
        }
        Direction::Upload => speedtest::receive(stream, |n| bytes += n as u64).await?,
    }
    let seconds = (clock::now() - start).as_secs_f64();
    tracing::info!(?direction, seconds, bytes, "a speed test has ended");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::speedtest::BLOCK_BYTES;
    use tokio::io::{AsyncReadExt as _, duplex};

    fn opening(direction: Direction, time: Duration) -> Opening {
        Opening { time, direction }
    }

    #[tokio::test]
    async fn a_download_is_whole_blocks_and_the_end() {
        let (mut near, mut far) = duplex(1 << 16);
        let tests = Speedtests::new();
        let client = async {
            let mut bytes = speedtest::ask(&mut near, &opening(Direction::Download, Duration::ZERO)).await.unwrap();
            speedtest::receive(&mut near, |n| bytes += n).await.unwrap();
            bytes
        };
        let (served, bytes) = tokio::join!(tests.serve(&mut far), client);
        served.unwrap();
        assert!(bytes >= 2 * BLOCK_BYTES && bytes.is_multiple_of(BLOCK_BYTES), "{bytes}");
        assert_eq!(tests.places.available_permits(), MAX_TESTS);
    }

    #[tokio::test]
    async fn an_upload_is_read_to_its_end_whole_blocks_or_not() {
        let (mut near, mut far) = duplex(1 << 16);
        let tests = Speedtests::new();
        let client = async {
            speedtest::ask(&mut near, &opening(Direction::Upload, Duration::ZERO)).await.unwrap();
            near.write_all(&vec![7; BLOCK_BYTES + 5]).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let (served, ()) = tokio::join!(tests.serve(&mut far), client);
        served.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_or_write_is_given_up_in_time() {
        for direction in [Direction::Download, Direction::Upload] {
            let (mut near, mut far) = duplex(1 << 10);
            let tests = Speedtests::new();
            let start = tokio::time::Instant::now();
            let client = async { speedtest::ask(&mut near, &opening(direction, Duration::from_secs(5))).await.unwrap() };
            let (served, _) = tokio::join!(tests.serve(&mut far), client);
            assert_eq!(served.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!(start.elapsed() <= Duration::from_secs(60), "{:?}", start.elapsed());
            assert_eq!(tests.places.available_permits(), MAX_TESTS);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_hardly_reads_is_given_up_in_the_end() {
        let (mut near, mut far) = duplex(1 << 10);
        let start = tokio::time::Instant::now();
        let client = async {
            speedtest::ask(&mut near, &opening(Direction::Download, Duration::from_secs(5))).await.unwrap();
            while near.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let tests = Speedtests::new();
        let served = tokio::select! {
            served = tests.serve(&mut far) => served,
            () = client => unreachable!("it reads as long as it gets something"),
        };
        assert_eq!(served.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), Duration::from_secs(80));
    }

    #[tokio::test(start_paused = true)]
    async fn one_test_too_many_is_told_so() {
        let tests = Speedtests::new();
        let _busy = tests.places.try_acquire_many(MAX_TESTS as u32).unwrap();
        let (mut near, mut far) = duplex(1 << 10);
        let asked = opening(Direction::Download, Duration::ZERO);
        let (served, answer) = tokio::join!(tests.serve(&mut far), speedtest::ask(&mut near, &asked));
        served.unwrap();
        assert!(answer.unwrap_err().to_string().contains("try again"));
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_opening_that_is_refused_is_no_error_and_one_that_breaks_off_is() {
        let tests = Speedtests::new();
        let (mut near, mut far) = duplex(1 << 10);
        near.write_all(b"{\"version\":2,\"direction\":7}").await.unwrap();
        tests.serve(&mut far).await.unwrap();
        let (near, mut far) = duplex(1 << 10);
        drop(near);
        tests.serve(&mut far).await.unwrap_err();
    }
}
