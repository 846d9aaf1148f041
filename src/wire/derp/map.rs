//! The map of relay regions (`derp.md` §8): Go's JSON form and ours.
//!
//! Where Go spells one meaning in several ways (port 0, negative port, address "none"), the types here hold the meaning.

use super::login::Fields;
use crate::base::{ParseRegionError, RegionId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// STUN's port where a node names none.
const STUN_PORT: u16 = 3_478;
/// A relay's port where a node names none, with and without TLS.
const RELAY_PORT: u16 = 443;
/// How an address field says that the family is not to be used.
const NO_ADDRESS: &str = "none";

/// All relays and STUN servers that a node may use.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RelayMap {
    /// The regions by their number.
    pub regions: BTreeMap<RegionId, Region>,
    /// Factors on the measured latency when a home is chosen; only positive ones count.
    pub home_scores: BTreeMap<RegionId, f64>,
}

/// Relays that reach each other, so that any of them serves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Region {
    /// A short name.
    pub code: String,
    /// The name to show.
    pub name: String,
    /// Whether it is the relay inside the coder server: its address follows from the server's URL.
    pub embedded: bool,
    /// Whether it is no good as home.
    pub avoid: bool,
    /// The servers in the order in which to try them.
    pub nodes: Vec<RelayNode>,
}

/// How to find a server's address of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostIp<T> {
    /// Ask DNS for the host name.
    #[default]
    Resolve,
    /// Use this address.
    Fixed(T),
    /// Do not use this family.
    Off,
}

/// One server of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayNode {
    /// Unique among all regions.
    pub name: String,
    /// What to resolve, dial and name in TLS; may be an address.
    pub host: String,
    /// The name its certificate carries, if another.
    pub cert_name: String,
    /// Its IPv4 address.
    pub ipv4: HostIp<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: HostIp<Ipv6Addr>,
    /// Where it answers STUN, if it does.
    pub stun_port: Option<u16>,
    /// Whether it answers nothing but STUN.
    pub stun_only: bool,
    /// Where it relays.
    pub relay_port: u16,
    /// Whether its certificate is not checked.
    pub insecure: bool,
    /// Whether it relays without TLS. The port stays [`RelayNode::relay_port`].
    pub plain_http: bool,
    /// The address for STUN in place of the others.
    pub stun_ip: Option<IpAddr>,
    /// Whether it answers on port 80 for the detection of captive portals.
    pub can_port_80: bool,
}

impl Default for RelayNode {
    fn default() -> Self {
        Self {
            name: String::new(),
            host: String::new(),
            cert_name: String::new(),
            ipv4: HostIp::Resolve,
            ipv6: HostIp::Resolve,
            stun_port: Some(STUN_PORT),
            stun_only: false,
            relay_port: RELAY_PORT,
            insecure: false,
            plain_http: false,
            stun_ip: None,
            can_port_80: false,
        }
    }
}

/// Why a text is no relay map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad relay map: {0}")]
pub struct MapError(String);

impl MapError {
    fn field(name: &str) -> Self {
        Self(format!("field {name} is of the wrong kind"))
    }
}

impl From<ParseRegionError> for MapError {
    fn from(error: ParseRegionError) -> Self {
        Self(error.to_string())
    }
}

impl<T: FromStr> HostIp<T> {
    /// Reads Go's form: empty, an address, or anything else for "off".
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "" => Self::Resolve,
            text => text.parse().map_or(Self::Off, Self::Fixed),
        }
    }
}

impl<T: fmt::Display> HostIp<T> {
    /// Go's form.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Resolve => String::new(),
            Self::Fixed(ip) => ip.to_string(),
            Self::Off => NO_ADDRESS.to_owned(),
        }
    }
}

impl RelayNode {
    /// Reads Go's form of the STUN port: 0 is the default, negative none.
    ///
    /// # Errors
    /// When it is beyond 65,535.
    pub fn stun_port_from(number: i64) -> Result<Option<u16>, MapError> {
        match number {
            ..0 => Ok(None),
            0 => Ok(Some(STUN_PORT)),
            n => u16::try_from(n).map(Some).map_err(|_| MapError::field("STUNPort")),
        }
    }

    /// Go's form of the STUN port.
    #[must_use]
    pub fn stun_port_number(&self) -> i32 {
        self.stun_port.map_or(-1, i32::from)
    }

