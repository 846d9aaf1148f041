//! The ways that company networks leave open: an HTTP proxy with a password in front of a server whose certificate a
//! private authority signed, and an ingress that lets WebSockets pass but no other upgrade.

use crate::harness::{
    DeadPort, Process, Server, clean, coder, have,
    process::{run, text},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    ops::Range,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

/// A name that no resolver knows (RFC 6761): only the proxy can reach what it stands for.
const NAME: &str = "coder.invalid";
const USER: &str = "ann";
const PASSWORD: &str = "s3cret-of-the-proxy";
/// `ann:s3cret-of-the-proxy` in Base64.
const CREDENTIALS: &str = "Basic YW5uOnMzY3JldC1vZi10aGUtcHJveHk=";

/// Certificates of an authority of our own, in files.
pub(crate) struct Files {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Files {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(folder.path().join("roots.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a certificate for these names, and its key.
    pub(crate) fn issue(&self, name: &str, names: &[&str]) -> (String, String) {
        self.issue_for(name, names, 2000..3000)
    }

    /// The same, valid from the beginning of the first of these years to that of the second.
    pub(crate) fn issue_for(&self, name: &str, names: &[&str], years: Range<i32>) -> (String, String) {
        let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let issued = params.signed_by(&key, &self.issuer).unwrap();
        let (chain, private) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        fs::write(&chain, issued.pem()).unwrap();
        fs::write(&private, key.serialize_pem()).unwrap();
        (chain, private)
    }
}

/// What a middle box was asked for, one line a connection.
type Seen = Arc<Mutex<Vec<String>>>;

/// Serves each connection in a thread of its own until the test ends.
fn serve(each: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), each) = (stream, each.clone()) else { return };
            thread::spawn(move || each(stream));
        }
    });
    address
}

/// A request's head; nothing when the connection closes before.
fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// Copies until one side ends. `pass` may stop what comes from the client.
fn splice(client: TcpStream, server: TcpStream, pass: impl Fn(&[u8]) -> bool) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (mut from_server, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let back = thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    let (mut from_client, mut to_server) = (client, server);
    let mut bytes = [0; 16_384];
    while let Ok(n @ 1..) = from_client.read(&mut bytes) {
        if !pass(&bytes[..n]) {
            let _ = from_client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = from_client.shutdown(Shutdown::Both);
            break;
        }
        if to_server.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = to_server.shutdown(Shutdown::Write);
    let _ = back.join();
}

/// A proxy that knows one name and wants a password.
fn proxy(server: SocketAddr) -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let told = Arc::clone(&seen);
    let address = serve(move |mut client| {
        let Some(head) = head(&mut client) else { return };
        let line = head.lines().next().unwrap_or_default().to_owned();
        let credentials = head.lines().find_map(|l| {
            let (name, value) = l.split_once(": ")?;
            name.eq_ignore_ascii_case("proxy-authorization").then(|| value.to_owned())
        });
        let allowed = credentials.as_deref() == Some(CREDENTIALS);
        told.lock().unwrap().push(format!("{} {line}", if allowed { "let" } else { "refused" }));
        if !allowed {
            let answer = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n";
            let _ = client.write_all(answer.as_bytes());
            return;
        }
        if !line.starts_with(&format!("CONNECT {NAME}:{} ", server.port())) {
            let _ = client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        let Ok(server) = TcpStream::connect(server) else { return };
        if client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").is_ok() {
            splice(client, server, |_| true);
        }
    });
    (address, seen)
}

/// An ingress that refuses `Upgrade: DERP` and lets everything else pass.
fn ingress(server: SocketAddr) -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let told = Arc::clone(&seen);
    let address = serve(move |client| {
        let Ok(server) = TcpStream::connect(server) else { return };
        let told = Arc::clone(&told);
        splice(client, server, move |bytes| {
            // A client writes a request's head at once.
            let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
            let upgrade = text.lines().find_map(|line| line.strip_prefix("upgrade: ").map(str::to_owned));
            if let (true, Some(upgrade)) = (text.starts_with("get /derp"), &upgrade) {
                told.lock().unwrap().push(upgrade.clone());
            }
            upgrade.as_deref() != Some("derp")
        });
    });
    (address, seen)
}

