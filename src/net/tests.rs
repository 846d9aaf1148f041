//! Two nodes over real sockets on this host: a relay between them, then the direct way.

use super::*;
use crate::{
    base::{Lane, RegionId},
    driver::http::{HttpOptions, ProxyChoice},
    wire::derp::{Region, RelayNode},
};
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Enough for every ring and buffer to fill many times; the release build takes more.
const BULK: usize = if cfg!(debug_assertions) { 16 << 20 } else { 100 << 20 };

fn secret() -> NodeSecret {
    NodeSecret::generate(&mut clock::random().unwrap())
}

struct Relay {
    server: RelayServer,
    map: RelayMap,
    _task: JoinHandle<io::Result<()>>,
}

async fn relay() -> Relay {
    let server = RelayServer::new(secret(), clock::random().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let node = RelayNode {
        name: "1a".into(),
        host: "127.0.0.1".into(),
        relay_port: port,
        plain_http: true,
        stun_port: None,
        ..RelayNode::default()
    };
    let region = Region { code: "one".into(), embedded: true, nodes: vec![node], ..Region::default() };
    let map = RelayMap { regions: [(RegionId::new(1).unwrap(), region)].into(), ..RelayMap::default() };
    let _task = tokio::spawn({
        let server = server.clone();
        async move { server.listen(listener).await }
    });
    Relay { server, map, _task }
}

fn config(relay: &Relay) -> Config {
    let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
    let http = Http::new("http://unused.invalid", None, options).unwrap();
    Config { relay_map: Some(relay.map.clone()), ..Config::client(http).unwrap() }
}

/// Tells two nodes of each other, now and whenever one of them changes.
fn introduce(a: &Tailnet, b: &Tailnet) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (id, from, to) in [(1, a, b), (2, b, a)] {
        let (mut own, to) = (from.own_node(), to.clone());
        tasks.spawn(async move {
            loop {
                let node = own.borrow_and_update().clone();
                if let Some(node) = node {
                    to.add_peer(Uuid::from_u128(id), Node::clone(&node));
                }
                if own.changed().await.is_err() {
                    break;
                }
            }
        });
    }
    tasks
}

struct Pair {
    a: Tailnet,
    b: Tailnet,
    relay: Relay,
    _introduction: JoinSet<()>,
}

async fn pair(change: impl Fn(&mut Config)) -> Pair {
    let relay = relay().await;
    let start = || {
        let mut config = config(&relay);
        change(&mut config);
        Tailnet::start(config).unwrap()
    };
    let (a, b) = (start(), start());
    let _introduction = introduce(&a, &b);
    // Whoever dials before the other side knows him is not answered at first.
    for (node, other) in [(&a, &b), (&b, &a)] {
        let mut path = node.watch_path(other.addresses()[0]).await.unwrap();
        timeout(PATIENCE, path.wait_for(Option::is_some)).await.expect("they never met").unwrap();
    }
    // The relay drops what is for somebody who is still logging in.
    let both = async {
        while relay.server.clients() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, both).await.expect("not both came to the relay");
    Pair { a, b, relay, _introduction }
}

fn at(node: &Tailnet, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(node.addresses()[0], port, 0, 0)
}

/// Accepts connections to a port and sends everything back.
async fn echo(node: &Tailnet, port: u16) {
    let mut listener = node.listen_tcp(port).await.unwrap();
    tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            let stream = incoming.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        }
    });
}

async fn dial(from: &Tailnet, to: SocketAddrV6) -> Stream {
    timeout(PATIENCE, from.dial_tcp(to)).await.expect("the dial hangs").unwrap()
}

/// A connection from `a` to `b`, both ends of it.
async fn connect(pair: &Pair, port: u16) -> (Stream, Stream) {
    let mut listener = pair.b.listen_tcp(port).await.unwrap();
    let accept = async { listener.accept().await.unwrap().accept().await.unwrap() };
    timeout(PATIENCE, async { tokio::join!(dial(&pair.a, at(&pair.b, port)), accept) }).await.expect("no connection")
}

