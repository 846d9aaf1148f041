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
    /// How many of the agent's lines belong to sessions that were looked at already.
    checked: usize,
    /// What the agent had sent by relay when the last of them had ended.
    agent_relayed: u64,
    /// What all clients together have sent by relay.
    clients_relayed: u64,
}

/// What one end counted: when its path became direct (on a relayed way: at the start), and at the end of the session.
struct Proof {
    before: Counters,
    after: Counters,
}

/// Runs a claim on all three ways.
pub(crate) fn on_every_way(claim: impl Fn(&mut Lab)) {
    if !have(&["ssh"]) {
        return;
    }
    let _turn = crate::turn();
    for way in [Way::Direct, Way::Derp, Way::WebSocket] {
        println!("{way:?}");
        claim(&mut Lab::new(way));
    }
}

impl Lab {
    pub(crate) fn new(way: Way) -> Self {
        let server = Server::start(if way == Way::WebSocket { &["--derp-force-websockets"] } else { &[] });
        let agent = server.workspace(WORKSPACE);
        Self { way, server, agent, checked: 0, agent_relayed: 0, clients_relayed: 0 }
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

    /// The same with OpenSSH in a terminal, which shows the log too.
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

    /// Waits for the end of what [`Lab::start_in_terminal`] started, proves its way and gives the exit status.
    pub(crate) fn finish(&mut self, mut terminal: Terminal) -> Option<i32> {
        // The last thing that the client says.
        terminal.wait_for("cli::connect: counters ");
        terminal.wait_for("\n");
        let code = terminal.wait(AT_ONCE).code();
        let lines: Vec<String> = terminal.shown().lines().map(str::to_owned).collect();
        self.prove(&lines);
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
        // The agent prints its counters when the session's end has reached it.
        self.agent.wait_for("agent::services: counters ");
        self.prove_path(client);
        let client = self.way.prove("client", client);
        let agent = self.way.prove("agent", &self.agent.seen[self.checked..]);
        if self.way == Way::Direct {
            // What one end sent by relay before its own upgrade may reach the other after that one's: no end's count of such
            // packets has to stand still from its upgrade on. But nobody receives more than was sent, and after its upgrade
            // neither sent any.
            let sent = agent.before.sent_relay - self.agent_relayed;
            assert!(client.after.received_relay <= sent, "relayed to the client: {} of {sent}", client.after.received_relay);
            self.clients_relayed += client.before.sent_relay;
            let (got, sent) = (agent.after.received_relay, self.clients_relayed);
            assert!(got <= sent, "relayed to the agent: {got} of {sent}");
        }
        self.agent_relayed = agent.after.sent_relay;
        self.checked = self.agent.seen.len();
    }

    /// Both ends of a running session are on the path under test. All that can be shown of one whose client is killed then:
    /// its last counters need not come.
    pub(crate) fn prove_running(&mut self, client: &mut Process) {
        let runs = "agent::ssh::session: session ";
        if !self.agent.seen[self.checked..].iter().any(|line| line.contains(runs)) {
            self.agent.wait_for(runs);
        }
        self.prove_path(client.drain());
    }

    fn prove_path(&self, client: &[String]) {
        self.way.prove_path("client", client, client);
        self.way.prove_path("agent", &self.agent.seen[self.checked..], &self.agent.seen);
    }
}

impl Way {
    /// `session` holds what one end said during one session, `all` what it said since the process's start.
    fn prove_path(self, end: &str, session: &[String], all: &[String]) {
        if self == Self::Direct {
            // Fails unless the path became direct and stayed so.
            Counters::at_upgrade(session);
            return;
        }
        let transport = if self == Self::Derp { "transport=derp" } else { "transport=websocket" };
        let connected: Vec<_> = all.iter().filter(|line| line.contains("relay connected")).collect();
        assert!(!connected.is_empty() && connected.iter().all(|l| l.contains(transport)), "{end}: {connected:?}");
        let direct = all.iter().find(|line| line.contains("path changed") && line.contains("to=direct"));
        assert_eq!(direct, None, "the {end} became direct");
    }

    /// The counters of one end in `session`, the lines of one session, show data on this way only.
    fn prove(self, end: &str, session: &[String]) -> Proof {
        let after = Counters::last(session);
        if self == Self::Direct {
            let before = Counters::at_upgrade(session);
            let moved = after.sent_udp > before.sent_udp && after.received_udp > before.received_udp;
            assert!(moved, "the {end} did not send and receive direct: {before:?} {after:?}");
            assert_eq!(after.sent_relay, before.sent_relay, "the {end} still used the relay after the upgrade");
            return Proof { before, after };
        }
        let before = Counters::all(session).swap_remove(0);
        let moved = after.sent_relay > before.sent_relay && after.received_relay > before.received_relay;
        assert!(moved, "the {end} did not send and receive by relay: {before:?} {after:?}");
        assert_eq!((after.sent_udp, after.received_udp), (0, 0), "the {end} sent or received direct");
        Proof { before, after }
    }
}

/// A time that no step may need that is said to happen "at once".
pub(crate) const AT_ONCE: Duration = Duration::from_secs(5);
