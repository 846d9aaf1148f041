//! What is asked, in this order, and why some answers differ.

use super::{Case, Slack};

/// Our agent tells the home folder where no other was chosen; Go's tells nothing.
pub const FOLDER: Slack = ("expanded_directory", "our agent names the home folder");
const FULL_NAME: Slack = ("name", "users have no full name yet");
const VERSION: Slack = ("validations", "it names the API version of the server");
/// Our builds are done when they are made.
const DONE: &[Slack] = &[
    ("started_at", "the build is done already"),
    ("completed_at", "the build is done already"),
    ("worker_id", "the build is done already"),
    ("has_ai_task", "the build is done already"),
    ("has_external_agent", "the build is done already"),
    ("most_recently_seen", "nothing but the server itself builds"),
    ("resources", "a start has its agent at once"),
];

/// Answers that are alike, but for the fields that are named with a reason.
pub const ALIKE: &[Case] = &[
    ("buildinfo", &[]),
    ("users_first_exists", &[]),
    ("error_409_users_first", &[]),
    ("users_me", &[FULL_NAME]),
    ("users_me_member", &[]),
    ("organizations_me", &[]),
    ("key_create", &[]),
    ("key_get", &[]),
    ("token_config", &[]),
    ("token_create", &[]),
    ("token_by_name", &[]),
    ("tokens_list", &[]),
    ("token_create_lifetime_zero", &[]),
    ("error_400_token_lifetime", &[]),
    ("error_409_token_name_taken", &[]),
    ("error_404_token_name", &[]),
    ("error_404_key", &[]),
    ("error_401_login_password", &[]),
    ("users_authmethods", &[]),
    ("applications_host", &[]),
    ("error_401_no_token", &[]),
    ("error_401_bad_key", &[]),
    ("error_401_malformed_token", &[]),
    ("error_401_agent_token_on_user_route", &[]),
    ("agent_rpc_without_token", &[]),
    ("agent_rpc_malformed_token", &[]),
    ("agent_rpc_user_token", &[]),
    ("agent_rpc_unknown_token", &[]),
    ("workspace", &[FOLDER]),
    ("workspace_by_owner_and_name", &[FOLDER]),
    ("workspaces_query", &[FOLDER]),
    ("workspaces_query_empty", &[]),
    ("workspace_usage_body", &[]),
    ("workspace_usage_plain", &[]),
    ("usage_half_body_ignored", &[]),
    ("usage_unknown_app_ignored", &[]),
    ("template_version", &[]),
    ("workspace_agent", &[FOLDER]),
    ("workspace_agent_never_connected", &[]),
    ("workspace_agent_connection", &[]),
    ("workspace_agents_connection_generic", &[]),
    ("workspace_agent_logs", &[]),
    ("workspace_build", &[FOLDER]),
    ("workspace_builds_list", &[FOLDER]),
    ("workspace_build_logs", &[]),
    ("deployment_ssh", &[]),
    ("healthz", &[]),
    ("derp_without_upgrade", &[]),
    ("derp_latency_check", &[]),
    ("derp_upgrade", &[]),
    ("derp_upgrade_websocket", &[]),
    ("derp_upgrade_websocket_no_subprotocol", &[]),
    ("coordinate_upgrade", &[]),
    ("coordinate_without_upgrade", &[]),
    ("coordinate_bad_version", &[VERSION]),
    ("agent_rpc_bad_version", &[VERSION]),
    ("workspace_watch_sse", &[FOLDER]),
    ("workspace_watch_ws", &[FOLDER]),
    ("workspace_agent_logs_follow", &[]),
    ("workspace_build_logs_follow", &[]),
    ("error_400_agent_id_not_uuid", &[]),
    ("error_400_workspace_id_not_uuid", &[]),
    ("error_400_build_bad_reason", &[]),
    ("error_400_build_bad_transition", &[]),
    ("error_400_build_not_json", &[("detail", "the JSON parser's own words")]),
    ("error_400_user", &[]),
    ("error_400_user_not_visible", &[]),
    ("error_400_workspaces_limit", &[]),
    ("error_400_workspaces_query", &[]),
    ("error_404_agent_connection_of_other_user", &[]),
    ("error_404_agent_coordinate_of_other_user", &[]),
    ("error_404_agent_of_other_user", &[]),
    ("error_404_agent_id", &[]),
    ("error_404_build_of_other_user", &[]),
    ("error_404_usage_other_user", &[]),
    ("error_404_workspace_id", &[]),
    ("error_404_workspace_name", &[]),
    ("error_404_workspace_of_other_user", &[]),
    ("error_404_route", &[]),
    ("error_404_bin", &[]),
    ("appearance", &[]),
    ("entitlements", &[]),
    ("workspaceproxies", &[]),
    ("key_delete", &[]),
    ("logout", &[]),
    ("tailnet_without_upgrade", &[]),
    ("error_400_listening_ports_agent_not_connected", &[]),
    ("workspace_agent_listening_ports", &[]),
    ("pty_bad_parameters", &[]),
    ("pty_upgrade", &[]),
    ("pty_wrong_origin", &[]),
    ("build_stop", DONE),
    ("build_start", DONE),
    ("agent_rpc_upgrade", &[]),
];

