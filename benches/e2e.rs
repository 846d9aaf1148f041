//! What a user gets: goodput through the tunnel, direct and relayed, beside kernel TCP in the same run; `port-forward` beside
//! a plain TCP proxy; the first byte of `ssh --stdio` and what an idle one costs; memory of agent and server; the size of
//! the binary.
//!
//! `cargo bench --bench e2e` takes about a minute. The bulk measures run between two processes of this executable, one
//! with its data loop beside everything else as the command line has it, one with a thread of its own as the agent has
//! it, over the relay and STUN of a real `coder server`. An absolute figure moves with the machine; the ratio counts.
#![cfg(all(unix, feature = "cli", feature = "agent", feature = "server"))]
#![allow(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "../tests/harness/usage.rs"]
#[allow(unreachable_pub, reason = "shared with the tests")]
mod usage;

use std::{
    error::Error,
    fs,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use prost::Message as _;
use tailnet::{
    base::{DiscoSecret, NodeSecret, RegionId},
    driver::{clock, http::Http},
    net::{Config, PathState, Tailnet},
    wire::{
        coord::tailnet::Node,
        derp::{Region, RelayMap, RelayNode},
    },
};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, Lines,
        copy_bidirectional_with_sizes,
    },
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use usage::{Memory, Usage};
use uuid::Uuid;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long one bulk measure runs, and how often it is repeated; the median counts.
const MEASURE: Duration = Duration::from_secs(2);
const MEASURES: usize = 3;
/// How often the first byte of `ssh --stdio` is awaited.
const CONNECTS: usize = 20;
/// How long an idle session is watched.
const IDLE: Duration = Duration::from_secs(10);
/// No single step takes this long; reaching it is a hang.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of one read or write: as in `ssh --stdio`.
const CHUNK: usize = 64 * 1024;
/// The port of the bulk measures inside the overlay.
const PORT: u16 = 7;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["sink", relay] => sink(relay).await,
            ["source", way, relay, invitation] => source(way, relay, invitation).await,
            ["service"] => service().await,
            ["proxy", to] => proxy(to).await,
            _ => everything().await,
        }
    })
}

/// The whole bench.
async fn everything() -> Result<()> {
    let started = clock::now();
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path()).await?;
    println!("{:46} {:>16}   target (DESIGN.md, section 4)", "what", "here");
    bulk(&server.address).await?;
    let (agent, _agent_lines) = server.agent().await?;
    forwarded(&server).await?;
    first_byte(&server).await?;
    idle(&server).await?;
    memory("agent, resident after the above", agent.id(), "≤ 20 MB");
    memory("server, resident after the above", server.child.id(), "≤ 40 MB");
    let size = fs::metadata(coder())?.len();
    row(
        "release binary",
        &format!("{:.1} MB", megabytes(size)),
        if cfg!(debug_assertions) { "≤ 25 MB (this is a debug build)" } else { "≤ 25 MB" },
    );
    println!("took {:.0?}", clock::now() - started);
    Ok(())
}

fn row(what: &str, here: &str, target: &str) {
    println!("{what:46} {here:>16}   {target}");
}

#[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn median<T: Ord + Copy>(values: &mut [T]) -> Option<T> {
    values.sort();
    values.get(values.len() / 2).copied()
}

// ---- bulk

