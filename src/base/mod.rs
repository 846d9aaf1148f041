//! L0: keys, addresses, time and randomness.
//!
//! Nothing here reads a clock, a random source or the environment: the driver hands both in.

mod addr;
mod key;
mod lane;
mod rng;
mod time;
mod timer;

pub use addr::{
    CODER_PREFIX, ParseRegionError, RegionId, TAILSCALE_PREFIX, agent_addresses, client_address, is_overlay, node_id,
};
pub use key::{DiscoKey, DiscoSecret, NodeKey, NodeSecret, ParseKeyError};
pub use lane::{FlowId, Lane, PeerIx, SocketIx, Via};
pub use rng::Rng;
pub use time::{Deadline, Instant, WallTime};
pub use timer::Timers;
