//! Where packets leave: lanes with room, and how much of a turn may be spent.

use crate::base::Lane;

/// The send side of one node: UDP batches and relay rings. The driver and the simulator implement it.
///
/// A packet is written where it leaves from: `slot`, fill it, `commit`. Between the two nothing else is asked of the
/// same space, and a slot that is never committed counts for nothing.
pub trait SendSpace {
    /// Whether a packet of `len` bytes can be taken. `false` pauses the lane; nothing is dropped.
    fn room(&self, lane: &Lane, len: usize) -> bool;
    /// Space for a packet of up to `len` bytes behind the lane's newest one. Asked for only after `room` said yes.
    fn slot(&mut self, lane: &Lane, len: usize) -> &mut [u8];
    /// Queues the first `used` bytes of the last slot.
    fn commit(&mut self, lane: &Lane, used: usize);
}

/// What is left to do after [`super::Node::transmit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing wants to leave.
    Idle,
    /// The budget is spent: run again after one look at the sockets.
    More,
    /// A lane has no room: run again when it has.
    Blocked,
}

/// How many packets one turn may still send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    packets: usize,
}

impl Budget {
    /// A turn of so many packets.
    #[must_use]
    pub const fn new(packets: usize) -> Self {
        Self { packets }
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_spent(&self) -> bool {
        self.packets == 0
    }

    pub(super) const fn spend(&mut self) {
        self.packets = self.packets.saturating_sub(1);
    }
}
