//! The flags of `coder ping`.

use crate::cli::args::{Listing, go_bool, go_duration};
use clap::{Args, ValueEnum};
use std::time::Duration;

#[derive(Debug, Args)]
pub(in crate::cli) struct Ping {
    /// [OWNER/]WORKSPACE[.AGENT]
    pub(super) workspace: String,
    /// Time between two pings
    #[arg(long, default_value = "1s", value_parser = go_duration, value_name = "DURATION", allow_hyphen_values = true)]
    pub(super) wait: Duration,
    /// Time until a ping counts as lost
    #[arg(short, long, default_value = "5s", value_parser = some_time, value_name = "DURATION", allow_hyphen_values = true)]
    pub(super) timeout: Duration,
    /// How many pings; 0 goes on until interrupted
    #[arg(short, long, default_value = "0", value_name = "COUNT", allow_hyphen_values = true)]
    pub(super) num: u64,
    /// Begin each line with the local time
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) time: bool,
    /// Begin each line with the time in UTC
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) utc: bool,
    /// Columns of the table, one or several
    #[arg(
        short,
        long,
        value_enum,
        ignore_case = true,
        value_delimiter = ',',
        default_value = "workspace,total,successful,min,avg,max,variance",
        value_name = "COLUMNS"
    )]
    pub(super) column: Vec<Column>,
    /// Output format; JSON needs --num
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Listing,
}

/// A duration in which something can come.
fn some_time(text: &str) -> Result<Duration, String> {
    let time = go_duration(text)?;
    if time.is_zero() { Err("it has to be longer than 0: no answer comes in no time".to_owned()) } else { Ok(time) }
}

/// A column of the summary, in the order in which they stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(in crate::cli) enum Column {
    /// Which one was asked for
    Workspace,
    /// Pings sent
    Total,
    /// Answers
    Successful,
    /// Shortest time
    Min,
    /// Mean
    Avg,
    /// Longest time
    Max,
    /// Variance in s²
    Variance,
}
