//! The workspace argument (`cli.md` §1.7): `[owner/]workspace[.agent]` in all its spellings.

use std::fmt;

/// What a workspace argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// User name, or `me`.
    pub(super) owner: String,
    /// Workspace name.
    pub(super) workspace: String,
    /// Agent name, when one was given.
    pub(super) agent: Option<String>,
    /// The argument itself, for messages.
    pub(super) typed: String,
}

/// How OpenSSH host names are turned into workspace arguments.
#[derive(Debug, Clone, Default)]
pub(super) struct HostNames {
    /// `--ssh-host-prefix`
    pub(super) prefix: Option<String>,
    /// `--hostname-suffix`, without the leading dot
    pub(super) suffix: Option<String>,
}

impl HostNames {
    /// Cuts the prefix, or else the suffix, from `argument`; without a match it stays as it is.
    fn strip<'a>(&self, argument: &'a str) -> &'a str {
        if let Some(rest) = self.prefix.as_deref().filter(|p| !p.is_empty()).and_then(|p| argument.strip_prefix(p)) {
            return rest;
        }
        self.suffix
            .as_deref()
            .filter(|s| !s.is_empty())
            .and_then(|s| argument.strip_suffix(s.trim_start_matches('.')))
            .and_then(|rest| rest.strip_suffix('.'))
            .unwrap_or(argument)
    }
}

impl Target {
    /// Reads an argument. Anything with more than three parts is taken as typed, so that the server's answer names it.
    pub(super) fn parse(argument: &str, names: &HostNames) -> Self {
        let typed = argument;
        let argument = names.strip(argument);
        let (parts, separators) = split(argument);
        let dots_only = separators.iter().all(|s| *s == Separator::Dot);
        let of = |owner: &str, workspace: &str, agent: Option<&str>| Self {
            owner: owner.to_owned(),
            workspace: workspace.to_owned(),
            agent: agent.filter(|a| !a.is_empty()).map(str::to_owned),
            typed: typed.to_owned(),
        };
        match parts.as_slice() {
            [workspace, agent] if dots_only => of("me", workspace, Some(agent)),
            [owner, workspace] => of(owner, workspace, None),
            // The form of Coder Connect: agent.workspace.owner
            [agent, workspace, owner] if dots_only => of(owner, workspace, Some(agent)),
            [owner, workspace, agent] => of(owner, workspace, Some(agent)),
            _ => of("me", argument, None),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.workspace)?;
        self.agent.as_ref().map_or(Ok(()), |agent| write!(f, ".{agent}"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Separator {
    Dot,
    Other,
}

/// Cuts on `--` and on runs of `/` and `.`.
fn split(argument: &str) -> (Vec<&str>, Vec<Separator>) {
    let (mut parts, mut separators) = (Vec::new(), Vec::new());
    let mut rest = argument;
    loop {
        let cut = [rest.find("--").map(|at| (at, 2)), rest.find(['/', '.']).map(|at| (at, 1))].into_iter().flatten().min();
        let Some((at, len)) = cut else {
            parts.push(rest);
            return (parts, separators);
        };
        let (part, tail) = rest.split_at(at);
        let (separator, tail) = tail.split_at(len);
        let run = if len == 1 { tail.trim_start_matches(['/', '.']) } else { tail };
        let dots = separator == "." && tail.len() - run.len() == tail.bytes().take_while(|b| *b == b'.').count();
        parts.push(part);
        separators.push(if dots { Separator::Dot } else { Separator::Other });
        rest = run;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(argument: &str) -> (String, String, Option<String>) {
        let t = Target::parse(argument, &HostNames::default());
        (t.owner, t.workspace, t.agent)
    }

    fn is(owner: &str, workspace: &str, agent: Option<&str>) -> (String, String, Option<String>) {
        (owner.into(), workspace.into(), agent.map(Into::into))
    }

    #[test]
    fn every_spelling_of_the_page_names_what_go_reads() {
        for (argument, want) in [
            ("dev", is("me", "dev", None)),
            ("dev.main", is("me", "dev", Some("main"))),
            ("admin/dev", is("admin", "dev", None)),
            ("admin//dev", is("admin", "dev", None)),
            ("admin--dev", is("admin", "dev", None)),
            ("admin/dev.main", is("admin", "dev", Some("main"))),
            ("admin--dev--main", is("admin", "dev", Some("main"))),
            ("admin--dev.main", is("admin", "dev", Some("main"))),
            ("admin/dev--main", is("admin", "dev", Some("main"))),
            ("main.dev.admin", is("admin", "dev", Some("main"))),
            ("main.dev.me", is("me", "dev", Some("main"))),
            ("dev.", is("me", "dev", None)),
            ("a.b.c.d", is("me", "a.b.c.d", None)),
            ("my-dev", is("me", "my-dev", None)),
        ] {
            assert_eq!(read(argument), want, "{argument}");
        }
    }

    #[test]
    fn prefix_and_suffix_are_cut_only_where_they_match() {
        let names = |prefix: &str, suffix: &str| HostNames { prefix: Some(prefix.into()), suffix: Some(suffix.into()) };
        assert_eq!(Target::parse("coder.dev", &names("coder.", "")).workspace, "dev");
        assert_eq!(Target::parse("dev.coder", &names("", "coder")).workspace, "dev");
        assert_eq!(Target::parse("dev.encoder", &names("", "coder")).agent.as_deref(), Some("encoder"));
        assert_eq!(Target::parse("main.dev.admin.coder", &names("", "coder")).owner, "admin");
    }
}