    /// Reads Go's form of the relay port: 0 is the default.
    ///
    /// # Errors
    /// When it is negative or beyond 65,535.
    pub fn relay_port_from(number: i64) -> Result<u16, MapError> {
        match u16::try_from(number) {
            Ok(0) => Ok(RELAY_PORT),
            port => port.map_err(|_| MapError::field("DERPPort")),
        }
    }

    /// Go's form of the relay port: servers for STUN alone need none.
    #[must_use]
    pub fn relay_port_number(&self) -> i32 {
        if self.stun_only && self.relay_port == RELAY_PORT { 0 } else { self.relay_port.into() }
    }

    fn from_json(value: &Value) -> Result<Self, MapError> {
        let Value::Object(object) = value else { return Err(MapError::field("Nodes")) };
        let fields = Fields(object);
        let text = |name| fields.read(name, |v| v.as_str().map(str::to_owned)).ok_or_else(|| MapError::field(name));
        let flag = |name| fields.read(name, Value::as_bool).ok_or_else(|| MapError::field(name));
        let number = |name| fields.read(name, Value::as_i64).ok_or_else(|| MapError::field(name));
        Ok(Self {
            name: text("Name")?,
            host: text("HostName")?,
            cert_name: text("CertName")?,
            ipv4: HostIp::parse(&text("IPv4")?),
            ipv6: HostIp::parse(&text("IPv6")?),
            stun_port: Self::stun_port_from(number("STUNPort")?)?,
            stun_only: flag("STUNOnly")?,
            relay_port: Self::relay_port_from(number("DERPPort")?)?,
            insecure: flag("InsecureForTests")?,
            plain_http: flag("ForceHTTP")?,
            stun_ip: text("STUNTestIP")?.parse().ok(),
            can_port_80: flag("CanPort80")?,
        })
    }

    fn to_json(&self, region: RegionId) -> Value {
        let mut out = Map::new();
        out.insert("Name".into(), json!(self.name));
        out.insert("RegionID".into(), json!(region.get()));
        out.insert("HostName".into(), json!(self.host));
        // Go leaves out what is empty.
        let mut put = |name: &str, value: Value, empty: bool| {
            if !empty {
                out.insert(name.into(), value);
            }
        };
        put("CertName", json!(self.cert_name), self.cert_name.is_empty());
        put("IPv4", json!(self.ipv4.to_text()), self.ipv4 == HostIp::Resolve);
        put("IPv6", json!(self.ipv6.to_text()), self.ipv6 == HostIp::Resolve);
        put("STUNPort", json!(self.stun_port_number()), false);
        put("STUNOnly", json!(true), !self.stun_only);
        put("DERPPort", json!(self.relay_port), self.relay_port_number() == 0);
        put("InsecureForTests", json!(true), !self.insecure);
        put("ForceHTTP", json!(true), !self.plain_http);
        put("STUNTestIP", json!(self.stun_ip.map(|ip| ip.to_string())), self.stun_ip.is_none());
        put("CanPort80", json!(true), !self.can_port_80);
        Value::Object(out)
    }
}

impl Region {
    /// The nodes that relay, in the order in which to try them.
    pub fn relays(&self) -> impl Iterator<Item = &RelayNode> {
        self.nodes.iter().filter(|node| !node.stun_only)
    }

    fn from_json(value: &Value) -> Result<Self, MapError> {
        let Value::Object(object) = value else { return Err(MapError::field("Regions")) };
        let fields = Fields(object);
        let text = |name| fields.read(name, |v| v.as_str().map(str::to_owned)).ok_or_else(|| MapError::field(name));
        let flag = |name| fields.read(name, Value::as_bool).ok_or_else(|| MapError::field(name));
        let nodes = match fields.get("Nodes") {
            None => Vec::new(),
            Some(Value::Array(nodes)) => {
                nodes.iter().filter(|node| !node.is_null()).map(RelayNode::from_json).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(MapError::field("Nodes")),
        };
        Ok(Self {
            code: text("RegionCode")?,
            name: text("RegionName")?,
            embedded: flag("EmbeddedRelay")?,
            avoid: flag("Avoid")?,
            nodes,
        })
    }

    fn to_json(&self, id: RegionId) -> Value {
        let mut out = json!({
            "EmbeddedRelay": self.embedded,
            "RegionID": id.get(),
            "RegionCode": self.code,
            "RegionName": self.name,
            "Nodes": self.nodes.iter().map(|node| node.to_json(id)).collect::<Vec<_>>(),
        });
        if self.avoid
            && let Value::Object(out) = &mut out
        {
            out.insert("Avoid".into(), json!(true));
        }
        out
    }
}

/// An object keyed by region numbers; absent and null are empty.
fn by_region<T>(
    value: Option<&Value>,
    name: &str,
    read: impl Fn(&Value) -> Result<T, MapError>,
) -> Result<BTreeMap<RegionId, T>, MapError> {
    let Some(value) = value else { return Ok(BTreeMap::new()) };
    let Value::Object(object) = value else { return Err(MapError::field(name)) };
    object.iter().filter(|(_, value)| !value.is_null()).map(|(id, value)| Ok((id.parse::<RegionId>()?, read(value)?))).collect()
}

impl RelayMap {
    /// The region inside the coder server, if there is one.
    #[must_use]
    pub fn embedded(&self) -> Option<RegionId> {
        self.regions.iter().find(|(_, region)| region.embedded).map(|(id, _)| *id)
    }

