//! The file that tells an editor how its connection is (`--network-info-dir`): `DIR/PPID.json`, as the editor knows the
//! process that started us, OpenSSH, and not us. It is written when the connection stands and then at every interval,
//! whether something changed or not: to the editor an old file is a dead connection.
//!
//! A reader sees one whole file or the next. The last one stays, as with the Go command line; those of connections that
//! ended long ago are removed when a new one starts.

use crate::{
    base::{Instant, Lane, RegionId},
    cli::connect::Tunnel,
    driver::clock,
    net::{Counters, Node, PathState, PingError, PingKind, Pong},
};
use anyhow::Context as _;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    future::{Future, pending},
    io::{self, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
        process::parent_id,
    },
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};
use tokio::time::{MissedTickBehavior, timeout};

/// How long a write waits for the ping that it tells of. The file must not grow older than a second beyond its interval,
/// so an answer that takes longer is told by the next write.
const PING_WAIT: Duration = Duration::from_millis(900);
/// How long an answer is waited for at all.
const PING_LIMIT: Duration = Duration::from_secs(10);
/// A file that nobody wrote for so long belongs to a connection that has ended.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// The file of this connection.
#[derive(Debug)]
pub(super) struct NetworkInfo {
    file: PathBuf,
    interval: Duration,
}

/// What is in the file. Every key is always there.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Content {
    /// Whether the last answer to a ping came directly.
    p2p: bool,
    /// How long it took, in ms.
    latency: f64,
    /// The name of the relay that it came through, or else of our home relay.
    preferred_derp: String,
    /// From here to the relays, in ms.
    derp_latency: BTreeMap<String, f64>,
    upload_bytes_sec: u64,
    download_bytes_sec: u64,
    using_coder_connect: bool,
}

/// What went through the tunnel by some moment.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    at: Instant,
    sent: u64,
    received: u64,
}

/// A ping on its way.
type Asked<'a> = Pin<Box<dyn Future<Output = Result<Pong, PingError>> + 'a>>;

/// Nothing.
pub(super) enum Never {}

/// Writes the file as long as the connection lasts, if one is wanted.
///
/// # Cancel safety
/// Dropping the future ends the writing; the file stays whole.
pub(super) async fn keep(info: Option<NetworkInfo>, tunnel: &Tunnel) -> Never {
    match info {
        Some(info) => info.keep(tunnel).await,
        None => pending().await,
    }
}

impl NetworkInfo {
    /// Makes the folder if it is missing and sweeps it.
    ///
    /// # Errors
    /// When there is no such folder and none can be made.
    pub(super) fn open(dir: &Path, interval: Duration) -> anyhow::Result<Self> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.with_context(|| format!("cannot make the folder {} for the network information", dir.display()))?;
        sweep(dir);
        Ok(Self { file: dir.join(format!("{}.json", parent_id())), interval })
    }

    async fn keep(self, tunnel: &Tunnel) -> Never {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = None;
        let mut last = None;
        let mut ping: Option<Asked<'_>> = None;
        let mut told = false;
        loop {
            ticks.tick().await;
            let asked = ping.get_or_insert_with(|| Box::pin(tunnel.tailnet.ping(tunnel.address, PingKind::Disco, PING_LIMIT)));
            // Without an answer the last one still says more than nothing.
            if let Ok(answer) = timeout(PING_WAIT, asked).await {
                ping = None;
                last = answer.ok().or(last);
            }
            let Ok(counters) = tunnel.tailnet.counters().await else { return pending().await };
            let now = Traffic::of(&counters, clock::now());
            let rates = before.replace(now).map_or((0, 0), |before| now.rates_since(before));
            let own = tunnel.tailnet.own_node().borrow().clone();
            let mut content = Content::of(last.as_ref(), own.as_deref(), rates, |region| tunnel.region_name(region));
            if last.is_none() {
                content.p2p = is_direct(tunnel).await;
            }
            match write(&self.file, &content) {
                Ok(()) => {
                    told = false;
                    let Content { p2p, latency, upload_bytes_sec, download_bytes_sec, .. } = content;
                    tracing::debug!(p2p, latency, upload_bytes_sec, download_bytes_sec, "network information written");
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(%error, file = %self.file.display(), "the network information was not written");
                }
                Err(_) => {}
            }
        }
    }
}

