use super::*;
use proptest::prelude::*;

fn vectors() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../tests/vectors/wire/netstack.json")).unwrap()
}

fn bytes(v: &serde_json::Value) -> Vec<u8> {
    hex::decode(v.as_str().expect("hexadecimal text")).unwrap()
}

/// Every captured packet with what the capture says of it.
fn captures(v: &serde_json::Value, out: &mut Vec<(Vec<u8>, serde_json::Value)>) {
    match v {
        serde_json::Value::Object(o) => {
            if let (Some(packet), Some(decoded)) = (o.get("packet"), o.get("decoded")) {
                out.push((bytes(packet), decoded.clone()));
            }
            o.values().for_each(|v| captures(v, out));
        }
        serde_json::Value::Array(a) => a.iter().for_each(|v| captures(v, out)),
        _ => {}
    }
}

#[test]
fn every_captured_packet_reads_as_the_capture_says_and_writes_back_to_the_same_bytes() {
    let mut all = Vec::new();
    captures(&vectors()["captures"], &mut all);
    assert!(all.len() > 30, "{} packets", all.len());
    for (packet, decoded) in all {
        let ip = Ipv6::parse(&packet).unwrap();
        assert_eq!(u64::from(ip.traffic_class), decoded["traffic_class"].as_u64().unwrap());
        assert_eq!(format!("{:06x}", ip.flow_label), decoded["flow_label"].as_str().unwrap());
        assert_eq!(ip.src.to_string(), decoded["src"].as_str().unwrap());
        assert_eq!(ip.dst.to_string(), decoded["dst"].as_str().unwrap());
        assert_eq!(u64::from(ip.hop_limit), decoded["hop_limit"].as_u64().unwrap());
        let mut again = Vec::new();
        match ip.next_header {
            protocol::TCP => {
                let tcp = Tcp::parse(ip.payload).unwrap();
                let want = &decoded["tcp"];
                assert_eq!(u64::from(tcp.seq), want["seq"].as_u64().unwrap());
                assert_eq!(u64::from(tcp.ack), want["ack"].as_u64().unwrap());
                assert_eq!(u64::from(tcp.window), want["window"].as_u64().unwrap());
                assert_eq!(hex::encode(tcp.options), want["options_hex"].as_str().unwrap());
                assert_eq!(tcp.payload.len() as u64, want["data_len"].as_u64().unwrap());
                let names = [(TcpFlags::FIN, "FIN"), (TcpFlags::SYN, "SYN"), (TcpFlags::RST, "RST"), (TcpFlags::ACK, "ACK")];
                for (flag, name) in names {
                    assert_eq!(tcp.flags.has(flag), want["flags"].as_str().unwrap().contains(name));
                }
                tcp.write(ip.src, ip.dst, &mut again);
                let mut sealed = packet.clone();
                sealed[56] ^= 0x5a;
                Tcp::seal(&mut sealed);
                assert_eq!(sealed, packet);
            }
            protocol::UDP => {
                let udp = Udp::parse(ip.payload).unwrap();
                let end = |ip, port| SocketAddrV6::new(ip, port, 0, 0);
                Udp::write(end(ip.src, udp.src_port), end(ip.dst, udp.dst_port), udp.payload, &mut again);
            }
            protocol::ICMPV6 => Echo::parse(ip.payload).unwrap().write(ip.src, ip.dst, ip.traffic_class, &mut again),
            protocol::TSMP => Tsmp::parse(ip.payload).unwrap().write(ip.src, ip.dst, ip.flow_label, &mut again),
            other => panic!("protocol {other} in the captures"),
        }
        assert_eq!(hex::encode(again), hex::encode(&packet));
        assert!(ip.next_header == protocol::TSMP || checksum_is_right(&ip));
    }
}

#[test]
fn tsmp_payloads_are_told_apart_as_go_does() {
    let vectors = vectors();
    for row in vectors["captures"]["tsmp_parse"].as_array().unwrap() {
        let read = Tsmp::parse(&bytes(&row["payload"]));
        let is = |key: &str| row[key].as_bool().unwrap();
        assert_eq!(matches!(read, Ok(Tsmp::Ping { .. })), is("is_ping"), "{row}");
        assert_eq!(matches!(read, Ok(Tsmp::Pong { .. })), is("is_pong"), "{row}");
        match read {
            Ok(Tsmp::Ping { data }) => assert_eq!(hex::encode(data), row["data"].as_str().unwrap()),
            Ok(Tsmp::Pong { data, port }) => {
                assert_eq!(hex::encode(data), row["data"].as_str().unwrap());
                assert_eq!(Some(u64::from(port)), row["port"].as_u64());
            }
            Err(_) => {}
        }
    }
    for row in vectors["captures"]["tsmp_library"].as_array().unwrap() {
        let packet = bytes(&row["packet"]);
        let ip = Ipv6::parse(&packet).unwrap();
        let known = row["name"].as_str().unwrap().starts_with('p');
        assert_eq!(Tsmp::parse(ip.payload).is_ok(), known, "{row}");
    }
}

