//! Forwarding from the workspace to the client (`-R`, `-A`, `-X`) and through unix sockets, with OpenSSH's client.

use crate::{
    harness::{
        keys::{KEY_TOOLS, Keys},
        noise, text,
    },
    host::{Host, eventually, finish},
};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::Duration,
};
use tailnet::agent::Profile;

/// An `ssh -N` that is killed at the end.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Client {
    fn start(host: &Host, options: &[&str]) -> Self {
        let mut all = vec!["-N", "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=INFO"];
        all.extend(options);
        all.push("x@127.0.0.1");
        Self(host.ssh(&all).spawn().unwrap())
    }

    /// The port that the agent chose for `-R 0:…`.
    fn port(&mut self) -> u16 {
        let mut lines = BufReader::new(self.0.stderr.as_mut().unwrap()).lines();
        let line = lines.find(|l| l.as_ref().unwrap().starts_with("Allocated port ")).expect("a port is told").unwrap();
        line.split(' ').nth(2).unwrap().parse().unwrap()
    }
}

/// Three megabytes each way, the second only after the end of the first: neither direction ends the other.
fn exchange(
    mut near: impl Read + Write + Send + 'static,
    mut far: impl Read + Write,
    end_near: impl FnOnce(&mut dyn FnMut()) + Send + 'static,
    mut shut: impl FnMut() + Send + 'static,
) {
    let (up, down) = (noise(3 << 20, 1), noise(3 << 20, 2));
    let sent = up.clone();
    let sender = thread::spawn(move || {
        near.write_all(&sent).unwrap();
        end_near(&mut shut);
        let mut back = Vec::new();
        near.read_to_end(&mut back).unwrap();
        back
    });
    let mut got = Vec::new();
    far.read_to_end(&mut got).unwrap();
    assert!(got == up, "the way there, with its end: {} bytes", got.len());
    far.write_all(&down).unwrap();
    drop(far);
    let back = sender.join().unwrap();
    assert!(back == down, "the way back: {} bytes", back.len());
}

fn exchange_tcp(near: TcpStream, far: TcpStream) {
    let handle = near.try_clone().unwrap();
    exchange(near, far, |shut| shut(), move || handle.shutdown(Shutdown::Write).unwrap());
}

fn exchange_unix(near: UnixStream, far: UnixStream) {
    let handle = near.try_clone().unwrap();
    exchange(near, far, |shut| shut(), move || handle.shutdown(Shutdown::Write).unwrap());
}

fn refused(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err()
}

#[test]
fn a_port_of_the_workspace_leads_to_the_client_and_ends_with_it() {
    let Some(host) = Host::start() else { return };
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let forward = format!("0:127.0.0.1:{}", target.local_addr().unwrap().port());
    let mut client = Client::start(&host, &["-R", &forward]);
    let port = client.port();
    for _ in 0..3 {
        let near = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        exchange_tcp(near, target.accept().unwrap().0);
    }
    // Many at once.
    let pairs: Vec<_> = (0..32)
        .map(|_| {
            let near = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            (near, target.accept().unwrap().0)
        })
        .collect();
    let workers: Vec<_> = pairs.into_iter().map(|(near, far)| thread::spawn(|| exchange_tcp(near, far))).collect();
    workers.into_iter().for_each(|w| w.join().unwrap());
    drop(client);
    eventually("the port outlives its client", || refused(port));
}

#[test]
fn curl_fetches_through_a_reverse_forward() {
    let Some(host) = Host::start_with(&["ssh", "curl"], Profile::default()) else { return };
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let forward = format!("0:localhost:{}", target.local_addr().unwrap().port());
    let mut client = Client::start(&host, &["-R", &forward]);
    let url = format!("http://127.0.0.1:{}/file", client.port());
    let body = noise(10_000_000, 4);
    let sent = body.clone();
    let server = thread::spawn(move || {
        let (mut far, _) = target.accept().unwrap();
        let mut request = String::new();
        let mut lines = BufReader::new(far.try_clone().unwrap());
        while !request.ends_with("\r\n\r\n") {
            assert!(lines.read_line(&mut request).unwrap() > 0);
        }
        write!(far, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len()).unwrap();
        far.write_all(&sent).unwrap();
        request
    });
    let output = host.run(&[], &format!("curl -sS --noproxy '*' {url}"), b"");
    assert!(output.status.success() && output.stdout == body, "{}", text(&output.stderr));
    assert!(server.join().unwrap().starts_with("GET /file HTTP/1.1\r\n"));
}

