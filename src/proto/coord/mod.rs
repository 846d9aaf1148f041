//! Coordination (`coordination.md`): both ends of a control socket, and the coordinator behind the server's end.
//!
//! [`ClientSession`] and [`ServerSession`] turn the socket's bytes into calls and news: [`yamux`] streams, one [`drpc`] call on
//! each. [`Coordinator`] holds who is connected, the tunnels between them, and what each of them is still to be told.

mod backoff;
mod client_session;
mod coordinator;
pub mod drpc;
mod liveness;
mod server_session;
#[cfg(test)]
mod tests;
pub mod yamux;

pub use backoff::Backoff;
pub use client_session::{CallError, CallId, ClientEvent, ClientSession, CloseReason, Role as ClientRole};
pub use coordinator::{Auth, AuthError, ConnId, Coordinator, Delivery};
pub use server_session::{Death, Role as ServerRole, ServerCall, ServerEvent, ServerSession};
