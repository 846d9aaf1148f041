//! One SSH session over the tunnel: a shell or a command, its three streams, its end.

use super::{
    key_agent::KeyAgent,
    remote_forward::{Forwards, RemoteForward},
    silence::Silence,
};
use crate::cli::{
    escape::{Escapes, HELP},
    output,
};
use crate::driver::{
    clock,
    stdio::{Stdin, Stdout},
    terminal::{Resizes, Size},
};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use russh::{
    ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Sig,
    client::{self, Handle, Msg},
};
use std::{
    borrow::Cow,
    io,
    pin::Pin,
    rc::Rc,
    sync::{Arc, OnceLock},
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    sync::{Notify, mpsc},
};

/// How long the agent's SSH server may take for the key exchange and to open the session.
const SETUP_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of output that the agent may send before we have taken them: enough for a fast link of 100 ms.
const WINDOW: u32 = 4 << 20;
/// Largest message of output.
const PACKET: u32 = 32 << 10;
/// Messages of each output stream that may wait for its reader: a window full.
const WAITING: usize = (WINDOW / PACKET) as usize;

/// What an error before anything was asked for means.
const GREETING: &str = "the agent's SSH server ended the connection during the greeting";

/// What is asked of the agent.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// The command, or the login shell.
    pub(super) command: Option<String>,
    /// A terminal of this size and kind.
    pub(super) terminal: Option<(Size, String)>,
    /// Environment variables of the session.
    pub(super) env: Vec<(String, String)>,
    /// The key agent that the session may use.
    pub(super) key_agent: Option<KeyAgent>,
    /// What of the workspace is forwarded here.
    pub(super) forwards: Vec<RemoteForward>,
}

/// How the session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// With the command's exit status.
    Status(u32),
    /// The command was killed by the signal of this number.
    Signal(i32),
    /// The connection went away, and why.
    Lost(String),
    /// Whoever sits at the terminal has left it.
    Left,
}

impl Ending {
    /// The exit code as a shell reports it; 255 is what OpenSSH returns for a lost connection.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Status(status) => u8::try_from(status & 0xff).unwrap_or(u8::MAX),
            Self::Signal(number) => 128u8.saturating_add(u8::try_from(*number).unwrap_or(0)),
            Self::Lost(_) | Self::Left => 255,
        }
    }
}

/// The local ends of the session.
pub(super) struct Local {
    pub(super) stdin: Stdin,
    pub(super) stdout: Stdout,
    pub(super) stderr: Stdout,
    /// Present with a terminal.
    pub(super) resizes: Option<Resizes>,
    /// Present where a person types: some keys are for us.
    pub(super) person: Option<Rc<Silence>>,
    /// Told of the first byte of output.
    pub(super) first: Rc<Notify>,
}

struct Client {
    key_agent: Option<KeyAgent>,
    forwards: Forwards,
}

impl client::Handler for Client {
    type Error = russh::Error;

    /// WireGuard has proved that the other end is the agent that the server named; the host key adds nothing.
    async fn check_server_key(&mut self, _key: &russh::keys::PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: russh::Channel<Msg>,
        _address: &str,
        port: u32,
        _from: &str,
        _from_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.forwards.join_port(port, channel, reply).await;
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: russh::Channel<Msg>,
        path: &str,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.forwards.join_socket(path, channel, reply).await;
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: russh::Channel<Msg>,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        match &self.key_agent {
            Some(agent) => agent.join(channel, reply).await,
            None => reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await,
        }
        Ok(())
    }
}

/// A stream that keeps the reason of its breaking, which the SSH library does not pass on.
struct Told<S> {
    stream: S,
    failure: Arc<OnceLock<String>>,
}

impl<S> Told<S> {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|e| drop(self.failure.set(e.to_string())))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Told<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let done = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        Poll::Ready(self.note(done))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Told<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(self.note(done))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An SSH connection with one open session channel, ready for [`Session::run`].
pub(super) struct Session {
    /// Keeps the connection alive.
    connection: Handle<Client>,
    read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
    /// Why the stream below broke, once it has.
    failure: Arc<OnceLock<String>>,
}

