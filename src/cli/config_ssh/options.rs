//! What a user chose for the block: flags, and the same as an earlier run stored it in the block's header.

use crate::cli::args::{Header, Wait};
use std::collections::{BTreeMap, HashSet};

/// Where a stored option begins. Editors look for these lines too.
const STORED: &str = "# :";
/// What every host of a deployment gets behind the options of user and deployment: OpenSSH takes the first of several
/// values. The tunnel has proved whom it reaches, and its limits are its own.
const DEFAULTS: [&str; 4] = ["ConnectTimeout=0", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel ERROR"];

/// The global flags whose files a connection needs as much as this command does.
pub(super) const TLS_FILES: [&str; 3] = ["client-tls-ca-file", "client-tls-cert-file", "client-tls-key-file"];

/// The options that are stored with the block.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    pub(super) wait: Wait,
    /// In front of host names; empty for what the deployment says.
    pub(super) host_prefix: String,
    /// Behind host names, without its dot; empty for what the deployment says.
    pub(super) hostname_suffix: String,
    pub(super) disable_autostart: bool,
    /// Options of OpenSSH as they were typed.
    pub(super) ssh_options: Vec<String>,
    pub(super) headers: Vec<Header>,
    pub(super) header_command: String,
    /// The files of [`TLS_FILES`], in that order; empty for none.
    pub(super) tls_files: [String; TLS_FILES.len()],
}

impl Options {
    /// Those that a block's header holds. What is unknown there is left alone, as in a block of a newer version.
    pub(super) fn stored(section: &str) -> Self {
        let mut options = Self::default();
        let lines = section.lines().filter_map(|line| line.strip_prefix(STORED)?.split_once('='));
        for (key, value) in lines {
            let value = value.to_owned();
            match key {
                "wait" => options.wait = Wait::named(&value).unwrap_or_default(),
                "ssh-host-prefix" => options.host_prefix = value,
                "hostname-suffix" => options.hostname_suffix = value,
                "disable-autostart" => options.disable_autostart = value == "true",
                "ssh-option" => options.ssh_options.push(value),
                "header" => options.headers.push(Header(value)),
                "header-command" => options.header_command = value,
                other => {
                    let files = TLS_FILES.iter().zip(&mut options.tls_files);
                    files.filter(|(name, _)| **name == other).for_each(|(_, file)| file.clone_from(&value));
                }
            }
        }
        options
    }

    /// Keys and values of what differs from the default, in the order in which they are stored.
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let given = |key: &'static str, value: &str| (!value.is_empty()).then(|| (key, value.to_owned()));
        let one = [
            (self.wait != Wait::Auto).then(|| ("wait", self.wait.name().to_owned())),
            given("ssh-host-prefix", &self.host_prefix),
            given("hostname-suffix", &self.hostname_suffix),
            self.disable_autostart.then(|| ("disable-autostart", "true".to_owned())),
        ];
        let many = self.ssh_options.iter().map(|option| ("ssh-option", option.clone()));
        let headers = self.headers.iter().map(|header| ("header", header.0.clone()));
        let command = given("header-command", &self.header_command);
        let files = TLS_FILES.iter().zip(&self.tls_files).filter_map(|(key, file)| given(key, file));
        one.into_iter().flatten().chain(many).chain(headers).chain(command).chain(files).collect()
    }

    /// The lines of the block's header that store the options; none for the default.
    pub(super) fn stored_lines(&self) -> Vec<String> {
        self.pairs().into_iter().map(|(key, value)| format!("{STORED}{key}={value}")).collect()
    }

    /// The same for a person. A header's value is often a secret.
    pub(super) fn shown(&self) -> Vec<String> {
        let show = |(key, value): (&str, String)| match (key, value.split_once('=')) {
            ("header", Some((name, _))) => format!("{key}: {name}=…"),
            _ => format!("{key}: {value}"),
        };
        self.pairs().into_iter().map(show).collect()
    }

    /// Whether both say the same; the order of repeated options is no difference.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let sorted = |options: &Self| {
            let mut pairs = options.pairs();
            pairs.sort();
            pairs
        };
        sorted(self) == sorted(other)
    }

    /// The lines of a host: options of the user, of the deployment, of everybody. One without a value takes its key out of
    /// all that come behind it.
    ///
    /// # Errors
    /// When an option is none; names it.
    pub(super) fn host_lines(&self, deployment: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
        let mut removed = HashSet::new();
        let mut lines = Vec::new();
        let of_deployment = deployment.iter().map(|(key, value)| format!("{key} {value}"));
        for option in self.ssh_options.iter().cloned().chain(of_deployment).chain(DEFAULTS.map(str::to_owned)) {
            let (key, value) = split_option(&option)?;
            let key = key.to_ascii_lowercase();
            if removed.contains(&key) {
                continue;
            }
            if value.is_empty() {
                removed.insert(key);
            } else {
                lines.push(option);
            }
        }
        Ok(lines)
    }
}

