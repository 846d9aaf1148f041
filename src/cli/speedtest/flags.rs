//! The flags of `coder speedtest`.

use crate::{
    cli::args::{Listing, go_bool, go_duration},
    net::speedtest::MAX_TIME,
};
use clap::{Args, ValueEnum};
use std::{path::PathBuf, time::Duration};

#[derive(Debug, Args)]
pub(in crate::cli) struct Speedtest {
    /// [OWNER/]WORKSPACE[.AGENT]
    pub(in crate::cli) workspace: String,
    /// Begin only when the connection is direct
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(in crate::cli) direct: bool,
    /// Who sends: the workspace (down) or this machine (up)
    #[arg(long, value_enum, default_value = "down", value_name = "DIRECTION")]
    pub(in crate::cli) direction: Direction,
    /// How long to measure
    #[arg(short, long, default_value = "5s", value_parser = test_time, value_name = "DURATION", allow_hyphen_values = true)]
    pub(in crate::cli) time: Duration,
    /// File to write every packet of the tunnel to, for Wireshark
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) pcap_file: Option<PathBuf>,
    /// Columns of the table, one or several
    #[arg(
        short,
        long,
        value_enum,
        ignore_case = true,
        value_delimiter = ',',
        default_value = "interval,throughput",
        value_name = "COLUMNS"
    )]
    pub(in crate::cli) column: Vec<SpeedColumn>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(in crate::cli) output: Listing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Direction {
    /// From the workspace to this machine
    Down,
    /// From this machine to the workspace
    Up,
}

/// A column of the speed test's table, in the order in which they stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(in crate::cli) enum SpeedColumn {
    /// Begin and end
    Interval,
    /// Amount of data
    Transfer,
    /// Speed
    Throughput,
}

/// A duration that a speed test can have.
fn test_time(text: &str) -> Result<Duration, String> {
    let time = go_duration(text)?;
    if time > MAX_TIME { Err(format!("a test lasts {} h at most", MAX_TIME.as_secs() / 3600)) } else { Ok(time) }
}
