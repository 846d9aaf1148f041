//! `coder port-forward` as programs use it: through parallel downloads, restarts, wrong ports and its end.

use crate::{
    Lab,
    harness::{
        Server, clean, coder, free_port,
        http::{auth, call},
        noise,
        process::{LIMIT, Process, run_within, text, until},
    },
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

/// Longest that a command may take to find out what is wrong.
const SOON: Duration = Duration::from_secs(15);
/// Largest datagram of the tunnel.
const DATAGRAM: usize = 1232;

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A service of the workspace: every connection gets a thread.
fn service(port: u16, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(at(port)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    port
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect_timeout(&at(port), LIMIT).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// What an echo gives back.
fn asked(stream: &mut TcpStream, question: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(question)?;
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// A forward that stands.
fn forward(server: &Server, arguments: &[&str]) -> Process {
    let arguments = [&["port-forward", "dev"], arguments].concat();
    let mut process = Process::start("coder port-forward", server.coder(&arguments));
    process.wait_for("Ready!");
    process
}

/// Ends it as a person does.
fn end(mut process: Process, signal: Signal) -> Vec<String> {
    process.signal(signal);
    let finished = process.finish(LIMIT);
    assert_eq!((finished.code(), text(&finished.stdout)), (Some(0), String::new()), "{}", finished.said());
    finished.lines
}

/// The one error line of a command that fails.
fn error(command: Command) -> String {
    let out = run_within(command, b"", SOON);
    let said = text(&out.stderr);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), String::new()), "{said}");
    said.lines().last().unwrap().strip_prefix("error: ").unwrap_or_else(|| panic!("no error: {said}")).to_owned()
}

/// The id of the workspace `dev`, and how it is.
fn dev(server: &Server) -> Value {
    call(server.address().parse().unwrap(), "GET", "/api/v2/users/me/workspace/dev", &auth(&server.token), None).json()
}

/// Asks for a build of `dev`.
fn build(server: &Server, transition: &str) {
    let id = dev(server)["id"].as_str().unwrap().to_owned();
    let mut headers = auth(&server.token);
    headers.push(("Content-Type".into(), "application/json".into()));
    let body = json!({ "transition": transition }).to_string();
    let path = format!("/api/v2/workspaces/{id}/builds");
    let answer = call(server.address().parse().unwrap(), "POST", &path, &headers, Some(&body));
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[test]
fn sixty_four_downloads_at_once_arrive_equal() {
    const LENGTH: usize = 1 << 20;
    let lab = Lab::new();
    let remote = service(0, |mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let number = text(&head).split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &noise(LENGTH, number)].concat()).unwrap();
    });
    let local = free_port();
    let process = forward(&lab.server, &["-p", &format!("{local}:{remote}")]);
    thread::scope(|scope| {
        for number in 0..64 {
            scope.spawn(move || {
                let answer = call(at(local), "GET", &format!("/{number}"), &[], None);
                assert_eq!(answer.status, 200);
                assert!(answer.body == noise(LENGTH, number), "download {number} differs");
            });
        }
    });
    end(process, Signal::INT);
}

#[test]
fn each_half_of_a_connection_ends_on_its_own() {
    let lab = Lab::new();
    // One service answers once the question has ended, one ends before it has heard anything.
    let late = service(0, |mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        question.reverse();
        stream.write_all(&question).unwrap();
    });
    let (sender, heard) = mpsc::channel();
    let early = service(0, move |mut stream| {
        stream.write_all(b"that is all").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        sender.send(rest).unwrap();
    });
    let (a, b) = (free_port(), free_port());
    let process = forward(&lab.server, &["-p", &format!("{a}:{late},{b}:{early}")]);
    let mut question = noise(3_000_000, 1);
    let mut stream = connect(a);
    stream.write_all(&question).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    question.reverse();
    assert!(answer == question, "{} bytes came back", answer.len());

    let mut stream = connect(b);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"that is all");
    stream.write_all(&question).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(heard.recv_timeout(LIMIT).unwrap() == question);
    end(process, Signal::TERM);
}

#[test]
fn datagrams_pass_whole_each_source_for_itself() {
    let lab = Lab::new();
    let service = UdpSocket::bind(at(0)).unwrap();
    let remote = service.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 2 * DATAGRAM];
        while let Ok((n, from)) = service.recv_from(&mut buffer) {
            service.send_to(&buffer[..n], from).unwrap();
        }
    });
    let local = free_port();
    let mut process = forward(&lab.server, &["--udp", &format!("{local}:{remote}")]);
    let source = || {
        let socket = UdpSocket::bind(at(0)).unwrap();
        socket.connect(at(local)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    };
    let mut buffer = [0; 2 * DATAGRAM];
    let mut answer = |socket: &UdpSocket| {
        let n = socket.recv(&mut buffer).unwrap();
        buffer[..n].to_vec()
    };
    let (a, b) = (source(), source());
    for length in [0, 1, 512, DATAGRAM] {
        let (one, other) = (noise(length, 1), noise(length, 2));
        a.send(&one).unwrap();
        b.send(&other).unwrap();
        assert_eq!((answer(&b), answer(&a)), (other, one), "{length}");
    }
    // Nothing is cut: what is too long does not come at all, and that is told once.
    for length in [DATAGRAM + 1, 9_000] {
        a.send(&noise(length, 3)).unwrap();
    }
    a.send(b"next").unwrap();
    assert_eq!(answer(&a), b"next");
    process.wait_for("datagram of 1233 bytes");
    let lines = end(process, Signal::INT);
    assert_eq!(lines.iter().filter(|line| line.contains("datagram")).count(), 1, "{lines:?}");
}

