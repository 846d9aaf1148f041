//! The manifest for whoever looks for a fault: Go's field names, but nothing that may be a secret.

use crate::wire::{
    coord::agent::{Manifest, Script, WorkspaceApp},
    derp::RelayMap,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Stands for what is not shown.
const HIDDEN: &str = "<hidden>";

/// A manifest without secrets: of variables only the names, of scripts and commands only that they are there.
pub(crate) fn describe(manifest: &Manifest) -> Value {
    let id = |bytes: &[u8]| Uuid::from_slice(bytes).unwrap_or_default();
    let mut relay_map = manifest.derp_map.as_ref().and_then(|map| RelayMap::try_from(map).ok()).map(|map| map.to_json());
    if let Some(Value::Object(map)) = &mut relay_map {
        map.entry("HomeParams").or_insert_with(|| json!({}));
    }
    let variables: BTreeMap<_, _> = manifest.environment_variables.keys().map(|name| (name, HIDDEN)).collect();
    json!({
        "parent_id": id(manifest.parent_id.as_deref().unwrap_or_default()),
        "agent_id": id(&manifest.agent_id),
        "agent_name": manifest.agent_name,
        "owner_name": manifest.owner_username,
        "workspace_id": id(&manifest.workspace_id),
        "workspace_name": manifest.workspace_name,
        "git_auth_configs": manifest.git_auth_configs,
        "vscode_port_proxy_uri": manifest.vs_code_port_proxy_uri,
        "apps": manifest.apps.iter().map(app).collect::<Vec<_>>(),
        "derpmap": relay_map,
        "derp_force_websockets": manifest.derp_force_websockets,
        "environment_variables": if variables.is_empty() { Value::Null } else { json!(variables) },
        "directory": manifest.directory,
        "motd_file": manifest.motd_path,
        "disable_direct_connections": manifest.disable_direct_connections,
        "metadata": (manifest.metadata.iter())
            .map(|m| json!({
                "display_name": m.display_name,
                "key": m.key,
                "script": hide(&m.script),
                "interval": nanos(m.interval.as_ref()),
                "timeout": nanos(m.timeout.as_ref()),
            }))
            .collect::<Vec<_>>(),
        "scripts": manifest.scripts.iter().map(script).collect::<Vec<_>>(),
        "devcontainers": (manifest.devcontainers.iter())
            .map(|d| json!({
                "id": id(&d.id),
                "name": d.name,
                "workspace_folder": d.workspace_folder,
                "config_path": d.config_path,
            }))
            .collect::<Vec<_>>(),
    })
}

fn hide(text: &str) -> &'static str {
    if text.is_empty() { "" } else { HIDDEN }
}

fn nanos(duration: Option<&prost_types::Duration>) -> i64 {
    duration.map_or(0, |d| d.seconds.saturating_mul(1_000_000_000).saturating_add(d.nanos.into()))
}

fn app(app: &WorkspaceApp) -> Value {
    json!({
        "id": Uuid::from_slice(&app.id).unwrap_or_default(),
        "url": hide(&app.url),
        "external": app.external,
        "slug": app.slug,
        "display_name": app.display_name,
        "command": hide(&app.command),
        "icon": app.icon,
        "subdomain": app.subdomain,
        "subdomain_name": app.subdomain_name,
        "hidden": app.hidden,
    })
}

fn script(script: &Script) -> Value {
    json!({
        "id": Uuid::from_slice(&script.id).unwrap_or_default(),
        "log_source_id": Uuid::from_slice(&script.log_source_id).unwrap_or_default(),
        "log_path": script.log_path,
        "script": hide(&script.script),
        "cron": script.cron,
        "run_on_start": script.run_on_start,
        "run_on_stop": script.run_on_stop,
        "start_blocks_login": script.start_blocks_login,
        "timeout": nanos(script.timeout.as_ref()),
        "display_name": script.display_name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::coord::agent::WorkspaceSecret;

    #[test]
    fn no_value_that_may_be_a_secret_is_shown() {
        let hunter2 = || "hunter2".to_owned();
        let manifest = Manifest {
            environment_variables: [("TOKEN".to_owned(), hunter2())].into(),
            secrets: vec![WorkspaceSecret { env_name: "S".into(), value: b"hunter2".to_vec(), ..Default::default() }],
            scripts: vec![Script { script: hunter2(), ..Default::default() }],
            apps: vec![WorkspaceApp { url: hunter2(), command: hunter2(), ..Default::default() }],
            ..Default::default()
        };
        let shown = describe(&manifest).to_string();
        assert!(!shown.contains("hunter2") && shown.contains("TOKEN"), "{shown}");
    }
}
