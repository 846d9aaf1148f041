//! How connections begin and end.

use super::*;

fn is_readable(flow: FlowId) -> impl Fn(&Event) -> bool {
    move |e| *e == Event::Readable { flow }
}

#[test]
fn each_half_closes_by_itself_and_the_other_goes_on() {
    for first in [Side::A, Side::B] {
        let mut w = World::new(1, ms(10));
        let (a, b) = w.connect(22);
        let (near, far) = if first == Side::A { (a, b) } else { (b, a) };
        w.write_all(first, near, b"last words");
        w.stack(first).close_write(near);
        assert_eq!(w.stack(first).write(near, b"more"), 0);
        assert_eq!(w.read_exactly(first.other(), far, 10, secs(1)), b"last words");
        w.run(ms(100));
        assert_eq!(w.stack(first.other()).read_state(far), ReadState::Finished);
        assert_eq!(w.stack(first).read_state(near), ReadState::Open);
        w.transfer(first.other(), far, near, 100_000, secs(10));
        w.stack(first.other()).close_write(far);
        for (side, flow) in [(first, near), (first.other(), far)] {
            assert_eq!(w.until(secs(5), |w| w.closed(side, flow)), CloseReason::Finished);
            assert_eq!(w.stack(side).read_state(flow), ReadState::Finished);
        }
        assert!(w.event(first, is_readable(near)).is_some());
        assert_eq!(w.a.counters().resets + w.b.counters().resets, 0);
    }
}

#[test]
fn what_arrived_before_the_end_stays_readable_after_it() {
    let mut w = World::new(1, ms(10));
    let (a, b) = w.connect(22);
    w.write_all(Side::B, b, b"unread");
    w.a.close_write(a);
    w.b.close_write(b);
    assert_eq!(w.until(secs(5), |w| w.closed(Side::A, a)), CloseReason::Finished);
    w.run(secs(120));
    assert_eq!(w.a.read_state(a), ReadState::Open);
    assert_eq!(w.read(Side::A, a), b"unread");
    assert_eq!(w.a.read_state(a), ReadState::Finished);
}

#[test]
fn an_abort_resets_the_other_side() {
    let mut w = World::new(1, ms(10));
    let (a, b) = w.connect(22);
    w.write_all(Side::A, a, b"x");
    w.run(ms(50));
    let now = w.now;
    w.a.abort(now, a);
    assert_eq!(w.until(secs(1), |w| w.closed(Side::B, b)), CloseReason::Reset);
    assert_eq!(w.read(Side::B, b), b"x");
    assert_eq!(w.b.read_state(b), ReadState::Reset);
    assert_eq!((w.a.room(a), w.a.stats(a)), (0, None));
    w.run(secs(1));
    assert_eq!((w.a.poll_timeout(), w.b.poll_timeout()), (None, None));
}

#[test]
fn refusals_and_closed_ports_are_told_in_one_round_trip() {
    let mut w = World::new(1, ms(10));
    let closed = w.dial(Side::A, 9);
    let start = w.now;
    assert_eq!(w.until(secs(1), |w| w.closed(Side::A, closed)), CloseReason::Refused);
    assert_eq!(w.now - start, ms(20));
    w.b.listen(80);
    let refused = w.dial(Side::A, 80);
    let key = w.until(secs(1), |w| w.incoming(Side::B));
    assert_eq!((key.local, *key.remote.ip()), (Side::B.addr(80), Side::A.ip()));
    w.b.refuse(key);
    assert_eq!(w.until(secs(1), |w| w.closed(Side::A, refused)), CloseReason::Refused);
    let now = w.now;
    assert_eq!(w.b.accept(now, key), None);
    assert_eq!(w.b.counters().resets, 2);
}

#[test]
fn ports_without_listener_are_offered_when_asked_for() {
    let mut w = World::new(1, ms(10));
    w.b.listen_rest(true);
    let flow = w.dial(Side::A, 8_080);
    let other = w.accept(Side::B, secs(1));
    w.until(secs(1), |w| w.event(Side::A, |e| *e == Event::Connected { flow }));
    assert_eq!(w.b.ends(other).unwrap().0, Side::B.addr(8_080));
}

#[test]
fn a_listener_that_goes_refuses_what_waits() {
    let mut w = World::new(1, ms(10));
    w.b.listen(80);
    let flow = w.dial(Side::A, 80);
    w.until(secs(1), |w| w.incoming(Side::B));
    w.b.unlisten(80);
    assert_eq!(w.until(secs(1), |w| w.closed(Side::A, flow)), CloseReason::Refused);
}

#[test]
fn a_late_accept_still_connects_and_repeated_syns_are_one_request() {
    let mut w = World::new(1, ms(10));
    w.b.listen(80);
    let flow = w.dial(Side::A, 80);
    let key = w.until(secs(1), |w| w.incoming(Side::B));
    w.run(secs(10));
    assert_eq!(w.incoming(Side::B), None);
    assert!(w.a.stats(flow).unwrap().syns >= 4);
    let now = w.now;
    assert!(w.b.accept(now, key).is_some());
    w.until(secs(1), |w| w.event(Side::A, |e| *e == Event::Connected { flow }));
}

