//! Recorded frames of the Go implementation, and the rules that keep a session bounded.

use super::*;
use serde_json::Value;

const NOW: Instant = Instant::ZERO;

fn output(session: &mut Session) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let before = out.len();
        session.poll_output(&mut out);
        if out.len() == before {
            return out;
        }
    }
}

fn pair() -> (Session, Session) {
    (Session::client(), Session::server())
}

fn carry(from: &mut Session, to: &mut Session) -> Vec<u8> {
    let bytes = output(from);
    to.handle_bytes(&bytes).unwrap();
    bytes
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/wire/yamux.json")).unwrap()
}

#[test]
fn odd_frames_are_taken_as_by_a_go_server() {
    for row in vectors()["server_takes"].as_array().unwrap() {
        let name = row["name"].as_str().unwrap();
        let sent = hex::decode(row["sent"].as_str().unwrap()).unwrap();
        let mut session = Session::server();
        let result = session.handle_bytes(&sent);
        assert_eq!(result.is_err(), row["session_closed"].as_bool().unwrap(), "{name}: {result:?}");
        if result.is_ok() {
            let mut expected = hex::decode(row["answer"].as_str().unwrap()).unwrap();
            if ["RST", "SYN and FIN at once"].contains(&name) {
                // Go acknowledges on its own accept, which came too late; we do at once.
                expected = hex::decode("000100020000000100000000").unwrap();
            }
            assert_eq!(hex::encode(output(&mut session)), hex::encode(expected), "{name}");
        }
    }
}

#[test]
fn a_session_gives_the_frames_that_go_gave() {
    let vectors = vectors();
    let steps = vectors["steps"].as_array().unwrap();
    let expected = |step: usize, dir: &str| -> String {
        let writes = steps[step]["writes"].as_array().unwrap().iter();
        // Payloads are shortened in the file; they are checked by their length below.
        let headers = writes.filter(|w| w["dir"].as_str() == Some(dir) && w["len"].as_u64() == Some(12));
        headers.map(|w| w["write"].as_str().unwrap()).collect()
    };
    let (mut client, mut server) = pair();
    let one = client.open().unwrap();
    assert_eq!(hex::encode(carry(&mut client, &mut server)), expected(0, "client to server"));
    assert_eq!(hex::encode(carry(&mut server, &mut client)), expected(0, "server to client"));
    assert_eq!(server.accept(), Some(one));

    client.write(one, b"hello").unwrap();
    assert_eq!(hex::encode(&carry(&mut client, &mut server)[..HEADER]), expected(1, "client to server"));
    assert_eq!(server.readable(one), b"hello");
    server.consume(one, 5);
    assert_eq!(output(&mut server), b"", "no window update below half a window");

    client.write(one, &[7; 300_000]).unwrap();
    carry(&mut client, &mut server);
    assert_eq!(server.readable(one).len(), 262_139);
    server.consume(one, 131_072);
    assert_eq!(hex::encode(carry(&mut server, &mut client)), expected(4, "server to client"));
    carry(&mut client, &mut server);
    assert_eq!(server.readable(one).len(), 300_000 - 131_072);
    server.consume(one, 300_000);
    assert_eq!(hex::encode(carry(&mut server, &mut client)), expected(5, "server to client"));

    client.ping();
    assert_eq!(hex::encode(carry(&mut client, &mut server)), expected(6, "client to server"));
    assert_eq!(hex::encode(carry(&mut server, &mut client)), expected(6, "server to client"));
    assert_eq!(client.poll_pong(), Some(0));

    let three = client.open().unwrap();
    client.close(NOW, three);
    assert_eq!(hex::encode(carry(&mut client, &mut server)), expected(8, "client to server"));
    carry(&mut server, &mut client);
    server.close(NOW, three);
    assert_eq!(hex::encode(carry(&mut server, &mut client)), expected(9, "server to client"));
    assert_eq!((client.streams.len(), server.streams.len()), (1, 1));
    client.handle_bytes(&hex::decode("000300000000000000000000").unwrap()).unwrap();
    assert_eq!(client.open(), Err(Refused::GoneAway));
}

#[test]
fn bytes_arrive_in_order_however_they_are_cut() {
    let (mut client, mut server) = pair();
    let streams = [client.open().unwrap(), client.open().unwrap()];
    let data: Vec<u8> = (0..600_000_u32).map(|i| (i % 251) as u8).collect();
    for id in streams {
        client.write(id, &data).unwrap();
    }
    let mut got = [Vec::new(), Vec::new()];
    let mut rng = crate::base::Rng::from_u64(3);
    loop {
        let bytes = output(&mut client);
        if bytes.is_empty() {
            break;
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + rng.below(9_000) as usize));
            server.handle_bytes(now).unwrap();
            rest = later;
            for (id, got) in streams.iter().zip(&mut got) {
                got.extend_from_slice(server.readable(*id));
                server.consume(*id, usize::MAX);
            }
        }
        carry(&mut server, &mut client);
    }
    assert!(got.iter().all(|g| *g == data));
}

#[test]
fn a_large_write_lets_other_streams_and_pings_pass() {
    let (mut client, mut server) = pair();
    let (big, small) = (client.open().unwrap(), client.open().unwrap());
    client.write(big, &[1; 250_000]).unwrap();
    client.write(small, b"x").unwrap();
    let mut out = Vec::new();
    client.poll_output(&mut out);
    server.handle_bytes(&out[..2 * HEADER + HEADER + MAX_DATA_FRAME + HEADER + 1]).unwrap();
    assert_eq!(server.readable(small), b"x");
}