/// Sends `bytes` bytes through an echo and compares what comes back.
async fn round_trip(stream: Stream, bytes: usize) {
    let (mut read, mut write) = tokio::io::split(stream);
    let byte = |i: usize| (i ^ (i >> 8) ^ (i >> 16)) as u8;
    let writer = tokio::spawn(async move {
        let mut sent = 0;
        while sent < bytes {
            let chunk: Vec<u8> = (sent..bytes.min(sent + 50_000)).map(byte).collect();
            write.write_all(&chunk).await.unwrap();
            sent += chunk.len();
        }
        write.shutdown().await.unwrap();
    });
    let check = async {
        let (mut got, mut buffer) = (0, vec![0; 50_000]);
        loop {
            let n = read.read(&mut buffer).await.unwrap();
            if n == 0 {
                break;
            }
            assert!(buffer[..n].iter().enumerate().all(|(i, b)| *b == byte(got + i)), "bytes differ after {got}");
            got += n;
        }
        assert_eq!(got, bytes);
    };
    timeout(3 * PATIENCE, check).await.expect("the transfer stands still");
    writer.await.unwrap();
}

async fn until_path(node: &Tailnet, peer: Ipv6Addr, state: PathState) -> PathInfo {
    let mut path = node.watch_path(peer).await.unwrap();
    let found = timeout(PATIENCE, path.wait_for(|p| p.is_some_and(|p| p.state == state))).await;
    found.expect("the path never got there").unwrap().unwrap()
}

#[tokio::test]
async fn bytes_pass_by_relay_alone_on_both_transports_and_the_counters_prove_it() {
    for websockets in [false, true] {
        let pair = pair(|c| {
            c.direct = false;
            c.force_websockets = websockets;
        })
        .await;
        echo(&pair.b, 7).await;
        round_trip(dial(&pair.a, at(&pair.b, 7)).await, BULK / 4).await;
        for node in [&pair.a, &pair.b] {
            let c = node.counters().await.unwrap();
            assert!(c.node.data_sent.relay > 0 && c.node.data_received.relay > 0, "{c:?}");
            assert_eq!((c.node.data_sent.udp, c.node.data_received.udp), (0, 0));
            assert_eq!(
                (c.relays.dials, c.relays.upgrades, c.relays.websockets),
                (1, u64::from(!websockets), u64::from(websockets))
            );
            let path = node.path_of_other(&pair).await;
            assert_eq!(path.state, PathState::Relay);
        }
        assert!(pair.relay.server.counters().packets_in > 0);
    }
}

impl Tailnet {
    async fn path_of_other(&self, pair: &Pair) -> PathInfo {
        let other = if Arc::ptr_eq(&self.0, &pair.a.0) { &pair.b } else { &pair.a };
        (*self.watch_path(other.addresses()[0]).await.unwrap().borrow()).unwrap()
    }
}

#[tokio::test]
async fn a_connection_starts_by_relay_and_moves_to_udp_without_losing_a_byte() {
    // On loopback the direct path is proven before the SYN can leave by relay: so it is forbidden for a while.
    let pair = pair(|c| c.direct = false).await;
    echo(&pair.b, 7).await;
    let mut stream = dial(&pair.a, at(&pair.b, 7)).await;
    stream.write_all(b"first").await.unwrap();
    let mut first = [0; 5];
    timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(&first, b"first");
    let by_relay = pair.a.counters().await.unwrap().node.data_sent;
    assert!(by_relay.relay > 0 && by_relay.udp == 0, "{by_relay:?}");
    pair.b.set_direct(true);
    pair.a.set_direct(true);
    let path = until_path(&pair.a, pair.b.addresses()[0], PathState::Direct).await;
    assert!(matches!(path.lane, Some(Lane::Udp { .. })), "{path:?}");
    until_path(&pair.b, pair.a.addresses()[0], PathState::Direct).await;
    let before = pair.a.counters().await.unwrap().node;
    let (mut read, mut write) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..BULK).map(|i| (i ^ (i >> 8)) as u8).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut got = Vec::with_capacity(BULK);
    timeout(3 * PATIENCE, read.read_to_end(&mut got)).await.expect("the transfer stands still").unwrap();
    assert!(got == expected);
    writer.await.unwrap();
    let after = pair.a.counters().await.unwrap().node;
    assert!(after.data_sent.udp > before.data_sent.udp + (BULK / 1400) as u64);
    assert_eq!(after.initiations_sent, 1, "one handshake is enough");
    assert_eq!(after.syns_sent, 1, "one SYN is enough");
}

