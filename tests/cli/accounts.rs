//! Logins, tokens, and what is shown of a workspace and a machine.

use crate::{
    Lab,
    harness::{
        Server, clean, coder,
        coder::server_command,
        process::{Process, run, text},
        terminal::Terminal,
    },
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    thread::JoinHandle,
};

/// A command line that knows nothing but this folder.
fn alone(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(coder());
    clean(&mut command).args(args).env("CODER_CONFIG_DIR", folder).env("HOME", folder);
    command
}

fn done(out: &Output) -> String {
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// The one error line of what went wrong.
fn failed(out: &Output) -> String {
    assert_eq!(out.status.code(), Some(1), "{}{}", text(&out.stdout), text(&out.stderr));
    let said = text(&out.stderr);
    let line = said.lines().find(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("no error line: {said}"));
    line.to_owned()
}

fn stored(folder: &Path) -> String {
    fs::read_to_string(folder.join("session")).unwrap()
}

#[test]
fn a_login_is_stored_shown_and_ended() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let (folder, url) = (folder.path(), server.url.as_str());
    // A token that is given is exchanged for one of this machine's own.
    let mut command = alone(folder, &["login", url]);
    command.env("CODER_SESSION_TOKEN", &server.token);
    let said = done(&run(command, b""));
    let welcome = "  Welcome to Coder, admin! You're authenticated.\n";
    assert_eq!(said, format!("Attempting to authenticate with argument URL: '{url}'\n{welcome}"));
    let minted = stored(folder);
    assert!(minted != server.token && minted.len() == 33, "{minted}");
    assert_eq!(done(&run(alone(folder, &["login", "token"]), b"")), format!("{minted}\n"));
    // What was stored is enough from now on, also for a second login.
    let mut command = alone(folder, &["login"]);
    command.env("CODER_SESSION_TOKEN", &server.token);
    assert!(done(&run(command, b"")).contains("with config URL"));
    let again = stored(folder);
    assert_ne!(again, minted);

    assert_eq!(
        done(&run(alone(folder, &["whoami"]), b"")),
        format!("Coder is running at {url}, You're authenticated as admin !\n")
    );
    let shown = done(&run(alone(folder, &["whoami", "-o", "json"]), b""));
    let json: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&json[0]["url"], &json[0]["username"], &json[0]["roles"]["*"][0]),
        (&url.into(), &"admin".into(), &"Owner".into())
    );
    let shown = done(&run(alone(folder, &["whoami", "-o", "table", "-c", "Username,ID"]), b""));
    assert!(shown.starts_with("USERNAME  ID ") && !shown.contains(url) && !shown.ends_with('\n'), "{shown}");

    // Without an answer nothing happens.
    assert!(failed(&run(alone(folder, &["logout"]), b"")).contains("--yes"));
    assert_eq!(run(alone(folder, &["logout"]), b"no\n").status.code(), Some(1));
    assert_eq!(stored(folder), again);
    let said = done(&run(alone(folder, &["logout"]), b"yes\n"));
    assert!(said.ends_with("  You are no longer logged in. You can log in using 'coder login <url>'.\n"), "{said}");
    assert!(!folder.join("session").exists() && !folder.join("url").exists());
    // The server has forgotten it, too.
    assert!(failed(&run(server.coder_as(&again, &["whoami"]), b"")).contains("401"));
    assert_eq!(done(&run(server.coder_as(&minted, &["whoami"]), b"")).lines().count(), 1);
    for args in [&["logout", "-y"][..], &["login", "token"], &["whoami"]] {
        assert!(failed(&run(alone(folder, args), b"")).contains("not logged in"), "{args:?}");
    }
}

