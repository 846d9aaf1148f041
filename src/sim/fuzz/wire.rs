//! The codecs of packets and frames, and both ends of a relay connection, fed by a peer that may send anything.

use crate::{
    base::{DiscoKey, DiscoSecret, Instant, NodeSecret, Rng},
    proto::relay::{client::RelayClient, server::Registry},
    wire::{
        self,
        coord::tailnet::DerpMap,
        derp::{self, RelayMap},
        disco,
        events::{Event, Parser},
        pty, sftp, speedtest, stun,
    },
};
use prost::Message as _;
use std::{sync::LazyLock, time::Duration};

/// STUN messages: what is read is written and read the same, whatever it came in.
///
/// # Panics
/// When it is not.
pub fn stun(bytes: &[u8]) {
    let kind = wire::classify(bytes);
    if let Ok(tx) = stun::parse_request(bytes) {
        assert_eq!(kind, wire::Kind::Stun);
        assert_eq!(stun::parse_request(&stun::write_request(tx)), Ok(tx));
    }
    if let Ok((tx, addr)) = stun::parse_response(bytes) {
        assert_eq!(kind, wire::Kind::Stun);
        assert_eq!(stun::parse_response(&stun::write_response(tx, addr)), Ok((tx, addr)));
    }
}

static DISCO: LazyLock<(disco::SharedKey, DiscoKey)> = LazyLock::new(|| {
    let own = DiscoSecret::from_random([1; 32]);
    (disco::SharedKey::new(&own, &own.public()), own.public())
});

/// Disco: the bytes as a packet, and as the message inside one.
///
/// # Panics
/// When a message is not read as it was written.
pub fn disco(bytes: &[u8]) {
    let (key, sender) = &*DISCO;
    let opened = key.open(bytes);
    assert!(opened.is_err() || disco::looks_like(bytes));
    assert_eq!(disco::sender(bytes).is_some(), disco::looks_like(bytes));
    if let Ok(message) = disco::Message::parse(bytes) {
        let mut packet = Vec::new();
        key.seal(*sender, [2; 24], &message, &mut packet);
        assert!(matches!(message, disco::Message::CallMeMaybe { .. }) || packet.len() == disco::PADDED);
        assert_eq!(wire::classify(&packet), wire::Kind::Disco);
        assert_eq!(key.open(&packet), Ok(message));
    }
}

/// Server-sent events: the same ones however the stream is cut, and nothing is held that was not sent. The first byte says
/// how it is cut.
///
/// # Panics
/// When the cut changes what is read.
pub fn events(bytes: &[u8]) {
    let Some((cut, stream)) = bytes.split_first() else { return };
    let read = |size: usize| {
        let (mut parser, mut fed, mut all) = (Parser::default(), 0, Vec::<Event>::new());
        for piece in stream.chunks(size) {
            parser.feed(piece);
            fed += piece.len();
            while let Some(event) = parser.next_event() {
                all.push(event);
            }
            // What is no UTF-8 takes three bytes for one.
            assert!(parser.held() <= 3 * fed);
        }
        all
    };
    assert_eq!(read(usize::from(*cut).max(1)), read(stream.len().max(1)));
}

/// DERP: the bytes as frames, and, cut in pieces as the first byte says, as what a server sends to a client and a
/// client to a server, both behind a good login.
///
/// # Panics
/// When a frame is not read as it was written, or the server writes what its client cannot read.
pub fn derp_frames(bytes: &[u8]) {
    if let Ok(Some((frame, used))) = derp::parse(bytes) {
        assert!(used <= bytes.len());
        let mut out = Vec::new();
        frame.write(&mut out);
        assert_eq!(derp::parse(&out), Ok(Some((frame, out.len()))));
    }
    let Some((cut, stream)) = bytes.split_first() else { return };
    let cut = usize::from(*cut).max(1);
    let now = Instant::ZERO + Duration::from_secs(1);
    let (server, node) = (NodeSecret::from_random([3; 32]), NodeSecret::from_random([4; 32]));

    let mut registry = Registry::new(server, Rng::from_u64(1));
    let mut conn = registry.open(Instant::ZERO);
    let mut client = RelayClient::new(Instant::ZERO, node, Rng::from_u64(2));
    let (mut down, mut up) = (Vec::new(), Vec::new());
    let _ = registry.poll_output(conn.id(), &mut down, usize::MAX);
    assert_eq!(client.handle_bytes(now, &down, &mut |_| {}), Ok(()));
    client.poll_output(&mut up);
    assert_eq!(conn.handle_bytes(now, &up, &mut registry), Ok(()));

    for piece in stream.chunks(cut) {
        let mut received = 0;
        let result = client.handle_bytes(now, piece, &mut |_| received += 1);
        assert!(received <= 1 + piece.len() / derp::HEADER);
        if result.is_err() {
            break;
        }
    }
    for piece in stream.chunks(cut) {
        if conn.handle_bytes(now, piece, &mut registry).is_err() {
            break;
        }
    }
    up.clear();
    client.poll_output(&mut up);
    // What the server answers is always whole frames that its client understands.
    down.clear();
    while registry.poll_output(conn.id(), &mut down, usize::MAX) {}
    let mut rest = down.as_slice();
    while let Ok(Some((_, used))) = derp::parse(rest) {
        rest = rest.get(used..).unwrap_or_default();
    }
    assert!(rest.is_empty());
    registry.close(conn);
    assert_eq!(registry.clients(), 0);
}

