//! L1: bytes to values and back, without state.

pub mod coord;
pub mod derp;
pub mod disco;
pub mod ip;
pub mod stun;

mod classify;

pub use classify::{Kind, classify};
pub mod wg;
