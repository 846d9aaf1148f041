//! The packets of the tunnel as records of a capture file, for whoever wants to look at them.

use super::Node;
use crate::{
    base::{Instant, WallTime},
    wire::pcap::{RECORD_HEADER, Way, write_record},
};

/// Records that may wait for the owner. About three milliseconds of the fastest transfer's worth a turn, so that a
/// writer to a disk may fall behind by a hundred turns.
const LIMIT: usize = 16 << 20;

/// What has been captured and not yet taken.
#[derive(Debug)]
pub(super) struct Capture {
    /// A moment on both clocks.
    since: (Instant, WallTime),
    records: Vec<u8>,
    lost: u64,
}

impl Capture {
    pub(super) fn add(&mut self, now: Instant, way: Way, packet: &[u8]) {
        if self.records.len() + RECORD_HEADER + packet.len() > LIMIT {
            self.lost += 1;
            return;
        }
        let (then, wall) = self.since;
        let at = WallTime::from_unix(wall.since_unix() + (now - then));
        write_record(at, way, packet, &mut self.records);
    }
}

impl Node {
    /// From now on every packet that goes into the tunnel or comes out of it is kept for [`Node::take_capture`]. `wall` is
    /// the date of `now`.
    pub fn start_capture(&mut self, now: Instant, wall: WallTime) {
        self.capture = Some(Box::new(Capture { since: (now, wall), records: Vec::new(), lost: 0 }));
    }

    /// Keeps no more packets.
    pub fn stop_capture(&mut self) {
        self.capture = None;
    }

    /// Records since the last call, whole ones, and how many were lost since the start because nobody took them.
    pub fn take_capture(&mut self) -> Option<(Vec<u8>, u64)> {
        let capture = self.capture.as_mut().filter(|c| !c.records.is_empty())?;
        Some((std::mem::take(&mut capture.records), capture.lost))
    }
}
