//! `coder ssh -R`: connections to a port or socket of the workspace come out at a local one (`cli.md` §2.4).
//!
//! Data of a forwarded connection waits in a queue of its own, so that a local program that is slow does not hold the
//! session up at once: russh gives window back on receipt and its client offers no way to hold it. From 16 MiB on the
//! whole connection is slowed down to the pace of the program, but never for one that reads nothing: the session would stand
//! still with it. All forwards of a session share [`MAX_WAITING`]: beyond it a local program for which more than its part
//! waits counts as stuck, and its connection is closed.

use crate::{
    agent::ssh::input::Input,
    cli::output,
    driver::local::{Place, Socket},
};
use anyhow::Context as _;
use clap::Args;
use russh::{
    Channel, ChannelMsg, ChannelOpenFailure,
    client::{ChannelOpenHandle, Handle, Handler, Msg},
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncWriteExt as _, copy},
    sync::Semaphore,
};

/// Forwarded connections at the same time.
const MAX_CONNECTIONS: usize = 256;
/// Bytes above which the connection is slowed down.
const SLOW_FROM: usize = 16 << 20;
/// Bytes that stuck local programs may leave here together.
const MAX_WAITING: usize = 64 << 20;
/// How many seconds the session may stand still for a local program that reads nothing.
const PATIENCE: u32 = 3;
/// What waits for a program that reads is less: none is closed for what others leave. So there is never twice the above.
const PART: usize = MAX_WAITING / MAX_CONNECTIONS;

/// The flag.
#[derive(Debug, Clone, Default, Args)]
pub(in crate::cli) struct RemoteForwardArgs {
    /// Bring connections from a port of the workspace here: REMOTE_PORT:LOCAL_ADDRESS:LOCAL_PORT, or
    /// /REMOTE/SOCKET:/LOCAL/SOCKET; may be repeated
    #[arg(short = 'R', long, env = "CODER_SSH_REMOTE_FORWARD", value_name = "PORT:ADDRESS:PORT", value_delimiter = ',', value_parser = parse)]
    remote_forward: Vec<RemoteForward>,
}

impl RemoteForwardArgs {
    pub(super) fn list(&self) -> &[RemoteForward] {
        &self.remote_forward
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteForward {
    listens: Listens,
    to: Place,
}

/// Where the agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Listens {
    /// On this port of 127.0.0.1; 0 takes any.
    Port(u32),
    Socket(String),
}

fn parse(text: &str) -> Result<RemoteForward, String> {
    let wrong = || "invalid format of remote-forward, expected: remote_port:local_address:local_port".to_owned();
    if text.starts_with('/') {
        // A colon in the first path would be read wrongly; no path of two has another reading.
        let (remote, local) = text.split_once(":/").ok_or_else(wrong)?;
        return Ok(RemoteForward { listens: Listens::Socket(remote.to_owned()), to: Place::Unix(format!("/{local}").into()) });
    }
    let (remote, rest) = text.split_once(':').ok_or_else(wrong)?;
    let (address, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if address.is_empty() {
        return Err(wrong());
    }
    let port_of = |text: &str, from: u16| {
        let number = text.parse::<u16>().ok().filter(|port| *port >= from);
        number.ok_or_else(|| format!("{}; {text:?} is no port from {from} to {}", wrong(), u16::MAX))
    };
    let (remote, port) = (port_of(remote, 0)?, port_of(port, 1)?);
    Ok(RemoteForward { listens: Listens::Port(remote.into()), to: Place::Tcp { host: address.to_owned(), port: port.into() } })
}

/// The forwards of a session, for the connections that the agent announces.
#[derive(Debug, Clone)]
pub(super) struct Forwards {
    open: Arc<Mutex<Vec<RemoteForward>>>,
    slots: Arc<Semaphore>,
    /// Bytes that wait for all local programs.
    waiting: Arc<AtomicUsize>,
}

impl Default for Forwards {
    fn default() -> Self {
        Self { open: Arc::default(), slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)), waiting: Arc::default() }
    }
}

impl Forwards {
    /// Asks the agent to listen.
    ///
    /// # Errors
    /// When it refuses one of them.
    pub(super) async fn ask<H: Handler>(&self, connection: &Handle<H>, wanted: &[RemoteForward]) -> anyhow::Result<()> {
        for forward in wanted {
            // Known before the agent's answer: the first connection may follow it closely.
            self.open.lock().unwrap_or_else(PoisonError::into_inner).push(forward.clone());
            match &forward.listens {
                Listens::Port(port) => {
                    let bound = connection.tcpip_forward("127.0.0.1", *port).await;
                    let bound = bound
                        .with_context(|| format!("the agent does not listen on port {port} for us: it is taken, or forbidden"))?;
                    if *port == 0 {
                        self.open
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(RemoteForward { listens: Listens::Port(bound), to: forward.to.clone() });
                        output::note(&format!("Port {bound} of the workspace is forwarded here."));
                    }
                }
                Listens::Socket(path) => {
                    let asked = connection.streamlocal_forward(path.clone()).await;
                    asked.with_context(|| format!("the agent does not listen on {path} for us: it is taken, or forbidden"))?;
                }
            }
        }
        Ok(())
    }

    /// Joins a connection to a port of the workspace with its local end. Returns at once.
    pub(super) async fn join_port(&self, port: u32, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        self.join(&Listens::Port(port), channel, reply).await;
    }

    /// The same for a socket.
    pub(super) async fn join_socket(&self, path: &str, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        self.join(&Listens::Socket(path.to_owned()), channel, reply).await;
    }

