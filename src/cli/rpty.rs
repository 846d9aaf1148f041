//! `coder exp rpty`: a terminal of a workspace that outlives this process, through the server (`cli.md` §2.17).
//!
//! The server carries it, as it does for browsers; there is no tunnel from here. A terminal has no exit status: its end is
//! all that is told. Whoever knows its id comes back to it within five minutes.

use super::{
    args::Global,
    deployment::{Deployment, explain},
    escape::{Escapes, HELP, INTERRUPT},
    logs, output, ready,
    target::{HostNames, Target},
    watch::{Fate, Watch},
};
use crate::{
    driver::{
        process::EndSignals,
        stdio::{Stdin, Stdout},
        terminal::{self, RawMode, Resizes, Terminals},
        websocket::{MAX_MESSAGE, Message, Turn, WebSocket},
    },
    wire::pty::{Request, Size},
};
use anyhow::{Context as _, bail};
use bytes::{Buf as _, Bytes};
use clap::{Args, Subcommand};
use std::{future::pending, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, sleep_until},
};
use tracing::level_filters::LevelFilter;
use url::form_urlencoded;
use uuid::Uuid;

/// After so long without a word of the server the connection is given up; servers ask for a sign of life every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// After so long without an answer a second Ctrl-C leaves.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of input taken at once.
const INPUT: usize = 16 << 10;
/// What a person types beyond this, while the server takes nothing, is lost.
const MOST_TYPED: usize = 4 * INPUT;
/// What ends the input of a program in a terminal (Ctrl-D).
const END_OF_INPUT: &str = "\u{4}";

/// How our server's words for the end of a workspace begin.
const GONE: &str = "the workspace was ";

const _: () = assert!(6 * (MOST_TYPED + INPUT) < MAX_MESSAGE, "a control character takes six bytes in JSON");

/// Commands that may change or go.
#[derive(Debug, Args)]
pub(super) struct Exp {
    #[command(subcommand)]
    pub(super) command: ExpCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ExpCommand {
    /// Open a terminal that can be come back to, through the server
    Rpty(Rpty),
}

#[derive(Debug, Args)]
pub(super) struct Rpty {
    /// [OWNER/]WORKSPACE[.AGENT]
    workspace: String,
    /// Command to run instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Id of the terminal: come back to it, or make one with this id
    #[arg(short, long, value_name = "UUID")]
    reconnect: Option<Uuid>,
    /// Container to run in
    #[arg(short, long, default_value = "", hide_default_value = true)]
    container: String,
    /// User in that container
    #[arg(short = 'u', long, default_value = "", hide_default_value = true)]
    container_user: String,
}

pub(super) fn run(global: &Global, exp: &Exp) -> anyhow::Result<u8> {
    let ExpCommand::Rpty(args) = &exp.command;
    logs::start(logs::level(global.verbose, LevelFilter::ERROR));
    if global.disable_direct_connections {
        bail!("--disable-direct-connections has no meaning here: this terminal always goes through the server");
    }
    if args.container.is_empty() && !args.container_user.is_empty() {
        bail!("--container-user names a user of a container: name that with --container, or leave --container-user out");
    }
    super::on_one_thread(open(global, args))
}

async fn open(global: &Global, args: &Rpty) -> anyhow::Result<u8> {
    let mut signals = EndSignals::open().context("cannot handle signals")?;
    let target = Target::parse(&args.workspace, &HostNames::default());
    let id = args.reconnect.unwrap_or_else(Uuid::new_v4);
    let at_terminal = Terminals::of_process().input;
    let connecting = async {
        let deployment = Deployment::open(global).await?;
        let (workspace, agent) = ready::agent(&deployment.client, &target, ready::Readiness::default()).await?;
        let path = format!("/api/v2/workspaceagents/{}/pty?{}", agent.id, query(args, id, terminal::size()));
        let socket = deployment.client.http().websocket(&path, None).await.map_err(explain)?;
        let watch = Watch::start(deployment.client.clone(), workspace.id, agent.id);
        Ok::<_, anyhow::Error>((deployment.client, socket, watch))
    };
    let (client, socket, watch) = tokio::select! {
        connected = connecting => connected?,
        // Nothing has begun yet.
        signal = signals.next() => return Ok(128 + signal.number()),
    };
    let resizes = if at_terminal { Some(Resizes::open()?) } else { None };
    let raw = if at_terminal { Some(RawMode::enter()?) } else { None };
    let (ended, code) = tokio::select! {
        ended = talk(socket, Stdin::open(), Stdout::open(), resizes, at_terminal) => (ended?, 1),
        fate = watch.changed() => (End::Lost(fate.to_string()), 1),
        signal = signals.next() => (End::Left, 128 + signal.number()),
    };
    drop(raw);
    let comes_back = format!("coder exp rpty --reconnect {id} {target} comes back to it within five minutes");
    let lost = match ended {
        End::Over => return Ok(0),
        End::Left => {
            output::note(&format!("The terminal goes on: {comes_back}."));
            return Ok(code);
        }
        End::HungUp => match client.is_ours().await {
            // That is how a Go server says that the command has ended.
            Ok(false) => return Ok(0),
            _ => "the server hung up".to_owned(),
        },
        End::Lost(reason) => reason,
    };
    match watch.fate().await {
        Fate::Same if lost.starts_with(GONE) => bail!("the terminal has ended: {lost}"),
        Fate::Same => bail!("the connection to the terminal was lost: {lost}; {comes_back}"),
        fate => bail!("the terminal has ended: {fate}"),
    }
}

fn query(args: &Rpty, id: Uuid, size: terminal::Size) -> String {
    let command = args.command.join(" ");
    // A screen that is shared shows only the last page of what a command wrote.
    let backend = if command.is_empty() { "" } else { "buffered" };
    form_urlencoded::Serializer::new(String::new())
        .append_pair("reconnect", &id.to_string())
        .append_pair("width", &size.columns.to_string())
        .append_pair("height", &size.rows.to_string())
        .append_pair("command", &command)
        .append_pair("container", &args.container)
        .append_pair("container_user", &args.container_user)
        .append_pair("backend_type", backend)
        .finish()
}

/// How it ended from our side.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The command did.
    Over,
    /// We were told to go; the command runs on.
    Left,
    /// The connection went away, and why.
    Lost(String),
    /// The server ended the connection without a word.
    HungUp,
}

