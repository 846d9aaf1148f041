//! What a workspace adds to its agent's manifest: start folder, environment, message of the day, scripts (agent.md §3.1).
//!
//! There are no templates here; whoever makes a workspace gives it as JSON, which is kept as it was checked.

use crate::wire::coord::agent;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, fmt};
use uuid::Uuid;

/// Most scripts of a workspace.
const MAX_SCRIPTS: usize = 64;
/// Longest time that a script may be given: a day.
const MAX_TIMEOUT: u64 = 86_400;

/// The additions. Empty by default.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Additions {
    /// Where commands start; `~` and variables are the agent's to replace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) directory: String,
    /// File shown at login.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) motd_path: String,
    /// Variables of every command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) environment: BTreeMap<String, String>,
    /// What runs at the agent's start and stop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) scripts: Vec<Script>,
}

/// One script.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Script {
    /// For people.
    pub(crate) display_name: String,
    /// For the user's shell, or with its own `#!`.
    pub(crate) script: String,
    #[serde(default)]
    pub(crate) run_on_start: bool,
    #[serde(default)]
    pub(crate) run_on_stop: bool,
    /// Users shall wait for its end.
    #[serde(default)]
    pub(crate) start_blocks_login: bool,
    /// 0 sets no limit.
    #[serde(default)]
    pub(crate) timeout_seconds: u64,
    /// By default a file in the agent's log folder.
    #[serde(default)]
    pub(crate) log_path: String,
}

impl fmt::Debug for Additions {
    // Environment and scripts may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Additions")
            .field("directory", &self.directory)
            .field("scripts", &self.scripts.len())
            .finish_non_exhaustive()
    }
}

impl Additions {
    /// Reads and checks what a user sends.
    ///
    /// # Errors
    /// What is wrong, for the user.
    pub(crate) fn parse(value: Value) -> Result<Self, String> {
        // A list would be taken for the fields in their order.
        if !value.is_object() {
            return Err("it has to be an object with the fields directory, motd_path, environment and scripts".to_owned());
        }
        let this: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> Result<(), String> {
        for (what, text) in [("directory", &self.directory), ("motd_path", &self.motd_path)] {
            if text.contains('\0') {
                return Err(format!("{what} holds a NUL byte"));
            }
        }
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("environment: {name:?} is no name of a variable"));
            }
            if value.contains('\0') {
                return Err(format!("environment: the value of {name} holds a NUL byte"));
            }
        }
        if self.scripts.len() > MAX_SCRIPTS {
            return Err(format!("scripts: there are {}, and {MAX_SCRIPTS} at most may be", self.scripts.len()));
        }
        for (at, script) in self.scripts.iter().enumerate() {
            let wrong = |what: &str| Err(format!("scripts: number {} ({:?}): {what}", at + 1, script.display_name));
            if script.display_name.trim().is_empty() {
                return wrong("display_name is empty");
            }
            if script.script.trim().is_empty() || script.script.contains('\0') {
                return wrong("script is empty, or holds a NUL byte");
            }
            if !script.run_on_start && !script.run_on_stop {
                return wrong("it never runs: set run_on_start or run_on_stop to true");
            }
            if script.start_blocks_login && !script.run_on_start {
                return wrong("start_blocks_login needs run_on_start");
            }
            if script.timeout_seconds > MAX_TIMEOUT {
                return wrong("timeout_seconds is more than a day");
            }
        }
        Ok(())
    }

    /// Adds it to the manifest of the agent.
    pub(crate) fn add_to(&self, manifest: &mut agent::Manifest, agent: Uuid) {
        manifest.directory.clone_from(&self.directory);
        manifest.motd_path.clone_from(&self.motd_path);
        manifest.environment_variables.clone_from(&self.environment);
        manifest.scripts = self.scripts.iter().enumerate().map(|(at, script)| script.message(agent, at)).collect();
    }

    /// The scripts and the sources of their logs, as the API shows them.
    pub(crate) fn views(&self, agent: Uuid, created_at: &str) -> (Value, Value) {
        let scripts = self.scripts.iter().enumerate().map(|(at, script)| {
            json!({
                "id": id(agent, "script", at),
                "log_source_id": id(agent, "log source", at),
                "log_path": script.log_path,
                "script": script.script,
                "cron": "",
                "run_on_start": script.run_on_start,
                "run_on_stop": script.run_on_stop,
                "start_blocks_login": script.start_blocks_login,
                "timeout": script.timeout_seconds,
                "display_name": script.display_name,
            })
        });
        let sources = self.scripts.iter().enumerate().map(|(at, script)| {
            json!({
                "workspace_agent_id": agent,
                "id": id(agent, "log source", at),
                "created_at": created_at,
                "display_name": script.display_name,
                "icon": "",
            })
        });
        (scripts.collect(), sources.collect())
    }
}

