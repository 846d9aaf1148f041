//! A person in a session: keys that are for us, a connection that falls silent, and how long connecting took.

use crate::{
    Lab,
    harness::{
        process::{LIMIT, Process, run, text},
        terminal::Terminal,
    },
};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// How soon a session that is left has to be gone.
const SOON: Duration = Duration::from_secs(3);

/// A shell at a terminal, ready for a line.
fn shell(lab: &Lab) -> Terminal {
    let mut shell = Terminal::start(lab.server.coder(&["ssh", "dev"]));
    shell.type_in("PS1='$ ' exec sh\n");
    shell.wait_for("$ ");
    shell.type_in("echo rea''dy\n");
    shell.wait_for("ready");
    shell
}

#[test]
fn a_tilde_at_the_beginning_of_a_line_leaves_explains_or_is_typed() {
    let lab = Lab::new();
    let mut shell = shell(&lab);
    shell.type_in("~?");
    shell.wait_for("~.  leave the session");
    shell.type_in("~~\x15echo a~.b\n");
    shell.wait_for("a~.b");
    shell.type_in("sleep 1000\n~.");
    let began = Instant::now();
    assert_eq!(shell.wait(SOON).code(), Some(255));
    println!("left after {:?}", began.elapsed());
    assert!(shell.is_restored(), "the terminal's modes are not as before");
    // Without a terminal these are bytes like others.
    let out = run(lab.server.coder(&["ssh", "dev", "--", "cat"]), b"~.\n~?\n");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "~.\n~?\n".to_owned()));
}

