//! Windows, back-pressure and fairness.

use super::*;

#[test]
fn two_hundred_flows_at_once_all_arrive() {
    let mut w = World::new(5, ms(10));
    w.links(|l| l.loss = 0.002);
    w.b.listen(80);
    let near: Vec<_> = (0..200).map(|_| w.dial(Side::A, 80)).collect();
    let mut far = Vec::new();
    w.until(secs(30), |w| {
        while let Some(key) = w.incoming(Side::B) {
            let now = w.now;
            far.push((key, w.b.accept(now, key).unwrap()));
        }
        (far.len() == near.len()).then_some(())
    });
    let mut left = vec![100_000_usize; near.len()];
    let mut got = vec![0; near.len()];
    w.until(secs(300), |w| {
        for (n, flow) in near.iter().enumerate() {
            let chunk = vec![n as u8; left[n].min(20_000)];
            left[n] -= w.a.write(*flow, &chunk);
            if left[n] == 0 {
                w.a.close_write(*flow);
            }
        }
        for (key, flow) in &far {
            let n = near.iter().position(|f| w.a.ends(*f).is_some_and(|(local, _)| local == key.remote)).unwrap();
            let bytes = w.read(Side::B, *flow);
            assert!(bytes.iter().all(|b| *b == n as u8));
            got[n] += bytes.len();
        }
        got.iter().all(|n| *n == 100_000).then_some(())
    });
    let ended = far.iter().filter(|(_, flow)| w.b.read_state(*flow) == ReadState::Finished).count();
    assert!(ended >= 150, "{ended}: FINs follow the data");
}

#[test]
fn a_reader_that_stops_closes_the_window_and_loses_nothing_when_it_goes_on() {
    let mut w = World::new(6, ms(10));
    let (a, b) = w.connect(80);
    let mut written = 0;
    for _ in 0..200 {
        let chunk: Vec<u8> = (written..written + 64_000).map(world::pattern).collect();
        written += w.a.write(a, &chunk);
        w.run(ms(20));
    }
    let stopped = written;
    // The reader's 256 KiB are full, and the writer took little more.
    assert!((262_144..=360_000).contains(&stopped), "{stopped}");
    w.run(secs(100));
    assert_eq!(w.closed(Side::A, a), None, "the peer answers the probes");
    let mut read = 0;
    w.until(secs(2), |w| {
        for byte in w.read(Side::B, b) {
            assert_eq!(byte, world::pattern(read));
            read += 1;
        }
        (read == stopped).then_some(())
    });
    w.run(ms(100));
    w.transfer(Side::A, a, b, 1 << 20, secs(10));
}

/// Writes until the peer, which reads nothing, has no room.
fn fill(w: &mut World, a: FlowId) {
    for _ in 0..100 {
        w.a.write(a, &[0; 64_000]);
        w.run(ms(20));
    }
}

#[test]
fn a_window_opens_in_large_steps() {
    let mut w = World::new(6, ms(10));
    let (a, b) = w.connect(80);
    fill(&mut w, a);
    w.record = true;
    for _ in 0..100 {
        w.b.consume(b, 10);
        w.flush();
    }
    assert!(w.log.iter().all(|(side, _)| *side == Side::A), "no update for less than two segments");
    w.b.consume(b, 1_440);
    w.flush();
    assert_eq!(w.log.iter().filter(|(side, _)| *side == Side::B).count(), 1);
}

#[test]
fn a_lost_window_update_is_found_by_probing() {
    let mut w = World::new(6, ms(10));
    let (a, b) = w.connect(80);
    fill(&mut w, a);
    w.link.get_mut(&Side::B).unwrap().dead = true;
    w.read(Side::B, b);
    w.run(ms(100));
    w.link.get_mut(&Side::B).unwrap().dead = false;
    let now = w.now;
    w.a.kick_peer(now, world::PEER);
    w.until(ms(200), |w| (!w.read(Side::B, b).is_empty()).then_some(()));
}

#[test]
fn a_lost_window_update_is_found_after_a_timeout_at_the_closed_window() {
    let mut w = World::new(6, ms(10));
    let (a, b) = w.connect(80);
    fill(&mut w, a);
    // What leaves after a change of the path reaches beyond B's closed window, and its timer ends there.
    let now = w.now;
    w.a.kick_peer(now, world::PEER);
    w.run(secs(30));
    w.link.get_mut(&Side::B).unwrap().dead = true;
    w.read(Side::B, b);
    w.run(ms(100));
    w.link.get_mut(&Side::B).unwrap().dead = false;
    w.until(secs(65), |w| (!w.read(Side::B, b).is_empty()).then_some(()));
}

