//! L1: bytes to values and back, without state.

mod classify;

pub mod coord;
pub mod derp;
pub mod disco;
pub mod events;
pub mod ip;
pub mod pcap;
pub mod pty;
pub mod sftp;
pub mod speedtest;
pub mod stun;
pub mod wg;

pub use classify::{Kind, classify};
