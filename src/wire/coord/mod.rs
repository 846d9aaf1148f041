//! Control plane: yamux and dRPC frames, tailnet and agent messages.