/// Whether data goes directly, as long as no ping was answered.
async fn is_direct(tunnel: &Tunnel) -> bool {
    let path = tunnel.tailnet.watch_path(tunnel.address).await;
    path.is_ok_and(|path| path.borrow().is_some_and(|path| path.state == PathState::Direct))
}

impl Traffic {
    const fn of(counters: &Counters, at: Instant) -> Self {
        Self { at, sent: counters.node.bytes_sent, received: counters.node.bytes_received }
    }

    /// Bytes sent and received in a second since `before`.
    fn rates_since(self, before: Self) -> (u64, u64) {
        let nanos = (self.at - before.at).as_nanos().max(1);
        let rate = |now: u64, before: u64| {
            let bytes = u128::from(now.saturating_sub(before));
            u64::try_from(bytes * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
        };
        (rate(self.sent, before.sent), rate(self.received, before.received))
    }
}

impl Content {
    fn of(pong: Option<&Pong>, own: Option<&Node>, rates: (u64, u64), name: impl Fn(RegionId) -> String) -> Self {
        let lane = pong.and_then(|pong| pong.path).and_then(|path| path.lane);
        let region = |number: i32| u16::try_from(number).ok().and_then(RegionId::new);
        let home = own.and_then(|own| region(own.preferred_derp));
        let relay = match lane {
            Some(Lane::Relay { region, .. }) => Some(region),
            _ => home,
        };
        let mut derp_latency = BTreeMap::new();
        for (key, seconds) in own.into_iter().flat_map(|own| &own.derp_latency) {
            // `999-v4` and `999-v6` are two ways to one relay.
            let number = key.split('-').next().and_then(|number| number.parse().ok());
            let Some(region) = number.and_then(region) else { continue };
            let ms = milliseconds(*seconds);
            derp_latency.entry(name(region)).and_modify(|known: &mut f64| *known = known.min(ms)).or_insert(ms);
        }
        let preferred_derp = relay.map(&name).unwrap_or_default();
        if relay.is_some() {
            derp_latency.entry(preferred_derp.clone()).or_insert(0.0);
        }
        Self {
            p2p: lane.is_some_and(|lane| !lane.is_relay()),
            latency: pong.map_or(0.0, |pong| milliseconds(pong.latency.as_secs_f64())),
            preferred_derp,
            derp_latency,
            upload_bytes_sec: rates.0,
            download_bytes_sec: rates.1,
            using_coder_connect: false,
        }
    }
}

/// In whole nanoseconds: what stands behind them comes from the conversion alone.
fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e9).round() / 1e6
}

