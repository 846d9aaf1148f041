//! One deadline per flow, the earliest first: a binary heap that knows where each flow stands in it.
//!
//! Setting, moving and clearing a deadline is O(log n) and allocates only when more flows than ever have one.

use crate::base::Instant;

/// Marks a slot without deadline.
const ABSENT: u32 = u32::MAX;

/// Deadlines of flows by slot.
#[derive(Debug, Default)]
pub(super) struct TimerQueue {
    heap: Vec<(Instant, u32)>,
    /// Place in the heap by slot.
    place: Vec<u32>,
}

impl TimerQueue {
    /// Sets, moves or clears the deadline of `slot`.
    pub(super) fn set(&mut self, slot: u32, at: Option<Instant>) {
        let index = slot as usize;
        if self.place.len() <= index {
            if at.is_none() {
                return;
            }
            self.place.resize(index + 1, ABSENT);
        }
        let place = self.place.get(index).copied().unwrap_or(ABSENT);
        match (at, place) {
            (None, ABSENT) => {}
            (None, place) => self.remove(place as usize),
            (Some(at), ABSENT) => {
                self.heap.push((at, slot));
                self.note(self.heap.len() - 1);
                self.rise(self.heap.len() - 1);
            }
            (Some(at), place) => {
                let place = place as usize;
                if let Some(entry) = self.heap.get_mut(place) {
                    entry.0 = at;
                }
                self.rise(place);
                self.sink(place);
            }
        }
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|(at, _)| *at)
    }

    /// Takes out a slot whose deadline has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let (at, slot) = *self.heap.first()?;
        if at > now {
            return None;
        }
        self.remove(0);
        Some(slot)
    }

    fn remove(&mut self, at: usize) {
        let last = self.heap.len().saturating_sub(1);
        if let Some((_, slot)) = self.heap.get(at)
            && let Some(place) = self.place.get_mut(*slot as usize)
        {
            *place = ABSENT;
        }
        if at >= self.heap.len() {
            return;
        }
        self.heap.swap_remove(at);
        if at < last {
            self.note(at);
            self.rise(at);
            self.sink(at);
        }
    }

    /// Writes down where the entry at `at` stands.
    fn note(&mut self, at: usize) {
        if let Some((_, slot)) = self.heap.get(at)
            && let Some(place) = self.place.get_mut(*slot as usize)
        {
            *place = at as u32;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.note(a);
        self.note(b);
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap.get(parent) <= self.heap.get(at) {
                break;
            }
            self.swap(at, parent);
            at = parent;
        }
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let Some(child) = self.heap.get(left) else { break };
            let smaller = match self.heap.get(right) {
                Some(other) if other < child => right,
                _ => left,
            };
            if self.heap.get(at) <= self.heap.get(smaller) {
                break;
            }
            self.swap(at, smaller);
            at = smaller;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use std::collections::BTreeMap;

    #[test]
    fn slots_come_out_in_the_order_of_their_latest_deadline() {
        let mut rng = Rng::from_u64(11);
        let (mut queue, mut model) = (TimerQueue::default(), BTreeMap::new());
        for _ in 0..20_000 {
            let slot = rng.below(40) as u32;
            let at = rng.chance(0.7).then(|| Instant::from_nanos(rng.below(1_000)));
            queue.set(slot, at);
            match at {
                Some(at) => _ = model.insert(slot, at),
                None => _ = model.remove(&slot),
            }
            assert_eq!(queue.next(), model.values().min().copied());
            if rng.chance(0.1) {
                let now = Instant::from_nanos(rng.below(500));
                while let Some(slot) = queue.pop_due(now) {
                    let at = model.remove(&slot).expect("only slots with a deadline come out");
                    assert!(at <= now && model.values().all(|other| *other >= at));
                }
                assert!(model.values().all(|at| *at > now));
            }
        }
    }
}
