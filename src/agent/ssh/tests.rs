//! The server against russh's own client, over memory, compared with what was observed of the Go agent
//! (`tests/vectors/wire/ssh.json`). OpenSSH's client is in `tests/openssh`.

mod files;
#[cfg(target_os = "linux")]
mod held;
mod listen;
mod rules;

use super::{Profile, Server, input};
use russh::{
    Channel, ChannelMsg, ChannelOpenFailure, Disconnect, Pty, Sig, client,
    keys::{PublicKey, PublicKeyOrCertificate, ssh_key},
};
use serde_json::Value;
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};

/// Long enough for a loaded machine; only a hang takes it.
const LIMIT: Duration = Duration::from_secs(60);

/// A channel that the server opened, not answered yet.
struct Offered {
    what: String,
    channel: Channel<client::Msg>,
    reply: client::ChannelOpenHandle,
}

struct Trusting {
    keys: UnboundedSender<PublicKey>,
    offered: UnboundedSender<Offered>,
}

impl Trusting {
    fn new() -> (Self, UnboundedReceiver<PublicKey>, UnboundedReceiver<Offered>) {
        let (keys, seen) = unbounded_channel();
        let (offered, offers) = unbounded_channel();
        (Self { keys, offered }, seen, offers)
    }

    fn offer(&self, what: String, channel: Channel<client::Msg>, reply: client::ChannelOpenHandle) -> Result<(), russh::Error> {
        // A test that awaits no channel has dropped the other end, which refuses.
        let _ = self.offered.send(Offered { what, channel, reply });
        Ok(())
    }
}

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else { panic!("a certificate") };
        self.keys.send(key.clone()).unwrap();
        Ok(true)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<client::Msg>,
        address: &str,
        port: u32,
        from: &str,
        _from_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.offer(format!("{address}:{port} from {from}"), channel, reply)
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<client::Msg>,
        path: &str,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.offer(path.to_owned(), channel, reply)
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.offer("key agent".to_owned(), channel, reply)
    }
}

type Client = client::Handle<Trusting>;

async fn connect(server: &Server) -> (Client, PublicKey) {
    let (client, mut keys, _) = connect_and_listen(server).await;
    (client, keys.recv().await.unwrap())
}

async fn connect_and_listen(server: &Server) -> (Client, UnboundedReceiver<PublicKey>, UnboundedReceiver<Offered>) {
    let (near, far) = duplex(256 << 10);
    let server = server.clone();
    tokio::spawn(async move { server.serve(far).await });
    let (handler, keys, offers) = Trusting::new();
    let mut client = client::connect_stream(Arc::default(), near, handler).await.unwrap();
    assert!(client.authenticate_none("anything at all").await.unwrap().success());
    (client, keys, offers)
}

/// What a session gave, request by request and then to its end.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    replies: Vec<bool>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<u32>,
    signal: Option<String>,
    eof: bool,
    closed: bool,
}

impl Seen {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    fn take(&mut self, message: ChannelMsg) {
        match message {
            ChannelMsg::Success => self.replies.push(true),
            ChannelMsg::Failure => self.replies.push(false),
            ChannelMsg::Data { data } => {
                assert!(self.exit.is_none() && !self.eof, "output after the end");
                self.stdout.extend_from_slice(&data);
            }
            ChannelMsg::ExtendedData { data, ext: 1 } => self.stderr.extend_from_slice(&data),
            ChannelMsg::ExitStatus { exit_status } => self.exit = Some(exit_status),
            ChannelMsg::ExitSignal { signal_name, .. } => self.signal = Some(format!("{signal_name:?}")),
            ChannelMsg::Eof => self.eof = true,
            ChannelMsg::Close => self.closed = true,
            _ => {}
        }
    }
}

