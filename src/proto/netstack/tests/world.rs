use super::super::*;
use std::collections::BTreeMap;

pub(super) const PEER: PeerIx = PeerIx(7);

pub(super) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(super) fn ip(self) -> Ipv6Addr {
        match self {
            Self::A => "fd7a:115c:a1e0::a".parse().unwrap(),
            Self::B => "fd7a:115c:a1e0::b".parse().unwrap(),
        }
    }

    pub(super) fn addr(self, port: u16) -> SocketAddrV6 {
        SocketAddrV6::new(self.ip(), port, 0, 0)
    }
}

/// One direction of the way between the stacks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) delay: Duration,
    pub(super) loss: f64,
    /// Chance that a packet comes up to `jitter` later.
    pub(super) reorder: f64,
    pub(super) jitter: Duration,
    /// Bytes per second; 0 is unlimited.
    pub(super) rate: u64,
    /// What the queue in front of the bottleneck holds, as time.
    pub(super) queue: Duration,
    /// Nothing passes.
    pub(super) dead: bool,
}

impl Link {
    pub(super) const fn new(delay: Duration) -> Self {
        Self { delay, loss: 0.0, reorder: 0.0, jitter: Duration::ZERO, rate: 0, queue: secs(1), dead: false }
    }
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) a: Netstack,
    pub(super) b: Netstack,
    pub(super) link: BTreeMap<Side, Link>,
    /// Whether the node below has room for packets of this side.
    pub(super) open: BTreeMap<Side, bool>,
    busy_until: BTreeMap<Side, Instant>,
    flying: BTreeMap<(Instant, u64), (Side, Vec<u8>)>,
    rng: Rng,
    sent: u64,
    pub(super) events: BTreeMap<Side, VecDeque<Event>>,
    /// Packets that left a side, newest last, when recording.
    pub(super) log: Vec<(Side, Vec<u8>)>,
    pub(super) record: bool,
    pub(super) drops: u64,
}

impl World {
    pub(super) fn new(seed: u64, delay: Duration) -> Self {
        let mut rng = Rng::from_u64(seed);
        let mut stack = |side: Side| {
            let mut stack = Netstack::new(Config::default(), rng.split());
            stack.set_addresses(vec![side.ip()]);
            stack
        };
        let (a, b) = (stack(Side::A), stack(Side::B));
        let both = |link: Link| BTreeMap::from([(Side::A, link), (Side::B, link)]);
        Self {
            now: Instant::from_nanos(1_000_000_000),
            a,
            b,
            link: both(Link::new(delay)),
            open: BTreeMap::from([(Side::A, true), (Side::B, true)]),
            busy_until: BTreeMap::new(),
            flying: BTreeMap::new(),
            rng,
            sent: 0,
            events: BTreeMap::from([(Side::A, VecDeque::new()), (Side::B, VecDeque::new())]),
            log: Vec::new(),
            record: false,
            drops: 0,
        }
    }

    pub(super) fn links(&mut self, change: impl Fn(&mut Link)) {
        self.link.values_mut().for_each(change);
    }

