//! What the deployment wants in its users' SSH configurations.

use std::collections::BTreeMap;

/// How OpenSSH names the workspaces of the deployment, and with what options it reaches them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshHosts {
    /// In front of a workspace's name.
    pub prefix: String,
    /// Behind a workspace's name and a dot.
    pub suffix: String,
    /// Options of OpenSSH by their names.
    pub options: BTreeMap<String, String>,
}

impl Default for SshHosts {
    fn default() -> Self {
        Self { prefix: "coder.".to_owned(), suffix: "coder".to_owned(), options: BTreeMap::new() }
    }
}
