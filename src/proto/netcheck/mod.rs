//! STUN probes, relay latencies and the choice of a home relay.
