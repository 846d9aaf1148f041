//! Coordination: yamux sessions, dRPC calls, the client's controller and the coordinator.
