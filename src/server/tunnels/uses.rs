//! Which agents are reached through the server's node, by how many connections, and since when by none.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

/// The uses of one node. They take as much room as agents are reached, however often.
#[derive(Debug, Default)]
pub(super) struct Uses {
    table: Mutex<BTreeMap<Uuid, Use>>,
    /// Rings when one begins or ends.
    pub(super) changed: Notify,
    ended: AtomicBool,
}

/// How an agent is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Use {
    pub(super) open: usize,
    /// Since when nobody uses it.
    pub(super) since: Instant,
}

impl Uses {
    pub(super) fn table(&self) -> MutexGuard<'_, BTreeMap<Uuid, Use>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node has ended.
    pub(super) fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }
}

/// Keeps the tunnel to an agent.
#[derive(Debug)]
pub(super) struct InUse {
    agent: Uuid,
    uses: Arc<Uses>,
}

impl InUse {
    pub(super) fn begin(uses: &Arc<Uses>, agent: Uuid) -> Self {
        uses.table().entry(agent).or_insert(Use { open: 0, since: Instant::now() }).open += 1;
        uses.changed.notify_one();
        Self { agent, uses: Arc::clone(uses) }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(used) = self.uses.table().get_mut(&self.agent) {
            *used = Use { open: used.open.saturating_sub(1), since: Instant::now() };
        }
        self.uses.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn uses_take_one_place_for_each_agent_however_many_begin_and_end() {
        let uses = Arc::new(Uses::default());
        let held: Vec<_> = (0..1000).map(|_| InUse::begin(&uses, Uuid::nil())).collect();
        for _ in 0..1000 {
            drop(InUse::begin(&uses, Uuid::max()));
        }
        let open = |agent| uses.table().get(&agent).map(|used| used.open);
        assert_eq!((open(Uuid::nil()), open(Uuid::max())), (Some(1000), Some(0)));
        assert_eq!(uses.table().len(), 2);
        drop(held);
        assert_eq!(open(Uuid::nil()), Some(0));
    }
}