/// The agent of `dev` after its end.
pub const LOST_AGENT: Case = ("workspace_agent_disconnected", &[FOLDER]);
/// And when it is asked for its ports.
pub const LOST_AGENT_PORTS: Case = ("error_400_listening_ports_agent_disconnected", &[]);
/// A server with `--block-direct-connections --derp-force-websockets`.
pub const BLOCKED: Case = ("workspace_agent_connection_block_direct_force_websockets", &[]);
/// A server with names and options for OpenSSH.
pub const SSH_SETTINGS: Case = ("deployment_ssh_options", &[]);

const INSIDE: &str = "asked through a tunnel in src/agent/services/tests.rs";
const DASHBOARD: &str = "for the dashboard, which is not there yet";
const CONTAINERS: &str = "our agents have no dev containers: 403";
const SCRIPTS: &str = "workspaces have no scripts yet";

/// What our server does not answer, and why.
pub const NOT_SERVED: &[(&str, &str)] = &[
    ("agent_containers_no_docker", CONTAINERS),
    ("agent_debug_manifest", INSIDE),
    ("agent_error_404", INSIDE),
    ("agent_error_404_list_directory", INSIDE),
    ("agent_error_500_list_directory", INSIDE),
    ("agent_list_directory_home", INSIDE),
    ("agent_listening_ports", INSIDE),
    ("agent_netcheck", INSIDE),
    ("agent_root", INSIDE),
    ("applications_host_wildcard", "needs a server of its own; src/server/tests/operation.rs holds it"),
    ("debug_health", DASHBOARD),
    ("derp_map_updates", "for clients older than the control socket"),
    ("derp_upgrade_fast_start", "has no HTTP answer; src/server/tests/sockets.rs holds it"),
    ("error_400_users_first_password", "the first user is there before anybody asks"),
    ("error_403_deployment_config_member", DASHBOARD),
    ("error_403_health_member", DASHBOARD),
    ("error_404_key_expire", "newer servers expire tokens, and so does ours; src/server/tests/keys.rs holds it"),
    ("error_404_pty_signed_token_agpl", "the route is for proxies, which are not there yet"),
    ("error_409_build_conflict", "needs a build that takes time; src/server/tests/builds.rs holds it"),
    ("experiments", DASHBOARD),
    ("latency_check", DASHBOARD),
    ("login", "its password is not in the vector; src/server/tests/keys.rs holds it"),
    ("port_share_list", DASHBOARD),
    ("regions", DASHBOARD),
    ("regions_wildcard", DASHBOARD),
    ("tailnet_upgrade", "for Coder Desktop, which needs a TUN device"),
    ("users_first_missing", "the server makes its first user itself"),
    ("workspace_agent_connection_stun", "needs a server of its own; src/server/relays.rs holds it"),
    ("workspace_agent_containers", CONTAINERS),
    ("workspace_agent_logs_of_script", SCRIPTS),
    ("workspace_agent_metadata_sse", SCRIPTS),
    ("workspace_agent_with_script_and_app", SCRIPTS),
    ("workspace_build_started_by_ssh", "asked as workspace_build; only the reason differs"),
];
