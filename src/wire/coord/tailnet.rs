//! Messages of `coder.tailnet.v2` (`coordination.md` §7). Field names and numbers are the protocol's.
//!
//! Requests and responses without fields (`StreamDERPMapsRequest`, `RefreshResumeTokenRequest`, `TelemetryResponse`)
//! are `()`. Readers must accept unknown fields and unknown enum numbers; enum fields therefore are `i32`.
#![allow(missing_docs, reason = "fields carry the protocol's names; what is not obvious has a sentence")]

use crate::base::WallTime;
use prost_types::{Duration, Timestamp};
use std::{collections::BTreeMap, fmt};

/// Path of the bidirectional call of the tailnet.
pub const COORDINATE: &str = "/coder.tailnet.v2.Tailnet/Coordinate";
/// Path of the stream of relay maps.
pub const STREAM_DERP_MAPS: &str = "/coder.tailnet.v2.Tailnet/StreamDERPMaps";
/// Path of the unary call for a resume token.
pub const REFRESH_RESUME_TOKEN: &str = "/coder.tailnet.v2.Tailnet/RefreshResumeToken";
/// Path of the unary call for telemetry.
pub const POST_TELEMETRY: &str = "/coder.tailnet.v2.Tailnet/PostTelemetry";
/// Path of the stream of workspaces.
pub const WORKSPACE_UPDATES: &str = "/coder.tailnet.v2.Tailnet/WorkspaceUpdates";

/// The relays of a deployment.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DerpMap {
    /// Must be present, even empty: the Go reader does not check (§7.1).
    #[prost(message, optional, tag = "1")]
    pub home_params: Option<HomeParams>,
    #[prost(btree_map = "int64, message", tag = "2")]
    pub regions: BTreeMap<i64, Region>,
}

/// Weights for the choice of a home relay.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HomeParams {
    #[prost(btree_map = "int64, double", tag = "1")]
    pub region_score: BTreeMap<i64, f64>,
}

/// A relay region: relays that reach one another.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Region {
    #[prost(int64, tag = "1")]
    pub region_id: i64,
    #[prost(bool, tag = "2")]
    pub embedded_relay: bool,
    #[prost(string, tag = "3")]
    pub region_code: String,
    #[prost(string, tag = "4")]
    pub region_name: String,
    #[prost(bool, tag = "5")]
    pub avoid: bool,
    #[prost(message, repeated, tag = "6")]
    pub nodes: Vec<RelayNode>,
}

/// One relay, or a STUN server alone.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RelayNode {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "2")]
    pub region_id: i64,
    #[prost(string, tag = "3")]
    pub host_name: String,
    #[prost(string, tag = "4")]
    pub cert_name: String,
    #[prost(string, tag = "5")]
    pub ipv4: String,
    #[prost(string, tag = "6")]
    pub ipv6: String,
    /// −1 means none, 0 means 3478.
    #[prost(int32, tag = "7")]
    pub stun_port: i32,
    #[prost(bool, tag = "8")]
    pub stun_only: bool,
    /// 0 means 443.
    #[prost(int32, tag = "9")]
    pub derp_port: i32,
    #[prost(bool, tag = "10")]
    pub insecure_for_tests: bool,
    #[prost(bool, tag = "11")]
    pub force_http: bool,
    #[prost(string, tag = "12")]
    pub stun_test_ip: String,
    #[prost(bool, tag = "13")]
    pub can_port_80: bool,
}

/// What a peer announces of itself (`coordination.md` §9).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(message, optional, tag = "2")]
    pub as_of: Option<Timestamp>,
    /// `np` and the 32-byte key.
    #[prost(bytes = "vec", tag = "3")]
    pub key: Vec<u8>,
    /// `discokey:` and 64 digits.
    #[prost(string, tag = "4")]
    pub disco: String,
    /// The home region, never 0 when sent.
    #[prost(int32, tag = "5")]
    pub preferred_derp: i32,
    /// Seconds by `<region>-v4` and `<region>-v6`.
    #[prost(btree_map = "string, double", tag = "6")]
    pub derp_latency: BTreeMap<String, f64>,
    /// Why a region had to fall back to WebSocket.
    #[prost(btree_map = "int32, string", tag = "7")]
    pub derp_forced_websocket: BTreeMap<i32, String>,
    /// `<ipv6>/128` texts.
    #[prost(string, repeated, tag = "8")]
    pub addresses: Vec<String>,
    /// The same as `addresses`.
    #[prost(string, repeated, tag = "9")]
    pub allowed_ips: Vec<String>,
    /// `ip:port` texts.
    #[prost(string, repeated, tag = "10")]
    pub endpoints: Vec<String>,
}

