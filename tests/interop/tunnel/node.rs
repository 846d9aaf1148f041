//! The Go node of a pair: a process that is asked by lines and answers by events.

use crate::peers::{Context, Program};
use anyhow::{Context as _, anyhow, bail};
use prost::Message as _;
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    net::{Ipv6Addr, SocketAddrV6},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tailnet::wire::{coord::tailnet::Node, derp::RelayMap};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use uuid::Uuid;

/// No answer takes this long on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Lines of log that a failure quotes.
const LAST_WORDS: usize = 8;

/// A running node; killed when dropped.
pub struct GoNode {
    pub id: Uuid,
    pub address: Ipv6Addr,
    /// As it wants to be known.
    pub own: watch::Receiver<Option<Node>>,
    /// How often it has been told of a peer.
    pub told: watch::Receiver<u64>,
    requests: mpsc::UnboundedSender<Value>,
    events: mpsc::UnboundedReceiver<Value>,
    /// Events that nobody has asked for yet.
    waiting: Vec<Value>,
    said: Arc<Mutex<VecDeque<String>>>,
    child: Child,
    _pumps: JoinSet<()>,
}

impl GoNode {
    /// Starts it with this id, hence this address; it announces no endpoints until it is asked to.
    pub async fn start(context: &Context, id: Uuid, relays: &RelayMap) -> Result<Self, anyhow::Error> {
        let mut command = Command::from(context.program(Program::Node));
        command.args(["-block-direct", "-v", "-id", &id.to_string(), "-relays", &relays.to_json().to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("the Go node does not start")?;
        let (sender, events) = mpsc::unbounded_channel();
        let (own_sender, own) = watch::channel(None);
        let (told_sender, told) = watch::channel(0);
        let (requests, to_send) = mpsc::unbounded_channel();
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let mut pumps = JoinSet::new();
        pumps.spawn(write(child.stdin.take().context("no standard input")?, to_send));
        pumps.spawn(keep(child.stderr.take().context("no standard error")?, Arc::clone(&said)));
        pumps.spawn(read(child.stdout.take().context("no standard output")?, sender, own_sender, told_sender));
        let mut node = Self {
            id,
            address: Ipv6Addr::UNSPECIFIED,
            own,
            told,
            requests,
            events,
            waiting: Vec::new(),
            said,
            child,
            _pumps: pumps,
        };
        let ready = node.event("ready", |_| true).await?;
        node.address = ready["address"].as_str().context("no address")?.parse()?;
        Ok(node)
    }

    /// Where its port is.
    pub const fn at(&self, port: u16) -> SocketAddrV6 {
        SocketAddrV6::new(self.address, port, 0, 0)
    }

    /// Sends a request; they are served in order.
    pub fn ask(&self, request: Value) {
        // A node that has ended is found by the event that does not come.
        let _ = self.requests.send(request);
    }

    /// For tasks that send requests.
    pub fn requests(&self) -> mpsc::UnboundedSender<Value> {
        self.requests.clone()
    }

    /// Listens on a port in one of its modes.
    pub async fn listen(&mut self, port: u16, mode: &str) -> Result<(), anyhow::Error> {
        self.listen_with(port, mode, 0).await
    }

    /// The same for modes that send on their own.
    pub async fn listen_with(&mut self, port: u16, mode: &str, size: u64) -> Result<(), anyhow::Error> {
        self.ask(json!({ "op": "listen", "port": port, "mode": mode, "size": size }));
        self.event("listening", |e| e["port"] == port).await.map(drop)
    }

    /// The next event of this name for which it holds.
    pub async fn event(&mut self, name: &str, holds: impl Fn(&Value) -> bool) -> Result<Value, anyhow::Error> {
        self.event_within(name, LIMIT, holds).await
    }

    /// The same with a limit of the caller's. A request that failed ends the wait.
    pub async fn event_within(
        &mut self,
        name: &str,
        limit: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value, anyhow::Error> {
        let wanted = |event: &Value| event["event"] == name && holds(event);
        if let Some(at) = self.waiting.iter().position(wanted) {
            return Ok(self.waiting.remove(at));
        }
        let end = Instant::now() + limit;
        loop {
            let event = match timeout_at(end, self.events.recv()).await {
                Ok(Some(event)) => event,
                Ok(None) => bail!("the Go node ended, waiting for {name:?}; it said: {}", self.said()),
                Err(_) => bail!("no event {name:?} within {limit:?}; the Go node said: {}", self.said()),
            };
            if event["event"] == "failed" {
                return Err(anyhow!("the Go node could not do it: {event}"));
            }
            if wanted(&event) {
                return Ok(event);
            }
            self.waiting.push(event);
        }
    }

    /// Ends it as a crash would.
    pub async fn kill(mut self) -> Result<(), anyhow::Error> {
        Ok(self.child.kill().await?)
    }

    fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().rev().take(LAST_WORDS).rev().cloned().collect::<Vec<_>>().join(" | ")
    }
}

async fn write(mut stdin: ChildStdin, mut requests: mpsc::UnboundedReceiver<Value>) {
    while let Some(request) = requests.recv().await {
        if stdin.write_all(format!("{request}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(
    stdout: impl AsyncRead + Unpin,
    events: mpsc::UnboundedSender<Value>,
    own: watch::Sender<Option<Node>>,
    told: watch::Sender<u64>,
) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let event: Value =
            serde_json::from_str(&line).unwrap_or_else(|e| json!({ "event": "failed", "error": format!("{e}: {line}") }));
        if event["event"] == "told" {
            told.send_modify(|count| *count += 1);
            continue;
        }
        if event["event"] != "node" {
            let _ = events.send(event);
            continue;
        }
        let node = event["hex"].as_str().and_then(|text| hex::decode(text).ok()).and_then(|bytes| Node::decode(&*bytes).ok());
        match node {
            Some(node) => drop(own.send_replace(Some(node))),
            None => drop(events.send(json!({ "event": "failed", "error": format!("we cannot read {event}") }))),
        }
    }
}

async fn keep(stderr: impl AsyncRead + Unpin, said: Arc<Mutex<VecDeque<String>>>) {
    const KEPT: usize = 2_000;
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == KEPT {
            said.pop_front();
        }
        said.push_back(line);
    }
}
