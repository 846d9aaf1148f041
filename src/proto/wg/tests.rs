//! Two nodes on a virtual wire, in virtual time: hours pass while boringtun's own clock stands still.

use super::*;
use crate::wire::wg::DATA_OVERHEAD;
use proptest::{prelude::any, prop_assert, proptest};
use std::collections::BTreeMap;

const PEER: PeerIx = PeerIx(7);
const LATENCY: Duration = Duration::from_millis(20);

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A minimal IPv6 packet with `body` as payload; what boringtun takes for content.
fn ip(body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    A,
    B,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

struct Pair {
    now: Instant,
    a: WireGuard,
    b: WireGuard,
    keys: [NodeKey; 2],
    /// Datagrams under way: arrival, serial number, receiver, bytes.
    wire: BTreeMap<(Instant, u64), (Side, Vec<u8>)>,
    serial: u64,
    /// What the wire swallows: by sender and kind.
    lose: Box<dyn FnMut(Side, Message) -> bool>,
    received: Vec<(Side, Vec<u8>)>,
    opened: Vec<(Side, What)>,
    rejects: Vec<(Side, Reject)>,
    events: Vec<(Instant, Side, Event)>,
    sent: Vec<(Instant, Side, Control)>,
    steps: u32,
}

impl Pair {
    fn new() -> Self {
        let mut rng = Rng::from_u64(11);
        let (sa, sb) = (NodeSecret::generate(&mut rng), NodeSecret::generate(&mut rng));
        let (mut a, mut b) = (WireGuard::new(&sa, rng.split()), WireGuard::new(&sb, rng.split()));
        a.add_peer(PEER, sb.public());
        b.add_peer(PEER, sa.public());
        Self {
            now: Instant::from_nanos(1_000_000_000),
            a,
            b,
            keys: [sa.public(), sb.public()],
            wire: BTreeMap::new(),
            serial: 0,
            lose: Box::new(|_, _| false),
            received: Vec::new(),
            opened: Vec::new(),
            rejects: Vec::new(),
            events: Vec::new(),
            sent: Vec::new(),
            steps: 0,
        }
    }

    fn connected() -> Self {
        let mut pair = Self::new();
        pair.a.want_session(pair.now, PEER);
        pair.run(ms(100));
        assert!(pair.up(Side::A) && pair.up(Side::B));
        pair.clear();
        pair
    }

    fn clear(&mut self) {
        self.received.clear();
        self.opened.clear();
        self.rejects.clear();
        self.events.clear();
        self.sent.clear();
    }

    fn node(&mut self, side: Side) -> &mut WireGuard {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    fn up(&mut self, side: Side) -> bool {
        let now = self.now;
        self.node(side).has_session(now, PEER)
    }

    fn post(&mut self, from: Side, d: Vec<u8>) {
        let kind = Message::parse(&d).unwrap();
        if !(self.lose)(from, kind) {
            self.deliver_at(self.now + LATENCY, from.other(), d);
        }
    }

    fn deliver_at(&mut self, at: Instant, to: Side, d: Vec<u8>) {
        self.serial += 1;
        self.wire.insert((at, self.serial), (to, d));
    }

    fn seal(&mut self, side: Side, body: &[u8]) -> Result<Vec<u8>, SealError> {
        let now = self.now;
        let mut out = vec![0; MAX_DATAGRAM];
        let len = self.node(side).seal(now, PEER, &ip(body), &mut out)?;
        out.truncate(len);
        Ok(out)
    }

    fn send(&mut self, side: Side, body: &[u8]) -> Result<(), SealError> {
        let d = self.seal(side, body)?;
        self.post(side, d);
        Ok(())
    }

    fn flush(&mut self) {
        for side in [Side::A, Side::B] {
            while let Some((peer, d, control)) = self.node(side).poll_transmit() {
                assert_eq!(peer, PEER);
                self.sent.push((self.now, side, control));
                self.post(side, d);
            }
            while let Some(event) = self.node(side).poll_event() {
                self.events.push((self.now, side, event));
            }
        }
    }

    /// Lets `span` of virtual time pass.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.flush();
            self.steps += 1;
            assert!(self.steps < 1_000_000, "time stands still");
            let arrival = self.wire.first_key_value().map(|(&(at, _), _)| at);
            let timer = Deadline::earliest(self.a.poll_timeout(), self.b.poll_timeout()).map(|d| d.at);
            let Some(next) = [arrival, timer].into_iter().flatten().min().filter(|&at| at <= end) else { break };
            self.now = self.now.max(next);
            let now = self.now;
            if arrival == Some(next) {
                let (_, (to, d)) = self.wire.pop_first().unwrap();
                let mut plain = vec![0; MAX_DATAGRAM];
                match self.node(to).open(now, &d, &mut plain) {
                    Ok(Opened { peer, what }) => {
                        assert_eq!(peer, PEER);
                        self.opened.push((to, what));
                        if let What::Data(len) = what {
                            self.received.push((to, plain[40..len].to_vec()));
                        }
                    }
                    Err(reject) => self.rejects.push((to, reject)),
                }
            } else {
                self.a.handle_timeout(now);
                self.b.handle_timeout(now);
            }
        }
        self.now = end;
    }

    fn initiations(&self, side: Side) -> Vec<Instant> {
        self.sent.iter().filter(|(_, s, c)| *s == side && *c == Control::Initiation).map(|(at, ..)| *at).collect()
    }

    fn keepalives(&self, side: Side) -> Vec<Instant> {
        self.sent.iter().filter(|(_, s, c)| *s == side && *c == Control::Keepalive).map(|(at, ..)| *at).collect()
    }
}

