//! Golden tests of all messages against bytes of the Go implementation.

use super::{agent, tailnet};
use prost::Message;
use serde_json::Value;

/// What one message type makes of some bytes: the bytes written again and the `Debug` text, or nothing.
type Check = fn(&[u8]) -> Option<(Vec<u8>, String)>;

fn check<M: Message + Default + std::fmt::Debug>(bytes: &[u8]) -> Option<(Vec<u8>, String)> {
    let message = M::decode(bytes).ok()?;
    Some((message.encode_to_vec(), format!("{message:?}")))
}

fn of(message: &str) -> Option<Check> {
    Some(match message {
        "coder.tailnet.v2.DERPMap" => check::<tailnet::DerpMap>,
        "coder.tailnet.v2.DERPMap.HomeParams" => check::<tailnet::HomeParams>,
        "coder.tailnet.v2.DERPMap.Region" => check::<tailnet::Region>,
        "coder.tailnet.v2.DERPMap.Region.Node" => check::<tailnet::RelayNode>,
        "coder.tailnet.v2.StreamDERPMapsRequest" => check::<()>,
        "coder.tailnet.v2.Node" => check::<tailnet::Node>,
        "coder.tailnet.v2.RefreshResumeTokenRequest" => check::<()>,
        "coder.tailnet.v2.RefreshResumeTokenResponse" => check::<tailnet::RefreshResumeTokenResponse>,
        "coder.tailnet.v2.CoordinateRequest" => check::<tailnet::CoordinateRequest>,
        "coder.tailnet.v2.CoordinateRequest.UpdateSelf" => check::<tailnet::UpdateSelf>,
        "coder.tailnet.v2.CoordinateRequest.Disconnect" => check::<tailnet::Disconnect>,
        "coder.tailnet.v2.CoordinateRequest.Tunnel" => check::<tailnet::Tunnel>,
        "coder.tailnet.v2.CoordinateRequest.ReadyForHandshake" => check::<tailnet::ReadyForHandshake>,
        "coder.tailnet.v2.CoordinateResponse" => check::<tailnet::CoordinateResponse>,
        "coder.tailnet.v2.CoordinateResponse.PeerUpdate" => check::<tailnet::PeerUpdate>,
        "coder.tailnet.v2.IPFields" => check::<tailnet::IpFields>,
        "coder.tailnet.v2.Netcheck" => check::<tailnet::Netcheck>,
        "coder.tailnet.v2.Netcheck.NetcheckIP" => check::<tailnet::NetcheckIp>,
        "coder.tailnet.v2.TelemetryEvent" => check::<tailnet::TelemetryEvent>,
        "coder.tailnet.v2.TelemetryEvent.P2PEndpoint" => check::<tailnet::P2pEndpoint>,
        "coder.tailnet.v2.TelemetryRequest" => check::<tailnet::TelemetryRequest>,
        "coder.tailnet.v2.TelemetryResponse" => check::<()>,
        "coder.tailnet.v2.WorkspaceUpdatesRequest" => check::<tailnet::WorkspaceUpdatesRequest>,
        "coder.tailnet.v2.WorkspaceUpdate" => check::<tailnet::WorkspaceUpdate>,
        "coder.tailnet.v2.Workspace" => check::<tailnet::Workspace>,
        "coder.tailnet.v2.Agent" => check::<tailnet::Agent>,
        "coder.agent.v2.WorkspaceApp" => check::<agent::WorkspaceApp>,
        "coder.agent.v2.WorkspaceApp.Healthcheck" => check::<agent::Healthcheck>,
        "coder.agent.v2.WorkspaceAgentScript" => check::<agent::Script>,
        "coder.agent.v2.WorkspaceAgentMetadata" => check::<agent::WorkspaceAgentMetadata>,
        "coder.agent.v2.WorkspaceAgentMetadata.Result" => check::<agent::MetadataResult>,
        "coder.agent.v2.WorkspaceAgentMetadata.Description" => check::<agent::MetadataDescription>,
        "coder.agent.v2.Manifest" => check::<agent::Manifest>,
        "coder.agent.v2.WorkspaceAgentDevcontainer" => check::<agent::Devcontainer>,
        "coder.agent.v2.GetManifestRequest" => check::<()>,
        "coder.agent.v2.ServiceBanner" => check::<agent::ServiceBanner>,
        "coder.agent.v2.GetServiceBannerRequest" => check::<()>,
        "coder.agent.v2.Stats" => check::<agent::Stats>,
        "coder.agent.v2.Stats.Metric" => check::<agent::Metric>,
        "coder.agent.v2.Stats.Metric.Label" => check::<agent::MetricLabel>,
        "coder.agent.v2.UpdateStatsRequest" => check::<agent::UpdateStatsRequest>,
        "coder.agent.v2.UpdateStatsResponse" => check::<agent::UpdateStatsResponse>,
        "coder.agent.v2.Lifecycle" => check::<agent::Lifecycle>,
        "coder.agent.v2.UpdateLifecycleRequest" => check::<agent::UpdateLifecycleRequest>,
        "coder.agent.v2.BatchUpdateAppHealthRequest" => check::<agent::BatchUpdateAppHealthRequest>,
        "coder.agent.v2.BatchUpdateAppHealthRequest.HealthUpdate" => check::<agent::HealthUpdate>,
        "coder.agent.v2.BatchUpdateAppHealthResponse" => check::<()>,
        "coder.agent.v2.Startup" => check::<agent::Startup>,
        "coder.agent.v2.UpdateStartupRequest" => check::<agent::UpdateStartupRequest>,
        "coder.agent.v2.Metadata" => check::<agent::Metadata>,
        "coder.agent.v2.BatchUpdateMetadataRequest" => check::<agent::BatchUpdateMetadataRequest>,
        "coder.agent.v2.BatchUpdateMetadataResponse" => check::<()>,
        "coder.agent.v2.Log" => check::<agent::Log>,
        "coder.agent.v2.BatchCreateLogsRequest" => check::<agent::BatchCreateLogsRequest>,
        "coder.agent.v2.BatchCreateLogsResponse" => check::<agent::BatchCreateLogsResponse>,
        "coder.agent.v2.GetAnnouncementBannersRequest" => check::<()>,
        "coder.agent.v2.GetAnnouncementBannersResponse" => check::<agent::GetAnnouncementBannersResponse>,
        "coder.agent.v2.BannerConfig" => check::<agent::BannerConfig>,
        "coder.agent.v2.WorkspaceAgentScriptCompletedRequest" => check::<agent::ScriptCompletedRequest>,
        "coder.agent.v2.WorkspaceAgentScriptCompletedResponse" => check::<()>,
        "coder.agent.v2.Timing" => check::<agent::Timing>,
        "coder.agent.v2.GetResourcesMonitoringConfigurationRequest" => check::<()>,
        "coder.agent.v2.GetResourcesMonitoringConfigurationResponse" => check::<agent::ResourcesMonitoring>,
        "coder.agent.v2.GetResourcesMonitoringConfigurationResponse.Config" => check::<agent::ResourcesConfig>,
        "coder.agent.v2.GetResourcesMonitoringConfigurationResponse.Memory" => check::<agent::ResourcesMemory>,
        "coder.agent.v2.GetResourcesMonitoringConfigurationResponse.Volume" => check::<agent::ResourcesVolume>,
        "coder.agent.v2.PushResourcesMonitoringUsageRequest" => check::<agent::PushResourcesUsageRequest>,
        "coder.agent.v2.PushResourcesMonitoringUsageRequest.Datapoint" => check::<agent::Datapoint>,
        "coder.agent.v2.PushResourcesMonitoringUsageRequest.Datapoint.MemoryUsage" => check::<agent::MemoryUsage>,
        "coder.agent.v2.PushResourcesMonitoringUsageRequest.Datapoint.VolumeUsage" => check::<agent::VolumeUsage>,
        "coder.agent.v2.PushResourcesMonitoringUsageResponse" => check::<()>,
        "coder.agent.v2.Connection" => check::<agent::Connection>,
        "coder.agent.v2.ReportConnectionRequest" => check::<agent::ReportConnectionRequest>,
        "google.protobuf.Timestamp" => check::<prost_types::Timestamp>,
        "google.protobuf.Duration" => check::<prost_types::Duration>,
        "google.protobuf.BoolValue" => check::<bool>,
        "google.protobuf.FloatValue" => check::<f32>,
        // The server answers these calls with code 12.
        name if name.contains("SubAgent") => return None,
        name => panic!("no type for {name}"),
    })
}

