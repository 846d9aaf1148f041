//! Timers of many keys, cheap to move with every packet. The flows of a netstack, which must not allocate and whose keys are
//! small numbers, have an indexed heap of their own.

use super::Instant;
use std::collections::BTreeSet;

/// At most one entry a key, never later than the key's next deadline but sometimes earlier.
///
/// A deadline that moves away with every packet would cost a tree operation each time. So an entry that has become too
/// early stays: its key is called once for nothing and then entered anew.
#[derive(Debug)]
pub struct Timers<K> {
    entries: BTreeSet<(Instant, K)>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { entries: BTreeSet::new() }
    }
}

impl<K: Copy + Ord> Timers<K> {
    /// Makes sure that `key` is popped no later than at `due`. `entry` is the key's memory of its place in here.
    pub fn schedule(&mut self, key: K, entry: &mut Option<Instant>, due: Option<Instant>) {
        let Some(due) = due else { return };
        if entry.is_some_and(|at| at <= due) {
            return;
        }
        if let Some(at) = entry.replace(due) {
            self.entries.remove(&(at, key));
        }
        self.entries.insert((due, key));
    }

    /// Forgets a key that goes away with its memory.
    pub fn remove(&mut self, key: K, entry: Option<Instant>) {
        if let Some(at) = entry {
            self.entries.remove(&(at, key));
        }
    }

    /// The next key whose time has come. The caller clears its memory and schedules it again.
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        let &(at, key) = self.entries.first().filter(|(at, _)| *at <= now)?;
        self.entries.remove(&(at, key));
        Some(key)
    }

    /// The earliest entry.
    #[must_use]
    pub fn first(&self) -> Option<(Instant, K)> {
        self.entries.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_moves_forward_but_never_back() {
        let (early, late) = (Instant::from_nanos(5), Instant::from_nanos(9));
        let mut queue = Timers::default();
        let mut entry = None;
        queue.schedule('a', &mut entry, Some(late));
        queue.schedule('a', &mut entry, Some(early));
        queue.schedule('a', &mut entry, Some(late));
        queue.schedule('a', &mut entry, None);
        assert_eq!((entry, queue.first()), (Some(early), Some((early, 'a'))));
        assert_eq!(queue.pop(Instant::from_nanos(4)), None);
        assert_eq!(queue.pop(early), Some('a'));
        assert_eq!(queue.first(), None);
    }

    #[test]
    fn a_removed_key_is_not_popped() {
        let mut queue = Timers::default();
        let (mut a, mut b) = (None, None);
        queue.schedule('a', &mut a, Some(Instant::ZERO));
        queue.schedule('b', &mut b, Some(Instant::ZERO));
        queue.remove('a', a);
        assert_eq!((queue.pop(Instant::ZERO), queue.pop(Instant::ZERO)), (Some('b'), None));
    }
}
