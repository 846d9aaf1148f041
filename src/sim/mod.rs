//! Test support: a virtual network with NATs, relays and its own clock.