#[tokio::test]
async fn both_ends_close_each_half_on_its_own() {
    let pair = pair(|_| ()).await;
    let (mut client, mut server) = connect(&pair, 9).await;
    assert_eq!((server.peer_addr(), server.local_addr()), (client.local_addr(), client.peer_addr()));
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    timeout(PATIENCE, server.read_to_string(&mut question)).await.unwrap().unwrap();
    assert_eq!(question, "question");
    server.write_all(b"answer").await.unwrap();
    // Dropping is the other way to finish: what was written still arrives.
    drop(server);
    let mut answer = String::new();
    timeout(PATIENCE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(client.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn an_abort_is_read_as_a_reset() {
    let pair = pair(|_| ()).await;
    let (mut client, server) = connect(&pair, 9).await;
    server.abort();
    let error = timeout(PATIENCE, client.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(client.broken(), Some(Broken::Reset));
}

#[tokio::test]
async fn a_port_without_listener_and_a_refused_connection_are_refused() {
    let pair = pair(|_| ()).await;
    let closed = timeout(PATIENCE, pair.a.dial_tcp(at(&pair.b, 5))).await.unwrap();
    assert_eq!(closed.unwrap_err(), DialError::Refused(5));
    let mut rest = pair.b.listen_rest().await.unwrap();
    assert_eq!(pair.b.listen_rest().await.unwrap_err(), BindError::Taken);
    let (a, to) = (pair.a.clone(), at(&pair.b, 6));
    let dialing = tokio::spawn(async move { a.dial_tcp(to).await });
    let incoming = timeout(PATIENCE, rest.accept()).await.unwrap().unwrap();
    assert_eq!(incoming.local_addr().port(), 6);
    incoming.refuse();
    assert_eq!(timeout(PATIENCE, dialing).await.unwrap().unwrap().unwrap_err(), DialError::Refused(6));
    drop(rest);
    let again = timeout(PATIENCE, pair.a.dial_tcp(at(&pair.b, 6))).await.unwrap();
    assert_eq!(again.unwrap_err(), DialError::Refused(6));
}

#[tokio::test]
async fn a_dial_to_nobody_ends_with_its_limit_and_a_dropped_one_at_once() {
    let relay = relay().await;
    let a = Tailnet::start(config(&relay)).unwrap();
    let nobody = SocketAddrV6::new("fd7a:115c:a1e0::1".parse().unwrap(), 1, 0, 0);
    let limit = Duration::from_millis(100);
    let error = timeout(PATIENCE, a.dial_tcp_within(nobody, limit)).await.unwrap().unwrap_err();
    assert_eq!(error, DialError::UnknownPeer { to: nobody, after: limit });
    assert!(timeout(limit, a.dial_tcp(nobody)).await.is_err());
    assert_eq!(a.counters().await.unwrap().node.syns_sent, 0);
}

#[tokio::test]
async fn pings_of_every_kind_are_answered_and_unknown_peers_are_told_apart() {
    let pair = pair(|_| ()).await;
    echo(&pair.b, 7).await;
    dial(&pair.a, at(&pair.b, 7)).await;
    for kind in [PingKind::Disco, PingKind::Tsmp, PingKind::Icmp] {
        let pong = timeout(PATIENCE, pair.a.ping(pair.b.addresses()[0], kind, PATIENCE)).await.unwrap().unwrap();
        assert!(pong.latency < Duration::from_secs(5) && pong.path.is_some(), "{kind:?} {pong:?}");
    }
    let unknown = pair.a.ping("fd7a:115c:a1e0::1".parse().unwrap(), PingKind::Tsmp, Duration::from_millis(50)).await;
    assert_eq!(unknown.unwrap_err(), PingError::UnknownPeer);
}

#[tokio::test]
async fn datagrams_pass_both_ways() {
    let pair = pair(|_| ()).await;
    echo(&pair.b, 7).await;
    dial(&pair.a, at(&pair.b, 7)).await;
    let mut b = pair.b.bind_udp(Some(53)).await.unwrap();
    assert_eq!(pair.b.bind_udp(Some(53)).await.unwrap_err(), BindError::Taken);
    let mut a = pair.a.bind_udp(None).await.unwrap();
    a.send_to(b"ask", at(&pair.b, 53)).await.unwrap();
    let (data, from) = timeout(PATIENCE, b.recv_from()).await.unwrap().unwrap();
    assert_eq!((data.as_slice(), from), (&b"ask"[..], at(&pair.a, a.port())));
    b.send_to(b"answer", from).await.unwrap();
    assert_eq!(timeout(PATIENCE, a.recv_from()).await.unwrap().unwrap().0, b"answer");
    drop(b);
    pair.b.bind_udp(Some(53)).await.unwrap();
}

#[tokio::test]
async fn whoever_takes_the_rest_of_the_udp_ports_answers_from_each_of_them() {
    let pair = pair(|_| ()).await;
    echo(&pair.b, 7).await;
    dial(&pair.a, at(&pair.b, 7)).await;
    let mut own = pair.b.bind_udp(Some(53)).await.unwrap();
    let mut rest = pair.b.bind_udp_rest().await.unwrap();
    assert_eq!(pair.b.bind_udp_rest().await.unwrap_err(), BindError::Taken);
    let mut a = pair.a.bind_udp(None).await.unwrap();
    for port in [53, 54, 9_999] {
        a.send_to(b"ask", at(&pair.b, port)).await.unwrap();
    }
    assert_eq!(timeout(PATIENCE, own.recv_from()).await.unwrap().unwrap().0, b"ask");
    for wanted in [54, 9_999] {
        let (data, from, port) = timeout(PATIENCE, rest.recv_from()).await.unwrap().unwrap();
        assert_eq!((data.as_slice(), from, port), (&b"ask"[..], at(&pair.a, a.port()), wanted));
        rest.sender(port).send_to(b"answer", from).await.unwrap();
        assert_eq!(timeout(PATIENCE, a.recv_from()).await.unwrap().unwrap(), (b"answer".to_vec(), at(&pair.b, wanted)));
    }
    drop(rest);
    pair.b.bind_udp_rest().await.unwrap();
}

#[tokio::test]
async fn a_carried_connection_ends_each_half_on_its_own_and_breaks_with_either_side() {
    let pair = pair(|_| ()).await;
    let (tunnel, mut far) = connect(&pair, 9).await;
    let (mut near, carried, counts) = counted(tunnel).await;
    let sent: Vec<u8> = (0..BULK).map(|i| (i ^ (i >> 8)) as u8).collect();
    let expected = sent.clone();
    let upload = async {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    timeout(3 * PATIENCE, async { tokio::join!(upload, far.read_to_end(&mut got)) }).await.expect("it stands still").1.unwrap();
    assert!(got == expected);
    far.write_all(b"answer").await.unwrap();
    drop(far);
    let mut answer = Vec::new();
    timeout(PATIENCE, near.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"answer");
    timeout(PATIENCE, carried).await.unwrap().unwrap().unwrap();
    assert_eq!([0, 1].map(|way| counts[way].load(Relaxed)), [answer.len(), sent.len()]);

    let (tunnel, _far) = connect(&pair, 8).await;
    let (near, carried) = self::carried(tunnel).await;
    near.set_zero_linger().unwrap();
    drop(near);
    let broken = timeout(PATIENCE, carried).await.unwrap().unwrap();
    assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    let (tunnel, far) = connect(&pair, 10).await;
    let (_near, carried) = self::carried(tunnel).await;
    far.abort();
    let broken = timeout(PATIENCE, carried).await.unwrap().unwrap();
    assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    // Also when one half had ended properly before.
    let (tunnel, mut far) = connect(&pair, 11).await;
    let (mut near, carried) = self::carried(tunnel).await;
    far.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, near.read(&mut [0])).await.unwrap().unwrap(), 0);
    far.abort();
    let broken = timeout(PATIENCE, carried).await.expect("nobody noticed").unwrap();
    assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// A connection of this machine that leads into the tunnel: its other end, and how the carrying ends.
async fn carried(tunnel: Stream) -> (tokio::net::TcpStream, JoinHandle<io::Result<()>>) {
    let (near, carried, _) = counted(tunnel).await;
    (near, carried)
}

/// The same with the bytes that came from the tunnel and went into it.
async fn counted(mut tunnel: Stream) -> (tokio::net::TcpStream, JoinHandle<io::Result<()>>, Arc<[AtomicUsize; 2]>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut local, _) = listener.accept().await.unwrap();
    let counts = Arc::<[AtomicUsize; 2]>::default();
    let counting = Arc::clone(&counts);
    let carried = tokio::spawn(async move {
        let count = |received, sent| {
            counting[0].fetch_add(received, Relaxed);
            counting[1].fetch_add(sent, Relaxed);
        };
        forward::carry(&mut tunnel, &mut local, count).await
    });
    (near, carried, counts)
}

#[tokio::test]
async fn closing_delivers_what_was_written_and_breaks_what_is_left() {
    let pair = pair(|_| ()).await;
    let (mut client, mut server) = connect(&pair, 9).await;
    let last = vec![7; 200_000];
    client.write_all(&last).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        got
    });
    timeout(Duration::from_secs(5), pair.a.close()).await.expect("close hangs");
    assert_eq!(timeout(PATIENCE, reader).await.unwrap().unwrap(), last);
    assert_eq!(pair.a.counters().await.unwrap_err(), ClosedError);
    assert_eq!(pair.a.dial_tcp(at(&pair.b, 9)).await.unwrap_err(), DialError::Closed);
    let error = client.write(b"x").await.unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe), "{error}");
    // Closing twice is closing once.
    pair.a.close().await;
}

