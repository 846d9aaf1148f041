//! `coder config-ssh` on real files: what it writes beside what the Go command line wrote, what it asks, what it leaves.

use crate::{
    Lab,
    harness::{
        Server, coder,
        process::{LIMIT, Process, run, run_within, text},
        terminal::Terminal,
    },
};
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

const START: &str = "# ------------START-CODER-----------\n";
const END: &str = "# ------------END-CODER------------\n";

/// The part of a vector below a heading, with our paths in the place of its own.
fn vector(name: &str, heading: &str, server: &Server) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cli").join(format!("config_ssh_{name}.txt"));
    let vector = fs::read_to_string(path).unwrap();
    let part = vector.split("## ").find_map(|part| part.strip_prefix(heading)).expect("the vector has that part");
    let part = part.split_once('\n').unwrap().1;
    let config = server.dir.path().join("config");
    part.replace("<CODER>", coder().to_str().unwrap()).replace("<CONFIG_DIR>", config.to_str().unwrap())
}

/// `config-ssh` on `file`, as it ended.
fn config_ssh(server: &Server, file: &Path, args: &[&str], input: &str) -> Output {
    let args = [&["config-ssh", "--ssh-config-file", file.to_str().unwrap()], args].concat();
    run(server.coder(&args), input.as_bytes())
}

/// The same where it has to succeed: what it said.
fn said(server: &Server, file: &Path, args: &[&str], input: &str) -> String {
    let out = config_ssh(server, file, args, input);
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout) + &text(&out.stderr)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_have_the_bytes_that_the_go_command_line_writes() {
    let lab = Lab::new();
    let (server, folder) = (&lab.server, tempfile::tempdir().unwrap());
    // The user's own file in a home without one.
    let out = run(server.coder(&["config-ssh", "--yes"]), b"");
    let home = server.dir.path().join(".ssh/config");
    assert!(out.status.success() && text(&out.stdout).contains("ssh dev.coder"), "{out:?}");
    assert_eq!(fs::read_to_string(&home).unwrap(), vector("yes", "file", server));
    assert_eq!((mode(&home), mode(home.parent().unwrap())), (0o600, 0o700));

    let options = [
        &["--yes", "--wait=no", "--disable-autostart", "-o", "ForwardAgent=yes", "-o", "LogLevel INFO", "-o", "ConnectTimeout="]
            [..],
        &["--ssh-host-prefix", "mine.", "--hostname-suffix", "corp", "--header", "X-Foo=bar baz", "--header-command"],
        &["/bin/echo X=1"],
    ]
    .concat();
    let file = folder.path().join("options");
    let shown = said(server, &file, &options, "");
    assert!(shown.contains("ssh dev.corp"), "{shown}");
    assert_eq!(fs::read_to_string(&file).unwrap(), vector("options", "file", server));

    let file = folder.path().join("space");
    fs::write(&file, "Host a\n\tUser b").unwrap();
    said(server, &file, &["--yes", "--coder-binary-path", "/opt/my apps/co\\der", "--wait", "yes"], "");
    assert_eq!(fs::read_to_string(&file).unwrap(), vector("space_in_path", "file", server));
}

#[test]
fn a_dry_run_shows_the_go_command_lines_diff_and_writes_nothing() {
    let lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let before = "Host a\n\tUser b\n";
    fs::write(&file, before).unwrap();
    let out = config_ssh(&lab.server, &file, &["--dry-run"], "");
    let wanted = vector("dry_run", "stdout", &lab.server).replace("<OUT>/cfgA", file.to_str().unwrap());
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), wanted));
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    // Where nothing would change there is no diff.
    said(&lab.server, &file, &["--yes"], "");
    let out = config_ssh(&lab.server, &file, &["-n"], "");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), String::new()));
}

#[test]
fn the_deployments_names_and_options_are_used() {
    let flags = ["--ssh-config-options", "ForwardAgent=yes,LogLevel DEBUG", "--ssh-hostname-prefix", "acme."];
    let server = Server::start(&[&flags[..], &["--workspace-hostname-suffix", "acme"]].concat());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let shown = said(&server, &file, &["--yes"], "");
    assert!(shown.contains("coder create"), "a user without workspaces is told how to make one: {shown}");
    assert_eq!(fs::read_to_string(&file).unwrap(), vector("deployment_options", "file", &server));
}

#[test]
fn a_second_run_changes_nothing() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    for (name, before) in [("lf", "Host a\n\tUser b\n"), ("crlf", "Host a\r\n\tUser b\r\n"), ("none", "Host a"), ("blank", "\n")]
    {
        let file = folder.path().join(name);
        fs::write(&file, before).unwrap();
        said(&server, &file, &["--yes"], "");
        let (content, inode) = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().ino());
        assert!(content.starts_with(before.as_bytes()));
        let shown = said(&server, &file, &[], "");
        assert!(shown.contains("up to date"), "{shown}");
        assert_eq!((fs::read(&file).unwrap(), fs::metadata(&file).unwrap().ino()), (content, inode), "{name}");
    }
}

