//! Programs that use `ssh`, and other SSH libraries, on a workspace: direct and by relay.

use crate::{
    files::{MEGABYTES_50, assert_equal, rate, sizes, tree},
    harness::{LIMIT, noise, text},
    laptop::{HOST, Laptop, beside, direct_and_relayed, direct_and_relayed_at_once, python},
    through::echo,
};
use std::{fs, os::unix::fs::symlink, process::Command};

#[test]
fn scp_and_sftp_carry_files_and_trees_through_the_tunnel() {
    direct_and_relayed(&["scp", "sftp"], |laptop| {
        let (from, here, there) = (laptop.here().join("from"), laptop.here(), laptop.there());
        fs::create_dir_all(&from).unwrap();
        sizes(&from);
        tree(&from.join("tree"));
        let (_, up) = laptop.timed(laptop.openssh("scp", &["-rpq", "from", &laptop.remote("by-scp")]), b"");
        let (_, down) = laptop.timed(laptop.openssh("scp", &["-rpq", &laptop.remote("by-scp"), "scp-back"]), b"");
        assert_equal(&from, &there.join("by-scp"));
        assert_equal(&from, &here.join("scp-back"));
        println!("  scp, {} files: there {up:.2?}, back {down:.2?}", 1_004);

        let at = |commands: &str| format!("cd {}\n{commands}", there.display());
        let (_, up) = laptop.timed(laptop.openssh("sftp", &["-b", "-", HOST]), at("put -rp from by-sftp\n").as_bytes());
        let (_, down) = laptop.timed(laptop.openssh("sftp", &["-b", "-", HOST]), at("get -rp by-sftp sftp-back\n").as_bytes());
        assert_equal(&from, &there.join("by-sftp"));
        assert_equal(&from, &here.join("sftp-back"));
        println!("  sftp, {} files: there {up:.2?}, back {down:.2?}", 1_004);

        let big = from.join(format!("{MEGABYTES_50}.bin"));
        let (_, up) = laptop.timed(laptop.openssh("scp", &["-q", big.to_str().unwrap(), &laptop.remote("big")]), b"");
        println!("  scp of one file {}", rate(MEGABYTES_50, up));
    });
}

#[test]
fn rsync_makes_a_tree_equal_through_the_tunnel_and_deletes_what_is_not_in_it() {
    direct_and_relayed(&["rsync"], |laptop| {
        let (from, to) = (laptop.here().join("tree"), laptop.there().join("tree"));
        tree(&from);
        fs::create_dir_all(to.join("extra")).unwrap();
        fs::write(to.join("extra/file"), "goes").unwrap();
        let sync = |from: &str, to: &str| {
            laptop.timed(laptop.command("rsync", &["-a", "--delete", "-e", &laptop.ssh_program(), from, to]), b"").1
        };
        let up = sync("tree/", &laptop.remote("tree/"));
        assert_equal(&from, &to);
        let down = sync(&laptop.remote("tree/"), "back/");
        assert_equal(&from, &laptop.here().join("back"));
        println!("  1000 files: there {up:.2?}, back {down:.2?}");
    });
}

#[test]
fn git_clones_pushes_and_pulls() {
    direct_and_relayed(&["git"], |laptop| {
        let git = |folder: &str, arguments: &[&str]| {
            let settings = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main", "-C", folder];
            let mut git = laptop.command("git", &[&settings, arguments].concat());
            git.env("GIT_SSH_COMMAND", laptop.ssh_program()).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
            text(&laptop.timed(git, b"").0.stdout)
        };
        let repository = laptop.there().join("project.git");
        git(".", &["init", "--quiet", "--bare", repository.to_str().unwrap()]);
        let url = laptop.remote("project.git");
        git(".", &["clone", "--quiet", &url, "first"]);
        let first = laptop.here().join("first");
        tree(&first.join("tree"));
        fs::write(first.join("large"), noise(20_000_000, 3)).unwrap();
        symlink("large", first.join("link")).unwrap();
        git("first", &["add", "."]);
        git("first", &["commit", "--quiet", "-m", "all of it"]);
        git("first", &["push", "--quiet", "origin", "HEAD:main"]);
        git(".", &["clone", "--quiet", "--branch", "main", &url, "second"]);
        assert_eq!(git("second", &["rev-parse", "HEAD"]), git("first", &["rev-parse", "HEAD"]));
        assert!(fs::read(laptop.here().join("second/large")).unwrap() == fs::read(first.join("large")).unwrap());
        fs::write(laptop.here().join("second/more"), "more").unwrap();
        git("second", &["add", "."]);
        git("second", &["commit", "--quiet", "-m", "more"]);
        git("second", &["push", "--quiet", "origin", "main"]);
        git("first", &["pull", "--quiet", "--ff-only", "origin", "main"]);
        assert_eq!(fs::read_to_string(first.join("more")).unwrap(), "more");
    });
}