#[test]
fn acks_count_while_the_peers_window_is_closed() {
    let mut w = World::new(5, ms(10));
    let (a, b) = w.connect(80);
    fill(&mut w, a);
    // The probe after a change of the path reaches beyond B's closed window.
    let now = w.now;
    w.a.kick_peer(now, world::PEER);
    w.run(ms(100));
    let took = w.transfer(Side::B, b, a, 500_000, secs(5));
    assert!(took < secs(2), "{took:?}");
}

#[test]
fn acks_count_after_a_probe_was_taken_unseen() {
    let mut w = World::new(5, ms(10));
    let (a, b) = w.connect(80);
    // The last bytes of B's room are too few for its window field: probes carry them one by one, ever more slowly.
    let whole = 262_143;
    let mut written = 0;
    w.until(secs(10), |w| {
        written += w.a.write(a, &vec![7; whole - written]);
        (written == whole).then_some(())
    });
    w.run(secs(300));
    // B has room again, but the news of it is lost. The next probe's byte is taken; it was A's last.
    w.link.get_mut(&Side::B).unwrap().dead = true;
    let mut read = w.read(Side::B, b).len();
    assert_eq!(read, whole - 1);
    w.until(secs(130), |w| {
        read += w.read(Side::B, b).len();
        (read == whole).then_some(())
    });
    w.link.get_mut(&Side::B).unwrap().dead = false;
    w.run(secs(2));
    // From now on A has nothing but bare ACKs to say.
    let took = w.transfer(Side::B, b, a, 500_000, secs(5));
    assert!(took < secs(2), "{took:?}");
}

#[test]
fn a_peer_without_room_pauses_its_flows_and_nothing_is_lost_or_spun_on() {
    let mut w = World::new(7, ms(10));
    let (a, b) = w.connect(80);
    w.open.insert(Side::A, false);
    let data: Vec<u8> = (0..12_000).map(world::pattern).collect();
    w.write_all(Side::A, a, &data);
    w.write_all(Side::B, b, b"ack me");
    let asked = std::cell::Cell::new(0);
    w.run(secs(1));
    let now = w.now;
    let mut buf = [0; MTU];
    assert!(
        w.a.poll_transmit(now, &mut buf, &mut |_, _| {
            asked.set(asked.get() + 1);
            false
        })
        .is_none()
    );
    assert!(asked.get() < 10, "{} questions in a round", asked.get());
    assert!(w.a.has_waiting());
    w.open.insert(Side::A, true);
    assert_eq!(w.read_exactly(Side::B, b, data.len(), secs(5)), data);
    assert_eq!(w.a.stats(a).unwrap().retransmits, 0);
    w.run(secs(1));
    assert!(!w.a.has_waiting());
}

#[test]
fn keystrokes_pass_bulk_and_bulk_flows_take_turns_of_sixteen() {
    let mut w = World::new(8, ms(50));
    let (one, one_far) = w.connect(3);
    let (two, two_far) = w.connect(3);
    let (key, _) = w.connect(22);
    for (flow, far) in [(one, one_far), (two, two_far)] {
        w.transfer(Side::A, flow, far, 1 << 20, secs(10));
    }
    w.run(secs(1));
    w.open.insert(Side::A, false);
    w.write_all(Side::A, one, &[1; 60_000]);
    w.write_all(Side::A, two, &[2; 60_000]);
    w.write_all(Side::A, key, b"k");
    let now = w.now;
    let mut buf = [0; MTU];
    let mut order = Vec::new();
    while let Some(packet) = w.a.poll_transmit(now, &mut buf, &mut |_, _| true) {
        order.push(packet.flow.unwrap());
    }
    assert_eq!(order[0], key);
    assert!(order[1..17].iter().all(|f| *f == order[1]) && order[17..33].iter().all(|f| *f == order[17]));
    assert_ne!(order[1], order[17]);
    assert_eq!(order.iter().filter(|f| **f == one).count(), order.iter().filter(|f| **f == two).count());
}

#[test]
fn buffers_shrink_beyond_the_budget() {
    let mut w = World::new(9, ms(10));
    w.b = Netstack::new(Config { budget_bytes: 3 << 20 }, Rng::from_u64(1));
    w.b.set_addresses(vec![Side::B.ip()]);
    let mut capacity = Vec::new();
    for _ in 0..2 {
        let (flow, _) = w.connect(22);
        let mut total = 0;
        for _ in 0..400 {
            total += w.a.write(flow, &[0; 10_000]);
            w.run(ms(20));
        }
        capacity.push(total);
    }
    // What the reader, who reads nothing, takes, and at most 64 KiB that wait with the writer.
    assert!((1_048_576..1_200_000).contains(&capacity[0]), "{capacity:?}");
    assert!((65_536..200_000).contains(&capacity[1]), "{capacity:?}");
}