#[test]
fn an_unanswered_request_expires_and_the_next_syn_asks_anew() {
    let mut w = World::new(1, ms(10));
    w.b.listen(80);
    let flow = w.dial(Side::A, 80);
    let old = w.until(secs(1), |w| w.incoming(Side::B));
    w.run(ms(30_100));
    assert_eq!(w.b.counters().incoming_expired, 1);
    let now = w.now;
    assert_eq!(w.b.accept(now, old), None);
    w.accept(Side::B, secs(40));
    w.until(secs(1), |w| w.event(Side::A, |e| *e == Event::Connected { flow }));
}

#[test]
fn requests_beyond_the_limit_are_ignored_until_there_is_room() {
    let mut w = World::new(1, ms(10));
    w.b.listen(80);
    let flows: Vec<_> = (0..1_100).map(|_| w.dial(Side::A, 80)).collect();
    w.run(ms(200));
    assert_eq!(w.events[&Side::B].len(), 1_024);
    assert_eq!(w.b.counters().backlog_full, 76);
    while let Some(key) = w.incoming(Side::B) {
        w.b.refuse(key);
    }
    w.run(ms(900));
    w.b.unlisten(80);
    w.run(secs(2));
    let refused = flows.iter().filter(|flow| w.closed(Side::A, **flow) == Some(CloseReason::Refused)).count();
    assert_eq!(refused, flows.len());
}

#[test]
fn a_dialler_that_gives_up_takes_its_request_along() {
    let mut w = World::new(1, ms(10));
    w.b.listen(80);
    let flow = w.dial(Side::A, 80);
    let key = w.until(secs(1), |w| w.incoming(Side::B));
    let now = w.now;
    w.a.abort(now, flow);
    w.run(ms(50));
    let now = w.now;
    assert_eq!(w.b.accept(now, key), None);
}

#[test]
fn a_restarted_dialler_on_the_same_port_gets_a_new_connection() {
    let mut w = World::new(1, ms(10));
    w.b.listen(80);
    let (record, flow) = (true, w.dial(Side::A, 80));
    w.record = record;
    w.links(|l| l.dead = true);
    w.run(ms(5));
    let syn = w.log[0].1.clone();
    let mut other = syn.clone();
    other[HEADER_LEN + 4] ^= 0x40;
    Tcp::seal(&mut other);
    let now = w.now;
    w.b.handle_packet(now, world::PEER, &syn);
    w.flush();
    let key = w.incoming(Side::B).unwrap();
    let first = w.b.accept(now, key).unwrap();
    w.b.handle_packet(now, world::PEER, &other);
    w.flush();
    assert_eq!(w.closed(Side::B, first), Some(CloseReason::Reset));
    let key = w.incoming(Side::B).expect("the new SYN is a new request");
    assert!(w.b.accept(now, key).is_some());
    w.a.release(now, flow);
}

#[test]
fn a_lost_syn_ack_is_repeated_when_the_dialler_asks_again() {
    let mut w = World::new(1, ms(10));
    w.b.listen(80);
    let flow = w.dial(Side::A, 80);
    let key = w.until(secs(1), |w| w.incoming(Side::B));
    let now = w.now;
    w.b.accept(now, key).unwrap();
    w.link.get_mut(&Side::B).unwrap().dead = true;
    w.run(ms(300));
    w.link.get_mut(&Side::B).unwrap().dead = false;
    // A's SYN comes 1 s after its first, B's own timer would fire 10 ms after that.
    w.until(ms(730), |w| w.event(Side::A, |e| *e == Event::Connected { flow }));
}

#[test]
fn a_released_flow_delivers_the_rest_and_goes() {
    let mut w = World::new(1, ms(10));
    let (a, b) = w.connect(22);
    let data: Vec<u8> = (0..12_200).map(world::pattern).collect();
    w.write_all(Side::A, a, &data);
    let now = w.now;
    w.a.release(now, a);
    assert_eq!(w.read_exactly(Side::B, b, data.len(), secs(5)), data);
    w.run(ms(100));
    assert_eq!(w.b.read_state(b), ReadState::Finished);
    w.b.close_write(b);
    w.run(secs(2));
    assert_eq!(w.a.poll_timeout(), None, "nothing lingers once both sides are done");
    assert_eq!(w.a.counters().resets, 0);
    assert_eq!(w.closed(Side::A, a), None, "nobody is left to be told");
}

#[test]
fn a_released_flow_resets_a_peer_that_goes_on_talking() {
    let mut w = World::new(1, ms(10));
    let (a, b) = w.connect(22);
    let now = w.now;
    w.a.release(now, a);
    w.run(ms(100));
    w.write_all(Side::B, b, b"are you there?");
    assert_eq!(w.until(secs(1), |w| w.closed(Side::B, b)), CloseReason::Reset);
}

