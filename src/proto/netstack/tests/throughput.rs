//! Goodput over links like those that people sit behind. The bounds are what the stack reaches, with some room.

use super::*;

/// Mbit/s for `len` bytes over a link with this round trip, rate and queue, and random loss on both ways.
fn goodput(rtt: u64, mbit: u64, queue: u64, loss: f64, len: usize) -> f64 {
    let mut w = World::new(17, ms(rtt / 2));
    w.links(|l| (l.rate, l.queue, l.loss) = (mbit * 125_000, ms(queue), loss));
    let (a, b) = w.connect(3);
    let took = w.transfer(Side::A, a, b, len, secs(600));
    let reached = len as f64 / took.as_secs_f64() / 125_000.0;
    let stats = w.a.stats(a).unwrap();
    println!("{rtt} ms, {mbit} Mbit/s, queue {queue} ms, loss {loss}: {reached:.1} Mbit/s, {} lost, {stats:?}", w.drops);
    reached
}

#[test]
fn clean_links_are_filled_without_a_loss_of_our_making() {
    for (rtt, mbit, queue, least) in [
        (40, 200, 100, 155.0),
        (10, 100, 100, 85.0),
        (100, 50, 120, 30.0),
        (40, 20, 100, 17.0),
        (40, 5, 500, 4.3),
        (2, 1_000, 20, 900.0),
    ] {
        let len = (mbit as usize * 125_000 * 4).min(60 << 20);
        let reached = goodput(rtt, mbit, queue, 0.0, len);
        assert!(reached >= least, "{rtt} ms, {mbit} Mbit/s: {reached}");
    }
}

#[test]
fn random_loss_is_not_taken_for_congestion() {
    // Go reaches 8 and 2.5 Mbit/s on this link.
    assert!(goodput(40, 200, 100, 0.001, 20 << 20) > 40.0);
    assert!(goodput(40, 200, 100, 0.01, 5 << 20) > 10.0);
}

#[test]
fn shallow_queues_do_not_break_a_transfer() {
    for (rtt, mbit, queue, least) in [(40, 50, 10, 12.0), (40, 50, 40, 20.0), (10, 20, 5, 8.0), (100, 20, 30, 3.0)] {
        let reached = goodput(rtt, mbit, queue, 0.0, 10 << 20);
        assert!(reached >= least, "{rtt} ms, {mbit} Mbit/s, queue {queue} ms: {reached}");
    }
}
