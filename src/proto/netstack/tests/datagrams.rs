//! UDP, pings, and what is nobody's.

use super::*;
use crate::wire::ip::checksum_is_right;

fn vectors() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/wire/netstack.json")).unwrap()
}

fn bytes(v: &serde_json::Value) -> Vec<u8> {
    hex::decode(v.as_str().unwrap()).unwrap()
}

/// A stack with the addresses of the captured agent.
fn agent() -> Netstack {
    let mut stack = Netstack::new(Config::default(), Rng::from_u64(3));
    let ips = ["fd7a:115c:a1e0:4d1b:a0e5:3cbb:8f6e:d1a0", "fd60:627a:a42b:4d1b:a0e5:3cbb:8f6e:d1a0"];
    stack.set_addresses(ips.map(|ip| ip.parse().unwrap()).to_vec());
    stack
}

fn sent(stack: &mut Netstack, now: Instant) -> Vec<Vec<u8>> {
    let mut buf = [0; MTU];
    let mut all = Vec::new();
    while let Some(packet) = stack.poll_transmit(now, &mut buf, &mut |_, _| true) {
        all.push(buf[..packet.len].to_vec());
    }
    all
}

#[test]
fn captured_pings_are_answered_byte_for_byte_as_go_does() {
    let vectors = vectors();
    for name in ["tsmp_ping_pong", "tsmp_to_second_address", "icmpv6_echo"] {
        let pair = &vectors["captures"][name];
        let (ask, answer) = (bytes(&pair[0]["packet"]), bytes(&pair[1]["packet"]));
        let mut stack = agent();
        // WireGuard's padding may follow.
        let padded = [ask.as_slice(), &[0; 7]].concat();
        stack.handle_packet(Instant::ZERO, world::PEER, &padded);
        let out = sent(&mut stack, Instant::ZERO);
        assert_eq!(out.iter().map(hex::encode).collect::<Vec<_>>(), [hex::encode(answer)], "{name}");
        assert_eq!(stack.poll_timeout(), None);
    }
}

#[test]
fn a_captured_go_syn_is_taken_and_our_syn_ack_offers_what_go_needs() {
    let vectors = vectors();
    let connection = &vectors["captures"]["tcp_connection"];
    let mut stack = agent();
    stack.listen(1);
    stack.handle_packet(Instant::ZERO, world::PEER, &bytes(&connection[0]["packet"]));
    let Some(Event::Incoming { key, .. }) = stack.poll_event() else { panic!("no request") };
    let flow = stack.accept(Instant::ZERO, key).unwrap();
    let out = sent(&mut stack, Instant::ZERO);
    let ip = Ipv6::parse(&out[0]).unwrap();
    let tcp = Tcp::parse(ip.payload).unwrap();
    let options = TcpOptions::parse(tcp.options);
    assert!(checksum_is_right(&ip) && out.len() == 1);
    assert_eq!((options.mss, options.window_scale, options.sack_permitted), (Some(1_220), Some(5), true));
    assert_eq!((options.timestamps, tcp.window, tcp.ack), (None, 65_535, 959_217_128));
    // The rest of the capture acknowledges another sequence number: Go's ACK with ours in its place.
    let ack = bytes(&connection[2]["packet"]);
    let go = Ipv6::parse(&ack).unwrap();
    let mut segment = Vec::new();
    Tcp { ack: tcp.seq.wrapping_add(1), ..Tcp::parse(go.payload).unwrap() }.write(go.src, go.dst, &mut segment);
    stack.handle_packet(Instant::ZERO, world::PEER, &segment);
    assert_eq!(stack.poll_event(), Some(Event::Connected { flow }));
    // And its data.
    let data = bytes(&connection[5]["packet"]);
    let go = Ipv6::parse(&data).unwrap();
    let go_tcp = Tcp::parse(go.payload).unwrap();
    let mut segment = Vec::new();
    Tcp { ack: tcp.seq.wrapping_add(1), ..go_tcp }.write(go.src, go.dst, &mut segment);
    stack.handle_packet(Instant::ZERO, world::PEER, &segment);
    assert_eq!(stack.readable(flow), go_tcp.payload);
}

