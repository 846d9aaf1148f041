//! Relay connections over loopback sockets, with our own relay and with servers that misbehave.

use super::*;
use crate::{
    base::NodeKey,
    driver::{
        clock,
        http::{HttpOptions, ProxyChoice},
    },
    wire::derp::{ClientInfo, HostIp, RelayNode, write_send_packet},
};
use std::future::poll_fn;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, timeout},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn id() -> RegionId {
    RegionId::new(7).unwrap()
}

fn secret() -> NodeSecret {
    NodeSecret::generate(&mut clock::random().unwrap())
}

async fn relay() -> (RelayServer, u16, JoinHandle<std::io::Result<()>>) {
    relay_at("127.0.0.1:0").await
}

async fn relay_at(address: &str) -> (RelayServer, u16, JoinHandle<std::io::Result<()>>) {
    let server = RelayServer::new(secret(), clock::random().unwrap());
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn({
        let server = server.clone();
        async move { server.listen(listener).await }
    });
    (server, port, task)
}

fn region(port: u16) -> Region {
    let node =
        RelayNode { name: "7a".into(), host: "127.0.0.1".into(), relay_port: port, plain_http: true, ..RelayNode::default() };
    Region { nodes: vec![node], ..Region::default() }
}

fn relays(secret: &NodeSecret, websocket_only: bool) -> Relays {
    let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
    Relays::new(Http::new("http://unused.invalid", None, options).unwrap(), secret.clone(), websocket_only)
}

