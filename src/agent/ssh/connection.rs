//! The callbacks of one connection: requests sorted to their channel (agent.md §6.1, §6.2).

use super::{
    Shared,
    channels::{Channels, Lane},
    forward::Forward,
    input::HIGH,
    listen::{Display, Listeners},
    session::{Channel, Output, Session},
    terminal::{Request, Size},
};
use crate::driver::local::Place;
use russh::{
    ChannelId, ChannelOpenFailure, Pty as Mode, Sig,
    server::{Auth, ChannelOpenHandle, Handler, Msg, Response, Session as Protocol, VerifiedPublicKey},
};
use std::{collections::HashMap, io, net::IpAddr, sync::Arc};
use tokio_util::task::TaskTracker;

/// Most sessions open at the same time on one connection. OpenSSH's own limit of 10 stops editors and `ControlMaster`.
pub(super) const MAX_SESSIONS: usize = 256;
/// SSH's number for "administratively prohibited".
const PROHIBITED: u32 = 1;
/// SSH's number for "resource shortage".
const SHORTAGE: u32 = 4;

/// One client. Dropped with its connection, which ends all its channels and listeners.
pub(super) struct Connection {
    shared: Arc<Shared>,
    /// The client's address in the tunnel.
    from: Option<IpAddr>,
    /// Its channels that are not closed yet.
    open: TaskTracker,
    channels: Arc<Channels>,
    sessions: HashMap<ChannelId, Session>,
    listeners: Listeners,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.channels.end();
    }
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, open: TaskTracker, from: Option<IpAddr>) -> Self {
        let channels = Arc::<Channels>::default();
        let listeners = Listeners::new(Arc::clone(&shared), open.clone(), Arc::clone(&channels));
        Self { shared, from, open, channels, sessions: HashMap::new(), listeners }
    }

    /// Drops sessions whose channel is closed.
    fn forget_closed(&mut self) {
        // A channel that this side closed first is not reported back by russh.
        self.sessions.retain(|id, _| self.channels.get(*id).is_some_and(|lane| !lane.gone.is_cancelled()));
    }

    /// Keeps a new channel, unless there are too many or the agent is stopping.
    fn keep(&mut self, id: ChannelId) -> Option<Lane> {
        self.forget_closed();
        if self.shared.stop.is_cancelled() { None } else { self.channels.keep(id) }
    }

    /// The session of a channel on which nothing was started yet, and what its task needs.
    fn unstarted(&mut self, id: ChannelId, protocol: &Protocol) -> Option<(&mut Session, Channel)> {
        let (lane, from) = (self.channels.get(id)?, self.from);
        let session = self.sessions.get_mut(&id).filter(|s| s.can_start())?;
        let (shared, open) = (Arc::clone(&self.shared), self.open.token());
        let channel = Channel { shared, handle: protocol.handle(), lane, open, from };
        Some((session, channel))
    }

    fn start(&mut self, id: ChannelId, command: Option<&[u8]>, protocol: &mut Protocol) -> Result<(), russh::Error> {
        let Some((session, channel)) = self.unstarted(id, protocol) else { return protocol.channel_failure(id) };
        // The answer is written now, output follows through the queue.
        protocol.channel_success(id)?;
        session.start(command, channel);
        Ok(())
    }

    /// Connects a new channel to `target` in a task of its own.
    async fn forward(&mut self, channel: russh::Channel<Msg>, target: Place, reply: ChannelOpenHandle) {
        if self.shared.rules.block_local_forwarding {
            tracing::debug!(?target, "forwarding is blocked");
            let reason = "port forwarding is disabled".to_owned();
            return reply.reject(ChannelOpenFailure::Other { code: PROHIBITED, reason }).await;
        }
        let (_, half) = channel.split();
        let output = Output::new(half);
        let Some(lane) = self.keep(output.id()) else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let forward = Forward { shared: Arc::clone(&self.shared), output, lane, from: self.from };
        self.shared.tasks.spawn(self.open.track_future(forward.connect(target, reply)));
    }
}

