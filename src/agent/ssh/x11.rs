//! X11: a display of the workspace that leads to the client's (agent.md §6.7).
//!
//! The display is a TCP port on loopback, of which everybody on the machine could make use, so that programs prove with
//! a cookie that they are this user's. `xauth` keeps the cookies: it knows the file, its format and its locks.

use crate::driver::blocking;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    net::Ipv4Addr,
    ops::RangeInclusive,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, process::Command, time::timeout};

/// Displays that may be taken; the lower ones are left to real ones.
const DISPLAYS: RangeInclusive<u16> = 10..=200;
/// Port of display 0.
const FIRST_PORT: u16 = 6000;
/// How long `xauth` may take; the connection waits for it.
const XAUTH: Duration = Duration::from_secs(5);

/// The first free display.
pub(super) async fn bind() -> io::Result<(u16, TcpListener)> {
    for display in DISPLAYS {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, FIRST_PORT + display)).await {
            Ok(listener) => return Ok((display, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "every X11 display is taken"))
}

/// Lets programs with this environment know the cookie of a display.
pub(super) async fn authorise(
    environment: BTreeMap<OsString, OsString>,
    display: u16,
    protocol: &str,
    cookie: &str,
) -> io::Result<()> {
    if !is_sound(protocol, cookie) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an X11 cookie"));
    }
    let mut command = Command::new("xauth");
    command.args(["-q", "-"]).env_clear().envs(environment).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // By its input, not its arguments: those everybody can see.
    let line = format!("add unix:{display} {protocol} {cookie}\n");
    let run = async {
        let mut child = blocking::run(move || command.spawn()).await??;
        let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(line.as_bytes()).await?;
        drop(stdin);
        child.wait().await
    };
    let status: ExitStatus = timeout(XAUTH, run).await.map_err(|_| io::ErrorKind::TimedOut)??;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("xauth failed: {status}"))) }
}

/// Nothing that `xauth` could read as another command.
fn is_sound(protocol: &str, cookie: &str) -> bool {
    let named = !protocol.is_empty() && protocol.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    named && !protocol.starts_with('-') && (2..=256).contains(&cookie.len()) && cookie.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_hexadecimal_and_its_protocol_one_word() {
        assert!(is_sound("MIT-MAGIC-COOKIE-1", "0123456789abcdefABCDEF"));
        for (protocol, cookie) in
            [("", "00"), ("A B", "00"), ("A\nremove", "00"), ("-f", "00"), ("A", ""), ("A", "0\n"), ("A", "xy")]
        {
            assert!(!is_sound(protocol, cookie), "{protocol:?} {cookie:?}");
        }
    }
}
