//! L4: tokio, sockets, HTTP and the data loop.

pub mod process;
pub mod stdio;
pub mod terminal;
pub mod websocket;