#[tokio::test]
async fn closing_waits_for_dropped_streams_but_not_for_a_peer_that_is_gone() {
    let pair = pair(|_| ()).await;
    let (mut client, mut server) = connect(&pair, 9).await;
    let last = vec![7; 1_000_000];
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        got
    });
    client.write_all(&last).await.unwrap();
    drop(client);
    pair.a.close().await;
    assert!(timeout(PATIENCE, reader).await.unwrap().unwrap() == last);

    let pair = self::pair(|_| ()).await;
    let (mut client, server) = connect(&pair, 9).await;
    // The other node vanishes without a word: its streams, its handles, and so its loop.
    drop(server);
    let Pair { a, b, relay: _relay, _introduction } = pair;
    drop((b, _introduction));
    client.write_all(b"nobody hears this").await.unwrap();
    let begin = clock::now();
    a.close().await;
    assert!(clock::now() - begin < Duration::from_secs(3), "closing took {:?}", clock::now() - begin);
}

#[test]
fn a_node_on_its_own_thread_serves_another_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let relay = relay().await;
        let a = Tailnet::start(config(&relay)).unwrap();
        let b = Tailnet::start_on_thread(config(&relay)).await.unwrap();
        let _introduction = introduce(&a, &b);
        echo(&b, 7).await;
        round_trip(dial(&a, at(&b, 7)).await, BULK / 4).await;
        timeout(PATIENCE, b.close()).await.unwrap();
    });
}