async fn to_the_end(channel: &mut Channel<client::Msg>) -> Seen {
    let mut seen = Seen::default();
    let all = async {
        while let Some(message) = channel.wait().await {
            seen.take(message);
        }
    };
    timeout(LIMIT, all).await.expect("the channel ends");
    assert!(seen.closed, "{seen:?}");
    seen
}

async fn run(server: &Server, command: &str) -> Seen {
    let (client, _) = connect(server).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, command).await.unwrap();
    channel.eof().await.unwrap();
    to_the_end(&mut channel).await
}

fn server() -> Server {
    let variables = BTreeMap::from([("FROM_TEMPLATE".to_owned(), "yes".to_owned())]);
    Server::new(Profile { agent: "main".into(), variables, ..Profile::default() })
}

/// The observation of the Go agent that `what` names.
fn observed(what: &str) -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/wire/ssh.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let found = all["observed"].as_array().unwrap().iter().find(|o| o["what"] == what);
    found.unwrap_or_else(|| panic!("no observation {what:?}")).clone()
}

fn expected_replies(observation: &Value) -> Vec<bool> {
    let replies = observation["replies"].as_array().unwrap();
    replies.iter().filter_map(|r| r["success"].as_bool()).collect()
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(LIMIT, what).await.expect("no hang")
}

#[tokio::test]
async fn the_host_key_follows_from_the_names_alone() {
    let key = async |owner: &str, workspace: &str| {
        let profile = Profile { owner: owner.into(), workspace: workspace.into(), ..Profile::default() };
        connect(&Server::new(profile)).await.1
    };
    let first = key("alice", "dev").await;
    assert_eq!(first.algorithm(), ssh_key::Algorithm::Ed25519);
    assert_eq!(first, key("alice", "dev").await);
    assert_ne!(first, key("alicede", "v").await);
}

#[tokio::test]
async fn commands_end_as_observed() {
    let server = server();
    for (what, command) in [
        ("exec exit 7", "exit 7"),
        ("exec of both outputs", "echo out; echo err >&2"),
        ("shebang script", "#!/bin/sh\necho via $0"),
        ("command not found", "no-such-command-here 2>/dev/null"),
    ] {
        let expected = observed(what);
        let seen = run(&server, command).await;
        assert_eq!(seen.replies, expected_replies(&expected), "{what}");
        assert_eq!(seen.text(), expected["stdout"].as_str().unwrap(), "{what}");
        assert_eq!(String::from_utf8_lossy(&seen.stderr), expected["stderr"].as_str().unwrap(), "{what}");
        assert_eq!(seen.exit.map(u64::from), expected["exit_status"].as_u64(), "{what}");
        assert!(seen.eof);
    }
}

#[tokio::test]
async fn a_command_killed_by_a_signal_reports_it_instead_of_a_status() {
    let seen = run(&server(), "kill -SEGV $$").await;
    assert_eq!((seen.exit, seen.signal.as_deref()), (None, Some("SEGV")));
}

#[tokio::test]
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "signal(2) has no safe wrapper")]
async fn a_command_ignores_no_signal_that_the_agent_was_started_to_ignore() {
    // As below a script that starts the agent with `&`. Nothing here needs this signal.
    // SAFETY: to ignore a signal needs no handler.
    unsafe { libc::signal(libc::SIGQUIT, libc::SIG_IGN) };
    let (client, _) = connect(&server()).await;
    for terminal in [false, true] {
        let mut channel = client.channel_open_session().await.unwrap();
        if terminal {
            channel.request_pty(true, "dumb", 80, 24, 0, 0, &[]).await.unwrap();
        }
        channel.exec(true, "exec grep SigIgn /proc/self/status").await.unwrap();
        let seen = to_the_end(&mut channel).await;
        let ignored = u64::from_str_radix(seen.text().trim().strip_prefix("SigIgn:\t").unwrap(), 16).unwrap();
        // Those above belong to the C library.
        assert_eq!(ignored & 0x7fff_ffff, 0, "in a terminal: {terminal}");
    }
}