#[test]
fn a_session_is_up_after_one_and_a_half_round_trips() {
    let mut pair = Pair::new();
    let start = pair.now;
    assert_eq!(pair.send(Side::A, b"early"), Err(SealError::NoSession));
    pair.a.want_session(pair.now, PEER);
    pair.a.want_session(pair.now, PEER);
    pair.run(ms(100));
    assert_eq!(
        pair.events,
        [
            (start + LATENCY * 2, Side::A, Event::SessionUp { peer: PEER }),
            (start + LATENCY * 3, Side::B, Event::SessionUp { peer: PEER })
        ]
    );
    assert_eq!(pair.initiations(Side::A).len(), 1, "a second wish starts no second handshake");
    assert_eq!(pair.opened, [(Side::B, What::Initiation), (Side::A, What::Response), (Side::B, What::Keepalive)]);
    pair.send(Side::A, b"ping").unwrap();
    pair.send(Side::B, b"pong").unwrap();
    pair.run(ms(100));
    assert_eq!(pair.received, [(Side::B, b"ping".to_vec()), (Side::A, b"pong".to_vec())]);
    assert_eq!(pair.rejects, []);
    assert_eq!(pair.b.last_handshake(PEER), Some(start + LATENCY * 3));
}

#[test]
fn the_responder_sends_nothing_before_the_initiator_has_confirmed() {
    let mut pair = Pair::new();
    pair.lose = Box::new(|from, m| from == Side::A && matches!(m, Message::Data { .. }));
    pair.a.want_session(pair.now, PEER);
    pair.run(ms(500));
    assert!(pair.up(Side::A) && !pair.up(Side::B));
    assert_eq!(pair.send(Side::B, b"no"), Err(SealError::NoSession));
    pair.lose = Box::new(|_, _| false);
    pair.send(Side::A, b"confirms").unwrap();
    pair.run(ms(100));
    assert!(pair.up(Side::B));
    pair.send(Side::B, b"yes").unwrap();
    pair.run(ms(100));
    assert_eq!(pair.received.len(), 2);
}

#[test]
fn two_initiations_that_cross_give_one_usable_pair_of_sessions() {
    for skew in [0, 1, 10, 19, 20, 21, 39, 41] {
        let mut pair = Pair::new();
        pair.a.want_session(pair.now, PEER);
        pair.run(ms(skew));
        pair.b.want_session(pair.now, PEER);
        pair.run(ms(100));
        assert!(pair.up(Side::A) && pair.up(Side::B), "skew {skew}");
        for round in 0..200_u8 {
            pair.send(Side::A, &[round]).unwrap();
            pair.send(Side::B, &[round]).unwrap();
            pair.run(ms(u64::from(round % 3) * 15));
        }
        pair.run(secs(4));
        assert_eq!(pair.received.len(), 400, "skew {skew}");
        assert_eq!(pair.rejects, [], "skew {skew}");
        assert!(pair.initiations(Side::A).len() + pair.initiations(Side::B).len() <= 2, "skew {skew}");
    }
}