#[test]
fn editors_log_in_without_a_terminal_and_their_token_is_stored_itself() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let (folder, url) = (folder.path(), server.url.as_str());
    let dir = folder.to_str().unwrap();
    let jetbrains = ["login", url, "--use-token-as-session", "--token", &server.token, "--global-config", dir];
    assert!(done(&run(alone(folder, &jetbrains), b"")).contains("Welcome to Coder, admin!"));
    assert_eq!(stored(folder), server.token);
    fs::remove_file(folder.join("session")).unwrap();
    let mut command = alone(folder, &["--global-config", dir, "login", "--use-token-as-session", url]);
    command.env("CODER_SESSION_TOKEN", &server.token);
    done(&run(command, b""));
    assert_eq!(stored(folder), server.token);
    // Piped instead of given.
    fs::remove_file(folder.join("session")).unwrap();
    let said = done(&run(alone(folder, &["login", "--use-token-as-session", url]), format!("{}\n", server.token).as_bytes()));
    assert!(said.contains(&format!("{url}/cli-auth")) && said.contains("Welcome"), "{said}");
    assert_eq!(stored(folder), server.token);
    for input in [&b""[..], b"\n", b"0123456789-0123456789012345678901\n"] {
        let line = failed(&run(alone(folder, &["login", url]), input));
        assert!(line.contains("token") && !line.contains("0123456789-"), "{line}");
    }
    assert_eq!(stored(folder), server.token, "a failed login leaves the old one");
}

#[test]
fn at_a_terminal_a_token_is_pasted_unseen_and_may_be_tried_again() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(alone(folder.path(), &["login", &server.url]));
    terminal.wait_for("> Paste your token here: ");
    terminal.type_in("0123456789-0123456789012345678901\n");
    terminal.wait_for("That is no token of this deployment.");
    terminal.wait_for("> Paste your token here: ");
    terminal.type_in(&format!("{}\n", server.token));
    terminal.wait_for("Welcome to Coder, admin!");
    assert!(terminal.wait(crate::harness::LIMIT).success());
    assert!(!terminal.shown().contains(&server.token) && !terminal.shown().contains("0123456789-"));
    let minted = stored(folder.path());
    assert!(minted != server.token && minted.len() == 33, "{minted}");
}

#[test]
fn a_logout_ends_what_its_login_made_and_not_the_token_of_the_file() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let (folder, url) = (folder.path(), server.url.as_str());
    let log_in = |token: &str| done(&run(alone(folder, &["login", url]), format!("{token}\n").as_bytes()));
    let log_out = || text(&run(alone(folder, &["logout", "--yes"]), b"").stderr);
    let lives = |token: &str| run(server.coder_as(token, &["list"]), b"").status.success();
    // As the server says it: coder login URL < admin-token
    log_in(&server.token);
    let minted = stored(folder);
    assert!(minted != server.token && lives(&minted), "{minted}");
    assert_eq!(log_out(), "");
    assert_eq!([lives(&minted), lives(&server.token)], [false, true]);

    // A token that may not make another one is stored itself. It was made for something else, too.
    let scoped =
        done(&run(server.coder(&["tokens", "create", "--name", "ci", "--scope", "workspace:read,user:read_personal"]), b""));
    let scoped = scoped.trim_end();
    log_in(scoped);
    assert_eq!(stored(folder), scoped);
    let said = log_out();
    assert!(said.contains("was given to it") && !folder.join("session").exists() && lives(scoped), "{said}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "a logout leaves nothing");
}

