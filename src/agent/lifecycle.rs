//! The agent's lifecycle states on their way to the server: one by one, in order, none left out (agent.md §3.2).

use super::calls::{AskError, Calls, ask, timestamp};
use crate::{
    base::WallTime,
    wire::coord::agent::{Lifecycle, LifecycleState, UPDATE_LIFECYCLE, UpdateLifecycleRequest},
};
use std::{collections::VecDeque, convert::Infallible};
use tokio::sync::watch;

/// States that the server has not confirmed yet. It outlives connections.
#[derive(Debug)]
pub(crate) struct Lifecycles {
    waiting: watch::Sender<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    states: VecDeque<(LifecycleState, WallTime)>,
    /// The last one that the server has confirmed.
    told: Option<(LifecycleState, WallTime)>,
}

impl Lifecycles {
    pub(crate) fn new() -> Self {
        Self { waiting: watch::Sender::default() }
    }

    /// Enters a state.
    pub(crate) fn enter(&self, state: LifecycleState, at: WallTime) {
        tracing::debug!(?state, "lifecycle");
        self.waiting.send_modify(|waiting| waiting.states.push_back((state, at)));
    }

    /// Tells the last state once more: the server may have heard another one from somebody else.
    pub(crate) fn again(&self) {
        self.waiting.send_modify(|waiting| {
            if waiting.states.is_empty() {
                waiting.states.extend(waiting.told);
            }
        });
    }

    /// Reports what waits and what comes, until a call fails.
    pub(crate) async fn report(&self, server: &impl Calls) -> Result<Infallible, AskError> {
        let mut waiting = self.waiting.subscribe();
        loop {
            let next = waiting.borrow_and_update().states.front().copied();
            let Some((state, at)) = next else {
                // The sender is ours and lives as long as this call.
                let _ = waiting.changed().await;
                continue;
            };
            let lifecycle = Some(Lifecycle { state: state.into(), changed_at: Some(timestamp(at)) });
            ask::<Lifecycle>(server, UPDATE_LIFECYCLE, &UpdateLifecycleRequest { lifecycle }).await?;
            self.waiting.send_modify(|waiting| {
                waiting.told = waiting.states.pop_front();
            });
        }
    }

    /// Waits until the server has confirmed all.
    pub(crate) async fn reported(&self) {
        let _ = self.waiting.subscribe().wait_for(|waiting| waiting.states.is_empty()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::calls::fake::Fake, *};
    use crate::proto::coord::CallError;
    use prost::Message as _;
    use std::time::Duration;

    fn at(seconds: u64) -> WallTime {
        WallTime::from_unix(Duration::from_secs(seconds))
    }

    #[tokio::test]
    async fn every_state_is_reported_once_and_in_order_also_across_a_failure() {
        let states = Lifecycles::new();
        states.enter(LifecycleState::Starting, at(1));
        states.enter(LifecycleState::Ready, at(2));
        let failing = Fake::new(|_, body: &[u8]| {
            let lifecycle = UpdateLifecycleRequest::decode(body).unwrap().lifecycle.unwrap();
            match lifecycle.state() {
                LifecycleState::Ready => Err(CallError::Closed),
                _ => Ok(lifecycle.encode_to_vec()),
            }
        });
        states.report(&failing).await.unwrap_err();
        assert_eq!(failing.asked::<UpdateLifecycleRequest>(UPDATE_LIFECYCLE).len(), 2);

        let working = Fake::new(|_, _: &[u8]| Ok(Vec::new()));
        let more = async {
            states.enter(LifecycleState::ShuttingDown, at(3));
            states.reported().await;
        };
        tokio::select! { biased; () = more => {} _ = states.report(&working) => panic!("no call failed") }
        // Somebody else may have spoken meanwhile.
        states.again();
        let again = async { states.reported().await };
        tokio::select! { biased; () = again => {} _ = states.report(&working) => panic!("no call failed") }
        let reported: Vec<_> = working.asked::<UpdateLifecycleRequest>(UPDATE_LIFECYCLE);
        let reported: Vec<_> =
            reported.iter().map(|r| r.lifecycle.unwrap()).map(|l| (l.state(), l.changed_at.unwrap().seconds)).collect();
        assert_eq!(reported, [(LifecycleState::Ready, 2), (LifecycleState::ShuttingDown, 3), (LifecycleState::ShuttingDown, 3)]);
    }
}