/// Whether it went well; if not, the log says why, since the client's answer cannot.
fn told<T>(what: &str, done: io::Result<T>) -> Option<T> {
    done.inspect_err(|error| tracing::debug!(what, %error, "refused")).ok()
}

fn answer(protocol: &mut Protocol, id: ChannelId, ok: bool) -> Result<(), russh::Error> {
    if ok { protocol.channel_success(id) } else { protocol.channel_failure(id) }
}

impl Handler for Connection {
    type Error = russh::Error;

    // Reaching the port through the tunnel is the authorisation: every method succeeds for every name.
    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_password(&mut self, _user: &str, _password: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_publickey(&mut self, _user: &str, _key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _user: &str,
        _submethods: &str,
        _response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: russh::Channel<Msg>,
        reply: ChannelOpenHandle,
        _protocol: &mut Protocol,
    ) -> Result<(), Self::Error> {
        // Input does not come through the channel's reader: see the module `input`.
        let (_, half) = channel.split();
        let output = Output::new(half);
        let id = output.id();
        self.forget_closed();
        if self.sessions.len() >= MAX_SESSIONS {
            let reason = format!("{MAX_SESSIONS} sessions are open on this connection: close one or connect once more");
            reply.reject(ChannelOpenFailure::Other { code: SHORTAGE, reason }).await;
            return Ok(());
        }
        match self.keep(id) {
            Some(_) => {
                self.sessions.insert(id, Session::new(output));
                reply.accept().await;
            }
            None => reply.reject(ChannelOpenFailure::ResourceShortage).await,
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: russh::Channel<Msg>,
        host: &str,
        port: u32,
        _origin: &str,
        _origin_port: u32,
        reply: ChannelOpenHandle,
        _protocol: &mut Protocol,
    ) -> Result<(), Self::Error> {
        self.forward(channel, Place::Tcp { host: host.to_owned(), port }, reply).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: russh::Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _protocol: &mut Protocol,
    ) -> Result<(), Self::Error> {
        self.forward(channel, Place::Unix(path.into()), reply).await;
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _packet: u32,
        _window: u32,
        _protocol: &mut Protocol,
    ) -> Result<(), Self::Error> {
        self.channels.confirm(id);
        Ok(())
    }

    async fn channel_open_x11(
        &mut self,
        _channel: russh::Channel<Msg>,
        _origin: &str,
        _origin_port: u32,
        reply: ChannelOpenHandle,
        _protocol: &mut Protocol,
    ) -> Result<(), Self::Error> {
        reply.reject(ChannelOpenFailure::UnknownChannelType).await;
        Ok(())
    }

    async fn channel_open_forwarded_tcpip(
        &mut self,
        _channel: russh::Channel<Msg>,
        _host: &str,
        _port: u32,
        _origin: &str,
        _origin_port: u32,
        reply: ChannelOpenHandle,
        _protocol: &mut Protocol,
    ) -> Result<(), Self::Error> {
        reply.reject(ChannelOpenFailure::UnknownChannelType).await;
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _protocol: &mut Protocol) -> Result<(), Self::Error> {
        if let Some(input) = self.channels.input(id)
            && input.push(data) > HIGH
        {
            self.shared.stats.input_wait();
            input.wait_for_room().await;
        }
        Ok(())
    }

    fn adjust_window(&mut self, id: ChannelId, current: u32) -> u32 {
        self.channels.input(id).map_or(current, |input| input.window())
    }

    async fn channel_eof(&mut self, id: ChannelId, _protocol: &mut Protocol) -> Result<(), Self::Error> {
        if let Some(input) = self.channels.input(id) {
            input.finish();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _protocol: &mut Protocol) -> Result<(), Self::Error> {
        self.channels.remove(id);
        self.sessions.remove(&id);
        Ok(())
    }

    async fn env_request(&mut self, id: ChannelId, name: &str, value: &str, protocol: &mut Protocol) -> Result<(), Self::Error> {
        let ok = self.sessions.get_mut(&id).is_some_and(|s| s.set_variable(name, value));
        answer(protocol, id, ok)
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        kind: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Mode, u32)],
        protocol: &mut Protocol,
    ) -> Result<(), Self::Error> {
        let size = Size { columns, rows, width, height };
        let request = Request { kind: kind.to_owned(), size, modes: modes.to_vec() };
        let ok = !kind.contains('\0') && self.sessions.get_mut(&id).is_some_and(|s| s.set_terminal(request));
        answer(protocol, id, ok)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        protocol: &mut Protocol,
    ) -> Result<(), Self::Error> {
        let ok = self.sessions.get_mut(&id).is_some_and(|s| s.resize(Size { columns, rows, width, height }));
        answer(protocol, id, ok)
    }

    async fn shell_request(&mut self, id: ChannelId, protocol: &mut Protocol) -> Result<(), Self::Error> {
        self.start(id, None, protocol)
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], protocol: &mut Protocol) -> Result<(), Self::Error> {
        self.start(id, Some(command), protocol)
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, protocol: &mut Protocol) -> Result<(), Self::Error> {
        if name != "sftp" {
            tracing::debug!(name, "no such subsystem");
            return protocol.channel_failure(id);
        }
        let Some((session, channel)) = self.unstarted(id, protocol) else { return protocol.channel_failure(id) };
        protocol.channel_success(id)?;
        session.start_sftp(channel);
        Ok(())
    }