#[test]
fn every_syn_ack_of_a_go_agent_completes_our_handshake() {
    let vectors = vectors();
    for row in vectors["captures"]["answers_to_other_syn_options"].as_array().unwrap() {
        let answer = bytes(&row["syn_ack"]["packet"]);
        let go = Ipv6::parse(&answer).unwrap();
        let go_tcp = Tcp::parse(go.payload).unwrap();
        let mut stack = Netstack::new(Config::default(), Rng::from_u64(3));
        stack.set_addresses(vec![go.dst]);
        let flow = stack.dial(Instant::ZERO, world::PEER, go.dst, SocketAddrV6::new(go.src, go_tcp.src_port, 0, 0));
        let syn = sent(&mut stack, Instant::ZERO).remove(0);
        let ours = Tcp::parse(&syn[HEADER_LEN..]).unwrap();
        let mut segment = Vec::new();
        Tcp { dst_port: ours.src_port, ack: ours.seq.wrapping_add(1), ..go_tcp }.write(go.src, go.dst, &mut segment);
        stack.handle_packet(Instant::ZERO, world::PEER, &segment);
        assert_eq!(stack.poll_event(), Some(Event::Connected { flow }), "{}", row["name"]);
        assert_eq!(stack.write(flow, &[7; 5_000]), 5_000);
        let mss = TcpOptions::parse(go_tcp.options).mss.unwrap_or(536);
        for packet in sent(&mut stack, Instant::ZERO) {
            let len = Tcp::parse(&packet[HEADER_LEN..]).unwrap().payload.len();
            assert!(packet.len() <= MTU && len <= usize::from(mss), "{len}");
        }
    }
}

#[test]
fn our_syn_offers_mss_scale_and_sack_and_no_two_flows_start_alike() {
    let mut stack = agent();
    let from = stack.addresses[0];
    let mut numbers = BTreeSet::new();
    for _ in 0..50 {
        stack.dial(Instant::ZERO, world::PEER, from, Side::B.addr(80));
    }
    for syn in sent(&mut stack, Instant::ZERO) {
        let tcp = Tcp::parse(&syn[HEADER_LEN..]).unwrap();
        let options = TcpOptions::parse(tcp.options);
        assert_eq!((options.mss, options.window_scale, options.sack_permitted), (Some(1_220), Some(3), true));
        assert_eq!((tcp.flags, tcp.window), (TcpFlags::SYN, 65_535));
        assert!(tcp.src_port >= 49_152);
        numbers.insert((tcp.seq, tcp.src_port));
    }
    assert_eq!(numbers.len(), 50);
    assert_eq!(numbers.iter().map(|(seq, _)| seq).collect::<BTreeSet<_>>().len(), 50);
}

#[test]
fn own_pings_come_back_with_their_latency_and_strangers_do_not_count() {
    let mut w = World::new(1, ms(15));
    for kind in [PingKind::Tsmp, PingKind::Icmp] {
        let now = w.now;
        let token = w.a.ping(now, world::PEER, Side::A.ip(), Side::B.ip(), kind);
        let pong = w.until(secs(1), |w| w.event(Side::A, |e| matches!(e, Event::Pong { .. })));
        assert_eq!(pong, Event::Pong { token, peer: world::PEER, latency: ms(30) });
    }
    let now = w.now;
    w.a.ping(now, world::PEER, Side::A.ip(), Side::B.ip(), PingKind::Tsmp);
    w.record = true;
    w.flush();
    let mut forged = Vec::new();
    Tsmp::Pong { data: [0; 8], port: 0 }.write(Side::B.ip(), Side::A.ip(), 0, &mut forged);
    w.a.handle_packet(now, world::PEER, &forged);
    let Ok(Tsmp::Ping { data }) = Tsmp::parse(&w.log[0].1[HEADER_LEN..]) else { panic!("a ping") };
    forged.clear();
    Tsmp::Pong { data, port: 0 }.write(Side::B.ip(), Side::A.ip(), 0, &mut forged);
    w.a.handle_packet(now, PeerIx(99), &forged);
    assert_eq!(w.a.poll_event(), None);
    w.links(|l| l.dead = true);
    w.run(secs(11));
    assert_eq!(w.a.poll_timeout(), None, "an unanswered ping is forgotten after 10 s");
}