fn library(modules: &[&str], script: &str) {
    let Some(python) = python(modules) else { return };
    direct_and_relayed(&[], |laptop| {
        let script = beside(script);
        let (there, port) = (laptop.there(), echo().to_string());
        let proxy = laptop.proxy();
        let arguments = [script.to_str().unwrap(), &proxy, there.to_str().unwrap(), &port];
        let (out, took) = laptop.timed(laptop.command(&python, &arguments), b"");
        assert_eq!(text(&out.stdout), "well\n");
        println!("  {took:.2?}");
    });
}

#[test]
fn paramiko_is_served() {
    library(&["paramiko"], "with_paramiko.py");
}

#[test]
fn asyncssh_is_served() {
    library(&["asyncssh"], "with_asyncssh.py");
}

#[test]
fn ansible_finds_the_workspace() {
    let Some(python) = python(&["ansible"]) else { return };
    direct_and_relayed(&["scp", "sftp"], |laptop| {
        let settings = format!("ansible_python_interpreter={}", python.display());
        let common = format!("-F {}", laptop.config.display());
        let inventory = format!("{HOST},");
        let words =
            ["-m", "ansible", "adhoc", HOST, "-i", &inventory, "-m", "ping", "-e", &settings, "--ssh-common-args", &common];
        let mut ansible = laptop.command(&python, &words);
        let config = laptop.here().join("ansible.cfg");
        fs::write(&config, "").unwrap();
        ansible.env("ANSIBLE_CONFIG", config).env("ANSIBLE_NOCOLOR", "1").env("LC_ALL", "C.UTF-8");
        let (out, took) = laptop.timed(ansible, b"");
        let said = text(&out.stdout);
        assert!(said.contains(&format!("{HOST} | SUCCESS => ")) && said.contains("\"ping\": \"pong\""), "{said}");
        println!("  {took:.2?}");
    });
}

#[test]
fn a_keep_alive_every_second_finds_the_workspace_alive_for_a_minute() {
    direct_and_relayed_at_once(&[], |laptop| {
        let alive = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2", HOST];
        let out = laptop.ok(laptop.openssh("ssh", &[&alive[..], &["sleep 60; echo alive"]].concat()), b"");
        assert_eq!(text(&out.stdout), "alive\n");
    });
}

#[test]
fn three_hundred_killed_clients_leave_no_process_and_no_descriptor() {
    use crate::harness::{
        Process,
        process::{children, descriptors, gone_within, pidfd, until},
    };
    direct_and_relayed(&[], |laptop| {
        let start = |laptop: &Laptop| {
            let command: Command = laptop.openssh("ssh", &[HOST, "echo up; cat"]);
            let mut ssh = Process::start("ssh", command);
            ssh.wait_for("up");
            ssh
        };
        // What is opened once for all is not counted.
        start(laptop).finish(LIMIT);
        let both = [laptop.server.process.pid(), laptop.agent.pid()];
        let idle = |laptop: &Laptop| children(laptop.agent.pid()).is_empty();
        until("the first session does not end", || idle(laptop));
        let before = both.map(descriptors);
        for round in 0..300 {
            let mut ssh = start(laptop);
            let proxy = children(ssh.pid());
            assert_eq!(proxy.len(), 1, "OpenSSH has one child, its ProxyCommand");
            let ours = pidfd(proxy[0]);
            // Either of them is the one that is killed.
            if round % 2 == 0 {
                ssh.kill();
            } else {
                rustix::process::kill_process(proxy[0], rustix::process::Signal::KILL).unwrap();
                ssh.wait(LIMIT);
            }
            assert!(gone_within(ours, std::time::Duration::from_secs(2)), "it outlives its parent");
        }
        until("commands of killed clients still run", || idle(laptop));
        let mut after = before;
        let back = crate::harness::until_within(LIMIT, || {
            after = both.map(descriptors);
            after.iter().zip(&before).all(|(after, before)| after <= before)
        });
        println!("  descriptors of server and agent: {before:?} before, {after:?} after");
        assert!(back, "descriptors of server and agent: {before:?} before, {after:?} after");
    });
}