/// A token by which a client keeps its id when it dials again. Opaque to the client.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
#[prost(skip_debug)]
pub struct RefreshResumeTokenResponse {
    #[prost(string, tag = "1")]
    pub token: String,
    #[prost(message, optional, tag = "2")]
    pub refresh_in: Option<Duration>,
    #[prost(message, optional, tag = "3")]
    pub expires_at: Option<Timestamp>,
}

/// Client to coordinator. Several fields may be set at once; the server applies them in the order of §10.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CoordinateRequest {
    #[prost(message, optional, tag = "1")]
    pub update_self: Option<UpdateSelf>,
    #[prost(message, optional, tag = "2")]
    pub disconnect: Option<Disconnect>,
    #[prost(message, optional, tag = "3")]
    pub add_tunnel: Option<Tunnel>,
    #[prost(message, optional, tag = "4")]
    pub remove_tunnel: Option<Tunnel>,
    #[prost(message, repeated, tag = "5")]
    pub ready_for_handshake: Vec<ReadyForHandshake>,
}

/// The sender's newest node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateSelf {
    /// Must be set: the Go server does not check.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
}

/// A graceful good-bye.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Disconnect {}

/// The other end of a tunnel.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Tunnel {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
}

/// A peer that the sender has programmed.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ReadyForHandshake {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
}

/// Coordinator to client: news of peers, or an error text.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CoordinateResponse {
    #[prost(message, repeated, tag = "1")]
    pub peer_updates: Vec<PeerUpdate>,
    /// For the log; the end of the stream is what counts.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// The reason of a `Lost` update that says more: the peer's end closed its connection. Our coordinator's own; to other
/// implementations reasons are text for people.
pub const PEER_CLOSED: &str = "connection closed";

/// One piece of news about one peer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerUpdate {
    /// 16 raw bytes, as all ids here.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Set for `Node` updates only.
    #[prost(message, optional, tag = "2")]
    pub node: Option<Node>,
    #[prost(enumeration = "PeerUpdateKind", tag = "3")]
    pub kind: i32,
    #[prost(string, tag = "4")]
    pub reason: String,
}

/// Family and class of an address whose text is hashed away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct IpFields {
    #[prost(int32, tag = "1")]
    pub version: i32,
    #[prost(enumeration = "IpClass", tag = "2")]
    pub class: i32,
}

/// A netcheck report as telemetry.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Netcheck {
    #[prost(bool, tag = "1")]
    pub udp: bool,
    #[prost(bool, tag = "2")]
    pub ipv6: bool,
    #[prost(bool, tag = "3")]
    pub ipv4: bool,
    #[prost(bool, tag = "4")]
    pub ipv6_can_send: bool,
    #[prost(bool, tag = "5")]
    pub ipv4_can_send: bool,
    #[prost(bool, tag = "6")]
    pub icmpv4: bool,
    #[prost(message, optional, tag = "7")]
    pub os_has_ipv6: Option<bool>,
    #[prost(message, optional, tag = "8")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    #[prost(message, optional, tag = "9")]
    pub hair_pinning: Option<bool>,
    #[prost(message, optional, tag = "10")]
    pub upnp: Option<bool>,
    #[prost(message, optional, tag = "11")]
    pub pmp: Option<bool>,
    #[prost(message, optional, tag = "12")]
    pub pcp: Option<bool>,
    #[prost(int64, tag = "13")]
    pub preferred_derp: i64,
    #[prost(btree_map = "int64, message", tag = "14")]
    pub region_v4_latency: BTreeMap<i64, Duration>,
    #[prost(btree_map = "int64, message", tag = "15")]
    pub region_v6_latency: BTreeMap<i64, Duration>,
    #[prost(message, optional, tag = "17")]
    pub global_v4: Option<NetcheckIp>,
    #[prost(message, optional, tag = "18")]
    pub global_v6: Option<NetcheckIp>,
}

/// A public address, hashed.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NetcheckIp {
    #[prost(string, tag = "1")]
    pub hash: String,
    #[prost(message, optional, tag = "2")]
    pub fields: Option<IpFields>,
}

