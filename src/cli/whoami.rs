//! `coder whoami`: the login that commands use (`cli.md` §2.2).

use super::{
    args::Global,
    deployment::{Deployment, explain},
    output,
};
use crate::client::User;
use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use serde::Serialize;
use std::collections::BTreeMap;

/// The columns by the names that `--column` takes; in capitals they are the table's heads.
const COLUMNS: [&str; 5] = ["url", "username", "id", "orgs", "roles"];

/// Flags of `coder whoami`.
#[derive(Debug, Args)]
pub(super) struct Whoami {
    /// Columns of the table
    #[arg(short, long, value_name = "COLUMNS", value_delimiter = ',', default_value = "url,username,id", ignore_case = true,
          value_parser = PossibleValuesParser::new(COLUMNS))]
    column: Vec<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A sentence
    Text,
    /// One JSON document
    Json,
    /// Columns
    Table,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    url: &'a str,
    username: &'a str,
    user_id: String,
    organization_ids: Vec<String>,
    /// By organization, `*` for the whole deployment.
    roles: BTreeMap<&'a str, Vec<&'a str>>,
}

pub(super) async fn run(global: &Global, args: &Whoami) -> anyhow::Result<u8> {
    let deployment = Deployment::open(global).await?;
    let user = deployment.client.me().await.map_err(explain)?;
    let row = Row::new(&deployment.url, &user);
    match args.output {
        Format::Text => output::line(&format!("Coder is running at {}, You're authenticated as {} !", row.url, row.username))?,
        // Neither of the other two ends its last line.
        Format::Json => output::raw(&serde_json::to_string_pretty(&[row])?)?,
        Format::Table => output::raw(&row.table(&args.column))?,
    }
    Ok(0)
}

impl<'a> Row<'a> {
    fn new(url: &'a str, user: &'a User) -> Self {
        let mut roles: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for role in &user.roles {
            let place = role.organization_id.as_deref().filter(|id| !id.is_empty()).unwrap_or("*");
            let name = if role.display_name.is_empty() { &role.name } else { &role.display_name };
            roles.entry(place).or_default().push(name);
        }
        Self {
            url,
            username: &user.username,
            user_id: user.id.to_string(),
            organization_ids: user.organization_ids.iter().map(ToString::to_string).collect(),
            roles,
        }
    }

    fn table(&self, columns: &[String]) -> String {
        let cell = |name: &String| match name.to_ascii_lowercase().as_str() {
            "url" => self.url.to_owned(),
            "username" => self.username.to_owned(),
            "id" => self.user_id.clone(),
            "orgs" => format!("[{}]", self.organization_ids.join(" ")),
            _ => {
                let places = self.roles.iter().map(|(place, names)| format!("{place}:[{}]", names.join(" ")));
                format!("map[{}]", places.collect::<Vec<_>>().join(" "))
            }
        };
        let heads: Vec<String> = columns.iter().map(|c| c.to_uppercase()).collect();
        let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
        output::table(&heads, &[columns.iter().map(cell).collect()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        let vector: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors/http/users_me.json")).unwrap();
        serde_json::from_value(vector["body"].clone()).unwrap()
    }

    fn stdout(vector: &str) -> String {
        let lines = vector.lines().skip_while(|l| *l != "## stdout").skip(1);
        lines.take_while(|l| *l != "## stderr" && !l.starts_with("%% no newline")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn table_and_json_are_those_of_the_go_command_line() {
        let user = user();
        let row = Row::new("http://127.0.0.1:3100", &user);
        let columns = ["url", "username", "id"].map(str::to_owned);
        assert_eq!(row.table(&columns), stdout(include_str!("../../tests/vectors/cli/whoami_table.txt")));
        let json = serde_json::to_string_pretty(&[row]).unwrap();
        assert_eq!(json, stdout(include_str!("../../tests/vectors/cli/whoami_json.txt")));
    }

    #[test]
    fn roles_and_organizations_are_columns_for_who_asks() {
        let user = user();
        let table = Row::new("http://h", &user).table(&["Roles", "ORGS"].map(str::to_owned));
        assert!(table.starts_with("ROLES ") && table.contains("map[*:[Owner]]") && table.contains("[14b0fc98-"), "{table}");
    }
}
