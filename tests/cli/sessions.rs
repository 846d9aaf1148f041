//! `coder ssh` as OpenSSH would do it.

use crate::{
    Lab,
    harness::{
        have,
        keys::{KEY_TOOLS, Keys},
        noise,
        process::{LIMIT, Process, run, text},
        terminal::Terminal,
    },
};
use std::time::{Duration, Instant};

#[test]
fn a_command_has_its_status_and_both_outputs_apart() {
    let lab = Lab::new();
    let out = run(lab.server.coder(&["ssh", "dev", "--", "echo out; echo err >&2; exit 7"]), b"");
    assert_eq!((out.status.code(), text(&out.stdout), text(&out.stderr)), (Some(7), "out\n".into(), "err\n".into()));
    assert_eq!(run(lab.server.coder(&["ssh", "dev", "--", "true"]), b"").status.code(), Some(0));
    // As OpenSSH does, words are joined by blanks and read by the shell there.
    let out = run(lab.server.coder(&["ssh", "dev", "--", "echo", "$((6*7))", "-v"]), b"");
    assert_eq!(text(&out.stdout), "42 -v\n");
}

#[test]
fn a_command_killed_by_a_signal_gives_128_and_its_number() {
    let lab = Lab::new();
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        let out = run(lab.server.coder(&["ssh", "dev", "--", &format!("kill -{signal} $$")]), b"");
        assert_eq!(out.status.code(), Some(code), "{}", text(&out.stderr));
    }
}

#[test]
fn input_and_its_end_reach_the_command() {
    let lab = Lab::new();
    let out = run(lab.server.coder(&["ssh", "dev", "--", "cat; echo end"]), b"x");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "xend\n".into()));
    let sent = noise(100_000_000, 9);
    let out = run(lab.server.coder(&["ssh", "dev", "--", "cat"]), &sent);
    assert!(out.status.success() && out.stdout == sent, "{} bytes of {}", out.stdout.len(), sent.len());
}

#[test]
fn a_command_gets_a_terminal_only_when_asked_for() {
    let lab = Lab::new();
    let out = run(lab.server.coder(&["ssh", "dev", "--", "tty"]), b"");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), "not a tty\n".into()));
    let out = run(lab.server.coder(&["ssh", "-t", "dev", "--", "tty"]), b"");
    assert!(out.status.success() && text(&out.stdout).starts_with("/dev/pts/"), "{}", text(&out.stdout));
    let mut inside = Terminal::start(lab.server.coder(&["ssh", "dev", "--", "tty; echo end"]));
    inside.wait_for("not a tty");
    inside.wait_for("end");
    assert_eq!(inside.wait(LIMIT).code(), Some(0));
}

#[test]
fn a_key_agent_that_is_not_there_or_not_asked_for_is_told() {
    let lab = Lab::new();
    let missing = lab.server.dir.path().join("no-agent");
    let missing = missing.to_str().unwrap();
    let said = |flags: &[&str]| {
        let out = run(lab.server.coder(&[&["ssh"], flags, &["dev", "--", "true"]].concat()), b"");
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        text(&out.stderr)
    };
    assert!(said(&["-A", "--identity-agent", missing]).contains(&format!("The key agent {missing} cannot be reached")));
    assert!(said(&["--identity-agent", missing]).contains("--forward-agent"));
    assert!(said(&["-A"]).contains("SSH_AUTH_SOCK"));
    assert_eq!(said(&[]), "");
}

#[test]
fn the_local_keys_are_there_in_a_session_that_asks() {
    if !have(&KEY_TOOLS) {
        return;
    }
    let (lab, folder) = (Lab::new(), tempfile::tempdir().unwrap());
    let keys = Keys::start(folder.path());
    let ssh = |flags: &[&str], socket: &str| {
        let mut command = lab.server.coder(&[&["ssh"], flags, &["dev", "--", "ssh-add -l && ssh-add -l"]].concat());
        run(
            {
                command.env("SSH_AUTH_SOCK", socket);
                command
            },
            b"",
        )
    };
    let expected = keys.fingerprint.repeat(2);
    for (flags, socket) in [(&["-A"][..], keys.socket.as_str()), (&["-A", "--identity-agent", &keys.socket], "")] {
        let out = ssh(flags, socket);
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), expected.clone()), "{flags:?} {}", text(&out.stderr));
    }
    assert_ne!(ssh(&[], &keys.socket).status.code(), Some(0), "it did not ask");
    let out = ssh(&["-A"], "");
    assert!(!out.status.success() && text(&out.stderr).contains("No key agent runs here"), "{}", text(&out.stderr));
    // The agent of the workspace answers, but nobody does behind it.
    let out = ssh(&["-A"], "/nowhere");
    assert!(!out.status.success() && out.stdout.is_empty(), "{}", text(&out.stdout));
}

#[test]
fn without_terminal_and_command_the_shell_reads_the_input() {
    let lab = Lab::new();
    let out = run(lab.server.coder(&["ssh", "dev"]), b"echo $((1+1))\nexit 9\n");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(9), "2\n".into()));
}

#[test]
fn a_shell_in_a_terminal_has_colours_size_keys_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::new();
    let mut command = lab.server.coder(&["ssh", "dev"]);
    command.env("TERM", "xterm-256color");
    let mut shell = Terminal::start(command);
    // A plain shell, whatever the account's is.
    shell.type_in("PS1='$ ' exec sh\n");
    let run = |shell: &mut Terminal, line: &str, shows: &str| {
        shell.wait_for("$ ");
        shell.type_in(&format!("{line}\n"));
        shell.wait_for(shows);
    };
    run(&mut shell, "PS1='pr''ompt$ '", "prompt");
    run(&mut shell, "echo rea''dy $TERM", "ready xterm-256color");
    assert!(!shell.echoes(), "the local terminal is in raw mode");
    run(&mut shell, "printf '\\033[1;31mr%s\\033[0m\\n' ed", "\x1b[1;31mred\x1b[0m");
    run(&mut shell, "stty size", "24 80");
    // The trap ends the wait, however early it comes.
    run(&mut shell, "sleep 60 & trap \"stty size; kill $!\" WINCH; echo wai''ting; wait $!", "waiting");
    shell.resize(132, 43);
    shell.wait_for("43 132");
    // It says so itself: between a shell's word and its start of a program an interrupt may be lost.
    run(&mut shell, "sh -c \"echo slee''ping; exec sleep 1000\"", "sleeping");
    shell.type_in("\x03");
    run(&mut shell, "echo still he''re", "still here");
    shell.type_in("exit 5\n");
    assert_eq!(shell.wait(LIMIT).code(), Some(5));
    assert!(shell.is_restored(), "the terminal's modes are not as before");
    println!("{}", shell.shown().escape_debug());
}

#[test]
fn both_directions_are_fast_enough_for_typing() {
    let lab = Lab::new();
    let mut cat = Process::start("coder ssh", lab.server.coder(&["ssh", "dev", "--", "cat"]));
    cat.type_in(b"first\n");
    cat.wait_for("first");
    let mut took: Vec<Duration> = (0..100)
        .map(|key| {
            let started = Instant::now();
            cat.type_in(format!("{key}\n").as_bytes());
            cat.wait_for(&key.to_string());
            started.elapsed()
        })
        .collect();
    took.sort();
    println!("a key's echo: median {:?}, worst {:?}", took[50], took[99]);
    // A human notices 100 ms; anything near it on loopback is a missing wake-up.
    assert!(took[50] < Duration::from_millis(50), "median {:?}", took[50]);
}
