//! Two nodes in two processes find each other through a relay in a third, then speak directly.
//!
//! `cargo run --example echo` starts all three; by hand, each in a terminal of its own:
//!
//! ```sh
//! cargo run --example echo -- relay                  # prints the address for `listen`
//! cargo run --example echo -- listen 127.0.0.1:4000  # prints the invitation for `dial`
//! cargo run --example echo -- dial INVITATION
//! ```
//! There is no coordinator here: the invitation holds the dialler's keys and the listener's announcement.

use prost::Message as _;
use std::{error::Error, net::SocketAddrV6, process::Stdio, time::Duration};
use tailnet::{
    base::{DiscoSecret, NodeSecret, RegionId},
    driver::{clock, http::Http},
    net::{Config, PathState, RelayServer, Tailnet},
    wire::{
        coord::tailnet::Node,
        derp::{Region, RelayMap, RelayNode},
    },
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};
use uuid::Uuid;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => all_three().await,
        ["relay"] => relay().await,
        ["listen", relay] => listen(relay).await,
        ["dial", invitation] => dial(invitation).await,
        _ => Err("usage: echo [relay | listen HOST:PORT | dial INVITATION]".into()),
    }
}

/// Relays until it is stopped.
async fn relay() -> Result<()> {
    let mut rng = clock::random()?;
    let server = RelayServer::new(NodeSecret::generate(&mut rng), rng);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    say(&format!("listen {}", listener.local_addr()?)).await?;
    Ok(server.listen(listener).await?)
}

/// What both nodes need to know of the relay.
fn config(relay: &str) -> Result<Config> {
    let (host, port) = relay.rsplit_once(':').ok_or("the relay is HOST:PORT")?;
    let (host, relay_port) = (host.to_owned(), port.parse()?);
    let node = RelayNode { name: "1a".into(), host, relay_port, plain_http: true, stun_port: None, ..RelayNode::default() };
    let region = Region { embedded: true, nodes: vec![node], ..Region::default() };
    let id = RegionId::new(1).ok_or("no region")?;
    let map = RelayMap { regions: [(id, region)].into(), ..RelayMap::default() };
    let http = Http::new(&format!("http://{relay}"), None, Default::default())?;
    Ok(Config { relay_map: Some(map), ..Config::client(http)? })
}

/// Prints an invitation and echoes whatever the invited one sends.
async fn listen(relay: &str) -> Result<()> {
    let guest = config(relay)?;
    let tailnet = Tailnet::start(config(relay)?)?;
    let address = *guest.addresses.first().ok_or("no address")?;
    let prefixes = vec![format!("{address}/128")];
    tailnet.add_peer(
        Uuid::from_u128(1),
        Node {
            key: guest.secret.public().to_binary(),
            disco: guest.disco.public().to_text(),
            preferred_derp: 1,
            addresses: prefixes.clone(),
            allowed_ips: prefixes,
            ..Node::default()
        },
    );
    let own = tailnet.own_node().wait_for(Option::is_some).await?.clone().ok_or("no node")?;
    let (secret, disco) = (hex::encode(guest.secret.expose()), hex::encode(guest.disco.expose()));
    say(&format!("dial {relay},{secret},{disco},{address},{}", hex::encode(own.encode_to_vec()))).await?;
    let mut listener = tailnet.listen_tcp(7).await?;
    loop {
        let (mut read, mut write) = tokio::io::split(listener.accept().await?.accept().await?);
        tokio::spawn(async move {
            // A guest that goes away ends only its own echo.
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}

/// Accepts an invitation: echoes by relay until the direct path is proven, then directly.
async fn dial(invitation: &str) -> Result<()> {
    let mut parts = invitation.split(',');
    let mut next = || parts.next().ok_or("the invitation is cut short");
    let mut config = config(next()?)?;
    let key = |text: &str| -> Result<[u8; 32]> { hex::decode(text)?.try_into().map_err(|_| "bad key".into()) };
    config.secret = NodeSecret::from_random(key(next()?)?);
    config.disco = DiscoSecret::from_random(key(next()?)?);
    config.addresses = vec![next()?.parse()?];
    let host = Node::decode(hex::decode(next()?)?.as_slice())?;
    let address = host.addresses.first().ok_or("no address")?.trim_end_matches("/128").parse()?;

    // On one machine the direct path is proven before a byte has left by relay: the first echo does without it.
    config.direct = false;
    let begin = clock::now();
    let tailnet = Tailnet::start(config)?;
    tailnet.add_peer(Uuid::from_u128(2), host);
    let mut path = tailnet.watch_path(address).await?;
    let mut stream = tailnet.dial_tcp(SocketAddrV6::new(address, 7, 0, 0)).await?;
    let mut direct = false;
    while !direct {
        direct = path.borrow_and_update().is_some_and(|p| p.state == PathState::Direct);
        let sent = clock::now();
        let mut answer = [0; 5];
        stream.write_all(b"hello").await?;
        stream.read_exact(&mut answer).await?;
        let (at, took, way) = (sent - begin, clock::now() - sent, if direct { "directly" } else { "by relay" });
        say(&format!("{at:>9.1?}  {} came back {way} in {took:.1?}", String::from_utf8_lossy(&answer))).await?;
        if !direct {
            tailnet.set_direct(true);
            // Until the path changes, or to show that the relay serves meanwhile.
            let _ = tokio::time::timeout(Duration::from_secs(1), path.changed()).await;
        }
    }
    let data = tailnet.counters().await?.node.data_sent;
    say(&format!("packets sent: {} by relay, {} by UDP", data.relay, data.udp)).await?;
    tailnet.close().await;
    Ok(())
}

/// Starts the other two as children and dials.
async fn all_three() -> Result<()> {
    let (_relay, listen_line) = child(&["relay"]).await?;
    let (_listener, dial_line) = child(&listen_line).await?;
    let argument = dial_line.get(1).ok_or("no invitation")?;
    dial(argument).await
}

/// Starts this program again and returns the words of its first line.
async fn child(arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<(Child, Vec<String>)> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.args(arguments).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let out = child.stdout.take().ok_or("no output")?;
    let line = BufReader::new(out).lines().next_line().await?.ok_or("the child said nothing")?;
    Ok((child, line.split(' ').map(str::to_owned).collect()))
}

async fn say(line: &str) -> Result<()> {
    Ok(tokio::io::stdout().write_all(format!("{line}\n").as_bytes()).await?)
}
