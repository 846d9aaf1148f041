//! L2 and L3: sans-IO state machines. Siblings meet only in [`node`].

pub mod coord;
pub mod netcheck;
pub mod netstack;
pub mod node;
pub mod path;
pub mod relay;
pub mod wg;
