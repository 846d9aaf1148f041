//! Points in wall-clock time as the store keeps them and the API shows them.

use crate::driver::clock;
use serde::{Serialize, Serializer};
use std::{fmt, ops::Add, time::Duration};

/// Microseconds since 1970-01-01T00:00:00Z: the precision that the API's times have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Stamp(i64);

impl Stamp {
    /// The zero time of the Go API, `0001-01-01T00:00:00Z`: never.
    pub(crate) const NEVER: Self = Self(-62_135_596_800_000_000);

    /// The present.
    pub(crate) fn now() -> Self {
        Self(i64::try_from(clock::wall().since_unix().as_micros()).unwrap_or(i64::MAX))
    }

    /// The store's form.
    pub(crate) const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The store's form.
    pub(crate) const fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch.
    pub(crate) const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// From the seconds and nanoseconds of a protobuf timestamp; `None` beyond the calendar.
    pub(crate) fn from_proto(seconds: i64, nanos: i32) -> Option<Self> {
        jiff::Timestamp::new(seconds, nanos).ok().map(|t| Self(t.as_microsecond()))
    }

    /// The time from `earlier` to `self`, zero if `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Add<Duration> for Stamp {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => fmt::Display::fmt(&time, f),
            // Later than the calendar reaches: a lifetime that was meant as "for ever".
            Err(_) => f.write_str("9999-12-30T22:00:00Z"),
        }
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(Stamp::NEVER.to_string(), "0001-01-01T00:00:00Z");
        assert_eq!(Stamp::from_micros(1_700_000_000_123_456).to_string(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(Stamp::from_micros(i64::MAX).to_string(), "9999-12-30T22:00:00Z");
    }

    #[test]
    fn time_never_runs_backwards() {
        let (early, late) = (Stamp::from_micros(5), Stamp::from_micros(9));
        assert_eq!(late.since(early), Duration::from_micros(4));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
