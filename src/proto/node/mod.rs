//! L3: one node, its engines composed.

mod counters;
mod peers;
mod send;

pub use counters::{ByWay, Counters, Drops};
pub use peers::Gone;
pub use send::{Budget, SendSpace, Turn};
