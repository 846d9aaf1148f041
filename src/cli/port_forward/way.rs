//! The way to the agent as it is now, for connections that begin.

use crate::{
    cli::{connect::Tunnel, output},
    driver::clock,
    net::{DialError, PingError, Stream},
};
use std::{
    net::{Ipv6Addr, SocketAddrV6},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::sleep};

/// How long a new connection waits for an agent that is away to come back.
const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// Between two attempts of it.
const PAUSE: Duration = Duration::from_millis(200);
/// After this time a person is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one round of looking for the agent lasts afterwards.
const ROUND: Duration = Duration::from_secs(30);

/// The tunnel to the workspace's agent, which is another one after a new build.
#[derive(Debug)]
pub(super) struct Way(watch::Sender<Arc<Tunnel>>);

impl Way {
    pub(super) fn new(tunnel: Tunnel) -> Self {
        Self(watch::Sender::new(Arc::new(tunnel)))
    }

    /// The tunnel as it is now. Whoever holds it keeps it open.
    pub(super) fn tunnel(&self) -> Arc<Tunnel> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits until new connections take another tunnel.
    pub(super) async fn replaced(&self) {
        // An error means that this is gone, and it is not.
        let _ = self.0.subscribe().changed().await;
    }

    /// New connections take another tunnel.
    pub(super) fn replace(&self, tunnel: Tunnel) {
        self.0.send_replace(Arc::new(tunnel));
    }

    /// Connects to a port of the workspace. While the agent is away, the connection waits for it.
    ///
    /// # Errors
    /// When nothing listens there, or the agent is not back in time.
    pub(super) async fn dial(&self, port: u16) -> Result<(Stream, Arc<Tunnel>), DialError> {
        let end = clock::now() + DIAL_LIMIT;
        let mut tunnels = self.0.subscribe();
        loop {
            let tunnel = Arc::clone(&tunnels.borrow_and_update());
            let dialled = tokio::select! {
                dialled = tunnel.tailnet.dial_tcp_within(to(tunnel.address, port), end - clock::now()) => dialled,
                Ok(()) = tunnels.changed() => continue,
            };
            let error = match dialled {
                Ok(stream) => return Ok((stream, tunnel)),
                Err(error) => error,
            };
            // It went away meanwhile, or another process has taken its place.
            let may_return = matches!(error, DialError::PeerGone | DialError::NoAnswer { .. } | DialError::Unreachable { .. });
            if !may_return || end - clock::now() <= PAUSE {
                return Err(error);
            }
            sleep(PAUSE).await;
        }
    }
}

/// A port of the agent.
pub(super) const fn to(agent: Ipv6Addr, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(agent, port, 0, 0)
}

/// Why there is no connection, for a person.
pub(super) fn explain(error: DialError) -> String {
    let limit = DIAL_LIMIT.as_secs();
    match error {
        DialError::Refused(port) => format!("nothing listens on port {port} there"),
        DialError::UnknownPeer { .. } | DialError::Unreachable { .. } | DialError::PeerGone => {
            format!("the agent did not come back within {limit} s")
        }
        DialError::NoAnswer { .. } => format!("the agent did not answer within {limit} s"),
        other => other.to_string(),
    }
}

/// Waits until the agent answers, and says so if that takes long.
pub(super) async fn reach(tunnel: &Tunnel) {
    let mut limit = PATIENCE;
    loop {
        match tunnel.tailnet.wait_reachable(tunnel.address, limit).await {
            Ok(_) => return,
            Err(PingError::Closed) => return std::future::pending().await,
            Err(_) if limit == PATIENCE => output::note(&format!("Waiting for the agent of {} to answer …", tunnel.name)),
            Err(_) => {}
        }
        limit = ROUND;
    }
}
