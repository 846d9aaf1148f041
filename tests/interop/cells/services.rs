//! What a cell shows beside shell and bulk: files, forwards of both kinds, the report of the network, a terminal that is come
//! back to, the file for editors.

use super::{Session, Side, Way, succeeded};
use crate::{
    harness::{LIMIT, Process, free_port, noise, run_within, text, until_within},
    table::step,
};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    thread,
};

/// What a file or a forward carries here.
const SIZE: usize = 3_000_000;
/// Less than a packet of the tunnel holds.
const DATAGRAM: usize = 1_200;

impl Session {
    /// Each of them, with the name of the one that failed.
    pub(super) fn services(&self) -> anyhow::Result<()> {
        let folder = tempfile::tempdir().context("no folder")?;
        step("scp and sftp", || self.files(folder.path()))?;
        step("-L and -R", || self.forwards())?;
        step("port-forward", || self.port_forward())?;
        step("netcheck", || self.netcheck())?;
        step("reconnecting PTY", || self.terminal())?;
        step("network-info file", || self.network_info(&folder.path().join("network")))
    }

    fn openssh(&self, program: &str, flags: &[&str], arguments: &[&str]) -> Command {
        let mut command = self.deployment.openssh(self.cli, program, flags, self.workspace());
        command.args(arguments);
        self.settle(&mut command);
        command
    }

    fn files(&self, folder: &Path) -> anyhow::Result<()> {
        let path = |name: &str| folder.join(name);
        let sent = noise(SIZE, 8);
        fs::write(path("sent"), &sent)?;
        let local = path("sent").display().to_string();
        let remote = |name: &str| format!("{}:{}", self.workspace(), path(name).display());
        succeeded(self.openssh("scp", &[], &["-q", &local, &remote("by-scp")]))?;
        succeeded(self.openssh("scp", &[], &["-q", &remote("by-scp"), &path("scp-back").display().to_string()]))?;
        let commands = format!("cd {0}\nput {local} by-sftp\nget by-sftp {0}/sftp-back\n", folder.display());
        let out = run_within(self.openssh("sftp", &[], &["-b", "-", self.workspace()]), commands.as_bytes(), LIMIT);
        ensure!(out.status.success(), "sftp: {}: {}", out.status, text(&out.stderr));
        for name in ["by-scp", "scp-back", "by-sftp", "sftp-back"] {
            ensure!(fs::read(path(name))? == sent, "{name} has other bytes");
        }
        Ok(())
    }

    fn forwards(&self) -> anyhow::Result<()> {
        let (echo, local, remote) = (echo()?, free_port(), free_port());
        let there = format!("{local}:127.0.0.1:{echo}");
        let back = format!("{remote}:127.0.0.1:{echo}");
        let flags = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", &there, "-R", &back, self.workspace()];
        let mut ssh = Process::start("ssh -N", self.openssh("ssh", &[], &flags));
        // Both of them are there once a connection gets through each.
        for port in [local, remote] {
            exchange(port, self.agent_side == Side::Ours, &mut ssh)?;
        }
        Ok(())
    }

