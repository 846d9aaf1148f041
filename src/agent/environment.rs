//! What a command sees in its environment, and in which order the sources override each other (agent.md §6.3).

use super::account::Account;
use crate::driver::http::Token;
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// Variables of the client that steer the agent and never reach a command (agent.md §6.10).
const STRIPPED: [&str; 3] = ["CODER_SSH_SESSION_TYPE", "CODER_CONTAINER", "CODER_CONTAINER_USER"];

/// What the server's manifest says about this agent, as far as commands see it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Name of the workspace's owner.
    pub owner: String,
    /// Name of the workspace.
    pub workspace: String,
    /// Name of the agent.
    pub agent: String,
    /// Id of the workspace.
    pub workspace_id: Uuid,
    /// The agent's own token, which commands may use against the server.
    pub token: Token,
    /// Variables of the template; `$NAME` and `${NAME}` in a value mean the agent's own environment.
    pub variables: BTreeMap<String, String>,
    /// Secrets of the user that have a variable's name, taken as they are.
    pub secrets: Vec<(String, Vec<u8>)>,
    /// Address under which a browser reaches the workspace's ports; empty when there is none.
    pub port_proxy_uri: String,
    /// Where commands start, already expanded; the home folder where it is no folder.
    pub directory: PathBuf,
    /// File shown to a terminal session without command; empty when there is none.
    pub motd: PathBuf,
    /// Folder of programs that the workspace's scripts made, first in `PATH`; empty when there is none.
    pub script_bin: PathBuf,
}

impl Profile {
    /// Where commands start and relative paths begin: the root where even the home is no folder. Blocks for as long as the
    /// file system does.
    pub(crate) fn folder<'a>(&'a self, account: &'a Account) -> &'a Path {
        [&self.directory, &account.home].into_iter().find(|d| d.is_dir()).map_or(Path::new("/"), |d| d)
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("owner", &self.owner)
            .field("workspace", &self.workspace)
            .field("agent", &self.agent)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// The terminal of a session that asked for one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal<'a> {
    /// `TERM` as the client named it.
    pub(crate) kind: &'a str,
    /// Device path of the terminal.
    pub(crate) device: &'a OsStr,
}

/// Everything a command's environment is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) profile: &'a Profile,
    pub(crate) account: &'a Account,
    /// The environment of the agent process.
    pub(crate) process: &'a [(OsString, OsString)],
    /// What the client sent, in its order.
    pub(crate) client: &'a [(String, String)],
    /// The agent's own binary.
    pub(crate) executable: &'a Path,
    pub(crate) terminal: Option<Terminal<'a>>,
    /// The socket behind which the client's key agent answers.
    pub(crate) key_agent: Option<&'a Path>,
    /// The X11 display that leads to the client's.
    pub(crate) display: Option<&'a str>,
}

impl Sources<'_> {
    /// The environment, each name once.
    pub(crate) fn build(&self) -> BTreeMap<OsString, OsString> {
        let Self { profile, account, process, client, executable, terminal, key_agent, display } = *self;
        let mut out: BTreeMap<OsString, OsString> = BTreeMap::new();
        let mut put = |name: &str, value: OsString| out.insert(name.into(), value);
        put("CODER", "true".into());
        put("CODER_WORKSPACE_NAME", (&profile.workspace).into());
        put("CODER_WORKSPACE_AGENT_NAME", (&profile.agent).into());
        put("CODER_WORKSPACE_OWNER_NAME", (&profile.owner).into());
        put("CODER_WORKSPACE_ID", profile.workspace_id.to_string().into());
        put("CODER_AGENT_TOKEN", profile.token.expose().into());
        put("CS_DISABLE_GETTING_STARTED_OVERRIDE", "true".into());
        // The agent's own, unless that is of no use: then `~` would be another folder than the one where commands start.
        put("HOME", account.home.clone().into());
        if !profile.port_proxy_uri.is_empty() {
            put("VSCODE_PROXY_URI", (&profile.port_proxy_uri).into());
        }

        // Among these the first occurrence wins, and none replaces a fixed value.
        for (name, value) in process {
            out.entry(name.clone()).or_insert_with(|| value.clone());
        }
        for (name, value) in client.iter().filter(|(name, _)| !STRIPPED.contains(&name.as_str())) {
            out.entry(name.into()).or_insert_with(|| value.into());
        }
        let of_account =
            [("USER", account.name.as_ref()), ("LOGNAME", account.name.as_ref()), ("SHELL", account.shell.as_os_str())];
        for (name, value) in of_account {
            out.entry(name.into()).or_insert_with(|| value.to_owned());
        }

        for (name, value) in &profile.variables {
            out.insert(name.into(), expand(value, process).into());
        }
        for (name, value) in &profile.secrets {
            out.insert(name.into(), os_string(value.clone()));
        }
        if let Some(folder) = executable.parent().filter(|f| !f.as_os_str().is_empty()) {
            let path = out.entry("PATH".into()).or_default();
            if !std::env::split_paths(path).any(|p| p == folder) {
                if !path.is_empty() {
                    path.push(":");
                }
                path.push(folder);
            }
        }
        if !profile.script_bin.as_os_str().is_empty() {
            let path = out.entry("PATH".into()).or_default();
            let behind = std::mem::take(path);
            path.push(&profile.script_bin);
            if !behind.is_empty() {
                path.push(":");
                path.push(behind);
            }
        }
        // Editors look for these two to learn that they run below SSH.
        out.insert("SSH_CLIENT".into(), "0.0.0.0 0 0".into());
        out.insert("SSH_CONNECTION".into(), "0.0.0.0 0 0.0.0.0 0".into());
        if let Some(terminal) = terminal {
            out.insert("TERM".into(), terminal.kind.into());
            out.insert("SSH_TTY".into(), terminal.device.into());
        }
        if let Some(socket) = key_agent {
            out.insert("SSH_AUTH_SOCK".into(), socket.into());
        }
        if let Some(display) = display {
            out.insert("DISPLAY".into(), display.into());
        }
        out
    }
}