/// Replaces the file in one step. Another process with the same parent has a temporary file of its own.
fn write(file: &Path, content: &Content) -> io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = file.with_file_name(format!("{name}.{}", std::process::id()));
    let write = || {
        // Left by a process of the same number, or put there by somebody else: never followed.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        out.write_all(&serde_json::to_vec(content)?)?;
        fs::rename(&temporary, file)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Removes the files of connections that have ended long ago. What cannot be removed does no harm.
fn sweep(dir: &Path) {
    let now = clock::wall().since_unix();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let changed = entry.metadata().and_then(|meta| meta.modified());
        let age = changed.ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).map(|at| now.saturating_sub(at));
        if is_ours(&entry.file_name().to_string_lossy()) && age.is_some_and(|age| age > STALE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a file is `PPID.json` or the temporary `PPID.json.PID`.
fn is_ours(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let Some((parent, rest)) = name.split_once('.') else { return false };
    number(parent) && (rest == "json" || rest.strip_prefix("json.").is_some_and(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{NodeKey, SocketIx},
        net::PathInfo,
    };
    use std::os::unix::fs::PermissionsExt as _;

    fn region(number: u16) -> RegionId {
        RegionId::new(number).unwrap()
    }

    fn pong(lane: Lane, micros: u64) -> Pong {
        let path = PathInfo { state: PathState::Direct, lane: Some(lane) };
        Pong { latency: Duration::from_micros(micros), path: Some(path) }
    }

    fn own() -> Node {
        let derp_latency = [("999-v4", 0.000_252_358), ("999-v6", 0.3), ("7-v4", 0.02), ("x-v4", 1.0)];
        let derp_latency = derp_latency.map(|(key, seconds)| (key.to_owned(), seconds)).into();
        Node { preferred_derp: 999, derp_latency, ..Node::default() }
    }

    fn name(region: RegionId) -> String {
        if region == self::region(999) { "Coder Embedded Relay".to_owned() } else { format!("Unnamed {region}") }
    }

    #[test]
    fn the_content_is_that_of_the_go_command_line() {
        let vector = include_str!("../../../tests/vectors/cli/ssh_network_info.txt");
        let lines: Vec<&str> = vector.lines().filter(|l| l.starts_with('{')).collect();
        let direct = Lane::Udp { socket: SocketIx(0), to: "127.0.0.1:1".parse().unwrap() };
        let mut node = own();
        node.derp_latency.retain(|key, _| key == "999-v4");
        let content = Content::of(Some(&pong(direct, 745)), Some(&node), (71, 83), name);
        assert_eq!(serde_json::to_string(&content).unwrap(), lines[1]);
        let content = Content::of(Some(&pong(direct, 2286)), Some(&node), (0, 0), name);
        assert_eq!(serde_json::to_string(&content).unwrap(), lines[0]);
    }

    #[test]
    fn a_relayed_answer_names_its_relay_which_always_has_a_latency() {
        let relayed = Lane::Relay { region: region(5), to: NodeKey::from([1; 32]) };
        let content = Content::of(Some(&pong(relayed, 1000)), Some(&own()), (0, 0), name);
        assert_eq!((content.p2p, content.preferred_derp.as_str()), (false, "Unnamed 5"));
        let latency: Vec<_> = content.derp_latency.iter().map(|(name, ms)| (name.as_str(), *ms)).collect();
        assert_eq!(latency, [("Coder Embedded Relay", 0.252_358), ("Unnamed 5", 0.0), ("Unnamed 7", 20.0)]);
    }

    #[test]
    fn before_anything_is_known_every_key_is_there() {
        let json = serde_json::to_value(Content::of(None, None, (0, 0), name)).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut wanted =
            ["p2p", "latency", "preferred_derp", "derp_latency", "upload_bytes_sec", "download_bytes_sec", "using_coder_connect"];
        wanted.sort_unstable();
        assert_eq!(keys, wanted);
    }

    #[test]
    fn rates_are_of_the_last_interval_and_0_without_traffic() {
        let at = |ms: u64, sent, received| Traffic { at: Instant::ZERO + Duration::from_millis(ms), sent, received };
        assert_eq!(at(2500, 1000, 4096).rates_since(at(500, 500, 0)), (250, 2048));
        assert_eq!(at(2000, 9, 9).rates_since(at(1000, 9, 9)), (0, 0));
        assert_eq!(at(1000, 9, 9).rates_since(at(1000, 9, 9)), (0, 0));
    }

    #[test]
    fn the_file_is_replaced_as_a_whole_and_old_ones_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/info");
        let info = NetworkInfo::open(&dir, Duration::from_secs(1)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        let content = Content::of(None, None, (0, 0), name);
        write(&info.file, &content).unwrap();
        let reader = fs::File::open(&info.file).unwrap();
        write(&info.file, &Content { p2p: true, ..content.clone() }).unwrap();
        assert_eq!(io::read_to_string(reader).unwrap(), serde_json::to_string(&content).unwrap(), "the old file was written to");
        assert!(fs::read_to_string(&info.file).unwrap().starts_with("{\"p2p\":true,"));
        assert_eq!((mode(&info.file), info.file.file_name().unwrap()), (0o600, format!("{}.json", parent_id()).as_ref()));

        let long_ago = std::time::UNIX_EPOCH + clock::wall().since_unix() - STALE - Duration::from_secs(60);
        for name in ["1.json", "2.json.77", "notes.json", "3.txt"] {
            let file = fs::File::create(dir.join(name)).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        fs::write(dir.join("4.json"), "").unwrap();
        NetworkInfo::open(&dir, Duration::from_secs(1)).unwrap();
        let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        let mut wanted = ["3.txt", "4.json", "notes.json"].map(str::to_owned).to_vec();
        wanted.push(format!("{}.json", parent_id()));
        wanted.sort();
        assert_eq!(left, wanted);
        assert!(NetworkInfo::open(&dir.join("4.json"), Duration::from_secs(1)).is_err());
    }
}
