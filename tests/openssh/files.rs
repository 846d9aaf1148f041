//! Files: OpenSSH's `sftp` and `scp`, and rsync through `ssh`.

use crate::{
    harness::{noise, text},
    host::{Host, eventually, finish},
};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};
use tailnet::{
    agent::Profile,
    wire::sftp::{Attributes, Request, flags},
};

pub(crate) const MEGABYTES_50: usize = 50_000_000;
/// Nothing, a byte, a power of two, and more than any window.
pub(crate) const SIZES: [usize; 4] = [0, 1, 64 << 10, MEGABYTES_50];
/// Files of a tree.
const FILES: usize = 1_000;

/// A server whose relative paths begin in a fresh folder, and a second folder that is the client's.
struct Lab {
    host: Host,
    there: tempfile::TempDir,
    here: tempfile::TempDir,
}

impl Lab {
    fn start(tools: &[&str]) -> Option<Self> {
        let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let profile = Profile { directory: there.path().to_owned(), ..Profile::default() };
        Some(Self { host: Host::start_with(tools, profile)?, there, here })
    }

    /// Runs `sftp` with these commands; any that fails ends it.
    fn sftp(&self, commands: &str) -> Output {
        let mut sftp = self.host.client("sftp", &["-b", "-", "x@127.0.0.1"]);
        let mut child = sftp.current_dir(&self.here).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        finish(child)
    }

    fn sftp_ok(&self, commands: &str) -> String {
        let output = self.sftp(commands);
        assert!(output.status.success(), "{commands}\n{}", text(&output.stderr));
        text(&output.stdout)
    }

    fn scp(&self, arguments: &[&str]) -> Duration {
        let started = Instant::now();
        let output = finish(self.host.client("scp", arguments).current_dir(&self.here).spawn().unwrap());
        assert!(output.status.success(), "{arguments:?}\n{}", text(&output.stderr));
        started.elapsed()
    }
}

fn age(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// Files of every size, each of another age and with other permissions.
pub(crate) fn sizes(folder: &Path) {
    for (i, size) in SIZES.into_iter().enumerate() {
        let path = folder.join(format!("{size}.bin"));
        fs::write(&path, noise(size, i as u64 + 1)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode([0o600, 0o644, 0o755, 0o440][i])).unwrap();
        age(&path, 1_000_000_000 + i as u64);
    }
}

/// A tree of [`FILES`] files in 40 folders of two levels.
pub(crate) fn tree(folder: &Path) {
    for i in 0..FILES {
        let place = folder.join(format!("d{}/e {}", i % 8, i % 40));
        fs::create_dir_all(&place).unwrap();
        let path = place.join(format!("f{i}"));
        fs::write(&path, noise(i * 7, i as u64)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(if i % 3 == 0 { 0o755 } else { 0o640 })).unwrap();
        age(&path, 1_100_000_000 + i as u64);
    }
}

/// Each file below a folder: content, permissions and time of its last change.
type Content = BTreeMap<PathBuf, (Vec<u8>, u32, i64)>;

fn content(root: &Path) -> Content {
    let mut out = Content::new();
    let mut left = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_owned();
                out.insert(name, (fs::read(&path).unwrap(), meta.mode(), meta.mtime()));
            }
        }
    }
    out
}

pub(crate) fn assert_equal(a: &Path, b: &Path) {
    let (a, b) = (content(a), content(b));
    assert!(a.keys().eq(b.keys()), "{} and {} files", a.len(), b.len());
    for (name, file) in &a {
        let other = &b[name];
        assert!(file.0 == other.0, "{name:?} has other bytes");
        assert_eq!((file.1, file.2), (other.1, other.2), "permissions and time of {name:?}");
    }
}

pub(crate) fn rate(bytes: usize, time: Duration) -> String {
    format!("{time:.2?} ({:.0} Mbit/s)", bytes as f64 * 8e-6 / time.as_secs_f64())
}

#[test]
fn sftp_carries_files_of_every_size_both_ways_with_times_and_permissions() {
    let Some(lab) = Lab::start(&["ssh", "sftp"]) else { return };
    let (from, back) = (lab.here.path().join("from"), lab.here.path().join("back"));
    fs::create_dir_all(&from).unwrap();
    fs::create_dir_all(&back).unwrap();
    sizes(&from);
    let started = Instant::now();
    lab.sftp_ok("put -p from/*\n");
    let (there, started) = (started.elapsed(), Instant::now());
    lab.sftp_ok("get -p * back/\n");
    println!("  to the workspace {}, back {}", rate(MEGABYTES_50, there), rate(MEGABYTES_50, started.elapsed()));
    assert_equal(&from, lab.there.path());
    assert_equal(&from, &back);
}