/// Chooses UTF-8 for text where no variable chooses anything else on purpose: `LC_ALL` wins over everything, so it is
/// left alone, and a locale that is UTF-8 already stays what it is (agent.md §5.2).
pub(crate) fn prefer_utf8(environment: &mut BTreeMap<OsString, OsString>) {
    let of = |name: &str| environment.get(OsStr::new(name)).map(|v| v.to_string_lossy()).filter(|v| !v.is_empty());
    let in_effect = of("LC_ALL").or_else(|| of("LC_CTYPE")).or_else(|| of("LANG")).unwrap_or_default();
    let is_utf8 = ["utf-8", "utf8"].iter().any(|name| in_effect.to_lowercase().ends_with(name));
    if of("LC_ALL").is_none() && !is_utf8 {
        let locale = if cfg!(target_os = "macos") { "UTF-8" } else { "C.UTF-8" };
        environment.insert("LC_CTYPE".into(), locale.into());
    }
}

#[cfg(unix)]
fn os_string(bytes: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

#[cfg(not(unix))]
fn os_string(bytes: Vec<u8>) -> OsString {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// Replaces `$NAME` and `${NAME}` by the values of `vars`; an unknown name becomes nothing.
pub(crate) fn expand(text: &str, vars: &[(OsString, OsString)]) -> String {
    let lookup = |name: &str| {
        let found = vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_string_lossy());
        found.unwrap_or_default()
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some((name, tail)) = after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            out.push_str(&lookup(name));
            rest = tail;
            continue;
        }
        let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
        let (name, tail) = after.split_at(end);
        if name.is_empty() {
            out.push('$');
        } else {
            out.push_str(&lookup(name));
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(n, v)| (n.into(), v.into())).collect()
    }

    fn account() -> Account {
        Account { name: "dev".into(), home: "/home/dev".into(), shell: "/bin/zsh".into() }
    }

    fn build(profile: &Profile, process: &[(&str, &str)], client: &[(&str, &str)], tty: bool) -> BTreeMap<String, String> {
        let client: Vec<_> = client.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let terminal = tty.then_some(Terminal { kind: "xterm", device: OsStr::new("/dev/pts/7") });
        let (account, process) = (account(), os(process));
        let sources = Sources {
            profile,
            account: &account,
            process: &process,
            client: &client,
            executable: Path::new("/opt/coder"),
            terminal,
            key_agent: tty.then_some(Path::new("/tmp/a/agent")),
            display: tty.then_some("localhost:10.0"),
        };
        sources.build().into_iter().map(|(n, v)| (n.into_string().unwrap(), v.into_string().unwrap())).collect()
    }

    #[test]
    fn a_client_overrides_neither_the_agents_environment_nor_a_fixed_value() {
        let env = build(
            &Profile::default(),
            &[("LANG", "C"), ("CODER", "no"), ("HOME", "not/absolute")],
            &[("LANG", "de"), ("CODER", "x"), ("EDITOR", "vi"), ("HOME", "/x")],
            false,
        );
        assert_eq!((env["LANG"].as_str(), env["CODER"].as_str(), env["EDITOR"].as_str()), ("C", "true", "vi"));
        assert_eq!((env["USER"].as_str(), env["SHELL"].as_str(), env["HOME"].as_str()), ("dev", "/bin/zsh", "/home/dev"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn utf8_is_chosen_only_where_nothing_else_was() {
        let of = |set: &[(&str, &str)]| {
            let mut environment = set.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
            prefer_utf8(&mut environment);
            environment.get(OsStr::new("LC_CTYPE")).map(|v| v.to_str().unwrap().to_owned())
        };
        assert_eq!(of(&[]).as_deref(), Some("C.UTF-8"));
        assert_eq!(of(&[("LANG", "C"), ("LC_ALL", "")]).as_deref(), Some("C.UTF-8"));
        assert_eq!(of(&[("LANG", "de_DE.UTF-8")]), None);
        assert_eq!(of(&[("LANG", "de_DE.utf8"), ("LC_CTYPE", "C")]).as_deref(), Some("C.UTF-8"));
        assert_eq!(of(&[("LC_CTYPE", "de_DE.utf8")]).as_deref(), Some("de_DE.utf8"));
        assert_eq!(of(&[("LC_ALL", "C")]), None, "whoever sets it means it");
    }

    #[test]
    fn the_first_of_two_values_of_a_client_wins() {
        assert_eq!(build(&Profile::default(), &[], &[("A", "1"), ("A", "2")], false)["A"], "1");
    }

    #[test]
    fn template_variables_override_all_and_see_the_agents_environment() {
        let variables = [("PATH", "$PATH:/x"), ("CODER", "mine"), ("B", "${HOME}!")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let profile =
            Profile { variables: variables.into(), secrets: vec![("B2".into(), b"$raw".to_vec())], ..Profile::default() };
        let env = build(&profile, &[("PATH", "/bin"), ("HOME", "/h")], &[("B", "client")], false);
        assert_eq!((env["PATH"].as_str(), env["CODER"].as_str()), ("/bin:/x:/opt", "mine"));
        assert_eq!((env["B"].as_str(), env["B2"].as_str()), ("/h!", "$raw"));
    }

    #[test]
    fn the_programs_of_scripts_come_first_whatever_the_template_says() {
        let variables = [("PATH".to_owned(), "$PATH:/x".to_owned())].into();
        let profile = Profile { variables, script_bin: "/data/bin".into(), ..Profile::default() };
        assert_eq!(build(&profile, &[("PATH", "/bin")], &[], false)["PATH"], "/data/bin:/bin:/x:/opt");
    }

    #[test]
    fn variables_that_steer_the_agent_do_not_reach_a_command() {
        let env = build(&Profile::default(), &[], &[("CODER_SSH_SESSION_TYPE", "vscode"), ("CODER_CONTAINER", "c")], false);
        assert!(!env.contains_key("CODER_SSH_SESSION_TYPE") && !env.contains_key("CODER_CONTAINER"));
    }

    #[test]
    fn the_connection_variables_are_always_there_and_the_terminal_ones_with_a_terminal() {
        let env = build(&Profile::default(), &[("TERM", "dumb"), ("SSH_AUTH_SOCK", "/mine")], &[], true);
        assert_eq!((env["TERM"].as_str(), env["SSH_TTY"].as_str()), ("xterm", "/dev/pts/7"));
        assert_eq!((env["SSH_AUTH_SOCK"].as_str(), env["DISPLAY"].as_str()), ("/tmp/a/agent", "localhost:10.0"));
        let env = build(&Profile::default(), &[], &[("SSH_CLIENT", "9")], false);
        assert_eq!((env["SSH_CLIENT"].as_str(), env["SSH_CONNECTION"].as_str()), ("0.0.0.0 0 0", "0.0.0.0 0 0.0.0.0 0"));
        assert!(!env.contains_key("SSH_TTY"));
    }

    #[test]
    fn a_lonely_dollar_stays_and_an_unknown_name_vanishes() {
        assert_eq!(expand("a$ b$$c ${no}x $", &os(&[("c", "C")])), "a$ b$C x $");
    }

    #[test]
    fn a_profile_never_prints_its_token() {
        let profile =
            Profile { token: Token::new("sesame"), secrets: vec![("S".into(), b"sesame".to_vec())], ..Profile::default() };
        assert!(!format!("{profile:?}").contains("sesame"));
    }
}