#[test]
fn other_options_than_the_last_ones_are_asked_about() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let stored = |what: &str| fs::read_to_string(&file).unwrap().contains(what);
    said(&server, &file, &["--yes", "--wait=no", "--header", "X-Auth=hunter2"], "");
    assert!(stored("# :wait=no\n") && stored("ProxyCommand") && stored("hunter2"));
    // No answer and no: the last ones stay, and nothing is left to write. Their secrets are not shown.
    for input in ["", "no\n", "n\n", "what\n"] {
        let shown = said(&server, &file, &["-o", "ForwardAgent=yes"], input);
        assert!(shown.contains("ssh-option: ForwardAgent=yes") && shown.contains("wait: no"), "{shown}");
        assert!(!shown.contains("hunter2") && shown.contains("up to date"), "{shown}");
    }
    said(&server, &file, &["--use-previous-options", "--yes", "-o", "ForwardAgent=yes"], "");
    assert!(stored("# :wait=no\n") && !stored("ForwardAgent"));
    // Yes to the options, but no to the file.
    let shown = said(&server, &file, &["-o", "ForwardAgent=yes"], "yes\nno\n");
    assert!(shown.contains("--yes") && !stored("ForwardAgent"), "{shown}");
    said(&server, &file, &["-o", "ForwardAgent=yes"], "yes\nyes\n");
    assert!(stored("# :ssh-option=ForwardAgent=yes\n") && !stored("wait=no") && !stored("hunter2"));
    said(&server, &file, &["--yes"], "");
    assert_eq!(fs::read_to_string(&file).unwrap(), vector("changed_yes", "file", &server));
}

#[test]
fn a_question_is_answered_in_a_terminal_and_nobody_waits_for_ever_without_one() {
    let server = Server::start(&[]);
    let mut terminal = Terminal::start(server.coder(&["config-ssh"]));
    terminal.wait_for("(yes/no)");
    terminal.type_in("yes\n");
    terminal.wait_for("Updated");
    assert_eq!(terminal.wait(LIMIT).code(), Some(0));
    assert!(server.dir.path().join(".ssh/config").exists());

    // Nobody is there.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let out = config_ssh(&server, &file, &[], "");
    let said = text(&out.stderr);
    assert!(out.status.code() == Some(1) && said.starts_with("error: ") && said.contains("--yes"), "{said}");
    // Standard input stays open and says nothing.
    let command = server.coder(&["config-ssh", "--ssh-config-file", file.to_str().unwrap()]);
    let mut silent = Process::start("config-ssh", command);
    let line = silent.wait_for("error: ");
    assert!(line.contains("--yes"), "{line}");
    assert_eq!(silent.wait(LIMIT).code(), Some(1));
    assert!(!file.exists());
}

#[test]
fn a_file_with_broken_markers_is_left_alone() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    for broken in [
        format!("Host a\n{START}x\n"),
        format!("Host a\n{END}"),
        format!("{END}Host a\n{START}"),
        format!("{END}{START}"),
        format!("{START}{END}Host a\n{START}{END}"),
    ] {
        fs::write(&file, &broken).unwrap();
        let out = config_ssh(&server, &file, &["--yes"], "");
        let line = text(&out.stderr);
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), String::new()), "{line}");
        assert!(line.starts_with("error: ") && line.contains(file.to_str().unwrap()) && line.lines().count() == 1, "{line}");
        assert_eq!(fs::read_to_string(&file).unwrap(), broken);
    }
}

#[test]
fn links_modes_and_the_blocks_of_editors_stay() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("dotfiles"), folder.path().join("config"));
    let editors = "# --- START CODER VSCODE h ---\nHost coder-vscode.h--*\n\tLogLevel ERROR\n# --- END CODER VSCODE h ---\n";
    fs::write(&real, editors).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o644)).unwrap();
    symlink("dotfiles", &link).unwrap();
    said(&server, &link, &["--yes"], "");
    assert_eq!((fs::read_link(&link).unwrap(), mode(&real)), (PathBuf::from("dotfiles"), 0o644));
    let content = fs::read_to_string(&real).unwrap();
    assert!(content.starts_with(&format!("{editors}\n{START}")) && content.ends_with(END), "{content}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something was left behind");
    // What cannot be written is told, and stays.
    let folder = folder.path().join("dotfiles/config");
    let out = config_ssh(&server, &folder, &["--yes"], "");
    assert!(out.status.code() == Some(1) && text(&out.stderr).contains("cannot"), "{}", text(&out.stderr));
}

#[test]
fn a_host_that_coder_connect_does_not_serve_gives_status_1_and_no_word() {
    let server = Server::start(&[]);
    for host in ["dev.coder", "localhost", "fd7a:115c:a1e0::1", ""] {
        let out = run_within(server.coder(&["connect", "exists", host]), b"", Duration::from_secs(10));
        assert_eq!((out.status.code(), out.stdout, out.stderr), (Some(1), vec![], vec![]), "{host:?}");
    }
    // An address of its network stands for itself.
    let out = run(server.coder(&["connect", "exists", "fd60:627a:a42b::1"]), b"");
    assert_eq!((out.status.code(), out.stdout, out.stderr), (Some(0), vec![], vec![]));
}