/// What is typed on its way to the server.
#[derive(Debug, Default)]
struct Input {
    text: Text,
    /// Present where a person types: some keys are for us.
    escapes: Option<Escapes>,
    waiting: String,
    ended: bool,
}

impl Input {
    /// A pipe waits for the server. A person is heard all the same: nothing else leads out of a terminal that is stuck.
    const fn may_read(&self) -> bool {
        !self.ended && (self.escapes.is_some() || self.waiting.len() < INPUT)
    }

    /// Takes what was typed; whether the person leaves.
    fn take(&mut self, bytes: &[u8], silent: Option<Duration>) -> bool {
        if bytes.is_empty() {
            self.ended = true;
            // A file or pipe that ends is the end of input there too; a terminal of ours that is gone is not.
            if self.escapes.is_none() {
                self.waiting += END_OF_INPUT;
            }
            return false;
        }
        let Some(escapes) = &mut self.escapes else {
            self.waiting += &self.text.push(bytes);
            return false;
        };
        let typed = escapes.take(bytes, silent.is_some());
        if typed.help {
            output::note(HELP);
        }
        if let (Some(silent), true, false) = (silent, bytes.contains(&INTERRUPT), typed.leave) {
            let silent = silent.as_secs();
            output::note(&format!("\r\n[nothing came for {silent} s: Ctrl-C once more, or Enter and ~. leave the terminal]\r"));
        }
        if self.waiting.len() < MOST_TYPED {
            self.waiting += &self.text.push(&typed.pass);
        }
        typed.leave
    }
}