#[test]
fn pings_expect_an_answer_and_datagrams_and_acks_do_not() {
    let mut stack = agent();
    let (from, to) = (stack.addresses[0], Side::B.ip());
    let mut buf = [0; MTU];
    let mut next = |stack: &mut Netstack| stack.poll_transmit(Instant::ZERO, &mut buf, &mut |_, _| true).unwrap();
    stack.ping(Instant::ZERO, world::PEER, from, to, PingKind::Tsmp);
    assert!(next(&mut stack).expects_answer);
    assert!(stack.udp_send(world::PEER, SocketAddrV6::new(from, 9, 0, 0), Side::B.addr(9), b"x"));
    assert!(!next(&mut stack).expects_answer);
    stack.dial(Instant::ZERO, world::PEER, from, Side::B.addr(80));
    assert!(next(&mut stack).expects_answer);
}

#[test]
fn datagrams_reach_bound_ports_only_and_queues_are_bounded() {
    let mut w = World::new(1, ms(10));
    assert_eq!(w.b.udp_bind(Some(34_567)), Some(34_567));
    assert_eq!(w.b.udp_bind(Some(34_567)), None);
    let port = w.a.udp_bind(None).unwrap();
    assert!(w.a.udp_send(world::PEER, Side::A.addr(port), Side::B.addr(34_567), b"hello"));
    assert!(w.a.udp_send(world::PEER, Side::A.addr(port), Side::B.addr(1), b"nobody"));
    assert!(!w.a.udp_send(world::PEER, Side::A.addr(port), Side::B.addr(34_567), &[0; 1_233]));
    assert!(w.a.udp_send(world::PEER, Side::A.addr(port), Side::B.addr(34_567), &[1; 1_232]));
    w.run(ms(20));
    let want = |data: &[u8]| Event::Datagram {
        peer: world::PEER,
        from: Side::A.addr(port),
        to: Side::B.addr(34_567),
        data: data.to_vec(),
    };
    assert_eq!(Vec::from(w.events[&Side::B].clone()), [want(b"hello"), want(&[1; 1_232])]);
    assert_eq!(w.b.counters().udp_unbound, 1);
    w.open.insert(Side::A, false);
    let taken = (0..600).filter(|_| w.a.udp_send(world::PEER, Side::A.addr(port), Side::B.addr(34_567), b"x")).count();
    assert_eq!((taken, w.a.counters().udp_overflow_out), (512, 89));
    w.b.udp_unbind(34_567);
    assert_eq!(w.b.udp_bind(Some(34_567)), Some(34_567));
}

#[test]
fn whoever_takes_the_rest_gets_datagrams_of_every_port() {
    let mut w = World::new(1, ms(10));
    let send = |w: &mut World, port, data: &[u8]| {
        assert!(w.a.udp_send(world::PEER, Side::A.addr(9), Side::B.addr(port), data));
        w.run(ms(20));
    };
    w.b.udp_listen_rest(true);
    send(&mut w, 53, b"one");
    send(&mut w, 5_353, b"two");
    w.b.udp_listen_rest(false);
    send(&mut w, 53, b"three");
    let seen = |event: &Event| match event {
        Event::Datagram { to, data, .. } => (to.port(), data.clone()),
        other => panic!("{other:?}"),
    };
    let got: Vec<_> = w.events[&Side::B].iter().map(seen).collect();
    assert_eq!(got, [(53, b"one".to_vec()), (5_353, b"two".to_vec())]);
    assert_eq!(w.b.counters().udp_unbound, 1);
}

#[test]
fn packets_that_are_nobodys_are_counted_and_answered_by_silence() {
    let mut stack = agent();
    let ping = bytes(&vectors()["captures"]["tsmp_ping_pong"][0]["packet"]);
    let mut elsewhere = ping.clone();
    elsewhere[39] ^= 1;
    let mut sctp = ping.clone();
    sctp[6] = 132;
    let mut unknown = ping.clone();
    unknown[40] = b'!';
    let mut short = ping.clone();
    short[6] = protocol::TCP;
    for packet in [&elsewhere, &sctp, &unknown, &short, &ping[..30].to_vec()] {
        stack.handle_packet(Instant::ZERO, world::PEER, packet);
    }
    let counters = stack.counters();
    assert_eq!((counters.not_ours, counters.unknown_protocol, counters.malformed), (1, 2, 2));
    assert!(sent(&mut stack, Instant::ZERO).is_empty());
}
