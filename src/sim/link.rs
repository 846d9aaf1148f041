//! One direction of an access link: latency, jitter, loss, reordering, rate with a queue, and an MTU.

use crate::base::{Instant, Rng};
use std::time::Duration;

/// How a link treats packets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// One-way delay.
    pub latency: Duration,
    /// Up to this much more, drawn for each packet; order is kept.
    pub jitter: Duration,
    /// Chance that a packet vanishes.
    pub loss: f64,
    /// Chance that a packet is overtaken by later ones.
    pub reorder: f64,
    /// Largest IP packet in bytes; longer ones vanish.
    pub mtu: usize,
    /// Bytes a second, `None` for no limit.
    pub rate: Option<u64>,
    /// Bytes that wait for a limited link before it drops.
    pub queue_bytes: u64,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(5),
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            mtu: 1_500,
            rate: None,
            queue_bytes: 256 << 10,
        }
    }
}

impl Conditions {
    /// A clean link of this one-way delay.
    #[must_use]
    pub fn with_latency(latency: Duration) -> Self {
        Self { latency, ..Self::default() }
    }
}

/// Why a packet did not pass a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    Chance,
    TooLong,
    QueueFull,
}

/// How much later a reordered packet comes.
const OVERTAKEN_BY: Duration = Duration::from_millis(8);

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) conditions: Conditions,
    /// When the last byte accepted so far has left.
    busy_until: Instant,
    /// Arrival of the last packet that kept its place.
    last_arrival: Instant,
}

impl Link {
    pub(crate) const fn new(conditions: Conditions) -> Self {
        Self { conditions, busy_until: Instant::ZERO, last_arrival: Instant::ZERO }
    }

    /// When an IP packet of `len` bytes sent now arrives.
    pub(crate) fn carry(&mut self, now: Instant, len: usize, rng: &mut Rng) -> Result<Instant, Lost> {
        let c = self.conditions;
        if len > c.mtu {
            return Err(Lost::TooLong);
        }
        let sent = match c.rate {
            None => now,
            Some(rate) => {
                let waiting = (self.busy_until - now).as_secs_f64() * precise(rate);
                if waiting + precise(len as u64) > precise(c.queue_bytes) {
                    return Err(Lost::QueueFull);
                }
                self.occupy(now, len, rate)
            }
        };
        if c.loss > 0.0 && rng.chance(c.loss) {
            return Err(Lost::Chance);
        }
        let arrival = sent + c.latency + rng.between(Duration::ZERO, c.jitter);
        if c.reorder > 0.0 && rng.chance(c.reorder) {
            return Ok(arrival + OVERTAKEN_BY);
        }
        self.last_arrival = self.last_arrival.max(arrival);
        Ok(self.last_arrival)
    }

    /// When `len` bytes of a reliable stream sent now arrive. A loss costs the stream's retransmission timeout.
    pub(crate) fn carry_stream(&mut self, now: Instant, len: usize, rng: &mut Rng) -> Instant {
        let c = self.conditions;
        let sent = match c.rate {
            None => now,
            Some(rate) => self.occupy(now, len, rate),
        };
        let mut arrival = sent + c.latency + rng.between(Duration::ZERO, c.jitter);
        if c.loss > 0.0 && rng.chance(c.loss) {
            arrival += STREAM_RETRANSMISSION;
        }
        arrival
    }

    fn occupy(&mut self, now: Instant, len: usize, rate: u64) -> Instant {
        let time = Duration::from_secs_f64(precise(len as u64) / precise(rate.max(1)));
        self.busy_until = self.busy_until.max(now) + time;
        self.busy_until
    }
}

/// What a kernel's TCP adds to a segment that it had to send twice: its least retransmission timeout.
const STREAM_RETRANSMISSION: Duration = Duration::from_millis(200);

#[expect(clippy::cast_precision_loss, reason = "rates and queues of a simulated link lie far below 2^52")]
const fn precise(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_link_spaces_packets_and_drops_beyond_its_queue() {
        let mut rng = Rng::from_u64(1);
        let mut link = Link::new(Conditions { rate: Some(100_000), queue_bytes: 2_500, ..Conditions::default() });
        let at = |link: &mut Link, rng: &mut Rng| link.carry(Instant::ZERO, 1_000, rng);
        assert_eq!(at(&mut link, &mut rng), Ok(Instant::ZERO + Duration::from_millis(15)));
        assert_eq!(at(&mut link, &mut rng), Ok(Instant::ZERO + Duration::from_millis(25)));
        assert_eq!(at(&mut link, &mut rng), Err(Lost::QueueFull));
    }

    #[test]
    fn jitter_keeps_the_order_and_the_mtu_holds() {
        let mut rng = Rng::from_u64(1);
        let mut link = Link::new(Conditions { jitter: Duration::from_millis(20), ..Conditions::default() });
        let mut last = Instant::ZERO;
        for i in 0..1_000 {
            let arrival = link.carry(Instant::from_nanos(i * 10_000), 100, &mut rng).unwrap();
            assert!(arrival >= last);
            last = arrival;
        }
        assert_eq!(link.carry(last, 1_501, &mut rng), Err(Lost::TooLong));
    }
}