#[tokio::test]
async fn requests_come_before_the_command_and_not_after_it() {
    let expected = observed("env before, exec, env and a second exec after");
    let (client, _) = connect(&server()).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.set_env(true, "FOO", "bar").await.unwrap();
    channel.exec(true, "echo $FOO $SSH_CLIENT / $SSH_CONNECTION; cat").await.unwrap();
    channel.set_env(true, "FOO", "baz").await.unwrap();
    channel.exec(true, "echo two").await.unwrap();
    channel.eof().await.unwrap();
    let seen = to_the_end(&mut channel).await;
    assert_eq!(seen.replies, expected_replies(&expected));
    assert_eq!(seen.text(), expected["stdout"].as_str().unwrap());
}

#[tokio::test]
async fn an_impossible_variable_is_refused_and_the_command_runs() {
    let (client, _) = connect(&server()).await;
    let mut channel = client.channel_open_session().await.unwrap();
    for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "\0")] {
        channel.set_env(true, name, value).await.unwrap();
    }
    channel.exec(true, "echo fine").await.unwrap();
    let seen = to_the_end(&mut channel).await;
    assert_eq!((seen.replies.as_slice(), seen.text()), (&[false, false, false, false, true][..], "fine\n"));
}

#[tokio::test]
async fn a_terminal_is_as_asked_for() {
    let expected = observed("pty-req twice, exec with a PTY");
    let (client, _) = connect(&server()).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm-256color", 80, 24, 0, 0, &[(Pty::ECHO, 0)]).await.unwrap();
    channel.request_pty(true, "vt100", 1, 1, 0, 0, &[]).await.unwrap();
    channel.exec(true, "echo $TERM; stty size; test -t 0 && test -t 1 && test -t 2 && echo tty").await.unwrap();
    let seen = to_the_end(&mut channel).await;
    assert_eq!(seen.replies, expected_replies(&expected));
    assert_eq!((seen.text(), seen.exit), (expected["stdout"].as_str().unwrap(), Some(0)));
    assert!(seen.stderr.is_empty());
}

#[tokio::test]
async fn a_change_of_size_reaches_the_command_as_a_signal() {
    let (client, _) = connect(&server()).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    // What the client says before the command starts counts too.
    channel.window_change(90, 25, 0, 0).await.unwrap();
    channel.exec(true, "trap 'stty size; exit 4' WINCH; stty size; while :; do sleep 0.05; done").await.unwrap();
    let mut seen = Seen::default();
    while !seen.text().contains("25 90") {
        seen.take(within(channel.wait()).await.unwrap());
    }
    channel.window_change(132, 50, 0, 0).await.unwrap();
    let rest = to_the_end(&mut channel).await;
    assert_eq!((rest.text(), rest.exit), ("50 132\r\n", Some(4)));
}

#[tokio::test]
async fn typing_reaches_a_shell_in_its_terminal_and_its_exit_comes_back() {
    let (client, _) = connect(&server()).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "dumb", 80, 24, 0, 0, &[]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    channel.data(&b"echo $((6*7))$FROM_TEMPLATE; exit 9\n"[..]).await.unwrap();
    let seen = to_the_end(&mut channel).await;
    assert!(seen.text().contains("42yes"), "{seen:?}");
    assert_eq!(seen.exit, Some(9));
}

#[tokio::test]
async fn a_terminal_session_is_greeted_and_a_command_is_not() {
    let motd = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(motd.path(), "of the day\n").unwrap();
    let server = server();
    server.set_profile(Profile { motd: motd.path().into(), ..Profile::default() });
    server.set_banners(vec!["  banner\ntwo ".into(), " ".into()]);
    let (client, _) = connect(&server).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "dumb", 80, 24, 0, 0, &[]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    channel.data(&b"exit\n"[..]).await.unwrap();
    let seen = to_the_end(&mut channel).await;
    assert!(seen.text().starts_with("banner\r\ntwo\r\n\r\nof the day\r\n"), "{seen:?}");
    assert_eq!(run(&server, "true").await.stdout, b"");
}

