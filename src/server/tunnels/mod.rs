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
    time::{Instant, timeout_at},
};
use uses::{InUse, Uses};
use uuid::Uuid;

/// How long a dial may take, the node's own start included; what is left after that is rounded up to a second.
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
    ///
    /// # Errors
    /// When the node does not start or the agent is not reached within [`DIAL`].
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection up.
    pub(crate) async fn dial(&self, app: &App, agent: Uuid, port: u16) -> Result<Reached, ReachError> {
        let until = Instant::now() + DIAL;
        // Whoever holds the lock may be starting the node, too.
        let node = timeout_at(until, self.node(app, agent)).await;
        let (tailnet, used) = node.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))?;
        let left = until.saturating_duration_since(Instant::now());
        // In whole seconds, for it stands in what people read.
        let left = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
        let [address, _] = agent_addresses(agent);
        let stream = tailnet.dial_tcp_within(SocketAddrV6::new(address, port, 0, 0), left).await?;
        Ok(Reached { stream, _used: used })
    }

    /// The node, started where it does not run, and the use of an agent noted with it.
    async fn node(&self, app: &App, agent: Uuid) -> Result<(Tailnet, InUse), ReachError> {
        let mut running = self.0.lock().await;
        if running.as_ref().is_none_or(|running| running.uses.has_ended()) {
            *running = Some(node::start(app).await?);
        }
        let Some(Running { tailnet, uses }) = running.as_ref() else { return Err(DialError::Closed.into()) };
        // Begun under the lock: the node's task looks once more before it ends.
        Ok((tailnet.clone(), InUse::begin(uses, agent)))
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

#[cfg(test)]
mod tests {
    use super::{
        super::{serve, tests::config},
        *,
    };
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_dial_that_waits_for_the_nodes_start_ends_when_its_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let running = serve(config(folder.path())).await.unwrap();
        let app = &running.app;
        let starting = app.tunnels().0.lock().await;
        tokio::time::pause();
        let begun = Instant::now();
        let dialled = timeout(2 * DIAL, app.tunnels().dial(app, Uuid::nil(), 4)).await.expect("it waits on");
        let took = begun.elapsed();
        tokio::time::resume();
        assert!(matches!(dialled, Err(ReachError::Node(error)) if error.kind() == io::ErrorKind::TimedOut));
        assert!(took >= DIAL && took < DIAL + Duration::from_secs(1), "{took:?}");
        drop(starting);
        running.shutdown().await;
    }
}
