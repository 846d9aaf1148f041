//! A PostgreSQL server in a temporary folder, reached by a unix socket: that works from any network namespace.

use crate::harness::{Process, run, text};
use rustix::process::Signal;
use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tempfile::TempDir;

/// The user that runs it: the server refuses to run as root.
const USER: &str = "postgres";

/// The server; it ends when this is dropped.
pub struct Postgres {
    process: Process,
    dir: TempDir,
    programs: PathBuf,
    databases: AtomicU32,
}

/// Says what is missing to run it.
pub fn missing() -> Option<String> {
    if programs().is_none() {
        return Some("postgresql (initdb, postgres, psql)".to_owned());
    }
    (rustix::process::geteuid().is_root() && account().is_none()).then(|| format!("the user {USER}"))
}

/// The folder of the programs: on the path, or where Debian keeps them.
fn programs() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&on_path).collect();
    let debian = fs::read_dir("/usr/lib/postgresql").ok();
    let mut debian: Vec<PathBuf> =
        debian.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    debian.sort();
    debian.reverse();
    let complete = |dir: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|p| dir.join(p).is_file());
    on_path.into_iter().chain(debian).find(complete)
}

/// User and group id of the account.
fn account() -> Option<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> = accounts.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&USER))?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

impl Postgres {
    pub fn start() -> Result<Self, String> {
        let programs = programs().ok_or("no PostgreSQL")?;
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        if rustix::process::geteuid().is_root() {
            let (user, group) = account().ok_or("no such user")?;
            chown(dir.path(), Some(user), Some(group)).map_err(|e| e.to_string())?;
        }
        let data = dir.path().join("data");
        let mut init = command(&programs, "initdb", dir.path());
        init.args(["-A", "trust", "-U", USER, "-E", "UTF8", "--no-sync", "-D"]).arg(&data);
        let out = run(init, b"");
        if !out.status.success() {
            return Err(format!("initdb: {}", text(&out.stderr)));
        }
        let mut server = command(&programs, "postgres", dir.path());
        server.arg("-D").arg(&data).arg("-k").arg(dir.path());
        // Nobody needs the data after a crash.
        server.args(["-c", "listen_addresses=", "-c", "max_connections=200", "-c", "fsync=off", "-c", "full_page_writes=off"]);
        let mut process = Process::start("PostgreSQL", server);
        process.wait_for("ready to accept connections");
        Ok(Self { process, dir, programs, databases: AtomicU32::new(0) })
    }

    /// Makes an empty database and gives its URL.
    pub fn database(&self) -> String {
        let name = format!("interop_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut psql = command(&self.programs, "psql", self.dir.path());
        psql.arg("-h").arg(self.dir.path()).args(["-U", USER, "-d", "postgres", "-c", &format!("CREATE DATABASE {name}")]);
        let out = run(psql, b"");
        assert!(out.status.success(), "no database: {}", text(&out.stderr));
        format!("postgres://{USER}@/{name}?host={}&sslmode=disable", self.dir.path().display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A fast shutdown: it ends its own children, which a kill would leave behind for a while.
        self.process.signal(Signal::INT);
        // Whoever is slower is killed with the guard of its process.
        crate::harness::process::gone_within(crate::harness::process::pidfd(self.process.pid()), Duration::from_secs(20));
    }
}

fn command(programs: &Path, name: &str, dir: &Path) -> Command {
    let mut command = Command::new(programs.join(name));
    command.current_dir(dir).env("LC_ALL", "C").env("HOME", dir);
    if rustix::process::geteuid().is_root()
        && let Some((user, group)) = account()
    {
        command.uid(user).gid(group);
    }
    command
}
