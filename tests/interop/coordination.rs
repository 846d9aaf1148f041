//! Row 4: our client with Go's coordinator, Go clients and agents with ours.

mod ours;
mod theirs;

use crate::table::Cell;

const ROW: &str = "coordination";
/// A call that no server has.
const UNKNOWN_CALL: &str = "/coder.tailnet.v2.Tailnet/ReadMinds";

pub fn cells() -> Vec<Cell> {
    [ours::cells(), theirs::cells()].into_iter().flatten().collect()
}
