//! A network namespace in which one packet in a hundred is lost.

use crate::harness::{namespace::command_in, run_within, text};
use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{fs::File, os::fd::AsFd as _, process::Command, time::Duration};

/// A namespace with one address of its own beside loopback. The thread that made it lives in it, and so does what that
/// thread starts.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it and moves this thread there.
    pub fn enter() -> Result<Self, anyhow::Error> {
        static MADE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("tailnet-{}-loss-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let this = Self { name };
        // Segments of one send are lost one by one, not all at once.
        for words in ["lo up", "lo gso_max_segs 1"] {
            run(Command::new("ip").args(["-n", &this.name, "link", "set"]).args(words.split(' ')))?;
        }
        run(Command::new("ip").args(["-n", &this.name]).args("link add near type veth peer name far".split(' ')))?;
        run(Command::new("ip").args(["-n", &this.name]).args("addr add 10.99.8.1/24 dev near".split(' ')))?;
        for end in ["near", "far"] {
            run(Command::new("ip").args(["-n", &this.name, "link", "set", end, "up"]))?;
        }
        let file = File::open(format!("/run/netns/{}", this.name)).context("the namespace")?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).context("the thread cannot move there")?;
        Ok(this)
    }

    /// From now on one UDP datagram in a hundred is dropped where it arrives.
    pub fn lose(&self) -> Result<(), anyhow::Error> {
        self.nft("add table inet loss")?;
        self.nft("add chain inet loss in { type filter hook input priority 0 ; }")?;
        self.nft("add rule inet loss in meta l4proto udp counter")?;
        self.nft("add rule inet loss in meta l4proto udp numgen random mod 100 == 0 counter drop").map(drop)
    }

    /// Datagrams that came and how many of them were dropped.
    pub fn counted(&self) -> Result<(u64, u64), anyhow::Error> {
        let rules = self.nft("list table inet loss")?;
        let words: Vec<&str> = rules.split_whitespace().collect();
        let mut packets = words.windows(2).filter(|pair| pair[0] == "packets").map(|pair| pair[1].parse());
        let mut next = || packets.next().context("a counter is missing")?.context("a counter is no number");
        Ok((next()?, next()?))
    }

    fn nft(&self, rule: &str) -> Result<String, anyhow::Error> {
        run(command_in(Some(&self.name), "nft").args(rule.split(' ')))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(command: &mut Command) -> Result<String, anyhow::Error> {
    let shown = format!("{command:?}");
    let mut owned = Command::new(command.get_program());
    owned.args(command.get_args());
    let out = run_within(owned, b"", Duration::from_secs(20));
    ensure!(out.status.success(), "{shown}: {}", text(&out.stderr));
    Ok(text(&out.stdout))
}
