//! Both ends of a DERP connection, and which relays a node keeps open.
