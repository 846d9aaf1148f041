//! L4: tokio, sockets, HTTP and the data loop.
