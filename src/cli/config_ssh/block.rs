//! The managed block of an SSH configuration: text in, text out. Its bytes are those of the Go command line for the same
//! input, so that either replaces the other's block and editors find in it what they look for.
//!
//! Three things are written otherwise, where the other's block would not work: characters that mean something to a shell
//! or to OpenSSH are escaped wherever they stand, the deployment's options are sorted, and a path that no `Match … exec`
//! can hold gets its `ProxyCommand` without one.

use super::{
    escape::{LineBreak, exec_word, proxy_text, proxy_word},
    options::{Options, TLS_FILES},
};
use crate::cli::args::{Wait, part_of_host};
use std::collections::BTreeMap;

const START: &str = "# ------------START-CODER-----------";
const END: &str = "# ------------END-CODER------------";
const HEADER: &str = "\
# This section is managed by coder. DO NOT EDIT.
#
# You should not hand-edit this section unless you are removing it, all
# changes will be lost when running \"coder config-ssh\".
#
";

/// What the deployment says about its hosts.
#[derive(Debug, Clone)]
pub(super) struct Hosts<'a> {
    pub(super) prefix: &'a str,
    pub(super) suffix: &'a str,
    pub(super) options: &'a BTreeMap<String, String>,
}

/// What OpenSSH is to run.
#[derive(Debug, Clone)]
pub(super) struct Program<'a> {
    pub(super) binary: &'a str,
    pub(super) config_dir: &'a str,
    /// Whether it is to be run at all.
    pub(super) proxy: bool,
}

/// Why a file cannot be changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("has the start of a coder section, but not its end")]
    NoEnd,
    #[error("has the end of a coder section, but not its start")]
    NoStart,
    #[error("has a coder section that ends before it starts")]
    Reversed,
    #[error("has more than one coder section")]
    Several,
}

/// Why a block cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unwritable {
    #[error("{0}")]
    Option(String),
    #[error("the {what} {value:?} is not valid: {why}")]
    Host { what: &'static str, value: String, why: String },
    #[error("{0} holds a line break, which an SSH configuration cannot")]
    LineBreak(&'static str),
}

/// A file around its block.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    before: &'a [u8],
    section: Option<&'a [u8]>,
    after: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Finds the block between its two marker lines.
    ///
    /// # Errors
    /// When there are other markers than one pair.
    pub(super) fn of(file: &'a [u8]) -> Result<Self, Malformed> {
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut at = 0;
        for line in file.split_inclusive(|b| *b == b'\n') {
            let end = at + line.len();
            match line.trim_ascii() {
                marker if marker == START.as_bytes() => starts.push(at),
                marker if marker == END.as_bytes() => ends.push(end),
                _ => {}
            }
            at = end;
        }
        let (start, end) = match (starts.as_slice(), ends.as_slice()) {
            ([], []) => return Ok(Self { before: file, section: None, after: &[] }),
            ([_], []) => return Err(Malformed::NoEnd),
            ([], [_]) => return Err(Malformed::NoStart),
            ([start], [end]) => (*start, *end),
            _ => return Err(Malformed::Several),
        };
        // Behind the end marker stands its line's end, which is where a start marker may stand at once.
        let section = file.get(start..end).filter(|section| !section.is_empty()).ok_or(Malformed::Reversed)?;
        let (before, after) = (file.get(..start).unwrap_or_default(), file.get(end..).unwrap_or_default());
        Ok(Self { before, section: Some(section), after })
    }

    /// The options of the run that wrote the block, if there is one.
    pub(super) fn stored_options(&self) -> Option<Options> {
        self.section.map(|section| Options::stored(&String::from_utf8_lossy(section)))
    }

    /// The file with another block in the place of its own, or behind its end. Everything else stays byte for byte, and a
    /// file with CRLF keeps it.
    pub(super) fn with(&self, block: &str) -> Vec<u8> {
        let whole = [self.before, self.section.unwrap_or_default(), self.after].concat();
        let crlf = whole.iter().position(|b| *b == b'\n').is_some_and(|at| at > 0 && whole.get(at - 1) == Some(&b'\r'));
        let separator = if self.section.is_none() && !self.before.is_empty() { "\n" } else { "" };
        let mut text = format!("{separator}{block}");
        if crlf {
            text = text.replace('\n', "\r\n");
        }
        [self.before, text.as_bytes(), self.after].concat()
    }
}

