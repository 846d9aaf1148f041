//! One forwarded connection: a channel on one side, a socket on the other (agent.md §6.6).

use super::{Shared, channels::Lane, session::Output, stats::JETBRAINS};
use crate::{
    agent::jetbrains,
    driver::{
        blocking,
        local::{Place, Socket},
    },
};
use russh::{ChannelOpenFailure, server::ChannelOpenHandle};
use std::{future::pending, io, net::IpAddr, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    runtime::Handle,
};

/// SSH's number for "connect failed".
const CONNECT_FAILED: u32 = 2;

/// The port, if it is one of this machine.
fn local_port(place: &Place) -> Option<u16> {
    match place {
        Place::Tcp { host, port } if matches!(host.as_str(), "127.0.0.1" | "localhost" | "::1") => u16::try_from(*port).ok(),
        _ => None,
    }
}

/// Connects to a place. A socket's path may be a network's, so that a thread waits for it.
async fn reach(shared: &Arc<Shared>, place: &Place) -> io::Result<Socket> {
    let Place::Unix(path) = place else { return place.connect().await };
    let (shared, path, runtime) = (Arc::clone(shared), path.clone(), Handle::current());
    blocking::run(move || runtime.block_on(Place::Unix(shared.path(path)).connect())).await?
}

async fn is_jetbrains(port: u16) -> bool {
    tokio::task::spawn_blocking(move || jetbrains::listens(port)).await.unwrap_or_default()
}

/// The channel of a forwarded connection.
pub(super) struct Forward {
    pub(super) shared: Arc<Shared>,
    pub(super) output: Output,
    pub(super) lane: Lane,
    /// The client's address in the tunnel.
    pub(super) from: Option<IpAddr>,
}

impl Forward {
    /// Connects, answers the client and carries bytes until both directions have ended, each by itself.
    pub(super) async fn connect(self, target: Place, reply: ChannelOpenHandle) {
        let connected = tokio::select! {
            connected = reach(&self.shared, &target) => connected,
            () = self.lane.gone.cancelled() => return,
            () = self.shared.stop.cancelled() => return,
        };
        match connected {
            Ok(socket) => {
                reply.accept().await;
                let (shared, from) = (Arc::clone(&self.shared), self.from);
                // The look takes a moment, in which bytes flow already.
                let counted = async {
                    let _session = match local_port(&target) {
                        Some(port) if is_jetbrains(port).await => shared.stats.count(JETBRAINS, from),
                        _ => return pending::<()>().await,
                    };
                    pending().await
                };
                tokio::select! { () = self.carry(socket) => {} () = counted => {} }
            }
            Err(error) => {
                tracing::debug!(?target, %error, "forward refused");
                let reason = error.to_string();
                reply.reject(ChannelOpenFailure::Other { code: CONNECT_FAILED, reason }).await;
                self.lane.gone.cancel();
            }
        }
    }

    /// Carries bytes until both directions have ended, each by itself.
    pub(super) async fn carry(self, socket: Socket) {
        tokio::select! {
            () = self.exchange(socket) => {}
            () = self.lane.given_up() => {}
            () = self.shared.stop.cancelled() => {}
        }
        if !self.lane.gone.is_cancelled() {
            // At once: with `ssh -W` the client waits for this.
            self.output.close().await;
        }
        self.lane.gone.cancel();
    }

    async fn exchange(&self, socket: Socket) {
        self.shared.stats.forward();
        let (reader, writer) = socket.into_split();
        self.copy(reader, writer).await;
    }

    async fn copy(&self, reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin) {
        let input = &self.lane.input;
        let up = async {
            while let Some(data) = input.next().await {
                self.shared.stats.received(data.len());
                if writer.write_all(&data).await.is_err() {
                    return input.discard();
                }
            }
            let _ = writer.shutdown().await;
        };
        let down = async {
            let whole = tokio::select! {
                whole = self.output.copy(reader, None, &self.shared) => whole,
                // Nobody hears any more, but what was sent is still delivered.
                () = self.lane.gone.cancelled() => return,
            };
            self.output.finish().await;
            if !whole {
                // Reset: nothing more can be delivered either.
                input.finish();
                input.discard();
            }
        };
        tokio::join!(up, down);
    }
}