    /// Points the embedded region's relays at the server as this node reaches it: host, port and scheme of its URL.
    pub fn rewrite_embedded(&mut self, host: &str, port: u16, plain_http: bool) {
        let relays = self.regions.values_mut().filter(|region| region.embedded).flat_map(|region| &mut region.nodes);
        for node in relays.filter(|node| !node.stun_only) {
            host.clone_into(&mut node.host);
            node.relay_port = port;
            node.plain_http = plain_http;
        }
    }

    /// Reads the value of a JSON object with Go's field names in any case; unknown fields are ignored.
    ///
    /// # Errors
    /// When a field is of the wrong kind or a region's number is out of range.
    pub fn from_json(value: &Value) -> Result<Self, MapError> {
        let Value::Object(object) = value else { return Err(MapError("not a JSON object".to_owned())) };
        let fields = Fields(object);
        let scores = match fields.get("HomeParams") {
            None => None,
            Some(Value::Object(params)) => Fields(params).get("RegionScore"),
            Some(_) => return Err(MapError::field("HomeParams")),
        };
        Ok(Self {
            regions: by_region(fields.get("Regions"), "Regions", Region::from_json)?,
            home_scores: by_region(scores, "RegionScore", |v| v.as_f64().ok_or_else(|| MapError::field("RegionScore")))?,
        })
    }

    /// Go's JSON form.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let regions: Map<_, _> = self.regions.iter().map(|(id, region)| (id.to_string(), region.to_json(*id))).collect();
        let mut out = json!({ "Regions": regions });
        if !self.home_scores.is_empty()
            && let Value::Object(out) = &mut out
        {
            let scores: Map<_, _> = self.home_scores.iter().map(|(id, score)| (id.to_string(), json!(score))).collect();
            out.insert("HomeParams".into(), json!({ "RegionScore": scores }));
        }
        out
    }
}

impl FromStr for RelayMap {
    type Err = MapError;

    fn from_str(text: &str) -> Result<Self, MapError> {
        Self::from_json(&serde_json::from_str(text).map_err(|e| MapError(e.to_string()))?)
    }
}

