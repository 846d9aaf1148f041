//! `coder exp rpty`: a terminal of a workspace that outlives this process, through the server (`cli.md` §2.17).
//!
//! The server carries it, as it does for browsers; there is no tunnel from here. A terminal has no exit status: its end is
//! all that is told. Whoever knows its id comes back to it within five minutes.

use super::{
    args::Global,
    deployment::{Deployment, explain},
    logs, output, ready,
    target::{HostNames, Target},
};
use crate::{
    driver::{
        process::EndSignals,
        stdio::{Stdin, Stdout},
        terminal::{self, RawMode, Resizes, Terminals},
        websocket::{MAX_MESSAGE, Message, WebSocket},
    },
    wire::pty::{Request, Size},
};
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, sleep_until},
};
use tracing::level_filters::LevelFilter;
use url::form_urlencoded;
use uuid::Uuid;

/// After so long without a word of the server the connection is given up; servers ask for a sign of life every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// Bytes of input taken at once.
const INPUT: usize = 16 << 10;
/// What ends the input of a program in a terminal (Ctrl-D).
const END_OF_INPUT: &str = "\u{4}";

const _: () = assert!(6 * INPUT < MAX_MESSAGE, "a control character takes six bytes in JSON");

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
    super::on_one_thread(open(global, args))
}

async fn open(global: &Global, args: &Rpty) -> anyhow::Result<u8> {
    let mut signals = EndSignals::open().context("cannot handle signals")?;
    let deployment = Deployment::open(global).await?;
    let target = Target::parse(&args.workspace, &HostNames::default());
    let (_, agent) = ready::agent(&deployment.client, &target, ready::Readiness::default()).await?;
    let id = args.reconnect.unwrap_or_else(Uuid::new_v4);
    let size = terminal::size();
    let at_terminal = Terminals::of_process().input;
    let resizes = if at_terminal { Some(Resizes::open()?) } else { None };
    let path = format!("/api/v2/workspaceagents/{}/pty?{}", agent.id, query(args, id, size));
    let socket = deployment.client.http().websocket(&path, None).await.map_err(explain)?;
    let raw = if at_terminal { Some(RawMode::enter()?) } else { None };
    let talking = talk(socket, Stdin::open(), Stdout::open(), resizes, at_terminal);
    let (ended, code) = tokio::select! {
        ended = talking => (ended, 0),
        signal = signals.next() => (Ok(End::Left), 128 + signal.number()),
    };
    drop(raw);
    let comes_back = format!("coder exp rpty --reconnect {id} {target} comes back to it within five minutes");
    match ended {
        Ok(End::Over) => Ok(code),
        Ok(End::Left) => {
            output::note(&format!("The terminal goes on: {comes_back}."));
            Ok(code)
        }
        Err(error) => Err(error.context(format!("the terminal is not shown any more; {comes_back}"))),
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The command did.
    Over,
    /// We were told to go; the command runs on.
    Left,
}

/// Carries both directions until the terminal ends.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: WebSocket<S>,
    mut stdin: impl AsyncRead + Unpin,
    mut stdout: impl AsyncWrite + Unpin,
    mut resizes: Option<Resizes>,
    at_terminal: bool,
) -> anyhow::Result<End> {
    let mut input = Some(Text::default());
    let mut bytes = vec![0; INPUT];
    let mut heard = Instant::now();
    loop {
        let resized = async {
            match &mut resizes {
                Some(resizes) => resizes.next().await,
                None => std::future::pending().await,
            }
        };
        let request = tokio::select! {
            // First what has come: while standard output was full nothing was heard.
            biased;
            message = socket.next() => {
                heard = Instant::now();
                match message.transpose() {
                    Ok(Some(Message::Binary(shown))) => {
                        stdout.write_all(&shown).await?;
                        stdout.flush().await?;
                        continue;
                    }
                    Ok(Some(Message::Ping | Message::Pong | Message::Text(_))) => continue,
                    Ok(Some(Message::Close { code: 1000 | 1005, .. }) | None) => return Ok(End::Over),
                    Ok(Some(Message::Close { code, reason })) => bail!("the server ended the connection: {reason} ({code})"),
                    // Go's server hangs up without a word when the command has ended.
                    Err(error) if is_hang_up(&error) => return Ok(End::Over),
                    Err(error) => return Err(error).context("the connection to the server broke"),
                }
            }
            () = sleep_until(heard + SILENCE) => bail!("the server has been silent for {} s", SILENCE.as_secs()),
            size = resized => {
                let side = |n| u16::try_from(n).unwrap_or(u16::MAX);
                let size = Size { height: side(size.rows), width: side(size.columns) };
                Request { size, ..Request::default() }
            }
            read = stdin.read(&mut bytes), if input.is_some() => {
                let read = read.context("cannot read standard input")?;
                let data = if read > 0 {
                    input.as_mut().map(|text| text.push(bytes.get(..read).unwrap_or_default())).unwrap_or_default()
                } else {
                    input = None;
                    // A file or pipe that ends is the end of input there too; a terminal of ours that is gone is not.
                    if at_terminal { String::new() } else { END_OF_INPUT.to_owned() }
                };
                Request { data, ..Request::default() }
            }
        };
        if request != Request::default() {
            socket.send_binary(request.write()).await.context("the connection to the server broke")?;
        }
    }
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
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
    use tokio::io::duplex;

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

    #[tokio::test]
    async fn input_goes_as_requests_and_output_as_it_comes_until_the_server_closes() {
        let (near, far) = duplex(1 << 16);
        let mut server = WebSocket::server(far, MAX_MESSAGE);
        let client = WebSocket::client(near, MAX_MESSAGE);
        let mut shown = Vec::new();
        let talking = talk(client, &b"ls\r"[..], &mut shown, None, false);
        let serving = async {
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
            server.send_binary(&b"file\r\n"[..]).await.unwrap();
            server.close(1000, "").await.unwrap();
            typed
        };
        let (ended, typed) = tokio::join!(talking, serving);
        assert_eq!((ended.unwrap(), typed.as_str(), shown.as_slice()), (End::Over, "ls\r\u{4}", &b"file\r\n"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_silent_is_given_up_and_one_that_asks_for_signs_of_life_is_not() {
        let (near, far) = duplex(1 << 16);
        let mut server = WebSocket::server(far, MAX_MESSAGE);
        let client = WebSocket::client(near, MAX_MESSAGE);
        let begin = Instant::now();
        let talking = talk(client, tokio::io::empty(), Vec::new(), None, true);
        let serving = async {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(30)).await;
                server.ping().await.unwrap();
            }
        };
        let (ended, ()) = tokio::join!(talking, serving);
        assert!(ended.unwrap_err().to_string().contains("silent"));
        assert_eq!(begin.elapsed(), Duration::from_secs(4 * 30 + 45));
    }

    #[tokio::test]
    async fn a_server_that_cannot_reach_the_agent_says_why() {
        let (near, far) = duplex(1 << 16);
        let mut server = WebSocket::server(far, MAX_MESSAGE);
        let client = WebSocket::client(near, MAX_MESSAGE);
        let talking = talk(client, tokio::io::empty(), Vec::new(), None, true);
        let (ended, closed) = tokio::join!(talking, server.close(1011, "dial workspace agent: nobody"));
        closed.unwrap();
        assert!(ended.unwrap_err().to_string().contains("dial workspace agent: nobody"));
    }
}