/// How rarely an idle node wakes is shown in virtual time (`sim`); here, that the loop sleeps until its deadline.
#[tokio::test]
async fn a_loop_that_waits_for_a_deadline_neither_ticks_nor_spins() {
    let pair = pair(|_| ()).await;
    echo(&pair.b, 7).await;
    let _stream = dial(&pair.a, at(&pair.b, 7)).await;
    until_path(&pair.a, pair.b.addresses()[0], PathState::Direct).await;
    let before = pair.a.counters().await.unwrap();
    // A deadline of the node's own: nobody answers this ping, and its end wakes the loop.
    let limit = Duration::from_secs(1);
    let unknown = pair.a.ping("fd7a:115c:a1e0::1".parse().unwrap(), PingKind::Tsmp, limit).await;
    assert_eq!(unknown.unwrap_err(), PingError::UnknownPeer);
    let after = pair.a.counters().await.unwrap();
    let (sleeps, turns) = (after.sleeps - before.sleeps, after.turns - before.turns);
    assert!((1..50).contains(&sleeps) && turns < 50, "{sleeps} sleeps and {turns} turns until one deadline");
}

#[tokio::test]
async fn a_taken_udp_port_is_an_error_and_a_free_one_is_used() {
    let relay = relay().await;
    let a = Tailnet::start(config(&relay)).unwrap();
    let port = a.udp_ports().0.or(a.udp_ports().1).unwrap();
    let error = Tailnet::start(Config { port, ..config(&relay) }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let _: SocketAddr = SocketAddr::from(([127, 0, 0, 1], port));
}
