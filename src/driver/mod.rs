//! L4: tokio, sockets, HTTP and the data loop.

pub mod clock;
pub mod dns;
pub mod http;
pub mod process;
pub mod stdio;
pub mod terminal;
pub mod websocket;
