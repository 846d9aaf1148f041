use super::*;
use crate::{
    base::{Instant, NodeKey, NodeSecret, Rng},
    proto::relay::client::{Received, RelayClient},
    wire::{
        derp::{ClientInfo, Frame, HEADER, MAX_CLIENT_INFO, MAX_PACKET, parse},
        disco,
    },
};
use serde_json::Value;
use std::collections::BTreeMap;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/wire/derp.json")).unwrap()
}

fn secret(name: &str) -> NodeSecret {
    let v = vectors();
    NodeSecret::from_random(hex::decode(v["keys"][name]["private"].as_str().unwrap()).unwrap().try_into().unwrap())
}

fn secs(s: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(s)
}

/// A packet that a relay takes for disco.
fn disco_packet() -> Vec<u8> {
    let mut packet = disco::MAGIC.to_vec();
    packet.resize(62, 0);
    packet
}

/// A relay with clients on perfect streams.
struct World {
    registry: Registry,
    conns: BTreeMap<&'static str, RelayConn>,
}

impl World {
    fn new() -> Self {
        Self { registry: Registry::new(secret("S"), Rng::from_u64(1)), conns: BTreeMap::new() }
    }

    /// Opens a connection with the key of `party`.
    fn join(&mut self, name: &'static str, party: &str) {
        let mut conn = self.registry.open(secs(0));
        let mut login = Vec::new();
        ClientInfo::of_node().write(&secret(party), &self.registry.public_key(), [1; 24], &mut login);
        conn.handle_bytes(secs(0), &login, &mut self.registry).unwrap();
        self.conns.insert(name, conn);
        let got = self.output(name);
        assert!(got.starts_with(&["greeting".to_owned(), "server info".to_owned()]), "{got:?}");
    }

    fn send(&mut self, at: u64, name: &str, frame: &Frame<'_>) -> Result<(), Close> {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        self.conns.get_mut(name).unwrap().handle_bytes(secs(at), &bytes, &mut self.registry)
    }

    fn packet(&mut self, at: u64, from: &str, to: &str, packet: &[u8]) {
        self.send(at, from, &Frame::SendPacket { to: secret(to).public(), packet }).unwrap();
    }

    fn leave(&mut self, name: &str) {
        let conn = self.conns.remove(name).unwrap();
        self.registry.close(conn);
    }

    /// What a connection is told, in words.
    fn output(&mut self, name: &str) -> Vec<String> {
        let id = self.conns[name].id();
        let mut got = Vec::new();
        loop {
            let mut out = Vec::new();
            let more = self.registry.poll_output(id, &mut out, 64 << 10);
            let mut rest = out.as_slice();
            while !rest.is_empty() {
                let (frame, used) = parse(rest).unwrap().unwrap();
                rest = &rest[used..];
                got.push(match frame {
                    Frame::ServerKey { .. } => "greeting".to_owned(),
                    Frame::ServerInfo { .. } => "server info".to_owned(),
                    Frame::RecvPacket { from, packet } => format!("{from}: {}", hex::encode(packet)),
                    Frame::PeerGone { peer, reason } => format!("{peer} gone: {reason:?}"),
                    Frame::Pong(data) => format!("pong {}", data[0]),
                    Frame::KeepAlive => "keepalive".to_owned(),
                    other => panic!("{other:?}"),
                });
            }
            if !more {
                return got;
            }
        }
    }
}

fn told(peer: &str, why: &str) -> String {
    format!("{} gone: {why}", secret(peer).public())
}

fn got(from: &str, packet: &[u8]) -> String {
    format!("{}: {}", secret(from).public(), hex::encode(packet))
}

#[test]
fn odd_logins_are_taken_and_refused_as_by_go() {
    for row in vectors()["server_login"].as_array().unwrap() {
        let mut registry = Registry::new(secret("S"), Rng::from_u64(1));
        let mut conn = registry.open(secs(0));
        // The two longest are cut short in the file: here they are made anew, with spaces behind the object.
        let bytes = match hex::decode(row["frame"].as_str().unwrap()) {
            Ok(bytes) => bytes,
            Err(_) => long_login(usize::try_from(row["len"].as_u64().unwrap()).unwrap() - HEADER),
        };
        let result = conn.handle_bytes(secs(0), &bytes, &mut registry);
        assert_eq!(Some(result.is_ok()), row["accepted"].as_bool(), "{}: {result:?}", row["name"]);
        assert_eq!(conn.key().is_some(), result.is_ok());
        assert_eq!(registry.clients(), usize::from(result.is_ok()));
    }
}

