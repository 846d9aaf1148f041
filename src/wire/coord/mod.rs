//! Control plane: yamux and dRPC frames, tailnet and agent messages.

pub mod agent;
pub mod drpc;
pub mod tailnet;
pub mod yamux;

#[cfg(test)]
mod golden;
