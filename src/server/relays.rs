//! The relay map: the embedded relay and what a file adds to it, and its news while the server runs.

use crate::{
    base::RegionId,
    wire::derp::{Region, RelayMap, RelayNode},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;
use url::{Host, Url};

/// The embedded relay, numbered and named as the Go server's (`derp.md` §8).
const REGION: u16 = 999;
const REGION_CODE: &str = "coder";
const REGION_NAME: &str = "Coder Embedded Relay";
const NODE_NAME: &str = "999b";
/// A map of thousands of regions is smaller.
const LARGEST_FILE: u64 = 4 << 20;

/// Why the file with more relays cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayFileError {
    /// It cannot be read.
    #[error("cannot read the relay map {path:?}: {error}; name a readable file with --derp-config-path")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is no relay map.
    #[error("{path:?} is no relay map: {why}; it holds JSON such as {{\"Regions\":{{\"1\":{{…}}}}}}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It has a region with the number of the embedded relay.
    #[error("{path:?} has a region {REGION}, which is the relay inside this server: give it another number")]
    Taken {
        /// The file.
        path: PathBuf,
    },
}

/// The relay map of a server as it is now.
#[derive(Debug)]
pub(super) struct Relays {
    source: Source,
    now: watch::Sender<Arc<RelayMap>>,
}

/// Whether nodes may ask STUN servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stun {
    /// Our own on this port, and those of the file.
    At(u16),
    /// Those of the file.
    Elsewhere,
    /// None: direct connections are blocked.
    Forbidden,
}

/// What a map is made of.
#[derive(Debug, Clone)]
struct Source {
    embedded: RelayMap,
    file: Option<PathBuf>,
    no_stun: bool,
}

impl Source {
    async fn read(&self) -> Result<RelayMap, RelayFileError> {
        let Some(path) = self.file.clone() else { return Ok(self.embedded.clone()) };
        let bytes = tokio::task::spawn_blocking({
            let path = path.clone();
            move || bytes(&path)
        });
        let unreadable = |error| RelayFileError::Unreadable { path: path.clone(), error };
        let bytes = bytes.await.map_err(io::Error::other).and_then(|read| read).map_err(unreadable)?;
        let mut map: RelayMap = serde_json::from_slice(&bytes)
            .map_err(|error| RelayFileError::Malformed { path: path.clone(), why: error.to_string() })?;
        if self.embedded.regions.keys().any(|id| map.regions.contains_key(id)) {
            return Err(RelayFileError::Taken { path });
        }
        if self.no_stun {
            // A node without a port would have the usual one (`derp.md` §8).
            for region in map.regions.values_mut() {
                region.nodes.retain(|node| !node.stun_only);
                region.nodes.iter_mut().for_each(|node| node.stun_port = None);
            }
        }
        map.regions.extend(self.embedded.regions.clone());
        Ok(map)
    }
}

/// Whatever is no plain file is refused before it is opened: a pipe would never end.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let length = std::fs::metadata(path).and_then(|meta| match meta.is_file() {
        true => Ok(meta.len()),
        false => Err(io::Error::other("it is not a regular file")),
    })?;
    if length > LARGEST_FILE {
        return Err(io::Error::other(format!("it is larger than {LARGEST_FILE} bytes")));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Relays {
    /// The embedded relay as seen from the access URL, and the regions of the file, if one is named.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(super) async fn open(url: &Url, stun: Stun, file: Option<PathBuf>) -> Result<Self, RelayFileError> {
        let port = if let Stun::At(port) = stun { Some(port) } else { None };
        let source = Source { embedded: embedded(url, port), file, no_stun: stun == Stun::Forbidden };
        let (now, _) = watch::channel(Arc::new(source.read().await?));
        Ok(Self { source, now })
    }

    /// Reads the file again. Whoever watches is told if the map is another one.
    ///
    /// # Errors
    /// When the file cannot be used; the map stays what it was.
    pub(super) async fn reload(&self) -> Result<(), RelayFileError> {
        let map = self.source.read().await?;
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

/// The map with the embedded relay alone.
fn embedded(url: &Url, stun_port: Option<u16>) -> RelayMap {
    let host = match url.host() {
        Some(Host::Ipv6(ip)) => ip.to_string(),
        Some(host) => host.to_string(),
        None => String::new(),
    };
    let node = RelayNode {
        name: NODE_NAME.to_owned(),
        host,
        stun_port,
        relay_port: url.port_or_known_default().unwrap_or(443),
        plain_http: url.scheme() == "http",
        ..RelayNode::default()
    };
    let region =
        Region { code: REGION_CODE.to_owned(), name: REGION_NAME.to_owned(), embedded: true, avoid: false, nodes: vec![node] };
    let regions: BTreeMap<_, _> = RegionId::new(REGION).into_iter().map(|id| (id, region.clone())).collect();
    RelayMap { regions, home_scores: BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_relay_map_is_that_of_the_go_server_plus_stun() {
        let node = |text: &str, stun| {
            let map = serde_json::to_value(embedded(&url(text), stun)).unwrap();
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

    #[tokio::test]
    async fn a_file_adds_regions_and_is_read_again_only_where_it_is_good() {
        let file = file(1);
        let relays = Relays::open(&url("http://127.0.0.1:3000"), Stun::Elsewhere, Some(file.path().to_owned())).await.unwrap();
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
        assert!(matches!(relays.reload().await, Err(RelayFileError::Malformed { .. })));
        assert_eq!(numbers(), [999]);
        assert!(!news.has_changed().unwrap());
    }

    #[tokio::test]
    async fn where_direct_connections_are_blocked_no_region_has_stun() {
        let file = file(1);
        for (stun, port) in [(Stun::Elsewhere, Some(3478)), (Stun::Forbidden, None)] {
            let relays = Relays::open(&url("http://127.0.0.1:3000"), stun, Some(file.path().to_owned())).await.unwrap();
            let map = relays.now();
            assert_eq!(map.regions[&RegionId::new(1).unwrap()].nodes[0].stun_port, port);
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_named() {
        let open = async |path: &Path| {
            Relays::open(&url("http://127.0.0.1:3000"), Stun::Elsewhere, Some(path.to_owned())).await.unwrap_err()
        };
        let taken = file(999);
        assert!(matches!(open(taken.path()).await, RelayFileError::Taken { .. }));
        for path in ["/nowhere/relays.json", "/dev/zero", "/"] {
            let error = open(Path::new(path)).await.to_string();
            assert!(error.contains(path) && error.contains("--derp-config-path"), "{error}");
        }
    }
}
