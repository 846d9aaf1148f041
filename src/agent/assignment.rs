//! What the server assigns to this agent: its manifest, checked and made usable (agent.md §3.1).

use super::{
    account::Account,
    api,
    environment::{Profile, expand},
    health::App,
    metadata::Fact,
    scripts::Script,
    secrets::SecretFile,
};
use crate::{
    driver::http::Token,
    wire::{
        coord::agent::Manifest,
        derp::{MapError, RelayMap},
    },
};
use prost::Message as _;
use serde_json::Value;
use std::{ffi::OsString, fmt, path::PathBuf};
use uuid::Uuid;

/// A manifest that can be worked with.
#[derive(Clone, PartialEq)]
pub(crate) struct Assignment {
    pub(crate) agent: Uuid,
    pub(crate) profile: Profile,
    /// As the server sent it: its embedded node still has to be pointed at the server.
    pub(crate) relay_map: RelayMap,
    pub(crate) direct: bool,
    pub(crate) force_websockets: bool,
    /// The manifest without secrets, for whoever looks for a fault.
    pub(crate) manifest: Value,
    pub(crate) scripts: Vec<Script>,
    pub(crate) facts: Vec<Fact>,
    pub(crate) apps: Vec<App>,
    pub(crate) secrets: Vec<SecretFile>,
}

impl fmt::Debug for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assignment").field("agent", &self.agent).field("profile", &self.profile).finish_non_exhaustive()
    }
}

/// Why a manifest is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssignmentError {
    #[error("the server's manifest cannot be read")]
    Unreadable(#[from] prost::DecodeError),
    #[error("the server's manifest names no agent")]
    NoAgent,
    #[error("the server's manifest has no relay map")]
    NoRelayMap,
    #[error("the server's relay map is of no use: {0}")]
    RelayMap(#[from] MapError),
}

/// What a manifest is read against.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) account: &'a Account,
    /// The environment of the agent process.
    pub(crate) process: &'a [(OsString, OsString)],
    pub(crate) token: &'a Token,
}

impl Assignment {
    pub(crate) fn parse(manifest: &[u8], around: Surroundings<'_>) -> Result<Self, AssignmentError> {
        let manifest = Manifest::decode(manifest)?;
        let agent = Uuid::from_slice(&manifest.agent_id).ok().filter(|id| !id.is_nil());
        let relay_map = manifest.derp_map.as_ref().ok_or(AssignmentError::NoRelayMap)?;
        let description = api::describe(&manifest);
        let (account, process) = (around.account, around.process);
        let files = manifest.secrets.iter().filter(|s| !s.file_path.is_empty() && !s.file_path.contains('\0'));
        let files =
            files.map(|s| SecretFile { path: directory(&s.file_path, account, process), value: s.value.clone() }).collect();
        let profile = Profile {
            owner: manifest.owner_username,
            workspace: manifest.workspace_name,
            agent: manifest.agent_name,
            // Only shown to commands; an old server leaves it out.
            workspace_id: Uuid::from_slice(&manifest.workspace_id).unwrap_or_default(),
            token: around.token.clone(),
            variables: manifest.environment_variables.into_iter().filter(|(n, v)| usable(n, v.as_bytes())).collect(),
            secrets: (manifest.secrets.into_iter())
                .filter(|s| usable(&s.env_name, &s.value))
                .map(|s| (s.env_name, s.value))
                .collect(),
            port_proxy_uri: manifest.vs_code_port_proxy_uri,
            directory: directory(&manifest.directory, around.account, around.process),
            motd: manifest.motd_path.into(),
            script_bin: PathBuf::new(),
        };
        Ok(Self {
            agent: agent.ok_or(AssignmentError::NoAgent)?,
            profile,
            relay_map: RelayMap::try_from(relay_map)?,
            direct: !manifest.disable_direct_connections,
            force_websockets: manifest.derp_force_websockets,
            manifest: description,
            scripts: manifest.scripts.into_iter().map(Into::into).collect(),
            facts: manifest.metadata.into_iter().map(Into::into).collect(),
            apps: manifest.apps.into_iter().filter_map(App::new).collect(),
            secrets: files,
        })
    }
}

/// Whether a process can be given this variable.
fn usable(name: &str, value: &[u8]) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains(&0)
}

