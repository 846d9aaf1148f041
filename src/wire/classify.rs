//! What a datagram of the shared UDP socket is, by its first bytes (`disco.md` §5).

use super::{disco, stun};

/// The protocol of one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A STUN message, for netcheck alone.
    Stun,
    /// A disco packet, never WireGuard's even when it does not open.
    Disco,
    /// One of WireGuard's four message types.
    WireGuard,
    /// Anything else: dropped.
    Junk,
}

/// Tells the protocols of one socket apart. The order matters: STUN's test is the strictest, WireGuard's the laxest.
#[must_use]
pub fn classify(datagram: &[u8]) -> Kind {
    if stun::is_stun(datagram) {
        return Kind::Stun;
    }
    if disco::has_magic(datagram) {
        return Kind::Disco;
    }
    match datagram.first_chunk::<4>().map(|kind| u32::from_le_bytes(*kind)) {
        Some(1..=4) => Kind::WireGuard,
        _ => Kind::Junk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_protocol_is_known_by_its_first_bytes() {
        assert_eq!(classify(&stun::write_request(stun::TxId([7; 12]))), Kind::Stun);
        for kind in 1..=4u8 {
            assert_eq!(classify(&[kind, 0, 0, 0, 9]), Kind::WireGuard);
        }
        for junk in [b"".as_slice(), b"\x01\0\0", b"\0\0\0\0", b"\x05\0\0\0", b"\x01\0\0\x01", b"SSH-2.0-x"] {
            assert_eq!(classify(junk), Kind::Junk, "{junk:?}");
        }
    }

    #[test]
    fn the_disco_magic_counts_from_38_bytes_on_and_is_never_wireguard() {
        let mut packet = disco::MAGIC.to_vec();
        packet.resize(37, 0);
        assert_eq!(classify(&packet), Kind::Junk);
        packet.push(0);
        assert_eq!(classify(&packet), Kind::Disco);
    }

    #[test]
    fn a_stun_cookie_wins_over_a_wireguard_type() {
        let mut packet = vec![1, 0, 0, 0];
        packet.extend_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        packet.resize(20, 0);
        assert_eq!(classify(&packet), Kind::Stun);
    }

    proptest! {
        #[test]
        fn any_bytes_are_classified(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = classify(&bytes);
        }
    }
}
