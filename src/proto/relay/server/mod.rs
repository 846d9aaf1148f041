//! The relay server: a [`RelayConn`] for each connection around one shared [`Registry`] (`derp.md` §6).
//!
//! How a server runs it, with one task a connection and one lock around the registry:
//!
//! ```text
//! open:   let mut conn = registry.lock().open(now);
//! read:   conn.handle_login(now, &mut read)?;
//!         { let r = &mut *registry.lock(); conn.handle_bytes(now, read, r)?; take all of r.poll_ready() } wake those tasks
//! woken:  loop { let more = registry.lock().poll_output(conn.id(), &mut out, 128 KiB); write out; if !more, stop }
//! timer:  at conn.poll_timeout(): conn.handle_timeout(now, &mut registry.lock())?
//! end:    registry.lock().close(conn), wake what poll_ready names
//! ```
//! A task must go on reading while it writes: a client that waits for room would wait for ever. A client that takes
//! nothing of a write for [`WRITE_TIMEOUT`], or not all of what was fetched at once within [`DRAIN_TIMEOUT`], is given up.
//! Nothing is allocated for a packet: its bytes go straight from the read buffer into its receiver's ring, and from there
//! into the receiver's write buffer.
//!
//! There is no meshing: frames of mesh peers end the connection as those of a stranger.

mod conn;
mod queue;
mod registry;

#[cfg(test)]
mod tests;

pub use conn::{Close, RelayConn};
pub use registry::{ConnId, Counters, Registry};

use std::time::Duration;

/// How long a client may take nothing of a write before it is given up.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long what was fetched from the queues at once may take in all. A client that takes a byte now and then would keep its
/// queues full for ever.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
