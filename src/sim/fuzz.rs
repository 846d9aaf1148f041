//! What the fuzz targets in `fuzz/` call, one function a target. A broken claim panics.
//!
//! The committed corpus of every target is replayed by a test here.

use crate::{
    base::{DiscoKey, DiscoSecret, Instant, NodeSecret, Rng},
    proto::relay::{client::RelayClient, server::Registry},
    wire::{self, derp, disco, stun},
};
use std::{sync::LazyLock, time::Duration};

/// A target's function.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[("stun", stun), ("disco", disco), ("derp_frames", derp_frames)];

/// STUN messages: what is read is written and read the same, whatever it came in.
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

/// DERP: the bytes as frames, and, cut in pieces as the first byte says, as what a server sends to a client and a
/// client to a server, both behind a good login.
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
    while registry.poll_output(conn.id(), &mut down, 1 << 16) {}
    let mut rest = down.as_slice();
    while let Ok(Some((_, used))) = derp::parse(rest) {
        rest = rest.get(used..).unwrap_or_default();
    }
    assert!(rest.is_empty());
    registry.close(conn);
    assert_eq!(registry.clients(), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    const MAX_FILES: usize = 20;
    const MAX_BYTES: usize = 4_096;

    #[test]
    fn every_committed_input_of_every_target_keeps_the_claims() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let mut folders: Vec<_> = fs::read_dir(&corpus).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        folders.sort_unstable();
        let mut names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        assert_eq!(folders, names, "every target has a corpus, and every corpus a target");
        for (name, target) in TARGETS {
            let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|e| e.unwrap().path()).collect();
            assert!((1..=MAX_FILES).contains(&files.len()), "{name} has {} files", files.len());
            for file in files {
                let bytes = fs::read(&file).unwrap();
                assert!(bytes.len() <= MAX_BYTES, "{} is too long", file.display());
                // So that a failure names its input.
                println!("{}", file.display());
                target(&bytes);
            }
        }
    }

    #[test]
    fn every_target_takes_nothing_at_all() {
        TARGETS.iter().for_each(|(_, target)| target(&[]));
    }
}
