//! `coder stat`: how busy this machine and its container are (`cli.md` §2.15). For use inside a workspace.

mod cgroup;
mod figure;
mod host;

use super::{
    args::{Listing, Output, go_bool},
    output,
};
use cgroup::Cgroup;
use clap::{Args, Subcommand, ValueEnum, builder::PossibleValuesParser};
use figure::Figure;
use serde_json::{Map, Value};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The columns by the names that `--column` takes; in capitals they are the table's heads.
const COLUMNS: [&str; 5] = ["host cpu", "host memory", "home disk", "container cpu", "container memory"];
/// How long the processors are watched.
const WATCH: Duration = Duration::from_millis(500);

/// Flags of `coder stat`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Stat {
    /// Columns of the table, all by default
    #[arg(short, long, value_name = "COLUMNS", value_delimiter = ',', ignore_case = true, value_parser = PossibleValuesParser::new(COLUMNS))]
    column: Vec<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Listing,
    #[command(subcommand)]
    command: Option<StatCommand>,
}

#[derive(Debug, Subcommand)]
enum StatCommand {
    /// Processors: of the container where there is one
    Cpu {
        #[command(flatten)]
        host: Host,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Memory: of the container where there is one
    #[command(alias = "memory")]
    Mem {
        #[command(flatten)]
        host: Host,
        /// Unit
        #[arg(long, value_enum, default_value = "Gi")]
        prefix: Prefix,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Space on a disk
    Disk {
        /// A folder on it
        #[arg(long, default_value = "/", value_name = "DIR")]
        path: PathBuf,
        /// Unit
        #[arg(long, value_enum, default_value = "Gi")]
        prefix: Prefix,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
}

#[derive(Debug, Args)]
struct Host {
    /// Of the whole machine, also in a container
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true)]
    host: bool,
}

/// A power of 1,024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
enum Prefix {
    /// 1,024
    Ki,
    /// 1,024²
    Mi,
    /// 1,024³
    Gi,
    /// 1,024⁴
    Ti,
}

impl Prefix {
    const fn name(self) -> &'static str {
        match self {
            Self::Ki => "Ki",
            Self::Mi => "Mi",
            Self::Gi => "Gi",
            Self::Ti => "Ti",
        }
    }

    const fn factor(self) -> f64 {
        match self {
            Self::Ki => 1024.0,
            Self::Mi => 1_048_576.0,
            Self::Gi => 1_073_741_824.0,
            Self::Ti => 1_099_511_627_776.0,
        }
    }
}

pub(super) async fn run(args: &Stat) -> anyhow::Result<u8> {
    match &args.command {
        None => all(args).await,
        Some(StatCommand::Cpu { host, output }) => {
            let figure = match Cgroup::of_container().filter(|_| !host.host) {
                Some(cgroup) => container_cpu(&cgroup).await?,
                None => host_cpu().await?,
            };
            one(&figure, *output, None)
        }
        Some(StatCommand::Mem { host, prefix, output }) => {
            let figure = match Cgroup::of_container().filter(|_| !host.host) {
                Some(cgroup) => cgroup.memory()?,
                None => host::memory()?,
            };
            one(&figure, *output, Some(*prefix))
        }
        Some(StatCommand::Disk { path, prefix, output }) => one(&host::disk(path)?, *output, Some(*prefix)),
    }
}

fn one(figure: &Figure, format: Output, prefix: Option<Prefix>) -> anyhow::Result<u8> {
    match format {
        Output::Text => output::line(&figure.text(prefix.map(|p| (p.name(), p.factor()))))?,
        Output::Json => output::line(&serde_json::to_string_pretty(&figure.json())?)?,
    }
    Ok(0)
}

/// Processors that were busy while they were watched.
async fn host_cpu() -> anyhow::Result<Figure> {
    let before = host::cpu()?;
    tokio::time::sleep(WATCH).await;
    Ok(host::busy(&before, &host::cpu()?))
}

async fn container_cpu(cgroup: &Cgroup) -> anyhow::Result<Figure> {
    let before = cgroup.cpu_time()?;
    let began = crate::driver::clock::now();
    tokio::time::sleep(WATCH).await;
    let passed = crate::driver::clock::now() - began;
    let used = cgroup.cpu_time()?.saturating_sub(before).as_secs_f64() / passed.as_secs_f64().max(f64::EPSILON);
    Ok(Figure { used, total: cgroup.cpu_limit()?, unit: "cores" })
}

/// All figures in one row.
async fn all(args: &Stat) -> anyhow::Result<u8> {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let cgroup = Cgroup::of_container();
    let of_container = async {
        match &cgroup {
            Some(cgroup) => Some(container_cpu(cgroup).await),
            None => None,
        }
    };
    let (host_cpu, container_cpu) = tokio::join!(host_cpu(), of_container);
    let figures = [
        Some(host_cpu?),
        Some(host::memory()?),
        Some(host::disk(Path::new(&home))?),
        container_cpu.transpose()?,
        cgroup.as_ref().map(Cgroup::memory).transpose()?,
    ];
    if args.output == Listing::Json {
        let row: Map<String, Value> = COLUMNS
            .iter()
            .zip(&figures)
            .map(|(name, figure)| (name.replace(' ', "_"), figure.as_ref().map_or(Value::Null, Figure::json)))
            .collect();
        output::line(&serde_json::to_string_pretty(&[row])?)?;
        return Ok(0);
    }
    output::line(&table(&figures, &args.column))?;
    Ok(0)
}

fn table(figures: &[Option<Figure>; 5], chosen: &[String]) -> String {
    let wanted = |name: &&str| chosen.is_empty() || chosen.iter().any(|c| c.eq_ignore_ascii_case(name));
    let gibi = Some((Prefix::Gi.name(), Prefix::Gi.factor()));
    let cell = |figure: &Option<Figure>| {
        let Some(figure) = figure else { return "<nil>".to_owned() };
        figure.text(if figure.unit == "B" { gibi } else { None })
    };
    let shown: Vec<_> = COLUMNS.iter().zip(figures).filter(|(name, _)| wanted(name)).collect();
    let heads: Vec<String> = shown.iter().map(|(name, _)| name.to_uppercase()).collect();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    output::table(&heads, &[shown.iter().map(|(_, figure)| cell(figure)).collect()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_go_command_line() {
        let gibi = Prefix::Gi.factor();
        let bytes = |used: f64, total: f64| Some(Figure { used: used * gibi, total: Some(total * gibi), unit: "B" });
        let cpu = Some(Figure { used: 1.999_999_9, total: Some(2.0), unit: "cores" });
        let figures = [cpu, bytes(0.998, 23.5), bytes(19.4, 252.0), None, None];
        let vector = include_str!("../../../tests/vectors/cli/stat.txt");
        let want: Vec<&str> =
            vector.lines().skip_while(|l| *l != "## stdout").skip(1).take_while(|l| *l != "## stderr").collect();
        assert_eq!(table(&figures, &[]), want.join("\n"));
        assert_eq!(table(&figures, &["HOME disk".to_owned()]), "HOME DISK          \n19.4/252 GiB (8%)  ");
    }
}
