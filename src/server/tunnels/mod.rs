//! The server as a node of its own network: how it reaches agents for web terminals and for what it asks them
//! (`coordination.md` §17.5).
//!
//! There is one node, made when an agent is dialled first. It reaches the embedded relay over loopback and speaks to the
//! coordinator inside the process, to which it may say anything. A tunnel to an agent that nobody used for half an hour
//! is taken back, and with the last one the node ends.

mod http;
mod node;
mod uses;

pub(crate) use http::{AskError, get};

use super::app::App;
use crate::{
    base::agent_addresses,
    net::{DialError, Stream, Tailnet},
};
use std::{
    io,
    net::SocketAddrV6,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Mutex,
};
use uses::{InUse, Uses};
use uuid::Uuid;

/// How long a dial may take, the node's own start included.
const DIAL: Duration = Duration::from_secs(30);

/// The server's way to agents.
#[derive(Debug, Default)]
pub(crate) struct Tunnels(Mutex<Option<Running>>);

/// The node while it runs.
#[derive(Debug)]
struct Running {
    tailnet: Tailnet,
    uses: Arc<Uses>,
}

/// Why an agent is not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReachError {
    /// Our own node does not start.
    #[error("the server's own node does not start: {0}")]
    Node(#[from] io::Error),
    /// The agent is not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
}

impl Tunnels {
    /// Connects to a port of an agent. The caller has checked that its user may.
    pub(crate) async fn dial(&self, app: &App, agent: Uuid, port: u16) -> Result<Reached, ReachError> {
        let (tailnet, used) = {
            let mut running = self.0.lock().await;
            if running.as_ref().is_none_or(|running| running.uses.has_ended()) {
                *running = Some(node::start(app).await?);
            }
            let Some(Running { tailnet, uses }) = running.as_ref() else { return Err(DialError::Closed.into()) };
            // Begun under the lock: the node's task looks once more before it ends.
            (tailnet.clone(), InUse::begin(uses, agent))
        };
        let [address, _] = agent_addresses(agent);
        let stream = tailnet.dial_tcp_within(SocketAddrV6::new(address, port, 0, 0), DIAL).await?;
        Ok(Reached { stream, _used: used })
    }

    #[cfg(test)]
    pub(super) async fn has_node(&self) -> bool {
        self.0.lock().await.is_some()
    }
}

/// A connection to an agent.
#[derive(Debug)]
pub(crate) struct Reached {
    stream: Stream,
    _used: InUse,
}

impl AsyncRead for Reached {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Reached {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
