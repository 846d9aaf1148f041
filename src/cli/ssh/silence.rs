//! Tells whoever sits at a terminal that the other end has fallen silent, and that it is back.
//!
//! The peer is pinged through the tunnel every few seconds; this is the one periodic timer of a session, and only of one
//! with a person in front of it.

use crate::{
    cli::{connect::Tunnel, output},
    driver::clock,
    net::{PingError, PingKind},
};
use std::{cell::Cell, future::pending, time::Duration};
use tokio::time::sleep;

/// Time between two pings that are answered.
const EVERY: Duration = Duration::from_secs(4);
/// How long one ping waits.
const WAIT: Duration = Duration::from_secs(2);
/// After this time without an answer a person is told.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the other end is silent now.
#[derive(Debug, Default)]
pub(super) struct Silence(Cell<bool>);

impl Silence {
    pub(super) const fn is_on(&self) -> bool {
        self.0.get()
    }

    /// Watches a session for as long as it lasts.
    pub(super) async fn watch(&self, tunnel: &Tunnel) -> super::network_info::Never {
        let name = &tunnel.name;
        let mut heard = clock::now();
        loop {
            let left = PATIENCE.saturating_sub(clock::now() - heard);
            let wait = if self.is_on() || left.is_zero() { WAIT } else { left.min(WAIT) };
            match tunnel.tailnet.ping(tunnel.address, PingKind::Tsmp, wait).await {
                Ok(_) => {
                    let silent = clock::now() - heard;
                    heard = clock::now();
                    if self.0.replace(false) {
                        output::note(&format!("\r\n[{name} answers again after {} s]\r", silent.as_secs()));
                    }
                    sleep(EVERY).await;
                }
                Err(PingError::Closed) => return pending().await,
                Err(_) => {
                    let silent = clock::now() - heard;
                    if silent >= PATIENCE && !self.0.replace(true) {
                        let text = "the session goes on when it answers; Ctrl-C twice, or Enter and ~. leave it";
                        output::note(&format!("\r\n[{name} has been silent for {} s: {text}]\r", silent.as_secs()));
                    }
                    // Some errors come at once.
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}
