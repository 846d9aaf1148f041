//! Real kernels between client and agent: a NAT, a firewall that turns UDP off, an agent that dies. Needs root.
#![cfg(all(target_os = "linux", feature = "cli", feature = "agent", feature = "server"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]
#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]

#[path = "../harness/mod.rs"]
mod harness;

use harness::{
    LIMIT, Process, Server, have_namespaces,
    namespace::{HUB, Network},
    process::{run, text},
};
use std::time::{Duration, Instant};

/// A server in the hub and a workspace `two` behind the NAT.
struct Lab {
    agent: Process,
    token: String,
    server: Server,
    network: Network,
}

impl Lab {
    fn new() -> Self {
        let network = Network::new();
        let server = Server::start_in(Some(&network.hub), tempfile::tempdir().unwrap(), &format!("{HUB}:0"), &[]);
        let token = server.create("two");
        let agent = server.agent_in(Some(&network.agent), &token);
        Self { agent, token, server, network }
    }

    fn coder(&self, arguments: &[&str]) -> std::process::Command {
        self.server.coder_in(Some(&self.network.client), &self.server.token, arguments)
    }

    /// A session whose remote side counts up every 100 ms, on a direct path.
    fn ticking(&self) -> Ticks {
        let count = "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.1; done";
        let mut process = Process::start("coder ssh", self.coder(&["ssh", "-v", "two", "--", count]));
        process.wait_for("to=direct");
        let mut ticks = Ticks { process, next: 0, last: Instant::now() };
        // Those that came before the upgrade.
        let before = ticks.process.seen.iter().filter(|line| line.starts_with("tick ")).count();
        ticks.next = u64::try_from(before).unwrap();
        ticks
    }
}

/// The ticks as they arrive; each must be the next one.
struct Ticks {
    process: Process,
    next: u64,
    last: Instant,
}

impl Ticks {
    /// Takes one line; gives the gap before it when it is a tick.
    fn line(&mut self) -> (String, Option<Duration>) {
        let (at, line) = self.process.next_line(LIMIT).expect("the stream goes on");
        let Some(number) = line.strip_prefix("tick ") else { return (line, None) };
        assert_eq!(number.parse(), Ok(self.next), "no tick is lost or told twice");
        self.next += 1;
        let gap = at.saturating_duration_since(self.last);
        self.last = at;
        (line, Some(gap))
    }

    /// How many lines have come.
    fn mark(&self) -> usize {
        self.process.seen.len()
    }

    /// Takes lines until one behind `mark` holds `text`, or the limit is over.
    fn until(&mut self, mark: usize, text: &str, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.process.seen[mark..].iter().any(|line| line.contains(text)) {
            self.line();
            assert!(Instant::now() < end, "no {text:?} within {limit:?}:\n{}", self.process.seen.join("\n"));
        }
    }

    /// The longest silence within the next `count` ticks.
    fn longest_gap(&mut self, count: usize) -> Duration {
        std::iter::from_fn(|| Some(self.line().1)).flatten().take(count).max().unwrap()
    }
}

#[test]
fn an_agent_behind_nat_is_reached_and_becomes_direct() {
    if !have_namespaces() {
        return;
    }
    let lab = Lab::new();
    let out = run(lab.coder(&["ssh", "two", "--", "echo from $CODER_WORKSPACE_NAME"]), b"");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "from two\n".into()), "{}", text(&out.stderr));
    let started = Instant::now();
    let mut shell = Process::start("coder ssh", lab.coder(&["ssh", "-v", "two", "--", "cat"]));
    shell.wait_within("to=direct", Duration::from_secs(15));
    println!("direct through the NAT {:?} after the start", started.elapsed());
    shell.type_in(b"over the direct path\n");
    shell.wait_for("over the direct path");
    assert_eq!(shell.finish(LIMIT).code(), Some(0));
    let out = run(lab.coder(&["ping", "two", "-n", "5", "--wait", "200ms"]), b"");
    let last = text(&out.stdout).lines().rfind(|l| l.starts_with("pong from two ")).map(str::to_owned);
    assert!(last.as_ref().is_some_and(|l| l.contains("p2p via 10.99.2.2:")), "the agent shows as its NAT: {last:?}");
}

#[test]
fn a_stream_survives_udp_being_cut_and_returns_to_direct() {
    if !have_namespaces() {
        return;
    }
    let lab = Lab::new();
    let mut ticks = lab.ticking();
    let quiet = ticks.longest_gap(20);
    let mark = ticks.mark();
    lab.network.cut_udp();
    let silence = ticks.longest_gap(30);
    println!("UDP cut under a stream that ticks every 100 ms: silence {silence:?} (before: {quiet:?}; aim ≤ 1 s)");
    assert!(silence <= Duration::from_secs(3), "silent for {silence:?}");
    ticks.until(mark, "to=relay", Duration::from_secs(20));
    let after = ticks.longest_gap(20);
    assert!(after <= Duration::from_secs(1), "on the relay the stream stutters: {after:?}");
    let mark = ticks.mark();
    lab.network.repair_udp();
    let repaired = Instant::now();
    ticks.until(mark, "to=direct", Duration::from_secs(15));
    println!("direct again {:?} after the repair (aim ≤ 10 s)", repaired.elapsed());
    ticks.longest_gap(20);
}

#[test]
fn a_session_ends_with_the_reason_when_its_agent_died_and_is_back() {
    if !have_namespaces() {
        return;
    }
    let mut lab = Lab::new();
    let mut ticks = lab.ticking();
    ticks.longest_gap(3);
    lab.agent.kill();
    lab.agent = lab.server.agent_in(Some(&lab.network.agent), &lab.token);
    let back = Instant::now();
    let status = ticks.process.wait(Duration::from_secs(5));
    println!("the session ended {:?} after its agent was back", back.elapsed());
    assert_eq!(status.code(), Some(255));
    let ended = ticks.process.finish(LIMIT);
    let said = ended.said();
    let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
    assert!(
        errors.len() == 1 && errors[0].starts_with("error: the connection to ") && errors[0].contains(" was lost: "),
        "{said}"
    );
    println!("{}", errors[0]);
    // And whoever connects now is served by the new one.
    let out = run(lab.coder(&["ssh", "two", "--", "echo new"]), b"");
    assert_eq!(text(&out.stdout), "new\n", "{}", text(&out.stderr));
}