#[test]
fn a_login_is_opened_and_answered_before_the_registry_hears_of_it() {
    let mut registry = Registry::new(secret("S"), Rng::from_u64(1));
    let mut conn = registry.open(secs(0));
    let mut bytes = Vec::new();
    ClientInfo::of_node().write(&secret("A"), &registry.public_key(), [1; 24], &mut bytes);
    let login = bytes.len();
    Frame::Ping([7; 8]).write(&mut bytes);
    // In two pieces; what follows the login is left alone.
    let mut input = &bytes[..login / 2];
    conn.handle_login(secs(0), &mut input).unwrap();
    assert_eq!((input.len(), conn.key()), (0, None));
    let mut input = &bytes[login / 2..];
    conn.handle_login(secs(0), &mut input).unwrap();
    assert_eq!((input.len(), conn.key()), (HEADER + 8, Some(secret("A").public())));
    assert_eq!((registry.clients(), registry.counters().logins), (0, 0));
    conn.handle_bytes(secs(0), input, &mut registry).unwrap();
    assert_eq!((registry.clients(), registry.counters().logins), (1, 1));
    let mut world = World { registry, conns: BTreeMap::from([("A", conn)]) };
    assert_eq!(world.output("A"), ["greeting", "server info", "pong 7"]);
}

#[test]
fn a_connection_that_ends_between_login_and_registry_leaves_no_trace() {
    let mut world = World::new();
    world.join("old", "A");
    let mut conn = world.registry.open(secs(0));
    let mut login = Vec::new();
    ClientInfo::of_node().write(&secret("A"), &world.registry.public_key(), [1; 24], &mut login);
    conn.handle_login(secs(0), &mut login.as_slice()).unwrap();
    world.registry.close(conn);
    assert_eq!(world.registry.clients(), 1);
    world.join("C", "C");
    world.packet(1, "C", "A", b"x");
    assert_eq!(world.output("old"), [got("C", b"x")]);
}

fn long_login(len: usize) -> Vec<u8> {
    use crypto_box::{PublicKey, SalsaBox, SecretKey, aead::Aead as _};
    let (client, server) = (secret("A"), secret("S").public());
    let mut text = b"{}".to_vec();
    text.resize(len - 32 - 24 - 16, b' ');
    let key = SalsaBox::new(&PublicKey::from(*server.as_bytes()), &SecretKey::from(*client.expose()));
    let sealed = key.encrypt(&[3; 24].into(), text.as_slice()).unwrap();
    let mut out = Vec::new();
    Frame::ClientInfo { key: client.public(), nonce: [3; 24], sealed: &sealed }.write(&mut out);
    assert!(len > MAX_CLIENT_INFO || out.len() == MAX_CLIENT_INFO + HEADER);
    out
}

#[test]
fn odd_frames_close_or_are_answered_as_by_go() {
    for row in vectors()["server_takes"].as_array().unwrap() {
        let mut world = World::new();
        world.join("A", "A");
        let len = usize::try_from(row["len"].as_u64().unwrap()).unwrap();
        let text = row["frame"].as_str().unwrap();
        let mut bytes = hex::decode(text.trim_end_matches("...")).unwrap();
        bytes.resize(len, 0);
        let result = world.conns.get_mut("A").unwrap().handle_bytes(secs(1), &bytes, &mut world.registry);
        assert_eq!(Some(result.is_err()), row["closes_connection"].as_bool(), "{}: {result:?}", row["name"]);
        let expect: Vec<_> = row["client_gets"].as_array().map_or_else(Vec::new, |messages| {
            let expect = |m: &Value| match m["msg"].as_str().unwrap() {
                "Pong" => format!("pong {}", hex::decode(m["data"].as_str().unwrap()).unwrap()[0]),
                _ => got("A", &vec![0; usize::try_from(m["packet_len"].as_u64().unwrap_or(0)).unwrap()]),
            };
            messages.iter().map(expect).collect()
        });
        assert_eq!(world.output("A"), expect, "{}", row["name"]);
    }
}