/// One telemetry event (`coordination.md` §17).
#[derive(Clone, PartialEq, prost::Message)]
pub struct TelemetryEvent {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub time: Option<Timestamp>,
    #[prost(string, tag = "3")]
    pub application: String,
    #[prost(enumeration = "TelemetryStatus", tag = "4")]
    pub status: i32,
    #[prost(enumeration = "ClientType", tag = "6")]
    pub client_type: i32,
    #[prost(uint64, tag = "7")]
    pub node_id_self: u64,
    #[prost(uint64, tag = "8")]
    pub node_id_remote: u64,
    #[prost(message, optional, tag = "9")]
    pub p2p_endpoint: Option<P2pEndpoint>,
    #[prost(int32, tag = "10")]
    pub home_derp: i32,
    #[prost(message, optional, tag = "11")]
    pub derp_map: Option<DerpMap>,
    #[prost(message, optional, tag = "12")]
    pub latest_netcheck: Option<Netcheck>,
    #[prost(message, optional, tag = "13")]
    pub connection_age: Option<Duration>,
    #[prost(message, optional, tag = "14")]
    pub connection_setup: Option<Duration>,
    #[prost(message, optional, tag = "15")]
    pub p2p_setup: Option<Duration>,
    #[prost(message, optional, tag = "16")]
    pub derp_latency: Option<Duration>,
    #[prost(message, optional, tag = "17")]
    pub p2p_latency: Option<Duration>,
    #[prost(message, optional, tag = "18")]
    pub throughput_mbits: Option<f32>,
    #[prost(string, tag = "19")]
    pub client_version: String,
    #[prost(string, tag = "20")]
    pub client_session_id: String,
}

/// The direct endpoint, hashed.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct P2pEndpoint {
    #[prost(string, tag = "1")]
    pub hash: String,
    #[prost(int32, tag = "2")]
    pub port: i32,
    #[prost(message, optional, tag = "3")]
    pub fields: Option<IpFields>,
}

/// A batch of telemetry events.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TelemetryRequest {
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<TelemetryEvent>,
}

/// Asks for the workspaces of one owner.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WorkspaceUpdatesRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub workspace_owner_id: Vec<u8>,
}

/// A snapshot at first, then changes.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WorkspaceUpdate {
    #[prost(message, repeated, tag = "1")]
    pub upserted_workspaces: Vec<Workspace>,
    #[prost(message, repeated, tag = "2")]
    pub upserted_agents: Vec<Agent>,
    #[prost(message, repeated, tag = "3")]
    pub deleted_workspaces: Vec<Workspace>,
    #[prost(message, repeated, tag = "4")]
    pub deleted_agents: Vec<Agent>,
}

/// A workspace.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Workspace {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(enumeration = "WorkspaceStatus", tag = "3")]
    pub status: i32,
}

/// An agent of a workspace.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Agent {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(bytes = "vec", tag = "3")]
    pub workspace_id: Vec<u8>,
}

/// What became of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PeerUpdateKind {
    Unspecified = 0,
    Node = 1,
    Disconnected = 2,
    Lost = 3,
    ReadyForHandshake = 4,
}

/// Reach of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum IpClass {
    Public = 0,
    Private = 1,
    LinkLocal = 2,
    Loopback = 3,
}

/// Whether the connection began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TelemetryStatus {
    Connected = 0,
    Disconnected = 1,
}

/// What kind of node reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ClientType {
    Cli = 0,
    Agent = 1,
    Coderd = 2,
    Wsproxy = 3,
}

/// State of a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WorkspaceStatus {
    Unknown = 0,
    Pending = 1,
    Starting = 2,
    Running = 3,
    Stopping = 4,
    Stopped = 5,
    Failed = 6,
    Canceling = 7,
    Canceled = 8,
    Deleting = 9,
    Deleted = 10,
}

impl Node {
    /// Sets when this was true, to the microsecond as the Go implementation does. Each announcement needs a new time.
    pub fn set_as_of(&mut self, at: WallTime) {
        let at = at.since_unix();
        let nanos = (at.subsec_micros() * 1_000).cast_signed();
        self.as_of = Some(Timestamp { seconds: at.as_secs().cast_signed(), nanos });
    }
}

impl fmt::Debug for RefreshResumeTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshResumeTokenResponse").field("refresh_in", &self.refresh_in).finish_non_exhaustive()
    }
}