/// Relay maps: the bytes as the control plane's message and as JSON. What is read is written and read the same in both.
///
/// # Panics
/// When it is not.
pub fn relay_map(bytes: &[u8]) {
    let message = DerpMap::decode(bytes).ok().and_then(|message| RelayMap::try_from(&message).ok());
    let json = str::from_utf8(bytes).ok().and_then(|text| text.parse::<RelayMap>().ok());
    for map in message.into_iter().chain(json) {
        assert_eq!(RelayMap::from_json(&map.to_json()).as_ref(), Ok(&map));
        assert_eq!(RelayMap::try_from(&DerpMap::from(&map)), Ok(map));
    }
}

/// The speed test's messages: what is read is written and read the same, and any piece of it was incomplete.
///
/// # Panics
/// When it is not.
pub fn speedtest(bytes: &[u8]) {
    if let Ok(Some((opening, used))) = speedtest::Opening::parse(bytes) {
        let out = opening.write();
        assert_eq!(speedtest::Opening::parse(&out), Ok(Some((opening, out.len() - 1))));
        assert!(used <= bytes.len() && used <= speedtest::MAX_MESSAGE);
        (0..used).for_each(|cut| assert_eq!(speedtest::Opening::parse(bytes.get(..cut).unwrap_or_default()), Ok(None)));
    }
    if let Ok(Some((answer, used))) = speedtest::Answer::parse(bytes) {
        let out = answer.write();
        assert_eq!(speedtest::Answer::parse(&out), Ok(Some((answer, out.len()))));
        assert!(used <= bytes.len() && used <= speedtest::MAX_MESSAGE + 1);
    }
}

/// SFTP: a stream of packets is cut without looking past its end, and what is read is written and read the same.
///
/// # Panics
/// When it is not.
pub fn sftp(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(packet)) = sftp::first_packet(rest) {
        if let Ok((number, Some(request))) = sftp::Request::parse(packet) {
            let mut out = Vec::new();
            request.write(number, &mut out);
            let again = sftp::first_packet(&out).ok().flatten().unwrap_or_default();
            assert_eq!(sftp::Request::parse(again), Ok((number, Some(request))));
        }
        if let Some((_, sftp::Answer::Names(names))) = sftp::Answer::parse(packet) {
            assert!(names.len() <= packet.len() / 12, "each name takes two lengths and its attributes' flags");
        }
        rest = rest.get(sftp::HEADER + packet.len()..).unwrap_or_default();
    }
}

/// The reconnecting terminal's messages: what is read is written and read the same, and requests are cut the same in
/// whatever pieces they come.
///
/// # Panics
/// When it is not.
pub fn pty(bytes: &[u8]) {
    if let Ok(Some((opening, used))) = pty::Opening::parse(bytes) {
        assert!(used <= bytes.len());
        // Escapes may make it longer than its length can tell.
        if let Ok(out) = opening.write() {
            assert_eq!(pty::Opening::parse(&out), Ok(Some((opening, out.len()))));
        }
    }
    let cut = |piece: usize| {
        let (mut requests, mut read) = (pty::Requests::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            requests.push(piece);
            loop {
                match requests.read() {
                    Ok(Some(request)) => read.push(request),
                    Ok(None) => break,
                    Err(_) => return read,
                }
            }
        }
        read
    };
    let read = cut(bytes.len().max(1));
    assert_eq!(cut(1), read);
    for request in read {
        let mut again = pty::Requests::new();
        again.push(&request.write());
        assert_eq!(again.read(), Ok(Some(request)));
    }
}
