//! L1: bytes to values and back, without state.

pub mod coord;
