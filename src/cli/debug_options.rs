//! `--debug-options`: where the value of each option of a command comes from (`cli.md` §1.2).

use clap::{ArgMatches, Command, parser::ValueSource};

/// Blanks behind the longest name.
const GAP: usize = 4;

/// The table of the command that `matches` chose.
pub(super) fn table(command: &Command, matches: &ArgMatches) -> String {
    let (mut command, mut matches) = (command, matches);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else { break };
        (command, matches) = (found, inner);
    }
    let own = command.get_arguments().filter(|arg| !arg.is_global_set() && !["help", "version"].contains(&arg.get_id().as_str()));
    let mut rows: Vec<(String, &str)> = own
        .filter_map(|arg| {
            let name = format!("\"{}\"", arg.get_long()?);
            let nothing = || arg.get_default_values().iter().all(|value| ["", "0", "false"].iter().any(|none| value == none));
            let source = match matches.value_source(arg.get_id().as_str()) {
                Some(ValueSource::CommandLine) => "flag",
                Some(ValueSource::EnvVariable) => "env",
                // What is nothing anyhow counts as not set.
                Some(ValueSource::DefaultValue) if !nothing() => "default",
                _ => "",
            };
            Some((name, source))
        })
        .collect();
    rows.sort_unstable();
    let width = rows.iter().map(|(name, _)| name.chars().count()).chain(["Option".len()]).max().unwrap_or(0) + GAP;
    let head = format!("{:width$}Value Source\n", "Option");
    rows.iter().fold(head, |out, (name, source)| format!("{out}{name:width$}{source}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use clap::CommandFactory as _;

    fn shown(line: &str) -> String {
        let mut command = Cli::command();
        let matches = command.try_get_matches_from_mut(line.split(' ')).unwrap();
        table(&command, &matches)
    }

    #[test]
    fn each_option_of_the_command_names_its_source() {
        let shown = shown("coder show --debug-options --details dev");
        assert_eq!(shown, "Option       Value Source\n\"details\"    flag\n");
    }

    #[test]
    fn options_are_sorted_and_those_of_all_commands_left_out() {
        let vector = include_str!("../../tests/vectors/cli/debug_options.txt");
        let theirs: Vec<&str> =
            vector.lines().skip_while(|l| *l != "## stdout").skip(1).take_while(|l| *l != "## stderr").collect();
        let shown = shown("coder ping --debug-options -v dev");
        // We have options that the Go command has not; those of both say the same.
        let names = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for line in &theirs {
            assert!(shown.lines().any(|own| names(own) == names(line)), "{line:?} is not in\n{shown}");
        }
        let mut sorted: Vec<&str> = shown.lines().skip(1).collect();
        sorted.sort_unstable();
        assert_eq!(sorted, shown.lines().skip(1).collect::<Vec<_>>());
        assert!(!shown.contains("verbose"), "{shown}");
    }
}