#[test]
fn sftp_carries_a_tree_of_a_thousand_files_both_ways() {
    let Some(lab) = Lab::start(&["ssh", "sftp"]) else { return };
    tree(&lab.here.path().join("tree"));
    let started = Instant::now();
    lab.sftp_ok("put -rp tree\n");
    let (there, started) = (started.elapsed(), Instant::now());
    lab.sftp_ok("get -rp tree back\n");
    println!("  {FILES} files to the workspace in {there:.2?}, back in {:.2?}", started.elapsed());
    assert_equal(&lab.here.path().join("tree"), &lab.there.path().join("tree"));
    assert_equal(&lab.here.path().join("tree"), &lab.here.path().join("back"));
}

#[test]
fn scp_carries_files_of_every_size_and_a_tree_both_ways() {
    let Some(lab) = Lab::start(&["ssh", "scp"]) else { return };
    let from = lab.here.path().join("from");
    fs::create_dir_all(&from).unwrap();
    sizes(&from);
    let names: Vec<String> = SIZES.iter().map(|s| format!("from/{s}.bin")).collect();
    let mut there: Vec<&str> = vec!["-p"];
    there.extend(names.iter().map(String::as_str));
    there.push("x@127.0.0.1:");
    let up = lab.scp(&there);
    assert_equal(&from, lab.there.path());
    fs::create_dir_all(lab.here.path().join("back")).unwrap();
    let down = lab.scp(&["-p", "x@127.0.0.1:*.bin", "back"]);
    println!("  to the workspace {}, back {}", rate(MEGABYTES_50, up), rate(MEGABYTES_50, down));
    assert_equal(&from, &lab.here.path().join("back"));

    tree(&lab.here.path().join("tree"));
    let up = lab.scp(&["-rp", "tree", "x@127.0.0.1:copy"]);
    let down = lab.scp(&["-rp", "x@127.0.0.1:copy", "copied"]);
    println!("  {FILES} files to the workspace in {up:.2?}, back in {down:.2?}");
    assert_equal(&lab.here.path().join("tree"), &lab.there.path().join("copy"));
    assert_equal(&lab.here.path().join("tree"), &lab.here.path().join("copied"));
}

#[test]
fn every_command_of_sftp_does_what_it_says() {
    let Some(lab) = Lab::start(&["ssh", "sftp"]) else { return };
    fs::write(lab.here.path().join("f"), "0123456789").unwrap();
    let root = fs::canonicalize(lab.there.path()).unwrap();
    let shown =
        lab.sftp_ok("pwd\nmkdir d\ncd d\npwd\nput f\nln -s f link\nln f hard\nrename f g\nchmod 604 g\ndf\nls -la\nls -n\n");
    let root_name = root.to_str().unwrap();
    assert!(shown.contains(&format!("Remote working directory: {root_name}\n")), "{shown}");
    assert!(shown.contains(&format!("Remote working directory: {root_name}/d\n")), "{shown}");
    assert!(shown.contains("%Capacity"), "{shown}");
    let listed = |name: &str| {
        let line = shown.lines().find(|l| l.ends_with(name) && !l.starts_with("sftp>"));
        line.unwrap_or_else(|| panic!("no {name} in {shown}"))
    };
    let line = listed(" g");
    assert!(line.starts_with("-rw----r--    2 "), "{line}");
    let line = listed(" link");
    assert!(line.starts_with("lrwxrwxrwx    1 "), "{line}");
    assert_eq!(fs::read_link(root.join("d/link")).unwrap(), Path::new("f"));
    assert_eq!(fs::metadata(root.join("d/hard")).unwrap().nlink(), 2);
    let (user, group) = (fs::metadata(&root).unwrap().uid(), fs::metadata(&root).unwrap().gid());
    lab.sftp_ok(&format!("chown {user} d/g\nchgrp {group} d/g\nput -f f d/synced\nrm d/synced\nrm d/*\nrmdir d\n"));
    assert!(!root.join("d").exists());
    for (command, why) in [
        ("get missing", "not found"),
        ("cd missing", "No such file"),
        ("rmdir /", "Failure"),
        ("mkdir a/b/c", "No such file"),
        ("rename x y", "No such file"),
    ] {
        let output = lab.sftp(&format!("{command}\n"));
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(text(&output.stderr).contains(why), "{command}: {}", text(&output.stderr));
    }
    // What begins with a tilde leads to a home.
    let shown = lab.sftp_ok("cd /\ncd /etc\nls passwd\n");
    assert!(shown.contains("passwd"), "{shown}");
}

