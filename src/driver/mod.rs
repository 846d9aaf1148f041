//! L4: tokio, sockets, HTTP and the data loop.

#[cfg(feature = "agent")]
pub(crate) mod blocking;
pub mod clock;
pub mod control;
pub mod datapath;
pub mod dns;
mod endpoints;
pub mod files;
pub mod http;
#[cfg(feature = "agent")]
pub(crate) mod interfaces;
#[cfg(feature = "agent")]
pub(crate) mod local;
pub mod pipe;
pub mod process;
pub mod relay;
pub mod sockets;
#[cfg(feature = "cli")]
pub(crate) mod stdio;
pub mod stun;
#[cfg(feature = "cli")]
pub(crate) mod terminal;
pub mod websocket;
