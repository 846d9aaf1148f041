//! The block beside what the Go command line wrote for the same input, and the file around it.

use super::{
    block::{Hosts, Malformed, Parts, Program, Unwritable, block, example},
    options::Options,
};
use crate::cli::args::{Header, Wait};
use std::collections::BTreeMap;

/// The file that a vector shows, its placeholders made to paths.
fn written(vector: &str) -> String {
    let (_, file) = vector.split_once("## file ").expect("the vector shows a file");
    file.split_once('\n').expect("a section has lines").1.replace("<CODER>", "/bin/coder").replace("<CONFIG_DIR>", "/home/u/c")
}

macro_rules! vector {
    ($name:literal) => {
        written(include_str!(concat!("../../../tests/vectors/cli/config_ssh_", $name, ".txt")))
    };
}

fn with(options: &Options, hosts: &Hosts<'_>, binary: &str) -> Result<String, Unwritable> {
    block(options, hosts, &Program { binary, config_dir: "/home/u/c", proxy: true })
}

fn plain(options: &Options) -> String {
    with(options, &Hosts { prefix: "coder.", suffix: "coder", options: &BTreeMap::new() }, "/bin/coder").unwrap()
}

fn into_file(file: &str, block: &str) -> String {
    String::from_utf8(Parts::of(file.as_bytes()).unwrap().with(block)).unwrap()
}

fn all_options() -> Options {
    Options {
        wait: Wait::No,
        host_prefix: "mine.".into(),
        hostname_suffix: "corp".into(),
        disable_autostart: true,
        ssh_options: ["ForwardAgent=yes", "LogLevel INFO", "ConnectTimeout="].map(str::to_owned).to_vec(),
        headers: vec![Header("X-Foo=bar baz".into())],
        header_command: "/bin/echo X=1".into(),
        ..Options::default()
    }
}

#[test]
fn a_connection_gets_the_certificates_of_the_command_line() {
    let options = Options {
        headers: vec![Header("X=1".into())],
        tls_files: ["/etc/my ca.pem", "/c$d.pem", "/100%.key"].map(str::to_owned),
        ..Options::default()
    };
    let block = plain(&options);
    let command = "--header \"X=1\" --client-tls-ca-file \"/etc/my ca.pem\" --client-tls-cert-file \"/c\\$d.pem\" \
                   --client-tls-key-file /100%%.key ssh --stdio ";
    assert_eq!(block.matches(command).count(), 2, "{block}");
    let stored = "# :client-tls-ca-file=/etc/my ca.pem\n# :client-tls-cert-file=/c$d.pem\n# :client-tls-key-file=/100%.key\n#\n";
    assert!(block.contains(stored), "{block}");
    // One alone, and what an older run stored is told apart.
    let one = Options { tls_files: ["/ca.pem".to_owned(), String::new(), String::new()], ..Options::default() };
    assert!(plain(&one).contains("/home/u/c --client-tls-ca-file /ca.pem ssh --stdio ") && !one.is_like(&options));
}

#[test]
fn the_block_has_the_bytes_of_the_go_command_line() {
    let default = plain(&Options::default());
    assert_eq!(default, vector!("yes"));
    assert_eq!(default, vector!("changed_yes"));
    assert_eq!(plain(&all_options()), vector!("options"));
}

#[test]
fn the_deployments_options_stand_between_the_users_and_everybodys() {
    let options = BTreeMap::from([("LogLevel".to_owned(), "DEBUG".to_owned()), ("ForwardAgent".to_owned(), "yes".to_owned())]);
    let hosts = Hosts { prefix: "acme.", suffix: "acme", options: &options };
    assert_eq!(with(&Options::default(), &hosts, "/bin/coder").unwrap(), vector!("deployment_options"));
}

#[test]
fn a_path_with_a_blank_is_quoted_in_both_places() {
    let hosts = Hosts { prefix: "coder.", suffix: "coder", options: &BTreeMap::new() };
    let block = with(&Options { wait: Wait::Yes, ..Options::default() }, &hosts, "/opt/my apps/co\\der").unwrap();
    assert_eq!(into_file("Host a\n\tUser b", &block), vector!("space_in_path"));
}

#[test]
fn the_block_stands_behind_a_blank_line_as_the_dry_run_shows() {
    let shown = include_str!("../../../tests/vectors/cli/config_ssh_dry_run.txt");
    let shown = shown.replace("<CODER>", "/bin/coder").replace("<CONFIG_DIR>", "/home/u/c").replace("<OUT>/cfgA", "FILE");
    let (_, diff) = shown.split_once("## stdout\n").unwrap();
    let (diff, _) = diff.split_once("## stderr").unwrap();
    let old = "Host a\n\tUser b\n";
    assert_eq!(super::diff::unified("FILE", old, &into_file(old, &plain(&Options::default()))), diff);
}

#[test]
fn a_second_run_changes_nothing_and_another_replaces_the_block_alone() {
    let (block, other) = (plain(&Options::default()), plain(&all_options()));
    for (before, after) in [
        ("", ""),
        ("Host a\n\tUser b\n", ""),
        ("Host a\n\tUser b", ""),
        ("\n", ""),
        ("# x\r\n", "\r\nHost z\r\n"),
        ("\n\n", "\n\nHost *\n\tUser z"),
    ] {
        let once = into_file(before, &block);
        assert_eq!(into_file(&once, &block), once, "{before:?}");
        let once = format!("{once}{after}");
        let changed = into_file(&once, &other);
        assert!(changed.starts_with(before) && changed.ends_with(after), "{changed:?}");
        assert_eq!(into_file(&changed, &block), once);
        assert_eq!(Parts::of(changed.as_bytes()).unwrap().stored_options().unwrap().stored_lines(), all_options().stored_lines());
    }
}

