//! Two stacks joined by a virtual link, in virtual time.

mod world;

mod basics;

use super::*;
use world::{Link, Side, World, ms, secs};