/// Carries both directions, neither of which waits for the other, until the terminal ends.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: WebSocket<S>,
    mut stdin: impl AsyncRead + Unpin,
    mut stdout: impl AsyncWrite + Unpin,
    mut resizes: Option<Resizes>,
    at_terminal: bool,
) -> anyhow::Result<End> {
    let mut input = Input { escapes: at_terminal.then(Escapes::default), ..Input::default() };
    let mut bytes = vec![0; INPUT];
    let (mut shown, mut unflushed) = (Bytes::new(), false);
    let mut heard = Instant::now();
    // Since when something is without an answer: the opening, then what was typed.
    let mut asked = Some(heard);
    let mut size = None;
    loop {
        if !socket.is_sending() && (size.is_some() || !input.waiting.is_empty()) {
            let request = Request { data: std::mem::take(&mut input.waiting), size: size.take().unwrap_or_default() };
            if let Err(error) = socket.queue_binary(request.write()) {
                return Ok(broken(&error));
            }
        }
        let (showing, sending) = (!shown.is_empty() || unflushed, socket.is_sending());
        let resized = async {
            match &mut resizes {
                Some(resizes) => resizes.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            // First the person, who may want to leave a terminal that shows more than can be read.
            biased;
            read = stdin.read(&mut bytes), if input.may_read() => {
                let read = read.context("cannot read standard input")?;
                let silent = asked.map(|since| since.elapsed()).filter(|silent| *silent >= PATIENCE);
                if input.take(bytes.get(..read).unwrap_or_default(), silent) {
                    return Ok(End::Left);
                }
                if !input.waiting.is_empty() {
                    asked = asked.or_else(|| Some(Instant::now()));
                }
            }
            new = resized => {
                let side = |n| u16::try_from(n).unwrap_or(u16::MAX);
                size = Some(Size { height: side(new.rows), width: side(new.columns) });
            }
            // Then what has come: while standard output was full nothing was heard.
            turn = socket.turn(!showing), if sending || !showing => match turn {
                Turn::Sent(Ok(())) => {}
                Turn::Sent(Err(error)) => return Ok(broken(&error)),
                Turn::Came(message) => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Binary(bytes))) => {
                            shown = bytes;
                            asked = None;
                        }
                        Some(Ok(Message::Ping | Message::Pong | Message::Text(_))) => {}
                        Some(Ok(Message::Close { code: 1000 | 1005, .. })) => return Ok(End::Over),
                        Some(Ok(Message::Close { code, reason })) => {
                            return Ok(End::Lost(if reason.is_empty() { format!("the server closed it ({code})") } else { reason }));
                        }
                        Some(Err(error)) => return Ok(broken(&error)),
                        None => return Ok(End::HungUp),
                    }
                }
            },
            written = show(&mut stdout, &shown), if showing => {
                let written = written.context("cannot write to standard output")?;
                shown.advance(written);
                unflushed = written > 0;
            }
            () = sleep_until(heard + SILENCE), if !showing => {
                return Ok(End::Lost(format!("the server has been silent for {} s", SILENCE.as_secs())));
            }
        }
    }
}

/// Writes a part, or flushes when there is none. Nothing is lost when the future is dropped.
async fn show(stdout: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return stdout.flush().await.map(|()| 0);
    }
    match stdout.write(bytes).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        n => Ok(n),
    }
}

fn broken(error: &io::Error) -> End {
    match error.kind() {
        // What was on its way when the other end went.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::HungUp,
        _ => End::Lost(error.to_string()),
    }
}

/// Bytes that become text: characters that come in pieces are put together.
#[derive(Debug, Default)]
struct Text(Vec<u8>);

