//! L7: the command line, one file per command.

mod args;
mod config;
mod output;
mod ssh;
mod target;
