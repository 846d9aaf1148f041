//! Which agents are connected at this moment.

use crate::base::RegionId;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// An agent's round trips to the relays, as its node announced them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Latency {
    /// Its home relay.
    pub(crate) home: Option<RegionId>,
    /// By region.
    pub(crate) seconds: BTreeMap<RegionId, f64>,
}

/// The connected agents by id.
#[derive(Debug, Default)]
pub(crate) struct Agents(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    live: HashMap<Uuid, Live>,
}

#[derive(Debug)]
struct Live {
    number: u64,
    dismissed: CancellationToken,
    replaced: CancellationToken,
    latency: Option<Latency>,
}

/// One agent's being connected. A newer connection of the same agent ends it.
#[derive(Debug, Clone)]
pub(crate) struct Presence {
    agent: Uuid,
    number: u64,
    /// Cancelled when the connection shall end with the workspace.
    pub(crate) dismissed: CancellationToken,
    /// Cancelled when a newer connection stands for the agent: this one shall end, and says nothing of the agent any more.
    pub(crate) replaced: CancellationToken,
}

impl Agents {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new connection and ends the agent's older one.
    pub(crate) fn arrive(&self, agent: Uuid) -> Presence {
        let mut table = self.table();
        table.next += 1;
        let (number, dismissed, replaced) = (table.next, CancellationToken::new(), CancellationToken::new());
        let live = Live { number, dismissed: dismissed.clone(), replaced: replaced.clone(), latency: None };
        if let Some(old) = table.live.insert(agent, live) {
            old.replaced.cancel();
        }
        Presence { agent, number, dismissed, replaced }
    }

    /// Notes the end of a connection; whether the agent is gone with it.
    pub(crate) fn leave(&self, presence: &Presence) -> bool {
        let mut table = self.table();
        let current = table.live.get(&presence.agent).is_some_and(|live| live.number == presence.number);
        if current {
            table.live.remove(&presence.agent);
        }
        current
    }

    /// How many are connected.
    pub(crate) fn count(&self) -> usize {
        self.table().live.len()
    }

    /// Ends the connection of an agent, if it has one.
    pub(crate) fn dismiss(&self, agent: Uuid) {
        if let Some(live) = self.table().live.get(&agent) {
            live.dismissed.cancel();
        }
    }

    /// Notes the latencies that an agent announced.
    pub(crate) fn set_latency(&self, presence: &Presence, latency: Latency) {
        let mut table = self.table();
        if let Some(live) = table.live.get_mut(&presence.agent).filter(|live| live.number == presence.number) {
            live.latency = Some(latency);
        }
    }

    /// The latencies that a connected agent announced.
    pub(crate) fn latency(&self, agent: Uuid) -> Option<Latency> {
        self.table().live.get(&agent)?.latency.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_connection_ends_the_older_one_which_then_takes_nothing_along() {
        let agents = Agents::default();
        let old = agents.arrive(Uuid::nil());
        let new = agents.arrive(Uuid::nil());
        assert!(old.replaced.is_cancelled() && !old.dismissed.is_cancelled() && !new.replaced.is_cancelled());
        agents.set_latency(&old, Latency::default());
        assert_eq!(agents.latency(Uuid::nil()), None);
        assert!(!agents.leave(&old));
        agents.set_latency(&new, Latency::default());
        assert!(agents.latency(Uuid::nil()).is_some());
        assert!(agents.leave(&new));
        assert_eq!(agents.latency(Uuid::nil()), None);
    }

    #[test]
    fn a_dismissed_agent_is_told() {
        let agents = Agents::default();
        let presence = agents.arrive(Uuid::nil());
        agents.dismiss(Uuid::max());
        assert!(!presence.dismissed.is_cancelled());
        agents.dismiss(Uuid::nil());
        assert!(presence.dismissed.is_cancelled());
    }
}
