//! The relay map: the embedded relay, STUN servers, what a file or a URL adds to them, and its news while the server runs.

use crate::{
    base::RegionId,
    driver::{
        files::read_regular,
        http::{Http, HttpOptions, Method, without_secrets},
    },
    wire::derp::{Region, RelayMap, RelayNode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};
use tokio::sync::watch;
use url::{Host, Position, Url};

/// The embedded relay's number where none is given (`derp.md` §8).
const REGION: RegionId = match RegionId::new(999) {
    Some(region) => region,
    None => panic!("999 is not zero"),
};
/// A map of thousands of regions is smaller.
const LARGEST_MAP: usize = 4 << 20;

/// Where more relays come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelaySource {
    /// A file with a relay map in JSON.
    File(PathBuf),
    /// A URL with the same.
    Url(Url),
}

impl RelaySource {
    /// How it is named to people: a URL may hold credentials.
    fn name(&self) -> String {
        match self {
            Self::File(path) => format!("{:?}", path.display().to_string()),
            Self::Url(url) => without_secrets(url.as_str()).to_owned(),
        }
    }
}

/// The relays of a deployment. The default is that of the Go server, but for STUN servers of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// This server is one.
    pub embedded: bool,
    /// The number of its region.
    pub region: RegionId,
    /// The code of its region.
    pub code: String,
    /// The name of its region.
    pub name: String,
    /// STUN servers beside it, each a region of its own, numbered from its region on.
    pub stun_servers: Vec<(String, u16)>,
    /// Where more relays come from.
    pub source: Option<RelaySource>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            embedded: true,
            region: REGION,
            code: "coder".to_owned(),
            name: "Coder Embedded Relay".to_owned(),
            stun_servers: Vec::new(),
            source: None,
        }
    }
}

/// Why the relay map cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayMapError {
    /// Its file cannot be read.
    #[error("cannot read the relay map {path:?}: {error}; name a readable file with --derp-config-path")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Its URL gives nothing.
    #[error("cannot fetch the relay map {url}: {why}; name a working URL with --derp-config-url")]
    Unfetched {
        /// The URL without its secrets.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// It is no relay map.
    #[error("{name} is no relay map: {why}; it holds JSON such as {{\"Regions\":{{\"1\":{{…}}}}}}")]
    Malformed {
        /// The file or the URL.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// It has a region with the number of one of ours.
    #[error("{name} has a region {number}, which this server has itself: give it another number")]
    Taken {
        /// The file or the URL.
        name: String,
        /// The region.
        number: RegionId,
    },
    /// Nobody could reach anybody.
    #[error(
        "there is no relay at all: leave --derp-server-enable on, or name others with --derp-config-path or --derp-config-url"
    )]
    Empty,
    /// The numbers of the STUN servers' regions are too high.
    #[error(
        "region {0} is too high a number for the embedded relay with its STUN servers: choose a lower one with --derp-server-region-id"
    )]
    TooHigh(RegionId),
}

/// The relay map of a server as it is now.
#[derive(Debug)]
pub(super) struct Relays {
    own: Own,
    now: watch::Sender<Arc<RelayMap>>,
}

/// Whether nodes may ask STUN servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stun {
    /// Our own on this port, and the others.
    At(u16),
    /// The others.
    Elsewhere,
    /// None: direct connections are blocked.
    Forbidden,
}

/// What a map is made of.
#[derive(Debug, Clone)]
struct Own {
    regions: RelayMap,
    source: Option<RelaySource>,
    no_stun: bool,
}

impl Own {
    async fn read(&self) -> Result<RelayMap, RelayMapError> {
        let mut map = match &self.source {
            None => self.regions.clone(),
            Some(source) => self.with(source, &content(source).await?)?,
        };
        if self.no_stun {
            // A node without a port would have the usual one (`derp.md` §8).
            for region in map.regions.values_mut() {
                region.nodes.retain(|node| !node.stun_only);
                region.nodes.iter_mut().for_each(|node| node.stun_port = None);
            }
            map.regions.retain(|_, region| !region.nodes.is_empty());
        }
        if map.regions.values().all(|region| region.nodes.iter().all(|node| node.stun_only)) {
            return Err(RelayMapError::Empty);
        }
        Ok(map)
    }

    fn with(&self, source: &RelaySource, json: &[u8]) -> Result<RelayMap, RelayMapError> {
        let mut map: RelayMap = serde_json::from_slice(json)
            .map_err(|error| RelayMapError::Malformed { name: source.name(), why: error.to_string() })?;
        if let Some(number) = self.regions.regions.keys().find(|id| map.regions.contains_key(id)) {
            return Err(RelayMapError::Taken { name: source.name(), number: *number });
        }
        map.regions.extend(self.regions.regions.clone());
        Ok(map)
    }
}

