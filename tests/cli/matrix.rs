//! Ways to go wrong, each with its limit, its exit status and the words that name it: a table.

use crate::{
    disk::on_full_disk,
    errors::{SOON, error, names},
    harness::{Server, clean, coder, coder::server_command, have_as_root, namespace::MOUNT_TOOLS},
    proxies::Files,
};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
    thread,
};

/// Answers every request the same, and closes.
fn answers(bytes: impl Into<Vec<u8>>) -> String {
    let bytes = bytes.into();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let bytes = bytes.clone();
            thread::spawn(move || {
                let mut request = [0; 4096];
                // Who is not heard out may go away; that is the client's matter.
                let _ = stream.read(&mut request).and_then(|_| stream.write_all(&bytes));
            });
        }
    });
    address
}

fn http(status: &str, kind: &str, body: &str) -> String {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
    answers(format!("{head}Connection: close\r\n\r\n{body}"))
}

fn json(status: &str, body: &str) -> String {
    http(status, "application/json; charset=utf-8", body)
}

/// A command line whose configuration is `folder`.
fn alone(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(coder());
    clean(&mut command).args(arguments).env("HOME", folder).env("CODER_CONFIG_DIR", folder.join("config"));
    command
}

/// The same, logged in to a server.
fn to(folder: &Path, address: &str, arguments: &[&str]) -> Command {
    let mut command = alone(folder, arguments);
    let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    command.env("CODER_URL", url).env("CODER_SESSION_TOKEN", "0123456789-0123456789012345678901");
    command
}

const SSH: [&str; 3] = ["ssh", "--stdio", "dev"];

/// A command and the words that its one error line holds.
type Row = (&'static str, Command, Vec<&'static str>);

