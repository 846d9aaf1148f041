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

#[tokio::test]
async fn what_a_proxy_refuses_names_it_without_its_password() {
    for (status, told) in [("407 Proxy Authentication Required", true), ("502 Bad Gateway", true), ("404 Not Found", false)] {
        let (base, _proxy) = serve_once(move |_| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes()).await;
        let options = HttpOptions { proxy: ProxyChoice::Url(base.replace("//", "//user:hidden@")), ..HttpOptions::default() };
        let http = Http::new("http://coder.invalid", None, options).unwrap();
        let said = http.get_json::<serde_json::Value>("/x").await.unwrap_err().to_string();
        assert_eq!(said.starts_with(&format!("coder.invalid through the proxy {base} refused with status ")), told, "{said}");
        assert!(!said.contains("hidden"), "{said}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://user:hidden@{}", listener.local_addr().unwrap());
    drop(listener);
    let options = HttpOptions { proxy: ProxyChoice::Url(nobody.clone()), ..HttpOptions::default() };
    let said = Http::new("https://coder.invalid", None, options).unwrap().upgrade_derp("/derp").await.err().unwrap().to_string();
    let shown = nobody.replace("user:hidden@", "");
    assert!(said.starts_with(&format!("cannot reach coder.invalid through the proxy {shown}: ")), "{said}");
    assert!(!said.contains("hidden"), "{said}");
}

#[tokio::test]
async fn who_comes_without_tls_to_a_server_with_it_is_told() {
    let away = "HTTP/1.1 307 Temporary Redirect\r\nLocation: https://coder.test:8443/api/x?secret=1\r\nContent-Length: 0\r\n\r\n";
    let go = "Client sent an HTTP request to an HTTPS server.\n";
    let nginx = "<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>";
    let bad = |body: &str| format!("HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n{body}");
    // A TLS alert is no HTTP.
    let alert = String::from_utf8(vec![0x15, 3, 3, 0, 2, 2, 70]).unwrap();
    for (answer, words) in [
        (away.to_owned(), "status 307: it sends to https://coder.test:8443: use that URL"),
        (bad(go), "its URL begins with https://"),
        (bad(nginx), "its URL begins with https://"),
        (alert, "its URL begins with https://"),
    ] {
        let (base, server) = serve_once(move |_| answer.into_bytes()).await;
        let call = Http::new(&base, None, direct()).unwrap();
        let (error, end) = tokio::join!(call.get_json::<serde_json::Value>("/api/x"), async { drop(server.await) });
        let said = error.unwrap_err().to_string();
        assert!(said.contains(words) && !said.contains("secret"), "{end:?}{said}");
    }
}

/// Speaks TLS with this certificate, as far as the client lets it. Gives its URL.
fn tls_server(certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> String {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut connection = rustls::ServerConnection::new(config).unwrap();
        // The client breaks it off.
        let _ = connection.complete_io(&mut stream);
    });
    format!("https://localhost:{port}")
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_told_with_what_helps() {
    let plain = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let url = tls_server(&plain.cert, &plain.signing_key);
    let said = Http::new(&url, None, direct()).unwrap().get_json::<()>("/x").await.unwrap_err().to_string();
    assert!(said.contains("UnknownIssuer") && said.contains("--client-tls-ca-file"), "{said}");
    // An authority's own certificate is none of a server's, even where it is trusted.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = authority.self_signed(&key).unwrap();
    let options = HttpOptions { extra_roots: vec![authority.der().clone()], ..direct() };
    let url = tls_server(&authority, &key);
    let said = Http::new(&url, None, options).unwrap().get_json::<()>("/x").await.unwrap_err().to_string();
    assert!(said.contains("CA:TRUE"), "{said}");
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
