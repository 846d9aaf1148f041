//! What editors pass to `coder ssh` and read from it: the network-info file, the log file, usage, start and wait.

use crate::{
    Lab,
    harness::{
        Server, http,
        process::{LIMIT, Process, run, text},
    },
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// What `-v` says for each write.
const WRITTEN: &str = "network information written";

/// The file of a process that this one starts.
fn info_file(dir: &Path) -> PathBuf {
    dir.join(format!("{}.json", std::process::id()))
}

fn read(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"))
}

/// Starts `coder ssh` with a quick network-info file in `dir`.
fn start(server: &Server, dir: &Path, args: &[&str]) -> Process {
    let info = ["ssh", "-v", "--network-info-interval", "100ms", "--network-info-dir", dir.to_str().unwrap()];
    Process::start_with_output("coder ssh", server.coder(&[&info[..], args].concat()))
}

/// Reads the file with every write until it says what is wanted.
fn wait_until(process: &mut Process, file: &Path, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        process.wait_for(WRITTEN);
        let content = read(file);
        if wanted(&content) {
            return content;
        }
    }
}

#[test]
fn the_network_file_is_named_by_the_parent_and_tells_the_way() {
    let lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    for (flag, p2p) in [("--stdio", true), ("--disable-direct-connections", false)] {
        let dir = folder.path().join(flag).join("info");
        let mut ssh = start(&lab.server, &dir, &["--stdio", flag, "dev"]);
        ssh.wait_for(WRITTEN);
        let file = info_file(&dir);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(&dir)), (0o600, 0o700));
        let told = wait_until(&mut ssh, &file, |told| told["p2p"] == p2p && told["latency"].as_f64() > Some(0.0));
        let relay = "Coder Embedded Relay";
        assert_eq!((&told["preferred_derp"], &told["using_coder_connect"]), (&relay.into(), &false.into()), "{told}");
        assert!(told["latency"].as_f64() < Some(1000.0) && told["derp_latency"][relay].is_number(), "{told}");
        has_all_keys(&told);
        let ended = ssh.finish(LIMIT);
        assert!(ended.code() == Some(0) && ended.stdout.starts_with(b"SSH-2.0-"), "{}", ended.said());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "only the last file stays");
        read(&file);
    }
}

/// Checks for the keys that editors read.
pub(crate) fn has_all_keys(told: &Value) {
    let mut keys: Vec<&str> = told.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let all = "derp_latency download_bytes_sec latency p2p preferred_derp upload_bytes_sec using_coder_connect";
    assert_eq!(keys.join(" "), all);
}

#[test]
fn the_rates_are_those_of_the_traffic() {
    const SENT: usize = 8 << 20;
    let lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    let mut ssh = start(&lab.server, folder.path(), &["dev", "--", "cat; exec sleep 1000"]);
    // Each interval's rate and length give its bytes: together they are what was sent, and the tunnel's own on top.
    let mut before = ssh.wait_for(WRITTEN);
    assert_eq!((rate(&before, "upload"), rate(&before, "download")), (0.0, 0.0), "{before}");
    ssh.feed(crate::harness::noise(SENT, 3));
    let (mut up, mut down, mut quiet) = (0.0, 0.0, 0);
    // A busy machine may rest for an interval or two in the middle.
    while quiet < 10 {
        let line = ssh.wait_for(WRITTEN);
        let seconds = second_of_day(&line) - second_of_day(&before);
        let seconds = if seconds < 0.0 { seconds + 86_400.0 } else { seconds };
        let (sent, received) = (rate(&line, "upload"), rate(&line, "download"));
        (up, down) = (up + sent * seconds, down + received * seconds);
        before = line;
        quiet = if (sent, received) == (0.0, 0.0) && down > SENT as f64 / 2.0 { quiet + 1 } else { 0 };
    }
    // The moments of counting and of telling lie a little apart.
    for total in [up, down] {
        assert!((0.7..2.0).contains(&(total / SENT as f64)), "{up} up, {down} down");
    }
    // The tunnel is idle now, and the file says what the lines say.
    let told = read(&info_file(folder.path()));
    assert_eq!((&told["upload_bytes_sec"], &told["download_bytes_sec"]), (&0.into(), &0.into()));
}

/// A rate of the line that is logged for each write.
fn rate(line: &str, direction: &str) -> f64 {
    let key = format!("{direction}_bytes_sec=");
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(&key));
    value.unwrap_or_else(|| panic!("no {key} in {line}")).parse().unwrap()
}

/// When a line was logged: `2026-01-02 03:04:05.678 …`
fn second_of_day(line: &str) -> f64 {
    let clock = line.split_whitespace().nth(1).unwrap();
    clock.split(':').fold(0.0, |seconds, part| seconds * 60.0 + part.parse::<f64>().unwrap())
}