/// Kernel TCP, direct and relayed, each way.
async fn bulk(relay: &str) -> Result<()> {
    let mut sink = Command::new(std::env::current_exe()?);
    let (_sink, mut lines) = start(sink.args(["sink", relay]))?;
    let invitation = line(&mut lines, "").await?;
    let mut kernel = Vec::new();
    for way in ["kernel", "direct", "relayed"] {
        let mut source = Command::new(std::env::current_exe()?);
        let (mut source, mut lines) = start(source.args(["source", way, relay, &invitation]))?;
        for (at, direction) in ["to the listener", "to the dialler"].into_iter().enumerate() {
            let mut rates = Vec::new();
            for _ in 0..MEASURES {
                rates.push(line(&mut lines, "rate ").await?.parse::<u64>()?);
            }
            let rate = median(&mut rates).ok_or("no measure")?;
            let (name, target) = match way {
                "kernel" => ("kernel TCP over loopback", ""),
                "direct" => ("tunnel, direct", "≥ 3,600 Mbit/s (12 × Go there)"),
                _ => ("tunnel, relayed", "≥ 2,080 Mbit/s (10 × Go there)"),
            };
            let here = match kernel.get(at) {
                Some(kernel) => format!("{rate} Mbit/s {:.2}", ratio(rate, *kernel)),
                None => format!("{rate} Mbit/s"),
            };
            if way == "kernel" {
                kernel.push(rate);
            }
            row(
                &format!("{name}, {direction}"),
                &here,
                if way == "kernel" { "the figure behind the rate is the ratio to this" } else { target },
            );
        }
        let proof = line(&mut lines, "proof ").await?;
        if !proof.is_empty() {
            println!("    {proof}");
        }
        timeout(LIMIT, source.wait()).await??;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

/// The relay and STUN of the server.
fn config(server: &str) -> Result<Config> {
    let server: SocketAddr = server.parse()?;
    let node = RelayNode {
        name: "1a".into(),
        host: server.ip().to_string(),
        relay_port: server.port(),
        stun_port: Some(server.port()),
        plain_http: true,
        ..RelayNode::default()
    };
    let region = Region { embedded: true, nodes: vec![node], ..Region::default() };
    let id = RegionId::new(1).ok_or("no region")?;
    let map = RelayMap { regions: [(id, region)].into(), ..RelayMap::default() };
    let http = Http::new(&format!("http://{server}"), None, Default::default())?;
    Ok(Config { relay_map: Some(map), ..Config::client(http)? })
}

/// Takes connections of the tunnel and of the kernel and does what their first byte asks for.
async fn sink(server: &str) -> Result<()> {
    let kernel = TcpListener::bind("127.0.0.1:0").await?;
    let kernel_address = kernel.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = kernel.accept().await {
            tokio::spawn(async move { drop(answer(stream).await) });
        }
    });
    let tailnet = Tailnet::start_on_thread(config(server)?).await?;
    // One guest for each way, so that neither inherits the other's path.
    let mut words = vec![kernel_address.to_string()];
    for number in 1..=2 {
        let guest = config(server)?;
        let address = *guest.addresses.first().ok_or("no address")?;
        let prefixes = vec![format!("{address}/128")];
        let node = Node {
            key: guest.secret.public().to_binary(),
            disco: guest.disco.public().to_text(),
            preferred_derp: 1,
            addresses: prefixes.clone(),
            allowed_ips: prefixes,
            ..Node::default()
        };
        tailnet.add_peer(Uuid::from_u128(number), node);
        words.extend([hex::encode(guest.secret.expose()), hex::encode(guest.disco.expose()), address.to_string()]);
    }
    let own = tailnet.own_node().wait_for(Option::is_some).await?.clone().ok_or("no node")?;
    words.push(hex::encode(own.encode_to_vec()));
    println!("{}", words.join(","));
    let mut listener = tailnet.listen_tcp(PORT).await?;
    loop {
        let stream = listener.accept().await?.accept().await?;
        tokio::spawn(async move { drop(answer(stream).await) });
    }
}

/// `u`: counts what comes and tells rate; `d`: sends for the time of a measure.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    match stream.read_u8().await? {
        b'u' => {
            let rate = receive(&mut stream).await?;
            stream.write_u64(rate).await?;
        }
        _ => send(&mut stream).await?,
    }
    stream.shutdown().await?;
    // The other side closes last, with everything read.
    while stream.read_u8().await.is_ok() {}
    Ok(())
}

