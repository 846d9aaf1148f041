//! One local TCP port.

use super::way::{Way, explain};
use crate::{cli::output, net::forward::carry};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

/// Pause after a connection that could not be taken: mostly there are too many open already.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes connections and carries them to `port` of the workspace. No failure ends it.
pub(super) async fn serve(listener: TcpListener, port: u16, target: String, way: Arc<Way>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((local, _)) => {
                    connections.spawn(connection(local, port, target.clone(), Arc::clone(&way)));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not taken");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut local: TcpStream, port: u16, target: String, way: Arc<Way>) {
    // Whoever talks in small pieces waits for answers.
    let _ = local.set_nodelay(true);
    let (mut stream, tunnel) = match way.dial(port).await {
        Ok(dialled) => dialled,
        Err(error) => {
            output::note(&format!("Failed to dial '{target}' in workspace: {}", explain(error)));
            // An end without a byte would look like an empty answer.
            let _ = local.set_zero_linger();
            return;
        }
    };
    if let Err(error) = carry(&mut stream, &mut local, |_, _| {}).await {
        tracing::debug!(target, %error, "a connection broke");
        let _ = local.set_zero_linger();
        stream.abort();
    }
    drop(tunnel);
}
