//! A disk that is full, and an upload that ends in the middle: who waits for it is told, and everything else goes on.

use crate::{
    agents::{create, get, logs_of, token},
    harness::{
        Process, Server, have, have_as_root,
        namespace::{MOUNT_TOOLS, with_mounts},
        noise,
        process::{LIMIT, run, text, until},
    },
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A server, and the agent of its workspace `dev` on a machine where one folder has room for a megabyte.
struct Small {
    server: Server,
    agent: Process,
    folder: PathBuf,
}

impl Small {
    /// `None`, and a line that says so, where nothing can be mounted.
    fn start(manifest: &str, flags: &[&str]) -> Option<Self> {
        if !have_as_root(&MOUNT_TOOLS) {
            return None;
        }
        let server = Server::start(&[]);
        let folder = server.dir.path().join("small");
        fs::create_dir(&folder).unwrap();
        let token = token(&create(&server, &manifest.replace("SMALL", folder.to_str().unwrap())));
        let mut command = server.agent_command(None, &token);
        command.args(flags).env("CODER_AGENT_LOG_DIR", folder.join("logs")).env("CODER_AGENT_SCRIPT_DATA_DIR", server.dir.path());
        let mut agent = Process::start("the agent", with_mounts(&small(&folder), &command));
        agent.wait_for("connected to the coordinator");
        Some(Self { server, agent, folder })
    }

    fn ssh(&self, command: &str, input: &[u8]) -> Output {
        let command = format!("cd '{}'; {command}", self.folder.display());
        run(self.server.coder(&["ssh", "dev", "--", &command]), input)
    }

    /// A session in which this goes well; what it printed.
    fn done(&self, command: &str) -> String {
        let out = self.ssh(command, b"");
        assert!(out.status.success(), "{command}: {}", text(&out.stderr));
        text(&out.stdout)
    }
}

/// Mounts a megabyte at a folder.
fn small(folder: &Path) -> String {
    format!("mount -t tmpfs -o size=1m tmpfs '{}'", folder.display())
}

/// The same command where a folder has no room at all.
pub(crate) fn on_full_disk(folder: &Path, command: &Command) -> Command {
    let fill = format!("! cat /dev/zero 2> /dev/null > '{}'", folder.join("fill").display());
    with_mounts(&format!("{} && {fill}", small(folder)), command)
}

const NO_ROOM: &str = "No space left on device";

#[test]
fn a_full_disk_is_told_to_who_uploads_and_the_agent_goes_on() {
    let Some(small) = Small::start("{}", &[]) else { return };
    let bytes = noise(3_000_000, 1);
    let out = small.ssh("cat > file", &bytes);
    assert!(out.status.code() == Some(1) && text(&out.stderr).contains(NO_ROOM), "{}: {}", out.status, text(&out.stderr));
    if have(&["scp"]) {
        let here = small.server.dir.path().join("upload");
        fs::write(&here, &bytes).unwrap();
        let there = format!("dev:{}/by-scp", small.folder.display());
        // By SFTP, whose clients show no more than that it failed, and by the protocol before it, in which the workspace's
        // own scp speaks.
        for (flags, said) in [(&["-q"][..], "by-scp"), (&["-q", "-O"], NO_ROOM)] {
            let mut scp = small.server.openssh("scp", &[], flags);
            let out = run(
                {
                    scp.arg(&here).arg(&there);
                    scp
                },
                b"",
            );
            assert!(out.status.code() == Some(1) && text(&out.stderr).contains(said), "{flags:?}: {}", text(&out.stderr));
        }
    }
    assert_eq!(small.done("rm file by-scp; echo room > file; cat file"), "room\n");
}

#[test]
fn a_login_without_room_is_told() {
    if !have_as_root(&MOUNT_TOOLS) {
        return;
    }
    let server = Server::start(&[]);
    let folder = server.dir.path().join("full");
    fs::create_dir(&folder).unwrap();
    let mut login = server.coder(&["login", &server.url, "--token", &server.token]);
    login.env("CODER_CONFIG_DIR", &folder).env_remove("CODER_SESSION_TOKEN");
    let out = run(on_full_disk(&folder, &login), b"");
    let said = text(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("the login was not stored") && said.contains(NO_ROOM), "{said}");
}

#[test]
fn scripts_and_the_agents_log_go_on_where_the_disk_is_full() {
    let manifest = serde_json::json!({ "scripts": [{
        "display_name": "fill", "run_on_start": true, "start_blocks_login": true, "timeout_seconds": 60,
        "script": "cat /dev/zero > 'SMALL/fill'; echo filled; seq 1 5000; echo last"
    }] });
    let Some(mut small) = Small::start(&manifest.to_string(), &[]) else { return };
    // A login waits for the script.
    assert_eq!(small.done("echo beside > beside 2> /dev/null; cat beside"), "");
    let lines = || logs_of(&small.server).into_iter().map(|(_, line)| line).collect::<Vec<_>>();
    until("the server does not get the whole log", || lines().iter().any(|line| line == "last"));
    assert!(lines().iter().any(|line| line.contains(NO_ROOM)) && lines().iter().any(|line| line == "5000"));
    let view = get(&small.server, "/api/v2/users/me/workspace/dev");
    assert_eq!(view["latest_build"]["resources"][0]["agents"][0]["lifecycle_state"], "ready");
    // Where there is room again the log goes on.
    let size = |small: &Small| small.done("stat -c %s logs/coder-agent.log").trim().parse::<u64>().unwrap();
    small.done("rm fill");
    let before = size(&small);
    until("the agent's log does not go on", || size(&small) > before);
    assert!(small.agent.child.try_wait().unwrap().is_none());
}

#[test]
fn an_upload_that_is_cut_is_told_and_goes_on_where_it_was_cut() {
    if !have(&["scp", "sftp"]) {
        return;
    }
    let server = Server::start(&[]);
    let token = server.create("dev");
    let mut agent = server.agent(&token);
    let (here, there) = (server.dir.path().join("here"), server.dir.path().join("there"));
    let bytes = noise(40_000_000, 2);
    fs::write(&here, &bytes).unwrap();
    // 40 Mbit/s: eight seconds.
    let mut scp = server.openssh("scp", &[], &["-l", "40000"]);
    scp.arg(&here).arg(format!("dev:{}", there.display()));
    let mut scp = Process::start("scp", scp);
    let size = || fs::metadata(&there).map_or(0, |m| m.len());
    until("nothing is uploaded", || size() > 1_000_000);
    agent.kill();
    let mut again = server.agent(&token);
    let ended = scp.finish(LIMIT);
    assert!(!ended.status.success() && ended.said().contains("was lost"), "{}: {}", ended.status, ended.said());
    let part = size();
    assert!(part > 1_000_000 && part < bytes.len() as u64, "{part}");
    assert!(fs::read(&there).unwrap() == bytes[..usize::try_from(part).unwrap()], "what came before the cut differs");

    let mut sftp = server.openssh("sftp", &[], &["-b", "-"]);
    sftp.arg("dev");
    let out = run(sftp, format!("reput {} {}\n", here.display(), there.display()).as_bytes());
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(fs::read(&there).unwrap() == bytes, "what was uploaded in two parts differs");
    again.drain();
}