/// What a source holds. Time and size are bounded, for a URL by the HTTP client as well.
async fn content(source: &RelaySource) -> Result<Vec<u8>, RelayMapError> {
    match source {
        RelaySource::File(path) => {
            let read = tokio::task::spawn_blocking({
                let path = path.clone();
                move || read_regular(&path, LARGEST_MAP as u64)
            });
            let unreadable = |error| RelayMapError::Unreadable { path: path.clone(), error };
            read.await.map_err(io::Error::other).and_then(|read| read).map_err(unreadable)
        }
        RelaySource::Url(url) => {
            let failed = |why: String| RelayMapError::Unfetched { url: source.name(), why };
            // Redirects stay on the same host, and so do the credentials.
            let headers = basic(url).map(|value| ("authorization".to_owned(), value)).into_iter().collect();
            let options = HttpOptions { headers, ..HttpOptions::default() };
            let http = Http::new(&url.origin().ascii_serialization(), None, options);
            let http = http.map_err(|error| failed(error.to_string()))?;
            let path = &url[Position::BeforePath..Position::AfterQuery];
            let reply = http.call(Method::Get, path, None::<&()>).await.map_err(|error| failed(error.to_string()))?;
            let bytes = reply.body().to_vec();
            if bytes.len() > LARGEST_MAP { Err(failed(format!("it is larger than {LARGEST_MAP} bytes"))) } else { Ok(bytes) }
        }
    }
}

/// A URL's credentials as an `Authorization` header carries them.
fn basic(url: &Url) -> Option<String> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut pair = decoded(url.username());
    pair.push(b':');
    pair.extend(decoded(url.password().unwrap_or_default()));
    Some(format!("Basic {}", STANDARD.encode(pair)))
}

/// A part of a URL without its percent signs.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let mut byte = [*first];
        let escape = after.get(..2).filter(|digits| *first == b'%' && hex::decode_to_slice(digits, &mut byte).is_ok());
        rest = after.get(escape.map_or(0, <[u8]>::len)..).unwrap_or_default();
        bytes.extend(byte);
    }
    bytes
}

impl Relays {
    /// The embedded relay as seen from the access URL, the STUN servers, and the regions of the source, if one is named.
    ///
    /// # Errors
    /// When the source cannot be used, or there is no relay at all.
    pub(super) async fn open(url: &Url, stun: Stun, config: RelayConfig) -> Result<Self, RelayMapError> {
        let port = if let Stun::At(port) = stun { Some(port) } else { None };
        let regions = RelayMap { regions: regions(url, port, &config)?, home_scores: BTreeMap::new() };
        let own = Own { regions, source: config.source, no_stun: stun == Stun::Forbidden };
        let (now, _) = watch::channel(Arc::new(own.read().await?));
        Ok(Self { own, now })
    }

    /// Reads the source again. Whoever watches is told if the map is another one.
    ///
    /// # Errors
    /// When the source cannot be used; the map stays what it was.
    pub(super) async fn reload(&self) -> Result<(), RelayMapError> {
        let map = self.own.read().await?;
        self.now.send_if_modified(|now| {
            let changed = **now != map;
            *now = Arc::new(map);
            changed
        });
        Ok(())
    }

    /// The map.
    pub(super) fn now(&self) -> Arc<RelayMap> {
        Arc::clone(&self.now.borrow())
    }

    /// The map and its later changes.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<RelayMap>> {
        self.now.subscribe()
    }
}

/// The map as an agent gets it that reaches the server at `url`: the embedded relay is there, too.
pub(super) fn seen_from(map: &RelayMap, url: &Url) -> RelayMap {
    let mut map = map.clone();
    for node in map.regions.values_mut().filter(|region| region.embedded).flat_map(|region| &mut region.nodes) {
        (node.host, node.relay_port, node.plain_http) = endpoint(url);
    }
    map
}

/// Host, port and "is plain HTTP" of a URL, as a relay map has them.
fn endpoint(url: &Url) -> (String, u16, bool) {
    let host = match url.host() {
        Some(Host::Ipv6(ip)) => ip.to_string(),
        Some(host) => host.to_string(),
        None => String::new(),
    };
    (host, url.port_or_known_default().unwrap_or(443), url.scheme() == "http")
}