    pub(super) fn stack(&mut self, side: Side) -> &mut Netstack {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    /// Sends whatever both stacks have and collects their events; time stands still.
    pub(super) fn flush(&mut self) {
        for side in [Side::A, Side::B] {
            let (open, now) = (self.open[&side], self.now);
            let mut buf = [0; MTU];
            let mut rounds = 0;
            while let Some(packet) = self.stack(side).poll_transmit(now, &mut buf, &mut |_, _| open) {
                assert_eq!(packet.peer, PEER);
                assert!(packet.len <= MTU);
                self.carry(side, buf[..packet.len].to_vec());
                rounds += 1;
                assert!(rounds < 100_000, "the stack sends without end");
            }
            while let Some(event) = self.stack(side).poll_event() {
                self.events.get_mut(&side).unwrap().push_back(event);
            }
        }
    }

    fn carry(&mut self, from: Side, packet: Vec<u8>) {
        if self.record {
            self.log.push((from, packet.clone()));
        }
        let link = self.link[&from];
        if link.dead || self.rng.chance(link.loss) {
            self.drops += 1;
            return;
        }
        let mut at = self.now;
        if let Some(sending) = (packet.len() as u64 * 1_000_000_000).checked_div(link.rate) {
            let free = self.busy_until.get(&from).copied().unwrap_or(self.now).max(self.now);
            if free - self.now > link.queue {
                self.drops += 1;
                return;
            }
            at = free + Duration::from_nanos(sending);
            self.busy_until.insert(from, at);
        }
        at += link.delay;
        if self.rng.chance(link.reorder) {
            at += self.rng.between(Duration::ZERO, link.jitter);
        }
        self.sent += 1;
        self.flying.insert((at, self.sent), (from.other(), packet));
    }

    /// The next moment at which something happens.
    fn next(&self) -> Option<Instant> {
        let arrival = self.flying.keys().next().map(|(at, _)| *at);
        [arrival, self.a.poll_timeout().map(|d| d.at), self.b.poll_timeout().map(|d| d.at)].into_iter().flatten().min()
    }

    /// Moves on to the next arrivals or deadline, not beyond `end`. False when nothing is left before it.
    pub(super) fn step(&mut self, end: Instant) -> bool {
        self.flush();
        let Some(at) = self.next().filter(|at| *at <= end) else {
            self.now = end;
            return false;
        };
        self.now = at.max(self.now);
        while let Some(entry) = self.flying.first_entry()
            && entry.key().0 <= self.now
        {
            let (to, packet) = entry.remove();
            let now = self.now;
            self.stack(to).handle_packet(now, PEER, &packet);
        }
        let now = self.now;
        self.a.handle_timeout(now);
        self.b.handle_timeout(now);
        self.flush();
        true
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut still = 0;
        let mut last = self.now;
        while self.step(end) {
            still = if self.now == last { still + 1 } else { 0 };
            last = self.now;
            assert!(still < 10_000, "time stands still: {:?} {:?}", self.a.poll_timeout(), self.b.poll_timeout());
        }
    }

    /// Runs until `done` gives something, for at most `time`.
    pub(super) fn until<T>(&mut self, time: Duration, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = self.now + time;
        loop {
            self.flush();
            if let Some(found) = done(self) {
                return found;
            }
            assert!(self.step(end), "nothing came of it within {time:?}");
        }
    }

    pub(super) fn event(&mut self, side: Side, test: impl Fn(&Event) -> bool) -> Option<Event> {
        let events = self.events.get_mut(&side).unwrap();
        let at = events.iter().position(test)?;
        events.remove(at)
    }

    pub(super) fn incoming(&mut self, side: Side) -> Option<IncomingKey> {
        match self.event(side, |e| matches!(e, Event::Incoming { .. }))? {
            Event::Incoming { key, peer } => {
                assert_eq!(peer, PEER);
                Some(key)
            }
            _ => None,
        }
    }

    pub(super) fn closed(&mut self, side: Side, flow: FlowId) -> Option<CloseReason> {
        match self.event(side, |e| matches!(e, Event::Closed { flow: f, .. } if *f == flow))? {
            Event::Closed { reason, .. } => Some(reason),
            _ => None,
        }
    }

    pub(super) fn dial(&mut self, from: Side, port: u16) -> FlowId {
        let now = self.now;
        self.stack(from).dial(now, PEER, from.ip(), from.other().addr(port))
    }

    pub(super) fn accept(&mut self, side: Side, time: Duration) -> FlowId {
        let key = self.until(time, |w| w.incoming(side));
        let now = self.now;
        self.stack(side).accept(now, key).expect("the request still waits")
    }

    /// An open connection from A to `port` of B.
    pub(super) fn connect(&mut self, port: u16) -> (FlowId, FlowId) {
        self.b.listen(port);
        let a = self.dial(Side::A, port);
        let b = self.accept(Side::B, secs(10));
        for (side, flow) in [(Side::A, a), (Side::B, b)] {
            self.until(secs(30), |w| w.event(side, |e| *e == Event::Connected { flow }));
        }
        (a, b)
    }

    /// Reads everything that is there.
    pub(super) fn read(&mut self, side: Side, flow: FlowId) -> Vec<u8> {
        let stack = self.stack(side);
        let mut all = Vec::new();
        loop {
            let bytes = stack.readable(flow);
            let n = bytes.len();
            if n == 0 {
                return all;
            }
            all.extend_from_slice(bytes);
            stack.consume(flow, n);
        }
    }

    pub(super) fn read_exactly(&mut self, side: Side, flow: FlowId, len: usize, time: Duration) -> Vec<u8> {
        let mut all = Vec::new();
        self.until(time, |w| {
            all.extend(w.read(side, flow));
            (all.len() >= len).then_some(())
        });
        all
    }

    pub(super) fn write_all(&mut self, side: Side, flow: FlowId, bytes: &[u8]) {
        assert_eq!(self.stack(side).write(flow, bytes), bytes.len());
    }

    /// Sends `len` patterned bytes from `side` and checks them on the other; how long it took.
    pub(super) fn transfer(&mut self, side: Side, from: FlowId, to: FlowId, len: usize, time: Duration) -> Duration {
        let start = self.now;
        let (mut written, mut read) = (0, 0);
        self.until(time, |w| {
            loop {
                let room = w.stack(side).room(from).min(len - written).min(64 * 1024);
                let chunk: Vec<u8> = (written..written + room).map(pattern).collect();
                let n = w.stack(side).write(from, &chunk);
                written += n;
                if n == 0 {
                    break;
                }
            }
            let bytes = w.read(side.other(), to);
            for byte in bytes {
                assert_eq!(byte, pattern(read), "byte {read}");
                read += 1;
            }
            (read == len).then_some(())
        });
        self.now - start
    }
}

pub(super) fn pattern(n: usize) -> u8 {
    (n ^ (n >> 8) ^ (n >> 16)) as u8
}