    async fn join(&self, listens: &Listens, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        let to = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.iter().find(|f| f.listens == *listens).map(|f| f.to.clone())
        };
        // Nobody asked for it.
        let Some(to) = to else { return reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await };
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let waiting = Waiting::new(Arc::clone(&self.waiting));
        tokio::spawn(async move {
            let _slot = slot;
            match to.connect().await {
                Ok(socket) => {
                    reply.accept().await;
                    carry(channel, &waiting, socket).await;
                }
                Err(error) => {
                    tracing::warn!(?to, %error, "a forwarded connection has no local end");
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
        });
    }
}

/// The bytes that wait for one local program, as a part of what waits for all of a session.
#[derive(Debug)]
struct Waiting {
    all: Arc<AtomicUsize>,
    own: AtomicUsize,
    /// Bytes that the program was given so far.
    given: AtomicU64,
}

impl Waiting {
    const fn new(all: Arc<AtomicUsize>) -> Self {
        Self { all, own: AtomicUsize::new(0), given: AtomicU64::new(0) }
    }

    /// So many are there now; whether the program counts as stuck.
    fn set(&self, own: usize) -> bool {
        let before = self.own.swap(own, Ordering::Relaxed);
        // The others' changes come in between, and none of them is lost. It wraps where this one has become less.
        let change = own.wrapping_sub(before);
        let all = self.all.fetch_add(change, Ordering::Relaxed).wrapping_add(change);
        own > PART && all > MAX_WAITING
    }

    /// So many were given to the program.
    fn gave(&self, bytes: usize) {
        self.given.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.set(self.own.load(Ordering::Relaxed).saturating_sub(bytes));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Carries bytes until both directions have ended, each by itself.
async fn carry(channel: Channel<Msg>, waiting: &Waiting, socket: Socket) {
    let (mut reader, mut writer) = socket.into_split();
    let (mut incoming, outgoing) = channel.split();
    let input = Input::default();
    let take = async {
        let (mut vain, mut given) = (0, 0);
        loop {
            match incoming.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    let waits = input.push(&data);
                    if waiting.set(waits) {
                        tracing::warn!("a local program does not read what is forwarded to it; its connection is closed");
                        return;
                    }
                    if waits > SLOW_FROM {
                        let by_now = waiting.given.load(Ordering::Relaxed);
                        if by_now != given {
                            (vain, given) = (0, by_now);
                        }
                        if vain < PATIENCE && !input.wait_for_room().await {
                            vain += 1;
                        }
                    }
                }
                Some(ChannelMsg::Eof) => input.finish(),
                Some(ChannelMsg::Close) | None => {
                    input.finish();
                    // What came is still delivered; the other direction has nobody to go to.
                    return std::future::pending().await;
                }
                Some(_) => {}
            }
        }
    };
    let up = async {
        while let Some(data) = input.next().await {
            waiting.gave(data.len());
            if writer.write_all(&data).await.is_err() {
                input.discard();
                waiting.set(0);
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    let down = async {
        let mut to_agent = outgoing.make_writer();
        let _ = copy(&mut reader, &mut to_agent).await;
        let _ = to_agent.flush().await;
        let _ = outgoing.eof().await;
    };
    tokio::select! {
        () = take => {}
        _ = async { tokio::join!(up, down) } => {}
    }
    let _ = outgoing.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forwards_share_what_may_wait_and_only_who_has_more_than_its_part_is_stuck() {
        let all = Arc::new(AtomicUsize::new(0));
        let connection = || Waiting::new(Arc::clone(&all));
        let (slow, stuck, quick) = (connection(), connection(), connection());
        assert!(!slow.set(MAX_WAITING - PART) && !quick.set(PART));
        assert!(stuck.set(PART + 1), "together they are too many");
        assert!(!quick.set(PART) && !quick.set(1), "it reads");
        drop(stuck);
        assert!(!slow.set(MAX_WAITING - PART) && slow.set(MAX_WAITING));
        slow.gave(MAX_WAITING);
        assert_eq!(all.load(Ordering::Relaxed), 1);
        drop((slow, quick));
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn forwards_are_read_as_the_go_command_line_reads_them() {
        let tcp =
            |port, host: &str, to| RemoteForward { listens: Listens::Port(port), to: Place::Tcp { host: host.into(), port: to } };
        assert_eq!(parse("8080:localhost:3000"), Ok(tcp(8080, "localhost", 3000)));
        assert_eq!(parse("0:127.0.0.1:22"), Ok(tcp(0, "127.0.0.1", 22)));
        assert_eq!(parse("8080:[::1]:3000"), Ok(tcp(8080, "::1", 3000)));
        let unix = RemoteForward { listens: Listens::Socket("/run/a.sock".into()), to: Place::Unix("/tmp/b.sock".into()) };
        assert_eq!(parse("/run/a.sock:/tmp/b.sock"), Ok(unix));
        for bad in ["", "8080", "8080:3000", "8080::3000", "x:localhost:3000", "70000:a:1", "1:a:0", "1:a:x", "/a", "/a:b"] {
            assert!(parse(bad).unwrap_err().contains("remote_port:local_address:local_port"), "{bad}");
        }
        for (bad, told) in [
            ("8080:localhost:99999", "; \"99999\" is no port from 1 to 65535"),
            ("8080:localhost:0", "; \"0\" is no port from 1 to 65535"),
            ("-1:localhost:80", "; \"-1\" is no port from 0 to 65535"),
        ] {
            let said = parse(bad).unwrap_err();
            assert!(said.starts_with("invalid format of remote-forward, expected: ") && said.ends_with(told), "{said}");
        }
    }
}