impl Session {
    /// Greets the agent's SSH server and opens a session.
    ///
    /// # Errors
    /// When the server refuses or does not answer in time.
    pub(super) async fn open<S>(stream: S, request: &Request) -> anyhow::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let config = client::Config {
            window_size: WINDOW,
            maximum_packet_size: PACKET,
            nodelay: true,
            preferred: russh::Preferred { kex: Cow::Borrowed(&[russh::kex::CURVE25519]), ..russh::Preferred::DEFAULT },
            ..client::Config::default()
        };
        let failure = Arc::new(OnceLock::new());
        let stream = Told { stream, failure: Arc::clone(&failure) };
        let open = async {
            let forwards = Forwards::default();
            let client = Client { key_agent: request.key_agent.clone(), forwards: forwards.clone() };
            let mut connection = client::connect_stream(Arc::new(config), stream, client).await.context(GREETING)?;
            if !connection.authenticate_none("coder").await.context(GREETING)?.success() {
                bail!("the agent's SSH server did not let us in: it is no Coder agent's, or ended just now");
            }
            forwards.ask(&connection, &request.forwards).await?;
            let session = connection.channel_open_session().await;
            let (read, write) = session.context("the agent's SSH server opens no session")?.split();
            Ok(Self { connection, read, write, failure })
        };
        tokio::time::timeout(SETUP_LIMIT, open)
            .await
            .with_context(|| format!("the agent's SSH server did not answer within {} s", SETUP_LIMIT.as_secs()))?
    }

    /// Runs the request to its end and passes all output on first.
    ///
    /// # Errors
    /// When the request is refused or standard output cannot be written.
    pub(super) async fn run(mut self, request: Request, local: Local) -> anyhow::Result<Ending> {
        for (name, value) in &request.env {
            self.write.set_env(false, name, value).await?;
        }
        if request.key_agent.is_some() {
            self.write.agent_forward(true).await?;
            // A session without keys is better than none.
            if let Err(error) = self.expect_success("to use the local key agent").await {
                output::note(&format!("warning: {error:#}"));
            }
        }
        let has_terminal = request.terminal.is_some();
        if let Some((size, term)) = &request.terminal {
            self.write.request_pty(true, term, size.columns, size.rows, 0, 0, &[]).await?;
            self.expect_success("a terminal").await?;
        }
        match &request.command {
            Some(command) => self.write.exec(true, command.as_bytes()).await?,
            None => self.write.request_shell(true).await?,
        }
        self.expect_success(if request.command.is_some() { "to run the command" } else { "a shell" }).await?;

        let Local { stdin, stdout, stderr, resizes, person, first } = local;
        let Self { connection, read, write, failure } = self;
        let mut ending = tokio::select! {
            ending = pass_output(read, stdout, stderr, &first, person.as_deref()) => ending?,
            left = pass_input(&write, stdin, resizes, has_terminal, person.as_deref()) => left,
        };
        if let (Ending::Lost(reason), Some(failure)) = (&mut ending, failure.get()) {
            reason.clone_from(failure);
        }
        if ending == Ending::Left {
            return Ok(ending);
        }
        // The agent learns at once that nothing more comes; whether it hears of it changes nothing for the user.
        let _ = tokio::time::timeout(Duration::from_millis(500), connection.disconnect(russh::Disconnect::ByApplication, "", ""))
            .await;
        Ok(ending)
    }

    async fn expect_success(&mut self, what: &str) -> anyhow::Result<()> {
        let answer = async {
            loop {
                match self.read.wait().await {
                    Some(ChannelMsg::Success) => return Ok(()),
                    Some(ChannelMsg::WindowAdjusted { .. }) => {}
                    Some(ChannelMsg::Failure) => bail!("the agent refused {what}"),
                    Some(_) | None => bail!("the agent ended the session when asked for {what}"),
                }
            }
        };
        tokio::time::timeout(SETUP_LIMIT, answer)
            .await
            .with_context(|| format!("the agent did not answer when asked for {what}"))?
    }
}