/// The regions of the server itself.
fn regions(url: &Url, stun_port: Option<u16>, config: &RelayConfig) -> Result<BTreeMap<RegionId, Region>, RelayMapError> {
    let base = config.region;
    let mut regions = BTreeMap::new();
    if config.embedded {
        let (host, relay_port, plain_http) = endpoint(url);
        let node = RelayNode { name: format!("{base}b"), host, stun_port, relay_port, plain_http, ..RelayNode::default() };
        let (code, name) = (config.code.clone(), config.name.clone());
        regions.insert(base, Region { code, name, embedded: true, avoid: false, nodes: vec![node] });
    }
    for (n, (host, port)) in (1..).zip(&config.stun_servers) {
        let number = base.get().checked_add(n).and_then(RegionId::new).ok_or(RelayMapError::TooHigh(base))?;
        let node = RelayNode {
            name: format!("{number}stun0"),
            host: host.clone(),
            stun_port: Some(*port),
            stun_only: true,
            ..RelayNode::default()
        };
        let (code, name) = (format!("coder_stun_{number}"), format!("Coder STUN {number}"));
        regions.insert(number, Region { code, name, embedded: false, avoid: false, nodes: vec![node] });
    }
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_relay_map_is_that_of_the_go_server_plus_stun() {
        let node = |text: &str, stun| {
            let regions = regions(&url(text), stun, &RelayConfig::default()).unwrap();
            let map = serde_json::to_value(RelayMap { regions, home_scores: BTreeMap::new() }).unwrap();
            map["Regions"]["999"]["Nodes"][0].clone()
        };
        assert_eq!(
            node("http://127.0.0.1:3100", None),
            json!({ "Name": "999b", "RegionID": 999, "HostName": "127.0.0.1", "STUNPort": -1, "DERPPort": 3100, "ForceHTTP": true })
        );
        assert_eq!(
            node("https://coder.example.com", Some(3478)),
            json!({ "Name": "999b", "RegionID": 999, "HostName": "coder.example.com", "STUNPort": 3478, "DERPPort": 443 })
        );
        assert_eq!(node("http://[::1]:3000", None)["HostName"], "::1");
    }

    /// A file with one region of this number.
    fn file(number: u16) -> tempfile::NamedTempFile {
        let node = json!({ "Name": "1a", "RegionID": number, "HostName": "derp.example.com" });
        let region = json!({ "RegionID": number, "RegionCode": "eu", "RegionName": "Europe", "Nodes": [node] });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json!({ "Regions": { number.to_string(): region } }).to_string()).unwrap();
        file
    }

    fn from(path: &Path) -> RelayConfig {
        RelayConfig { source: Some(RelaySource::File(path.to_owned())), ..RelayConfig::default() }
    }

    #[tokio::test]
    async fn a_file_adds_regions_and_is_read_again_only_where_it_is_good() {
        let file = file(1);
        let relays = Relays::open(&url("http://127.0.0.1:3000"), Stun::Elsewhere, from(file.path())).await.unwrap();
        let numbers = || relays.now().regions.keys().map(|id| id.get()).collect::<Vec<_>>();
        assert_eq!(numbers(), [1, 999]);
        let mut news = relays.watch();
        relays.reload().await.unwrap();
        assert!(!news.has_changed().unwrap(), "nothing has changed");
        std::fs::write(file.path(), r#"{"Regions":{}}"#).unwrap();
        relays.reload().await.unwrap();
        assert!(news.has_changed().unwrap());
        assert_eq!(news.borrow_and_update().regions.len(), 1);
        std::fs::write(file.path(), "{").unwrap();
        assert!(matches!(relays.reload().await, Err(RelayMapError::Malformed { .. })));
        assert_eq!(numbers(), [999]);
        assert!(!news.has_changed().unwrap());
    }

    #[tokio::test]
    async fn where_direct_connections_are_blocked_no_region_has_stun() {
        let file = file(1);
        for (stun, port) in [(Stun::Elsewhere, Some(3478)), (Stun::Forbidden, None)] {
            let relays = Relays::open(&url("http://127.0.0.1:3000"), stun, from(file.path())).await.unwrap();
            let map = relays.now();
            assert_eq!(map.regions[&RegionId::new(1).unwrap()].nodes[0].stun_port, port);
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_named() {
        let open =
            async |path: &Path| Relays::open(&url("http://127.0.0.1:3000"), Stun::Elsewhere, from(path)).await.unwrap_err();
        let taken = file(999);
        assert!(matches!(open(taken.path()).await, RelayMapError::Taken { .. }));
        for path in ["/nowhere/relays.json", "/dev/zero", "/"] {
            let error = open(Path::new(path)).await.to_string();
            assert!(error.contains(path) && error.contains("--derp-config-path"), "{error}");
        }
    }

    #[tokio::test]
    async fn each_stun_server_is_a_region_of_its_own_as_in_the_go_server() {
        let stun_servers = [3478, 3479].map(|port| ("127.0.0.1".to_owned(), port)).to_vec();
        let config = RelayConfig { stun_servers, ..RelayConfig::default() };
        let relays = Relays::open(&url("http://127.0.0.1:3100"), Stun::Elsewhere, config.clone()).await.unwrap();
        let vector = include_str!("../../tests/vectors/http/workspace_agent_connection_stun.json");
        let vector: serde_json::Value = serde_json::from_str(vector).unwrap();
        assert_eq!(serde_json::to_value(&*relays.now()).unwrap(), vector["body"]["derp_map"]);
        let relays = Relays::open(&url("http://127.0.0.1:3100"), Stun::Forbidden, config.clone()).await.unwrap();
        assert_eq!(relays.now().regions.len(), 1, "blocked direct connections leave no STUN");
        let config = RelayConfig { region: RegionId::new(u16::MAX).unwrap(), ..config };
        let error = Relays::open(&url("http://127.0.0.1:3100"), Stun::Elsewhere, config).await.unwrap_err();
        assert!(matches!(error, RelayMapError::TooHigh(_)), "{error}");
    }

    #[tokio::test]
    async fn without_the_embedded_relay_another_one_is_needed() {
        let stun_servers = vec![("stun.example.com".to_owned(), 3478)];
        let config = RelayConfig { embedded: false, stun_servers, ..RelayConfig::default() };
        let error = Relays::open(&url("http://127.0.0.1:3000"), Stun::Elsewhere, config.clone()).await.unwrap_err();
        assert!(matches!(error, RelayMapError::Empty), "{error}");
        let file = file(999);
        let config = RelayConfig { embedded: false, ..from(file.path()) };
        let relays = Relays::open(&url("http://127.0.0.1:3000"), Stun::Elsewhere, config).await.unwrap();
        assert!(!relays.now().regions[&REGION].embedded);
    }

    #[tokio::test]
    async fn a_url_gives_relays_and_what_cannot_be_used_is_named_without_its_secrets() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let map = std::fs::read_to_string(file(1).path()).unwrap();
        let serving = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let long = "x".repeat(LARGEST_MAP + 1);
            for (status, body) in [("200 OK", map.as_str()), ("200 OK", "{"), ("500 Oops", "no"), ("200 OK", long.as_str())] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let n = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8(head[..n].to_vec()).unwrap();
                assert!(head.starts_with("GET /map?key=hunter2 "), "{head}");
                // `ann:p@ss+w%rd` in base64.
                assert!(head.to_ascii_lowercase().contains("\r\nauthorization: basic yw5uonbac3mrdyvyza==\r\n"), "{head}");
                assert!(head.contains("YW5uOnBAc3MrdyVyZA=="), "{head}");
                let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                // A reader that has enough hangs up.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let source = Some(RelaySource::Url(url(&format!("http://ann:p%40ss+w%rd@{address}/map?key=hunter2"))));
        let config = RelayConfig { source, ..RelayConfig::default() };
        let relays = Relays::open(&url("http://127.0.0.1:3000"), Stun::Elsewhere, config).await.unwrap();
        assert_eq!(relays.now().regions.len(), 2);
        for why in ["is no relay map", "500", "larger"] {
            let error = relays.reload().await.unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("/map"), "{error}");
            assert!(!error.contains("hunter2") && !error.contains("ss+w"), "{error}");
        }
        assert_eq!(relays.now().regions.len(), 2, "the map stays");
        serving.await.unwrap();
    }

    #[test]
    fn an_agent_with_a_url_of_its_own_finds_the_embedded_relay_there() {
        let stun_servers = vec![("stun.example.com".to_owned(), 3478)];
        let config = RelayConfig { stun_servers, ..RelayConfig::default() };
        let regions = regions(&url("https://coder.example.com"), Some(443), &config).unwrap();
        let map = RelayMap { regions, home_scores: BTreeMap::new() };
        let seen = serde_json::to_value(seen_from(&map, &url("http://10.0.0.1:3000"))).unwrap();
        let node = &seen["Regions"]["999"]["Nodes"][0];
        assert_eq!((&node["HostName"], &node["DERPPort"], &node["ForceHTTP"]), (&json!("10.0.0.1"), &json!(3000), &json!(true)));
        assert_eq!(seen["Regions"]["1000"]["Nodes"][0]["HostName"], "stun.example.com");
    }
}
