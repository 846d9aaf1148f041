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
    pub(super) workspace: String,
    /// Begin only when the connection is direct
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    pub(super) direct: bool,
    /// Who sends: the workspace (down) or this machine (up)
    #[arg(long, value_enum, default_value = "down", value_name = "DIRECTION")]
    pub(super) direction: Direction,
    /// How long to measure
    #[arg(short, long, default_value = "5s", value_parser = test_time, value_name = "DURATION", allow_hyphen_values = true)]
    pub(super) time: Duration,
    /// File to write every packet of the tunnel to, for Wireshark
    #[arg(long, value_name = "FILE")]
    pub(super) pcap_file: Option<PathBuf>,
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
    pub(super) column: Vec<SpeedColumn>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Listing,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command, explain};
    use clap::Parser as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_flags_of_a_speed_test_are_read_and_what_it_cannot_do_is_refused() {
        let Command::Speedtest(args) = parse("coder speedtest dev").unwrap().command else { panic!("not speedtest") };
        assert_eq!(
            (args.direct, args.direction, args.time, args.output),
            (false, Direction::Down, Duration::from_secs(5), Listing::Table)
        );
        assert_eq!(args.column, [SpeedColumn::Interval, SpeedColumn::Throughput]);
        let line = "coder speedtest -d --direction up -t 200ms -c Throughput,TRANSFER -o table admin/dev";
        let Command::Speedtest(args) = parse(line).unwrap().command else { panic!("not speedtest") };
        assert_eq!((args.direct, args.direction, args.time), (true, Direction::Up, Duration::from_millis(200)));
        assert_eq!(args.column, [SpeedColumn::Throughput, SpeedColumn::Transfer]);
        // As the editor calls it.
        parse("coder --global-config /d speedtest dev --output json -t 5s").unwrap();
        for (line, named) in [
            ("coder speedtest -t 5 dev", "missing unit"),
            ("coder speedtest -t 25h dev", "24 h at most"),
            ("coder speedtest --direction both dev", "both"),
            ("coder speedtest -c latency dev", "latency"),
            ("coder speedtest -o xml dev", "xml"),
            ("coder speedtest", "<WORKSPACE>"),
        ] {
            let said = explain(&parse(line).unwrap_err());
            assert!(said.contains(named), "{line}: {said}");
        }
    }
}