impl Serialize for RelayMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RelayMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = r#"{"regions":{"999":{"EMBEDDEDRELAY":true,"RegionID":999,"RegionCode":"coder","regionName":"Embedded",
        "Nodes":[{"Name":"999b","RegionID":999,"HostName":"a.example","STUNPort":-1,"DERPPort":443,"New":{"x":1}},
        {"name":"999s","hostname":"s.example","STUNOnly":true,"IPv6":"none","IPv4":"192.0.2.7"}]}},"omitDefaultRegions":true}"#;

    #[test]
    fn field_names_count_in_any_case_and_unknown_ones_not_at_all() {
        let map: RelayMap = EXAMPLE.parse().unwrap();
        let region = &map.regions[&RegionId::new(999).unwrap()];
        assert!(region.embedded && !region.avoid);
        assert_eq!((region.code.as_str(), region.name.as_str()), ("coder", "Embedded"));
        let [relay, stun] = region.nodes.as_slice() else { panic!("two nodes") };
        assert_eq!((relay.host.as_str(), relay.stun_port, relay.relay_port), ("a.example", None, 443));
        assert_eq!((stun.stun_port, stun.stun_only), (Some(3_478), true));
        assert_eq!((stun.ipv4, stun.ipv6), (HostIp::Fixed("192.0.2.7".parse().unwrap()), HostIp::Off));
        assert_eq!(region.relays().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["999b"]);
    }

    #[test]
    fn only_relays_of_the_embedded_region_are_pointed_at_the_server() {
        let mut map: RelayMap = EXAMPLE.parse().unwrap();
        let other = Region { nodes: vec![RelayNode::default()], ..Region::default() };
        map.regions.insert(RegionId::new(1).unwrap(), other.clone());
        map.rewrite_embedded("b.example", 3000, true);
        let id = map.embedded().unwrap();
        let [relay, stun] = map.regions[&id].nodes.as_slice() else { panic!("two nodes") };
        assert_eq!((relay.host.as_str(), relay.relay_port, relay.plain_http), ("b.example", 3000, true));
        assert_eq!((stun.host.as_str(), stun.plain_http), ("s.example", false));
        assert_eq!(map.regions[&RegionId::new(1).unwrap()], other);
    }

    #[test]
    fn fields_of_the_wrong_kind_and_impossible_numbers_are_refused() {
        for bad in [
            "[]",
            r#"{"Regions":[]}"#,
            r#"{"Regions":{"0":{}}}"#,
            r#"{"Regions":{"x":{}}}"#,
            r#"{"Regions":{"70000":{}}}"#,
            r#"{"Regions":{"1":{"Nodes":{}}}}"#,
            r#"{"Regions":{"1":{"Nodes":[{"DERPPort":-1}]}}}"#,
            r#"{"Regions":{"1":{"Nodes":[{"STUNPort":65536}]}}}"#,
            r#"{"Regions":{"1":{"Nodes":[{"HostName":1}]}}}"#,
            r#"{"HomeParams":{"RegionScore":{"1":"x"}}}"#,
        ] {
            assert!(bad.parse::<RelayMap>().is_err(), "{bad}");
        }
        for empty in ["{}", r#"{"Regions":null}"#, r#"{"Regions":{"1":null},"HomeParams":null}"#] {
            assert_eq!(empty.parse::<RelayMap>(), Ok(RelayMap::default()), "{empty}");
        }
    }

    fn host_ip<T: fmt::Debug + Clone>(ip: impl Strategy<Value = T> + 'static) -> impl Strategy<Value = HostIp<T>> {
        prop_oneof![Just(HostIp::Resolve), Just(HostIp::Off), ip.prop_map(HostIp::Fixed)]
    }

    prop_compose! {
        fn any_node()(
            (name, host, cert_name) in (".{0,8}", ".{0,8}", ".{0,8}"), ipv4 in host_ip(any::<Ipv4Addr>()),
            ipv6 in host_ip(any::<Ipv6Addr>()), stun_port in proptest::option::of(1u16..), stun_only in any::<bool>(),
            relay_port in 1u16.., flags in any::<[bool; 3]>(), stun_ip in any::<Option<IpAddr>>(),
        ) -> RelayNode {
            let [insecure, plain_http, can_port_80] = flags;
            RelayNode { name, host, cert_name, ipv4, ipv6, stun_port, stun_only, relay_port, insecure, plain_http, stun_ip, can_port_80 }
        }
    }

    fn any_region() -> impl Strategy<Value = Region> {
        (".{0,8}", ".{0,8}", any::<bool>(), any::<bool>(), proptest::collection::vec(any_node(), 0..3))
            .prop_map(|(code, name, embedded, avoid, nodes)| Region { code, name, embedded, avoid, nodes })
    }

    fn any_map() -> impl Strategy<Value = RelayMap> {
        let id = || (1u16..).prop_map(|id| RegionId::new(id).unwrap());
        let regions = proptest::collection::btree_map(id(), any_region(), 0..3);
        let scores = proptest::collection::btree_map(id(), (-80i32..80).prop_map(|n| f64::from(n) / 8.0), 0..3);
        (regions, scores).prop_map(|(regions, home_scores)| RelayMap { regions, home_scores })
    }

    proptest! {
        #[test]
        fn a_written_map_reads_back(map in any_map()) {
            let text = serde_json::to_string(&map).unwrap();
            prop_assert_eq!(text.parse::<RelayMap>(), Ok(map.clone()));
            prop_assert_eq!(serde_json::from_str::<RelayMap>(&text).unwrap(), map);
        }
    }
}