#[test]
fn the_options_of_go_and_linux_syns_are_read() {
    let options = TcpOptions::parse(&hex::decode("020404c40402080ab7b759ff0000000001030307").unwrap());
    let want = TcpOptions {
        mss: Some(1220),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some((0xb7b7_59ff, 0)),
        sack: [None; 4],
    };
    assert_eq!(options, want);
    let blocks = TcpOptions::parse(&hex::decode("0101051200000001000000020000000300000004").unwrap());
    assert_eq!(blocks.sack, [Some((1, 2)), Some((3, 4)), None, None]);
    assert_eq!(TcpOptions::parse(&[2, 0]), TcpOptions::default());
    assert_eq!(TcpOptions::parse(&[3, 3, 200]).window_scale, Some(14));
}

#[test]
fn a_reset_answers_a_syn_as_gos_does_and_never_answers_a_reset() {
    let refused = &vectors()["captures"]["tcp_refused"]["packets"];
    let (syn, rst) = (bytes(&refused[0]["packet"]), bytes(&refused[1]["packet"]));
    let ip = Ipv6::parse(&syn).unwrap();
    let mut out = Vec::new();
    Tcp::parse(ip.payload).unwrap().write_reset(&ip, &mut out);
    assert_eq!(hex::encode(&out), hex::encode(&rst));
    let ip = Ipv6::parse(&rst).unwrap();
    let mut none = Vec::new();
    Tcp::parse(ip.payload).unwrap().write_reset(&ip, &mut none);
    assert!(none.is_empty());
}

#[test]
fn truncated_and_foreign_packets_are_refused() {
    let mut all = Vec::new();
    captures(&vectors()["captures"]["tcp_connection"], &mut all);
    let packet = &all[0].0;
    for len in 0..packet.len() {
        assert!(matches!(Ipv6::parse(&packet[..len]), Err(ParseError::Truncated { .. })), "{len}");
    }
    let mut v4 = packet.clone();
    v4[0] = 0x45;
    assert_eq!(Ipv6::parse(&v4), Err(ParseError::Version(4)));
    let mut offset = packet[HEADER_LEN..].to_vec();
    offset[12] = 0x40;
    assert_eq!(Tcp::parse(&offset), Err(ParseError::Length));
    offset[12] = 0xf0;
    assert_eq!(Tcp::parse(&offset), Err(ParseError::Length));
    assert_eq!(Udp::parse(&[0, 1, 0, 2, 0, 7, 0, 0]), Err(ParseError::Length));
    assert_eq!(Udp::parse(&[0, 1, 0, 2, 0, 9, 0, 0]), Err(ParseError::Length));
    assert_eq!(Echo::parse(&[133, 0, 0, 0, 0, 0, 0, 0]), Err(ParseError::Kind(133)));
    assert!(Echo::parse(&[128, 0, 0, 0, 0, 0, 0]).is_err());
}

#[test]
fn padding_behind_the_payload_is_cut() {
    let mut packet = Vec::new();
    let (a, b) = (Ipv6Addr::from_bits(1), Ipv6Addr::from_bits(2));
    Tsmp::Ping { data: *b"12345678" }.write(a, b, 0, &mut packet);
    let len = packet.len() - HEADER_LEN;
    packet.extend_from_slice(&[0; 15]);
    assert_eq!(Ipv6::parse(&packet).unwrap().payload.len(), len);
}

proptest! {
    #[test]
    fn a_segment_written_is_read_back_with_a_right_checksum(
        ports in any::<(u16, u16)>(), numbers in any::<(u32, u32)>(), flags in 0u8..64, window: u16,
        words in 0usize..=10, fill: u8, payload in prop::collection::vec(any::<u8>(), 0..1300), ends in any::<(u128, u128)>(),
    ) {
        let options = vec![fill; words * 4];
        let (src, dst) = (Ipv6Addr::from_bits(ends.0), Ipv6Addr::from_bits(ends.1));
        let tcp = Tcp {
            src_port: ports.0, dst_port: ports.1, seq: numbers.0, ack: numbers.1, flags: TcpFlags(flags), window,
            options: &options, payload: &payload,
        };
        let mut out = Vec::new();
        tcp.write(src, dst, &mut out);
        let ip = Ipv6::parse(&out).unwrap();
        prop_assert_eq!(Tcp::parse(ip.payload).unwrap(), tcp);
        prop_assert!(checksum_is_right(&ip));
        let mut udp = Vec::new();
        Udp::write(SocketAddrV6::new(src, ports.0, 0, 0), SocketAddrV6::new(dst, ports.1, 0, 0), &payload, &mut udp);
        let ip = Ipv6::parse(&udp).unwrap();
        prop_assert!(udp.len() <= MTU && checksum_is_right(&ip));
        prop_assert_eq!(Udp::parse(ip.payload).unwrap().payload, &payload[..payload.len().min(Udp::MAX_PAYLOAD)]);
    }

    #[test]
    fn no_bytes_upset_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Ipv6::parse(&bytes);
        let _ = Tcp::parse(&bytes).map(|t| TcpOptions::parse(t.options));
        let _ = (Udp::parse(&bytes), Echo::parse(&bytes), Tsmp::parse(&bytes), TcpOptions::parse(&bytes));
    }
}