/// Names compare without case and underscores: `PreferredDERP`, `preferred_derp`, `PreferredDerp`.
fn plain(text: &str) -> String {
    text.replace('_', "").to_lowercase()
}

/// Asserts that each scalar field of a message stands under its own name in the `Debug` text.
fn assert_named(message: &str, value: &Value, debug: &str) {
    let hidden = ["Manifest", "WorkspaceSecret", "RefreshResumeTokenResponse"];
    if hidden.iter().any(|h| message.ends_with(h)) {
        return;
    }
    let debug = plain(debug);
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = plain(name.strip_prefix("type").map_or(name.as_str(), |_| "r#type"));
        let name = name.trim_start_matches("r#");
        let shown = match value {
            // 64-bit numbers are strings of digits, enums are upper-case names, bytes are base64.
            Value::String(text) if text.chars().all(|c| c.is_ascii_digit()) => vec![format!("{name}: {text}")],
            Value::String(text) => vec![format!("{name}: {text:?}"), format!("{name}: {text}"), format!("{name}: [")],
            Value::Bool(flag) => vec![format!("{name}: {flag}"), format!("{name}: some({flag})")],
            Value::Number(number) => vec![format!("{name}: {number}"), format!("{name}: some({number}")],
            Value::Null | Value::Array(_) | Value::Object(_) => continue,
        };
        let shown: Vec<String> = shown.iter().map(|s| plain(s)).collect();
        let optional = format!("{name}: some(");
        assert!(shown.iter().any(|s| debug.contains(s)) || debug.contains(&optional), "{message}.{name}: {shown:?} in {debug}");
    }
}