fn answers_of_servers(folder: &Path) -> Vec<Row> {
    let page = "<!DOCTYPE html><title>Welcome to the hotel</title>";
    let loops = answers("HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let headers = format!("HTTP/1.1 200 OK\r\n{}", "X-More: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(100_000));
    let row = |what, address: &str, words: &[&'static str]| (what, to(folder, address, &SSH), words.to_vec());
    let login = |what, address: &str| {
        let url = format!("http://{address}");
        (what, alone(folder, &["login", &url]), vec!["Coder server"])
    };
    let refused = r#"{"message":"Forbidden.","detail":"not for you"}"#;
    vec![
        row("a page instead of JSON", &http("200 OK", "text/html", page), &["JSON", "Coder server"]),
        login("a login at a page", &http("200 OK", "text/html", page)),
        login("a login where nothing is found", &http("404 Not Found", "text/plain", "nothing here")),
        row("a proxy's page", &http("502 Bad Gateway", "text/html", page), &["502"]),
        row("half of the JSON", &json("200 OK", r#"{"id":"00000000-"#), &["JSON"]),
        row("other JSON", &json("200 OK", "[1,2,3]"), &["JSON"]),
        row("an empty answer", &json("200 OK", ""), &["JSON"]),
        row("redirects without an end", &loops, &["redirect"]),
        row("403", &json("403 Forbidden", refused), &["Forbidden", "not for you"]),
        row("404 of another server", &http("404 Not Found", "text/plain", "nothing here"), &["404"]),
        row("429", &json("429 Too Many Requests", r#"{"message":"You've been rate limited."}"#), &["rate limited"]),
        row(
            "500",
            &json("500 Internal Server Error", r#"{"message":"An internal error.","detail":"disk full"}"#),
            &["disk full"],
        ),
        row("no answer at all", &answers(""), &["closed"]),
        row("another protocol", &answers("SSH-2.0-OpenSSH_9.2\r\n"), &["HTTP"]),
        row("headers without an end", &answers(headers), &["head is too large"]),
        row("a server without TLS", &format!("https://{}", answers("HTTP/1.1 400 Bad Request\r\n\r\n")), &["https"]),
        row("a name that is none", "http://no-such-host.invalid", &["no-such-host.invalid"]),
        row("a URL that is none", "http://exa mple", &["URL"]),
        row("another scheme", "ftp://127.0.0.1", &["http://", "https://"]),
    ]
}

fn files_and_settings(folder: &Path) -> Vec<Row> {
    let config = |name: &str| folder.join(name).join("config");
    let with = |name: &'static str, url: &[u8], session: &[u8]| {
        let dir = config(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("url"), url).unwrap();
        fs::write(dir.join("session"), session).unwrap();
        alone(&folder.join(name), &SSH)
    };
    let binary = with("binary", b"\x00\xff\xfe", b"a-b");
    let lines = with("lines", b"http://127.0.0.1:1", b"two\nlines");
    fs::create_dir_all(config("folder").join("session")).unwrap();
    fs::write(config("folder").join("url"), "http://127.0.0.1:1").unwrap();
    let session_is_folder = alone(&folder.join("folder"), &SSH);
    fs::create_dir_all(folder.join("file")).unwrap();
    fs::write(config("file"), "not a folder").unwrap();
    let config_is_file = to(&folder.join("file"), "127.0.0.1:1", &["login", "http://127.0.0.1:1"]);
    let setting = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = to(folder, "127.0.0.1:1", arguments);
        command.env(name, value);
        command
    };
    let via = |name: &str, value: &str| {
        let mut command = to(folder, "coder.invalid", &SSH);
        command.env(name, value);
        command
    };
    vec![
        ("no login", alone(folder, &SSH), vec!["login"]),
        ("a stored URL of other bytes", binary, vec!["url"]),
        ("a stored token of two lines", lines, vec!["session"]),
        ("a folder in the token's place", session_is_folder, vec!["session"]),
        ("a file in the configuration's place", config_is_file, vec!["127.0.0.1:1"]),
        ("a wait that is none", setting("CODER_SSH_WAIT", "maybe", &SSH), vec!["maybe", "auto"]),
        ("a yes that is none", setting("CODER_VERBOSE", "perhaps", &SSH), vec!["perhaps"]),
        ("a proxy that is none", via("HTTP_PROXY", "foo://"), vec!["HTTP_PROXY", "foo://"]),
        (
            "a proxy that is not there",
            via("ALL_PROXY", "http://u:0123456789-@127.0.0.1:1"),
            vec!["http://127.0.0.1:1 of ALL_PROXY"],
        ),
        ("a header without a value", setting("CODER_HEADER", "X-Nothing", &SSH), vec!["--header", "NAME=VALUE"]),
        ("an agent without a server", alone(folder, &["agent"]), vec!["CODER_AGENT_URL"]),
        ("an agent without a token", setting("CODER_AGENT_URL", "http://127.0.0.1:1", &["agent"]), vec!["CODER_AGENT_TOKEN"]),
    ]
}

fn names_and_folders(server: &Server) -> Vec<Row> {
    let folder = server.dir.path();
    let file = folder.join("a-file");
    fs::write(&file, "x").unwrap();
    let file = file.display().to_string();
    let missing = folder.join("missing").display().to_string();
    let row = |what, arguments: &[&str], words: &[&'static str]| (what, server.coder(arguments), words.to_vec());
    vec![
        row("an agent of another name", &["ssh", "dev.nope", "--", "true"], &["nope", "main"]),
        row("an owner of another name", &["ssh", "nobody/dev", "--", "true"], &["nobody"]),
        row("too many parts", &["ssh", "a.b.c.d", "--", "true"], &["a.b.c.d"]),
        row("a name that is taken", &["create", "dev"], &["dev"]),
        row("a name that none may have", &["create", "no/slash"], &["no/slash"]),
        row("a log folder that is not there", &["ssh", "--stdio", "--log-dir", &missing, "dev"], &["missing"]),
        row("a file in the network folder's place", &["ssh", "--stdio", "--network-info-dir", &file, "dev"], &["a-file"]),
        row("no name", &["ssh", "--stdio", ""], &["\"\" names no workspace", "OWNER"]),
        row("too many slashes", &["ssh", "a/b/c/d", "--", "true"], &["\"a/b/c/d\" names no workspace"]),
        row("an owner without a name", &["ping", "a/"], &["\"a/\" names no workspace"]),
        row("a command for OpenSSH's stream", &["ssh", "--stdio", "dev", "ls"], &["--stdio", "ls"]),
        row("no time for an answer", &["ping", "-n", "1", "-t", "0", "dev"], &["--timeout", "longer than 0"]),
        row("a token without a life", &["tokens", "create", "--lifetime", "0"], &["lifetime 0"]),
        row("a token of another name", &["tokens", "view", "nosuch"], &["nosuch"]),
    ]
}

fn servers(folder: &Path) -> Vec<Row> {
    let bad = folder.join("bad.json");
    fs::write(&bad, "{\"Regions\":").unwrap();
    let bad = bad.display().to_string();
    let start = |flags: &[&str]| server_command(None, folder, "127.0.0.1:0", flags);
    vec![
        ("a relay map that is not there", start(&["--derp-config-path", "/no/such/map.json"]), vec!["/no/such/map.json"]),
        ("a relay map that is none", start(&["--derp-config-path", &bad]), vec!["bad.json"]),
        ("an access URL that is none", start(&["--access-url", "nowhere"]), vec!["--access-url", "nowhere"]),
        ("a STUN address that is none", start(&["--stun-address", "nowhere"]), vec!["--stun-address", "nowhere"]),
        ("options for ssh that are none", start(&["--ssh-config-options", "Nothing"]), vec!["Nothing"]),
    ]
}

/// What a clock that is wrong leads to, here or there.
fn clocks(folder: &Path, roots: &str, early: &Server, late: &Server) -> Vec<Row> {
    let trusting = |server: &Server| {
        let mut command = to(folder, &server.url, &SSH);
        command.env("CODER_CLIENT_TLS_CA_FILE", roots);
        command
    };
    let expired = r#"{"message":"You are signed out.","detail":"API key expired at \"2026-01-01 00:00:00 +0000 UTC\""}"#;
    let head = "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nConnection: close";
    let at = |date: &str| answers(format!("{head}\r\nDate: {date}\r\nContent-Length: {}\r\n\r\n{expired}", expired.len()));
    let (ahead, behind) = (at("Thu, 01 Jan 2099 00:00:00 GMT"), at("Sat, 01 Jan 2000 00:00:00 GMT"));
    vec![
        ("a certificate of the future", trusting(early), vec!["not valid before 2100-01-01", "clock of this machine says"]),
        ("a certificate of the past", trusting(late), vec!["valid until 2020-01-01", "is the clock right?"]),
        ("an expired login", to(folder, &json("401 Unauthorized", expired), &SSH), vec!["API key expired at", "login"]),
        ("a server in the future", to(folder, &ahead, &SSH), vec!["expired", "days ahead of this machine's"]),
        ("a server in the past", to(folder, &behind, &SSH), vec!["expired", "days behind this machine's"]),
    ]
}

fn keys(folder: &Path, files: &Files) -> Vec<Row> {
    let ((chain, key), (other, _), missing) = (files.issue("a", &["a.test"]), files.issue("b", &["b.test"]), files.path("none"));
    let client = |chain: &str, key: &str| {
        to(folder, "127.0.0.1:1", &["list", "--client-tls-cert-file", chain, "--client-tls-key-file", key])
    };
    let server = |chain: &str, key: &str| {
        server_command(None, folder, "127.0.0.1:0", &["--tls-enable", "--tls-cert-file", chain, "--tls-key-file", key])
    };
    let mut agent = alone(folder, &["agent"]);
    agent.env("CODER_AGENT_URL", "http://127.0.0.1:1").env("CODER_AGENT_TOKEN_FILE", &missing);
    vec![
        ("a client's key that is not there", client(&chain, &missing), vec!["cannot read", "none"]),
        ("a client's key that is none", client(&chain, &chain), vec!["a.crt", "no private key"]),
        ("a client's key of another certificate", client(&other, &key), vec!["a.key", "b.crt", "together"]),
        ("a server's key that is not there", server(&chain, &missing), vec!["none"]),
        ("a server's key of another certificate", server(&other, &key), vec!["a.key", "b.crt"]),
        ("an agent's token that is not there", agent, vec!["none"]),
    ]
}

/// Each writes into a folder without room.
fn full_disks(folder: &Path, server: &Server) -> Vec<Row> {
    if !have_as_root(&MOUNT_TOOLS) {
        return Vec::new();
    }
    let full = folder.join("full");
    fs::create_dir(&full).unwrap();
    let file = |name: &str| full.join(name).display().to_string();
    let config = server.coder(&["config-ssh", "--yes", "--ssh-config-file", &file("ssh-config")]);
    let data = server_command(None, &full, "127.0.0.1:0", &[]);
    let row = |what, command, words: &[&'static str]| (what, on_full_disk(&full, &command), words.to_vec());
    vec![
        row("no room for OpenSSH's file", config, &["ssh-config", "No space left on device"]),
        row("no room for a server's data", data, &["data"]),
    ]
}

/// Each ends with status 1 and one line on standard error, within its limit; on standard output there is nothing.
#[test]
fn fifty_ways_to_go_wrong_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&[]);
    let _agent = server.workspace("dev");
    let mut rows = answers_of_servers(folder.path());
    rows.extend(files_and_settings(folder.path()));
    rows.extend(names_and_folders(&server));
    rows.extend(servers(folder.path()));
    let files = Files::new();
    let valid = |name: &str, years| {
        let (chain, key) = files.issue_for(name, &["127.0.0.1"], years);
        Server::start(&["--tls-enable", "--tls-address", "127.0.0.1:0", "--tls-cert-file", &chain, "--tls-key-file", &key])
    };
    let (early, late) = (valid("early", 2100..2200), valid("late", 2000..2020));
    rows.extend(clocks(folder.path(), &files.path("roots.pem"), &early, &late));
    rows.extend(keys(folder.path(), &files));
    assert!(rows.len() >= 50, "{}", rows.len());
    rows.extend(full_disks(folder.path(), &server));
    let mut wrong = Vec::new();
    for (what, command, words) in rows {
        println!("{what}");
        let line = thread::spawn(move || {
            let line = error(command, SOON);
            names(&line, &words);
            assert!(!line.contains("0123456789-"), "a token is shown: {line}");
        });
        if let Err(why) = line.join() {
            let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
            wrong.push(format!("{what}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{} of the table do not hold:\n{}", wrong.len(), wrong.join("\n"));
}
