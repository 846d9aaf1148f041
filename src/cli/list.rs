//! `coder list`: the workspaces as a table or as JSON (`cli.md` §2.3).

use super::{
    args::{Global, List, Listing},
    deployment::{Deployment, explain},
    output,
};
use crate::{
    client::{Transition, Workspace},
    driver::clock,
};
use anyhow::Context as _;
use std::time::Duration;

/// The columns by the names that `--column` takes; in capitals they are the table's heads.
pub(super) const COLUMNS: [&str; 9] =
    ["workspace", "template", "status", "healthy", "last built", "current version", "outdated", "starts at", "stops after"];

pub(super) async fn run(global: &Global, args: &List) -> anyhow::Result<u8> {
    let deployment = Deployment::open(global).await?;
    let query = if args.all { "" } else { &args.search };
    let found = deployment.client.workspaces(query).await.map_err(explain)?;
    if args.output == Listing::Json {
        output::line(&serde_json::to_string_pretty(&found)?)?;
        return Ok(0);
    }
    let workspaces: Vec<Workspace> =
        serde_json::from_value(found.into()).context("the server's list of workspaces cannot be read")?;
    if workspaces.is_empty() {
        output::note("You have no workspaces. Make one with 'coder create <name>'.");
        return Ok(0);
    }
    let now = clock::wall().since_unix();
    let chosen: Vec<usize> = match args.column.as_slice() {
        [] => (0..COLUMNS.len()).collect(),
        names => names.iter().filter_map(|name| COLUMNS.iter().position(|column| column.eq_ignore_ascii_case(name))).collect(),
    };
    let pick = |cells: &[String]| chosen.iter().filter_map(|at| cells.get(*at).cloned()).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = workspaces.iter().map(|w| pick(&row(w, now))).collect();
    let heads = pick(&COLUMNS.map(str::to_uppercase));
    output::line(&output::table(&heads.iter().map(String::as_str).collect::<Vec<_>>(), &rows))?;
    Ok(0)
}

fn row(workspace: &Workspace, now: Duration) -> Vec<String> {
    let build = &workspace.latest_build;
    let started = build.status == "running" && build.transition == Transition::Start;
    vec![
        format!("  {}/{}", workspace.owner_name, workspace.name),
        workspace.template_name.clone(),
        status(&build.status),
        // Health is a matter of running workspaces only.
        if started { workspace.health.healthy.to_string() } else { String::new() },
        built(&build.created_at, now),
        build.template_version_name.clone(),
        workspace.outdated.to_string(),
        String::new(),
        String::new(),
    ]
}

/// The build's status in the words of the Go command line.
fn status(status: &str) -> String {
    match status {
        "running" => "Started".to_owned(),
        other => {
            let mut letters = other.chars();
            letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
        }
    }
}

/// How long ago the build was made, in its two largest units.
fn built(created_at: &str, now: Duration) -> String {
    let Ok(at) = created_at.parse::<jiff::Timestamp>() else { return String::new() };
    let at = Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    let seconds = now.saturating_sub(at).as_secs();
    let minutes = seconds / 60;
    match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
        (0, 0, 0) if seconds == 0 => "0s".to_owned(),
        (0, 0, 0) => "<1m".to_owned(),
        (0, 0, m) => format!("{m}m"),
        (0, h, 0) => format!("{h}h"),
        (0, h, m) => format!("{h}h{m}m"),
        (d, 0, _) => format!("{d}d"),
        (d, h, _) => format!("{d}d{h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_states_read_as_in_the_go_table() {
        let now = Duration::from_secs(1_000_000);
        let at = |ago: i64| jiff::Timestamp::from_second(1_000_000 - ago).unwrap().to_string();
        for (ago, text) in [(0, "0s"), (59, "<1m"), (90, "1m"), (7200, "2h"), (3 * 3600 + 120, "3h2m")] {
            assert_eq!(built(&at(ago), now), text);
        }
        assert_eq!(built(&at(2 * 86_400 + 60), now), "2d");
        assert_eq!(built(&at(2 * 86_400 + 3600), now), "2d1h");
        assert_eq!(status("running"), "Started");
        assert_eq!(status("stopped"), "Stopped");
    }
}