#[test]
fn a_port_that_is_taken_is_refused_and_told() {
    let Some(host) = Host::start() else { return };
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let forward = format!("127.0.0.1:{}:127.0.0.1:1", taken.local_addr().unwrap().port());
    let mut ssh = host.ssh(&["-N", "-o", "ExitOnForwardFailure=yes", "-R", &forward, "x@127.0.0.1"]);
    let output = finish(ssh.spawn().unwrap());
    assert_eq!(output.status.code(), Some(255));
    assert!(text(&output.stderr).contains("remote port forwarding failed"), "{}", text(&output.stderr));
}

#[test]
fn a_forward_is_added_and_cancelled_while_the_connection_runs() {
    let Some(host) = Host::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let control = format!("ControlPath={}/c", folder.path().display());
    let _master = Client::start(&host, &["-M", "-o", &control]);
    eventually("no master", || folder.path().join("c").exists());
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let forward = format!("{at}:127.0.0.1:{}", target.local_addr().unwrap().port());
    let ask = |what: &str| {
        let mut ssh = host.ssh(&["-o", &control, "-O", what, "-R", &forward, "x@127.0.0.1"]);
        let output = finish(ssh.spawn().unwrap());
        assert!(output.status.success(), "{what}: {}", text(&output.stderr));
    };
    ask("forward");
    exchange_tcp(TcpStream::connect((Ipv4Addr::LOCALHOST, at)).unwrap(), target.accept().unwrap().0);
    ask("cancel");
    eventually("it is still there", || refused(at));
    assert_eq!(text(&host.run(&["-o", &control], "echo here", b"").stdout), "here\n");
}

#[test]
fn a_stopped_reader_behind_a_reverse_forward_stops_its_writer_and_nobody_else() {
    let Some(host) = Host::start() else { return };
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let forward = format!("0:127.0.0.1:{}", target.local_addr().unwrap().port());
    let mut client = Client::start(&host, &["-R", &forward]);
    let port = client.port();
    let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let (mut far, _) = target.accept().unwrap();
    let offered = noise(64 << 20, 5);
    let sent = offered.clone();
    let writer = thread::spawn(move || near.write_all(&sent).unwrap());
    let mut before = 0;
    eventually("it goes on for ever", || {
        // A whole exchange beside it takes its time; the stopped one has come to rest when it adds nothing but itself.
        let started = host.counters().sent;
        exchange_tcp(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap(), target.accept().unwrap().0);
        let added = host.counters().sent - started;
        let rests = before > 0 && added == 3 << 20;
        before = started;
        rests
    });
    let mut got = vec![0; offered.len()];
    far.read_exact(&mut got).unwrap();
    assert!(got == offered);
    writer.join().unwrap();
}

#[test]
fn unix_sockets_are_forwarded_in_both_directions() {
    let Some(host) = Host::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let listen = |name: &str| UnixListener::bind(path(name)).unwrap();
    let show = |name: &str| path(name).display().to_string();
    let (workspace, laptop) = (listen("workspace"), listen("laptop"));
    let there = format!("{}:{}", show("to-workspace"), show("workspace"));
    let back = format!("{}:{}", show("made/to-laptop"), show("laptop"));
    let client = Client::start(&host, &["-L", &there, "-R", &back]);
    for (name, target) in [("to-workspace", &workspace), ("made/to-laptop", &laptop)] {
        let mut near = None;
        eventually("no socket", || {
            near = UnixStream::connect(path(name)).ok();
            near.is_some()
        });
        exchange_unix(near.unwrap(), target.accept().unwrap().0);
    }
    drop(client);
    eventually("the socket outlives its client", || !path("made/to-laptop").exists());

    // A port here, a socket there.
    let local = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let _client = Client::start(&host, &["-L", &format!("{local}:{}", show("workspace"))]);
    let mut near = None;
    eventually("no port", || {
        near = TcpStream::connect((Ipv4Addr::LOCALHOST, local)).ok();
        near.is_some()
    });
    let mut near = near.unwrap();
    let (mut far, _) = workspace.accept().unwrap();
    far.write_all(b"hello").unwrap();
    drop(far);
    let mut got = Vec::new();
    near.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"hello");
}