/// Waits until `done` says so; asked again whenever the bell rings.
async fn until(relays: &Relays, mut done: impl FnMut() -> bool) {
    let wait = poll_fn(|cx| {
        relays.bell().register(cx.waker());
        if done() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    timeout(PATIENCE, wait).await.expect("the relay connection did not get there");
}

struct Client {
    relays: Relays,
    link: Link,
    key: NodeKey,
}

impl Client {
    async fn connect(region: Region, websocket_only: bool) -> Self {
        let secret = secret();
        let relays = relays(&secret, websocket_only);
        let link = relays.open(id(), region, true, clock::random().unwrap());
        until(&relays, || link.lane.state() != State::Dialing).await;
        assert_eq!(link.lane.state(), State::Up, "{}", link.lane.why());
        let mut this = Self { relays, link, key: secret.public() };
        // What comes back to ourselves proves that the relay has taken the login.
        this.send(&{ this.key }, b"self");
        this.link.lane.flush();
        assert_eq!(this.next().await, Ok((this.key, b"self".to_vec())));
        this
    }

    fn send(&mut self, to: &NodeKey, packet: &[u8]) {
        self.link.lane.slot(to, packet.len()).copy_from_slice(packet);
        self.link.lane.commit(packet.len());
    }

    async fn next(&mut self) -> Result<(NodeKey, Vec<u8>), NodeKey> {
        let Self { relays, link, .. } = self;
        until(relays, || link.lane.has_incoming()).await;
        let mut got = None;
        link.lane.receive(1, |r| {
            got = Some(match r {
                Incoming::Packet(from, d) => Ok((from, d.to_vec())),
                Incoming::Gone(peer) => Err(peer),
            });
        });
        got.unwrap()
    }
}

#[tokio::test]
async fn packets_cross_between_both_transports_in_order_and_with_back_pressure() {
    let (server, port, _task) = relay().await;
    let mut a = Client::connect(region(port), false).await;
    let mut b = Client::connect(region(port), true).await;
    assert_eq!((a.relays.counters().upgrades, a.relays.counters().websockets), (1, 0));
    assert_eq!((b.relays.counters().upgrades, b.relays.counters().websockets), (0, 1));
    assert_eq!(server.clients(), 2);
    const PACKETS: u32 = 20_000;
    for (from_a, total) in [(true, PACKETS), (false, PACKETS)] {
        let (from, to) = if from_a { (&mut a, &mut b) } else { (&mut b, &mut a) };
        let (mut sent, mut got) = (0u32, 0u32);
        while got < total {
            // The relay drops beyond 512 packets a client: never let more be under way.
            while sent < total && sent - got < 400 && from.link.lane.room(1300) {
                let mut packet = vec![0; 1300];
                packet[..4].copy_from_slice(&sent.to_be_bytes());
                from.send(&to.key, &packet);
                sent += 1;
            }
            from.link.lane.flush();
            let (sender, packet) = to.next().await.unwrap();
            assert_eq!(sender, from.key);
            assert_eq!(packet[..4], got.to_be_bytes());
            got += 1;
        }
    }
    assert_eq!(server.counters().packets_in, u64::from(2 * PACKETS) + 2);
}

#[tokio::test]
async fn a_peer_that_leaves_is_reported_and_a_dropped_link_leaves() {
    let (server, port, _task) = relay().await;
    let mut a = Client::connect(region(port), false).await;
    let mut b = Client::connect(region(port), false).await;
    let (to, gone) = (a.key, b.key);
    b.send(&to, b"x");
    b.link.lane.flush();
    a.next().await.unwrap();
    drop(b);
    assert_eq!(a.next().await, Err(gone));
    assert_eq!(server.clients(), 1);
}

#[tokio::test]
async fn a_relay_that_ends_brings_the_link_down() {
    let (_server, port, task) = relay().await;
    let a = Client::connect(region(port), false).await;
    task.abort();
    until(&a.relays, || a.link.lane.state() == State::Down).await;
    assert!(!a.link.lane.room(1));
}

#[tokio::test]
async fn a_relay_that_leaves_a_ping_unanswered_is_down_and_one_that_answers_stays() {
    let (_server, port, _task) = relay().await;
    let (front, silence) = mutable(port).await;
    let dead = Client::connect(region(front), false).await;
    let mut alive = Client::connect(region(port), false).await;
    silence.send_replace(true);
    let begin = Instant::now();
    dead.link.lane.ping();
    alive.link.lane.ping();
    until(&dead.relays, || dead.link.lane.state() == State::Down).await;
    assert!(begin.elapsed() >= Duration::from_millis(2_900), "a slow answer must count: {:?}", begin.elapsed());
    let to = alive.key;
    alive.send(&to, b"still here");
    alive.link.lane.flush();
    assert_eq!(alive.next().await, Ok((to, b"still here".to_vec())));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_a_byte_now_and_then_is_given_up() {
    let server = RelayServer::new(secret(), clock::random().unwrap());
    let (mut client, theirs) = tokio::io::duplex(256);
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve(theirs).await }
    });
    let secret = secret();
    let mut sent = Vec::new();
    ClientInfo::of_node().write(&secret, &server.public_key(), [1; 24], &mut sent);
    for _ in 0..100 {
        write_send_packet(&secret.public(), &[0; 1_000], &mut sent);
    }
    client.write_all(&sent).await.unwrap();
    let begin = Instant::now();
    while !serving.is_finished() && begin.elapsed() < Duration::from_secs(100) {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        // The end of the stream is an end too.
        let _ = client.read_u8().await;
    }
    assert!(begin.elapsed() < Duration::from_secs(35), "{:?}", begin.elapsed());
    assert_eq!(serving.await.unwrap().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

/// In front of the relay: passes everything, and nothing at all once it is told to fall silent.
async fn mutable(to: u16) -> (u16, tokio::sync::watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (silence, mut told) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut relay = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut relay) => {}
            () = async { drop(told.wait_for(|silent| *silent).await) } => {}
        }
        // Both connections stay open for as long as the test runs.
        std::future::pending::<()>().await;
    });
    (port, silence)
}

/// In front of the relay: `/derp` by `Upgrade: derp` gets `answer` (nothing at all when empty), WebSockets pass.
async fn picky(answer: &'static [u8], to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            if String::from_utf8_lossy(&head).contains("websocket") {
                let mut relay = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut relay, &head).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut relay).await });
            } else if answer.is_empty() {
                held.push(client);
            } else {
                tokio::io::AsyncWriteExt::write_all(&mut client, answer).await.unwrap();
            }
        }
    });
    port
}

#[tokio::test]
async fn a_refused_upgrade_becomes_a_websocket_at_once_and_first_the_next_time() {
    let (_server, port, _task) = relay().await;
    let front = picky(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", port).await;
    let begin = Instant::now();
    let a = Client::connect(region(front), false).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "a refusal must not wait for the stall limit");
    assert_eq!((a.relays.counters().websockets, a.relays.counters().dials), (1, 1));
    let before = a.relays.served.lock().unwrap().get(&id()).copied();
    assert_eq!(before, Some(Transport::WebSocket));
}

