//! The agent's own life: what its workspace gives it, what its owner forbids, how it ends.

use crate::harness::{
    Server, clean, coder, http,
    process::{LIMIT, Process, run, text, until, until_within},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

/// Makes the workspace `dev` with a manifest and gives its agent's token.
pub(crate) fn create(server: &Server, manifest: &str) -> Output {
    let file = server.dir.path().join("manifest.json");
    fs::write(&file, manifest).unwrap();
    run(server.coder(&["create", "dev", "--manifest", file.to_str().unwrap()]), b"")
}

pub(crate) fn token(made: &Output) -> String {
    assert!(made.status.success(), "{}", text(&made.stderr));
    let out = text(&made.stdout);
    out.split("CODER_AGENT_TOKEN=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// An agent whose scripts keep to the server's folder.
fn agent(server: &Server, token: &str, flags: &[&str]) -> Process {
    let mut command = server.agent_command(None, token);
    command.args(flags).env("CODER_AGENT_LOG_DIR", logs(server)).env("CODER_AGENT_SCRIPT_DATA_DIR", server.dir.path());
    let mut agent = Process::start("the agent", command);
    agent.wait_for("connected to the coordinator");
    agent
}

fn logs(server: &Server) -> PathBuf {
    server.dir.path().join("agent-logs")
}

fn ssh(server: &Server, flags: &[&str], command: &str) -> Output {
    run(server.coder(&[&["ssh"], flags, &["dev", "--", command]].concat()), b"")
}

pub(crate) fn get(server: &Server, path: &str) -> serde_json::Value {
    http::call(server.address().parse().unwrap(), "GET", path, &http::auth(&server.token), None).json()
}

/// Level and text of each line that the scripts of the workspace's agent have sent to the server.
pub(crate) fn logs_of(server: &Server) -> Vec<(String, String)> {
    let view = get(server, "/api/v2/users/me/workspace/dev");
    let id = view["latest_build"]["resources"][0]["agents"][0]["id"].as_str().unwrap().to_owned();
    let of = |l: &serde_json::Value| (l["level"].as_str().unwrap().to_owned(), l["output"].as_str().unwrap().to_owned());
    get(server, &format!("/api/v2/workspaceagents/{id}/logs")).as_array().unwrap().iter().map(of).collect()
}

#[test]
fn a_manifest_gives_a_workspace_its_folder_its_environment_and_its_scripts() {
    let server = Server::start(&[]);
    let folder = server.dir.path().join("src");
    fs::create_dir(&folder).unwrap();
    let manifest = serde_json::json!({
        "directory": folder.to_str().unwrap(),
        "environment": { "GREETING": "hello", "PATH": "$PATH:/from/template" },
        "scripts": [
            { "display_name": "set up", "run_on_start": true, "start_blocks_login": true, "timeout_seconds": 60,
              "script": "sleep 0.5; echo making; echo odd >&2; echo $GREETING > made" },
            { "display_name": "tool", "run_on_start": true,
              "script": "#!/bin/sh\nprintf '#!/bin/sh\\necho a tool' > $CODER_SCRIPT_BIN_DIR/tool && chmod +x $CODER_SCRIPT_BIN_DIR/tool" },
        ],
    });
    let token = token(&create(&server, &manifest.to_string()));
    let agent = agent(&server, &token, &[]);
    // `auto` waits, since a script asks for it.
    let out = ssh(&server, &[], "pwd; echo $GREETING; cat made; tool; case $PATH in *:/from/template*) echo path; esac");
    let expected = format!("{}\nhello\nhello\na tool\npath\n", folder.canonicalize().unwrap().display());
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), expected), "{}", text(&out.stderr));

    let get = |path: &str| get(&server, path);
    let agent_view = get("/api/v2/users/me/workspace/dev")["latest_build"]["resources"][0]["agents"][0].clone();
    assert_eq!((&agent_view["lifecycle_state"], &agent_view["directory"]), (&"ready".into(), &folder.to_str().unwrap().into()));
    assert_eq!(agent_view["scripts"][0]["display_name"], "set up");
    let path = format!("/api/v2/workspaceagents/{}/logs", agent_view["id"].as_str().unwrap());
    let lines = || {
        let mut lines = logs_of(&server);
        lines.sort();
        lines
    };
    let expected = vec![("error".to_owned(), "odd".to_owned()), ("info".to_owned(), "making".to_owned())];
    assert!(until_within(Duration::from_secs(10), || lines() == expected), "{:?}", lines());
    assert_eq!(get(&path)[0]["source_id"], agent_view["scripts"][0]["log_source_id"]);

    let kept = fs::read_dir(logs(&server)).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
    assert!(kept.iter().filter(|name| name.starts_with("coder-script-")).count() == 2, "{kept:?}");
    let log = fs::read_to_string(logs(&server).join("coder-agent.log")).unwrap();
    assert!(log.contains("[debu]") && log.contains("set up") && !log.contains(&token), "{log}");
    drop(agent);
}

