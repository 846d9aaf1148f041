//! The last bytes of a terminal's output.

use bytes::Bytes;
use std::collections::VecDeque;

/// How much of it is kept, as in Go.
pub(super) const KEPT: usize = 64 << 10;

/// The newest [`KEPT`] bytes of what was pushed.
#[derive(Debug, Default)]
pub(super) struct Ring(VecDeque<u8>);

impl Ring {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = bytes.get(bytes.len().saturating_sub(KEPT)..).unwrap_or_default();
        let over = (self.0.len() + bytes.len()).saturating_sub(KEPT);
        self.0.drain(..over);
        self.0.extend(bytes);
    }

    /// All of it, oldest first.
    pub(super) fn replay(&self) -> Bytes {
        let (first, second) = self.0.as_slices();
        [first, second].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_holds_the_end_of_everything_that_was_pushed(sizes in prop::collection::vec(0_usize..100_000, 0..8)) {
            let (mut ring, mut all) = (Ring::default(), Vec::new());
            for (n, size) in sizes.into_iter().enumerate() {
                let piece: Vec<u8> = (0..size).map(|i| (i * 31 + n) as u8).collect();
                ring.push(&piece);
                all.extend(piece);
                prop_assert_eq!(&ring.replay()[..], &all[all.len().saturating_sub(KEPT)..]);
            }
        }
    }
}