#[tokio::test]
async fn a_signal_reaches_the_whole_command_also_when_it_comes_early() {
    let expected = observed("signal TERM to a running command");
    let (client, _) = connect(&server()).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "trap 'echo got; exit 3' TERM; echo up >&2; sleep 100 & wait").await.unwrap();
    let mut seen = Seen::default();
    while seen.stderr.is_empty() {
        seen.take(within(channel.wait()).await.unwrap());
    }
    channel.signal(Sig::TERM).await.unwrap();
    let rest = to_the_end(&mut channel).await;
    assert_eq!(rest.text(), expected["stdout"].as_str().unwrap());
    assert_eq!(rest.exit.map(u64::from), expected["exit_status"].as_u64());

    let mut early = client.channel_open_session().await.unwrap();
    early.signal(Sig::Custom("nonsense".into())).await.unwrap();
    early.exec(true, "sleep 100").await.unwrap();
    assert_eq!(to_the_end(&mut early).await.signal.as_deref(), Some("KILL"), "an unknown name kills");
}

#[tokio::test]
async fn a_subsystem_is_refused_and_its_channel_stays_usable() {
    let expected = observed("unknown subsystem");
    let (client, _) = connect(&server()).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "netconf").await.unwrap();
    channel.exec(true, "true").await.unwrap();
    let seen = to_the_end(&mut channel).await;
    assert_eq!(seen.replies, [expected_replies(&expected), vec![true]].concat());
}

#[tokio::test]
async fn foreign_channel_types_are_refused_as_observed() {
    let (client, _) = connect(&server()).await;
    let expected = observed("client opens channel x11")["failure_code"].as_u64().unwrap();
    let Err(russh::Error::ChannelOpenFailure(failure)) = client.channel_open_x11("127.0.0.1", 1).await else { panic!("opened") };
    assert_eq!(u64::from(failure.code()), expected);
}

#[tokio::test]
async fn a_forward_to_a_closed_port_tells_why_and_leaves_nothing_behind() {
    let expected = observed("direct-tcpip to a closed port")["failure_code"].as_u64().unwrap();
    // Held, so that nobody else comes to listen on it.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = closed.local_addr().unwrap().port();
    let server = server();
    let (client, _) = connect(&server).await;
    for to in [u32::from(port), 70_000] {
        let opened = client.channel_open_direct_tcpip("127.0.0.1", to, "127.0.0.1", 1).await;
        let Err(russh::Error::ChannelOpenFailure(failure)) = opened else { panic!("opened") };
        assert_eq!(u64::from(failure.code()), expected);
        assert!(matches!(failure, ChannelOpenFailure::ConnectFailed));
    }
    assert_eq!(server.counters().forwards, 0);
}

#[tokio::test]
async fn a_forward_keeps_each_direction_open_until_its_own_end() {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(target.local_addr().unwrap().port());
    let server = server();
    let (client, _) = connect(&server).await;
    let mut channel = client.channel_open_direct_tcpip("localhost", port, "127.0.0.1", 1).await.unwrap();
    let (mut far, _) = target.accept().await.unwrap();
    channel.data(&b"question"[..]).await.unwrap();
    channel.eof().await.unwrap();
    let mut question = Vec::new();
    within(far.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"question");
    far.write_all(b"answer").await.unwrap();
    drop(far);
    let mut seen = Seen::default();
    while !seen.eof {
        seen.take(within(channel.wait()).await.unwrap());
    }
    assert_eq!((seen.text(), server.counters().forwards), ("answer", 1));
    channel.close().await.unwrap();
}