/// A question for a name and its answer (RFC 1035 §4.1), each from a port of its own as resolvers do.
#[test]
fn names_are_asked_for_through_a_forwarded_port() {
    let lab = Lab::new();
    let service = UdpSocket::bind(at(0)).unwrap();
    let remote = service.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = service.recv_from(&mut buffer) {
            let mut answer = buffer[..n].to_vec();
            // It is an answer with one record, which points at the question's name: A, IN, 60 s, 192.0.2.7.
            answer[2] |= 0x80;
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            service.send_to(&answer, from).unwrap();
        }
    });
    let local = free_port();
    let process = forward(&lab.server, &["--udp", &format!("{local}:{remote}")]);
    for id in 0..100_u16 {
        let mut question = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        question.extend(b"\x03dev\x07example\0\0\x01\0\x01");
        let socket = UdpSocket::bind(at(0)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.send_to(&question, at(local)).unwrap();
        let mut buffer = [0; 512];
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, at(local));
        assert_eq!((&buffer[..2], &buffer[n - 4..n]), (&id.to_be_bytes()[..], &[192, 0, 2, 7][..]));
    }
    end(process, Signal::INT);
}

#[test]
fn an_agent_that_was_killed_and_is_back_takes_connections_again() {
    let server = Server::start(&[]);
    let token = server.create("dev");
    let mut agent = server.agent(&token);
    let remote = service(0, echo);
    let local = free_port();
    let mut process = forward(&server, &["-p", &format!("{local}:{remote}")]);
    let mut before = connect(local);
    assert_eq!(asked(&mut before, b"before").unwrap(), b"before");
    agent.kill();
    // This one waits while the agent is away.
    let waiting = thread::spawn(move || asked(&mut connect(local), b"while it is away"));
    let _agent = server.agent(&token);
    assert_eq!(waiting.join().unwrap().unwrap(), b"while it is away");
    // The new agent knows nothing of the old connection, which ends instead of hanging.
    let ended = asked(&mut before, b"more").and_then(|_| asked(&mut before, b"more"));
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(asked(&mut connect(local), b"after").unwrap(), b"after");
    assert!(process.child.try_wait().unwrap().is_none());
    end(process, Signal::INT);
}

#[test]
fn a_connection_that_cannot_be_made_is_one_connection_less() {
    let lab = Lab::new();
    let (local, remote) = (free_port(), free_port());
    let mut process = forward(&lab.server, &["-p", &format!("{local}:{remote}")]);
    for _ in 0..2 {
        let mut nobody = connect(local);
        let ended = nobody.read(&mut [0]);
        assert!(ended.is_err(), "an end like that of an empty answer: {ended:?}");
        let line = process.wait_for("Failed to dial ");
        assert!(line.starts_with(&format!("Failed to dial 'tcp://127.0.0.1:{remote}' in workspace: ")), "{line}");
    }
    service(remote, echo);
    assert_eq!(asked(&mut connect(local), b"now").unwrap(), b"now");
    end(process, Signal::INT);
}

#[test]
fn a_workspace_that_is_deleted_or_stopped_ends_it_with_the_reason() {
    for (transition, reason) in [("delete", "deleted"), ("stop", "stopped")] {
        let lab = Lab::new();
        let remote = service(0, echo);
        let local = free_port();
        let mut process = forward(&lab.server, &["-p", &format!("{local}:{remote}")]);
        let mut open = connect(local);
        asked(&mut open, b"open").unwrap();
        build(&lab.server, transition);
        let finished = process.finish(LIMIT);
        let last = finished.lines.last().unwrap();
        assert!(finished.code() == Some(1) && last.starts_with("error: ") && last.contains(reason), "{}", finished.said());
        assert!(TcpStream::connect(at(local)).is_err(), "nothing listens any more");
    }
}

#[test]
fn sessions_end_with_the_reason_when_their_workspace_is_deleted() {
    let lab = Lab::new();
    let mut shell = Process::start("coder ssh", lab.server.coder(&["ssh", "dev", "--", "echo there; cat"]));
    shell.wait_for("there");
    let mut stdio = Process::start_with_output("coder ssh --stdio", lab.server.coder(&["ssh", "--stdio", "-v", "dev"]));
    stdio.wait_for("to=direct");
    build(&lab.server, "delete");
    for (mut process, code) in [(shell, 255), (stdio, 1)] {
        let status = process.wait(LIMIT);
        let line = process.wait_for("error: ");
        assert!(status.code() == Some(code) && line.contains("the workspace was deleted"), "{status} {line}");
    }
}