/// Writes the block.
///
/// # Errors
/// When something in it would break the file or the shell that reads it.
pub(super) fn block(options: &Options, hosts: &Hosts<'_>, program: &Program<'_>) -> Result<String, Unwritable> {
    let prefix = chosen("host name prefix", &options.host_prefix, hosts.prefix)?;
    let suffix = chosen("host name suffix", &options.hostname_suffix, hosts.suffix)?;
    let lines: String =
        options.host_lines(hosts.options).map_err(Unwritable::Option)?.iter().map(|line| format!("\t{line}\n")).collect();
    let command = command(options, program)?;
    let command = |host: &str| if program.proxy { format!("\tProxyCommand {command} {host} %h\n") } else { String::new() };

    let mut block = format!("{START}\n{HEADER}");
    let stored = options.stored_lines();
    if stored.iter().any(|line| line.contains(['\n', '\r'])) {
        return Err(Unwritable::LineBreak("an option"));
    }
    if !stored.is_empty() {
        block += &format!("# Last config-ssh options:\n{}\n#\n", stored.join("\n"));
    }
    if !prefix.is_empty() {
        block += &format!("Host {prefix}*\n{lines}{}", command(&format!("--ssh-host-prefix {prefix}")));
    }
    if !suffix.is_empty() {
        let command = command(&format!("--hostname-suffix {suffix}"));
        block += &format!("\nHost *.{suffix}\n{lines}");
        let exec = exec_word(program.binary).map_err(|LineBreak| Unwritable::LineBreak("the path of the coder program"))?;
        block += &match exec {
            _ if !program.proxy => String::new(),
            // Coder Connect reaches its hosts by itself.
            Some(exec) => format!("\nMatch host *.{suffix} !exec \"{exec} connect exists %h\"\n{command}"),
            None => command,
        };
    }
    Ok(format!("{block}{END}\n"))
}

/// The name by which the user's own machine reaches a workspace: with the suffix, or else with the prefix.
pub(super) fn example(options: &Options, hosts: &Hosts<'_>, workspace: &str) -> String {
    let first = |own: &str, theirs: &str| if own.is_empty() { theirs.to_owned() } else { own.to_owned() };
    match first(&options.hostname_suffix, hosts.suffix) {
        suffix if suffix.is_empty() => format!("{}{workspace}", first(&options.host_prefix, hosts.prefix)),
        suffix => format!("{workspace}.{suffix}"),
    }
}

/// Everything of a `ProxyCommand` before the host.
fn command(options: &Options, program: &Program<'_>) -> Result<String, Unwritable> {
    let told = |what| move |LineBreak| Unwritable::LineBreak(what);
    let binary = proxy_word(program.binary).map_err(told("the path of the coder program"))?;
    let config = proxy_word(program.config_dir).map_err(told("the path of the configuration folder"))?;
    let mut command = format!("{binary} --global-config {config}");
    for header in &options.headers {
        command += &format!(" --header {}", proxy_text(&header.0).map_err(told("a header"))?);
    }
    if !options.header_command.is_empty() {
        let text = proxy_text(&options.header_command).map_err(told("the header command"))?;
        command += &format!(" --header-command {text}");
    }
    for (flag, file) in TLS_FILES.iter().zip(&options.tls_files).filter(|(_, file)| !file.is_empty()) {
        command += &format!(" --{flag} {}", proxy_word(file).map_err(told("the path of a certificate or key"))?);
    }
    command += " ssh --stdio";
    if options.wait != Wait::Auto {
        command += &format!(" --wait={}", options.wait.name());
    }
    if options.disable_autostart {
        command += " --disable-autostart=true";
    }
    Ok(command)
}

/// The user's own choice, or else the deployment's, which comes from the network: both go to a shell without quotes.
fn chosen(what: &'static str, own: &str, theirs: &str) -> Result<String, Unwritable> {
    let value = if own.is_empty() { theirs } else { own };
    part_of_host(value).map_err(|why| Unwritable::Host { what, value: value.to_owned(), why })
}
