//! L6: the workspace agent.