#[test]
fn mesh_frames_are_refused_as_insufficient_permissions() {
    let mut world = World::new();
    world.join("A", "A");
    assert_eq!(world.send(1, "A", &Frame::WatchConns), Err(Close::Permissions(0x10)));
}

#[test]
fn the_session_of_go_without_its_mesh_peer_runs_the_same() {
    let mut world = World::new();
    world.join("A", "A");
    world.join("C", "C");
    let v = vectors();
    let steps = v["session"].as_array().unwrap();
    let mut expect: Vec<(&str, String)> = Vec::new();
    for step in steps.iter().filter(|s| s["step"] != "login") {
        let text = step["step"].as_str().unwrap();
        if text.contains("mesh") || text.starts_with('M') || text.contains("keepalive") || text.contains("closed") {
            continue;
        }
        let client = step["client"].as_str().unwrap();
        let bytes = hex::decode(step["frame"].as_str().unwrap()).unwrap();
        if step["dir"] == "client to server" {
            world.conns.get_mut(client).unwrap().handle_bytes(secs(1), &bytes, &mut world.registry).unwrap();
        } else {
            expect.push((if client == "A" { "A" } else { "C" }, step["frame"].as_str().unwrap().to_owned()));
        }
        let mut out = Vec::new();
        for name in ["A", "C"] {
            let id = world.conns[name].id();
            out.clear();
            assert!(!world.registry.poll_output(id, &mut out, 1 << 20));
            if !out.is_empty() {
                expect.push((name, hex::encode(&out)));
            }
        }
    }
    // Each frame of Go's server stands behind the same frame of ours.
    assert!(expect.len() >= 8);
    for pair in expect.chunks(2) {
        assert_eq!(pair[0], pair[1]);
    }
}

#[test]
fn a_sender_of_disco_to_nobody_is_told_thrice_and_then_once_a_second() {
    let mut world = World::new();
    world.join("A", "A");
    for _ in 0..5 {
        world.packet(1, "A", "X", &disco_packet());
    }
    assert_eq!(world.output("A"), vec![told("X", "NotHere"); 3]);
    world.packet(2, "A", "X", &disco_packet());
    world.packet(2, "A", "X", &disco_packet());
    assert_eq!(world.output("A"), [told("X", "NotHere")]);
    world.packet(90, "A", "X", b"not disco");
    assert!(world.output("A").is_empty());
    assert_eq!(world.registry.counters().dropped_unknown, 8);
}

#[test]
fn only_receivers_of_a_peers_packets_hear_of_its_end_and_only_of_the_last_connection() {
    let mut world = World::new();
    for (name, party) in [("A1", "A"), ("A2", "A"), ("C", "C"), ("M", "M")] {
        world.join(name, party);
    }
    world.packet(1, "A1", "C", b"x");
    world.leave("A1");
    assert_eq!(world.output("C"), [got("A", b"x")]);
    world.leave("A2");
    assert_eq!(world.output("C"), [told("A", "Disconnected")]);
    assert!(world.output("M").is_empty());
}

#[test]
fn packets_go_to_whoever_of_the_duplicates_connected_or_spoke_last() {
    let mut world = World::new();
    for (name, party) in [("A1", "A"), ("A2", "A"), ("C", "C")] {
        world.join(name, party);
    }
    world.packet(1, "C", "A", b"to the newest");
    assert_eq!(world.output("A2"), [got("C", b"to the newest")]);
    world.join("A3", "A");
    world.packet(1, "C", "A", b"to one newer still");
    assert_eq!(world.output("A3"), [got("C", b"to one newer still")]);
    world.leave("A3");
    world.send(2, "A1", &Frame::NotePreferred(true)).unwrap();
    world.packet(3, "C", "A", b"to the speaker");
    assert_eq!(world.output("A1"), [got("C", b"to the speaker")]);
    assert!(world.output("A2").is_empty());
    world.leave("A1");
    world.packet(4, "C", "A", b"to the one left");
    assert_eq!(world.output("A2"), [got("C", b"to the one left")]);
    assert!(world.output("C").is_empty());
}

