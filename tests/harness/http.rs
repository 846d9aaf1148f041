//! A client of few lines that hides nothing of an answer.

use super::process::LIMIT;
use serde_json::Value;
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

/// An HTTP answer as it came, its body without chunk heads.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }
}

/// A connection whose answer has begun: an upgrade, or a stream without end.
pub struct Opened {
    pub answer: Answer,
    /// None after its end.
    stream: Option<TcpStream>,
    /// Read, not yet asked for.
    rest: Vec<u8>,
}

impl Opened {
    /// An answer that is whole.
    pub fn ended(answer: Answer) -> Self {
        Self { answer, stream: None, rest: Vec::new() }
    }

    /// Waits until so many bytes are there, then takes them.
    fn take(&mut self, len: usize) -> Vec<u8> {
        while self.rest.len() < len {
            assert!(self.fill() > 0, "the server hung up after {:?}", String::from_utf8_lossy(&self.rest));
        }
        let rest = self.rest.split_off(len);
        std::mem::replace(&mut self.rest, rest)
    }

    /// Takes what comes up to the end of `mark`.
    pub fn until(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.rest.windows(mark.len()).position(|w| w == mark) {
                return self.take(at + mark.len());
            }
            assert!(self.fill() > 0, "the server hung up after {:?}", String::from_utf8_lossy(&self.rest));
        }
    }

    /// The first bytes after the head.
    pub fn first_bytes(&mut self, len: usize) -> Vec<u8> {
        self.take(len)
    }

    /// The next WebSocket message: opcode and bytes of its frames together (RFC 6455 §5.4).
    pub fn message(&mut self) -> (u8, Vec<u8>) {
        let (mut opcode, mut message) = (0, Vec::new());
        loop {
            let head = self.take(2);
            assert_eq!(head[1] & 0x80, 0, "a server's frame is masked");
            let length = match head[1] & 0x7f {
                126 => self.take(2).iter().fold(0, |n, byte| n << 8 | usize::from(*byte)),
                127 => self.take(8).iter().fold(0, |n, byte| n << 8 | usize::from(*byte)),
                short => usize::from(short),
            };
            if head[0] & 0x0f != 0 {
                opcode = head[0] & 0x0f;
            }
            message.extend(self.take(length));
            if head[0] & 0x80 != 0 {
                return (opcode, message);
            }
        }
    }

    fn fill(&mut self) -> usize {
        let mut buffer = [0; 16_384];
        let Some(stream) = &mut self.stream else { return 0 };
        loop {
            match stream.read(&mut buffer) {
                Ok(n) => {
                    self.rest.extend_from_slice(&buffer[..n]);
                    return n;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("no answer: {error}; so far {:?}", String::from_utf8_lossy(&self.rest)),
            }
        }
    }
}

/// Sends a request and reads the head of its answer.
pub fn open(address: SocketAddr, method: &str, path: &str, headers: &[(String, String)], body: Option<&str>) -> Opened {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).expect("the server listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    if let Some(body) = body {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    request += body.unwrap_or_default();
    stream.write_all(request.as_bytes()).expect("the server reads");
    let answer = Answer { status: 0, headers: Vec::new(), body: Vec::new() };
    let mut opened = Opened { answer, stream: Some(stream), rest: Vec::new() };
    let head = String::from_utf8(opened.until(b"\r\n\r\n")).expect("a head is text");
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    opened.answer.status = status.unwrap_or_else(|| panic!("no status in {head:?}"));
    let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    opened.answer.headers = lines.map(|line| field(line).unwrap_or_else(|| panic!("no header: {line:?}"))).collect();
    opened
}

/// A whole call on a connection of its own.
pub fn call(address: SocketAddr, method: &str, path: &str, headers: &[(String, String)], body: Option<&str>) -> Answer {
    let mut opened = open(address, method, path, headers, body);
    let header = |name| opened.answer.header(name).map(str::to_owned);
    if header("transfer-encoding").is_some_and(|value| value == "chunked") {
        loop {
            let size = opened.until(b"\r\n");
            let size = str::from_utf8(&size).ok().and_then(|size| usize::from_str_radix(size.trim_end(), 16).ok());
            let chunk = opened.take(size.expect("a chunk has a size") + 2);
            if chunk.len() == 2 {
                break;
            }
            opened.answer.body.extend_from_slice(&chunk[..chunk.len() - 2]);
        }
    } else if let Some(length) = header("content-length") {
        opened.answer.body = opened.take(length.parse().expect("a length is a number"));
    } else if opened.answer.status != 204 {
        while opened.fill() > 0 {}
        opened.answer.body = std::mem::take(&mut opened.rest);
    }
    opened.answer
}

/// The header of a session or agent token.
pub fn auth(token: &str) -> Vec<(String, String)> {
    vec![("Coder-Session-Token".to_owned(), token.to_owned())]
}

/// The headers of a WebSocket handshake.
pub fn handshake(token: &str) -> Vec<(String, String)> {
    let mut headers = auth(token);
    for (name, value) in [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        headers.push((name.to_owned(), value.to_owned()));
    }
    headers
}
