//! The callbacks of one connection: requests sorted to their channel (agent.md §6.1, §6.2).

use super::{
    Shared,
    forward::Forward,
    input::{HIGH, Input},
    session::{Channel, Output, Session},
    terminal::{Request, Size},
};
use russh::{
    ChannelId, ChannelOpenFailure, Pty as Mode, Sig,
    server::{Auth, ChannelOpenHandle, Handler, Msg, Response, Session as Protocol, VerifiedPublicKey},
};
use std::{collections::HashMap, sync::Arc};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Most channels open at the same time on one connection.
const MAX_CHANNELS: usize = 4096;

/// One client. Dropped with its connection, which ends all its channels.
pub(super) struct Connection {
    shared: Arc<Shared>,
    /// Its channels that are not closed yet.
    open: TaskTracker,
    channels: HashMap<ChannelId, Entry>,
}

struct Entry {
    input: Arc<Input>,
    gone: CancellationToken,
    _ends: DropGuard,
    session: Option<Session>,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, open: TaskTracker) -> Self {
        Self { shared, open, channels: HashMap::new() }
    }

    /// Keeps a new channel, unless there are too many or the agent is stopping.
    fn keep(&mut self, id: ChannelId, session: Option<Session>) -> Option<&Entry> {
        // A channel that this side closed first is not reported back by russh.
        self.channels.retain(|_, entry| !entry.gone.is_cancelled());
        if self.channels.len() >= MAX_CHANNELS || self.shared.stop.is_cancelled() {
            return None;
        }
        let gone = CancellationToken::new();
        let entry = Entry { input: Arc::default(), _ends: gone.clone().drop_guard(), gone, session };
        Some(self.channels.entry(id).insert_entry(entry).into_mut())
    }

    fn session(&mut self, id: ChannelId) -> Option<&mut Session> {
        self.channels.get_mut(&id)?.session.as_mut()
    }

    fn start(&mut self, id: ChannelId, command: Option<&[u8]>, protocol: &mut Protocol) -> Result<(), russh::Error> {
        let Some(entry) = self.channels.get_mut(&id) else { return protocol.channel_failure(id) };
        let Some(session) = entry.session.as_mut().filter(|s| s.can_start()) else {
            return protocol.channel_failure(id);
        };
        // The answer is written now, output follows through the queue.
        protocol.channel_success(id)?;
        let channel = Channel {
            shared: Arc::clone(&self.shared),
            handle: protocol.handle(),
            input: Arc::clone(&entry.input),
            gone: entry.gone.clone(),
            open: self.open.token(),
        };
        session.start(command, channel);
        Ok(())
    }
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
        match self.keep(output.id(), Some(Session::new(output))) {
            Some(_) => reply.accept().await,
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
        let (_, half) = channel.split();
        let output = Output::new(half);
        let Some(entry) = self.keep(output.id(), None) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let (input, gone) = (Arc::clone(&entry.input), entry.gone.clone());
        let forward = Forward { shared: Arc::clone(&self.shared), output, input, gone };
        let task = forward.run(host.to_owned(), port, reply);
        self.shared.tasks.spawn(self.open.track_future(task));
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
        if let Some(entry) = self.channels.get(&id)
            && entry.input.push(data) > HIGH
        {
            self.shared.stats.input_wait();
            entry.input.wait_for_room().await;
        }
        Ok(())
    }

    fn adjust_window(&mut self, id: ChannelId, current: u32) -> u32 {
        self.channels.get(&id).map_or(current, |entry| entry.input.window())
    }

    async fn channel_eof(&mut self, id: ChannelId, _protocol: &mut Protocol) -> Result<(), Self::Error> {
        if let Some(entry) = self.channels.get(&id) {
            entry.input.finish();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _protocol: &mut Protocol) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }

    async fn env_request(&mut self, id: ChannelId, name: &str, value: &str, protocol: &mut Protocol) -> Result<(), Self::Error> {
        let ok = self.session(id).is_some_and(|s| s.set_variable(name, value));
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
        let ok = !kind.contains('\0') && self.session(id).is_some_and(|s| s.set_terminal(request));
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
        let ok = self.session(id).is_some_and(|s| s.resize(Size { columns, rows, width, height }));
        answer(protocol, id, ok)
    }

    async fn shell_request(&mut self, id: ChannelId, protocol: &mut Protocol) -> Result<(), Self::Error> {
        self.start(id, None, protocol)
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], protocol: &mut Protocol) -> Result<(), Self::Error> {
        self.start(id, Some(command), protocol)
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, protocol: &mut Protocol) -> Result<(), Self::Error> {
        tracing::debug!(name, "no such subsystem");
        protocol.channel_failure(id)
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _protocol: &mut Protocol) -> Result<(), Self::Error> {
        if let Some(session) = self.session(id) {
            session.signal(signal);
        }
        Ok(())
    }
}
