use super::*;

#[test]
fn a_connection_carries_bytes_both_ways_and_then_falls_silent() {
    let mut w = World::new(1, ms(20));
    let start = w.now;
    let (a, b) = w.connect(22);
    assert_eq!(w.now - start, ms(60), "the dialler is connected after one round trip, the listener after one and a half");
    w.write_all(Side::A, a, b"hello");
    assert_eq!(w.read_exactly(Side::B, b, 5, secs(1)), b"hello");
    w.write_all(Side::B, b, b"world");
    assert_eq!(w.read_exactly(Side::A, a, 5, secs(1)), b"world");
    w.run(secs(5));
    assert_eq!((w.a.poll_timeout(), w.b.poll_timeout()), (None, None));
    assert_eq!(w.a.stats(a).unwrap().retransmits, 0);
    assert_eq!((w.a.counters().syns, w.b.counters().syns), (1, 1));
}

#[test]
fn ten_megabytes_arrive_whole_through_loss_on_both_ways() {
    let mut w = World::new(2, ms(5));
    w.links(|l| l.loss = 0.01);
    let (a, b) = w.connect(3);
    for (side, from, to) in [(Side::A, a, b), (Side::B, b, a)] {
        let took = w.transfer(side, from, to, 10 << 20, secs(60));
        assert!(took < secs(10), "{took:?}");
    }
}

#[test]
fn reordered_packets_arrive_in_order() {
    let mut w = World::new(3, ms(5));
    w.links(|l| (l.reorder, l.jitter) = (0.2, ms(8)));
    let (a, b) = w.connect(22);
    w.transfer(Side::A, a, b, 2 << 20, secs(120));
    w.transfer(Side::B, b, a, 2 << 20, secs(120));
}