    // russh writes the answers of the following requests itself.
    async fn agent_request(&mut self, id: ChannelId, protocol: &mut Protocol) -> Result<bool, Self::Error> {
        let Some(session) = self.sessions.get_mut(&id).filter(|s| s.can_start()) else { return Ok(false) };
        let socket = told("key agent", self.listeners.key_agent(protocol.handle()).await);
        Ok(socket.map(|path| session.set_key_agent(path)).is_some())
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        single: bool,
        protocol_name: &str,
        cookie: &str,
        screen: u32,
        protocol: &mut Protocol,
    ) -> Result<(), Self::Error> {
        let lane = self.channels.get(id);
        let session = self.sessions.get_mut(&id).filter(|s| s.wants_display());
        let (Some(lane), Some(session)) = (lane, session) else { return protocol.channel_failure(id) };
        let asked = Display { protocol: protocol_name, cookie, screen, single };
        let display = told("X11", self.listeners.display(asked, protocol.handle(), lane.gone).await);
        let ok = display.map(|display| session.set_display(display)).is_some();
        answer(protocol, id, ok)
    }

    async fn tcpip_forward(&mut self, address: &str, port: &mut u32, protocol: &mut Protocol) -> Result<bool, Self::Error> {
        if self.shared.rules.block_reverse_forwarding {
            return Ok(false);
        }
        let bound = told("tcpip-forward", self.listeners.listen_tcp(address, *port, protocol.handle()).await);
        Ok(bound.inspect(|bound| *port = *bound).is_some())
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _protocol: &mut Protocol) -> Result<bool, Self::Error> {
        Ok(self.listeners.cancel_tcp(address, port))
    }

    async fn streamlocal_forward(&mut self, path: &str, protocol: &mut Protocol) -> Result<bool, Self::Error> {
        if self.shared.rules.block_reverse_forwarding {
            return Ok(false);
        }
        Ok(told("streamlocal-forward", self.listeners.listen_unix(path, protocol.handle()).await).is_some())
    }

    async fn cancel_streamlocal_forward(&mut self, path: &str, _protocol: &mut Protocol) -> Result<bool, Self::Error> {
        Ok(self.listeners.cancel_unix(path))
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _protocol: &mut Protocol) -> Result<(), Self::Error> {
        if let Some(session) = self.sessions.get(&id) {
            session.signal(&signal);
        }
        Ok(())
    }
}
