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
    embedded: RelayMap,
    file: Option<PathBuf>,
    now: watch::Sender<Arc<RelayMap>>,
}

impl Relays {
    /// The embedded relay as seen from the access URL, and the regions of the file, if one is named.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(super) fn open(url: &Url, stun_port: Option<u16>, file: Option<PathBuf>) -> Result<Self, RelayFileError> {
        let embedded = embedded(url, stun_port);
        let (now, _) = watch::channel(Arc::new(with_file(&embedded, file.as_deref())?));
        Ok(Self { embedded, file, now })
    }

    /// Reads the file again. Whoever watches is told if the map is another one.
    ///
    /// # Errors
    /// When the file cannot be used; the map stays what it was.
    pub(super) fn reload(&self) -> Result<(), RelayFileError> {
        let map = with_file(&self.embedded, self.file.as_deref())?;
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

fn with_file(embedded: &RelayMap, file: Option<&Path>) -> Result<RelayMap, RelayFileError> {
    let Some(path) = file else { return Ok(embedded.clone()) };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| RelayFileError::Unreadable { path: path.to_owned(), error })?;
    let malformed = |why: String| RelayFileError::Malformed { path: path.to_owned(), why };
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(malformed(format!("it is larger than {LARGEST_FILE} bytes")));
    }
    let mut map: RelayMap = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    if embedded.regions.keys().any(|id| map.regions.contains_key(id)) {
        return Err(RelayFileError::Taken { path: path.to_owned() });
    }
    map.regions.extend(embedded.regions.clone());
    Ok(map)
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

    #[test]
    fn a_file_adds_regions_and_is_read_again_only_where_it_is_good() {
        let file = file(1);
        let relays = Relays::open(&url("http://127.0.0.1:3000"), None, Some(file.path().to_owned())).unwrap();
        let numbers = || relays.now().regions.keys().map(|id| id.get()).collect::<Vec<_>>();
        assert_eq!(numbers(), [1, 999]);
        let mut news = relays.watch();
        relays.reload().unwrap();
        assert!(!news.has_changed().unwrap(), "nothing has changed");
        std::fs::write(file.path(), r#"{"Regions":{}}"#).unwrap();
        relays.reload().unwrap();
        assert!(news.has_changed().unwrap());
        assert_eq!(news.borrow_and_update().regions.len(), 1);
        std::fs::write(file.path(), "{").unwrap();
        assert!(matches!(relays.reload(), Err(RelayFileError::Malformed { .. })));
        assert_eq!(numbers(), [999]);
        assert!(!news.has_changed().unwrap());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let open = |path: &Path| Relays::open(&url("http://127.0.0.1:3000"), None, Some(path.to_owned())).unwrap_err();
        let taken = file(999);
        assert!(matches!(open(taken.path()), RelayFileError::Taken { .. }));
        let gone = open(Path::new("/nowhere/relays.json"));
        assert!(gone.to_string().contains("/nowhere/relays.json") && gone.to_string().contains("--derp-config-path"), "{gone}");
    }
}
