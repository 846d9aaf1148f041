//! The flags of `coder config-ssh`.

use super::options::split_option;
use crate::cli::args::{Wait, go_bool, part_of_host, suffix};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(in crate::cli) struct ConfigSsh {
    /// File to write to
    #[arg(long, env = "CODER_SSH_CONFIG_FILE", default_value = "~/.ssh/config", value_name = "FILE")]
    pub(super) ssh_config_file: PathBuf,
    /// Absolute path of the program that OpenSSH is to run; by default this one
    #[arg(long, env = "CODER_SSH_CONFIG_BINARY_PATH", value_name = "FILE", value_parser = absolute)]
    pub(super) coder_binary_path: Option<PathBuf>,
    /// Option of OpenSSH for every workspace, KEY=VALUE or "KEY VALUE"; without a value it leaves out what else would stand
    /// there; may be repeated
    #[arg(short = 'o', long, env = "CODER_SSH_CONFIG_OPTS", value_name = "OPTION", value_delimiter = ',', value_parser = ssh_option)]
    pub(super) ssh_option: Vec<String>,
    /// Show what would change as a diff and write nothing
    #[arg(short = 'n', long, env = "CODER_SSH_DRY_RUN", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) dry_run: bool,
    /// Take the options of the last run and no others
    #[arg(long, env = "CODER_SSH_USE_PREVIOUS_OPTIONS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) use_previous_options: bool,
    /// Prefix of the host names; by default the deployment's
    #[arg(long, env = "CODER_CONFIGSSH_SSH_HOST_PREFIX", value_name = "PREFIX", value_parser = part_of_host)]
    pub(super) ssh_host_prefix: Option<String>,
    /// Suffix of the host names, without its dot; by default the deployment's
    #[arg(long, env = "CODER_CONFIGSSH_HOSTNAME_SUFFIX", value_name = "SUFFIX", value_parser = suffix)]
    pub(super) hostname_suffix: Option<String>,
    /// Whether a connection waits for the workspace's startup scripts
    #[arg(long, env = "CODER_CONFIGSSH_WAIT", value_enum, default_value = "auto")]
    pub(super) wait: Wait,
    /// Let a connection not start a stopped workspace
    #[arg(long, env = "CODER_CONFIGSSH_DISABLE_AUTOSTART", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) disable_autostart: bool,
    /// Write no ProxyCommand
    #[arg(long, env = "CODER_SSH_SKIP_PROXY_COMMAND", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub(super) skip_proxy_command: bool,
    /// Taken for compatibility: paths are written as they are
    #[arg(long, env = "CODER_CONFIGSSH_UNIX_FILEPATHS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub(super) force_unix_filepaths: bool,
    /// Ask nothing and write
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) yes: bool,
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    if path.is_absolute() { Ok(path) } else { Err("the path has to be absolute".to_owned()) }
}

fn ssh_option(text: &str) -> Result<String, String> {
    split_option(text).map(|_| text.to_owned())
}