#[test]
fn sessions_are_renewed_every_two_minutes_by_the_initiator_and_no_packet_is_lost() {
    let mut pair = Pair::connected();
    for n in 0..6_000_u32 {
        pair.send(Side::A, &n.to_be_bytes()).unwrap();
        pair.send(Side::B, &n.to_be_bytes()).unwrap();
        pair.run(ms(100));
    }
    assert_eq!(pair.received.len(), 12_000);
    assert_eq!(pair.rejects, []);
    let renewals = pair.initiations(Side::A);
    assert_eq!(renewals.len(), 4, "600 s hold four renewals: {renewals:?}");
    assert!(renewals.windows(2).all(|w| (secs(120)..secs(121)).contains(&(w[1] - w[0]))));
    assert_eq!(pair.initiations(Side::B), []);
    assert_eq!(pair.events, [], "a seamless renewal is no news");
}

#[test]
fn an_initiator_that_only_receives_renews_once_at_165_seconds() {
    let mut pair = Pair::connected();
    pair.run(secs(164));
    pair.send(Side::B, b"too early").unwrap();
    pair.run(ms(900));
    assert_eq!(pair.initiations(Side::A), []);
    pair.lose = Box::new(|_, m| matches!(m, Message::Initiation { .. }));
    for _ in 0..4 {
        pair.send(Side::B, b"down").unwrap();
        pair.run(secs(1));
    }
    assert_eq!(pair.initiations(Side::A).len(), 1);
}

#[test]
fn a_late_packet_of_the_old_session_does_not_bring_it_back() {
    let mut pair = Pair::connected();
    let late = pair.seal(Side::B, b"late").unwrap();
    let old = receiver(&pair.seal(Side::A, b"x").unwrap());
    pair.run(secs(121));
    pair.send(Side::A, b"renews").unwrap();
    pair.run(ms(200));
    let new = receiver(&pair.seal(Side::A, b"x").unwrap());
    assert_ne!(old, new);
    pair.deliver_at(pair.now, Side::A, late);
    pair.run(ms(1));
    assert_eq!(pair.received.last(), Some(&(Side::A, b"late".to_vec())), "it is still accepted");
    assert_eq!(receiver(&pair.seal(Side::A, b"x").unwrap()), new);
}

#[test]
fn an_unanswered_handshake_is_repeated_twenty_times_and_then_given_up() {
    let mut pair = Pair::new();
    pair.lose = Box::new(|_, _| true);
    pair.a.want_session(pair.now, PEER);
    pair.run(secs(200));
    let tries = pair.initiations(Side::A);
    assert_eq!(tries.len(), 20);
    assert!((secs(1)..=ms(1_333)).contains(&(tries[1] - tries[0])), "{tries:?}");
    assert!(tries[1..].windows(2).all(|w| (secs(5)..=ms(5_333)).contains(&(w[1] - w[0]))), "{tries:?}");
    let [(at, Side::A, Event::GaveUp { .. })] = pair.events[..] else { panic!("{:?}", pair.events) };
    assert!((secs(96)..secs(103)).contains(&(at - tries[0])));
    assert_eq!(pair.a.poll_timeout(), None, "nothing is left to do");
    pair.lose = Box::new(|_, _| false);
    pair.a.want_session(pair.now, PEER);
    pair.run(ms(100));
    assert!(pair.up(Side::A) && pair.up(Side::B));
}

#[test]
fn a_lost_response_costs_one_retry() {
    let mut pair = Pair::new();
    let mut lost = 0;
    pair.lose = Box::new(move |_, m| {
        lost += u32::from(matches!(m, Message::Response { .. }));
        matches!(m, Message::Response { .. }) && lost == 1
    });
    pair.a.want_session(pair.now, PEER);
    pair.run(ms(1_500));
    assert_eq!(pair.initiations(Side::A).len(), 2);
    assert!(pair.up(Side::A) && pair.up(Side::B));
}

#[test]
fn only_the_response_to_the_newest_initiation_counts() {
    let mut pair = Pair::new();
    pair.a.want_session(pair.now, PEER);
    pair.run(LATENCY + ms(1));
    let (_, (_, response)) = pair.wire.pop_first().unwrap();
    pair.run(ms(300));
    pair.a.retry_handshake(pair.now, PEER);
    pair.deliver_at(pair.now + ms(1), Side::A, response);
    pair.run(ms(2));
    assert_eq!(pair.rejects, [(Side::A, Reject::Unexpected)]);
    pair.run(ms(100));
    assert!(pair.up(Side::A) && pair.up(Side::B));
}

