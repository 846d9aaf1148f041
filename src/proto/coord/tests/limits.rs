//! What a peer can make a session keep or do is bounded.

use super::super::{
    ClientEvent, ClientRole, ClientSession, Death, ServerEvent, ServerRole, ServerSession, yamux::Session as Yamux,
};
use crate::{
    base::Instant,
    wire::coord::{
        agent,
        drpc::{FrameHeader, Kind, MAX_PACKET},
        tailnet::{self, RefreshResumeTokenResponse},
        yamux::{Flags, Header, Kind as Frame},
    },
};
use prost::Message as _;
use std::time::Duration;
use uuid::Uuid;

const START: Instant = Instant::ZERO;

#[test]
fn a_server_that_does_not_take_requests_fills_the_clients_window_and_loses_none() {
    let mut client = ClientSession::new(ClientRole::Agent, START);
    let mut server = ServerSession::new(ServerRole::Agent, START);
    client.open_coordination();
    for n in 0..20_000_u128 {
        client.ready(vec![Uuid::from_u128(n)]);
    }
    let mut out = Vec::new();
    client.poll_output(&mut out);
    server.handle_bytes(START, &out);
    out.clear();
    client.poll_output(&mut out);
    assert!(out.is_empty(), "20,000 requests are more than a window");
    let mut next = 0;
    loop {
        let mut moved = false;
        while let Some(event) = server.poll_event() {
            moved = true;
            if let ServerEvent::Coordinate { request, .. } = event {
                assert_eq!(request.ready_for_handshake[0].id, Uuid::from_u128(next).as_bytes());
                next += 1;
            }
        }
        let mut up = Vec::new();
        client.poll_output(&mut up);
        let mut down = Vec::new();
        server.poll_output(&mut down);
        server.handle_bytes(START, &up);
        client.handle_bytes(START, &down);
        if !moved && up.is_empty() && down.is_empty() {
            break;
        }
    }
    assert_eq!(next, 20_000);
}

#[test]
fn one_stream_with_many_requests_does_not_hold_up_the_others() {
    let mut client = ClientSession::new(ClientRole::Agent, START);
    let mut server = ServerSession::new(ServerRole::Agent, START);
    client.open_coordination();
    for n in 0..5_000_u128 {
        client.ready(vec![Uuid::from_u128(n)]);
    }
    client.call(START, agent::GET_MANIFEST, &[]);
    let mut out = Vec::new();
    client.poll_output(&mut out);
    server.handle_bytes(START, &out);
    let at = std::iter::from_fn(|| server.poll_event()).position(|e| matches!(e, ServerEvent::Call { .. }));
    assert!(at.is_some_and(|at| at < 100), "{at:?}");
}

#[test]
fn hoarded_packets_end_the_session() {
    let mut server = ServerSession::new(ServerRole::Client, START);
    let mut hoarder = Yamux::client();
    'streams: for _ in 0..6 {
        let id = hoarder.open().unwrap();
        let mut bytes = vec![0x03, 1, 1, 2, b'/', b'x'];
        FrameHeader { kind: Kind::Message, done: false, control: false, stream: 1, message: 2, len: MAX_PACKET }
            .write(&mut bytes);
        bytes.resize(bytes.len() + MAX_PACKET, 0);
        hoarder.write(id, &bytes).unwrap();
        loop {
            let mut up = Vec::new();
            hoarder.poll_output(&mut up);
            server.handle_bytes(START, &up);
            let mut down = Vec::new();
            server.poll_output(&mut down);
            if server.poll_timeout().is_none() {
                break 'streams;
            }
            if up.is_empty() && down.is_empty() {
                break;
            }
            hoarder.handle_bytes(&down).unwrap();
        }
    }
    assert_eq!(std::iter::from_fn(|| server.poll_event()).last(), Some(ServerEvent::Dead(Death::Hoard)));
    let mut overrun = Vec::new();
    Header { kind: Frame::WindowUpdate, flags: Flags::SYN, stream: 1, value: 0 }.write(&mut overrun);
    Header { kind: Frame::Data, flags: Flags::NONE, stream: 1, value: 300_000 }.write(&mut overrun);
    let mut server = ServerSession::new(ServerRole::Client, START);
    server.handle_bytes(START, &overrun);
    assert!(matches!(server.poll_event(), Some(ServerEvent::Dead(Death::Protocol(_)))));
}

#[test]
fn too_many_coordinate_calls_are_refused_one_by_one() {
    let mut server = ServerSession::new(ServerRole::Client, START);
    let mut yamux = Yamux::client();
    let path = tailnet::COORDINATE;
    let invoke = [&[0x03, 1, 1, path.len() as u8], path.as_bytes()].concat();
    let streams: Vec<_> = (0..5)
        .map(|_| {
            let id = yamux.open().unwrap();
            yamux.write(id, &invoke).unwrap();
            id
        })
        .collect();
    let mut up = Vec::new();
    yamux.poll_output(&mut up);
    server.handle_bytes(START, &up);
    assert_eq!(std::iter::from_fn(|| server.poll_event()).count(), 4);
    let mut down = Vec::new();
    server.poll_output(&mut down);
    yamux.handle_bytes(&down).unwrap();
    assert_eq!(yamux.readable(streams[0]), b"");
    assert_eq!(yamux.readable(streams[4]).first(), Some(&0x07), "an error packet");
}