#[test]
fn every_message_reads_and_writes_the_bytes_of_go() {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/wire/proto-messages.json")).unwrap();
    let mut seen = 0;
    for key in ["all_fields", "well_known_types"] {
        for row in vectors[key].as_array().unwrap() {
            let name = row["message"].as_str().unwrap();
            let Some(check) = of(name) else { continue };
            let bytes = hex::decode(row["hex"].as_str().unwrap()).unwrap();
            let (written, debug) = check(&bytes).unwrap_or_else(|| panic!("{name} does not decode"));
            if written != bytes {
                // Map entries with an empty value: prost leaves the value out, Go writes it, both read both.
                assert_eq!(name, "coder.tailnet.v2.TelemetryRequest", "{debug}");
                assert_eq!(check(&written).unwrap().1, debug);
            }
            if key == "all_fields" {
                assert_named(name, &row["value"], &debug);
            }
            seen += 1;
        }
    }
    assert!(seen > 80, "{seen}");
}

#[test]
fn odd_encodings_are_read_as_in_go() {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/wire/proto-messages.json")).unwrap();
    for row in vectors["reading_rules"].as_array().unwrap() {
        let name = row["name"].as_str().unwrap();
        let check = of(row["message"].as_str().unwrap()).unwrap();
        let read = check(&hex::decode(row["hex"].as_str().unwrap()).unwrap());
        if name.starts_with("wrong wire type") {
            assert!(read.is_none(), "prost refuses what Go ignores; no peer sends it");
            continue;
        }
        assert_eq!(read.is_some(), row["ok"].as_bool().unwrap(), "{name}");
        if let Some((_, debug)) = read {
            assert_named(row["message"].as_str().unwrap(), &row["value"], &debug);
        }
    }
}

#[test]
fn merged_messages_and_unpacked_enums_have_the_values_of_go() {
    let merged = tailnet::CoordinateRequest::decode(hex::decode("0a040a0208010a040a022807").unwrap().as_slice()).unwrap();
    let node = merged.update_self.unwrap().node.unwrap();
    assert_eq!((node.id, node.preferred_derp), (1, 7));
    for text in ["1a020103", "18011803"] {
        let startup = agent::Startup::decode(hex::decode(text).unwrap().as_slice()).unwrap();
        assert_eq!(startup.subsystems, [agent::Subsystem::Envbox as i32, agent::Subsystem::Exectrace as i32]);
    }
}

#[test]
fn secrets_stay_out_of_debug_texts() {
    let secret = agent::WorkspaceSecret { env_name: "T".into(), file_path: String::new(), value: b"hunter2".to_vec() };
    let manifest = agent::Manifest {
        environment_variables: [("KEY".into(), "hunter2".into())].into(),
        scripts: vec![agent::Script { script: "echo hunter2".into(), ..Default::default() }],
        secrets: vec![secret.clone()],
        ..Default::default()
    };
    let token = tailnet::RefreshResumeTokenResponse { token: "hunter2".into(), ..Default::default() };
    assert!(!format!("{secret:?} {manifest:?} {token:?}").contains("hunter2"));
    assert!(!format!("{secret:?}").contains("104, 117"));
}

#[test]
fn every_path_is_one_of_the_descriptors() {
    let calls: Value = serde_json::from_str(include_str!("../../../tests/vectors/wire/agent-calls.json")).unwrap();
    let text = calls.to_string();
    for path in [
        agent::GET_MANIFEST,
        agent::GET_SERVICE_BANNER,
        agent::UPDATE_STATS,
        agent::UPDATE_LIFECYCLE,
        agent::BATCH_UPDATE_APP_HEALTHS,
        agent::UPDATE_STARTUP,
        agent::BATCH_UPDATE_METADATA,
        agent::BATCH_CREATE_LOGS,
        agent::GET_ANNOUNCEMENT_BANNERS,
        agent::SCRIPT_COMPLETED,
        agent::GET_RESOURCES_MONITORING,
        agent::PUSH_RESOURCES_USAGE,
        agent::REPORT_CONNECTION,
    ] {
        assert!(path.starts_with(agent::SERVICE));
        assert!(text.contains(&format!("\"{path}\"")), "{path}");
    }
}

#[test]
fn a_node_is_dated_to_the_microsecond() {
    let mut node = tailnet::Node::default();
    node.set_as_of(crate::base::WallTime::from_unix(std::time::Duration::new(1_700_000_000, 123_456_789)));
    assert_eq!(hex::encode(node.as_of.unwrap().encode_to_vec()), "0880e2cfaa06108094ef3a");
}