fn seen(by: &Seen) -> Vec<String> {
    std::mem::take(&mut *by.lock().unwrap())
}

fn done(out: &Output) -> String {
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// A server with TLS, and an agent beside it.
fn server(files: &Files, more: &[&str]) -> (Server, Process) {
    let (chain, key) = files.issue("server", &["127.0.0.1", NAME]);
    let tls = ["--tls-enable", "--tls-address", "127.0.0.1:0", "--tls-cert-file", &chain, "--tls-key-file", &key];
    let server = Server::start(&[&tls[..], more].concat());
    let roots = files.path("roots.pem");
    let trusting = |mut command: Command| {
        command.env("CODER_CLIENT_TLS_CA_FILE", &roots);
        command
    };
    let out = done(&run(trusting(server.coder(&["create", "dev"])), b""));
    let token = out.split("CODER_AGENT_TOKEN=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mut agent = Process::start("the agent", trusting(server.agent_command(None, &token)));
    agent.wait_for("connected to the coordinator");
    (server, agent)
}

fn socket(server: &Server) -> SocketAddr {
    server.url.trim_start_matches("https://").trim_start_matches("http://").parse().unwrap()
}

#[test]
fn a_proxy_with_a_password_and_a_private_authority_are_all_that_leads_to_the_server() {
    let files = Files::new();
    let (server, _agent) = server(&files, &[]);
    let at = socket(&server);
    let (proxy, told) = proxy(at);
    let url = format!("https://{NAME}:{}", at.port());
    let through = |password: &str, args: &[&str]| {
        let mut command = server.coder(args);
        command.env("CODER_URL", &url).env("HTTPS_PROXY", format!("http://{USER}:{password}@{proxy}"));
        command.env("CODER_CLIENT_TLS_CA_FILE", files.path("roots.pem"));
        command
    };
    let timed = |name: &str, args: &[&str]| {
        let began = Instant::now();
        let out = run(through(PASSWORD, args), b"");
        println!("{name} through the proxy: {:?}", began.elapsed());
        (done(&out), seen(&told))
    };
    let (list, ways) = timed("list", &["list"]);
    assert!(list.contains("admin/dev") && ways.len() == 1 && ways[0].starts_with("let CONNECT"), "{list}{ways:?}");
    // API, coordinator and relay go the same way: each has a connection of its own.
    let (said, ways) = timed("ssh", &["ssh", "dev", "--", "echo through"]);
    assert!(said == "through\n" && ways.len() >= 3 && ways.iter().all(|w| w.starts_with("let ")), "{said}{ways:?}");
    let (said, ways) = timed("ssh by relay", &["--disable-direct-connections", "ssh", "dev", "--", "echo by relay"]);
    assert!(said == "by relay\n" && ways.len() >= 3, "{said}{ways:?}");

    // OpenSSH, whose ProxyCommand gets the settings by the environment as an editor passes them.
    let began = Instant::now();
    let mut ssh = server.ssh(&["--disable-direct-connections"], &[], "dev", "echo over openssh");
    ssh.env("CODER_URL", &url).env("https_proxy", format!("http://{USER}:{PASSWORD}@{proxy}"));
    ssh.env("SSL_CERT_FILE", files.path("roots.pem"));
    assert_eq!(done(&run(ssh, b"")), "over openssh\n");
    println!("ssh --stdio through the proxy: {:?}", began.elapsed());
    assert!(seen(&told).len() >= 3);

    // A wrong password is told, and is not.
    let out = run(through("wrong-of-the-proxy", &["-v", "ssh", "dev", "--", "true"]), b"");
    let said = text(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains(&format!("the proxy http://{proxy} of HTTPS_PROXY")), "{said}");
    assert!(!said.contains("wrong-of-the-proxy"), "{said}");
    let mut without = through(PASSWORD, &["list"]);
    without.env_remove("HTTPS_PROXY");
    assert_eq!(run(without, b"").status.code(), Some(1), "there is another way to the server");
    // NO_PROXY takes the proxy away from what it names.
    let mut excepted = through(PASSWORD, &["list"]);
    excepted.env("NO_PROXY", NAME);
    seen(&told);
    assert_eq!(run(excepted, b"").status.code(), Some(1));
    assert_eq!(seen(&told), [""; 0]);
}

#[test]
fn no_proxy_of_the_environment_stands_between_programs_of_this_machine() {
    let nobody = DeadPort::hold();
    let through = |command: &mut Command| {
        for name in ["HTTP_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"] {
            command.env(name, format!("http://{}", nobody.address));
        }
    };
    // Server, agent and command line, API and relay.
    let folder = tempfile::tempdir().unwrap();
    let mut quickstart = Command::new(coder());
    clean(&mut quickstart).args(["quickstart", "--disable-direct-connections", "--", "echo", "up"]).env("HOME", folder.path());
    through(&mut quickstart);
    assert_eq!(done(&run(quickstart, b"")), "up\n");
    let server = Server::start(&[]);
    for url in [server.url.clone(), server.url.replace("127.0.0.1", "localhost")] {
        let mut list = server.coder(&["list"]);
        through(&mut list);
        done(&run(
            {
                list.env("CODER_URL", url);
                list
            },
            b"",
        ));
    }
}

#[test]
fn what_config_ssh_writes_holds_the_certificates_of_its_command_line() {
    if !have(&["ssh"]) {
        return;
    }
    let files = Files::new();
    let (server, _agent) = server(&files, &[]);
    // A stored login, and a path as it was typed.
    let login = server.dir.path().join("config");
    fs::create_dir_all(&login).unwrap();
    fs::write(login.join("url"), &server.url).unwrap();
    fs::write(login.join("session"), &server.token).unwrap();
    let roots = files.path("roots.pem");
    let roots = Path::new(&roots);
    let config = server.dir.path().join("ssh_config");
    let config = config.to_str().unwrap();
    let mut write = server.coder(&["config-ssh", "--yes", "--ssh-config-file", config, "--client-tls-ca-file", "roots.pem"]);
    write.current_dir(roots.parent().unwrap());
    done(&run(write, b""));
    let mut ssh = Command::new("ssh");
    clean(&mut ssh).args(["-F", config, "-o", "BatchMode=yes", "dev.coder", "echo trusted"]).env("HOME", server.dir.path());
    assert_eq!(done(&run(ssh, b"")), "trusted\n");
}

#[test]
fn an_ingress_that_lets_only_websockets_pass_costs_a_moment_and_is_named() {
    let server = Server::start(&[]);
    let _agent = server.workspace("dev");
    let (front, told) = ingress(socket(&server));
    let coder = |url: &str, args: &[&str]| {
        let mut command = server.coder(args);
        command.env("CODER_URL", url);
        let began = Instant::now();
        let out = run(command, b"");
        (out, began.elapsed())
    };
    let front = format!("http://{front}");
    for args in
        [&["-v", "ssh", "dev", "--", "echo hello"][..], &["-v", "--disable-direct-connections", "ssh", "dev", "--", "echo hello"]]
    {
        let (out, took) = coder(&front, args);
        let (_, straight) = coder(&server.url, args);
        println!("{args:?} with WebSockets alone: {took:?}, straight: {straight:?}");
        assert_eq!(done(&out), "hello\n");
        assert!(text(&out.stderr).contains("transport=websocket"), "{}", text(&out.stderr));
        let upgrades = seen(&told);
        assert!(upgrades.contains(&"derp".to_owned()) && upgrades.contains(&"websocket".to_owned()), "{upgrades:?}");
    }
    let mut command = server.coder(&["netcheck"]);
    command.env("CODER_URL", &front);
    let found = crate::netcheck::document(command);
    let region = &found["derp"]["regions"]["999"];
    assert_eq!(
        (&region["healthy"], &region["severity"], &region["warnings"][0]["code"]),
        (&true.into(), &"warning".into(), &"EDERP01".into())
    );
    let node = &region["node_reports"][0];
    assert_eq!((&node["uses_websocket"], &node["can_exchange_messages"]), (&true.into(), &true.into()));
    assert!(node["client_logs"][0].to_string().contains("400"), "{node}");
}

#[test]
fn a_server_that_asks_for_a_certificate_gets_the_one_of_the_flags() {
    let files = Files::new();
    let (client, key) = files.issue("client", &["client.test"]);
    let (chain, private) = files.issue("server", &["127.0.0.1"]);
    let roots = files.path("roots.pem");
    let tls = ["--tls-enable", "--tls-address", "127.0.0.1:0", "--tls-cert-file", &chain, "--tls-key-file", &private];
    let asking = ["--tls-client-auth", "require-and-verify", "--tls-client-ca-file", &roots];
    let server = Server::start(&[&tls[..], &asking].concat());
    let own = ["--client-tls-ca-file", &roots, "--client-tls-cert-file", &client, "--client-tls-key-file", &key];
    let out = done(&run(server.coder(&[&own[..], &["create", "dev"]].concat()), b""));
    let token = out.split("CODER_AGENT_TOKEN=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mut agent = server.agent_command(None, &token);
    agent.args(own);
    let mut agent = Process::start("the agent", agent);
    agent.wait_for("connected to the coordinator");
    let args = [&own[..], &["--disable-direct-connections", "ssh", "dev", "--", "echo with a certificate"]].concat();
    assert_eq!(done(&run(server.coder(&args), b"")), "with a certificate\n");
    // Whoever shows none does not get in; halves and broken files are told.
    let failed = |args: &[&str]| {
        let out = run(server.coder(args), b"");
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        text(&out.stderr)
    };
    assert!(failed(&["--client-tls-ca-file", &roots, "list"]).starts_with("error: "));
    assert!(failed(&["--client-tls-cert-file", &client, "list"]).contains("--client-tls-key-file"));
    assert!(failed(&["--client-tls-ca-file", &key, "list"]).contains("no certificate"));
    let missing = Path::new(&roots).with_file_name("none.pem").display().to_string();
    assert!(failed(&["--client-tls-ca-file", &missing, "list"]).contains("none.pem"));
}

#[test]
fn a_header_command_runs_once_and_its_headers_reach_api_coordinator_and_relay() {
    let server = Server::start(&[]);
    let _agent = server.workspace("dev");
    let at = socket(&server);
    let told = Seen::default();
    let heads = Arc::clone(&told);
    let front = serve(move |client| {
        let Ok(server) = TcpStream::connect(at) else { return };
        let heads = Arc::clone(&heads);
        splice(client, server, move |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if text.starts_with("GET /") || text.starts_with("POST /") {
                heads.lock().unwrap().push(text.split("\r\n\r\n").next().unwrap_or_default().to_owned());
            }
            true
        });
    });
    let runs = server.dir.path().join("runs");
    let header_command = format!("echo run >> {}; echo X-Ticket=of-$CODER_URL; echo noise >&2", runs.display());
    let mut command = server.coder(&["ssh", "--header", "X-A=1", "--header", "X-B=a=b", "--disable-direct-connections"]);
    command.args(["--header-command", &header_command, "dev", "--", "true"]).env("CODER_URL", format!("http://{front}"));
    done(&run(command, b""));
    assert_eq!(fs::read_to_string(runs).unwrap(), "run\n");
    let heads = seen(&told);
    for path in ["GET /api/v2/users/me/workspace/dev", "GET /api/v2/workspaceagents/", "/coordinate", "GET /derp "] {
        let head = heads.iter().find(|head| head.lines().next().is_some_and(|line| line.contains(path)));
        let head = head.unwrap_or_else(|| panic!("no {path} in {heads:#?}"));
        let values = |name: &str| -> Vec<&str> {
            let fields = head.lines().filter_map(|l| l.split_once(": "));
            fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v).collect()
        };
        // Once each.
        let ticket = format!("of-http://{front}");
        assert_eq!((values("x-a"), values("x-b"), values("x-ticket")), (vec!["1"], vec!["a=b"], vec![ticket.as_str()]), "{head}");
    }
}