#[test]
fn a_server_cannot_make_a_client_ask_for_tokens_without_pause() {
    let mut client = ClientSession::new(ClientRole::Client, START);
    let mut server = ServerSession::new(ServerRole::Client, START);
    let mut asked = 0;
    for _ in 0..20 {
        let mut up = Vec::new();
        client.poll_output(&mut up);
        server.handle_bytes(START, &up);
        while let Some(event) = server.poll_event() {
            let ServerEvent::Call { call, .. } = event else { continue };
            asked += 1;
            let refresh_in = Some(prost_types::Duration { seconds: 0, nanos: 1 });
            let token = RefreshResumeTokenResponse { refresh_in, ..Default::default() };
            server.reply(call, Ok(&token.encode_to_vec()));
        }
        let mut down = Vec::new();
        server.poll_output(&mut down);
        client.handle_bytes(START, &down);
        client.handle_timeout(START + Duration::from_millis(500));
    }
    assert_eq!(asked, 1);
    assert!(client.poll_timeout().is_some_and(|d| d.why == "resume token" && d.at - START <= Duration::from_secs(1)));
    while let Some(event) = client.poll_event() {
        assert!(!matches!(event, ClientEvent::Closed(_)));
    }
}

#[test]
fn a_token_that_could_not_be_asked_for_is_asked_for_later() {
    let mut client = ClientSession::new(ClientRole::Client, START);
    let mut server = ServerSession::new(ServerRole::Client, START);
    let (mut now, mut asked) = (START, Vec::new());
    while now < START + Duration::from_secs(3_600) {
        loop {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            client.poll_output(&mut up);
            server.handle_bytes(now, &up);
            while let Some(event) = server.poll_event() {
                let ServerEvent::Call { call, path, .. } = event else { continue };
                if path == tailnet::REFRESH_RESUME_TOKEN {
                    asked.push(now);
                    let refresh_in = Some(prost_types::Duration { seconds: 5, nanos: 0 });
                    server.reply(call, Ok(&RefreshResumeTokenResponse { refresh_in, ..Default::default() }.encode_to_vec()));
                }
            }
            server.poll_output(&mut down);
            client.handle_bytes(now, &down);
            if up.is_empty() && down.is_empty() {
                break;
            }
        }
        if asked.len() == 2 {
            break;
        }
        // No stream is free when the time comes.
        while now == START && std::iter::from_fn(|| client.poll_event()).all(|e| !matches!(e, ClientEvent::Reply { .. })) {
            client.call(now, "/x", &[]);
        }
        while client.poll_event().is_some() {}
        now = client.poll_timeout().unwrap().at.max(now);
        client.handle_timeout(now);
        server.handle_timeout(now);
    }
    assert_eq!(asked.len(), 2);
    assert!(asked[1] - asked[0] > Duration::from_secs(60), "not at the first time");
}

#[test]
fn a_slow_reader_of_relay_maps_gets_the_newest_only() {
    let mut client = ClientSession::new(ClientRole::Client, START);
    let mut server = ServerSession::new(ServerRole::Client, START);
    let map = |n: i64| {
        let region = tailnet::Region { region_name: "x".repeat(300_000), region_id: n, ..Default::default() };
        tailnet::DerpMap { regions: [(1, region)].into(), ..Default::default() }
    };
    let (mut up, mut held) = (Vec::new(), Vec::new());
    client.poll_output(&mut up);
    server.handle_bytes(START, &up);
    for n in 1..10 {
        server.send_relay_map(&map(n));
        server.poll_output(&mut held);
    }
    let mut seen = Vec::new();
    while !held.is_empty() {
        client.handle_bytes(START, &held);
        while let Some(event) = client.poll_event() {
            if let ClientEvent::RelayMap(map) = event {
                seen.push(map.regions[&1].region_id);
            }
        }
        up.clear();
        client.poll_output(&mut up);
        server.handle_bytes(START, &up);
        held.clear();
        server.poll_output(&mut held);
    }
    assert_eq!(seen, [1, 9]);
}

#[test]
fn a_second_request_on_a_unary_call_is_passed_over() {
    let mut server = ServerSession::new(ServerRole::Client, START);
    let mut yamux = Yamux::client();
    let id = yamux.open().unwrap();
    yamux.write(id, &[0x03, 1, 1, 2, b'/', b'x', 0x05, 1, 2, 0, 0x05, 1, 3, 0]).unwrap();
    let mut up = Vec::new();
    yamux.poll_output(&mut up);
    server.handle_bytes(START, &up);
    let asked = std::iter::from_fn(|| server.poll_event()).filter(|e| matches!(e, ServerEvent::Call { .. }));
    assert_eq!(asked.count(), 1);
}
