//! What goes wrong is told by one line that names it, with status 1, nothing on standard output, and soon.

use crate::{
    Lab,
    harness::{
        DeadPort, Server, clean, coder,
        coder::server_command,
        free_port,
        process::{Process, run_within, text},
    },
};
use rustix::process::Signal;
use std::{fs, net::TcpListener, process::Command, thread, time::Duration};

/// Longest that a command may take to find out what is wrong.
pub(crate) const SOON: Duration = Duration::from_secs(15);
/// The same where an agent is given time to come.
const PATIENT: Duration = Duration::from_secs(45);

/// The one error line of a failing command.
pub(crate) fn error(command: Command, limit: Duration) -> String {
    let shown = format!("{:?}", command.get_args().collect::<Vec<_>>());
    let out = run_within(command, b"", limit);
    let said = text(&out.stderr);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), String::new()), "{shown}: {said}");
    let lines: Vec<&str> = said.lines().collect();
    let errors: Vec<&&str> = lines.iter().filter(|l| l.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && lines.last() == Some(errors[0]), "{shown}: one error line, the last: {said}");
    // While something is waited for, a person may be told so; nothing else stands before the error.
    assert!(lines.iter().all(|l| l.starts_with("error: ") || l.starts_with("Waiting for ")), "{shown}: {said}");
    println!("{shown}: {}", errors[0]);
    (*errors[0]).to_owned()
}

pub(crate) fn names(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
}

const USES: [&[&str]; 8] = [
    &["ssh", "dev", "--", "true"],
    &["ssh", "--stdio", "dev"],
    &["ping", "dev", "-n", "1"],
    &["speedtest", "dev"],
    &["port-forward", "dev", "-p", "1"],
    &["list"],
    &["config-ssh", "--yes"],
    &["create", "x"],
];

#[test]
fn a_wrong_token_is_told() {
    let server = Server::start(&[]);
    for arguments in USES {
        let line = error(server.coder_as("0123456789-0123456789012345678901", arguments), SOON);
        names(&line, &["login"]);
        assert!(!line.contains("0123456789-"), "{line}");
    }
    // An agent asks again and again, as the workspace may still be in the making, and says so.
    let mut agent = Process::start("the agent", server.agent_command(None, "9c8c1a5e-0000-4000-8000-000000000000"));
    let line = agent.wait_within("the server refuses this agent", SOON);
    assert!(line.contains("401") && !line.contains("9c8c1a5e"), "{line}");
}

#[test]
fn a_missing_login_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in USES {
        let mut command = Command::new(coder());
        clean(&mut command).args(arguments).env("HOME", folder.path()).env("CODER_CONFIG_DIR", folder.path());
        names(&error(command, SOON), &["login"]);
    }
}

#[test]
fn an_unknown_workspace_is_told() {
    let lab = Lab::new();
    names(&error(lab.server.coder(&["ssh", "nope", "--", "true"]), SOON), &["nope"]);
    names(&error(lab.server.coder(&["ssh", "--stdio", "nope"]), SOON), &["nope"]);
    names(&error(lab.server.coder(&["ssh", "nobody/dev", "--", "true"]), SOON), &["nobody"]);
    names(&error(lab.server.coder(&["ssh", "dev.nope", "--", "true"]), SOON), &["nope", "main"]);
    names(&error(lab.server.coder(&["ping", "nope", "-n", "1"]), SOON), &["nope"]);
    names(&error(lab.server.coder(&["speedtest", "nope"]), SOON), &["nope"]);
    names(&error(lab.server.coder(&["port-forward", "nope", "-p", "1"]), SOON), &["nope"]);
}

#[test]
fn an_agent_that_is_not_there_is_told() {
    let mut lab = Lab::new();
    lab.server.create("never");
    lab.agent.kill();
    let gone: [(&[&str], &str); 6] = [
        (&["ssh", "never", "--", "true"], "never"),
        (&["ssh", "--stdio", "never"], "never"),
        (&["ssh", "dev", "--", "true"], "dev"),
        (&["ping", "dev", "-n", "1"], "dev"),
        (&["speedtest", "dev"], "dev"),
        (&["port-forward", "never", "-p", "1"], "never"),
    ];
    thread::scope(|scope| {
        for (arguments, name) in gone {
            let command = lab.server.coder(arguments);
            scope.spawn(move || names(&error(command, PATIENT), &["agent", name]));
        }
    });
}

#[test]
fn a_server_that_is_gone_is_told() {
    let nobody = DeadPort::hold();
    let folder = tempfile::tempdir().unwrap();
    for arguments in USES {
        let mut command = Command::new(coder());
        clean(&mut command).args(arguments).env("HOME", folder.path()).env("CODER_CONFIG_DIR", folder.path());
        command.env("CODER_URL", format!("http://{}", nobody.address)).env("CODER_SESSION_TOKEN", "a-b");
        names(&error(command, SOON), &[&nobody.address.to_string()]);
    }
}