impl Script {
    fn message(&self, agent: Uuid, at: usize) -> agent::Script {
        let seconds = i64::try_from(self.timeout_seconds).unwrap_or_default();
        agent::Script {
            id: id(agent, "script", at).as_bytes().to_vec(),
            log_source_id: id(agent, "log source", at).as_bytes().to_vec(),
            log_path: self.log_path.clone(),
            script: self.script.clone(),
            cron: String::new(),
            run_on_start: self.run_on_start,
            run_on_stop: self.run_on_stop,
            start_blocks_login: self.start_blocks_login,
            timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
            display_name: self.display_name.clone(),
        }
    }
}

/// The id of the `at`-th thing of its kind of an agent: always the same one.
fn id(agent: Uuid, kind: &str, at: usize) -> Uuid {
    let hash = Sha256::new().chain_update(agent.as_bytes()).chain_update(kind).chain_update(at.to_be_bytes()).finalize();
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(change: Value) -> Value {
        let mut script = json!({ "display_name": "set up", "script": "make", "run_on_start": true });
        script.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({ "scripts": [script] })
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (value, named) in [
            (json!([]), "has to be an object"),
            (json!({ "directry": "~" }), "directry"),
            (json!({ "environment": { "A=B": "" } }), "\"A=B\" is no name"),
            (json!({ "environment": { "A": "\0" } }), "value of A"),
            (json!({ "environment": { "A": 1 } }), "string"),
            (json!({ "scripts": [{ "script": "x" }] }), "display_name"),
            (script(json!({ "script": " " })), "number 1 (\"set up\"): script is empty"),
            (script(json!({ "run_on_start": false })), "never runs"),
            (script(json!({ "run_on_start": false, "run_on_stop": true, "start_blocks_login": true })), "needs run_on_start"),
            (script(json!({ "timeout_seconds": 86_401 })), "more than a day"),
            (script(json!({ "timeout_seconds": -1 })), "-1"),
            (script(json!({ "cron": "* * * * *" })), "cron"),
        ] {
            let said = Additions::parse(value).unwrap_err();
            assert!(said.contains(named), "{said}");
        }
        let many: Vec<_> = (0..=MAX_SCRIPTS).map(|_| script(json!({}))["scripts"][0].clone()).collect();
        assert!(Additions::parse(json!({ "scripts": many })).unwrap_err().contains("64 at most"));
    }

    #[test]
    fn it_goes_into_the_manifest_with_ids_that_stay() {
        let mut value = script(json!({ "timeout_seconds": 5, "start_blocks_login": true }));
        value["directory"] = "~/src".into();
        value["environment"] = json!({ "A": "b" });
        let additions = Additions::parse(value).unwrap();
        let (agent, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let of = |agent| {
            let mut manifest = agent::Manifest::default();
            additions.add_to(&mut manifest, agent);
            manifest
        };
        let manifest = of(agent);
        assert_eq!((manifest.directory.as_str(), manifest.environment_variables["A"].as_str()), ("~/src", "b"));
        let sent = &manifest.scripts[0];
        assert!(sent.run_on_start && sent.start_blocks_login && sent.timeout.unwrap().seconds == 5);
        assert_eq!((sent.id.len(), sent.log_source_id.len()), (16, 16));
        assert_ne!(sent.id, sent.log_source_id);
        assert!(of(agent) == manifest && of(other).scripts[0].id != sent.id);
        let (scripts, sources) = additions.views(agent, "");
        assert_eq!(scripts[0]["id"], Uuid::from_slice(&sent.id).unwrap().to_string());
        assert_eq!(sources[0]["id"], scripts[0]["log_source_id"]);
        let stored = serde_json::to_string(&additions).unwrap();
        assert_eq!(Additions::parse(serde_json::from_str(&stored).unwrap()).unwrap(), additions);
        assert!(!format!("{additions:?}").contains("make"));
    }
}
