//! Both engines against recorded sessions of the Go implementation, and against each other.

mod limits;
mod replay;
mod sessions;
