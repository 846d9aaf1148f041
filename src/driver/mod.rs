//! L4: tokio, sockets, HTTP and the data loop.

pub mod clock;
pub mod control;
pub mod datapath;
pub mod dns;
pub mod endpoints;
pub mod files;
pub mod http;
pub mod interfaces;
pub mod pipe;
pub mod process;
pub mod relay;
pub mod sockets;
pub mod stdio;
pub mod stun;
pub mod terminal;
pub mod websocket;
