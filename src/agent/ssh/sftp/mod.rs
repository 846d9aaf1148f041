//! The `sftp` subsystem: SFTP version 3 for the whole file system, seen as the agent's user (agent.md §6.8).
//!
//! File calls block, so each session has a thread of its own that answers one request after the other, in their order:
//! a file system that hangs holds up its session and nobody else. Both queues to the thread are short, so that a client
//! that sends without reading, or a disk that is slow, stops at the channel's window and not in memory.
//!
//! Written here and not taken from a crate: russh-sftp 3.0.1 turns names into UTF-8 with replacement characters, so that
//! files with other names cannot be reached, and it goes on reading in the middle of a packet that was too long.

mod attributes;
mod files;
mod folder;
mod names;
mod paths;
#[cfg(test)]
mod tests;

use super::{
    Shared,
    channels::Lane,
    session::{Channel, Exit, NOT_STARTED, Output, beside},
    stats::ActiveSession,
};
use crate::wire::sftp::{Broken, HEADER, first_packet};
use bytes::{Buf as _, Bytes, BytesMut};
use files::Files;
use paths::Paths;
use std::{io, sync::Arc, thread};
use tokio::sync::{mpsc, oneshot};

/// Chunks of requests that wait for the thread, each up to 32 KiB.
const REQUESTS: usize = 8;
/// Chunks of answers that wait for the client's window.
const ANSWERS: usize = 4;
/// An answer that has grown to this is sent before the next request is looked at.
const CHUNK: usize = 64 << 10;
/// Exit status when the client did not speak SFTP.
const BROKEN: u32 = 1;

/// Serves one session to the end of the client's requests.
pub(super) async fn serve(output: Output, channel: Channel, active: ActiveSession) {
    let Channel { shared, handle, lane, open, from: _ } = channel;
    let exchange = async {
        let (requests, answers, end) = start(Arc::clone(&shared))?;
        let carried = carry(&output, &shared, &lane, answers);
        let feed = async {
            while let Some(data) = lane.input.next().await {
                shared.stats.received(data.len());
                if requests.send(data).await.is_err() {
                    return lane.input.discard();
                }
            }
            // The thread ends when it has answered what it has.
            drop(requests);
        };
        beside(feed, carried).await;
        end.await.unwrap_or_else(|_| Err(io::Error::other("the session's thread failed")))
    };
    let ended = tokio::select! {
        ended = exchange => Some(ended),
        // Until then, what a client wrote before it closed the channel is still done.
        () = lane.given_up() => None,
        () = shared.stop.cancelled() => None,
    };
    if !lane.gone.is_cancelled() {
        match ended {
            Some(Ok(())) => output.report(&handle, Exit::Code(0)).await,
            Some(Err(error)) => {
                tracing::debug!(%error, "sftp session");
                let status = if error.get_ref().is_some_and(|e| e.is::<Broken>()) { BROKEN } else { NOT_STARTED };
                let told = output.complain(format!("sftp: {error}\r\n"));
                tokio::select! { () = told => {} () = lane.gone.cancelled() => {} }
                output.report(&handle, Exit::Code(status)).await;
            }
            None => output.close().await,
        }
    }
    lane.gone.cancel();
    drop((output, active, handle, open));
}

/// Sends what the thread answers until it has ended. Nobody hears the answers any more when the client is gone.
async fn carry(output: &Output, shared: &Shared, lane: &Lane, mut answers: mpsc::Receiver<Bytes>) {
    while let Some(answer) = answers.recv().await {
        if lane.gone.is_cancelled() {
            continue;
        }
        shared.stats.sent(answer.len());
        tokio::select! {
            // A client that is gone is noticed above.
            _ = output.send(None, answer) => {}
            () = lane.gone.cancelled() => {}
        }
    }
}

type Ends = (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>, oneshot::Receiver<io::Result<()>>);

/// Starts the session's thread. It ends with its queues.
fn start(shared: Arc<Shared>) -> io::Result<Ends> {
    let (requests, from_client) = mpsc::channel(REQUESTS);
    let (to_client, answers) = mpsc::channel(ANSWERS);
    let (ended, end) = oneshot::channel();
    thread::Builder::new().name("sftp".to_owned()).spawn(move || {
        let paths = Paths::new(&shared.profile(), &shared.account);
        drop(shared);
        let result = answer_all(Files::new(paths), from_client, &to_client);
        // Nobody listens when the client went away.
        let _ = ended.send(result.map_err(io::Error::other));
    })?;
    Ok((requests, answers, end))
}

/// Answers until the queue of requests has ended or that of answers is gone.
fn answer_all(mut files: Files, mut requests: mpsc::Receiver<Bytes>, answers: &mpsc::Sender<Bytes>) -> Result<(), Broken> {
    let (mut pending, mut out) = (BytesMut::new(), Vec::new());
    while let Some(data) = requests.blocking_recv() {
        pending.extend_from_slice(&data);
        let mut broken = None;
        loop {
            let answered = first_packet(&pending).and_then(|packet| {
                let Some(packet) = packet else { return Ok(None) };
                files.answer(packet, &mut out)?;
                Ok(Some(packet.len()))
            });
            match answered {
                Ok(Some(length)) => pending.advance(HEADER + length),
                Ok(None) => break,
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
            if out.len() >= CHUNK && answers.blocking_send(std::mem::take(&mut out).into()).is_err() {
                return Ok(());
            }
        }
        if !out.is_empty() && answers.blocking_send(std::mem::take(&mut out).into()).is_err() {
            return Ok(());
        }
        if let Some(broken) = broken {
            return Err(broken);
        }
    }
    Ok(())
}
