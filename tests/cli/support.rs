//! `coder support bundle`: the archive, its entries and what is not in it.

use crate::{
    agents::{create, token},
    harness::{
        Process, Server,
        process::{LIMIT, run, text, until},
    },
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// The entries of an archive, as any program that reads such archives finds them.
pub(crate) fn entries(path: &Path) -> BTreeMap<String, String> {
    let mut archive = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
    let count = archive.len();
    let read = |at| {
        let mut entry = archive.by_index(at).unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (entry.name().unwrap().into_owned(), text)
    };
    (0..count).map(read).collect()
}

fn document(entries: &BTreeMap<String, String>, name: &str) -> Value {
    let text = entries.get(name).unwrap_or_else(|| panic!("{name} is missing: {}", entries["logs.txt"]));
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"))
}

#[test]
fn a_bundle_holds_what_server_workspace_agent_and_network_tell_and_no_secret() {
    let server = Server::start(&[]);
    let token = token(&create(&server, r#"{"environment": {"DEPLOY_KEY": "hunter2"}}"#));
    let mut agent = Process::start("the agent", server.agent_command(None, &token));
    agent.wait_for("connected to the coordinator");
    let file = server.dir.path().join("b.zip");
    fs::write(&file, "an older one").unwrap();

    let out = run(server.coder(&["support", "bundle", "dev", "--output-file", file.to_str().unwrap(), "--yes"]), b"");
    assert_eq!(text(&out.stderr), format!("Wrote support bundle to {}\n", file.display()));
    assert!(out.status.success() && out.stdout.is_empty());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let entries = entries(&file);
    assert!(document(&entries, "deployment/buildinfo.json")["version"].is_string());
    assert!(document(&entries, "network/connection_info.json")["derp_map"]["Regions"].is_object());
    assert!(document(&entries, "network/netcheck.json")["derp"]["regions"].is_object());
    assert!(document(&entries, "network/interfaces.json")["interfaces"].is_array());
    assert_eq!(document(&entries, "workspace/workspace.json")["name"], "dev");
    assert_eq!(document(&entries, "agent/agent.json")["status"], "connected");
    assert!(document(&entries, "agent/listening_ports.json")["ports"].is_array());
    assert!(document(&entries, "agent/manifest.json")["environment_variables"]["DEPLOY_KEY"].is_string());
    assert!(document(&entries, "agent/ping_result.json")["latency_seconds"].as_f64().unwrap() > 0.0);
    assert!(document(&entries, "agent/peer_diagnostics.json")["received_node"]["key"].is_string());
    assert!(entries["agent/prometheus.txt"].contains("coder_agent_connections"));
    assert!(entries["agent/client_magicsock.html"].contains("data_sent"));
    assert!(entries["cli_logs.txt"].contains("[debu]"), "{}", entries["cli_logs.txt"]);
    // This server has no templates and no page of its coordinator: that is said.
    assert!(entries["logs.txt"].contains("\nnetwork/coordinator_debug.html is missing: "), "{}", entries["logs.txt"]);
    for (name, text) in &entries {
        for secret in ["hunter2", token.as_str(), server.token.as_str()] {
            assert!(!text.contains(secret), "{name} holds {secret:?}");
        }
    }
}

#[test]
fn a_bundle_is_made_without_the_agent_too_and_says_what_is_missing_and_why() {
    let server = Server::start(&[]);
    server.create("dev");
    let file = server.dir.path().join("b.zip");
    let out = run(server.coder(&["support", "bundle", "dev", "main", "-y", "-O", file.to_str().unwrap()]), b"");
    assert!(out.status.success(), "{}", text(&out.stderr));
    let entries = entries(&file);
    assert_eq!(document(&entries, "agent/agent.json")["name"], "main");
    assert!(document(&entries, "network/netcheck.json")["derp"].is_object());
    let told = "\nagent/manifest.json is missing: the agent is not connected to the server\n";
    assert!(!entries.contains_key("agent/manifest.json") && entries["logs.txt"].contains(told), "{}", entries["logs.txt"]);
}

#[test]
fn a_bundle_that_cannot_be_made_is_told_and_leaves_no_file() {
    let server = Server::start(&[]);
    server.create("dev");
    let folder = server.dir.path().join("out");
    fs::create_dir(&folder).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let cases: [(&[&str], &str); 4] = [
        (&["dev", "-O", &path("b.zip")], "pass --yes"),
        (&["dev", "-y", "-O", &path("none/b.zip")], "cannot write "),
        (&["dev", "-y", "-O", folder.to_str().unwrap()], "cannot write "),
        (&["other", "-y", "-O", &path("b.zip")], "there is no workspace \"other\""),
    ];
    for (args, told) in cases {
        let out = run(server.coder(&[&["support", "bundle"], args].concat()), b"");
        let error = text(&out.stderr);
        assert!(out.status.code() == Some(1) && error.contains(told), "{args:?}: {error}");
    }
    // A signal in the middle, while an address that never answers is waited for.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", held.local_addr().unwrap());
    let line = ["support", "bundle", "dev", "-y", "-O", &path("b.zip"), "--url-override", &url];
    let mut bundle = Process::start("the bundle", server.coder(&line));
    let mut asked = None;
    until("the other server is asked", || {
        held.set_nonblocking(true).unwrap();
        asked = asked.take().or_else(|| held.accept().ok());
        asked.is_some()
    });
    bundle.signal(Signal::INT);
    assert_eq!(bundle.wait(LIMIT).code(), Some(130));
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}