#[tokio::test]
async fn a_stopped_reader_stops_its_client_and_nobody_else() {
    let server = server();
    let (client, _) = connect(&server).await;
    let stopped = client.channel_open_session().await.unwrap();
    stopped.exec(true, "exec sleep 1000").await.unwrap();
    let (mut read, write) = stopped.split();
    let (sender, mut sent) = tokio::sync::watch::channel(0_usize);
    let offering = tokio::spawn(async move {
        loop {
            write.data_bytes(vec![0; 64 << 10]).await.unwrap();
            sender.send_modify(|n| *n += 64 << 10);
        }
    });
    assert!(matches!(within(read.wait()).await, Some(ChannelMsg::Success)));
    for _ in 0..20 {
        let mut other = client.channel_open_session().await.unwrap();
        other.exec(true, "cat").await.unwrap();
        other.data(&[1; 50_000][..]).await.unwrap();
        other.eof().await.unwrap();
        let seen = to_the_end(&mut other).await;
        assert_eq!(seen.stdout.len(), 50_000);
    }
    // The client has come to rest when nothing changes while a whole session ran.
    within(async {
        loop {
            let before = *sent.borrow_and_update();
            let mut other = client.channel_open_session().await.unwrap();
            other.exec(true, "sleep 0.2").await.unwrap();
            to_the_end(&mut other).await;
            if before > 0 && *sent.borrow() == before {
                break;
            }
        }
    })
    .await;
    // Mostly the client stops soon after LOW. Busy neighbours make the library grant more; HIGH and a window are the bound.
    let most = input::HIGH + input::WINDOW as usize;
    assert!(*sent.borrow() <= most, "{} bytes were taken for a reader that reads nothing", *sent.borrow());
    offering.abort();
}

#[tokio::test]
async fn a_stopped_reader_that_goes_on_gets_everything() {
    let (client, _) = connect(&server()).await;
    let channel = client.channel_open_session().await.unwrap();
    let total = 40 << 20;
    channel.exec(true, "read go; sleep 0.3; wc -c").await.unwrap();
    let (mut read, write) = channel.split();
    let feed = tokio::spawn(async move {
        write.data_bytes(b"go\n".to_vec()).await.unwrap();
        for _ in 0..total / (1 << 20) {
            write.data_bytes(vec![b'x'; 1 << 20]).await.unwrap();
        }
        write.eof().await.unwrap();
        write
    });
    let mut seen = Seen::default();
    while let Some(message) = within(read.wait()).await {
        seen.take(message);
    }
    feed.await.unwrap();
    assert_eq!(seen.text().split_whitespace().last(), Some(total.to_string().as_str()));
}

#[tokio::test]
async fn a_shutdown_closes_sessions_without_status_and_ends_their_processes() {
    let server = server();
    let (client, _) = connect(&server).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "trap '' HUP; echo $$; exec sleep 1000").await.unwrap();
    let mut seen = Seen::default();
    while !seen.text().ends_with('\n') {
        seen.take(within(channel.wait()).await.unwrap());
    }
    let process = std::path::Path::new("/proc").join(seen.text().trim()).join("exe");
    assert!(process.exists() && server.counters().sessions.values().sum::<u64>() == 1);
    let (_, rest) = tokio::join!(within(server.shutdown(LIMIT)), to_the_end(&mut channel));
    assert_eq!((rest.exit, rest.signal), (None, None));
    assert!(!process.exists(), "it ignored the hang-up and lives");
    assert!(server.counters().sessions.is_empty());
    let (near, far) = duplex(1024);
    within(server.serve(far)).await;
    drop(near);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_connection() {
    let server = server();
    let (near, far) = duplex(256 << 10);
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve(far).await }
    });
    let (handler, _keys, _offers) = Trusting::new();
    let mut client = client::connect_stream(Arc::default(), near, handler).await.unwrap();
    assert!(client.authenticate_none("").await.unwrap().success());
    client.disconnect(Disconnect::ByApplication, "", "").await.unwrap();
    drop(client);
    within(serving).await.unwrap();
}
