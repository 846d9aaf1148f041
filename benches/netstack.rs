//! Cost of the embedded stack alone: two stacks in one thread, packets handed over in batches, nothing encrypted.
//!
//! Prints goodput, nanoseconds and heap allocations for each packet, with no, 100 and 1,000 idle flows beside the busy
//! one. Fails when a packet in steady state allocates.
#![allow(unsafe_code, reason = "a counting allocator")]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a bench")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::{Ipv6Addr, SocketAddrV6},
    sync::atomic::{AtomicU64, Ordering},
};
use tailnet::{
    base::{FlowId, Instant, PeerIx, Rng},
    proto::netstack::{Config, Event, Netstack},
    wire::ip::MTU,
};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PEER: PeerIx = PeerIx(1);
const A: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);
const B: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 2);
/// Packets handed over before the other side's turn, as a socket's receive batch would.
const BATCH: usize = 64;

struct Pair {
    a: Netstack,
    b: Netstack,
    start: std::time::Instant,
    packets: u64,
}

impl Pair {
    fn new() -> Self {
        let stack = |ip, seed| {
            let mut stack = Netstack::new(Config::default(), Rng::from_u64(seed));
            stack.set_addresses(vec![ip]);
            stack
        };
        Self { a: stack(A, 1), b: stack(B, 2), start: std::time::Instant::now(), packets: 0 }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.start.elapsed().as_nanos() as u64)
    }

    fn turn(&mut self) {
        let now = self.now();
        self.packets += pass(now, &mut self.a, &mut self.b) + pass(now, &mut self.b, &mut self.a);
    }

    fn connect(&mut self, port: u16) -> (FlowId, FlowId) {
        self.b.listen(port);
        let now = self.now();
        let near = self.a.dial(now, PEER, A, SocketAddrV6::new(B, port, 0, 0));
        let mut far = None;
        for _ in 0..10 {
            self.turn();
            while let Some(event) = self.b.poll_event() {
                if let Event::Incoming { key, .. } = event {
                    let now = self.now();
                    far = self.b.accept(now, key);
                }
            }
        }
        (near, far.expect("the connection is accepted"))
    }

    fn pump(&mut self, near: FlowId, far: FlowId, bytes: usize) {
        let data = [7; 16 * 1024];
        let mut read = 0;
        while read < bytes {
            while self.a.write(near, &data) == data.len() {}
            self.turn();
            loop {
                let n = self.b.readable(far).len();
                if n == 0 {
                    break;
                }
                self.b.consume(far, n);
                read += n;
            }
            while self.a.poll_event().is_some() || self.b.poll_event().is_some() {}
        }
    }
}

/// Hands over one batch.
fn pass(now: Instant, from: &mut Netstack, to: &mut Netstack) -> u64 {
    let mut buf = [0; MTU];
    let mut packets = 0;
    while packets < BATCH
        && let Some(packet) = from.poll_transmit(now, &mut buf, &mut |_, _| true)
    {
        to.handle_packet(now, PEER, &buf[..packet.len]);
        packets += 1;
    }
    if from.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
        from.handle_timeout(now);
    }
    packets as u64
}

fn main() {
    let mut wasteful = false;
    for idle in [0, 100, 1_000] {
        let mut pair = Pair::new();
        for _ in 0..idle {
            pair.connect(80);
        }
        let (near, far) = pair.connect(3);
        pair.pump(near, far, 64 << 20);
        let (packets, allocations, start) = (pair.packets, ALLOCATIONS.load(Ordering::Relaxed), std::time::Instant::now());
        let bytes = 512 << 20;
        pair.pump(near, far, bytes);
        let (took, packets) = (start.elapsed(), pair.packets - packets);
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - allocations;
        println!(
            "netstack, {idle} idle flows: {:.0} Mbit/s goodput, {:.0} ns and {:.4} allocations a packet ({packets} packets, both ends)",
            bytes as f64 * 8.0 / took.as_secs_f64() / 1e6,
            took.as_nanos() as f64 / packets as f64,
            allocations as f64 / packets as f64,
        );
        wasteful |= allocations * 1_000 > packets;
    }
    assert!(!wasteful, "packets in steady state allocate");
}
