//! Global flags of the Go command line that have nothing to switch here: wrappers and editors pass them, so they are taken.

use super::args::go_bool;
use clap::Args;

/// Their variables need nothing: an unknown variable disturbs nobody.
#[derive(Debug, Clone, Args)]
pub(super) struct Ignored {
    /// There is no warning of versions
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool)]
    no_version_warning: bool,
    /// There is no warning of licences
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool)]
    no_feature_warning: bool,
    /// There is no telemetry
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool)]
    disable_network_telemetry: bool,
    /// The login is a file
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool)]
    use_keyring: bool,
    /// No command opens a browser
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool)]
    no_open: bool,
}
