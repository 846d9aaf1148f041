//! Our server's answers beside the Go server's.

use super::harness::{
    Server,
    shapes::{ALIKE, DIFFERENT, World, unlisted},
};

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
    let (name, slack) = DIFFERENT[0];
    found.extend(world.difference(name, slack));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn blocked_direct_connections_and_forced_websockets_are_told_as_the_go_server_does() {
    let (_server, world, _agent) = world(&["--block-direct-connections", "--derp-force-websockets"]);
    let (name, slack) = DIFFERENT[1];
    assert_eq!(world.difference(name, slack), [""; 0]);
}

#[test]
fn the_deployments_ssh_settings_are_told_as_the_go_server_does() {
    let options = "ForwardAgent=yes,LogLevel=DEBUG";
    let flags = ["--ssh-hostname-prefix", "acme.", "--workspace-hostname-suffix", "acme", "--ssh-config-options", options];
    let (_server, world, _agent) = world(&flags);
    let (name, slack) = DIFFERENT[2];
    assert_eq!(world.difference(name, slack), [""; 0]);
}

#[test]
fn each_vector_is_asked_or_has_a_reason_not_to_be() {
    assert_eq!(unlisted(), [""; 0]);
}