#[test]
fn a_server_that_never_answers_is_told() {
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(coder());
    clean(&mut command).args(["ssh", "dev", "--", "true"]).env("HOME", folder.path()).env("CODER_CONFIG_DIR", folder.path());
    command.env("CODER_URL", format!("http://{address}")).env("CODER_SESSION_TOKEN", "a-b");
    names(&error(command, PATIENT), &[&address]);
}

#[test]
fn a_server_for_browsers_alone_is_told() {
    let server = Server::start(&["--browser-only"]);
    let _agent = server.workspace("dev");
    let why = ["409", "Non-browser connections are disabled"];
    for arguments in &USES[..4] {
        names(&error(server.coder(arguments), SOON), &why);
    }
    // It listens before it has a tunnel, and says so.
    let out = run_within(server.coder(&["port-forward", "dev", "-p", &format!("{}:1", free_port())]), b"", SOON);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    names(text(&out.stderr).lines().last().unwrap(), &why);
    // What a browser has goes through the server.
    let out = run_within(server.coder(&["exp", "rpty", "dev", "echo $((40 + 2))"]), b"", SOON);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "42\r\n".into()), "{}", text(&out.stderr));
}

#[test]
fn a_taken_port_is_told() {
    let server = Server::start(&[]);
    let other = tempfile::tempdir().unwrap();
    let line = error(server_command(None, other.path(), server.address(), &[]), SOON);
    names(&line, &[server.address(), "taken", "--http-address"]);
}

#[test]
fn a_data_folder_that_another_server_uses_is_told() {
    let server = Server::start(&[]);
    let line = error(server_command(None, server.dir.path(), "127.0.0.1:0", &[]), SOON);
    names(&line, &["data"]);
    assert!(!line.contains(&server.token), "{line}");
}

#[test]
fn an_unreadable_database_is_told() {
    let server = Server::start(&[]);
    let Server { mut process, dir, .. } = server;
    process.signal(Signal::TERM);
    assert!(process.wait(SOON).success());
    let data = dir.path().join("data");
    let files = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path());
    let database = files.into_iter().find(|path| fs::read(path).is_ok_and(|b| b.starts_with(b"SQLite format 3"))).unwrap();
    let name = database.file_name().unwrap().to_str().unwrap();
    fs::write(&database, b"this was a database once, before somebody wrote a letter into its file").unwrap();
    names(&error(server_command(None, dir.path(), "127.0.0.1:0", &[]), SOON), &[name]);
    // Not even a file.
    fs::remove_file(&database).unwrap();
    fs::create_dir(&database).unwrap();
    names(&error(server_command(None, dir.path(), "127.0.0.1:0", &[]), SOON), &[data.to_str().unwrap(), "--data-dir"]);
}

#[test]
fn a_data_folder_that_cannot_be_made_is_told() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), b"a file, not a folder").unwrap();
    names(&error(server_command(None, dir.path(), "127.0.0.1:0", &[]), SOON), &["data"]);
}

#[test]
fn a_command_line_that_cannot_be_read_is_told() {
    let command = |arguments: &[&str]| {
        let mut command = Command::new(coder());
        clean(&mut command).args(arguments);
        command
    };
    names(&error(command(&["ssh", "--nope"]), SOON), &["unknown flag: --nope"]);
    names(&error(command(&["nope"]), SOON), &["unrecognized subcommand \"nope\""]);
    names(&error(command(&["ping", "dev", "--wait", "5"]), SOON), &["missing unit"]);
    names(&error(command(&["speedtest", "dev", "-t", "5"]), SOON), &["missing unit"]);
    names(&error(command(&["speedtest", "dev", "--direction", "both"]), SOON), &["both", "up", "down"]);
    names(&error(command(&["speedtest", "dev", "-c", "Speed"]), SOON), &["Speed", "throughput"]);
    names(&error(command(&["speedtest"]), SOON), &["WORKSPACE"]);
    names(&error(command(&["ssh", "--network-info-interval", "5", "dev"]), SOON), &["missing unit"]);
    names(&error(command(&["config-ssh", "--wait", "maybe"]), SOON), &["maybe", "auto"]);
    names(&error(command(&["config-ssh", "--wait=no", "--skip-proxy-command"]), SOON), &["--wait", "--skip-proxy-command"]);
    names(&error(command(&["config-ssh", "-o", "Foo"]), SOON), &["Foo", "KEY=VALUE"]);
    names(&error(command(&["config-ssh", "--coder-binary-path", "bin/coder"]), SOON), &["absolute"]);
    names(&error(command(&["server", "--http-address", "nowhere"]), SOON), &["--http-address"]);
}