#[test]
fn closing_twice_sends_one_fin() {
    let (mut client, mut server) = pair();
    let id = client.open().unwrap();
    client.close(NOW, id);
    client.close(NOW, id);
    carry(&mut client, &mut server);
    client.close(NOW, id);
    assert_eq!(output(&mut client), b"");
    assert_eq!(server.read_state(id), ReadState::Finished);
}

#[test]
fn queued_data_goes_out_before_the_fin() {
    let (mut client, mut server) = pair();
    let id = client.open().unwrap();
    client.write(id, &[5; 300_000]).unwrap();
    client.close(NOW, id);
    carry(&mut client, &mut server);
    assert_eq!(server.read_state(id), ReadState::Open, "the window is used up, the FIN waits");
    server.consume(id, 262_144);
    carry(&mut server, &mut client);
    carry(&mut client, &mut server);
    assert_eq!(server.readable(id).len(), 300_000 - 262_144);
    assert_eq!(server.read_state(id), ReadState::Finished);
}

#[test]
fn a_closed_stream_without_the_peers_fin_is_reset_after_five_minutes() {
    let (mut client, mut server) = pair();
    let id = client.open().unwrap();
    client.close(NOW, id);
    carry(&mut client, &mut server);
    let due = client.poll_timeout().unwrap().at;
    assert_eq!(due - NOW, Duration::from_secs(300));
    client.handle_timeout(due);
    carry(&mut client, &mut server);
    assert_eq!(server.read_state(id), ReadState::Reset);
    assert_eq!((client.streams.len(), client.poll_timeout()), (0, None));
}

#[test]
fn a_peer_that_asks_and_never_reads_ends_the_session() {
    let ping = hex::decode("00020001000000000000002a").unwrap();
    let mut server = Session::server();
    let result = server.handle_bytes(&ping.repeat(6_000));
    assert_eq!(result, Err(Fault::Flood));
    let mut reading = Session::server();
    for _ in 0..6_000 {
        reading.handle_bytes(&ping).unwrap();
        output(&mut reading);
    }
}

#[test]
fn streams_beyond_the_limit_are_reset_and_the_others_live_on() {
    let mut server = Session::server();
    let mut bytes = Vec::new();
    for n in 0..=MAX_STREAMS as u32 {
        Header { kind: Kind::WindowUpdate, flags: Flags::SYN, stream: 2 * n + 1, value: 0 }.write(&mut bytes);
    }
    server.handle_bytes(&bytes).unwrap();
    assert_eq!(server.streams.len(), MAX_STREAMS);
    let answers = output(&mut server);
    let last = Header::parse(answers.last_chunk().unwrap()).unwrap();
    assert_eq!((last.stream, last.flags), (2 * MAX_STREAMS as u32 + 1, Flags::RST));
    let refused = server.write(StreamId(1), &vec![0; MAX_QUEUED + 1]);
    assert_eq!(refused, Err(Refused::Full));
}

#[test]
fn a_number_that_the_peer_took_from_us_is_passed_over() {
    let mut server = Session::server();
    server.handle_bytes(&hex::decode("000100010000000200000000").unwrap()).unwrap();
    assert_eq!(server.open(), Ok(StreamId(4)));
}

#[test]
fn what_a_reset_stream_had_queued_makes_room_for_others() {
    let mut client = Session::client();
    let (first, second) = (client.open().unwrap(), client.open().unwrap());
    client.write(first, &vec![0; MAX_QUEUED]).unwrap();
    assert_eq!(client.write(second, b"x"), Err(Refused::Full));
    client.handle_bytes(&hex::decode("000100080000000100000000").unwrap()).unwrap();
    assert_eq!(client.read_state(first), ReadState::Reset);
    assert_eq!(client.write(second, b"x"), Ok(()));
    client.close(NOW, first);
    assert_eq!(client.queued, 1);
}

#[test]
fn what_arrives_on_a_closed_stream_is_dropped() {
    let (mut client, mut server) = pair();
    let id = client.open().unwrap();
    carry(&mut client, &mut server);
    server.close(NOW, id);
    client.write(id, b"too late").unwrap();
    carry(&mut client, &mut server);
    assert_eq!(server.poll_ready(), None);
    assert_eq!(server.readable(id), b"");
}

#[test]
fn a_stream_ends_only_behind_the_last_byte_of_a_frame_that_says_so() {
    let mut server = Session::server();
    let mut bytes = Vec::new();
    Header { kind: Kind::WindowUpdate, flags: Flags::SYN, stream: 1, value: 0 }.write(&mut bytes);
    Header { kind: Kind::Data, flags: Flags::FIN, stream: 1, value: 8 }.write(&mut bytes);
    bytes.extend_from_slice(b"the ");
    server.handle_bytes(&bytes).unwrap();
    let id = server.accept().unwrap();
    assert_eq!((server.readable(id), server.read_state(id)), (&b"the "[..], ReadState::Open));
    server.handle_bytes(b"end.").unwrap();
    assert_eq!((server.readable(id), server.read_state(id)), (&b"the end."[..], ReadState::Finished));
    let mut more = Vec::new();
    Header { kind: Kind::Data, flags: Flags::FIN, stream: 1, value: 1 }.write(&mut more);
    assert_eq!(server.handle_bytes(&more), Err(Fault::SecondFin(1)));
}