async fn send(stream: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let (chunk, end) = (vec![0x5a; CHUNK], clock::now() + MEASURE);
    while clock::now() < end {
        stream.write_all(&chunk).await?;
    }
    stream.shutdown().await?;
    Ok(())
}

/// Reads to the end and gives the rate in Mbit/s, from the first byte to the last.
async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut bytes = stream.read(&mut chunk).await? as u64;
    let (begin, mut last) = (clock::now(), clock::now());
    loop {
        let n = stream.read(&mut chunk).await?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        last = clock::now();
    }
    let micros = u64::try_from((last - begin).as_micros())?.max(1);
    Ok(bytes * 8 / micros)
}

/// Measures one way in both directions.
async fn source(way: &str, server: &str, invitation: &str) -> Result<()> {
    let words: Vec<&str> = invitation.split(',').collect();
    let [kernel, guests @ .., own] = words.as_slice() else { return Err("bad invitation".into()) };
    if way == "kernel" {
        for direction in *b"ud" {
            for _ in 0..MEASURES {
                measure(TcpStream::connect(kernel).await?, direction).await?;
            }
        }
        println!("proof ");
        return Ok(());
    }
    let guest = if way == "direct" { guests.get(..3) } else { guests.get(3..6) };
    let Some([secret, disco, address]) = guest else { return Err("bad invitation".into()) };
    let mut config = config(server)?;
    let key = |text: &str| -> Result<[u8; 32]> { hex::decode(text)?.try_into().map_err(|_| "bad key".into()) };
    config.secret = NodeSecret::from_random(key(secret)?);
    config.disco = DiscoSecret::from_random(key(disco)?);
    config.addresses = vec![address.parse()?];
    config.direct = way == "direct";
    let tailnet = Tailnet::start(config)?;
    let host = Node::decode(hex::decode(own)?.as_slice())?;
    let address: Ipv6Addr = host.addresses.first().ok_or("no address")?.trim_end_matches("/128").parse()?;
    tailnet.add_peer(Uuid::from_u128(9), host);
    let to = SocketAddrV6::new(address, PORT, 0, 0);
    let mut path = tailnet.watch_path(address).await?;
    let mut first = tailnet.dial_tcp(to).await?;
    if way == "direct" {
        let is_direct = |p: &Option<_>| p.as_ref().is_some_and(|p: &tailnet::net::PathInfo| p.state == PathState::Direct);
        timeout(LIMIT, path.wait_for(is_direct)).await??;
    }
    first.shutdown().await?;
    drop(first);
    let before = tailnet.counters().await?.node;
    for direction in *b"ud" {
        for _ in 0..MEASURES {
            measure(tailnet.dial_tcp(to).await?, direction).await?;
        }
    }
    let after = tailnet.counters().await?.node;
    let sent = |of: &dyn Fn(&tailnet::proto::node::Counters) -> u64| of(&after) - of(&before);
    println!(
        "proof packets sent: {} by UDP, {} by relay; received: {} by UDP, {} by relay",
        sent(&|c| c.data_sent.udp),
        sent(&|c| c.data_sent.relay),
        sent(&|c| c.data_received.udp),
        sent(&|c| c.data_received.relay)
    );
    tailnet.close().await;
    Ok(())
}

async fn measure(stream: impl AsyncRead + AsyncWrite + Unpin, direction: u8) -> Result<()> {
    println!("rate {}", rate(stream, direction).await?);
    Ok(())
}

/// What one connection carries in one direction, in Mbit/s.
async fn rate(mut stream: impl AsyncRead + AsyncWrite + Unpin, direction: u8) -> Result<u64> {
    stream.write_all(&[direction]).await?;
    let one = async {
        if direction == b'u' {
            send(&mut stream).await?;
            Ok::<u64, Box<dyn Error>>(stream.read_u64().await?)
        } else {
            receive(&mut stream).await
        }
    };
    timeout(LIMIT, one).await?
}

