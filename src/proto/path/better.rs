//! Which of two proven addresses is the better one (`path-selection.md` §5).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// An address and the round trip that its pong took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) addr: SocketAddr,
    pub(super) latency: Duration,
}

/// Whether `a` should replace `b`. Points for latency are per cent of the difference; near addresses get a bonus.
pub(super) fn better(a: Option<Measured>, b: Option<Measured>) -> bool {
    let (a, b) = match (a, b) {
        (None, _) => return false,
        (Some(_), None) => return true,
        (Some(a), Some(b)) if a.addr == b.addr => return false,
        (Some(a), Some(b)) => (a, b),
    };
    let (mut a_points, mut b_points) = (bonus(a.addr.ip()), bonus(b.addr.ip()));
    let (a_nanos, b_nanos) = (a.latency.as_nanos(), b.latency.as_nanos());
    if a_nanos > b_nanos {
        b_points += gain(b_nanos, a_nanos);
    } else if b_nanos > 0 {
        a_points += gain(a_nanos, b_nanos);
    }
    // A gain of one per cent is noise: changing the path for it would only cause reordering.
    if a_points <= 1 && b_points == 0 {
        return false;
    }
    a_points > b_points
}

/// By how many per cent `low` undercuts `high`, which is not zero.
const fn gain(low: u128, high: u128) -> u128 {
    100 - low * 100 / high
}

fn bonus(ip: IpAddr) -> u128 {
    let (private, v6) = match ip {
        IpAddr::V4(ip) => (ip.is_private(), 0),
        IpAddr::V6(ip) => (ip.is_unique_local(), 10),
    };
    let near = match (ip.is_loopback(), private) {
        (true, _) => 50,
        (false, true) => 20,
        (false, false) => 0,
    };
    near + v6
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "address ms", or nothing where the address is left out.
    fn measured(text: &str) -> Option<Measured> {
        let (addr, ms) = text.split_once(' ').unwrap();
        (!addr.is_empty()).then(|| Measured { addr: addr.parse().unwrap(), latency: Duration::from_millis(ms.parse().unwrap()) })
    }

    #[test]
    fn the_vectors_of_the_go_implementation_hold() {
        const P: &str = "1.2.3.4:555";
        const Q: &str = "5.6.7.8:999";
        const S: &str = "[2001::5]:123";
        const R: &str = "10.0.0.2:123";
        const L: &str = "192.168.0.1:555";
        let rows: &[(&str, u32, &str, u32, bool)] = &[
            ("", 0, "", 0, false),
            (P, 5, "", 0, true),
            ("", 0, P, 5, false),
            (P, 5, Q, 10, true),
            (P, 5, P, 10, false),
            (P, 100, Q, 100, false),
            (P, 100, Q, 101, false),
            (P, 100, Q, 103, true),
            (P, 0, Q, 0, false),
            (R, 100, P, 91, true),
            (P, 91, R, 100, false),
            (R, 100, P, 30, false),
            (P, 30, R, 100, true),
            (S, 100, P, 91, true),
            (P, 91, S, 100, false),
            (S, 100, P, 30, false),
            (P, 30, S, 100, true),
            (L, 100, S, 101, true),
            (S, 101, L, 100, false),
        ];
        for (a, a_ms, b, b_ms, expected) in rows {
            let (a, b) = (format!("{a} {a_ms}"), format!("{b} {b_ms}"));
            assert_eq!(better(measured(&a), measured(&b)), *expected, "{a} against {b}");
        }
    }

    #[test]
    fn near_addresses_get_their_bonus() {
        for (a, b) in [("127.0.0.1:1 9", "8.8.8.8:1 6"), ("[::1]:1 9", "127.0.0.1:1 9"), ("[fd01::1]:1 9", "[2001::1]:1 9")] {
            assert!(better(measured(a), measured(b)), "{a} against {b}");
            assert!(!better(measured(b), measured(a)), "{b} against {a}");
        }
    }
}