#[test]
fn a_silent_connection_is_told_so_is_its_return_and_ctrl_c_twice_leaves_it() {
    let lab = Lab::new();
    let mut shell = shell(&lab);
    lab.agent.signal(Signal::STOP);
    let began = Instant::now();
    // Only who waits for an answer is told that there is none.
    shell.type_in(":\n");
    shell.wait_for("has been silent for 1");
    println!("told after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
    lab.agent.signal(Signal::CONT);
    shell.wait_for("answers again after");
    shell.type_in("echo he''re\n");
    shell.wait_for("here");
    // One Ctrl-C is the session's as long as it answers.
    shell.type_in("sh -c \"echo slee''ping; exec sleep 1000\"\n");
    shell.wait_for("sleeping");
    shell.type_in("\x03");
    // What is typed before the signal has done its work may be thrown away with the line.
    shell.wait_for("^C");
    shell.wait_for("$ ");
    shell.type_in("echo st''ill\n");
    shell.wait_for("still");
    lab.agent.signal(Signal::STOP);
    shell.type_in(":\n");
    shell.wait_for("has been silent for 1");
    shell.type_in("\x03\x03");
    assert_eq!(shell.wait(SOON).code(), Some(255));
    assert!(shell.is_restored());
    lab.agent.signal(Signal::CONT);
}

#[test]
fn a_second_interrupt_ends_a_command_while_it_says_good_bye_to_nobody() {
    let lab = Lab::new();
    let left = |interrupts: u32| {
        let line = ["ssh", "-v", "--disable-direct-connections", "dev", "--", "echo it-runs; exec sleep 1000"];
        let mut command = Process::start("coder ssh", lab.server.coder(&line));
        command.wait_for("it-runs");
        command.drain();
        for other in [&lab.agent, &lab.server.process] {
            other.signal(Signal::STOP);
        }
        command.signal(Signal::INT);
        // The first line of the good-bye: from here on it is the others that are waited for.
        command.wait_for("counters {");
        let began = Instant::now();
        if interrupts > 1 {
            command.signal(Signal::INT);
        }
        assert_eq!(command.wait(LIMIT).code(), Some(130));
        let took = began.elapsed();
        for other in [&lab.agent, &lab.server.process] {
            other.signal(Signal::CONT);
        }
        took
    };
    let (once, twice) = (left(1), left(2));
    println!("gone {once:?} after one interrupt, {twice:?} after the second one");
    assert!(twice * 3 < once, "the second interrupt changes nothing: {once:?}, {twice:?}");
}

#[test]
fn a_terminal_can_be_demanded_for_everything() {
    let lab = Lab::new();
    let out = run(lab.server.coder(&["--force-tty", "ssh", "dev", "--", "tty"]), b"");
    assert!(out.status.success() && text(&out.stdout).starts_with("/dev/pts/"), "{}", text(&out.stdout));
    let mut command = lab.server.coder(&["ssh", "-e", "GREETING=hello,NAME=you", "dev", "--", "tty; echo $GREETING $NAME"]);
    command.env("CODER_FORCE_TTY", "true");
    let out = run(command, b"");
    assert!(text(&out.stdout).contains("/dev/pts/") && text(&out.stdout).contains("hello you"), "{}", text(&out.stdout));
}

#[test]
fn each_stage_of_connecting_is_told_with_its_time() {
    let lab = Lab::new();
    let url = lab.server.url.replace("127.0.0.1", "localhost");
    for (args, stages) in [
        (
            &["-v", "ssh", "dev", "--", "echo out"][..],
            &["resolve", "api", "coordinator", "relay", "first packet", "ssh handshake", "first byte"][..],
        ),
        (&["-v", "ssh", "--stdio", "dev"], &["resolve", "api", "coordinator", "relay", "first packet", "first byte"]),
    ] {
        let mut command = lab.server.coder(args);
        command.env("CODER_URL", &url);
        let mut process = Process::start_with_output("coder ssh -v", command);
        let last = process.wait_for("stage=\"first byte\"");
        process.close_stdin();
        process.wait(LIMIT);
        let said = process.drain().join("\n");
        let of = |stage: &str| {
            let name = format!("stage=\"{stage}\"");
            let line = said.lines().find(|l| l.contains("timeline") && l.contains(&name));
            line.unwrap_or_else(|| panic!("no {stage}: {said}")).to_owned()
        };
        for stage in stages {
            let line = of(stage);
            println!("{}", line.split("cli::").last().unwrap());
            let time = |name: &str| -> f64 {
                let value = line.split(name).nth(1).unwrap().split("ms").next().unwrap();
                value.parse().unwrap()
            };
            assert!(time("took=") <= time("at=") + 0.1, "{line}");
        }
        assert!(last.contains("took="), "{last}");
    }
}

#[test]
fn the_stages_are_told_also_of_a_session_without_a_byte_and_of_one_that_never_began() {
    let lab = Lab::new();
    let out = run(lab.server.coder(&["-v", "ssh", "dev", "--", "true"]), b"");
    let said = text(&out.stderr);
    assert!(out.status.success() && said.contains("stage=\"ssh handshake\"") && !said.contains("\"first byte\""), "{said}");
    lab.agent.signal(Signal::STOP);
    for arguments in [&["-v", "ssh", "dev", "--", "true"][..], &["-v", "ssh", "--stdio", "dev"]] {
        let mut command = Process::start("coder ssh -v", lab.server.coder(arguments));
        command.wait_for("Waiting for the agent of dev to answer");
        command.signal(Signal::INT);
        command.wait_for("timeline stage=\"api\"");
        command.wait(LIMIT);
    }
    lab.agent.signal(Signal::CONT);
}

#[test]
fn a_terminal_that_is_resized_while_it_connects_has_its_new_size_in_the_workspace() {
    let lab = Lab::new();
    lab.agent.signal(Signal::STOP);
    let mut shell = Terminal::start(lab.server.coder(&["ssh", "dev"]));
    shell.wait_for("Waiting for the agent of dev to answer");
    shell.resize(99, 33);
    lab.agent.signal(Signal::CONT);
    shell.type_in("stty size\n");
    shell.wait_for("33 99");
    shell.type_in("exit\n");
    shell.wait(LIMIT);
}
