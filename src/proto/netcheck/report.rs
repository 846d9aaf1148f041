//! What one netcheck has found.

use crate::base::RegionId;
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

/// The state of the network as one netcheck saw it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What made it run.
    pub why: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Our IPv4 address as the first answer tells it.
    pub global_v4: Option<SocketAddr>,
    /// Our IPv6 address as the latest answer tells it.
    pub global_v6: Option<SocketAddr>,
    /// Whether different servers see different addresses of us; unknown with fewer than two answers.
    pub mapping_varies: Option<bool>,
    /// How long each region's relay takes to answer, the latest measurement of five minutes.
    pub relay_latency: BTreeMap<RegionId, Duration>,
    /// The home relay that follows.
    pub home: Option<RegionId>,
}

impl Report {
    /// Whether UDP gets out and back.
    #[must_use]
    pub const fn udp(&self) -> bool {
        self.global_v4.is_some() || self.global_v6.is_some()
    }

    /// The latencies in seconds, named as a node announces them: `999-v4`.
    #[must_use]
    pub fn latency_by_name(&self) -> BTreeMap<String, f64> {
        self.relay_latency.iter().map(|(id, latency)| (format!("{id}-v4"), latency.as_secs_f64())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_named_by_region_and_family() {
        let relay_latency = [(RegionId::new(999).unwrap(), Duration::from_millis(12))].into();
        let report = Report { relay_latency, ..Report::default() };
        assert_eq!(report.latency_by_name(), [("999-v4".to_owned(), 0.012)].into());
    }
}