#[test]
fn whoever_reads_the_network_file_reads_it_whole() {
    let lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    let file = info_file(folder.path());
    let mut ssh = start(&lab.server, folder.path(), &["--stdio", "dev"]);
    ssh.wait_for(WRITTEN);
    thread::scope(|scope| {
        let writes = scope.spawn(|| (0..15).for_each(|_| drop(ssh.wait_for(WRITTEN))));
        let mut reads = 0;
        while !writes.is_finished() {
            read(&file);
            reads += 1;
        }
        println!("{reads} reads beside 15 writes");
    });
}

#[test]
fn the_network_file_is_written_while_the_agent_does_not_answer() {
    let lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    let file = info_file(folder.path());
    let mut ssh = start(&lab.server, folder.path(), &["--stdio", "dev"]);
    let told = wait_until(&mut ssh, &file, |told| told["p2p"] == true);
    lab.agent.signal(Signal::STOP);
    for _ in 0..3 {
        // What is on its way may still be answered; after that each write waits for an answer in vain, and not for long.
        ssh.wait_within(WRITTEN, Duration::from_secs(5));
        assert_eq!(read(&file)["preferred_derp"], told["preferred_derp"]);
    }
    lab.agent.signal(Signal::CONT);
}

#[test]
fn a_folder_that_cannot_be_made_is_told() {
    let server = Server::start(&[]);
    let file = server.dir.path().join("file");
    fs::write(&file, "").unwrap();
    for flag in ["--network-info-dir", "--log-dir"] {
        let dir = file.join("dir");
        let out = run(server.coder(&["ssh", "--stdio", flag, dir.to_str().unwrap(), "dev"]), b"");
        let said = text(&out.stderr);
        assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b""[..]), "{said}");
        assert!(said.starts_with("error: ") && said.contains(dir.to_str().unwrap()) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn the_log_goes_to_a_file_that_the_editor_finds_by_its_ssh() {
    let lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let out = run(lab.server.coder(&["ssh", "--stdio", "--usage-app=vscode", "--log-dir", dir, "-v", "dev"]), b"");
    assert!(out.status.success() && out.stdout.starts_with(b"SSH-2.0-"), "{}", text(&out.stderr));
    assert_eq!(text(&out.stderr), "", "an editor shows what stands there to its user");
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let logs: Vec<String> = fs::read_dir(dir).unwrap().map(|entry| name(entry.unwrap())).collect();
    let [log] = logs.as_slice() else { panic!("{logs:?}") };
    // coder-ssh-20260102-030405-abcde-PPID.log
    let parts: Vec<&str> = log.trim_end_matches(".log").split('-').collect();
    let lengths: Vec<usize> = parts[2..5].iter().map(|part| part.len()).collect();
    assert_eq!((parts[..2].join("-"), lengths), ("coder-ssh".to_owned(), vec![8, 6, 5]), "{log}");
    assert_eq!(parts[5], std::process::id().to_string());
    let path = folder.path().join(log);
    let content = fs::read_to_string(&path).unwrap();
    assert!(content.contains("counters {") && !content.contains(&lab.server.token), "{content}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_use_of_a_workspace_is_reported_unless_that_is_turned_off() {
    let lab = Lab::new();
    let used = || workspace(&lab.server)["last_used_at"].clone();
    let never = used();
    for flag in ["--usage-app=disable", "--usage-app=vscode"] {
        let mut ssh = Process::start("coder ssh", lab.server.coder(&["ssh", flag, "dev", "--", "echo up; cat"]));
        ssh.wait_for("up");
        if flag == "--usage-app=disable" {
            assert_eq!(used(), never);
        } else {
            // Long before the agent reports its connections, which counts as use too.
            assert!(crate::harness::until_within(Duration::from_secs(10), || used() != never), "nothing was reported");
        }
    }
}

#[test]
fn a_stopped_workspace_is_started_unless_that_is_turned_off() {
    let lab = Lab::new();
    let workspace = workspace(&lab.server);
    let id = workspace["id"].as_str().unwrap();
    post(&lab.server, &format!("/api/v2/workspaces/{id}/builds"), r#"{"transition":"stop"}"#);
    for arguments in [&["ssh", "--disable-autostart", "dev", "--", "true"][..], &["ssh", "--stdio", "--disable-autostart", "dev"]]
    {
        let out = run(lab.server.coder(arguments), b"");
        let said = text(&out.stderr);
        assert!(out.status.code() == Some(1) && said.starts_with("error: ") && said.contains("started"), "{said}");
    }
    let out = run(lab.server.coder(&["ssh", "--wait=yes", "dev", "--", "echo up"]), b"");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "up\n".into()), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("starting it"), "{}", text(&out.stderr));
}

/// The first user's only workspace.
pub(crate) fn workspace(server: &Server) -> Value {
    let out = run(server.coder(&["list", "--output", "json"]), b"");
    let list: Value = serde_json::from_slice(&out.stdout).unwrap();
    list[0].clone()
}

fn post(server: &Server, path: &str, body: &str) {
    let answer = http::call(server.address().parse().unwrap(), "POST", path, &http::auth(&server.token), Some(body));
    assert!((200..300).contains(&answer.status), "{}: {}", answer.status, answer.text());
}