    fn port_forward(&self) -> anyhow::Result<()> {
        let (tcp, udp) = (echo()?, echo_datagrams()?);
        let (local_tcp, local_udp) = (free_port(), free_port());
        let (tcp, udp) = (format!("{local_tcp}:{tcp}"), format!("{local_udp}:{udp}"));
        let mut forward =
            Process::start("port-forward", self.cli(&["port-forward", self.workspace(), "--tcp", &tcp, "--udp", &udp]));
        forward.wait_for("Ready!");
        exchange(local_tcp, self.agent_side == Side::Ours && self.cli == Side::Ours, &mut forward)?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(LIMIT / 60))?;
        let sent = noise(DATAGRAM, 9);
        let mut got = vec![0; 2 * DATAGRAM];
        let answered = until_within(LIMIT, || {
            let sent_all = socket.send_to(&sent, (Ipv4Addr::LOCALHOST, local_udp)).is_ok();
            sent_all && socket.recv(&mut got).is_ok_and(|n| got.get(..n) == Some(&sent[..]))
        });
        ensure!(answered, "no datagram comes back: {:?}", forward.drain());
        forward.signal(rustix::process::Signal::INT);
        let status = forward.wait(LIMIT);
        ensure!(status.success(), "it ended with {status}: {:?}", forward.drain());
        Ok(())
    }

    fn netcheck(&self) -> anyhow::Result<()> {
        // It looks at a relay by itself whatever way is forced, and is no part of the proof of the way.
        let mut command = self.cli(&["netcheck"]);
        command.env("CODER_URL", &self.deployment.url).env("CODER_SESSION_TOKEN", &self.deployment.token);
        let out = succeeded(command)?;
        let report: Value = serde_json::from_slice(&out.stdout).with_context(|| text(&out.stdout))?;
        let region = &report["derp"]["regions"]["999"];
        ensure!(region["healthy"] == true, "the relay is not healthy: {region}");
        ensure!(report["derp"]["netcheck"]["PreferredDERP"] == 999, "no home: {}", report["derp"]["netcheck"]);
        Ok(())
    }

    /// A terminal that its client left without a word, and its next one finds as it was.
    fn terminal(&self) -> anyhow::Result<()> {
        const ID: &str = "0c9b8d52-7a55-4c1f-9f6e-3a1d6c2f7b10";
        let attach = |line: &str| {
            let mut command = self.cli(&["exp", "rpty", "-r", ID, self.workspace(), line]);
            // It goes through the server, whatever way the command line would take, and Go's refuses this setting.
            command.env_remove("CODER_DISABLE_DIRECT_CONNECTIONS");
            Process::start("exp rpty", command)
        };
        let mut first = attach("echo of-the-termin''al; cat");
        first.wait_for("of-the-terminal");
        first.kill();
        // The command belongs to a new terminal: one that is there already goes on with its own.
        let mut second = attach("echo another one");
        second.wait_for("of-the-terminal");
        second.type_in(b"typed into it\n");
        second.wait_for("typed into it");
        ensure!(!second.drain().iter().any(|line| line.contains("another one")), "a second terminal: {:?}", second.seen);
        second.type_in(b"\x04");
        // Go's command line ends with an error where the terminal has ended.
        second.wait(LIMIT);
        Ok(())
    }

    /// The file is named by the process that started the command line, and says how the bytes travel.
    fn network_info(&self, folder: &Path) -> anyhow::Result<()> {
        const KEYS: [&str; 7] =
            ["derp_latency", "download_bytes_sec", "latency", "p2p", "preferred_derp", "upload_bytes_sec", "using_coder_connect"];
        let flags = ["--network-info-dir", &folder.display().to_string(), "--network-info-interval", "500ms"];
        let mut ssh = Process::start("ssh", self.openssh("ssh", &flags, &[self.workspace(), "cat"]));
        let file = folder.join(format!("{}.json", ssh.pid().as_raw_nonzero()));
        let mut last = Value::Null;
        let told = until_within(LIMIT, || {
            // Go writes in place: what is read may be half of it.
            let read = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            last = read.unwrap_or_default();
            last["p2p"] == (self.way == Way::Direct)
        });
        ensure!(told, "{} says {last}; {:?}", file.display(), ssh.drain());
        let keys: Vec<&str> = last.as_object().context("no object")?.keys().map(String::as_str).collect();
        ensure!(keys == KEYS, "other keys: {keys:?}");
        ensure!(last["preferred_derp"] == "Coder Embedded Relay" && last["using_coder_connect"] == false, "{last}");
        ssh.close_stdin();
        let status = ssh.wait(LIMIT);
        ensure!(status.success(), "ssh ended with {status}");
        Ok(())
    }
}

/// Bytes there and back through a forwarded port; with `halves` the end of each direction too. Where Go's programs carry
/// them, the end of one direction ends the other.
fn exchange(port: u16, halves: bool, by: &mut Process) -> anyhow::Result<()> {
    let mut stream = None;
    until_within(LIMIT, || {
        stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok();
        stream.is_some()
    });
    let mut stream = stream.with_context(|| format!("nothing listens: {:?}", by.drain()))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let sent = noise(SIZE, 10);
    let writer = {
        let (mut stream, sent) = (stream.try_clone()?, sent.clone());
        thread::spawn(move || {
            stream.write_all(&sent)?;
            if halves { stream.shutdown(Shutdown::Write) } else { Ok(()) }
        })
    };
    let mut got = vec![0; SIZE];
    stream.read_exact(&mut got).with_context(|| format!("not all of {SIZE} bytes came back: {:?}", by.drain()))?;
    if halves {
        stream.read_to_end(&mut got)?;
    }
    ensure!(got == sent, "{} of {SIZE} bytes came back, or other ones: {:?}", got.len(), by.drain());
    writer.join().ok().context("the writer failed")??;
    Ok(())
}

/// Sends back what each connection sends, until the process ends.
fn echo() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // One that goes away in between is no failure of the server.
            thread::spawn(move || drop(std::io::copy(&mut &stream, &mut &stream)));
        }
    });
    Ok(port)
}

fn echo_datagrams() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = socket.local_addr()?.port();
    thread::spawn(move || {
        let mut datagram = vec![0; 2 * DATAGRAM];
        while let Ok((n, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..n], from);
        }
    });
    Ok(port)
}