#[test]
fn a_repetition_is_sent_at_once_but_at_most_every_250_ms() {
    let mut pair = Pair::new();
    pair.lose = Box::new(|_, _| true);
    pair.a.retry_handshake(pair.now, PEER);
    pair.run(ms(1));
    assert_eq!(pair.initiations(Side::A), [], "without a handshake there is nothing to repeat");
    let start = pair.now;
    pair.a.want_session(pair.now, PEER);
    pair.run(ms(100));
    pair.a.retry_handshake(pair.now, PEER);
    pair.a.retry_handshake(pair.now, PEER);
    pair.run(ms(400));
    pair.a.retry_handshake(pair.now, PEER);
    pair.run(ms(1));
    assert_eq!(pair.initiations(Side::A), [start, start + ms(250), start + ms(500)]);
}

#[test]
fn a_wish_right_after_a_handshake_waits_for_five_seconds() {
    let mut pair = Pair::connected();
    pair.a.want_session(pair.now, PEER);
    pair.run(ms(4_800));
    assert_eq!(pair.initiations(Side::A), []);
    pair.run(ms(200));
    assert_eq!(pair.initiations(Side::A).len(), 1);
}

#[test]
fn received_data_is_answered_by_a_keepalive_after_ten_seconds() {
    let mut pair = Pair::connected();
    pair.send(Side::A, b"one").unwrap();
    pair.run(LATENCY);
    let heard = pair.now;
    pair.run(secs(60));
    assert_eq!(pair.keepalives(Side::B), [heard + secs(10)]);
    assert_eq!(pair.keepalives(Side::A), [], "an empty packet asks for none");
    assert_eq!(pair.initiations(Side::A), [], "it counts as an answer");
}

#[test]
fn data_on_the_way_back_replaces_the_keepalive() {
    let mut pair = Pair::connected();
    pair.send(Side::A, b"one").unwrap();
    pair.run(secs(9));
    pair.send(Side::B, b"two").unwrap();
    pair.run(secs(9));
    assert_eq!(pair.keepalives(Side::B), []);
}

#[test]
fn fifteen_seconds_without_an_answer_start_a_handshake() {
    let mut pair = Pair::connected();
    let start = pair.now;
    pair.lose = Box::new(|from, m| from == Side::B && matches!(m, Message::Data { .. }));
    for _ in 0..20 {
        pair.send(Side::A, b"anyone?").unwrap();
        pair.run(secs(1));
    }
    let tries = pair.initiations(Side::A);
    assert!((secs(15)..=ms(15_333)).contains(&(tries[0] - start)), "{tries:?}");
    assert!(
        pair.events.iter().any(|(_, side, e)| *side == Side::A && *e == Event::SessionUp { peer: PEER }),
        "after silence a new session is news"
    );
}

#[test]
fn the_persistent_keepalive_starts_the_session_and_keeps_it() {
    let mut pair = Pair::new();
    pair.a.set_keepalive(pair.now, PEER, Some(secs(25)));
    pair.run(ms(200));
    assert!(pair.up(Side::A) && pair.up(Side::B));
    pair.clear();
    pair.run(secs(600));
    let beats = pair.keepalives(Side::A);
    assert!(beats.len() >= 23, "{beats:?}");
    assert!(beats.windows(2).all(|w| w[1] - w[0] <= secs(25)), "{beats:?}");
    assert!(pair.up(Side::A) && pair.up(Side::B), "keepalives renew the session");
    pair.a.set_keepalive(pair.now, PEER, None);
    pair.run(secs(1_000));
    assert_eq!((pair.a.poll_timeout(), pair.b.poll_timeout()), (None, None), "an idle pair has no timer left");
}

#[test]
fn keys_go_after_nine_minutes_and_a_new_handshake_works() {
    let mut pair = Pair::connected();
    let kept = pair.seal(Side::B, b"kept").unwrap();
    pair.send(Side::A, b"answer").unwrap();
    pair.run(secs(180));
    assert!(!pair.up(Side::A) && !pair.up(Side::B));
    assert_eq!(pair.send(Side::A, b"old"), Err(SealError::NoSession));
    pair.deliver_at(pair.now, Side::A, kept);
    pair.run(ms(1));
    assert_eq!(pair.rejects, [(Side::A, Reject::NoSession)]);
    pair.run(secs(400));
    assert_eq!((pair.a.poll_timeout(), pair.b.poll_timeout()), (None, None));
    pair.b.want_session(pair.now, PEER);
    pair.run(ms(100));
    pair.send(Side::A, b"new").unwrap();
    pair.run(ms(100));
    assert_eq!(pair.received.last(), Some(&(Side::B, b"new".to_vec())));
}