#[tokio::test]
async fn a_stalled_upgrade_is_overtaken_by_a_websocket() {
    let (_server, port, _task) = relay().await;
    // One proxy swallows the request, another answers 101 and then nothing.
    for answer in [&b""[..], b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"] {
        let front = picky(answer, port).await;
        let a = Client::connect(region(front), false).await;
        assert_eq!((a.relays.counters().websockets, a.relays.counters().upgrades), (1, 0));
    }
}

#[tokio::test]
async fn the_next_node_of_a_region_serves_when_the_first_does_not() {
    let (_server, port, _task) = relay().await;
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut both = region(dead);
    both.nodes.push(RelayNode { stun_only: true, ..region(dead).nodes.remove(0) });
    both.nodes.extend(region(port).nodes);
    Client::connect(both, false).await;
}

/// A listener that takes no more connections: the kernel swallows their SYNs.
fn swallow() -> (socket2::Socket, Vec<socket2::Socket>, u16) {
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill = || {
        let client = socket();
        client.set_nonblocking(true).unwrap();
        // Under way, or waiting for ever: both fill the queue.
        let _ = client.connect(&address);
        client
    };
    (listener, std::iter::repeat_with(fill).take(8).collect(), address.as_socket().unwrap().port())
}

#[tokio::test]
async fn the_next_node_of_a_region_serves_when_the_first_swallows_everything() {
    let (_server, port, _task) = relay().await;
    let (_listener, _fill, deaf) = swallow();
    let mut both = region(deaf);
    both.nodes.extend(region(port).nodes);
    let begin = Instant::now();
    let a = Client::connect(both, false).await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!((a.relays.counters().upgrades, a.relays.counters().failures), (1, 0));
}

#[tokio::test]
async fn a_failed_dial_says_why_and_counts() {
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    for (region, why) in [(region(dead), "refused"), (Region::default(), "has no relay")] {
        let relays = relays(&secret(), false);
        let link = relays.open(id(), region, false, clock::random().unwrap());
        until(&relays, || link.lane.state() == State::Down).await;
        assert!(link.lane.why().contains(why), "{}", link.lane.why());
        assert_eq!((relays.counters().dials, relays.counters().failures), (1, 1));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_address_that_a_map_gives_a_relay_is_used_for_that_relay_alone() {
    let (_server, port, _task) = relay_at("127.0.0.2:0").await;
    let mut there = region(port);
    "localhost".clone_into(&mut there.nodes[0].host);
    there.nodes[0].ipv4 = HostIp::Fixed("127.0.0.2".parse().unwrap());
    there.nodes[0].ipv6 = HostIp::Off;
    let a = Client::connect(there, false).await;
    // The node's other requests to that host know nothing of it.
    let http = a.relays.http.at(&format!("http://localhost:{port}")).unwrap();
    assert!(http.upgrade_derp("/derp").await.is_err_and(|e| e.is_connect()));
}

#[tokio::test]
async fn a_relay_without_any_address_family_says_so() {
    let mut off = region(1);
    "relay.invalid".clone_into(&mut off.nodes[0].host);
    off.nodes[0].ipv4 = HostIp::Off;
    off.nodes[0].ipv6 = HostIp::Off;
    let mut literal = region(1);
    literal.nodes[0].ipv4 = HostIp::Off;
    for region in [off, literal] {
        let relays = relays(&secret(), false);
        let link = relays.open(id(), region, false, clock::random().unwrap());
        until(&relays, || link.lane.state() == State::Down).await;
        assert!(link.lane.why().contains("every address family of relay node \"7a\""), "{}", link.lane.why());
    }
}

#[tokio::test]
async fn a_measurement_takes_a_round_trip_and_none_without_a_relay() {
    let (_server, port, _task) = relay().await;
    let relays = relays(&secret(), false);
    assert!(relays.measure(&region(port)).await.unwrap() < Duration::from_secs(1));
    assert_eq!(relays.measure(&Region::default()).await, None);
}
