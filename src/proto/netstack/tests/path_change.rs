//! A path dies, another takes over, and the node says so: everything in flight goes out again at once.

use super::*;

/// Cuts both ways, does `during`, repairs them and kicks the stacks that `kicked` names.
fn blackhole(w: &mut World, kicked: &[Side], during: impl FnOnce(&mut World)) {
    w.links(|l| l.dead = true);
    during(w);
    w.run(ms(120));
    w.links(|l| l.dead = false);
    for side in kicked {
        let now = w.now;
        w.stack(*side).kick_peer(now, world::PEER);
    }
}

#[test]
fn a_keystroke_lost_with_the_path_arrives_half_a_round_trip_after_the_kick() {
    let mut w = World::new(1, ms(20));
    let (a, b) = w.connect(22);
    w.write_all(Side::A, a, b"first");
    w.read_exactly(Side::B, b, 5, secs(1));
    w.run(secs(3));
    blackhole(&mut w, &[Side::A], |w| w.write_all(Side::A, a, b"k"));
    let start = w.now;
    assert_eq!(w.read_exactly(Side::B, b, 1, ms(30)), b"k");
    assert_eq!(w.now - start, ms(20));
}

#[test]
fn the_first_bytes_of_a_dialled_flow_survive_too() {
    let mut w = World::new(1, ms(20));
    let (a, b) = w.connect(22);
    blackhole(&mut w, &[Side::A], |w| w.write_all(Side::A, a, b"SSH-2.0"));
    assert_eq!(w.read_exactly(Side::B, b, 7, ms(30)), b"SSH-2.0");
}

#[test]
fn a_window_full_lost_with_the_path_is_repaired_without_waiting_for_a_timeout() {
    let mut w = World::new(1, ms(20));
    let (a, b) = w.connect(22);
    w.transfer(Side::A, a, b, 1 << 20, secs(10));
    w.run(secs(1));
    let before = w.a.stats(a).unwrap();
    let data: Vec<u8> = (0..24_400).map(world::pattern).collect();
    blackhole(&mut w, &[Side::A], |w| w.write_all(Side::A, a, &data));
    assert_eq!(w.read_exactly(Side::B, b, data.len(), ms(900)), data);
    let after = w.a.stats(a).unwrap();
    assert_eq!(after.timeouts, before.timeouts);
    assert!(after.retransmits - before.retransmits <= 25);
    assert_eq!(after.kicks, 1);
}

#[test]
fn a_lost_syn_goes_out_again_at_once() {
    let mut w = World::new(1, ms(20));
    w.b.listen(22);
    let mut flow = None;
    blackhole(&mut w, &[Side::A], |w| {
        flow = Some(w.dial(Side::A, 22));
        w.run(ms(10));
    });
    w.accept(Side::B, ms(21));
    let flow = flow.unwrap();
    w.until(ms(21), |w| w.event(Side::A, |e| *e == Event::Connected { flow }));
    assert_eq!(w.a.counters().syns, 2);
}

#[test]
fn a_lost_syn_ack_goes_out_again_at_once() {
    let mut w = World::new(1, ms(20));
    w.b.listen(22);
    let flow = w.dial(Side::A, 22);
    let key = w.until(ms(30), |w| w.incoming(Side::B));
    blackhole(&mut w, &[Side::B], |w| {
        let now = w.now;
        w.b.accept(now, key).unwrap();
        w.run(ms(10));
    });
    w.until(ms(21), |w| w.event(Side::A, |e| *e == Event::Connected { flow }));
}

#[test]
fn a_lost_fin_goes_out_again_at_once() {
    let mut w = World::new(1, ms(20));
    let (a, b) = w.connect(22);
    w.write_all(Side::A, a, b"bye");
    w.run(secs(1));
    blackhole(&mut w, &[Side::A], |w| w.a.close_write(a));
    w.read(Side::B, b);
    w.until(ms(25), |w| (w.b.read_state(b) == ReadState::Finished).then_some(()));
}

#[test]
fn kicks_of_idle_flows_send_nothing() {
    let mut w = World::new(1, ms(20));
    w.connect(22);
    w.run(secs(3));
    w.record = true;
    for side in [Side::A, Side::B] {
        let now = w.now;
        w.stack(side).kick_peer(now, world::PEER);
    }
    w.run(secs(1));
    assert!(w.log.is_empty());
}

#[test]
fn repeated_kicks_in_the_middle_of_a_transfer_do_no_harm() {
    let mut w = World::new(4, ms(10));
    w.links(|l| l.loss = 0.003);
    let (a, b) = w.connect(22);
    let (mut written, mut read, mut turns) = (0, 0, 0);
    w.until(secs(120), |w| {
        turns += 1;
        if turns % 17 == 0 {
            let now = w.now;
            w.a.kick_peer(now, world::PEER);
            w.b.kick_peer(now, world::PEER);
        }
        let chunk: Vec<u8> = (written..written + 8_000).map(world::pattern).collect();
        written += w.a.write(a, &chunk);
        for byte in w.read(Side::B, b) {
            assert_eq!(byte, world::pattern(read));
            read += 1;
        }
        (read > 1_000_000).then_some(())
    });
}

#[test]
fn a_lone_fin_survives_duplicate_acks() {
    let mut w = World::new(1, ms(20));
    let (a, b) = w.connect(22);
    w.write_all(Side::A, a, b"x");
    w.run(ms(100));
    w.record = true;
    w.write_all(Side::B, b, b"y");
    w.run(ms(100));
    let ack = w.log.iter().rev().find(|(side, p)| *side == Side::B && p.len() > 60).unwrap().1.clone();
    w.link.get_mut(&Side::A).unwrap().dead = true;
    w.a.close_write(a);
    w.run(ms(10));
    let ip = Ipv6::parse(&ack).unwrap();
    let seen = Tcp::parse(ip.payload).unwrap();
    let mut bare = Vec::new();
    Tcp { seq: seen.seq.wrapping_add(1), payload: &[], flags: TcpFlags::ACK, ..seen }.write(ip.src, ip.dst, &mut bare);
    for _ in 0..5 {
        let now = w.now;
        w.a.handle_packet(now, world::PEER, &bare);
    }
    w.link.get_mut(&Side::A).unwrap().dead = false;
    w.read(Side::B, b);
    w.until(secs(3), |w| (w.b.read_state(b) == ReadState::Finished).then_some(()));
}

#[test]
fn timeouts_on_both_sides_after_lost_acks_do_not_deadlock() {
    let mut w = World::new(64, ms(10));
    let (a, b) = w.connect(22);
    w.write_all(Side::A, a, &[1; 6_000]);
    w.write_all(Side::B, b, &[2; 6_000]);
    w.run(ms(5));
    // What flies arrives, its ACKs do not: both sides go back although the other has everything.
    w.links(|l| l.dead = true);
    w.run(secs(1));
    w.links(|l| l.dead = false);
    w.write_all(Side::A, a, &[1; 3_000]);
    w.write_all(Side::B, b, &[2; 3_000]);
    let mut read = (0, 0);
    w.until(secs(3), |w| {
        read.0 += w.read(Side::B, b).len();
        read.1 += w.read(Side::A, a).len();
        (read == (9_000, 9_000)).then_some(())
    });
}