#[test]
fn copies_are_dropped_and_counted_apart_from_errors() {
    let mut pair = Pair::connected();
    let d = pair.seal(Side::A, b"once").unwrap();
    for at in [1, 2, 3] {
        pair.deliver_at(pair.now + ms(at), Side::B, d.clone());
    }
    pair.run(ms(10));
    assert_eq!(pair.received, [(Side::B, b"once".to_vec())]);
    let counters = pair.b.counters();
    assert_eq!((counters.replays, counters.rejected, counters.data_received), (2, 0, 1));
}

#[test]
fn a_copied_initiation_is_answered_once() {
    let mut pair = Pair::new();
    pair.a.want_session(pair.now, PEER);
    let (_, d, _) = pair.a.poll_transmit().unwrap();
    pair.deliver_at(pair.now + ms(1), Side::B, d.clone());
    pair.deliver_at(pair.now + ms(2), Side::B, d.clone());
    pair.deliver_at(pair.now + ms(90), Side::B, d);
    pair.run(ms(200));
    assert_eq!(pair.rejects, [(Side::B, Reject::Flood), (Side::B, Reject::Replay)]);
    assert_eq!(pair.b.counters().responses_sent, 1);
}

#[test]
fn packets_a_thousand_places_late_are_still_taken() {
    let mut pair = Pair::connected();
    let late: Vec<_> = (0..1_023).map(|_| pair.seal(Side::A, b"late").unwrap()).collect();
    pair.send(Side::A, b"first").unwrap();
    pair.run(ms(30));
    for d in late {
        pair.deliver_at(pair.now, Side::B, d);
    }
    pair.run(ms(1));
    assert_eq!((pair.received.len(), pair.rejects.len()), (1_024, 0));
}

#[test]
fn a_reset_peer_hears_nothing_of_the_old_session_and_can_start_anew() {
    let mut pair = Pair::connected();
    let old = pair.seal(Side::B, b"old").unwrap();
    pair.a.reset_peer(pair.now, PEER);
    assert!(!pair.up(Side::A));
    pair.deliver_at(pair.now, Side::A, old);
    pair.run(ms(1));
    assert_eq!(pair.rejects, [(Side::A, Reject::NoSession)]);
    pair.b.reset_peer(pair.now, PEER);
    pair.b.want_session(pair.now, PEER);
    pair.run(ms(100));
    pair.send(Side::A, b"new").unwrap();
    pair.run(ms(100));
    assert_eq!(pair.received, [(Side::B, b"new".to_vec())]);
}

#[test]
fn a_reset_on_one_side_only_heals_by_the_next_handshake() {
    let mut pair = Pair::connected();
    pair.a.reset_peer(pair.now, PEER);
    pair.send(Side::B, b"into the void").unwrap();
    pair.a.want_session(pair.now, PEER);
    pair.run(ms(100));
    pair.send(Side::B, b"heard").unwrap();
    pair.send(Side::A, b"heard too").unwrap();
    pair.run(ms(100));
    assert_eq!(pair.received, [(Side::A, b"heard".to_vec()), (Side::B, b"heard too".to_vec())]);
}

#[test]
fn a_removed_peer_is_a_stranger() {
    let mut pair = Pair::connected();
    let data = pair.seal(Side::A, b"x").unwrap();
    pair.b.remove_peer(PEER);
    pair.deliver_at(pair.now, Side::B, data);
    pair.run(secs(6));
    pair.a.want_session(pair.now, PEER);
    pair.run(ms(100));
    let [key, _] = pair.keys;
    assert_eq!(pair.rejects, [(Side::B, Reject::NoSession), (Side::B, Reject::UnknownPeer(key))]);
    assert_eq!(pair.b.poll_timeout(), None);
    pair.b.add_peer(PeerIx(9), key);
    pair.b.add_peer(PEER, key);
    pair.run(secs(6));
    assert!(pair.up(Side::A) && pair.up(Side::B), "one key, one peer: the newer number holds");
}

#[test]
fn no_datagram_of_any_length_panics() {
    let mut pair = Pair::connected();
    let mut d = pair.seal(Side::A, b"x").unwrap();
    let now = pair.now;
    d.resize(MAX_DATAGRAM, 0);
    assert_eq!(pair.b.open(now, &d, &mut [0; MAX_DATAGRAM]), Err(Reject::Forged));
    assert_eq!(pair.b.open(now, &d, &mut [0; 100]), Err(Reject::TooLong));
    d.push(0);
    assert_eq!(pair.b.open(now, &d, &mut [0; 4_096]), Err(Reject::TooLong));
    assert_eq!(pair.b.open(now, &[], &mut []), Err(Reject::Malformed));
}