#[test]
fn a_manifest_that_is_wrong_is_refused_with_its_reason_and_makes_nothing() {
    let server = Server::start(&[]);
    for (manifest, named) in [
        ("{", "is no JSON"),
        (r#"{"scripts":[{"display_name":"x","script":"true"}]}"#, "number 1 (\"x\"): it never runs"),
        (r#"{"enviroment":{}}"#, "unknown field `enviroment`"),
    ] {
        let out = create(&server, manifest);
        let said = text(&out.stderr);
        assert!(out.status.code() == Some(1) && said.contains(named) && said.trim().lines().count() == 1, "{said}");
    }
    let out = run(server.coder(&["create", "dev", "--manifest", "/no/such/file"]), b"");
    assert!(text(&out.stderr).contains("/no/such/file"), "{}", text(&out.stderr));
    token(&create(&server, "{}"));
}

#[test]
fn a_stopped_agent_ends_sessions_with_the_reason_runs_its_stop_scripts_and_ends_itself() {
    let server = Server::start(&["-v"]);
    let mark = server.dir.path().join("stopped");
    let script = serde_json::json!({ "display_name": "bye", "run_on_stop": true, "script": format!("echo $CODER > '{}'", mark.display()) });
    let token = token(&create(&server, &serde_json::json!({ "scripts": [script] }).to_string()));
    let mut agent = agent(&server, &token, &[]);
    let up = server.dir.path().join("up");
    let command = format!("touch '{}'; exec sleep 1000", up.display());
    let mut session = Process::start_with_output("coder ssh", server.coder(&["ssh", "dev", "--", &command]));
    assert!(until_within(Duration::from_secs(20), || up.exists()), "no session");
    let started = Instant::now();
    agent.signal(Signal::TERM);
    let ended = session.finish(Duration::from_secs(10));
    let took = started.elapsed();
    assert_eq!(ended.code(), Some(255));
    assert!(ended.said().contains("the agent is shutting down"), "{}", ended.said());
    assert!(took < Duration::from_secs(5), "the client ended after {took:?}");
    println!("a session ends {took:?} after its agent was told to");
    assert!(agent.wait(Duration::from_secs(20)).success());
    assert_eq!(fs::read_to_string(&mark).unwrap(), "true\n");
    let view = get(&server, "/api/v2/users/me/workspace/dev");
    assert_eq!(view["latest_build"]["resources"][0]["agents"][0]["lifecycle_state"], "off");
    server_saw_the_session(server);
}

#[test]
fn a_second_signal_ends_an_agent_at_once() {
    let server = Server::start(&[]);
    let mark = server.dir.path().join("stopping");
    let script = serde_json::json!({ "display_name": "long", "run_on_stop": true, "timeout_seconds": 90,
        "script": format!("echo $$ > '{}'; exec sleep 1000", mark.display()) });
    let token = token(&create(&server, &serde_json::json!({ "scripts": [script] }).to_string()));
    let mut agent = agent(&server, &token, &[]);
    agent.signal(Signal::INT);
    assert!(until_within(LIMIT, || mark.exists()), "its stop script does not run");
    assert!(agent.child.try_wait().unwrap().is_none(), "it does not wait for its stop script");
    agent.signal(Signal::INT);
    assert_eq!(agent.wait(Duration::from_secs(10)).code(), Some(1));
    // What it did not wait for is not ended either.
    let script = fs::read_to_string(&mark).unwrap().trim().parse().ok().and_then(Pid::from_raw).expect("the number of a process");
    kill_process(script, Signal::KILL).unwrap();
}

/// The server's log holds the beginning and the end of the session.
fn server_saw_the_session(mut server: Server) {
    let lines = server.process.drain().join("\n");
    for text in ["a session began", "a session ended"] {
        assert!(lines.contains(text), "{lines}");
    }
}

#[test]
fn the_flags_and_the_variables_of_an_agent_bind_its_clients() {
    let server = Server::start(&[]);
    let token = server.create("dev");
    let file = server.dir.path().join("token");
    fs::write(&file, format!("{token}\n")).unwrap();
    // The token from a file, the umask from the shell, one rule by flag and one by variable.
    let mut shell = Command::new("sh");
    let line = format!(
        "umask 027; exec '{}' agent -v --block-reverse-port-forwarding --agent-token-file '{}'",
        coder().display(),
        file.display()
    );
    clean(&mut shell).args(["-c", &line]).env("CODER_AGENT_URL", &server.url).env("HOME", server.dir.path());
    shell.env("CODER_AGENT_BLOCK_FILE_TRANSFER", "true");
    let mut agent = Process::start("the agent", shell);
    agent.wait_for("connected to the coordinator");
    assert_eq!(text(&ssh(&server, &[], "umask").stdout).trim(), "0027");
    let out = ssh(&server, &[], "scp -t /tmp");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(65), "\u{2}File transfer has been disabled.\n".into()));
    if crate::harness::have(&["ssh"]) {
        let out = run(server.ssh(&[], &["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"], "dev", "true"), b"");
        let said = text(&out.stderr);
        assert!(out.status.code() == Some(255) && said.contains("remote port forwarding failed"), "{said}");
    }
}

