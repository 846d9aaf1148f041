//! How long to wait before dialling again.

use crate::base::Rng;
use std::time::Duration;

/// Doubling waits with jitter, for control sockets and agent rounds.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits from `first`, doubling up to `most`.
    #[must_use]
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// Between dials of the control socket: 50 ms to 10 s (`coordination.md` §12).
    #[must_use]
    pub const fn control() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(10))
    }

    /// Between rounds of an agent: 100 ms to 10 s (`agent.md` §4).
    #[must_use]
    pub const fn agent() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }

    /// The next wait, between half and all of the step, so that clients of a restarted server do not come in one wave.
    pub fn next(&mut self, rng: &mut Rng) -> Duration {
        let step = self.next;
        self.next = step.saturating_mul(2).min(self.most);
        rng.between(step / 2, step)
    }

    /// Begins anew, after a dial succeeded.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_limit_and_begin_anew_after_success() {
        let (mut backoff, mut rng) = (Backoff::control(), Rng::from_u64(1));
        let steps: Vec<u64> = [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000].into();
        for step in steps {
            let wait = backoff.next(&mut rng);
            let step = Duration::from_millis(step);
            assert!((step / 2..=step).contains(&wait), "{wait:?} of {step:?}");
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= Duration::from_millis(50));
    }
}
