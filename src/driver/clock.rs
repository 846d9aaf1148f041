//! The only place that reads a clock, and the entropy that seeds every generator.
//!
//! [`now`] counts time spent suspended, so that sessions and paths look as old as they are after a lid was closed.
//! Timers of the runtime do not count it: a sleeper woken late sees the true time and runs what is overdue.

use crate::base::{Instant, Rng, WallTime};
use std::time::Duration;

/// The present on a monotonic clock that counts suspend.
#[cfg(unix)]
#[must_use]
pub fn now() -> Instant {
    // Darwin's monotonic clock counts sleep already.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let t = rustix::time::clock_gettime(CLOCK);
    let seconds = u64::try_from(t.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(t.tv_nsec).unwrap_or_default();
    Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The present on the monotonic clock of the platform.
#[cfg(not(unix))]
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub fn now() -> Instant {
    use std::sync::OnceLock;
    static ORIGIN: OnceLock<std::time::Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(std::time::Instant::now);
    // One second after zero, so that "a moment ago" can be expressed.
    Instant::from_nanos(1_000_000_000) + origin.elapsed()
}

/// The present as a date.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub fn wall() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    WallTime::from_unix(since.unwrap_or_default())
}

/// Sleeps until `at` on the clock of [`now`]; returns at once when it has passed.
///
/// # Cancel safety
/// Dropping the future only ends the wait.
pub async fn sleep_until(at: Instant) {
    tokio::time::sleep(at - now()).await;
}

/// The moment of tokio's clock that lies as far ahead as `at` does on ours.
pub(super) fn timer(now: Instant, at: Instant) -> tokio::time::Instant {
    // A year bounds what the timer wheel is asked for.
    const FAR: Duration = Duration::from_secs(365 * 86_400);
    tokio::time::Instant::now() + (at - now).min(FAR)
}

/// A generator seeded by the operating system.
///
/// # Errors
/// When the system has no randomness to give: nothing secret may be made then.
pub fn random() -> std::io::Result<Rng> {
    use ring::rand::{SecureRandom as _, SystemRandom};
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| std::io::Error::other("the system gave no randomness"))?;
    Ok(Rng::from_seed(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_forward_and_two_generators_differ() {
        let a = now();
        assert!(a > Instant::ZERO);
        assert!(now() >= a);
        assert!(wall().since_unix() > Duration::from_secs(1_700_000_000));
        assert_ne!(random().unwrap().u64(), random().unwrap().u64());
    }
}
