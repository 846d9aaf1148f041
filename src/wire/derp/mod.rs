//! DERP: the frames between a node and a relay, the login inside them, and the map of relays (`derp.md`).
//!
//! A frame is `type: u8, length: u32 big-endian, payload`. Relays know nodes by their public keys and carry sealed
//! packets between them. Both sides skip frames of unknown types.

mod convert;
mod frames;
mod login;
mod map;

pub use frames::{
    Frame, GoneReason, HEADER, Header, MAX_CLIENT_INFO, MAX_FRAME, MAX_GREETING, MAX_PACKET, MAX_PING, Malformed, ParseError,
    kind, parse, write_send_packet,
};
pub use login::{ClientInfo, LoginError, RelaySecret, ServerInfo};
pub use map::{HostIp, MapError, Region, RelayMap, RelayNode};
