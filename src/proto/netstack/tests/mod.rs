//! Two stacks joined by a virtual link, in virtual time.

mod world;

mod basics;
mod datagrams;
mod flow_control;
mod life;
mod path_change;
mod throughput;

use super::*;
use crate::wire::ip::{TcpFlags, TcpOptions};
use world::{Side, World, ms, secs};