#[test]
fn a_file_with_crlf_keeps_it_and_bytes_that_are_no_text_stay() {
    let block = plain(&Options::default());
    let once = into_file("Host a\r\n\tUser b\r\n", &block);
    assert!(once.matches('\n').count() == once.matches("\r\n").count() && once.contains("\r\nHost *.coder\r\n"), "{once:?}");
    let latin1 = [b"# caf\xe9\n".as_slice(), block.as_bytes(), b"# \xff\xfe"].concat();
    assert_eq!(Parts::of(&latin1).unwrap().with(&block), latin1);
}

#[test]
fn markers_that_are_no_pair_are_refused() {
    const START: &str = "# ------------START-CODER-----------\n";
    const END: &str = "# ------------END-CODER------------\n";
    for (file, error) in [
        (START.to_owned(), Malformed::NoEnd),
        (END.to_owned(), Malformed::NoStart),
        (format!("{END}x\n{START}"), Malformed::Reversed),
        (format!("{END}{START}"), Malformed::Reversed),
        (format!("{START}{END}{START}{END}"), Malformed::Several),
        (format!("{START}{START}{END}"), Malformed::Several),
        (format!("{START}{START}"), Malformed::Several),
    ] {
        assert_eq!(Parts::of(file.as_bytes()), Err(error), "{file:?}");
    }
    // Neither is a marker: another program's, and one that is spoken about.
    let file = b"# --- START CODER VSCODE h ---\n# see # ------------START-CODER-----------\n";
    assert!(Parts::of(file).unwrap().stored_options().is_none());
}

#[test]
fn without_prefix_or_suffix_its_hosts_are_left_out() {
    let none = BTreeMap::new();
    let only = |prefix, suffix| with(&Options::default(), &Hosts { prefix, suffix, options: &none }, "/bin/coder").unwrap();
    let (old, new) = (only("coder.", ""), only("", "coder"));
    assert!(old.contains("Host coder.*") && !old.contains("Match") && !old.contains("--hostname-suffix"), "{old}");
    assert!(new.contains("#\n\nHost *.coder\n") && !new.contains("--ssh-host-prefix"), "{new}");
    let hosts = |suffix| Hosts { prefix: "coder.", suffix, options: &none };
    assert_eq!(example(&Options::default(), &hosts("coder"), "dev"), "dev.coder");
    assert_eq!(example(&Options::default(), &hosts(""), "dev"), "coder.dev");
    assert_eq!(example(&all_options(), &hosts("coder"), "dev"), "dev.corp");
}

#[test]
fn without_a_proxy_command_only_the_options_are_written() {
    let hosts = Hosts { prefix: "coder.", suffix: "coder", options: &BTreeMap::new() };
    let block = block(&Options::default(), &hosts, &Program { binary: "/bin/coder", config_dir: "/c", proxy: false }).unwrap();
    assert!(!block.contains("ProxyCommand") && !block.contains("Match") && block.contains("Host *.coder\n\tConnect"), "{block}");
}

#[test]
fn a_path_that_no_exec_clause_holds_is_used_without_one() {
    let hosts = Hosts { prefix: "", suffix: "coder", options: &BTreeMap::new() };
    let block = with(&Options::default(), &hosts, "/home/o'brien/coder").unwrap();
    assert!(!block.contains("Match"), "{block}");
    assert!(
        block.contains("Host *.coder\n") && block.contains("\tProxyCommand \"/home/o'brien/coder\" --global-config "),
        "{block}"
    );
}

#[test]
fn nothing_breaks_out_of_its_line_or_into_the_shell() {
    let none = BTreeMap::new();
    for (prefix, suffix) in [("a b", ""), ("x;id ", ""), ("", "c$(id)"), ("", "c\nProxyCommand evil"), ("-x", "")] {
        let error = with(&Options::default(), &Hosts { prefix, suffix, options: &none }, "/bin/coder").unwrap_err().to_string();
        assert!(error.contains("the host name ") && !error.contains('\n'), "{error}");
    }
    let hosts = Hosts { prefix: "coder.", suffix: "coder", options: &BTreeMap::from([("A".into(), "b\nProxyCommand x".into())]) };
    assert!(with(&Options::default(), &hosts, "/bin/coder").is_err());
    let hosts = Hosts { prefix: "coder.", suffix: "coder", options: &none };
    assert!(with(&Options::default(), &hosts, "/bin/co\nder").is_err());
    for bad in [
        Options { headers: vec![Header("X=a\nb".into())], ..Options::default() },
        Options { header_command: "a\nb".into(), ..Options::default() },
    ] {
        assert!(with(&bad, &hosts, "/bin/coder").is_err());
    }
    let tricky = Options { headers: vec![Header("X=$(id) 50% \"q\"".into())], ..Options::default() };
    let block = with(&tricky, &hosts, "/bin/coder").unwrap();
    assert!(block.contains(r#" --header "X=\$(id) 50%% \"q\"" ssh --stdio"#), "{block}");
}
