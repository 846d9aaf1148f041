//! Users, their workspaces, and a server that is started again.

use crate::{
    Lab,
    harness::{
        Server, clean, coder,
        process::{Process, run, text},
    },
};
use std::{path::Path, process::Command};

fn list(server: &Server, token: &str) -> String {
    let out = run(server.coder_as(token, &["list", "--all", "--output", "json"]), b"");
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout)
}

#[test]
fn a_workspace_is_made_and_its_agent_started_by_the_printed_line() {
    let server = Server::start(&[]);
    let out = run(server.coder(&["create", "two"]), b"");
    let out = text(&out.stdout);
    let line = out.lines().map(str::trim).find(|l| l.starts_with("CODER_AGENT_URL=")).expect("the line for the other machine");
    // The other machine's own shell, with `coder` in its search path.
    let mut shell = Command::new("sh");
    let path = format!("{}:{}", coder().parent().map(Path::display).unwrap(), std::env::var("PATH").unwrap());
    clean(&mut shell).args(["-c", &format!("{} exec {}", &line[..line.find("coder agent").unwrap()], "coder agent")]);
    shell.env("PATH", path).env("HOME", server.dir.path());
    let mut agent = Process::start("the agent", shell);
    agent.wait_for("connected to the coordinator");
    let out = run(server.coder(&["ssh", "two", "--", "echo $CODER_WORKSPACE_NAME"]), b"");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "two\n".into()), "{}", text(&out.stderr));
    assert!(list(&server, &server.token).contains("\"two\""));
}

#[test]
fn two_users_do_not_see_each_others_workspaces() {
    let lab = Lab::new();
    let (server, bob) = (&lab.server, lab.server.create_user("bob"));
    let bobs = server.agent(&server.create_as(&bob, "bobs"));
    let (mine, his) = (list(server, &server.token), list(server, &bob));
    assert!(mine.contains("\"dev\"") && !mine.contains("\"bobs\""), "{mine}");
    assert!(his.contains("\"bobs\"") && !his.contains("\"dev\""), "{his}");
    let out = run(server.coder_as(&bob, &["ssh", "bobs", "--", "echo hello"]), b"");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "hello\n".into()), "{}", text(&out.stderr));

    let refused = |token: &str, workspace: &str| {
        let out = run(server.coder_as(token, &["ssh", workspace, "--", "echo inside"]), b"");
        assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b""[..]), "{}", text(&out.stderr));
        text(&out.stderr).replace(workspace, "W")
    };
    let owner = {
        let json: serde_json::Value = serde_json::from_str(&mine).unwrap();
        json[0]["owner_name"].as_str().unwrap().to_owned()
    };
    // A foreign workspace looks as one that does not exist.
    assert_eq!(refused(&bob, "dev"), refused(&bob, "nope"));
    refused(&bob, &format!("{owner}/dev"));
    refused(&server.token, "bobs");
    let out = run(server.coder_as(&bob, &["users", "create", "eve"]), b"");
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b""[..]), "only the first user makes users");
    drop(bobs);
}

#[test]
fn a_server_started_again_has_the_same_token_and_the_same_workspaces() {
    let Lab { mut agent, server } = Lab::new();
    let bob = server.create_user("bob");
    server.create_as(&bob, "bobs");
    let workspaces = |server: &Server, token: &str| {
        let json: serde_json::Value = serde_json::from_str(&list(server, token)).unwrap();
        let of = |w: &serde_json::Value| (w["id"].clone(), w["name"].clone(), w["owner_name"].clone());
        json.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let (token, mine, his) = (server.token.clone(), workspaces(&server, &server.token), workspaces(&server, &bob));
    assert_eq!((mine.len(), his.len()), (1, 1));
    let server = server.restart(&[]);
    assert_eq!((&server.token, workspaces(&server, &server.token), workspaces(&server, &bob)), (&token, mine, his));
    // The agent has outlived the server and comes back by itself.
    agent.wait_for("connected to the coordinator");
    let out = run(server.coder(&["ssh", "dev", "--", "echo again"]), b"");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "again\n".into()), "{}", text(&out.stderr));
}

#[test]
fn a_session_outlives_its_server() {
    let Lab { agent: _agent, server } = Lab::new();
    let mut cat = Process::start("coder ssh", server.coder(&["ssh", "-v", "dev", "--", "cat"]));
    cat.wait_for("to=direct");
    cat.type_in(b"before\n");
    cat.wait_for("before");
    let server = server.restart(&[]);
    cat.type_in(b"after\n");
    cat.wait_for("after");
    assert_eq!(cat.finish(crate::harness::LIMIT).code(), Some(0));
    drop(server);
}
