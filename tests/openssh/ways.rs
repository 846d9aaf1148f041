//! The three ways through the tunnel, each proven by what both ends counted.

use crate::harness::{
    Server,
    counters::Counters,
    have,
    process::{Finished, LIMIT, Process},
    terminal::Terminal,
};
use std::time::Duration;

/// The workspace of these tests.
const WORKSPACE: &str = "dev";

/// How the bytes of a test travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Derp,
    WebSocket,
}

/// A server, an agent and the way between it and each client.
pub(crate) struct Lab {
    pub(crate) way: Way,
    server: Server,
    agent: Process,
    /// How many of the agent's counters belong to sessions that were looked at already.
    checked: usize,
}

/// Runs a claim on all three ways.
pub(crate) fn on_every_way(claim: impl Fn(&mut Lab)) {
    if !have(&["ssh"]) {
        return;
    }
    for way in [Way::Direct, Way::Derp, Way::WebSocket] {
        println!("{way:?}");
        claim(&mut Lab::new(way));
    }
}

impl Lab {
    pub(crate) fn new(way: Way) -> Self {
        let server = Server::start(if way == Way::WebSocket { &["--derp-force-websockets"] } else { &[] });
        let agent = server.workspace(WORKSPACE);
        Self { way, server, agent, checked: 0 }
    }

    fn flags(&self) -> &'static [&'static str] {
        if self.way == Way::Direct { &["-v"] } else { &["-v", "--disable-direct-connections"] }
    }

    /// OpenSSH with `remote` as its command.
    fn ssh(&self, options: &[&str], remote: &str) -> std::process::Command {
        self.server.ssh(self.flags(), options, WORKSPACE, remote)
    }

    /// Starts OpenSSH without waiting for anything.
    pub(crate) fn connect(&self, options: &[&str], remote: &str) -> Process {
        Process::start_with_output("ssh", self.ssh(options, remote))
    }

    /// Starts OpenSSH and returns when the path is the one under test. The remote command waits until then: what it does
    /// happens on that path alone.
    pub(crate) fn start(&mut self, options: &[&str], remote: &str) -> Process {
        let mut ssh = self.connect(options, &format!("read -r go; {remote}"));
        if self.way == Way::Direct {
            ssh.wait_for("to=direct");
            ssh.wait_for("counters");
            self.agent.wait_for("to=direct");
            self.agent.wait_for("counters");
        } else {
            ssh.wait_for("relay connected");
        }
        ssh.type_in(b"\n");
        ssh
    }

    /// The same with OpenSSH in a terminal; its log goes to `log`.
    pub(crate) fn start_in_terminal(&mut self, remote: &str) -> Terminal {
        let mut terminal = Terminal::start(self.ssh(&["-tt"], &format!("read -r go; {remote}")));
        if self.way == Way::Direct {
            terminal.wait_for("to=direct");
            self.agent.wait_for("to=direct");
        } else {
            terminal.wait_for("relay connected");
        }
        terminal.type_in("\n");
        terminal
    }

    /// Waits for the end of what [`Lab::start_in_terminal`] started, proves its way at the agent and gives the exit status.
    pub(crate) fn finish(&mut self, mut terminal: Terminal) -> Option<i32> {
        let code = terminal.wait(AT_ONCE).code();
        self.prove_agent();
        code
    }

    /// Runs `remote` on the path under test with `input`, to its end, and proves the way.
    pub(crate) fn run(&mut self, options: &[&str], remote: &str, input: Vec<u8>) -> Finished {
        let mut ssh = self.start(options, remote);
        ssh.feed(input);
        let finished = ssh.finish(LIMIT);
        self.prove(&finished.lines);
        finished
    }

    /// Both ends' counters show data on this way only. Every session of a lab is proven before the next one starts.
    pub(crate) fn prove(&mut self, client: &[String]) {
        self.way.prove("client", client, client);
        self.prove_agent();
    }

    fn prove_agent(&mut self) {
        // The agent prints its counters when the session's end has reached it.
        self.agent.wait_for("agent::services: counters ");
        self.way.prove("agent", &self.agent.seen[self.checked..], &self.agent.seen);
        self.checked = self.agent.seen.len();
    }
}

impl Way {
    /// The counters of one end in `session`, the lines of one session, show data on this way only; `all` holds the lines
    /// since the process's start.
    fn prove(self, end: &str, session: &[String], all: &[String]) {
        let after = Counters::last(session);
        match self {
            Self::Direct => {
                let before = Counters::at_upgrade(session);
                assert!(after.sent_udp > before.sent_udp, "the {end} sent nothing direct: {before:?} {after:?}");
                assert_eq!(after.sent_relay, before.sent_relay, "the {end} still used the relay after the upgrade");
            }
            Self::Derp | Self::WebSocket => {
                assert!(after.sent_relay > 0 && after.received_relay > 0, "the {end} did not use the relay: {after:?}");
                assert_eq!((after.sent_udp, after.received_udp), (0, 0), "the {end} sent or received direct");
                let transport = if self == Self::Derp { "transport=derp" } else { "transport=websocket" };
                let connected: Vec<_> = all.iter().filter(|line| line.contains("relay connected")).collect();
                assert!(!connected.is_empty() && connected.iter().all(|l| l.contains(transport)), "{end}: {connected:?}");
            }
        }
    }
}

/// A time that no step may need that is said to happen "at once".
pub(crate) const AT_ONCE: Duration = Duration::from_secs(5);