#[test]
fn a_session_has_the_agents_home_and_none_of_the_descriptors_that_it_was_started_with() {
    let server = Server::start(&[]);
    let token = token(&create(&server, r#"{ "directory": "$HOME/project" }"#));
    fs::create_dir(server.dir.path().join("project")).unwrap();
    let mut shell = Command::new("sh");
    let line = format!("exec 9< /dev/null; exec '{}' agent -v", coder().display());
    clean(&mut shell).args(["-c", &line]).env("CODER_AGENT_URL", &server.url).env("CODER_AGENT_TOKEN", token);
    shell.env("HOME", server.dir.path());
    let mut agent = Process::start("the agent", shell);
    agent.wait_for("connected to the coordinator");
    let out = text(&ssh(&server, &[], "pwd; cd ~; pwd; if (: <&9) 2> /dev/null; then echo open; else echo closed; fi").stdout);
    let home = server.dir.path().canonicalize().unwrap();
    assert_eq!(out, format!("{home}/project\n{home}\nclosed\n", home = home.display()));
}

#[test]
fn two_agents_with_one_token_say_so_once_take_turns_slowly_and_the_one_that_is_left_serves() {
    const TWIN: &str = "another agent runs with this agent's token";
    let server = Server::start(&[]);
    let token = server.create("dev");
    let mut first = server.agent(&token);
    let mut second = server.agent(&token);
    first.wait_for(TWIN);
    second.wait_for(TWIN);
    second.signal(Signal::TERM);
    assert!(second.wait(LIMIT).success());
    // Its last words may be the last that the server has heard.
    until("the agent that is left is not ready", || {
        let agent = &get(&server, "/api/v2/users/me/workspace/dev")["latest_build"]["resources"][0]["agents"][0];
        agent["status"] == "connected" && agent["lifecycle_state"] == "ready"
    });
    let out = ssh(&server, &[], "echo served");
    assert_eq!(text(&out.stdout), "served\n", "{}", text(&out.stderr));
    let lines = first.drain();
    let told = lines.iter().filter(|line| line.contains("[warn]") && line.contains(TWIN)).count();
    assert_eq!(told, 1, "{lines:?}");
}

#[test]
fn an_agent_that_was_started_to_outlive_its_terminal_does_and_what_it_runs_does_not() {
    let server = Server::start(&[]);
    let token = server.create("dev");
    let of = server.agent_command(None, &token);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" agent -v"]).arg(coder());
    for (name, value) in of.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut agent = Process::start("the agent", command);
    agent.wait_for("connected to the coordinator");
    agent.signal(Signal::HUP);
    let out = ssh(&server, &[], "kill -HUP $$; echo survived");
    assert_eq!((out.status.code(), text(&out.stdout).as_str()), (Some(129), ""), "{}", text(&out.stderr));
    let out = ssh(&server, &[], "echo served");
    assert_eq!(text(&out.stdout), "served\n", "{}", text(&out.stderr));
    agent.signal(Signal::TERM);
    assert!(agent.wait(LIMIT).success());
}

#[test]
fn a_folder_for_scripts_that_cannot_be_made_is_named_at_the_start() {
    let server = Server::start(&[]);
    let mut command = server.agent_command(None, "00000000-0000-4000-8000-000000000000");
    command.args(["--script-data-dir", "/proc/x"]);
    let out = run(command, b"");
    let said = text(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("--script-data-dir /proc/x: no folder can be made"), "{said}");
}