/// The start folder a manifest names: `~` and variables replaced, relative to the home folder. `$HOME` is the home folder,
/// as in every session, whether the agent itself was started with a usable one or not.
fn directory(text: &str, account: &Account, vars: &[(OsString, OsString)]) -> PathBuf {
    let home = &account.home;
    let own = [("HOME".into(), home.clone().into_os_string())];
    let text = expand(text, &[&own, vars].concat());
    if text == "~" || text.is_empty() {
        return home.clone();
    }
    match text.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        // An absolute path replaces what it is joined to.
        None => home.join(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::coord::agent::WorkspaceSecret;
    use std::path::Path;

    fn account() -> Account {
        Account { name: "dev".into(), home: "/home/dev".into(), shell: "/bin/zsh".into() }
    }

    fn parse(manifest: &Manifest) -> Result<Assignment, AssignmentError> {
        let around = Surroundings { account: &account(), process: &[], token: &Token::new("sesame") };
        Assignment::parse(&manifest.encode_to_vec(), around)
    }

    /// The manifest that the Go server sent.
    fn recorded() -> Manifest {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/wire/agent-calls.json");
        let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let call = all["calls"].as_array().unwrap().iter().find(|c| c["call"] == "GetManifest").unwrap();
        Manifest::decode(hex::decode(call["reply"][0]["data"].as_str().unwrap()).unwrap().as_slice()).unwrap()
    }

    #[test]
    fn the_recorded_manifest_is_an_assignment() {
        let assignment = parse(&recorded()).unwrap();
        assert_eq!(assignment.agent.to_string(), "2b1e3346-53c0-4d1b-a0e5-3cbb8f6ed1a0");
        let profile = &assignment.profile;
        assert_eq!((profile.owner.as_str(), profile.workspace.as_str(), profile.agent.as_str()), ("alice", "dev", "main"));
        assert_eq!(profile.workspace_id.to_string(), "5c3f2c1a-7d0e-4f6b-9a41-0e1d2c3b4a59");
        assert_eq!(profile.directory, Path::new("/home/dev/project"));
        assert_eq!(profile.variables["PATH"], "$PATH:/opt/bin");
        assert_eq!(assignment.relay_map.regions.len(), 2);
        assert!(assignment.direct && !assignment.force_websockets);
        assert!(!format!("{assignment:?}").contains("sesame"));
    }

    #[test]
    fn a_manifest_without_agent_or_relays_is_refused() {
        for agent_id in [Vec::new(), vec![0; 16], vec![1; 15]] {
            assert!(matches!(parse(&Manifest { agent_id, ..recorded() }), Err(AssignmentError::NoAgent)));
        }
        assert!(matches!(parse(&Manifest { derp_map: None, ..recorded() }), Err(AssignmentError::NoRelayMap)));
        let around = Surroundings { account: &account(), process: &[], token: &Token::default() };
        assert!(matches!(Assignment::parse(&[0xff], around), Err(AssignmentError::Unreadable(_))));
    }

    #[test]
    fn variables_that_no_process_can_have_are_left_out() {
        let bad = [("A=B", "x"), ("", "x"), ("N", "a\0b"), ("GOOD", "x")];
        let environment_variables = bad.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let assignment = parse(&Manifest { environment_variables, ..recorded() }).unwrap();
        assert_eq!(assignment.profile.variables.keys().collect::<Vec<_>>(), ["GOOD"]);
    }

    #[test]
    fn a_secret_may_be_a_variable_a_file_or_both() {
        let secret = |env_name: &str, file_path: &str| WorkspaceSecret {
            env_name: env_name.into(),
            file_path: file_path.into(),
            value: b"v".to_vec(),
        };
        let secrets = vec![secret("A", ""), secret("", "~/.token"), secret("B", "/run/b")];
        let assignment = parse(&Manifest { secrets, ..recorded() }).unwrap();
        let names: Vec<_> = assignment.profile.secrets.iter().map(|(name, _)| name.as_str()).collect();
        let paths: Vec<_> = assignment.secrets.iter().map(|s| s.path.to_str().unwrap()).collect();
        assert_eq!((names, paths), (vec!["A", "B"], vec!["/home/dev/.token", "/run/b"]));
    }

    #[test]
    fn a_start_folder_is_taken_from_the_home_folder() {
        let vars = [("P".into(), "/srv".into())];
        let of = |text| directory(text, &account(), &vars).to_str().unwrap().to_owned();
        let expected = ["/home/dev", "/home/dev", "/home/dev/a", "/home/dev/b", "/srv/c", "/d"];
        assert_eq!([of(""), of("~"), of("~/a"), of("b"), of("$P/c"), of("/d")], expected);
        assert_eq!([of("$HOME"), of("${HOME}/a")], ["/home/dev", "/home/dev/a"], "the agent has no such variable");
    }
}