impl Text {
    /// What is whole with these bytes. What is no UTF-8 becomes the sign for that, as in Go.
    fn push(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        // The last beginning of a character, if it is not followed by all of it.
        let begin = self.0.iter().rposition(|byte| *byte >= 0xc0).unwrap_or(self.0.len());
        let last = self.0.get(begin..).unwrap_or_default();
        let waits = std::str::from_utf8(last).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none());
        let whole = if waits { begin } else { self.0.len() };
        let rest = self.0.split_off(whole);
        let text = String::from_utf8_lossy(&self.0).into_owned();
        self.0 = rest;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::args::{Cli, Command},
        wire::pty::Requests,
    };
    use clap::Parser as _;
    use tokio::io::{DuplexStream, duplex};

    fn args(line: &str) -> Rpty {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Exp(Exp { command: ExpCommand::Rpty(args) }) => args,
            other => panic!("not rpty: {other:?}"),
        }
    }

    #[test]
    fn the_query_says_what_the_command_line_says() {
        let id = Uuid::from_u128(7);
        let size = terminal::Size { columns: 120, rows: 40 };
        let shell = query(&args("coder exp rpty dev"), id, size);
        let id = id.to_string();
        assert_eq!(shell, format!("reconnect={id}&width=120&height=40&command=&container=&container_user=&backend_type="));
        let line = args(&format!("coder exp rpty -r {id} -c c1 -u root dev ls -l a&b"));
        assert_eq!(line.reconnect.unwrap().to_string(), id);
        let command = query(&line, Uuid::nil(), size);
        assert!(command.ends_with("command=ls+-l+a%26b&container=c1&container_user=root&backend_type=buffered"), "{command}");
    }

    #[test]
    fn characters_that_come_in_pieces_arrive_whole() {
        let text = "aé🔑\u{1b}[A€";
        for piece in 1..text.len() {
            let mut whole = Text::default();
            let out: String = text.as_bytes().chunks(piece).map(|bytes| whole.push(bytes)).collect();
            assert_eq!(out, text);
        }
        let mut odd = Text::default();
        assert_eq!(odd.push(b"\xff\xc3"), "\u{fffd}");
        assert_eq!(odd.push(b"\xa9"), "é");
    }

    /// A server and what the command line makes of it, with `room` bytes on the way.
    fn pair(room: usize) -> (WebSocket<DuplexStream>, WebSocket<DuplexStream>) {
        let (near, far) = duplex(room);
        (WebSocket::client(near, MAX_MESSAGE), WebSocket::server(far, MAX_MESSAGE))
    }

    /// Takes requests until the input has ended.
    async fn all_input(server: &mut WebSocket<DuplexStream>) -> String {
        let mut requests = Requests::new();
        let mut typed = String::new();
        while !typed.ends_with(END_OF_INPUT) {
            match server.next().await.unwrap().unwrap() {
                Message::Binary(bytes) => requests.push(&bytes),
                other => panic!("{other:?}"),
            }
            while let Some(request) = requests.read().unwrap() {
                typed += &request.data;
            }
        }
        typed
    }

    #[tokio::test]
    async fn input_goes_as_requests_and_output_as_it_comes_until_the_server_closes() {
        let (client, mut server) = pair(1 << 16);
        let mut shown = Vec::new();
        let talking = talk(client, &b"ls\r"[..], &mut shown, None, false);
        let serving = async {
            let typed = all_input(&mut server).await;
            server.send_binary(&b"file\r\n"[..]).await.unwrap();
            server.close(1000, "").await.unwrap();
            typed
        };
        let (ended, typed) = tokio::join!(talking, serving);
        assert_eq!((ended.unwrap(), typed.as_str(), shown.as_slice()), (End::Over, "ls\r\u{4}", &b"file\r\n"[..]));
    }

    #[tokio::test]
    async fn much_input_does_not_wait_for_much_output_nor_the_other_way_round() {
        let (client, mut server) = pair(100);
        let (input, mut shown) = (vec![b'x'; 10 * INPUT], Vec::new());
        let talking = talk(client, input.as_slice(), &mut shown, None, false);
        let serving = async {
            // A server that is at work on its output reads nothing meanwhile.
            for _ in 0..10 {
                server.send_binary(vec![b'y'; INPUT]).await.unwrap();
            }
            let typed = all_input(&mut server).await;
            server.close(1000, "").await.unwrap();
            typed.len()
        };
        let (ended, typed) = tokio::join!(talking, serving);
        assert_eq!((ended.unwrap(), typed, shown.len()), (End::Over, 10 * INPUT + 1, 10 * INPUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_silent_is_given_up_and_one_that_asks_for_signs_of_life_is_not() {
        let (client, mut server) = pair(1 << 16);
        let begin = Instant::now();
        let talking = talk(client, tokio::io::empty(), Vec::new(), None, true);
        let serving = async {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(30)).await;
                server.ping().await.unwrap();
            }
        };
        let (ended, ()) = tokio::join!(talking, serving);
        assert_eq!(ended.unwrap(), End::Lost("the server has been silent for 45 s".to_owned()));
        assert_eq!(begin.elapsed(), Duration::from_secs(4 * 30 + 45));
    }

    #[tokio::test]
    async fn only_a_server_that_closes_well_says_that_the_command_has_ended() {
        for (code, reason, end) in [
            (1000, "", End::Over),
            (1011, "dial workspace agent: nobody", End::Lost("dial workspace agent: nobody".to_owned())),
            (1001, "", End::Lost("the server closed it (1001)".to_owned())),
        ] {
            let (client, mut server) = pair(1 << 16);
            let talking = talk(client, tokio::io::empty(), Vec::new(), None, true);
            let (ended, closed) = tokio::join!(talking, server.close(code, reason));
            closed.unwrap();
            assert_eq!(ended.unwrap(), end, "{code}");
        }
        let (client, server) = pair(1 << 16);
        drop(server);
        assert_eq!(talk(client, tokio::io::empty(), Vec::new(), None, true).await.unwrap(), End::HungUp);
    }

    #[tokio::test(start_paused = true)]
    async fn a_person_leaves_a_terminal_that_is_stuck() {
        for (first, then, leaves) in
            [("x\r", "~.", true), ("x", "\x03\x03", true), ("x", "\x03y\x03", false), ("x~.", "~.", false)]
        {
            // Nobody reads what is sent.
            let (client, _server) = pair(10);
            let (stdin, mut keys) = duplex(1 << 10);
            let typing = async {
                keys.write_all(first.as_bytes()).await.unwrap();
                tokio::time::sleep(PATIENCE).await;
                for key in then.bytes() {
                    keys.write_all(&[key]).await.unwrap();
                }
                pending::<()>().await;
            };
            let ended = tokio::select! {
                ended = talk(client, stdin, Vec::new(), None, true) => ended.unwrap(),
                () = typing => unreachable!(),
            };
            assert_eq!(ended == End::Left, leaves, "{first:?} {then:?}: {ended:?}");
        }
    }
}
