//! `ssh -F` with the file that `coder config-ssh` wrote: names lead through the tunnel.

use crate::harness::{
    Server, clean, coder, have,
    process::{run, text},
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    process::Command,
};

#[test]
fn a_workspace_is_reached_by_the_names_of_config_ssh() {
    if !have(&["ssh"]) {
        return;
    }
    let _turn = crate::turn();
    let server = Server::start(&[]);
    let _agent = server.workspace("dev");
    // Paths as they happen to be.
    for name in ["plain", "my 50% $HOME folder", "o'brien", "a\"b", "back\\slash", "tab\there"] {
        println!("{name}");
        reach(&server, name);
    }
}

fn reach(server: &Server, folder: &str) {
    // A stored login: OpenSSH's environment tells nothing of the deployment.
    let folder = server.dir.path().join(folder);
    let login = folder.join("login");
    fs::create_dir_all(&login).unwrap();
    fs::write(login.join("url"), &server.url).unwrap();
    fs::write(login.join("session"), &server.token).unwrap();
    let program = folder.join("coder");
    symlink(coder(), &program).unwrap();
    let ssh = |file: &str, host: &str| {
        let mut ssh = Command::new("ssh");
        clean(&mut ssh).args(["-F", file, "-o", "BatchMode=yes", host, "echo \"$CODER_WORKSPACE_NAME\" here"]);
        let out = run(ssh, b"");
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "dev here\n".into()), "{host}: {}", text(&out.stderr));
        assert_eq!(text(&out.stderr), "", "{host}");
    };
    let write = |file: &str, more: &[&str]| {
        let mut command = Command::new(coder());
        let binary = program.to_str().unwrap();
        clean(&mut command).args(["config-ssh", "--yes", "--ssh-config-file", file, "--coder-binary-path", binary]).args(more);
        command.env("CODER_CONFIG_DIR", &login).env("HOME", server.dir.path());
        let out = run(command, b"");
        assert!(out.status.success(), "{}", text(&out.stderr));
    };
    let file = folder.join("config");
    let file = file.to_str().unwrap();
    write(file, &[]);
    ssh(file, "dev.coder");
    ssh(file, "coder.dev");
    ssh(file, "main.dev.me.coder");
    let header = ["--header", "X-Test=$(false) 100% \"q\" `x`", "--wait=no", "--disable-autostart", "--hostname-suffix", "corp"];
    write(file, &header);
    ssh(file, "dev.corp");
    ssh(file, "coder.dev");

    // No Match can hold such a path; there is none then.
    if program.to_str().unwrap().contains(['"', '\'']) {
        return;
    }
    // A program that says of every host that it is served otherwise: OpenSSH asks it, and takes no ProxyCommand.
    let asked = folder.join("asked");
    fs::remove_file(&program).unwrap();
    fs::write(&program, format!("#!/bin/sh\nprintf '%s\\n' \"$*\" > {}\n", quoted(asked.to_str().unwrap()))).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut settings = Command::new("ssh");
    clean(&mut settings).args(["-G", "-F", file, "dev.corp"]);
    let out = run(settings, b"");
    assert!(out.status.success() && !text(&out.stdout).contains("proxycommand"), "{}", text(&out.stdout));
    assert_eq!(fs::read_to_string(asked).unwrap(), "connect exists dev.corp\n");
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