// ---- port-forward

/// `coder port-forward` and a plain TCP proxy, both in front of the same service, in turn.
async fn forwarded(server: &Server) -> Result<()> {
    let (_service, mut lines) = start(Command::new(std::env::current_exe()?).arg("service"))?;
    let service: SocketAddr = line(&mut lines, "at ").await?.parse()?;
    let (_proxy, mut lines) = start(Command::new(std::env::current_exe()?).args(["proxy", &service.to_string()]))?;
    let proxy: SocketAddr = line(&mut lines, "at ").await?.parse()?;
    // Nobody else takes a port that was just given back, as the system gives others first.
    let local = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let mut command = server.coder(&["port-forward", "dev", "-p", &format!("{local}:{}", service.port())]);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().ok_or("no output")?).lines();
    while !timeout(LIMIT, lines.next_line()).await??.ok_or("port-forward ended")?.contains("Ready!") {}
    // The first one may still begin at the relay.
    rate(TcpStream::connect(local).await?, b'd').await?;
    for (direction, name) in [(b'u', "to the workspace"), (b'd', "from the workspace")] {
        let (mut plain, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..MEASURES {
            plain.push(rate(TcpStream::connect(proxy).await?, direction).await?);
            ours.push(rate(TcpStream::connect(local).await?, direction).await?);
        }
        let (plain, ours) = (median(&mut plain).ok_or("no measure")?, median(&mut ours).ok_or("no measure")?);
        row(&format!("plain TCP proxy, {name}"), &format!("{plain} Mbit/s"), "");
        let here = format!("{ours} Mbit/s {:.2}", ratio(ours, plain));
        row(&format!("port-forward, {name}"), &here, "≥ 2,000 Mbit/s (10 × Go there); the ratio is to the plain proxy");
    }
    Ok(())
}

/// A service of the workspace: as [`sink`], with the kernel alone.
async fn service() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("at {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move { drop(answer(stream).await) });
    }
}

/// What `port-forward` is measured against: the same without a tunnel.
async fn proxy(to: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("at {}", listener.local_addr()?);
    loop {
        let (mut near, _) = listener.accept().await?;
        let mut far = TcpStream::connect(to).await?;
        tokio::spawn(async move { drop(copy_bidirectional_with_sizes(&mut near, &mut far, CHUNK, CHUNK).await) });
    }
}

// ---- the command line

fn coder() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_coder"))
}

/// A real server with a folder of its own.
struct Server {
    child: Child,
    _lines: Lines<BufReader<ChildStdout>>,
    address: String,
    token: String,
    folder: PathBuf,
}

impl Server {
    async fn start(folder: &Path) -> Result<Self> {
        let mut command = program(folder);
        command.args(["server", "--http-address", "127.0.0.1:0", "--data-dir"]).arg(folder.join("data"));
        let (child, mut lines) = start(&mut command)?;
        let address = line(&mut lines, "listening on http://").await?;
        while !line(&mut lines, "").await?.contains("admin-token") {}
        let token = fs::read_to_string(folder.join("data/admin-token"))?.trim().to_owned();
        Ok(Self { child, _lines: lines, address, token, folder: folder.to_owned() })
    }

    fn coder(&self, arguments: &[&str]) -> Command {
        let mut command = program(&self.folder);
        command.args(arguments).env("CODER_URL", format!("http://{}", self.address)).env("CODER_SESSION_TOKEN", &self.token);
        command
    }

    /// Makes a workspace, starts its agent and waits until it can be dialled.
    async fn agent(&self) -> Result<(Child, Lines<BufReader<tokio::process::ChildStderr>>)> {
        let Output { stdout, .. } = timeout(LIMIT, self.coder(&["create", "dev"]).output()).await??;
        let stdout = String::from_utf8(stdout)?;
        let token =
            stdout.split("CODER_AGENT_TOKEN=").nth(1).and_then(|rest| rest.split_whitespace().next()).ok_or("no token")?;
        let mut command = program(&self.folder);
        command.arg("agent").env("CODER_AGENT_URL", format!("http://{}", self.address)).env("CODER_AGENT_TOKEN", token);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no output")?).lines();
        loop {
            let line = timeout(LIMIT, lines.next_line()).await??.ok_or("the agent ended")?;
            if line.contains("connected to the coordinator") {
                return Ok((child, lines));
            }
        }
    }
}

