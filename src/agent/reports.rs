//! Everything that the agent has to tell the server of itself. It outlives connections.

use super::{
    calls::{AskError, Calls},
    connections::Connections,
    lifecycle::Lifecycles,
    logs::Logs,
    outbox::Outbox,
};
use crate::wire::coord::agent::{REPORT_CONNECTION, SCRIPT_COMPLETED, ScriptCompletedRequest};
use std::{convert::Infallible, sync::Arc};

/// What waits for the server. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    pub(crate) lifecycles: Arc<Lifecycles>,
    pub(crate) logs: Logs,
    pub(crate) scripts: Arc<Outbox<ScriptCompletedRequest>>,
    pub(crate) connections: Connections,
}

impl Reports {
    pub(crate) fn new() -> Self {
        Self {
            lifecycles: Arc::new(Lifecycles::new()),
            logs: Logs::default(),
            scripts: Arc::new(Outbox::new(SCRIPT_COMPLETED)),
            connections: Connections(Arc::new(Outbox::new(REPORT_CONNECTION))),
        }
    }

    /// Sends what waits and what comes, until the connection fails.
    pub(crate) async fn send(&self, server: &impl Calls) -> Result<Infallible, AskError> {
        tokio::select! {
            ended = self.lifecycles.report(server) => ended,
            ended = self.logs.send(server) => ended,
            ended = self.scripts.send(server) => ended,
            ended = self.connections.0.send(server) => ended,
        }
    }

    /// Waits until the server has everything.
    pub(crate) async fn sent(&self) {
        tokio::join!(self.lifecycles.reported(), self.logs.flushed(), self.scripts.sent(), self.connections.0.sent());
    }
}
