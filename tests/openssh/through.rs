//! Forwards of OpenSSH through the tunnel: `-L`, `-D`, `-R`, unix sockets, keys, and one connection shared by many.

use crate::{
    harness::{
        DeadPort, LIMIT, Process, free_port,
        keys::{KEY_TOOLS, Keys},
        noise,
        process::{text, until},
    },
    laptop::{HOST, Laptop, direct_and_relayed},
};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Serves each connection to a port of loopback by itself, until the test binary ends.
fn serve(connection: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let connection = Arc::new(connection);
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let connection = Arc::clone(&connection);
            thread::spawn(move || connection(stream));
        }
    });
    port
}

/// A server that sends back what it gets, to the end.
pub(crate) fn echo() -> u16 {
    // One that goes away in between is no failure of the server.
    serve(|stream| drop(std::io::copy(&mut &stream, &mut &stream)))
}

/// A web server that answers everything with `body`.
fn web(body: Vec<u8>) -> u16 {
    serve(move |mut stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if lines.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    })
}

/// An `ssh -N` with these forwards, once it has said that they stand.
fn forward(laptop: &Laptop, options: &[&str]) -> Process {
    let all = [&["-v", "-N", "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=DEBUG1"], options, &[HOST]].concat();
    let mut ssh = Process::start("ssh -N", laptop.openssh("ssh", &all));
    ssh.wait_for("Entering interactive session");
    ssh
}

fn curl(laptop: &Laptop, arguments: &[&str]) -> Vec<u8> {
    laptop.ok(laptop.command("curl", &[&["-sS", "--noproxy", "", "--max-time", "60"], arguments].concat()), b"").stdout
}

#[test]
fn ports_are_forwarded_to_and_from_the_workspace_and_by_socks() {
    direct_and_relayed(&["curl"], |laptop| {
        let body = noise(10_000_000, 4);
        let web = web(body.clone());
        let (local, socks) = (free_port(), free_port());
        let to = format!("{local}:127.0.0.1:{web}");
        let from = format!("0:127.0.0.1:{web}");
        let mut ssh = forward(laptop, &["-L", &to, "-D", &socks.to_string(), "-R", &from]);
        let line = match ssh.seen.iter().find(|line| line.starts_with("Allocated port ")).cloned() {
            Some(line) => line,
            None => ssh.wait_for("Allocated port "),
        };
        let remote = line.split(' ').nth(2).unwrap();
        assert!(curl(laptop, &[&format!("http://127.0.0.1:{local}/")]) == body, "-L");
        let by = format!("socks5h://127.0.0.1:{socks}");
        for name in ["127.0.0.1", "localhost"] {
            assert!(curl(laptop, &["--proxy", &by, &format!("http://{name}:{web}/")]) == body, "-D, {name}");
        }
        let there = format!("curl -sS --noproxy '*' http://127.0.0.1:{remote}/");
        assert!(laptop.ok(laptop.openssh("ssh", &[HOST, &there]), b"").stdout == body, "-R");
        // What nobody listens on is refused, and the forward goes on.
        let nobody = DeadPort::hold();
        let refused = laptop.command("curl", &["-sS", "--proxy", &by, &format!("http://{}/", nobody.address)]);
        assert!(!crate::harness::run(refused, b"").status.success());
        assert!(curl(laptop, &["--proxy", &by, &format!("http://127.0.0.1:{web}/")]) == body, "-D after a refusal");
    });
}

#[test]
fn unix_sockets_are_forwarded_both_ways_through_the_tunnel() {
    direct_and_relayed(&[], |laptop| {
        let (here, there) = (laptop.here(), laptop.there());
        let sockets = [(here.join("to"), there.join("target")), (there.join("back"), here.join("laptop"))];
        let listeners = sockets.each_ref().map(|(_, target)| UnixListener::bind(target).unwrap());
        let pairs = sockets.each_ref().map(|(from, target)| format!("{}:{}", from.display(), target.display()));
        let _ssh = forward(laptop, &["-L", &pairs[0], "-R", &pairs[1]]);
        for ((from, _), listener) in sockets.iter().zip(&listeners) {
            let mut near = UnixStream::connect(from).unwrap();
            near.write_all(b"there").unwrap();
            near.shutdown(std::net::Shutdown::Write).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            let mut got = String::new();
            far.read_to_string(&mut got).unwrap();
            far.write_all(b"back").unwrap();
            drop(far);
            let mut answer = String::new();
            near.read_to_string(&mut answer).unwrap();
            assert_eq!((got.as_str(), answer.as_str()), ("there", "back"), "{from:?}");
        }
    });
}

#[test]
fn the_laptops_keys_are_listed_in_the_workspace() {
    direct_and_relayed(&KEY_TOOLS, |laptop| {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::start(folder.path());
        let mut ssh = laptop.openssh("ssh", &["-A", HOST, "ssh-add -l"]);
        ssh.env("SSH_AUTH_SOCK", &keys.socket);
        assert_eq!(text(&laptop.ok(ssh, b"").stdout), keys.fingerprint);
    });
}

#[test]
fn a_forward_whose_reader_stopped_holds_up_nobody_else_on_its_connection() {
    const OFFERED: usize = 64 << 20;
    direct_and_relayed(&[], |laptop| {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let source = serve(move |mut stream| {
            for part in noise(OFFERED, 6).chunks(1 << 16) {
                if stream.write_all(part).is_err() {
                    return;
                }
                counted.fetch_add(part.len(), Ordering::Relaxed);
            }
        });
        let (control, local) = (format!("ControlPath={}/c", laptop.here().display()), free_port());
        let _master = forward(laptop, &["-M", "-o", &control, "-L", &format!("{local}:127.0.0.1:{source}")]);
        until("no master", || fs::exists(laptop.here().join("c")).unwrap());
        let session = |command: &str| {
            let (out, took) = laptop.timed(laptop.openssh("ssh", &["-o", &control, HOST, command]), b"");
            (text(&out.stdout), took)
        };
        let mut stopped = TcpStream::connect((Ipv4Addr::LOCALHOST, local)).unwrap();
        let mut before = 0;
        until("nothing stops the writer", || {
            assert_eq!(session("echo here").0, "here\n");
            let last = std::mem::replace(&mut before, sent.load(Ordering::Relaxed));
            before > 0 && before == last
        });
        let mut took: Vec<_> = (0..20).map(|_| session("echo here").1).collect();
        took.sort();
        println!("  {} KB wait for the reader; a session beside it takes {:?}, worst {:?}", before >> 10, took[10], took[19]);
        assert_eq!(sent.load(Ordering::Relaxed), before, "somebody read");
        let bulk = session("head -c 20000000 /dev/zero | wc -c; head -c 20000000 /dev/zero");
        assert_eq!(bulk.0.len(), "20000000\n".len() + 20_000_000);
        let mut got = Vec::new();
        stopped.set_read_timeout(Some(LIMIT)).unwrap();
        stopped.read_to_end(&mut got).unwrap();
        assert!(got == noise(OFFERED, 6), "{} bytes", got.len());
    });
}