/// The binary without the settings of whoever runs the bench.
fn program(folder: &Path) -> Command {
    let mut command = Command::new(coder());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CODER_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", folder).env("CODER_CONFIG_DIR", folder.join("config"));
    command
}

/// Starts a child whose output is read by line.
fn start(command: &mut Command) -> Result<(Child, Lines<BufReader<ChildStdout>>)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    Ok((child, lines))
}

/// What stands behind `start` in the next line that holds it.
async fn line(lines: &mut Lines<BufReader<ChildStdout>>, start: &str) -> Result<String> {
    loop {
        let line = timeout(LIMIT, lines.next_line()).await.map_err(|_| format!("no {start:?} in time"))??;
        if let Some((_, rest)) = line.ok_or_else(|| format!("ended without {start:?}"))?.split_once(start) {
            return Ok(rest.to_owned());
        }
    }
}

/// Starts `ssh --stdio` and waits for its first byte.
async fn connect(server: &Server) -> Result<(Child, ChildStdin, ChildStdout, Duration)> {
    let mut command = server.coder(&["ssh", "--stdio", "dev"]);
    let begin = clock::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let (stdin, mut stdout) = (child.stdin.take().ok_or("no input")?, child.stdout.take().ok_or("no output")?);
    timeout(LIMIT, stdout.read_u8()).await??;
    Ok((child, stdin, stdout, clock::now() - begin))
}

async fn first_byte(server: &Server) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..CONNECTS {
        let (mut child, stdin, stdout, first) = connect(server).await?;
        took.push(first);
        drop((stdin, stdout));
        timeout(LIMIT, child.wait()).await??;
    }
    let middle = median(&mut took).ok_or("no connects")?;
    let worst = took.last().copied().ok_or("no connects")?;
    let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    row(&format!("first byte of ssh --stdio, median of {CONNECTS}"), &milliseconds(middle), "≤ 60 ms");
    row("  worst", &milliseconds(worst), "no slow tail");
    Ok(())
}

async fn idle(server: &Server) -> Result<()> {
    let (child, _stdin, _stdout, _) = connect(server).await?;
    let pid = child.id().ok_or("it ended")?;
    // The upgrade to the direct path belongs to the start, not to idling.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = Usage::of(pid);
    tokio::time::sleep(IDLE).await;
    let after = Usage::of(pid);
    memory("idle ssh --stdio, resident", Some(pid), "≤ 12 MB");
    let (Some(before), Some(after)) = (before, after) else {
        row("idle ssh --stdio, context switches", "not known here", "≤ 4 /s");
        return Ok(());
    };
    let used = after.since(before);
    let seconds = IDLE.as_secs_f64();
    let per_second = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds;
    row("  context switches, voluntary", &format!("{:.1} /s", per_second(used.switches)), "≤ 4 /s");
    let busy = per_second(used.busy.as_micros().try_into()?) / 1e3;
    row("  processor time", &format!("{busy:.2} ms/s"), "≤ 0.2 ms/s");
    Ok(())
}

fn memory(what: &str, pid: Option<u32>, target: &str) {
    let memory = pid.and_then(Memory::of);
    let here = memory.map_or_else(|| "not known here".to_owned(), |m| format!("{:.1} MB", megabytes(m.resident)));
    let share = memory.map_or_else(String::new, |m| format!(" (its share, PSS: {:.1} MB)", megabytes(m.share)));
    row(what, &here, &format!("{target}{share}"));
}
