//! Who came and left: one report at the beginning and one at the end of each session (agent.md §3.3).

use super::{calls::timestamp, outbox::Outbox};
use crate::{
    driver::clock,
    wire::coord::agent::{Connection, ConnectionAction, ConnectionType, ReportConnectionRequest},
};
use std::{net::IpAddr, sync::Arc};
use uuid::Uuid;

/// The reports of sessions. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Connections(pub(crate) Arc<Outbox<ReportConnectionRequest>>);

/// A session that is reported as ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Visit {
    connections: Connections,
    begun: Connection,
    /// Exit status and reason of its end.
    end: Option<(i32, String)>,
}

impl Connections {
    /// Reports the beginning of a session of this kind of client.
    pub(crate) fn begin(&self, kind: &str, from: Option<IpAddr>) -> Visit {
        let of_kind = match kind {
            "vscode" => ConnectionType::Vscode,
            "jetbrains" => ConnectionType::Jetbrains,
            "reconnecting_pty" => ConnectionType::ReconnectingPty,
            // Old servers refuse a report without a type; new ones read the name.
            _ => ConnectionType::Ssh,
        };
        let begun = Connection {
            id: Uuid::new_v4().as_bytes().to_vec(),
            action: ConnectionAction::Connect.into(),
            r#type: of_kind.into(),
            timestamp: Some(timestamp(clock::wall())),
            ip: from.map(|ip| ip.to_string()).unwrap_or_default(),
            status_code: 0,
            reason: None,
            app_name: kind.to_owned(),
        };
        self.0.put(ReportConnectionRequest { connection: Some(begun.clone()) });
        Visit { connections: self.clone(), begun, end: None }
    }
}

impl Visit {
    /// How it ended; the first word counts.
    pub(crate) fn ended(&mut self, status: i32, reason: &str) {
        self.end.get_or_insert_with(|| (status, reason.to_owned()));
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let (status_code, reason) = self.end.take().unwrap_or_default();
        let ended = Connection {
            action: ConnectionAction::Disconnect.into(),
            timestamp: Some(timestamp(clock::wall())),
            status_code,
            reason: (!reason.is_empty()).then_some(reason),
            ..self.begun.clone()
        };
        self.connections.0.put(ReportConnectionRequest { connection: Some(ended) });
    }
}