#[test]
fn the_clients_keys_are_there_in_a_session_that_asks() {
    let Some(host) = Host::start_with(&KEY_TOOLS, Profile::default()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::start(folder.path());
    let session = |options: &[&str], command: &str| {
        let mut ssh = host.ssh(options);
        finish(ssh.args(["x@127.0.0.1", command]).env("SSH_AUTH_SOCK", &keys.socket).spawn().unwrap())
    };
    let list =
        "for i in 1 2 3; do ssh-add -l || exit; done; ls -ld \"$(dirname \"$SSH_AUTH_SOCK\")\" >&2; echo \"$SSH_AUTH_SOCK\" >&2";
    for options in [&["-A"][..], &["-A", "-tt"]] {
        let output = session(options, list);
        let shown = text(&output.stdout).replace('\r', "");
        assert!(shown.starts_with(&keys.fingerprint.repeat(3)), "{shown}{}", text(&output.stderr));
        assert!([shown, text(&output.stderr)].concat().contains("drwx------"));
    }
    let output = session(&["-A"], list);
    let socket = text(&output.stderr).lines().last().unwrap().to_owned();
    eventually("the socket outlives its connection", || !Path::new(&socket).exists());
    // It is used, not only listed.
    let sign = "ssh-add -L > \"$0.pub\" && echo data | ssh-keygen -q -Y sign -n test -f \"$0.pub\" 2>/dev/null | head -1";
    let output = session(&["-A"], &sign.replace("$0", &folder.path().join("remote").display().to_string()));
    assert_eq!(text(&output.stdout), "-----BEGIN SSH SIGNATURE-----\n", "{}", text(&output.stderr));
    let output = session(&[], "unset SSH_AUTH_SOCK_OF_THE_MACHINE; echo \"$SSH_AUTH_SOCK\"");
    assert_ne!(text(&output.stdout).trim(), socket);
}

#[test]
fn a_display_of_the_workspace_leads_to_the_clients() {
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("authority").display().to_string();
    let variables = BTreeMap::from([("XAUTHORITY".to_owned(), authority.clone())]);
    let profile = Profile { variables, ..Profile::default() };
    let Some(host) = Host::start_with(&["ssh", "xauth"], profile) else { return };
    // The client's display: a TCP port that gets what its programs send.
    let (number, display) =
        (300..900).find_map(|n| Some((n, TcpListener::bind((Ipv4Addr::LOCALHOST, 6000 + n)).ok()?))).expect("a free display");
    let mut ssh = host.ssh(&["-Y", "x@127.0.0.1", "echo $DISPLAY; xauth list $DISPLAY; read -r end"]);
    ssh.env("DISPLAY", format!("127.0.0.1:{number}.0")).env("XAUTHORITY", folder.path().join("mine")).stdin(Stdio::piped());
    let mut client = Client(ssh.spawn().unwrap());
    let mut lines = BufReader::new(client.0.stdout.take().unwrap()).lines();
    let name = lines.next().expect("a display").unwrap();
    let there: u16 = name.strip_prefix("localhost:").unwrap().strip_suffix(".0").unwrap().parse().unwrap();
    assert!((10..=200).contains(&there), "{name}");
    let line = lines.next().expect("a cookie").unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(words[0].ends_with(&format!("/unix:{there}")) && words[1] == "MIT-MAGIC-COOKIE-1", "{line}");
    let cookie: Vec<u8> = (0..words[2].len()).step_by(2).map(|i| u8::from_str_radix(&words[2][i..i + 2], 16).unwrap()).collect();

    // The first message of an X client, with that cookie; OpenSSH puts the real one in its place.
    let mut program = TcpStream::connect((Ipv4Addr::LOCALHOST, 6000 + there)).unwrap();
    let mut hello = vec![b'l', 0, 11, 0, 0, 0, 18, 0, 16, 0, 0, 0];
    hello.extend_from_slice(b"MIT-MAGIC-COOKIE-1\0\0");
    hello.extend_from_slice(&cookie);
    program.write_all(&hello).unwrap();
    let (mut far, _) = display.accept().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut got = vec![0; hello.len()];
    far.read_exact(&mut got).unwrap();
    assert_eq!(got[..32], hello[..32], "the same but for the cookie");
    far.write_all(b"answer").unwrap();
    drop(far);
    let mut answer = Vec::new();
    program.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
    client.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    eventually("the display outlives its session", || refused(6000 + there));
    assert!(fs::metadata(&authority).unwrap().len() > 0);
}