#[test]
fn a_transfer_goes_on_where_it_was_cut_beyond_4_gb_too() {
    let Some(lab) = Lab::start(&["ssh", "sftp"]) else { return };
    const CUT: u64 = (4 << 30) + 12_345;
    let tail = noise(300_000, 9);
    for (whole, part, command) in [
        (lab.there.path().join("down"), lab.here.path().join("down"), "reget down"),
        (lab.here.path().join("up"), lab.there.path().join("up"), "reput up"),
    ] {
        // Sparse: only the tail takes room on the disk.
        let mut file = fs::File::create(&whole).unwrap();
        file.set_len(CUT).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
        file.write_all(&tail).unwrap();
        fs::File::create(&part).unwrap().set_len(CUT).unwrap();
        lab.sftp_ok(&format!("{command}\n"));
        let mut file = fs::File::open(&part).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(CUT)).unwrap();
        let mut got = Vec::new();
        file.read_to_end(&mut got).unwrap();
        assert!(got == tail, "{command}: {} bytes", got.len());
    }
}

#[test]
fn rsync_makes_a_tree_equal_and_deletes_what_is_not_in_it() {
    let Some(lab) = Lab::start(&["ssh", "rsync"]) else { return };
    let (from, to) = (lab.here.path().join("tree"), lab.there.path().join("tree"));
    tree(&from);
    symlink("d0", from.join("link")).unwrap();
    let ssh = format!(
        "ssh -F none -p {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes",
        lab.host.port
    );
    let sync = |from: &str, to: &str| {
        let mut rsync = std::process::Command::new("rsync");
        rsync.args(["-a", "--delete", "--stats", "-e", &ssh, from, to]).stdin(Stdio::null());
        let output = finish(rsync.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let (near, far) = (format!("{}/", from.display()), format!("x@127.0.0.1:{}/", to.display()));
    fs::create_dir_all(to.join("extra")).unwrap();
    fs::write(to.join("extra/file"), "goes").unwrap();
    sync(&near, &far);
    assert!(!to.join("extra").exists());
    fs::remove_file(from.join("link")).unwrap();
    fs::remove_file(to.join("link")).unwrap();
    assert_equal(&from, &to);
    let shown = sync(&near, &far);
    assert!(shown.contains("Number of regular files transferred: 0"), "{shown}");
    fs::remove_dir_all(&from).unwrap();
    sync(&far, &near);
    assert_equal(&to, &from);
}

#[test]
fn a_client_that_reads_no_answers_is_held_up_and_its_neighbours_are_not() {
    let Some(lab) = Lab::start(&["ssh"]) else { return };
    fs::write(lab.there.path().join("file"), vec![0; 1 << 20]).unwrap();
    let control = format!("ControlPath={}/c", lab.here.path().display());
    let mut master = lab.host.ssh(&["-M", "-N", "-o", &control, "x@127.0.0.1"]).spawn().unwrap();
    eventually("no master", || lab.here.path().join("c").exists());
    let mut asking = lab.host.ssh(&["-o", &control, "-s", "x@127.0.0.1", "sftp"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut requests = Vec::new();
    Request::Open { path: b"file", flags: flags::READ, attributes: Attributes::default() }.write(0, &mut requests);
    for number in 1..=2000 {
        Request::Read { handle: &[0; 4], offset: 0, length: 200_000 }.write(number, &mut requests);
    }
    // 400 MB of answers, of which nobody takes one byte.
    let mut stdin = asking.stdin.take().unwrap();
    stdin.write_all(&requests).unwrap();
    let mut sent = 0;
    eventually("it goes on for ever", || {
        assert_eq!(text(&lab.host.run(&["-o", &control], "sleep 0.1; echo here", b"").stdout), "here\n");
        let before = std::mem::replace(&mut sent, lab.host.counters().sent);
        sent > 1 << 20 && sent < before + 100
    });
    println!("  {} KB of answers were made and sent", sent >> 10);
    assert!(sent < 8 << 20, "{sent} bytes were made for a client that reads nothing");
    // And then all of them arrive.
    drop(stdin);
    let mut stdout = asking.stdout.take().unwrap();
    let got = std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    assert!(got > 400_000_000, "{got}");
    assert_eq!(asking.wait().unwrap().code(), Some(0));
    master.kill().unwrap();
    master.wait().unwrap();
}
