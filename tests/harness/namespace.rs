//! Network namespaces with a server in the middle, made and removed by the test.
//!
//! ```text
//!   client 10.99.1.2 ──── 10.99.1.1 hub 10.99.2.1 ──── 10.99.2.2 router 10.99.3.1 ──── 10.99.3.2 agent
//! ```
//! The hub forwards between its two sides; the router masquerades the agent's side behind its own address.
//! Names hold the test's process id, the addresses exist inside the namespaces alone.

use super::process::{run_within, text};
use std::{
    ffi::OsStr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// A command that runs in a namespace, or here.
pub fn command_in(namespace: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    match namespace {
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// The same command where file systems are mounted that nobody else sees; `mounts` are commands of a shell. Needs root,
/// `unshare` and `mount`.
pub fn with_mounts(mounts: &str, command: &Command) -> Command {
    let mut own = Command::new("unshare");
    own.args(["-m", "--propagation", "private", "sh", "-c", &format!("{mounts} && exec \"$0\" \"$@\"")]);
    own.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => own.env(name, value),
            None => own.env_remove(name),
        };
    }
    own
}

/// What [`with_mounts`] needs beside root.
pub const MOUNT_TOOLS: [&str; 2] = ["unshare", "mount"];

/// The four namespaces.
pub struct Network {
    pub client: String,
    pub hub: String,
    router: String,
    pub agent: String,
}

/// The hub's address as the client and the agent reach it.
pub const HUB: &str = "10.99.0.1";

impl Network {
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = |part: &str| format!("tailnet-{}-{number}-{part}", std::process::id());
        let network = Self { client: name("client"), hub: name("hub"), router: name("router"), agent: name("agent") };
        let Self { client, hub, router, agent } = &network;
        for namespace in [client, hub, router, agent] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        link((client, "10.99.1.2"), (hub, "10.99.1.1"), "c");
        link((router, "10.99.2.2"), (hub, "10.99.2.1"), "r");
        link((agent, "10.99.3.2"), (router, "10.99.3.1"), "a");
        ip(&format!("-n {hub} addr add {HUB}/32 dev lo"));
        ip(&format!("-n {client} route add default via 10.99.1.1"));
        ip(&format!("-n {router} route add default via 10.99.2.1"));
        ip(&format!("-n {agent} route add default via 10.99.3.1"));
        for forwarding in [hub, router] {
            tool(command_in(Some(forwarding), "sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]));
        }
        network.nft(router, "add table ip nat");
        network.nft(router, "add chain ip nat out { type nat hook postrouting priority 100 ; }");
        network.nft(router, "add rule ip nat out oifname r-outer masquerade");
        // As a home router: what nobody asked for is dropped, not answered.
        network.nft(router, "add table ip guard");
        network.nft(router, "add chain ip guard in { type filter hook input priority 0 ; }");
        network.nft(router, "add rule ip guard in iifname r-outer meta l4proto udp drop");
        network
    }

    /// From now on the hub lets no UDP through between client and agent; the relay's TCP goes on.
    pub fn cut_udp(&self) {
        self.nft(&self.hub, "add table inet cut");
        self.nft(&self.hub, "add chain inet cut way { type filter hook forward priority 0 ; }");
        self.nft(&self.hub, "add rule inet cut way meta l4proto udp counter drop");
    }

    pub fn repair_udp(&self) {
        self.nft(&self.hub, "delete table inet cut");
    }

    fn nft(&self, namespace: &str, rule: &str) {
        tool(command_in(Some(namespace), "nft").args(rule.split(' ')));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.hub, &self.router, &self.agent] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// Joins two namespaces; the first one's end is `NAME-outer`, the hub's or router's `NAME-inner`.
fn link((a, a_address): (&str, &str), (b, b_address): (&str, &str), name: &str) {
    ip(&format!("-n {a} link add {name}-outer type veth peer name {name}-inner netns {b}"));
    for (namespace, end, address) in [(a, "outer", a_address), (b, "inner", b_address)] {
        ip(&format!("-n {namespace} addr add {address}/24 dev {name}-{end}"));
        ip(&format!("-n {namespace} link set {name}-{end} up"));
    }
}

fn ip(args: &str) {
    tool(Command::new("ip").args(args.split(' ')));
}

fn tool(command: &mut Command) {
    let shown = format!("{command:?}");
    let mut owned = Command::new(command.get_program());
    owned.args(command.get_args());
    let out = run_within(owned, b"", Duration::from_secs(20));
    assert!(out.status.success(), "{shown}: {}", text(&out.stderr));
}
