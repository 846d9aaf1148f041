//! L5: what programs use: streams, listeners, datagrams.