/// Passes both output streams on until the channel is closed. Neither waits for the reader of the other, until so much
/// of one lies here as the agent may send ahead.
async fn pass_output(
    mut channel: ChannelReadHalf,
    mut stdout: Stdout,
    mut stderr: Stdout,
    first: &Notify,
    person: Option<&Silence>,
) -> anyhow::Result<Ending> {
    let (out, mut out_waiting) = mpsc::channel::<Bytes>(WAITING);
    let (err, mut err_waiting) = mpsc::channel::<Bytes>(WAITING);
    let sort = async move {
        let mut ending = Ending::Lost("the agent ended the session without a status".to_owned());
        loop {
            let message = channel.wait().await;
            if let Some(silence) = person {
                silence.heard(clock::now());
            }
            match message {
                // A writer that has failed says so itself.
                Some(ChannelMsg::Data { data }) => drop(out.send(data).await),
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => drop(err.send(data).await),
                Some(ChannelMsg::ExitStatus { exit_status }) => ending = Ending::Status(exit_status),
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => ending = Ending::Signal(signal_number(&signal_name)),
                Some(ChannelMsg::Close) | None => return Ok(ending),
                Some(_) => {}
            }
        }
    };
    let write_out = async {
        while let Some(data) = out_waiting.recv().await {
            first.notify_one();
            stdout.write_all(&data).await.context("cannot write to standard output")?;
        }
        stdout.flush().await.context("cannot write to standard output")
    };
    let write_err = async {
        while let Some(data) = err_waiting.recv().await {
            // A closed standard error is nobody's problem.
            drop(stderr.write_all(&data).await);
        }
        drop(stderr.flush().await);
        Ok(())
    };
    let (ending, (), ()) = tokio::try_join!(sort, write_out, write_err)?;
    Ok(ending)
}

/// Pieces of input that may wait for the agent: a person may type into a dead session and still wants to be heard.
const TYPED: usize = 1024;
const PIPED: usize = 4;

/// Passes input, its end and the terminal's size on. Ends only when the person at the terminal leaves.
async fn pass_input(
    channel: &ChannelWriteHalf<Msg>,
    mut stdin: Stdin,
    mut resizes: Option<Resizes>,
    has_terminal: bool,
    person: Option<&Silence>,
) -> Ending {
    let (waiting, mut next) = mpsc::channel::<Bytes>(if person.is_some() { TYPED } else { PIPED });
    let read = async move {
        let mut escapes = Escapes::default();
        let mut buf = vec![0; 32 * 1024];
        loop {
            // An unreadable standard input (a terminal that hung up) ends the input, not the session.
            let n = stdin.read(&mut buf).await.unwrap_or(0);
            let Some(bytes) = buf.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
            let bytes = match person {
                None => Bytes::copy_from_slice(bytes),
                Some(silence) => {
                    let typed = escapes.take(bytes, silence.is_on());
                    if typed.help {
                        output::note(HELP);
                    }
                    if typed.leave {
                        return Ending::Left;
                    }
                    silence.typed(clock::now());
                    typed.pass.into()
                }
            };
            if !bytes.is_empty() && waiting.send(bytes).await.is_err() {
                break;
            }
        }
        drop(waiting);
        std::future::pending().await
    };
    let write = async {
        while let Some(bytes) = next.recv().await {
            // A failed write means that the connection ends; the output side says how.
            if channel.data_bytes(bytes).await.is_err() {
                next.close();
                break;
            }
        }
        let _ = channel.eof().await;
        std::future::pending().await
    };
    let resize = async {
        if !has_terminal {
            return std::future::pending().await;
        }
        loop {
            let size = next_size(&mut resizes).await;
            let _ = channel.window_change(size.columns, size.rows, 0, 0).await;
        }
    };
    tokio::select! {
        left = read => left,
        never = write => never,
        never = resize => never,
    }
}

async fn next_size(resizes: &mut Option<Resizes>) -> Size {
    match resizes {
        Some(resizes) => resizes.next().await,
        None => std::future::pending().await,
    }
}

/// The number of a signal name of RFC 4254 §6.10 on Linux.
fn signal_number(signal: &Sig) -> i32 {
    match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        // Names beyond the RFC carry a domain (RFC 4250 §4.6.1); an unnamed signal comes as its number.
        Sig::Custom(name) => match name.split('@').next().unwrap_or_default() {
            "TRAP" => 5,
            "BUS" => 7,
            "USR2" => 12,
            "XCPU" => 24,
            "XFSZ" => 25,
            "SYS" => 31,
            number => number.parse().unwrap_or(0),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Ending::Status(7).exit_code(), 7);
        assert_eq!(Ending::Signal(signal_number(&Sig::KILL)).exit_code(), 137);
        assert_eq!(Ending::Signal(signal_number(&Sig::Custom("BUS@openssh.com".into()))).exit_code(), 135);
        assert_eq!(Ending::Signal(signal_number(&Sig::Custom("34@openssh.com".into()))).exit_code(), 162);
        assert_eq!(Ending::Lost(String::new()).exit_code(), 255);
        assert_eq!(Ending::Status(256 + 3).exit_code(), 3);
    }
}