/// Key and value of `KEY=VALUE` or `KEY VALUE`; the value may be empty.
///
/// # Errors
/// When it is neither.
pub(in crate::cli) fn split_option(option: &str) -> Result<(&str, &str), String> {
    if option.contains(['\n', '\r']) {
        return Err(format!("the SSH option {option:?} holds a line break"));
    }
    let pair = option.split_once([' ', '=']).filter(|(key, _)| !key.is_empty());
    pair.ok_or_else(|| format!("{option:?} is no SSH option: write KEY=VALUE or \"KEY VALUE\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(ssh_options: &[&str]) -> Options {
        Options { ssh_options: ssh_options.iter().map(|&o| o.to_owned()).collect(), ..Options::default() }
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let all = Options {
            wait: Wait::No,
            host_prefix: "mine.".into(),
            hostname_suffix: "corp".into(),
            disable_autostart: true,
            headers: vec![Header("X-Foo=bar baz".into()), Header("X-B=1".into())],
            header_command: "/bin/echo X=1".into(),
            tls_files: ["/a.pem", "/b=c.pem", "/d e.pem"].map(str::to_owned),
            ..options(&["ForwardAgent=yes", "LogLevel INFO", "ConnectTimeout="])
        };
        for line_break in ["\n", "\r\n"] {
            let stored = Options::stored(&all.stored_lines().join(line_break));
            assert!(stored.is_like(&all), "{:?}", stored.stored_lines());
            assert_eq!(stored.stored_lines(), all.stored_lines());
        }
        assert!(Options::stored("# :wait=perhaps\n# :new=1\n# :broken\n").is_like(&Options::default()));
    }

    #[test]
    fn the_order_of_repeated_options_is_no_difference() {
        assert!(options(&["A=1", "B=2"]).is_like(&options(&["B=2", "A=1"])));
        assert!(!options(&["A=1"]).is_like(&options(&["A=1", "A=1"])));
        assert!(!options(&["A=1"]).is_like(&options(&["A 1"])));
    }

    #[test]
    fn a_person_sees_no_header_value() {
        let secret = Options { headers: vec![Header("X-Auth=hunter2".into())], ..options(&["A=b=c"]) };
        assert_eq!(secret.shown(), ["ssh-option: A=b=c", "header: X-Auth=…"]);
        assert!(!format!("{secret:?}").contains("hunter2"));
    }

    #[test]
    fn an_option_without_a_value_takes_its_key_out_of_what_follows() {
        let deployment = BTreeMap::from([("loglevel".to_owned(), "DEBUG".to_owned()), ("B".to_owned(), "2".to_owned())]);
        let lines = options(&["A=1", "LogLevel=", "connecttimeout "]).host_lines(&deployment).unwrap();
        assert_eq!(lines, ["A=1", "B 2", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]);
        let lines = options(&[]).host_lines(&BTreeMap::from([("LogLevel".to_owned(), String::new())])).unwrap();
        assert!(!lines.iter().any(|l| l.starts_with("LogLevel")), "{lines:?}");
    }

    #[test]
    fn what_is_no_option_is_named() {
        for bad in ["Foo", "", "=x", "A=b\nProxyCommand evil", "A=b\rc"] {
            let error = options(&[bad]).host_lines(&BTreeMap::new()).unwrap_err();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
