//! `direct-tcpip`: a connection from the agent's machine on behalf of the client (`-L`, `-D`, `-J`; agent.md §6.6).

use super::{Shared, input::Input, session::Output};
use russh::{ChannelOpenFailure, server::ChannelOpenHandle};
use std::{io, sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

/// SSH's number for "connect failed".
const CONNECT_FAILED: u32 = 2;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(30);

/// One forwarded connection.
pub(super) struct Forward {
    pub(super) shared: Arc<Shared>,
    pub(super) output: Output,
    pub(super) input: Arc<Input>,
    pub(super) gone: CancellationToken,
}

impl Forward {
    /// Connects, answers the client and carries bytes until both directions have ended, each by itself.
    pub(super) async fn run(self, host: String, port: u32, reply: ChannelOpenHandle) {
        let stop = self.shared.stop.clone();
        tokio::select! {
            () = self.carry(&host, port, reply) => {}
            () = self.gone.cancelled() => {}
            () = stop.cancelled() => self.output.close().await,
        }
        self.gone.cancel();
    }

    async fn carry(&self, host: &str, port: u32, reply: ChannelOpenHandle) {
        let stream = match connect(host, port).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(host, port, %error, "forward refused");
                return reply.reject(ChannelOpenFailure::Other { code: CONNECT_FAILED, reason: error.to_string() }).await;
            }
        };
        reply.accept().await;
        self.shared.stats.forward();
        let (reader, mut writer) = stream.into_split();
        let up = async {
            while let Some(data) = self.input.next().await {
                self.shared.stats.received(data.len());
                if writer.write_all(&data).await.is_err() {
                    return self.input.discard();
                }
            }
            let _ = writer.shutdown().await;
        };
        let down = async {
            let whole = self.output.copy(reader, None, &self.shared).await;
            self.output.finish().await;
            whole
        };
        tokio::join!(up, async {
            let whole = down.await;
            if !whole {
                // Reset: nothing more can be delivered either.
                self.input.finish();
                self.input.discard();
            }
        });
        // At once: with `ssh -W` the client waits for this.
        self.output.close().await;
    }
}

async fn connect(host: &str, port: u32) -> io::Result<TcpStream> {
    let port = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let stream = timeout(CONNECT, TcpStream::connect((host, port))).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