#[test]
fn a_sender_of_disco_is_told_at_once_that_its_receiver_has_left() {
    let mut world = World::new();
    world.join("A", "A");
    world.join("C", "C");
    world.packet(1, "A", "C", &disco_packet());
    world.leave("C");
    world.packet(1, "A", "C", &disco_packet());
    assert_eq!(world.output("A"), [told("C", "NotHere")]);
}

#[test]
fn whoever_takes_the_place_of_a_receiver_is_not_told_of_its_senders() {
    let mut world = World::new();
    world.join("A", "A");
    world.join("C", "C");
    world.packet(1, "A", "C", b"x");
    world.leave("C");
    world.join("M", "M");
    world.leave("A");
    assert!(world.output("M").is_empty());
}

#[test]
fn a_slow_client_loses_its_oldest_packets_but_no_disco_to_a_flood_of_others() {
    let mut world = World::new();
    world.join("A", "A");
    world.join("C", "C");
    world.packet(1, "A", "C", &disco_packet());
    for n in 0..1_000u32 {
        world.packet(1, "A", "C", &n.to_be_bytes());
    }
    let out = world.output("C");
    assert_eq!(out.len(), 513);
    assert!(out.contains(&got("A", &disco_packet())));
    assert_eq!(out.last(), Some(&got("A", &999u32.to_be_bytes())));
    assert_eq!(world.registry.counters().dropped_other, 488);
    assert_eq!(world.registry.counters().dropped_disco, 0);
}

#[test]
fn a_connection_is_reported_once_until_its_output_is_drained() {
    let mut world = World::new();
    world.join("A", "A");
    world.join("C", "C");
    while world.registry.poll_ready().is_some() {}
    world.packet(1, "A", "C", b"1");
    world.packet(1, "A", "C", b"2");
    let c = world.conns["C"].id();
    assert_eq!(world.registry.poll_ready(), Some(c));
    assert_eq!(world.registry.poll_ready(), None);
    world.packet(1, "A", "C", b"3");
    assert_eq!(world.registry.poll_ready(), None);
    assert_eq!(world.output("C").len(), 3);
    world.packet(1, "A", "C", b"4");
    assert_eq!(world.registry.poll_ready(), Some(c));
    world.leave("C");
    world.join("C", "C");
    world.packet(1, "A", "C", b"5");
    assert_eq!(world.output("C"), [got("A", b"5")]);
}

#[test]
fn output_comes_in_whole_frames_of_about_the_asked_size() {
    let mut world = World::new();
    world.join("A", "A");
    world.join("C", "C");
    for _ in 0..100 {
        world.packet(1, "A", "C", &[7; 1_349]);
    }
    let id = world.conns["C"].id();
    let (mut rounds, mut more) = (0, true);
    while more {
        let mut out = Vec::new();
        more = world.registry.poll_output(id, &mut out, 16 << 10);
        assert!(out.len() <= 16 << 10 && out.len() % (HEADER + 32 + 1_349) == 0);
        rounds += 1;
    }
    assert_eq!(rounds, 10);
}

#[test]
fn keepalives_come_every_minute_with_a_jitter_and_a_missing_login_ends_after_ten_seconds() {
    let mut world = World::new();
    world.join("A", "A");
    let conn = world.conns.get_mut("A").unwrap();
    let first = conn.poll_timeout().at;
    assert!((secs(60)..secs(65)).contains(&first), "{first:?}");
    conn.handle_timeout(secs(59), &mut world.registry).unwrap();
    assert!(world.output("A").is_empty());
    let conn = world.conns.get_mut("A").unwrap();
    conn.handle_timeout(first, &mut world.registry).unwrap();
    assert_eq!(conn.poll_timeout().at - first, first - secs(0));
    assert_eq!(world.output("A"), ["keepalive"]);

    let mut silent = world.registry.open(secs(0));
    assert_eq!(silent.poll_timeout().at, secs(10));
    assert_eq!(silent.handle_timeout(secs(9), &mut world.registry), Ok(()));
    assert_eq!(silent.handle_timeout(secs(10), &mut world.registry), Err(Close::LoginTimeout));
}

