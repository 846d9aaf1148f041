//! Test support: a virtual network with NATs, relays and its own clock.

pub mod fuzz;
mod internet;
mod link;
mod nat;

pub use internet::{End, HostIx, Losses, PipeIx, SiteIx};
pub use link::Conditions;
pub use nat::{Dependence, NatKind};