#[test]
fn a_released_flow_lingers_for_a_minute_at_most() {
    let mut w = World::new(1, ms(10));
    let (a, b) = w.connect(22);
    let now = w.now;
    w.a.release(now, a);
    w.run(secs(59));
    assert!(w.a.poll_timeout().is_some());
    w.run(secs(2));
    assert_eq!(w.a.poll_timeout(), None);
    assert_eq!(w.until(secs(1), |w| w.closed(Side::B, b)), CloseReason::Reset);
}

#[test]
fn an_owner_that_is_gone_has_a_minute_for_what_it_still_holds() {
    let mut w = World::new(1, ms(10));
    let (a, b) = w.connect(22);
    // B reads nothing, so its window closes and stays closed; it answers every probe.
    let more = vec![7; 64 << 20];
    let now = w.now;
    assert!(w.a.write(a, &more) < more.len());
    w.a.linger(now, a);
    w.run(secs(30));
    let now = w.now;
    w.a.write(a, &more);
    w.a.linger(now, a);
    w.run(secs(29));
    assert_eq!(w.closed(Side::A, a), None);
    w.run(secs(2));
    assert_eq!(w.closed(Side::A, a), Some(CloseReason::Reset));
    assert!(w.b.read_state(b) != ReadState::Finished);
}

#[test]
fn a_lost_last_ack_is_repeated_after_the_flow_is_gone() {
    let mut w = World::new(1, ms(10));
    let (a, b) = w.connect(22);
    w.a.close_write(a);
    w.run(ms(50));
    w.link.get_mut(&Side::A).unwrap().dead = true;
    w.b.close_write(b);
    w.run(ms(20));
    let now = w.now;
    assert_eq!(w.closed(Side::A, a), Some(CloseReason::Finished));
    w.a.release(now, a);
    w.link.get_mut(&Side::A).unwrap().dead = false;
    assert_eq!(w.until(secs(5), |w| w.closed(Side::B, b)), CloseReason::Finished);
    assert_eq!(w.a.counters().resets, 0);
}

#[test]
fn a_peer_that_restarts_loses_all_its_flows_at_once() {
    let mut w = World::new(1, ms(10));
    let (a, _) = w.connect(22);
    let waiting = w.dial(Side::A, 23);
    w.write_all(Side::A, a, b"never to arrive");
    let now = w.now;
    w.a.reset_peer(now, world::PEER, CloseReason::PeerRestarted);
    w.a.kick_peer(now, world::PEER);
    w.record = true;
    w.flush();
    for flow in [a, waiting] {
        assert_eq!(w.closed(Side::A, flow), Some(CloseReason::PeerRestarted));
        assert_eq!(w.a.read_state(flow), ReadState::Reset);
        w.a.release(now, flow);
    }
    assert!(w.log.is_empty(), "a new process knows nothing of them: nothing is sent");
    assert_eq!(w.a.poll_timeout(), None);
}

#[test]
fn a_silent_peer_is_given_up_after_a_minute_but_not_after_a_long_sleep() {
    let mut w = World::new(1, ms(10));
    let (a, b) = w.connect(22);
    w.run(secs(3_600));
    w.write_all(Side::A, a, b"x");
    w.flush();
    w.links(|l| l.dead = true);
    // The host sleeps for an hour with a segment in flight, and its network takes a while to come back.
    w.now += secs(3_600);
    w.run(secs(20));
    assert_eq!(w.closed(Side::A, a), None);
    w.links(|l| l.dead = false);
    let now = w.now;
    w.a.kick_peer(now, world::PEER);
    assert_eq!(w.read_exactly(Side::B, b, 1, ms(20)), b"x");
    w.run(ms(20));
    w.links(|l| l.dead = true);
    w.write_all(Side::A, a, b"y");
    w.run(secs(59));
    assert_eq!(w.closed(Side::A, a), None);
    assert_eq!(w.until(secs(60), |w| w.closed(Side::A, a)), CloseReason::TimedOut);
}

#[test]
fn stale_ids_do_nothing() {
    let mut w = World::new(1, ms(10));
    let (a, _) = w.connect(22);
    let now = w.now;
    w.a.abort(now, a);
    let again = w.dial(Side::A, 22);
    assert_eq!(again.slot, a.slot, "the place is used again");
    w.a.abort(now, a);
    w.a.consume(a, 10);
    w.a.close_write(a);
    w.a.release(now, a);
    assert_eq!((w.a.write(a, b"x"), w.a.readable(a).len(), w.a.room(a)), (0, 0, 0));
    w.accept(Side::B, secs(1));
    w.until(secs(1), |w| w.event(Side::A, |e| *e == Event::Connected { flow: again }));
}

#[test]
fn a_dial_without_a_free_port_fails_at_once() {
    let mut w = World::new(1, ms(10));
    let now = w.now;
    let flow = w.a.dial(now, world::PEER, Side::A.ip(), Side::B.addr(0));
    assert_eq!(w.until(ms(1), |w| w.closed(Side::A, flow)), CloseReason::Refused);
}