#[test]
fn at_most_one_pong_waits() {
    let mut world = World::new();
    world.join("A", "A");
    for n in 1..4 {
        world.send(1, "A", &Frame::Ping([n; 8])).unwrap();
    }
    assert_eq!(world.output("A"), ["pong 1"]);
}

#[test]
fn our_client_and_our_server_speak_with_each_other() {
    let mut registry = Registry::new(secret("S"), Rng::from_u64(1));
    let mut ends: Vec<_> =
        ["A", "C"].map(|name| (RelayClient::new(secs(0), secret(name), Rng::from_u64(2)), registry.open(secs(0)))).into();
    let mut seen: Vec<(usize, NodeKey, Vec<u8>)> = Vec::new();
    for round in 0..4u8 {
        let keys = [secret("A").public(), secret("C").public()];
        for (at, (client, conn)) in ends.iter_mut().enumerate() {
            let mut down = Vec::new();
            assert!(!registry.poll_output(conn.id(), &mut down, 1 << 20));
            client
                .handle_bytes(secs(1), &down, &mut |r| match r {
                    Received::Packet { from, packet } => seen.push((at, from, packet.to_vec())),
                    other => panic!("{other:?}"),
                })
                .unwrap();
            let mut up = Vec::new();
            client.poll_output(&mut up);
            if client.is_ready() {
                assert!(client.write_packet(secs(1), &keys[1 - at], &[round; MAX_PACKET], &mut up));
            }
            conn.handle_bytes(secs(1), &up, &mut registry).unwrap();
        }
    }
    // Of eight, A's first finds C not yet logged in, and C's last is not fetched any more.
    assert_eq!(seen.len(), 6);
    assert!(seen.iter().any(|(at, from, packet)| *at == 1 && *from == secret("A").public() && packet == &[1; MAX_PACKET]));
}

#[test]
fn logins_recorded_behind_http_and_websocket_are_taken_and_the_answers_understood() {
    let v: Value = serde_json::from_str(include_str!("../../../../tests/vectors/wire/derp-http.json")).unwrap();
    let key = |name: &str| NodeSecret::from_random(hex::decode(v["keys"][name].as_str().unwrap()).unwrap().try_into().unwrap());
    let stream = |frames: &Value| -> Vec<u8> {
        let text = |f: &Value| f.as_str().or_else(|| f["payload"].as_str()).map(|t| hex::decode(t).unwrap());
        frames.as_array().into_iter().flatten().filter_map(text).flatten().collect()
    };
    let mut seen = 0;
    for exchange in v["exchanges"].as_array().unwrap() {
        let up = [stream(&exchange["client_frames"]), stream(&exchange["client_messages"])].concat();
        let down = [stream(&exchange["server_frames"]), stream(&exchange["server_messages"])].concat();
        if !down.is_empty() {
            let mut client = RelayClient::new(secs(0), key("client_private"), Rng::from_u64(1));
            client.handle_bytes(secs(0), &down, &mut |r| panic!("{r:?}")).unwrap();
            assert!(client.is_ready(), "{}", exchange["name"]);
        }
        if !up.is_empty() {
            let mut registry = Registry::new(key("server_private"), Rng::from_u64(1));
            let mut conn = registry.open(secs(0));
            conn.handle_bytes(secs(0), &up, &mut registry).unwrap();
            assert_eq!(conn.key(), Some(key("client_private").public()), "{}", exchange["name"]);
            seen += 1;
        }
    }
    assert_eq!(seen, 5);
}

#[test]
fn the_greeting_of_a_real_server_makes_a_client_ready() {
    let v: Value = serde_json::from_str(include_str!("../../../../tests/vectors/http/derp_upgrade.json")).unwrap();
    let greeting = hex::decode(v["first_bytes_hex"].as_str().unwrap()).unwrap();
    let (frame, _) = parse(&greeting).unwrap().unwrap();
    let key = NodeKey::from_hex(v["headers"]["derp-public-key"].as_str().unwrap()).unwrap();
    assert_eq!(frame, Frame::ServerKey { key });
}