/// A Coder server without users, for as many calls as setting one up takes. Gives what was posted.
fn new_deployment() -> (String, JoinHandle<Vec<(String, Value)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = std::thread::spawn(move || {
        let mut posted = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (line, body) = request(&mut stream);
            let (status, answer) = match line.as_str() {
                "GET /api/v2/users/first" => ("404 Not Found", r#"{"message":"The initial user has not been created!"}"#),
                "POST /api/v2/users/first" => ("201 Created", r#"{"user_id":"73ffe1b2-039b-4a45-9a50-1a88b2c147b1"}"#),
                "POST /api/v2/users/login" => ("201 Created", r#"{"session_token":"abcdefghij-0123456789012345678901"}"#),
                "GET /api/v2/users/me" => ("200 OK", r#"{"id":"73ffe1b2-039b-4a45-9a50-1a88b2c147b1","username":"ann"}"#),
                other => panic!("{other} was not expected"),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n");
            write!(stream, "{head}Content-Length: {}\r\n\r\n{answer}", answer.len()).unwrap();
            if let Some(body) = body {
                posted.push((line.clone(), body));
            }
            if line == "GET /api/v2/users/me" {
                break;
            }
        }
        posted
    });
    (url, serve)
}

/// Method and path, and the body if there is one.
fn request(stream: &mut TcpStream) -> (String, Option<Value>) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let line = first.rsplit_once(' ').unwrap().0.to_owned();
    (line, (length > 0).then(|| serde_json::from_slice(&body).unwrap()))
}

#[test]
fn a_new_deployment_gets_its_first_user_from_flags() {
    let folder = tempfile::tempdir().unwrap();
    let (url, serve) = new_deployment();
    // Without a name and a terminal nobody is made.
    let line = failed(&run(alone(folder.path(), &["login", &url]), b""));
    assert!(line.contains("non-interactive") && line.contains("--first-user-username"), "{line}");
    let flags = ["--first-user-email", "a@example.com", "--first-user-username", "ann", "--first-user-trial=false"];
    let mut command = alone(folder.path(), &[&["login", &url][..], &flags].concat());
    command.env("CODER_FIRST_USER_PASSWORD", "correct horse battery");
    let said = done(&run(command, b""));
    assert!(said.contains("  Your Coder deployment hasn't been set up!\n"), "{said}");
    assert!(said.contains("Welcome to Coder, ann! You're authenticated.") && !said.contains("horse"), "{said}");
    let posted = serve.join().unwrap();
    let [(first, user), (second, login)] = &posted[..] else { panic!("{posted:?}") };
    assert_eq!((first.as_str(), second.as_str()), ("POST /api/v2/users/first", "POST /api/v2/users/login"));
    let want = r#"{"email":"a@example.com","name":"","password":"correct horse battery","trial":false,"username":"ann"}"#;
    assert_eq!(*user, serde_json::from_str::<Value>(want).unwrap());
    assert_eq!(login["email"], "a@example.com");
    assert_eq!(stored(folder.path()), "abcdefghij-0123456789012345678901");
}

#[test]
fn our_own_server_gets_its_first_user_from_flags_where_that_is_wanted() {
    let (dir, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let command = server_command(None, dir.path(), "127.0.0.1:0", &["--first-user-by-request"]);
    let mut server = Process::start("the server", command);
    let line = server.wait_for("listening on ");
    let url = line.split("listening on ").nth(1).unwrap().split_whitespace().next().unwrap();
    let flags = ["--first-user-email", "a@example.com", "--first-user-username", "ann", "--first-user-full-name", "Ann A"];
    let mut command = alone(folder.path(), &[&["login", url][..], &flags].concat());
    command.env("CODER_FIRST_USER_PASSWORD", "correct horse battery");
    assert!(done(&run(command, b"")).contains("Welcome to Coder, ann!"));
    assert!(done(&run(alone(folder.path(), &["whoami"]), b"")).contains("authenticated as ann"));
}

#[test]
fn tokens_are_made_listed_used_and_deleted() {
    let server = Server::start(&[]);
    let coder = |args: &[&str]| run(server.coder(args), b"");
    let token = done(&coder(&["tokens", "create", "--name", "ci", "--lifetime", "1d"]));
    let token = token.trim_end();
    let id = token.split_once('-').unwrap().0;
    assert_eq!(done(&run(server.coder_as(token, &["whoami", "-o", "table", "-c", "username"]), b"")), "USERNAME  \nadmin     ");
    let list = done(&coder(&["tokens", "list"]));
    assert!(list.starts_with("ID          NAME  SCOPES     ALLOW LIST  LAST USED             EXPIRES AT "), "{list}");
    assert!(list.contains(&format!("{id}  ci    coder:all  *:*  ")) && !list.contains(token), "{list}");
    let json: Value = serde_json::from_str(&done(&coder(&["tokens", "ls", "-o", "json"]))).unwrap();
    let entry = json.as_array().unwrap().iter().find(|t| t["id"] == id).unwrap();
    assert_eq!((&entry["token_name"], &entry["lifetime_seconds"]), (&"ci".into(), &86_400.into()));
    let view = done(&coder(&["token", "view", "ci", "-c", "name,id"]));
    assert_eq!(view, format!("NAME  ID          \nci    {id}  \n"));
    let by_id: Value = serde_json::from_str(&done(&coder(&["tokens", "view", id, "-o", "json"]))).unwrap();
    assert_eq!(by_id["token_name"], "ci");

    let line = failed(&coder(&["tokens", "create", "--lifetime", "1000y"]));
    assert!(line.contains("lifetime (8760000h0m0s) is greater than the maximum allowed lifetime ("), "{line}");
    assert!(failed(&coder(&["tokens", "create", "--lifetime", "5"])).contains("missing unit"));
    assert!(failed(&coder(&["tokens", "create", "--name", "ci"])).contains("409"));
    assert!(failed(&coder(&["tokens", "rm", "nosuch"])).contains("404"));

    // Named by itself, as it is in somebody's clipboard.
    assert_eq!(done(&coder(&["tokens", "remove", token])), "Token has been deleted.\n");
    assert!(failed(&run(server.coder_as(token, &["whoami"]), b"")).contains("401"));
    let line = failed(&coder(&["tokens", "remove", token]));
    assert!(!line.contains(token.split_once('-').unwrap().1), "{line}");
}

#[test]
fn a_workspace_is_shown_as_a_tree_in_a_box() {
    let lab = Lab::new();
    let shown = done(&run(lab.server.coder(&["show", "dev"]), b""));
    println!("{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with('┌') && lines[1].starts_with("│ RESOURCE ") && lines[2].starts_with('├'), "{shown}");
    assert!(lines.last().unwrap().starts_with('└'), "{shown}");
    let width = lines[0].chars().count();
    assert!(lines.iter().all(|line| line.chars().count() == width), "{shown}");
    let agent = lines.iter().find(|line| line.contains("└─ main (linux, ")).unwrap();
    assert!(agent.contains("⦿ connected  ✔ healthy") && agent.contains("coder ssh dev.main │"), "{shown}");
    let line = failed(&run(lab.server.coder(&["show", "nope"]), b""));
    assert!(line.contains("nope"), "{line}");
}

#[test]
fn the_machine_has_figures_in_text_table_and_json() {
    let folder = tempfile::tempdir().unwrap();
    let coder = |args: &[&str]| done(&run(alone(folder.path(), args), b""));
    let table = coder(&["stat"]);
    let mut lines = table.lines();
    assert_eq!(
        lines.next().unwrap().split("  ").map(str::trim).filter(|h| !h.is_empty()).collect::<Vec<_>>().len(),
        5,
        "{table}"
    );
    assert!(lines.next().unwrap().contains(" cores (") && table.contains(" GiB ("), "{table}");
    let row: Value = serde_json::from_str(&coder(&["stat", "-o", "json"])).unwrap();
    for (name, unit) in [("host_cpu", "cores"), ("host_memory", "B"), ("home_disk", "B")] {
        assert_eq!(row[0][name]["unit"], unit, "{row}");
        assert!(row[0][name]["total"].as_f64().unwrap() >= row[0][name]["used"].as_f64().unwrap(), "{row}");
    }
    let cpu: Value = serde_json::from_str(&coder(&["stat", "cpu", "--host", "-o", "json"])).unwrap();
    assert_eq!(cpu.as_object().unwrap().keys().collect::<Vec<_>>(), ["total", "unit", "used"]);
    assert!(coder(&["stat", "mem", "--host", "--prefix", "Mi"]).contains(" MiB ("));
    assert!(coder(&["stat", "disk", "--path", "/", "--prefix", "Ti"]).contains(" TiB ("));
    assert!(failed(&run(alone(folder.path(), &["stat", "disk", "--path", "/nowhere"]), b"")).contains("/nowhere"));
}
