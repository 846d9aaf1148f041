//! Reports on their way to the server: one by one, in order, across connections.

use super::calls::{AskError, Calls, ask};
use crate::proto::coord::CallError;
use prost::Message;
use std::{collections::VecDeque, convert::Infallible};
use tokio::sync::watch;

/// Most reports that wait (agent.md §3.3).
const ROOM: usize = 2048;

/// Reports of one kind that the server has not taken yet. They outlive connections.
#[derive(Debug)]
pub(crate) struct Outbox<M> {
    path: &'static str,
    waiting: watch::Sender<VecDeque<M>>,
}

impl<M: Message + Clone> Outbox<M> {
    /// For the call `path`.
    pub(crate) fn new(path: &'static str) -> Self {
        Self { path, waiting: watch::Sender::new(VecDeque::new()) }
    }

    /// Adds a report; one too many is dropped.
    pub(crate) fn put(&self, report: M) {
        self.waiting.send_if_modified(|waiting| {
            let fits = waiting.len() < ROOM;
            if fits {
                waiting.push_back(report);
            } else {
                tracing::warn!(path = self.path, "a report is dropped: {ROOM} wait for the server already");
            }
            fits
        });
    }

    /// Sends what waits and what comes, until the connection fails. What the server refuses is dropped: it would refuse it
    /// again, and old servers do not know every call.
    pub(crate) async fn send(&self, server: &impl Calls) -> Result<Infallible, AskError> {
        let mut waiting = self.waiting.subscribe();
        loop {
            let next = waiting.borrow_and_update().front().cloned();
            let Some(next) = next else {
                // The sender is ours and lives as long as this call.
                let _ = waiting.changed().await;
                continue;
            };
            match ask::<()>(server, self.path, &next).await {
                Ok(()) => {}
                Err(AskError::Call { why: CallError::Rpc(error), .. }) => {
                    tracing::debug!(path = self.path, %error, "the server takes no such report");
                }
                Err(error) => return Err(error),
            }
            self.waiting.send_modify(|waiting| {
                waiting.pop_front();
            });
        }
    }

    /// What waits now.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> Vec<M> {
        self.waiting.borrow().iter().cloned().collect()
    }

    /// Waits until nothing waits.
    pub(crate) async fn sent(&self) {
        let _ = self.waiting.subscribe().wait_for(VecDeque::is_empty).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::calls::fake::Fake, *};
    use crate::wire::coord::{
        agent::{Connection, REPORT_CONNECTION, ReportConnectionRequest},
        drpc::RpcError,
    };

    fn report(ip: &str) -> ReportConnectionRequest {
        ReportConnectionRequest { connection: Some(Connection { ip: ip.into(), ..Connection::default() }) }
    }

    #[tokio::test]
    async fn reports_outlive_a_connection_and_a_refused_one_does_not_hold_up_the_rest() {
        let outbox = Outbox::new(REPORT_CONNECTION);
        for ip in ["a", "b", "c"] {
            outbox.put(report(ip));
        }
        let gone = Fake::new(|_, _: &[u8]| Err(CallError::Closed));
        outbox.send(&gone).await.unwrap_err();
        let picky = Fake::new(|_, body: &[u8]| {
            let asked = ReportConnectionRequest::decode(body).unwrap();
            if asked == report("b") { Err(RpcError::plain("no").into()) } else { Ok(Vec::new()) }
        });
        tokio::select! { biased; () = outbox.sent() => {} _ = outbox.send(&picky) => panic!("no connection failed") }
        let asked = picky.asked::<ReportConnectionRequest>(REPORT_CONNECTION);
        assert_eq!(asked, [report("a"), report("b"), report("c")]);
    }

    #[test]
    fn the_box_has_a_bottom() {
        let outbox = Outbox::new(REPORT_CONNECTION);
        for _ in 0..ROOM + 10 {
            outbox.put(report("a"));
        }
        assert_eq!(outbox.waiting.borrow().len(), ROOM);
    }
}
