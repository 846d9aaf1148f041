//! Two real nodes that know nothing of each other but this server.

use super::*;
use crate::{
    base::agent_addresses,
    driver::http::{Http, HttpOptions, ProxyChoice, Token},
    net::{self, Control, ControlRole, PathState, Tailnet},
    wire::{
        coord::agent::{GET_MANIFEST, Manifest},
        derp::RelayMap,
    },
};
use prost::Message as _;
use std::net::SocketAddrV6;

const PORT: u16 = 7;

pub(super) fn http(world: &World, token: &str) -> Http {
    let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
    Http::new(&format!("http://{}", world.address()), Some(Token::new(token)), options).unwrap()
}

/// An agent made from its manifest, which echoes on [`PORT`].
pub(super) async fn agent(world: &World) -> Tailnet {
    let http = http(world, &world.agent_token);
    let control = Control::open(http.clone(), ControlRole::Agent);
    let manifest = control.call(GET_MANIFEST, Vec::new()).await.unwrap();
    let manifest = Manifest::decode(manifest.as_slice()).unwrap();
    let id = Uuid::from_slice(&manifest.agent_id).unwrap();
    let config = net::Config {
        relay_map: Some(RelayMap::try_from(&manifest.derp_map.unwrap()).unwrap()),
        control: Some(control.clone()),
        direct: !manifest.disable_direct_connections,
        force_websockets: manifest.derp_force_websockets,
        ..net::Config::agent(http, id).unwrap()
    };
    let agent = Tailnet::start(config).unwrap();
    control.open_coordination();
    let mut listener = agent.listen_tcp(PORT).await.unwrap();
    tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            let Ok(stream) = incoming.accept().await else { continue };
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    agent
}

async fn client(world: &World) -> Tailnet {
    let http = http(world, &world.admin);
    let info = world.get(&format!("/api/v2/workspaceagents/{}/connection", world.agent.id)).await.json();
    let config = net::Config {
        relay_map: Some(RelayMap::from_json(&info["derp_map"]).unwrap()),
        control: Some(Control::open(http.clone(), ControlRole::Client { agent: world.agent.id })),
        destinations: vec![world.agent.id],
        direct: info["disable_direct_connections"] == false,
        force_websockets: info["derp_force_websockets"] == true,
        ..net::Config::client(http).unwrap()
    };
    Tailnet::start(config).unwrap()
}

/// Sends `bytes` to the agent and back.
async fn echo(client: &Tailnet, world: &World, bytes: usize) {
    let to = SocketAddrV6::new(agent_addresses(world.agent.id)[0], PORT, 0, 0);
    let stream = timeout(LIMIT, client.dial_tcp(to)).await.unwrap().unwrap();
    let sent: Vec<u8> = (0..bytes).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&copy).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    timeout(3 * LIMIT, read.read_to_end(&mut back)).await.expect("the echo stalled").unwrap();
    writer.await.unwrap();
    assert!(back == sent, "{} of {bytes} bytes came back", back.len());
}

#[tokio::test]
async fn a_tunnel_through_the_servers_relay_becomes_direct_by_its_stun() {
    let world = World::with(|config| config.stun = StunAddress::LikeHttp).await;
    let (agent, client) = (agent(&world).await, client(&world).await);
    echo(&client, &world, 100_000).await;
    let mut path = client.watch_path(agent_addresses(world.agent.id)[0]).await.unwrap();
    let direct = path.wait_for(|info| info.as_ref().is_some_and(|i| i.state == PathState::Direct));
    timeout(LIMIT, direct).await.expect("the path never became direct").unwrap();
    echo(&client, &world, 1_000_000).await;
    agent.close().await;
    client.close().await;
}

#[tokio::test]
async fn with_direct_connections_blocked_every_byte_goes_through_the_relay_on_either_transport() {
    for force_websockets in [false, true] {
        let world = World::with(|config| {
            config.block_direct = true;
            config.force_websockets = force_websockets;
        })
        .await;
        let (agent, client) = (agent(&world).await, client(&world).await);
        echo(&client, &world, 1_000_000).await;
        let counters = world.running.app.relay().counters();
        assert!(counters.bytes_in > 2_000_000, "{counters:?}");
        agent.close().await;
        client.close().await;
    }
}

#[tokio::test]
async fn a_tunnel_goes_on_when_the_server_is_gone() {
    let world = World::with(|config| config.stun = StunAddress::LikeHttp).await;
    let (agent, client) = (agent(&world).await, client(&world).await);
    echo(&client, &world, 1000).await;
    let mut path = client.watch_path(agent_addresses(world.agent.id)[0]).await.unwrap();
    let direct = path.wait_for(|info| info.as_ref().is_some_and(|i| i.state == PathState::Direct));
    timeout(LIMIT, direct).await.expect("the path never became direct").unwrap();
    let to = SocketAddrV6::new(agent_addresses(world.agent.id)[0], PORT, 0, 0);
    let mut stream = client.dial_tcp(to).await.unwrap();
    world.running.shutdown().await;
    stream.write_all(b"still there").await.unwrap();
    let mut back = [0; 11];
    timeout(LIMIT, stream.read_exact(&mut back)).await.expect("the stream died with the server").unwrap();
    assert_eq!(&back, b"still there");
    drop((agent, client));
}

#[tokio::test]
async fn an_agent_comes_back_to_a_restarted_server_and_is_reached_again() {
    let mut world = World::new().await;
    let agent = agent(&world).await;
    let first = client(&world).await;
    echo(&first, &world, 1000).await;
    first.close().await;
    let config = Config { http_address: world.address(), ..config(world.folder.path()) };
    world.running.shutdown().await;
    world.running = serve(config).await.unwrap();
    let second = client(&world).await;
    echo(&second, &world, 1000).await;
    agent.close().await;
    second.close().await;
}
