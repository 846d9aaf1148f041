//! One end of a TCP connection as a program sees it: it writes a pattern and checks the pattern it reads.

use crate::{
    base::{FlowId, Instant},
    proto::node::{DialFailure, DialId, Node},
};

/// One end of a connection in the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamIx(pub(super) usize);

/// What became of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Not connected yet.
    Dialling,
    /// Carries bytes.
    Open,
    /// The dial failed.
    Failed(DialFailure),
    /// The flow has ended for a reason other than our own close.
    Closed,
}

/// After so many bytes the pattern repeats: a prime, so that no segment or buffer size divides it.
const PERIOD: usize = 16_381;
/// Two periods of the pattern, so that any stretch of up to one lies in one piece.
#[expect(clippy::indexing_slicing, reason = "computed by the compiler, which checks it")]
static PATTERN: [u8; 2 * PERIOD] = {
    let mut bytes = [0; 2 * PERIOD];
    let (mut at, mut state) = (0, 1_u32);
    while at < PERIOD {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [.., byte] = state.to_le_bytes();
        bytes[at] = byte;
        bytes[at + PERIOD] = byte;
        at += 1;
    }
    bytes
};

/// The bytes of every simulated stream from one place on, at most a period.
fn pattern(at: u64, len: usize) -> &'static [u8] {
    let start = usize::try_from(at % PERIOD as u64).unwrap_or(0);
    PATTERN.get(start..start + len.min(PERIOD)).unwrap_or(&[])
}

/// State of one end.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) dial: Option<DialId>,
    pub(crate) flow: Option<FlowId>,
    pub(crate) condition: Condition,
    /// When the connection stood.
    pub(crate) opened: Option<Instant>,
    /// When it ended for a reason not its own.
    pub(crate) closed_at: Option<Instant>,
    pub(crate) written: u64,
    /// How much the program wants written in all.
    pub(crate) wanted: u64,
    pub(crate) received: u64,
    pub(crate) intact: bool,
    /// Totals received, each with its time.
    pub(crate) log: Vec<(Instant, u64)>,
    /// Whether it writes back whatever it reads.
    pub(crate) echo: bool,
}

impl Stream {
    pub(crate) const fn dialling(dial: DialId) -> Self {
        Self {
            dial: Some(dial),
            flow: None,
            condition: Condition::Dialling,
            opened: None,
            closed_at: None,
            written: 0,
            wanted: 0,
            received: 0,
            intact: true,
            log: Vec::new(),
            echo: false,
        }
    }

    pub(crate) const fn accepted(now: Instant, flow: FlowId, echo: bool) -> Self {
        Self {
            dial: None,
            flow: Some(flow),
            condition: Condition::Open,
            opened: Some(now),
            closed_at: None,
            written: 0,
            wanted: 0,
            received: 0,
            intact: true,
            log: Vec::new(),
            echo,
        }
    }

    /// Reads all there is and writes what fits; returns whether anything moved.
    pub(crate) fn pump(&mut self, now: Instant, node: &mut Node) -> bool {
        let Some(flow) = self.flow else { return false };
        if self.condition != Condition::Open {
            return false;
        }
        let mut moved = false;
        loop {
            let bytes = node.readable(flow);
            if bytes.is_empty() {
                break;
            }
            let n = bytes.len().min(PERIOD);
            self.intact &= bytes.get(..n) == Some(pattern(self.received, n));
            self.received += n as u64;
            self.log.push((now, self.received));
            node.consume(flow, n);
            if self.echo {
                self.wanted = self.received;
            }
            moved = true;
        }
        while self.written < self.wanted {
            let wanted = usize::try_from(self.wanted - self.written).unwrap_or(usize::MAX);
            let chunk = pattern(self.written, wanted);
            let n = node.write(flow, chunk);
            self.written += n as u64;
            moved |= n > 0;
            if n < chunk.len() {
                break;
            }
        }
        moved
    }

    /// When the `n`th byte had been read.
    pub(crate) fn read_at(&self, n: u64) -> Option<Instant> {
        let place = self.log.partition_point(|(_, total)| *total < n);
        self.log.get(place).map(|(at, _)| *at)
    }
}
