//! L6: the coder server.
