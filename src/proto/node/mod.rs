//! L3: one node, the only place where the engines meet.
