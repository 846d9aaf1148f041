//! Our server's answers beside the Go server's.

use super::harness::{
    Server,
    shapes::{ALIKE, BLOCKED, LOST_AGENT, LOST_AGENT_PORTS, SSH_SETTINGS, World, unlisted},
};
use std::{fs, path::Path};

fn world(flags: &[&str]) -> (Server, World, super::Process) {
    let server = Server::start(flags);
    let agent = server.workspace("dev");
    let (bob, agent_token) = (server.create_user("bob"), server.create("st"));
    let world = World::new(server.address().parse().unwrap(), &server.token, &bob, &agent_token);
    world.until_agent_is_there();
    (server, world, agent)
}

#[test]
fn answers_are_those_of_the_go_server() {
    let (_server, world, mut agent) = world(&[]);
    let mut found = world.differences(ALIKE);
    agent.kill();
    world.until_agent_is_gone();
    found.extend(world.difference(LOST_AGENT));
    found.extend(world.difference(LOST_AGENT_PORTS));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn blocked_direct_connections_and_forced_websockets_are_told_as_the_go_server_does() {
    let (_server, world, _agent) = world(&["--block-direct-connections", "--derp-force-websockets"]);
    assert_eq!(world.difference(BLOCKED), [""; 0]);
}

#[test]
fn the_deployments_ssh_settings_are_told_as_the_go_server_does() {
    let options = "ForwardAgent=yes,LogLevel=DEBUG";
    let flags = ["--ssh-hostname-prefix", "acme.", "--workspace-hostname-suffix", "acme", "--ssh-config-options", options];
    let (_server, world, _agent) = world(&flags);
    assert_eq!(world.difference(SSH_SETTINGS), [""; 0]);
}

#[test]
fn each_vector_is_asked_or_has_a_reason_not_to_be() {
    assert_eq!(unlisted(), [""; 0]);
}

#[test]
fn each_output_of_the_go_command_line_is_compared_with_something() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    let mut folders = vec![root.join("src/cli"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                sources += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let files = fs::read_dir(root.join("tests/vectors/cli")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = files.filter_map(|file| file.to_str()?.strip_suffix(".txt").map(str::to_owned));
    let used = |name: &String| {
        let short = name.strip_prefix("config_ssh_").unwrap_or(name);
        [format!("\"{name}\""), format!("/{name}.txt"), format!("\"{short}\"")].iter().any(|form| sources.contains(form))
    };
    assert_eq!(names.filter(|name| !used(name)).collect::<Vec<_>>(), [""; 0]);
}
