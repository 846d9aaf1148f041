//! The one source of randomness of the engines.

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::ChaCha12Rng};
use std::{fmt, time::Duration};

/// A seeded ChaCha12 generator. The driver seeds one from the operating system and splits it, one part an engine,
/// so that a draw in one engine never shifts another's.
pub struct Rng(ChaCha12Rng);

impl Rng {
    /// A generator that repeats itself for the same seed.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha12Rng::from_seed(seed))
    }

    /// A generator for tests and the simulator.
    #[must_use]
    pub fn from_u64(seed: u64) -> Self {
        Self(ChaCha12Rng::seed_from_u64(seed))
    }

    /// An independent generator seeded from this one.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self::from_seed(self.bytes())
    }

    /// `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }

    /// A random 32-bit number.
    #[must_use]
    pub fn u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// A random 64-bit number.
    #[must_use]
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `end`, or 0 when `end` is 0.
    #[must_use]
    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.0.random_range(0..end) }
    }

    /// A duration in `low..=high`; `low` when the range is empty.
    #[must_use]
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX - 1);
        low + Duration::from_nanos(self.below(span.saturating_add(1)))
    }

    /// Whether a chance of `p` (0 to 1) came true.
    #[must_use]
    pub fn chance(&mut self, p: f64) -> bool {
        self.0.random::<f64>() < p
    }
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rng(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_repeats_and_a_split_differs() {
        let (mut a, mut b) = (Rng::from_u64(7), Rng::from_u64(7));
        assert_eq!(a.bytes::<16>(), b.bytes::<16>());
        assert_ne!(a.split().u64(), b.u64());
    }

    #[test]
    fn a_range_holds_both_of_its_ends() {
        let mut rng = Rng::from_u64(1);
        let (low, high) = (Duration::from_nanos(3), Duration::from_nanos(5));
        let seen: std::collections::BTreeSet<_> = (0..200).map(|_| rng.between(low, high)).collect();
        assert_eq!(seen.first(), Some(&low));
        assert_eq!(seen.last(), Some(&high));
        assert_eq!(rng.between(high, low), high);
    }
}
