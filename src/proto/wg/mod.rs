//! WireGuard sessions: boringtun for handshake and AEAD, timers and indices of our own.