#[test]
fn a_stopped_workspace_is_started_unless_that_is_unwanted() {
    let lab = Lab::new();
    let remote = service(0, echo);
    let local = free_port();
    let spec = format!("{local}:{remote}");
    build(&lab.server, "stop");
    let said = error(lab.server.coder(&["port-forward", "dev", "--disable-autostart", "-p", &spec]));
    // The Go command line says: workspace must be started.
    let go = include_str!("../vectors/cli/port_forward_stopped_disable_autostart.txt");
    assert!(go.contains("must be started") && said.contains("must be started"), "{said}");
    let process = forward(&lab.server, &["-p", &spec]);
    assert_eq!(asked(&mut connect(local), b"started").unwrap(), b"started");
    end(process, Signal::INT);
}

#[test]
fn the_workspace_counts_as_used() {
    let lab = Lab::new();
    let used = || dev(&lab.server)["last_used_at"].clone();
    let before = used();
    let process = forward(&lab.server, &["-p", &free_port().to_string()]);
    until("the use is reported", || used() != before);
    end(process, Signal::INT);
}

/// The lines of a vector's standard error, without those of addresses that this machine does not have.
fn said_by_go(vector: &str) -> Vec<&str> {
    let six = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    let lines = vector.lines().skip_while(|line| *line != "## stderr").skip(1);
    // What Go says of its own listeners when they are closed.
    lines
        .filter(|line| six || !line.contains("[::1]"))
        .filter(|line| !line.starts_with("Error accepting connection") && *line != "Killing listener")
        .collect()
}

#[test]
fn it_says_what_the_go_command_line_says() {
    let lab = Lab::new();
    let (a, b, c, d) = (free_port(), free_port(), free_port(), free_port());
    let tcp = format!("{a}:3100,{b}");
    let process = forward(&lab.server, &["-p", &tcp, "--udp", &format!("{c}:53")]);
    let go = include_str!("../vectors/cli/port_forward_start.txt");
    let go = go.replace("18080", &a.to_string()).replace("18081", &b.to_string()).replace("15353", &c.to_string());
    assert_eq!(end(process, Signal::TERM), said_by_go(&go));

    // Both names of the command, ranges and addresses, and variables in place of flags.
    let mut command = lab.server.coder(&["tunnel", "dev"]);
    command.env("CODER_PORT_FORWARD_TCP", format!("127.0.0.1:{a}-{a}:3100-3100, 127.0.0.1:{b}:3101,127.0.0.1:{d}:80"));
    let mut process = Process::start("coder tunnel", command);
    process.wait_for("Ready!");
    let go = include_str!("../vectors/cli/port_forward_v4_addr.txt");
    let go =
        go.replace("18090", &a.to_string()).replace("18091", &b.to_string()).replace("[::1]:18095", &format!("127.0.0.1:{d}"));
    assert_eq!(end(process, Signal::INT), said_by_go(&go));
}

#[test]
fn both_loopback_addresses_lead_to_the_workspace() {
    let lab = Lab::new();
    let remote = service(0, echo);
    let local = free_port();
    let process = forward(&lab.server, &["-p", &format!("{local}:{remote}")]);
    let mut tried = Vec::new();
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        if TcpListener::bind((ip, 0)).is_err() {
            println!("skipped: this machine has no {ip}");
            continue;
        }
        let mut stream = TcpStream::connect_timeout(&(ip, local).into(), LIMIT).unwrap();
        assert_eq!(asked(&mut stream, b"here").unwrap(), b"here");
        tried.push(ip);
    }
    assert!(!tried.is_empty());
    end(process, Signal::INT);
}

#[test]
fn a_taken_port_and_a_wrong_specification_are_told() {
    let lab = Lab::new();
    let taken = TcpListener::bind(at(0)).unwrap();
    let address = taken.local_addr().unwrap();
    let said = error(lab.server.coder(&["port-forward", "dev", "-p", &format!("127.0.0.1:{}:80", address.port())]));
    let go = include_str!("../vectors/cli/port_forward_in_use.txt").lines().last().unwrap();
    // Up to here it is the same text.
    let begin = go.strip_prefix("error: ").unwrap().split(": ").next().unwrap().replace("127.0.0.1:3100", &address.to_string());
    assert!(said.starts_with(&begin) && said.contains("address already in use"), "{said}");

    // What is wrong with the line is found before anybody is asked, or logged in.
    let folder = tempfile::tempdir().unwrap();
    for (flags, part) in [
        (&["-p", "0"][..], "port cannot be 0"),
        (&["-p", "5-1"], "range end port 1 is less than start port 5"),
        (&["--tcp=host:1"], "invalid port specification \"host:1\""),
        (&["--udp", "999.1.1.1:80"], "failed to parse UDP port-forward specification \"999.1.1.1:80\""),
        (&["-p", "80", "-p", "80"], "is specified twice"),
        (&[], "no port-forwards requested"),
    ] {
        let mut command = Command::new(coder());
        clean(&mut command).args(["port-forward", "dev"]).args(flags);
        command.env("HOME", folder.path()).env("CODER_CONFIG_DIR", folder.path());
        let said = error(command);
        assert!(said.contains(part), "{flags:?}: {said}");
    }
}
