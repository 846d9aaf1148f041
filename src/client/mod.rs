//! L6: typed calls of the server's REST interface.
