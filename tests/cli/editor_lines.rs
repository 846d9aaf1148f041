//! The command lines that the plug-ins of VS Code and JetBrains run, letter by letter (`cli.md` §3.1, §3.2).

use crate::{
    Lab, editors,
    harness::{
        clean, coder, have,
        process::{LIMIT, Process, run, text, until},
    },
    support,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The host in the plug-ins' names of hosts.
const HOST: &str = "coder.example.com";
/// An editor looks for its process by files that have not changed for so long.
const STALE: Duration = Duration::from_secs(15);

/// What an editor keeps of a deployment.
struct Editor<'l> {
    lab: &'l Lab,
    folder: tempfile::TempDir,
}

impl<'l> Editor<'l> {
    fn new(lab: &'l Lab) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The plug-ins make it; the folder of the network files they leave to us.
        fs::create_dir(folder.path().join("logs")).unwrap();
        Self { lab, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command line in words that are cut at blanks, with an editor's names for things. Nothing else is told to it.
    fn line(&self, line: &str) -> Command {
        let mut command = Command::new(coder());
        clean(&mut command).args(self.filled(line).split(' ')).env("HOME", self.folder.path());
        command
    }

    fn filled(&self, line: &str) -> String {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        [
            ("BIN", coder().to_str().unwrap().to_owned()),
            ("URL", self.lab.server.url.clone()),
            ("TOKEN", self.lab.server.token.clone()),
            ("HOST", HOST.to_owned()),
            ("DIR", path("config")),
            ("NET", path("net")),
            ("LOGS", path("logs")),
        ]
        .iter()
        .fold(line.to_owned(), |line, (name, value)| line.replace(&format!("<{name}>"), value))
    }

    /// What a command line prints that has to succeed.
    fn said(&self, line: &str) -> String {
        let out = run(self.line(line), b"");
        assert!(out.status.success(), "{line}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    /// OpenSSH with a configuration that a plug-in writes.
    fn ssh(&self, config: &str, host: &str, remote: &str) -> Command {
        let file = self.path("ssh_config");
        fs::write(&file, self.filled(config)).unwrap();
        let mut ssh = Command::new("ssh");
        clean(&mut ssh).args(["-F", file.to_str().unwrap(), "-o", "BatchMode=yes", &self.filled(host), remote]);
        ssh.env("HOME", self.folder.path());
        ssh
    }

    /// The log of the process that an OpenSSH of this id has started.
    fn log(&self, ssh: i32) -> Option<String> {
        let names = fs::read_dir(self.path("logs")).unwrap().map(|entry| entry.unwrap().path());
        let mut of_it = names.filter(|path| path.to_str().unwrap().ends_with(&format!("-{ssh}.log")));
        of_it.next().map(|path| fs::read_to_string(path).unwrap())
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn what_vs_code_runs_works_as_written_and_its_files_appear() {
    if !have(&["ssh"]) {
        return;
    }
    let lab = Lab::new();
    let editor = Editor::new(&lab);
    assert!(json(&editor.said("version --output json"))["version"].as_str().unwrap().starts_with('v'));
    let mut login = editor.line("--global-config <DIR> login --use-token-as-session <URL>");
    let out = run(
        {
            login.env("CODER_SESSION_TOKEN", &lab.server.token);
            login
        },
        b"",
    );
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(editor.said("--global-config <DIR> login token --url <URL>").trim_end(), lab.server.token);

    let config = "\
        # --- START CODER VSCODE <HOST> ---\n\
        Host coder-vscode.<HOST>--*\n  ConnectTimeout 0\n  LogLevel ERROR\n  \
        ProxyCommand <BIN> --global-config <DIR> --header-command 'echo X-Editor=1' ssh --disable-autostart --stdio \
        --usage-app=vscode --network-info-dir <NET> --log-dir <LOGS> -v --ssh-host-prefix coder-vscode.<HOST>-- %h\n  \
        ServerAliveCountMax 3\n  ServerAliveInterval 10\n  SetEnv CODER_SSH_SESSION_TYPE=vscode\n  \
        StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n\
        # --- END CODER VSCODE <HOST> ---\n";
    let used = || editors::workspace(&lab.server)["last_used_at"].clone();
    let never = used();
    let host = "coder-vscode.<HOST>--admin--dev.main";
    let mut ssh = Process::start("ssh", editor.ssh(config, host, "echo in the workspace; exec sleep 1000"));
    ssh.wait_for("in the workspace");
    let pid = ssh.pid().as_raw_nonzero().get();
    let network = editor.path(&format!("net/{pid}.json"));
    until("the network file is there", || network.exists());
    editors::has_all_keys(&json(&fs::read_to_string(&network).unwrap()));
    // It is written anew before an editor would look for another process.
    let changed = || fs::metadata(&network).unwrap().modified().unwrap();
    let first = changed();
    until("it is written again", || changed() != first);
    assert!(changed().duration_since(first).unwrap() < STALE);
    let log = editor.log(pid).expect("a log with the id of ssh in its name");
    assert!(log.contains("counters") || log.contains("[debu]"), "-v: {log}");
    until("the use is reported", || used() != never);
    ssh.signal(Signal::TERM);
    ssh.wait(LIMIT);

    assert_eq!(
        editor.said("--global-config <DIR> start --yes --reason vscode_connection admin/dev").trim(),
        "The dev workspace is already running!"
    );
    editor.said("--global-config <DIR> update admin/dev");
    let speed = json(&editor.said("--global-config <DIR> speedtest admin/dev --output json -t 1s"));
    assert!(speed["overall"]["throughput_mbits"].is_number(), "{speed}");
    assert!(json(&editor.said("--global-config <DIR> netcheck"))["derp"]["regions"].is_object());
    let mut ping = Process::start("ping", editor.line("--global-config <DIR> ping admin/dev"));
    ping.wait_for("pong from admin/dev ");
    ping.signal(Signal::INT);
    ping.wait_for("admin/dev");
    assert_eq!(ping.wait(LIMIT).code(), Some(0));
    editor.said("--global-config <DIR> support bundle admin/dev --output-file <DIR>/bundle.zip --yes");
    assert!(support::entries(&editor.path("config/bundle.zip")).contains_key("agent/manifest.json"));
    assert!(editor.said("--global-config <DIR> logout --url <URL> --yes").contains("no longer logged in"));
    assert!(!editor.path("config/session").exists());
}

#[test]
fn what_jetbrains_runs_works_as_written_and_its_files_appear() {
    if !have(&["ssh"]) {
        return;
    }
    let lab = Lab::new();
    let editor = Editor::new(&lab);
    assert!(json(&editor.said("version --output json"))["version"].is_string());
    editor.said("login <URL> --use-token-as-session --token <TOKEN> --global-config <DIR>");
    let started = editor.said("--global-config <DIR> start --yes admin/dev --reason jetbrains_connection");
    assert!(started.contains("already running"), "{started}");
    let options = "  ConnectTimeout 0\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n  \
                   SetEnv CODER_SSH_SESSION_TYPE=JetBrains\n";
    let proxy = "  ProxyCommand <BIN> --global-config <DIR> --url <URL> --header-command \"echo X-Editor=1\" ssh --stdio \
                 --disable-autostart";
    let config = format!(
        "# --- START CODER JETBRAINS <HOST>\n\
         Host coder-jetbrains-<HOST>--*\n{proxy} --log-dir <LOGS> --usage-app=jetbrains --ssh-host-prefix \
         coder-jetbrains-<HOST>-- %h\n{options}\
         Host coder-jetbrains-<HOST>-bg--*\n{proxy} --usage-app=disable --ssh-host-prefix coder-jetbrains-<HOST>-bg-- %h\n\
         {options}Host coder-jetbrains-<HOST>-single\n{proxy} --usage-app=jetbrains admin/dev.main\n{options}\
         # --- END CODER JETBRAINS <HOST>\n"
    );
    for (host, logs) in [("--admin--dev", 1), ("-bg--admin--dev.main", 1), ("-single", 1)] {
        let out = run(editor.ssh(&config, &format!("coder-jetbrains-<HOST>{host}"), "echo in the workspace"), b"");
        assert_eq!(
            (text(&out.stdout).as_str(), out.status.code()),
            ("in the workspace\n", Some(0)),
            "{host}: {}",
            text(&out.stderr)
        );
        assert_eq!(text(&out.stderr), "", "{host}");
        assert_eq!(fs::read_dir(editor.path("logs")).unwrap().count(), logs, "{host}: its log alone is wanted");
    }
    assert!(Path::new(&editor.path("config/url")).exists());
}