#[test]
fn content_that_is_no_packet_is_dropped_but_proves_the_peer() {
    let mut pair = Pair::connected();
    let now = pair.now;
    let mut out = vec![0; 64];
    let len = pair.a.seal(now, PEER, &[0; 16], &mut out).unwrap();
    assert_eq!(pair.b.open(now, &out[..len], &mut [0; MAX_DATAGRAM]), Err(Reject::Content));
}

#[test]
fn a_packet_that_does_not_fit_is_refused_and_padding_reaches_the_wire() {
    let mut pair = Pair::connected();
    let now = pair.now;
    let mut out = [0; MAX_DATAGRAM];
    for (inner, datagram) in [(40, 80), (49, 96), (1_265, 1_312), (1_280, 1_312)] {
        let mut packet = ip(&vec![0; inner - 40]);
        assert_eq!(pair.a.seal(now, PEER, &packet, &mut out), Ok(datagram));
        assert_eq!(pair.a.seal(now, PEER, &packet, &mut out[..datagram - 1]), Err(SealError::Buffer));
        assert_eq!(pair.a.seal(now, PEER, &packet, &mut out), Ok(datagram));
        let mut plain = [0xff; MAX_DATAGRAM];
        assert_eq!(pair.b.open(now, &out[..datagram], &mut plain).map(|o| o.what), Ok(What::Data(inner)));
        assert_eq!(plain[..inner], packet);
        packet.clear();
    }
    assert_eq!(pair.a.seal(now, PEER, &[0x60; 2_017], &mut [0; 4_096]), Err(SealError::Buffer));
    assert_eq!(pair.a.seal(now, PeerIx(1), &[], &mut out), Err(SealError::NoSession));
    assert_eq!(DATA_OVERHEAD, 32);
}

#[test]
fn a_flood_of_initiations_is_cut_off_before_it_costs_much() {
    let mut bucket = Bucket { tokens: INITIATION_BURST, at: Instant::ZERO };
    let now = Instant::ZERO + secs(1);
    assert_eq!((0..1_000).filter(|_| bucket.take(now)).count(), 256);
    assert_eq!((0..1_000).filter(|_| bucket.take(now + ms(10))).count(), 10);
}

#[test]
fn the_initiation_of_the_go_implementation_is_recognised_and_answered() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../../../tests/vectors/wire/wireguard.json")).unwrap();
    let key = |name: &str| -> [u8; 32] { hex::decode(vectors["keys"][name].as_str().unwrap()).unwrap().try_into().unwrap() };
    let initiation = hex::decode(vectors["messages"][0]["packet"].as_str().unwrap()).unwrap();
    let mut b = WireGuard::new(&NodeSecret::from_random(key("b_static_private")), Rng::from_u64(1));
    let now = Instant::ZERO + secs(1);
    let a = NodeKey::from(key("a_static_public"));
    assert_eq!(b.open(now, &initiation, &mut []), Err(Reject::UnknownPeer(a)));
    b.add_peer(PEER, a);
    let mut broken = initiation.clone();
    broken[50] ^= 1;
    assert_eq!(b.open(now, &broken, &mut []), Err(Reject::Forged));
    assert_eq!(b.open(now, &initiation, &mut []), Ok(Opened { peer: PEER, what: What::Initiation }));
    let (_, response, control) = b.poll_transmit().unwrap();
    assert_eq!(control, Control::Response);
    let Ok(Message::Response { receiver, .. }) = Message::parse(&response) else { panic!("a response") };
    assert_eq!(receiver.to_le_bytes(), [1, 2, 3, 4]);
}

proptest! {
    #[test]
    fn arbitrary_datagrams_are_rejected(kind in 1_u8..=4, mut d in proptest::collection::vec(any::<u8>(), 0..2_100)) {
        if let [first, second, third, fourth, ..] = &mut d[..] {
            (*first, *second, *third, *fourth) = (kind, 0, 0, 0);
        }
        let mut pair = Pair::new();
        prop_assert!(pair.b.open(pair.now, &d, &mut [0; MAX_DATAGRAM]).is_err());
    }
}

fn receiver(d: &[u8]) -> u32 {
    let Ok(Message::Data { receiver, .. }) = Message::parse(d) else { panic!("a data message") };
    receiver
}
