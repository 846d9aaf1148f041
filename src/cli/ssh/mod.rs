//! `coder ssh`: a shell, a command, or the raw SSH stream for OpenSSH.

mod session;
