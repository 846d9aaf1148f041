//! `coder ssh -A`: the session uses the keys of the local key agent (`cli.md` §2.4).

use crate::cli::{args::go_bool, output};
use clap::Args;
use russh::{
    Channel, ChannelOpenFailure,
    client::{ChannelOpenHandle, Msg},
};
use std::{path::PathBuf, sync::Arc};
use tokio::{io::copy_bidirectional, net::UnixStream, sync::Semaphore};

/// Programs of the workspace that may use the keys at the same time.
const MAX_USERS: usize = 32;

const IDENTITY_AGENT: &str = "CODER_SSH_IDENTITY_AGENT";

/// The flags.
#[derive(Debug, Clone, Default, Args)]
pub(in crate::cli) struct KeyAgentArgs {
    /// Let the session use the keys of the local key agent
    #[arg(short = 'A', long, env = "CODER_SSH_FORWARD_AGENT", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    forward_agent: bool,
    /// Socket of that key agent; SSH_AUTH_SOCK names the usual one
    #[arg(long, env = IDENTITY_AGENT, value_name = "SOCKET")]
    identity_agent: Option<PathBuf>,
}

impl KeyAgentArgs {
    /// The key agent of the session, if it shall have one.
    pub(super) fn key_agent(&self) -> Option<KeyAgent> {
        if !self.forward_agent {
            // As a variable it is a setting for when it is wanted.
            if self.identity_agent.is_some() && std::env::var_os(IDENTITY_AGENT).is_none() {
                output::note("--identity-agent does nothing without --forward-agent (-A).");
            }
            return None;
        }
        let usual = || std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
        let socket = self.identity_agent.clone().or_else(usual).filter(|s| !s.as_os_str().is_empty());
        if socket.is_none() {
            output::note("No key agent runs here (SSH_AUTH_SOCK is not set): the session goes without.");
        }
        let socket = socket?;
        // It may still come, but most often its name is wrong.
        if let Err(error) = std::os::unix::net::UnixStream::connect(&socket) {
            output::note(&format!("The key agent {} cannot be reached: {error}. The session finds no keys.", socket.display()));
        }
        Some(KeyAgent { socket, users: Arc::new(Semaphore::new(MAX_USERS)) })
    }
}

/// Where the local key agent listens.
#[derive(Debug, Clone)]
pub(super) struct KeyAgent {
    socket: PathBuf,
    users: Arc<Semaphore>,
}

impl KeyAgent {
    /// Joins a program of the workspace with the key agent. Returns at once.
    pub(super) async fn join(&self, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        let Ok(slot) = Arc::clone(&self.users).try_acquire_owned() else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let socket = self.socket.clone();
        tokio::spawn(async move {
            match UnixStream::connect(&socket).await {
                Ok(mut agent) => {
                    reply.accept().await;
                    // However it ends, the program sees it.
                    let _ = copy_bidirectional(&mut channel.into_stream(), &mut agent).await;
                }
                Err(error) => {
                    tracing::warn!(socket = %socket.display(), %error, "the key agent cannot be reached");
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
            drop(slot);
        });
    }
}
