//! The client against a scripted server on loopback: one connection an answer.

use super::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Answers the next connection with what `answer` makes of the request's head, and returns that head.
async fn serve_once(answer: impl FnOnce(&str) -> Vec<u8> + Send + 'static) -> (String, JoinHandle<(String, TcpStream)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        stream.write_all(&answer(&head)).await.unwrap();
        (head, stream)
    });
    (format!("http://{address}"), task)
}

fn json(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().filter_map(|l| l.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
}

fn direct() -> HttpOptions {
    HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() }
}

#[tokio::test]
async fn token_and_extra_headers_travel_with_every_call() {
    let (base, server) = serve_once(|_| json("200 OK", r#"{"version":"v2"}"#)).await;
    let options = HttpOptions { headers: vec![("X-Corp".into(), "secret=1".into())], ..direct() };
    let http = Http::new(&format!("{base}/prefix/"), Some(Token::new("tok-en")), options).unwrap();
    let got: serde_json::Value = http.get_json("/api/v2/buildinfo?x=1").await.unwrap();
    assert_eq!(got["version"], "v2");
    let (head, _) = server.await.unwrap();
    assert!(head.starts_with("GET /prefix/api/v2/buildinfo?x=1 HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "coder-session-token"), Some("tok-en"));
    assert_eq!(header(&head, "x-corp"), Some("secret=1"));
    assert_eq!(header(&head, "cookie"), None);
}

#[tokio::test]
async fn a_client_for_another_server_carries_no_token() {
    let (base, server) = serve_once(|_| json("200 OK", "{}")).await;
    let http = Http::new("http://coder.invalid", Some(Token::new("tok-en")), direct()).unwrap();
    http.at(&base).unwrap().call(Method::Get, "/derp/latency-check", None::<&()>).await.unwrap();
    assert_eq!(header(&server.await.unwrap().0, "coder-session-token"), None);
}

#[tokio::test]
async fn a_refusal_says_what_the_server_said() {
    let body = r#"{"message":"Invalid token.","detail":"It is old.","validations":[{"field":"resume_token","detail":"bad"}]}"#;
    let (base, _server) = serve_once(move |_| json("401 Unauthorized", body)).await;
    let http = Http::new(&base, Some(Token::new("tok-en")), direct()).unwrap();
    let error = http.get_json::<serde_json::Value>("/api/v2/users/me?secret=1").await.unwrap_err();
    assert_eq!(error.status(), Some(401));
    let HttpError::Refused(refusal) = &error else { panic!("{error:?}") };
    assert_eq!(refusal.request, "GET /api/v2/users/me");
    assert_eq!(refusal.message, "Invalid token.");
    assert_eq!(refusal.validations[0].field, "resume_token");
    let text = format!("{error} {error:?} {http:?}");
    assert!(text.contains("refused with status 401: Invalid token (It is old); resume_token: bad"), "{text}");
    assert!(!text.contains("tok-en") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_page_instead_of_json_is_not_shown() {
    let (base, _server) = serve_once(|_| b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 14\r\n\r\n<html>x</html>".to_vec()).await;
    let error = Http::new(&base, None, direct()).unwrap().get_json::<()>("/x").await.unwrap_err();
    assert!(error.to_string().ends_with("refused with status 502: Bad Gateway"), "{error}");
}

#[tokio::test]
async fn a_refused_connection_names_the_host_and_not_the_query() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let http = Http::new(&format!("http://{address}"), None, direct()).unwrap();
    let error = http.get_json::<()>("/x?secret=1").await.unwrap_err();
    assert!(error.is_connect());
    let text = error.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("refused") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_redirect_to_another_origin_is_not_followed() {
    let (elsewhere, other) = serve_once(|_| json("200 OK", "{}")).await;
    let location = format!("HTTP/1.1 302 Found\r\nLocation: {elsewhere}/\r\nContent-Length: 0\r\n\r\n").into_bytes();
    let (base, _server) = serve_once(move |_| location).await;
    let http = Http::new(&base, Some(Token::new("tok-en")), direct()).unwrap();
    assert_eq!(http.get_json::<()>("/x").await.unwrap_err().status(), Some(302));
    assert!(!other.is_finished());
    other.abort();
}

#[tokio::test]
async fn an_upgrade_keeps_the_bytes_behind_the_101() {
    let (base, server) = serve_once(|_| {
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n\r\nleftover".to_vec()
    })
    .await;
    let mut io = Http::new(&base, None, direct()).unwrap().upgrade_derp("/derp").await.unwrap();
    let mut got = [0; 8];
    io.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"leftover");
    let (head, mut stream) = server.await.unwrap();
    assert_eq!(header(&head, "upgrade"), Some("DERP"));
    assert_eq!(header(&head, "connection"), Some("Upgrade"));
    io.write_all(b"up").await.unwrap();
    let mut got = [0; 2];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"up");
}

fn accept(head: &str, more: &str) -> Vec<u8> {
    let key = accept_key(header(head, "sec-websocket-key").unwrap().as_bytes());
    format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n{more}\r\n")
        .into_bytes()
}

#[tokio::test]
async fn a_websocket_opens_with_its_subprotocol_and_carries_bytes() {
    let (base, server) = serve_once(|head| accept(head, "Sec-WebSocket-Protocol: derp\r\n")).await;
    let http = Http::new(&base, None, direct()).unwrap();
    let mut socket = http.websocket("/derp", Some("derp")).await.unwrap();
    let (head, stream) = server.await.unwrap();
    assert_eq!(header(&head, "sec-websocket-protocol"), Some("derp"));
    assert_eq!(header(&head, "sec-websocket-extensions"), None);
    socket.send_binary(&b"hello"[..]).await.unwrap();
    let mut far = super::super::websocket::ByteStream::new(WebSocket::server(stream, MAX_MESSAGE));
    let mut got = [0; 5];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
}

#[tokio::test]
async fn a_websocket_that_is_not_accepted_or_speaks_otherwise_is_refused() {
    let wrong: [fn(&str) -> Vec<u8>; 3] = [
        |_| b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".to_vec(),
        |head| accept(head, ""),
        |head| accept(head, "Sec-WebSocket-Protocol: derp\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"),
    ];
    for answer in wrong {
        let (base, _server) = serve_once(answer).await;
        let error = Http::new(&base, None, direct()).unwrap().websocket("/derp", Some("derp")).await.unwrap_err();
        assert!(matches!(error, HttpError::Answer { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_https_call_asks_the_proxy_with_credentials() {
    let (base, proxy) = serve_once(|_| b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n".to_vec()).await;
    let with_user = base.replace("http://", "http://user:pass@");
    let options = HttpOptions { proxy: ProxyChoice::Url(with_user), ..HttpOptions::default() };
    let http = Http::new("https://coder.invalid", None, options).unwrap();
    let error = http.upgrade_derp("/derp").await.err().unwrap();
    assert!(error.is_connect(), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("pass"));
    let (head, _) = proxy.await.unwrap();
    assert!(head.starts_with("CONNECT coder.invalid:443 HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "proxy-authorization"), Some("Basic dXNlcjpwYXNz"));
}

#[tokio::test]
async fn a_plain_call_goes_through_the_proxy_too() {
    let (base, proxy) = serve_once(|_| json("200 OK", "{}")).await;
    let options = HttpOptions { proxy: ProxyChoice::Url(base), ..HttpOptions::default() };
    Http::new("http://coder.invalid", None, options).unwrap().get_json::<serde_json::Value>("/x").await.unwrap();
    assert!(proxy.await.unwrap().0.starts_with("GET http://coder.invalid/x HTTP/1.1\r\n"));
}

#[test]
fn only_urls_of_servers_are_taken() {
    for bad in ["coder.example.com", "ftp://x", "http://", "unix:/x", "http://user:pass@x", ""] {
        let error = Http::new(bad, None, direct()).unwrap_err();
        assert!(matches!(error, HttpError::Url(_)), "{bad}: {error}");
    }
    let http = Http::new(" https://[::1]:8443/ ", None, direct()).unwrap();
    assert_eq!(http.endpoint(), ("::1".to_owned(), 8443, false));
    assert_eq!(Http::new("http://x", None, direct()).unwrap().endpoint(), ("x".to_owned(), 80, true));
}

#[test]
fn no_debug_form_shows_a_secret() {
    let options = HttpOptions {
        headers: vec![("X".into(), "hidden-value".into())],
        proxy: ProxyChoice::Url("http://u:hidden-value@p".into()),
        ..HttpOptions::default()
    };
    let http = Http::new("http://x", Some(Token::new("hidden-value")), options.clone()).unwrap();
    assert!(!format!("{options:?} {:?} {http:?} {:?}", options.proxy, http.token()).contains("hidden-value"));
}
