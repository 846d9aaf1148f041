//! `coder ssh -R`: what connects to the workspace comes out here.

use crate::{
    Lab,
    harness::{
        DeadPort, noise,
        process::{LIMIT, Process, run, text},
    },
};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::Duration,
};

/// How soon a session answers that stands still for a moment because of a forward.
const ANSWER: Duration = Duration::from_secs(15);

/// Starts a local program that gives everything back, and its port.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    port
}

/// A session that forwards, once it stands.
fn session(lab: &Lab, forwards: &[&str]) -> Process {
    let flags: Vec<&str> = forwards.iter().flat_map(|forward| ["-R", forward]).collect();
    let command = lab.server.coder(&[&["ssh"][..], &flags, &["dev", "--", "echo up; exec cat"]].concat());
    let mut session = Process::start("coder ssh -R", command);
    session.wait_for("up");
    session
}

/// Sends and gets back what was sent, one end after the other.
fn exchange(stream: TcpStream, sent: Vec<u8>) -> Vec<u8> {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let feeding = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let (mut back, mut reader) = (Vec::new(), stream);
    reader.read_to_end(&mut back).unwrap();
    feeding.join().unwrap();
    back
}

#[test]
fn connections_to_a_port_of_the_workspace_come_out_at_a_local_one() {
    let lab = Lab::new();
    let mut session = session(&lab, &[&format!("0:localhost:{}", echo())]);
    session.drain();
    let line = session.seen.iter().find(|l| l.contains("of the workspace is forwarded here")).unwrap();
    let port: u16 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    // Several at once, each with its own end, and more than any buffer holds.
    let all: Vec<_> = (0..4u64)
        .map(|seed| {
            let sent = noise(5_000_000, seed);
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            (sent.clone(), thread::spawn(move || exchange(stream, sent)))
        })
        .collect();
    for (sent, back) in all {
        assert!(back.join().unwrap() == sent);
    }
    session.type_in(b"still\n");
    session.wait_for("still");
    session.close_stdin();
    assert_eq!(session.wait(LIMIT).code(), Some(0));
}

#[test]
fn a_socket_of_the_workspace_comes_out_at_a_local_one() {
    let (lab, folder) = (Lab::new(), tempfile::tempdir().unwrap());
    let (remote, local) = (folder.path().join("remote"), folder.path().join("local"));
    let listener = UnixListener::bind(&local).unwrap();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 4];
        stream.read_exact(&mut asked).unwrap();
        stream.write_all(b"pong").unwrap();
        asked
    });
    let mut session = session(&lab, &[&format!("{}:{}", remote.display(), local.display())]);
    let mut stream = UnixStream::connect(&remote).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!((served.join().unwrap(), answer.as_str()), (*b"ping", "pong"));
    session.close_stdin();
    assert_eq!(session.wait(LIMIT).code(), Some(0));
}

#[test]
fn a_local_program_that_does_not_read_leaves_the_session_alive() {
    let lab = Lab::new();
    let stuck = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = stuck.local_addr().unwrap().port();
    let mut session = session(&lab, &[&format!("0:127.0.0.1:{to}")]);
    session.drain();
    let line = session.seen.iter().find(|l| l.contains("is forwarded here")).unwrap().clone();
    let port: u16 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (_held, _) = stuck.accept().unwrap();
    // More than may wait for it here.
    let writer = thread::spawn(move || {
        let block = vec![7; 1 << 20];
        (0..256).try_for_each(|_| stream.write_all(&block)).is_err()
    });
    for word in ["one", "two", "three"] {
        session.type_in(format!("{word}\n").as_bytes());
        session.wait_within(word, ANSWER);
    }
    assert!(writer.join().unwrap(), "it is never cut off");
    session.type_in(b"four\n");
    session.wait_within("four", ANSWER);
}

#[test]
fn forwards_that_cannot_be_are_told() {
    let lab = Lab::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let failed = |args: &[&str]| {
        let out = run(lab.server.coder(args), b"");
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), String::new()), "{args:?}");
        text(&out.stderr)
    };
    let said = failed(&["ssh", "-R", &format!("{port}:localhost:1"), "dev", "--", "echo up"]);
    assert!(said.contains(&format!("port {port}")) && said.lines().count() == 1, "{said}");
    assert!(said.starts_with("error: the agent does not listen on port ") && !said.contains("greeting"), "{said}");
    let said = failed(&["ssh", "-R", "8080:3000", "dev"]);
    assert!(said.contains("expected: remote_port:local_address:local_port"), "{said}");
    let said = failed(&["ssh", "--stdio", "-R", "8080:localhost:3000", "dev"]);
    assert!(said.contains("remote-forward can't be enabled in the stdio mode"), "{said}");
    // Nobody listens here: whoever connects there is told by the end of the connection.
    let nobody = DeadPort::hold();
    let mut session = session(&lab, &[&format!("0:{}", nobody.address)]);
    session.drain();
    let line = session.seen.iter().find(|l| l.contains("is forwarded here")).unwrap();
    let port: u16 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    match stream.read(&mut [0; 1]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("no end: {other:?}"),
    }
}
